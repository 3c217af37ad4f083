"""What all pictures are drawn with: images from tensors, fonts that fit, colours for an order, tiles with titles.

Colours come from viridis, whose lightness rises evenly: an order can be read from it with any colour vision, and in grey.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import matplotlib
import numpy as np
from jaxtyping import Float
from matplotlib.colors import ListedColormap
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

Colour = tuple[int, int, int]

INK, QUIET, PAPER = (30, 30, 30), (110, 110, 110), (255, 255, 255)
HIDDEN = (214, 223, 245)
"""Where something is hidden: a tint that neither a grey nor a usual coloured photograph shows over a whole patch."""
FRAME, PREFIX = (0, 230, 255), (220, 20, 60)
"""Around the patch that is spoken of; a prefix token."""
GAP = 6
"""Pixels between tiles."""
ORDER = ListedColormap(matplotlib.colormaps["viridis"](np.linspace(0.15, 1, 256)))
"""Of places in an order, from first to last. Viridis without its darkest part, which would hide a photograph below it."""
_TITLE_SIZE, _LINE = 13, 17


def along(position: float) -> Colour:
    """The colour of a place in an order between 0 (first, dark) and 1 (last, light)."""
    red, green, blue, _ = ORDER(position, bytes=True)
    return int(red), int(green), int(blue)


def legible_on(colour: Colour) -> Colour:
    """Ink or paper, whichever can be read on this colour."""
    red, green, blue = colour
    return INK if 0.299 * red + 0.587 * green + 0.114 * blue > 130 else PAPER


def image_of(values: Float[Tensor, "C H W"]) -> Image.Image:
    """A picture of values in [0, 1] (beyond are cut), of three channels or of one."""
    levels = (values.detach().float().clamp(0, 1) * 255).round().byte().cpu().expand(3, -1, -1)
    return Image.fromarray(levels.permute(1, 2, 0).contiguous().numpy())


def sized(image: Image.Image, at_least: int, at_most: int) -> Image.Image:
    """So many times larger that the shorter side has ``at_least`` pixels, pixels as squares; or smaller, so that the longer
    side has ``at_most``."""
    if max(image.size) > max(at_least, at_most):
        return image.resize(fitted(image.size, at_most), Image.Resampling.LANCZOS)
    zoom = max(1, -(-at_least // min(image.size)))
    return image.resize((image.width * zoom, image.height * zoom), Image.Resampling.NEAREST)


def fitted(size: tuple[int, int], longer: int) -> tuple[int, int]:
    """(width, height) of the same shape with this longer side."""
    width, height = (max(1, round(side * longer / max(size))) for side in size)
    return width, height


def font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Pillow's own font."""
    return ImageFont.load_default(size)


def fitting(text: str, size: int, width: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """A font of this size, or as much smaller as ``text`` needs to be no wider than ``width``, though never below 8."""
    while size > 8 and font(size).getlength(text) > width:
        size -= 1
    return font(size)


def dot(draw: ImageDraw.ImageDraw, at: tuple[float, float], radius: float, colour: Colour) -> None:
    """A filled circle."""
    draw.ellipse([at[0] - radius, at[1] - radius, at[0] + radius, at[1] + radius], fill=colour)


def frame(draw: ImageDraw.ImageDraw, place: tuple[int, int], grid: tuple[int, int], size: tuple[int, int]) -> None:
    """A frame around the patch in this (row, column) of a picture of ``size`` (width, height)."""
    draw.rectangle(box_of(place, grid, size), outline=FRAME, width=2)


def box_of(place: tuple[int, int], grid: tuple[int, int], size: tuple[int, int]) -> tuple[int, int, int, int]:
    """(left, top, right, bottom) in pixels of the patch in this (row, column); the last pixels are inside."""
    (row, column), (rows, columns), (width, height) = place, grid, size
    left, right = (round(at * width / columns) for at in (column, column + 1))
    top, bottom = (round(at * height / rows) for at in (row, row + 1))
    return left, top, right - 1, bottom - 1


@dataclass(frozen=True, kw_only=True)
class Tile:
    """A picture with its title; each line of the title gets smaller until it fits."""

    image: Image.Image
    title: str = ""


def tiles(rows: Sequence[Sequence[Tile]]) -> Image.Image:
    """Rows of pictures, each below its title. Columns are as wide and rows as high as their largest picture."""
    across = [max(row[k].image.width for row in rows if k < len(row)) for k in range(max(map(len, rows)))]
    heads = [max(len(tile.title.splitlines()) for tile in row) * _LINE for row in rows]
    down = [max(tile.image.height for tile in row) for row in rows]
    width, height = sum(across) + GAP * (len(across) + 1), sum(down) + sum(heads) + GAP * (len(rows) + 1)
    canvas = Image.new("RGB", (width, height), PAPER)
    draw, top = ImageDraw.Draw(canvas), GAP
    for row, head, high in zip(rows, heads, down, strict=True):
        left = GAP
        for tile, wide in zip(row, across, strict=False):
            for number, line in enumerate(tile.title.splitlines()):
                at = (left, top + number * _LINE)
                draw.text(at, line, fill=QUIET if number else INK, font=fitting(line, _TITLE_SIZE - (number > 0), wide))
            canvas.paste(tile.image, (left, top + head))
            left += wide + GAP
        top += head + high + GAP
    return canvas
