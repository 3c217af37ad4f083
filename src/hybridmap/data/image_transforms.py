"""From a decoded image to the network's input: crops on uint8 tensors, decided by the sample's key; one normalisation a batch.

    file ─> uint8 (3, H, W) ─> Crop(image, size, key) ─> uint8 (3, height, width) ─> batch ─> normalise ─> float32

The crop comes first and at eight bits, because resizing few bytes is what makes the data path fast; the normalisation comes
last, once per batch, on the device.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor

from hybridmap.config import Config, Configurable
from hybridmap.errors import UserError
from hybridmap.hashing import uniform_int

_TRIES = 10
"""Boxes that are drawn before a random crop settles for the central one. Source: torchvision ``RandomResizedCrop``."""


def resize(
    image: UInt8[Tensor, "C h w"], size: tuple[int, int], mode: Literal["bicubic", "bilinear"] = "bicubic"
) -> UInt8[Tensor, "C height width"]:
    """With antialiasing, on uint8 (rounded and clamped), as Pillow's filter."""
    if tuple(image.shape[-2:]) == size:
        return image
    # A decoded image lies in memory pixel by pixel. The batch axis goes in front of (h, w, C), because only then do the strides
    # say so, and torch takes the path that is twice as fast; the numbers are the same.
    batch = image.permute(1, 2, 0)[None].permute(0, 3, 1, 2)
    return F.interpolate(batch, size, mode=mode, antialias=True, align_corners=False)[0]


class Crop(Configurable):
    """How an image of any size becomes one of the size that the network wants."""

    @dataclass(frozen=True, kw_only=True)
    class Config(Config):
        pass

    @abstractmethod
    def window(self, full: tuple[int, int], size: tuple[int, int], key: int) -> tuple[int, int]:
        """(height, width) in pixels of the part that becomes the crop, from an image of ``full`` (height, width).

        The decoder may deliver a smaller image as long as this part keeps more pixels than ``size``.
        """

    @abstractmethod
    def __call__(
        self, image: UInt8[Tensor, "C h w"], size: tuple[int, int], key: int, full: tuple[int, int] | None = None
    ) -> UInt8[Tensor, "C height width"]:
        """The crop that ``key`` names. ``full`` is the file's (height, width) where ``image`` was decoded smaller than that."""


class RandomResizedCrop(Crop):
    """A random box of random area and shape, resized, perhaps mirrored: the augmentation of MAE and MAP.

    Source: torchvision ``RandomResizedCrop`` and ``RandomHorizontalFlip``; bicubic as in MAE (arXiv:2111.06377).
    Differs from source: the numbers come from the sample's key instead of a generator.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config(Crop.Config):
        scale: tuple[float, float] = (0.2, 1.0)
        """Smallest and largest area of the box, as parts of the image's."""
        ratio: tuple[float, float] = (3 / 4, 4 / 3)
        """Smallest and largest width / height of the box."""
        flip: bool = True
        """Mirror half of the crops left to right."""
        filter: Literal["bicubic", "random"] = "bicubic"
        """How the box is resized; random = half of them bilinear."""

        def __post_init__(self) -> None:
            if not 0 < self.scale[0] <= self.scale[1] <= 1:
                raise UserError(f"crop.scale must be two parts of the area with 0 < low <= high <= 1, got {self.scale}")
            if not 0 < self.ratio[0] <= self.ratio[1]:
                raise UserError(f"crop.ratio must be two shapes with 0 < low <= high, got {self.ratio}")

    config: RandomResizedCrop.Config

    def box(self, full: tuple[int, int], key: int) -> tuple[int, int, int, int]:
        """(top, left, height, width) in pixels of an image of ``full`` (height, width)."""
        return _random_box(self.config, full, key)

    def window(self, full: tuple[int, int], size: tuple[int, int], key: int) -> tuple[int, int]:
        return self.box(full, key)[2:]

    def __call__(
        self, image: UInt8[Tensor, "C h w"], size: tuple[int, int], key: int, full: tuple[int, int] | None = None
    ) -> UInt8[Tensor, "C height width"]:
        given = (image.shape[-2], image.shape[-1])
        top, left, h, w = self.box(full or given, key)
        if full is not None and full != given:
            down, across = given[0] / full[0], given[1] / full[1]
            h, w = max(1, round(h * down)), max(1, round(w * across))
            top, left = min(round(top * down), given[0] - h), min(round(left * across), given[1] - w)
        bilinear = self.config.filter == "random" and uniform_int(key, 4 * _TRIES + 1) < 0.5
        crop = resize(image[:, top : top + h, left : left + w], size, "bilinear" if bilinear else "bicubic")
        return crop.flip(-1) if self.config.flip and uniform_int(key, 4 * _TRIES) < 0.5 else crop


