"""Scan orders: in which order the patches of a grid stand in the sequence. Mamba layers scan the sequence from end to end."""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Int
from torch import Tensor

from hybridmap.errors import UserError

Scan = Literal["row", "column"]
"""``row``: row by row, each from the left (raster order). ``column``: column by column, each from the top."""


def order(scan: str, grid: tuple[int, int], device: torch.device | None = None) -> Int[Tensor, "N"]:
    """Raster index (``row * columns + column``) of the patch at every position of the scan of a grid (rows, columns).

    >>> order("column", (2, 3)).tolist()
    [0, 3, 1, 4, 2, 5]

    Raises:
        UserError: for another scan than those of ``Scan``.
    """
    rows, columns = grid
    raster = torch.arange(rows * columns, device=device)
    if scan == "row":
        return raster
    if scan == "column":
        return raster.view(rows, columns).T.flatten()
    raise UserError(f"scan must be row or column, got {scan!r}")
