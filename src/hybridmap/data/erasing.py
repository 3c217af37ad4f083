"""Random erasing: a box of some training images is filled with noise, after the normalisation, on the device.

Which images, and which box, is decided on the host by the sample's key; the noise follows from the key too. All images that are
erased are treated at once.
Source: arXiv:1708.04896, in the form of timm.data.random_erasing (Apache-2.0), mode "pixel", count 1.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from hybridmap.hashing import normal, uniform_int

_STREAM = 0x65726173
"""Tells the numbers for erasing apart from those for other purposes of the same key."""
_AREA = (0.02, 1 / 3)
"""Smallest and largest area of the box, as parts of the image's."""
_ASPECT = (0.3, 1 / 0.3)
"""Smallest and largest height / width of the box."""
_TRIES = 10
"""Boxes that are drawn before an image is left alone."""


def box(key: int, size: tuple[int, int], probability: float) -> tuple[int, int, int, int] | None:
    """(top, left, height, width) in pixels of the box that ``key`` erases from an image of ``size``; None = none."""
    if uniform_int(key, _STREAM) >= probability:
        return None
    for attempt in range(_TRIES):
        share, shape, down, across = (uniform_int(key, _STREAM + 1 + 4 * attempt + j) for j in range(4))
        area = size[0] * size[1] * (_AREA[0] + (_AREA[1] - _AREA[0]) * share)
        aspect = math.exp(math.log(_ASPECT[0]) + (math.log(_ASPECT[1]) - math.log(_ASPECT[0])) * shape)
        height, width = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if height < size[0] and width < size[1]:
            return int((size[0] - height + 1) * down), int((size[1] - width + 1) * across), height, width
    return None


def erase(images: Float[Tensor, "B C H W"], keys: Sequence[int], probability: float) -> Float[Tensor, "B C H W"]:
    """Normalised images, some with a box of standard normal noise. ``keys`` are on the host; nobody waits for the device."""
    _, channels, height, width = images.shape
    chosen = [(i, key, found) for i, key in enumerate(keys) if (found := box(key, (height, width), probability)) is not None]
    if not chosen:
        return images
    index, key, limits = (
        torch.tensor(values, dtype=torch.int64).to(images.device, non_blocking=True)
        for values in zip(*((i, key, found) for i, key, found in chosen), strict=True)
    )
    top, left, tall, wide = (limits[:, k, None, None] for k in range(4))
    rows = torch.arange(height, device=images.device)[:, None]
    columns = torch.arange(width, device=images.device)
    inside = (rows >= top) & (rows < top + tall) & (columns >= left) & (columns < left + wide)
    noise = normal(key, channels * height * width, _STREAM).view(-1, channels, height, width)
    return images.index_copy(0, index, torch.where(inside[:, None], noise, images[index]))
