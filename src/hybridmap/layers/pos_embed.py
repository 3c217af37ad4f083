"""Position tables of patch grids: the fixed 2D sine-cosine table, and resampling to another grid."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from hybridmap.errors import UserError


def sincos_2d(dim: int, grid: tuple[int, int]) -> Float[Tensor, "1 P D"]:
    """The fixed table of MAE for a grid of (rows, columns), row-major: computed in float64, returned in float32.

    The first half of the channels encodes the column, the second half the row; each half is [sin(all), cos(all)] with
    frequencies ``10000^(-i / (dim/4))``, i = 0 .. dim/4-1. Source: facebookresearch/mae:util/pos_embed.py.

    Raises:
        UserError: if ``dim`` is not a multiple of 4.
    """
    if dim % 4:
        raise UserError(f"sine-cosine positions need a width that is a multiple of 4, got {dim}; try {dim - dim % 4 + 4}")
    frequencies = 10000.0 ** (-torch.arange(dim // 4, dtype=torch.float64) / (dim // 4))

    def encode(position: Tensor) -> Tensor:
        angles = position.flatten()[:, None] * frequencies  # (P, dim/4)
        return torch.cat([angles.sin(), angles.cos()], dim=1)

    rows, columns = torch.meshgrid(*(torch.arange(side, dtype=torch.float64) for side in grid), indexing="ij")
    return torch.cat([encode(columns), encode(rows)], dim=1).float()[None]


def resample(table: Float[Tensor, "1 P D"], old_grid: tuple[int, ...], new_grid: tuple[int, ...]) -> Float[Tensor, "1 Q D"]:
    """A row-major table for another grid: bicubic, ``align_corners=False``, no antialiasing, in at least float32.

    The same grid returns the table itself. Source: facebookresearch/mae:util/pos_embed.py, wangf3014/Mamba-Reg:main.py.
    """
    if tuple(old_grid) == tuple(new_grid):
        return table
    exact = table.to(torch.promote_types(table.dtype, torch.float32))
    image = exact.unflatten(1, tuple(old_grid)).permute(0, 3, 1, 2)  # (1, D, rows, columns)
    image = F.interpolate(image, size=tuple(new_grid), mode="bicubic", align_corners=False, antialias=False)
    return image.flatten(2).transpose(1, 2).to(table.dtype)


def on_grid(table: Float[Tensor, "1 P D"], grid: tuple[int, ...]) -> Float[Tensor, "1 Q D"]:
    """Stored positions of an unknown grid for ``grid``: the same one if it has as many, else a square, else one of its shape.

    Raises:
        UserError: if the stored positions are of neither.
    """
    stored, (rows, columns) = table.shape[1], grid
    if stored == rows * columns:
        return table
    side, height = math.isqrt(stored), round(math.sqrt(stored * rows / columns))
    if side * side == stored:
        return resample(table, (side, side), grid)
    if height and height * height * columns == stored * rows:
        return resample(table, (height, stored // height), grid)
    raise UserError(
        f"cannot tell the grid of {stored} stored positions, which is neither square nor of the shape {tuple(grid)}"
    )
