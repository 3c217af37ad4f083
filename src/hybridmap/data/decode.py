"""From a file of any image format, mode and orientation to uint8 (3, H, W), upright.

    header (size, format, orientation) ─> too large? refuse ─> plain JPEG: torchvision ─┐
                                                            ├> large JPEG: Pillow, decoded at 1/2, 1/4 or 1/8 of its size
                                                            └> all the rest: Pillow ────┴─> uint8 (3, H, W)

The header is read first and by itself, because it is what tells a decompression bomb from a picture before any memory is spent.
That of an ordinary JPEG takes a few steps over its segments; Pillow reads all others.
"""

from __future__ import annotations

import io
import os
import re
import warnings
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image
from torch import Tensor
from torchvision.io import ImageReadMode, decode_jpeg

from hybridmap.data.base import UnreadableImage

MAX_PIXELS = 178_956_970
"""Images of more pixels are refused: as RGB they would fill half a gigabyte. Source: Pillow's limit for an error."""

_ORIENTATION = 274
"""The EXIF tag that says how the camera was held."""
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""Orientation -> what makes the image upright. Source: EXIF 2.3, tag 274."""
_SPARE = 2.0
"""A JPEG is decoded smaller only as long as the crop keeps this many times the pixels of the output along each side, so that
the resize that follows decides the sharpness. Source: the default of Pillow's ``Image.thumbnail(reducing_gap=2.0)``."""


@dataclass(frozen=True, kw_only=True)
class Decoded:
    """An upright image."""

    image: UInt8[Tensor, "3 h w"]
    """Its pixels, perhaps fewer than the file has."""
    full: tuple[int, int]
    """(height, width) of the file, upright, in pixels."""


def read_file(path: str) -> bytearray:
    """The contents of an image file.

    Raises:
        UnreadableImage: if it cannot be had.
    """
    try:
        with open(path, "rb") as file:
            data = bytearray(os.fstat(file.fileno()).st_size)
            del data[file.readinto(data) :]
            return data
    except OSError as error:
        raise UnreadableImage(path, error.strerror or _first_line(error)) from None


def decode(name: str, data: bytearray, shrink: Callable[[tuple[int, int]], float]) -> Decoded:
    """One image from the contents of its file.

    Args:
        name: what it is called in messages, such as the path of the file.
        data: the contents.
        shrink: from the upright (height, width) of the file, how many of its pixels stand behind one pixel of the output, along
            the side where there are fewest. Photographs far larger than that are decoded at a fraction of their size.

    Raises:
        UnreadableImage: whatever is wrong with the file.
    """
    try:
        if not data:
            raise UnreadableImage(name, "the file is empty")
        return _decode(name, data, shrink)
    except UnreadableImage:
        raise
    except Exception as error:
        # Decoders of some twenty formats raise whatever they like; for the caller each of them is a file that cannot be read.
        raise UnreadableImage(name, _first_line(error)) from None


def _decode(path: str, data: bytearray, shrink: Callable[[tuple[int, int]], float]) -> Decoded:
    plain = _size_of_plain_jpeg(data)
    if plain is not None and plain[0] * plain[1] <= MAX_PIXELS and shrink(plain) < 2 * _SPARE:
        return _whole(_plain_jpeg(data))
    with warnings.catch_warnings():
        # Pillow warns of large images and of odd metadata; what matters here is only whether the pixels can be had.
        warnings.simplefilter("ignore")
        try:
            header = Image.open(io.BytesIO(data), formats=_formats())
        except Image.DecompressionBombError:
            raise UnreadableImage(path, f"it has more than the {MAX_PIXELS} pixels allowed") from None
        except Image.UnidentifiedImageError:
            raise UnreadableImage(path, "it is not an image of a known format") from None
        width, height = header.size
        if width * height > MAX_PIXELS:
            raise UnreadableImage(path, f"it has {width} x {height} pixels, more than the {MAX_PIXELS} allowed")
        orientation = _orientation_of(header)
        full = (width, height) if orientation in (5, 6, 7, 8) else (height, width)
        if header.format in ("JPEG", "MPO") and header.mode in ("RGB", "L"):
            factor = shrink(full) / _SPARE
            if factor < 2:
                return _whole(_plain_jpeg(data))
            header.draft("RGB", (int(width / factor), int(height / factor)))
            return Decoded(image=_pixels(_upright(header.convert("RGB"), orientation)), full=full)
        # Pillow turns TIFF upright by itself.
        return _whole(_pixels(_upright(_eight_bits(header), 1 if header.format == "TIFF" else orientation)))


