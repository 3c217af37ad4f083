"""Changes of colour and place for a batch of byte images at once, each image by its own amount, on any device.

    operation(images, amount) ─> images        (n, 3, height, width) uint8, (n,) float64, on the same device

They compute what Pillow does for one image at a time: the same bytes, but for :func:`shear`, :func:`translate` and
:func:`rotate`, where float32 instead of float64 now and then rounds to the neighbouring value, and :func:`blur`, where Pillow
has three boxes in place of a Gaussian. Source: Pillow's ``ImageOps``, ``ImageEnhance`` and its C library (MIT-CMU licence).
"""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor

Images = UInt8[Tensor, "n 3 H W"]
Amount = Float[Tensor, "n"]
Axis = Literal["x", "y"]


def _each(amount: Amount) -> Float[Tensor, "n 1 1 1"]:
    """In float32, which is what Pillow blends by."""
    return amount.float().view(-1, 1, 1, 1)


def _bytes(values: Float[Tensor, "n 3 H W"]) -> Images:
    """Cut off at both ends; what lies behind the point is dropped."""
    return values.clamp_(0, 255).to(torch.uint8)


# ---------------------------------------------------------------------------------------------------- each value by itself


def invert(images: Images) -> Images:
    """The negative."""
    return 255 - images


def solarise(images: Images, threshold: Amount) -> Images:
    """The negative of values that reach ``threshold`` (0 to 256)."""
    threshold = threshold.view(-1, 1, 1, 1)
    reached = (images >= threshold.clamp(max=255).to(torch.uint8)) & (threshold < 256)
    return images ^ reached.to(torch.uint8).neg()


def solarise_add(images: Images, amount: Amount) -> Images:
    """Values below 128 grow by ``amount`` (whole numbers from 0 to 127)."""
    return images + (images < 128).to(torch.uint8) * amount.to(torch.uint8).view(-1, 1, 1, 1)


def posterise(images: Images, bits: Amount) -> Images:
    """Only the highest ``bits`` (0 to 8) of each value are kept."""
    mask = 256 - 2 ** (8 - bits)
    return images & mask.to(torch.uint8).view(-1, 1, 1, 1)


def auto_contrast(images: Images) -> Images:
    """Each channel stretched, so that its smallest value becomes 0 and its largest 255."""
    values = images.flatten(2)
    low, high = values.amin(2, keepdim=True).double(), values.amax(2, keepdim=True).double()
    scale = torch.full_like(high, 255) / (high - low).clamp(min=1)  # 255 / x would be 255 * (1 / x), which rounds differently
    values = torch.arange(256, device=images.device)
    table = (values * scale + -low * scale).clamp(0, 255).to(torch.uint8)
    return _look_up(torch.where(high > low, table, values.to(torch.uint8)), images)