@lru_cache(maxsize=2)  # asked for by the decoder, then by the crop
def _random_box(config: RandomResizedCrop.Config, full: tuple[int, int], key: int) -> tuple[int, int, int, int]:
    """(top, left, height, width) in pixels of an image of ``full`` (height, width)."""
    height, width = full
    (low, high), (narrow, wide) = config.scale, config.ratio
    for attempt in range(_TRIES):
        area = height * width * (low + (high - low) * uniform_int(key, 4 * attempt))
        shape = math.exp(math.log(narrow) + (math.log(wide) - math.log(narrow)) * uniform_int(key, 4 * attempt + 1))
        w, h = round(math.sqrt(area * shape)), round(math.sqrt(area / shape))
        if 0 < w <= width and 0 < h <= height:
            top = int((height - h + 1) * uniform_int(key, 4 * attempt + 2))
            left = int((width - w + 1) * uniform_int(key, 4 * attempt + 3))
            return top, left, h, w
    h, w = height, width
    if width / height < narrow:
        h = min(height, max(1, round(width / narrow)))
    elif width / height > wide:
        w = min(width, max(1, round(height * wide)))
    return (height - h) // 2, (width - w) // 2, h, w


class CentreCrop(Crop):
    """The middle of the image, the same every time: what networks are evaluated on.

    Source: the usual ImageNet evaluation, the short side resized to size / crop_ratio (256 for 224) and the centre cut out.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config(Crop.Config):
        crop_ratio: float = 0.875
        """Part of the short side that is kept."""

        def __post_init__(self) -> None:
            if not 0 < self.crop_ratio <= 1:
                raise UserError(f"crop.crop_ratio must be in (0, 1], got {self.crop_ratio}")

    config: CentreCrop.Config

    def resized(self, full: tuple[int, int], size: tuple[int, int]) -> tuple[int, int]:
        """(height, width) of the whole image before the centre is cut out: it covers ``size`` / crop_ratio just so."""
        height, width = full
        h, w = (math.floor(s / self.config.crop_ratio) for s in size)
        return (h, int(h * width / height)) if width * h >= height * w else (int(w * height / width), w)

    def window(self, full: tuple[int, int], size: tuple[int, int], key: int) -> tuple[int, int]:
        # All of the image is resized, so what matters is how many of its pixels one pixel of the output stands for.
        h, w = self.resized(full, size)
        return full[0] * size[0] // h, full[1] * size[1] // w

    def __call__(
        self, image: UInt8[Tensor, "C h w"], size: tuple[int, int], key: int, full: tuple[int, int] | None = None
    ) -> UInt8[Tensor, "C height width"]:
        h, w = self.resized(full or (image.shape[-2], image.shape[-1]), size)
        top, left = round((h - size[0]) / 2), round((w - size[1]) / 2)
        return resize(image, (h, w))[:, top : top + size[0], left : left + size[1]]


@cache
def _constants(mean: tuple[float, ...], std: tuple[float, ...], device: torch.device) -> tuple[Tensor, Tensor]:
    """(mean, standard deviation) per channel on the scale of bytes, each (C, 1, 1)."""
    centre, scale = (torch.tensor(values, device=device).mul(255).view(-1, 1, 1) for values in (mean, std))
    return centre, scale


def normalise(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> Float[Tensor, "B C H W"]:
    """(image / 255 - mean) / std of a uint8 batch (B, C, H, W), in float32, on its device; float batches return as they are."""
    if images.dtype != torch.uint8:
        return images
    centre, scale = _constants(tuple(mean), tuple(std), images.device)
    if images.stride(1) == 1 and images.shape[1] > 1:
        # Pixel by pixel: whole rows at a time, because arithmetic along an axis of three is slow.
        b, c, h, w = images.shape
        rows = images.permute(0, 2, 3, 1).reshape(b * h, w * c).float()
        rows.sub_(centre.flatten().repeat(w)).div_(scale.flatten().repeat(w))
        return rows.view(b, h, w, c).permute(0, 3, 1, 2)
    return images.float().sub_(centre).div_(scale)


def denormalise(images: Float[Tensor, "B C H W"], mean: Sequence[float], std: Sequence[float]) -> Float[Tensor, "B C H W"]:
    """The inverse of :func:`normalise` for showing: values in [0, 1], clamped."""
    shape = (1, -1, 1, 1)
    scale, centre = images.new_tensor(tuple(std)).view(shape), images.new_tensor(tuple(mean)).view(shape)
    return (images * scale + centre).clamp(0, 1)