@cache
def _formats() -> tuple[str, ...]:
    """The formats that are read. Pillow knows more, among them some that start other programs."""
    Image.init()
    return tuple(name for name in ("JPEG", "PNG", "WEBP", "GIF", "BMP", "DIB", "TIFF", "PPM", "AVIF") if name in Image.OPEN)


def _whole(image: UInt8[Tensor, "3 h w"]) -> Decoded:
    return Decoded(image=image, full=(image.shape[1], image.shape[2]))


def _size_of_plain_jpeg(data: bytearray) -> tuple[int, int] | None:
    """(height, width) of a JPEG of one or three channels that is stored upright; None for all others, or where that is unsure.

    A JPEG is a row of segments: 0xFF, its kind, two bytes of length, contents. Source: ITU T.81, annex B.
    """
    at, end = 2, len(data) - 10
    if data[:2] != b"\xff\xd8":
        return None
    while at < end and data[at] == 0xFF:
        kind, length = data[at + 1], data[at + 2] << 8 | data[at + 3]
        if kind in (0xC0, 0xC1, 0xC2):
            size = data[at + 5] << 8 | data[at + 6], data[at + 7] << 8 | data[at + 8]
            return size if data[at + 9] in (1, 3) and data[at + 4] == 8 and min(size) > 0 else None
        if not (0xE0 <= kind <= 0xEF or kind in (0xDB, 0xC4, 0xDD, 0xFE)) or data[at + 4 : at + 8] == b"Exif":
            return None
        at += 2 + length
    return None


def _plain_jpeg(data: bytearray) -> UInt8[Tensor, "3 h w"]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that torchvision plans to give decoders away
        image = decode_jpeg(torch.frombuffer(data, dtype=torch.uint8), mode=ImageReadMode.RGB, apply_exif_orientation=True)
    assert isinstance(image, Tensor)
    return image


def _orientation_of(header: Image.Image) -> int:
    """The EXIF orientation, 1 to 8; 1 (upright) where there is none or it cannot be understood."""
    with suppress(Exception):
        # Metadata may be damaged in any way; the pixels are worth having all the same.
        return int(header.getexif().get(_ORIENTATION, 1))
    return 1


def _upright(image: Image.Image, orientation: int) -> Image.Image:
    turn = _TURNS.get(orientation)
    return image if turn is None else image.transpose(turn)


def _eight_bits(image: Image.Image) -> Image.Image:
    """Any mode as RGB of eight bits; the first frame of an animation; transparency dropped, as is usual in vision."""
    if not image.mode.startswith(("I", "F")):
        return image.convert("RGB")
    values = np.asarray(image, dtype=np.float64)
    top = np.nanmax(values, initial=0.0)
    # White is 1 for floats and 65535 for integers beyond a byte, or more if there is more; Pillow would cut all off at 255.
    usual = 1.0 if image.mode == "F" else 65535.0 if top > 255 else 255.0
    white = max(top, usual)
    grey = np.nan_to_num(np.clip(values / white, 0, 1) * 255).round().astype(np.uint8)
    return Image.fromarray(grey).convert("RGB")


def _pixels(image: Image.Image) -> UInt8[Tensor, "3 h w"]:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def _first_line(error: BaseException) -> str:
    line = (str(error).strip().splitlines() or [type(error).__name__])[0].strip().rstrip(".")
    # Pillow counts what its buffer still held, not what is missing from the file.
    return re.sub(r" \(\d+ bytes not processed\)$", "", line)