def equalise(images: Images) -> Images:
    """Each channel with about as many pixels of every value."""
    index = images.flatten(2).long()
    counts = index.new_zeros(*index.shape[:2], 256).scatter_add_(2, index, index.new_ones(()).expand_as(index))
    last = counts.gather(2, index.amax(dim=2, keepdim=True))
    step = (index.shape[2] - last) // 255
    before = counts.cumsum(2) - counts + step // 2
    values = torch.arange(256, device=images.device)
    return _look_up(torch.where(step > 0, (before // step.clamp(min=1)).clamp(max=255), values).to(torch.uint8), images)


def _look_up(table: UInt8[Tensor, "n 3 256"], images: Images) -> Images:
    return table.gather(2, images.flatten(2).long()).view(images.shape)


# ---------------------------------------------------------------------------------------- between an image and a duller one


def grey(images: Images) -> Images:
    """Lightness (ITU-R 601) in all three channels."""
    return _lightness(images).expand_as(images)


def brightness(images: Images, factor: Amount) -> Images:
    """0 = black, 1 = unchanged."""
    return _bytes(images * _each(factor))


def contrast(images: Images, factor: Amount) -> Images:
    """0 = the mean lightness everywhere, 1 = unchanged."""
    mean = _lightness(images).double().mean((2, 3), keepdim=True).add(0.5).to(torch.uint8)
    return _blend(mean, images, factor)


def colour(images: Images, factor: Amount) -> Images:
    """0 = grey, 1 = unchanged."""
    return _blend(_lightness(images), images, factor)


def sharpness(images: Images, factor: Amount) -> Images:
    """0 = smoothed by a mean over 3 x 3 pixels that counts the middle five times, 1 = unchanged; the border is left alone."""
    smooth, x = images.clone(), images.short()
    rows = x[:, :, :-2] + x[:, :, 1:-1] + x[:, :, 2:]
    total = rows[..., :-2] + rows[..., 1:-1] + rows[..., 2:] + 4 * x[:, :, 1:-1, 1:-1]
    smooth[:, :, 1:-1, 1:-1] = _bytes(total / 13 + 0.5)
    return _blend(smooth, images, factor)


def _lightness(images: Images) -> UInt8[Tensor, "n 1 H W"]:
    red, green, blue = images.int().split(1, dim=1)
    return ((red * 19595 + green * 38470 + blue * 7471 + 0x8000) >> 16).to(torch.uint8)


def _blend(dull: UInt8[Tensor, "n _ _ _"], images: Images, factor: Amount) -> Images:
    dull = dull.float()
    return _bytes(dull + _each(factor) * (images - dull))


def blur(images: Images, sigma: Amount, largest: float) -> Images:
    """With a Gaussian of deviation ``sigma`` in pixels, none above ``largest``; beyond its border an image goes on as there."""
    reach = math.ceil(3 * largest)
    steps = torch.arange(reach + 1, device=images.device)
    weights = torch.exp(-0.5 * (steps / sigma[:, None]) ** 2)
    weights = (weights / (2 * weights.sum(1, keepdim=True) - 1)).float().view(-1, reach + 1, 1, 1, 1)
    blurred = images.float()
    for axis, pad in ((2, (0, 0, reach, reach)), (3, (reach, reach, 0, 0))):
        size, padded = blurred.shape[axis], F.pad(blurred, pad, mode="replicate")
        blurred = weights[:, 0] * blurred
        for k in range(1, reach + 1):
            pair = padded.narrow(axis, reach - k, size) + padded.narrow(axis, reach + k, size)
            blurred.addcmul_(weights[:, k], pair)
    return _bytes(blurred + 0.5)


# ------------------------------------------------------------------------------------------------------ from another place


def shear(images: Images, factor: Amount, axis: Axis, outside: UInt8[Tensor, "3"]) -> Images:
    """Every row (axis x) is moved by ``factor`` pixels more than the one above; likewise every column (y)."""
    x, y = _centres(images)
    return _slid(images, factor.view(-1, 1, 1) * (y if axis == "x" else x), axis, outside)


def translate(images: Images, part: Amount, axis: Axis, outside: UInt8[Tensor, "3"]) -> Images:
    """Moved by a part of the image's width (axis x) or height (y), to the left or up where it is positive."""
    return _slid(images, (part * images.shape[3 if axis == "x" else 2]).view(-1, 1, 1), axis, outside)


def rotate(images: Images, degrees: Amount, outside: UInt8[Tensor, "3"]) -> Images:
    """Turned about the centre, counterclockwise."""
    x, y = _centres(images)
    height, width = images.shape[2:]
    angle = -torch.deg2rad(degrees).view(-1, 1, 1)
    cos, sin, across, down = angle.cos(), angle.sin(), x - width / 2, y - height / 2
    x, y = cos * across + sin * down + width / 2, cos * down - sin * across + height / 2
    (columns, beyond_x), (rows, beyond_y) = _taps(x, width), _taps(y, height)
    lines = [_cubic([_read(images, row * width + column) for column in columns], beyond_x) for row in rows]
    return _filled(_cubic(lines, beyond_y), (x >= 0) & (x < width) & (y >= 0) & (y < height), outside)


def _slid(images: Images, shift: Float[Tensor, "n _ _"], axis: Axis, outside: UInt8[Tensor, "3"]) -> Images:
    """Read from places that lie ``shift`` pixels further on along ``axis``."""
    x, y = _centres(images)
    height, width = images.shape[2:]
    size, place = (width, x + shift) if axis == "x" else (height, y + shift)
    taps, beyond = _taps(place, size)
    places = [y.long() * width + tap if axis == "x" else tap * width + x.long() for tap in taps]
    return _filled(_cubic([_read(images, at) for at in places], beyond), (place >= 0) & (place < size), outside)


def _centres(images: Images) -> tuple[Float[Tensor, "1 W"], Float[Tensor, "H 1"]]:
    """Where pixels have their centres: from the left, and from above."""
    x, y = (torch.arange(size, dtype=torch.float64, device=images.device) + 0.5 for size in reversed(images.shape[2:]))
    return x[None], y[:, None]


def _taps(place: Float[Tensor, "n _ _"], size: int) -> tuple[list[Int[Tensor, "n _ _"]], Float[Tensor, "n 1 _ _"]]:
    """The four pixels around ``place`` on a line of ``size``, where the last is repeated for ever; and how far beyond the
    centre of the second it is, in pixels."""
    before = (place - 0.5).floor()
    first = before.long()
    return [(first + k).clamp_(0, size - 1) for k in range(-1, 3)], (place - 0.5 - before).float()[:, None]


def _read(images: Images, places: Int[Tensor, "n H W"]) -> Float[Tensor, "n 3 H W"]:
    index = places.expand(len(images), *images.shape[2:]).flatten(1)[:, None].expand(-1, 3, -1)
    return images.flatten(2).gather(2, index).view(images.shape).float()


def _cubic(taps: list[Float[Tensor, "..."]], beyond: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """Between the second and the third of four values, by the cubic convolution of a = -1."""
    first, second, third, last = taps
    t = beyond
    total = second.clone()  # what the others differ from it is added, so that four equal values give just that value
    for tap, weight in ((first, t * (t * (2 - t) - 1)), (third, t * (1 + t * (1 - t))), (last, t * t * (t - 1))):
        total.addcmul_(weight, tap - second)
    return total


def _filled(values: Float[Tensor, "n 3 H W"], inside: Bool[Tensor, "n _ _"], outside: UInt8[Tensor, "3"]) -> Images:
    return torch.where(inside[:, None], _bytes(values), outside.view(3, 1, 1))
