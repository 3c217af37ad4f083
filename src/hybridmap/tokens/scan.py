"""Scan orders: in which order the patches of a grid stand in the sequence. Mamba layers scan the sequence from end to end.

    row             column          cluster(2)
     0  1  2  3      0  4  8 12      0  1  4  5
     4  5  6  7      1  5  9 13      2  3  6  7
     8  9 10 11      2  6 10 14      8  9 12 13
    12 13 14 15      3  7 11 15     10 11 14 15

Where in the sequence each patch of the grid stands.
"""

from __future__ import annotations

import re

import torch
from jaxtyping import Float, Int
from torch import Tensor

from hybridmap.errors import UserError

_CLUSTER = re.compile(r"cluster\((\d+)(, ?column)?\)")


def order(scan: str, grid: tuple[int, int], device: torch.device | None = None) -> Int[Tensor, "N"]:
    """Raster index (``row * columns + column``) of the patch at every position of the scan of a grid (rows, columns).

    ``row``: row by row, each from the left (raster order). ``column``: column by column, each from the top. ``cluster(k)``:
    squares of k x k patches row by row, inside each row by row; those at the right and bottom border are smaller where k does
    not divide the grid. ``cluster(k, column)``: the same squares column by column. Source of clusters: ARM (arXiv:2406.07537),
    OliverRensu/ARM:models_pretrain.py.

    >>> order("column", (2, 3)).tolist()
    [0, 3, 1, 4, 2, 5]
    >>> order("cluster(2)", (2, 4)).tolist()
    [0, 1, 4, 5, 2, 3, 6, 7]

    Raises:
        UserError: for another scan than these.
    """
    rows, columns = grid
    raster = torch.arange(rows * columns, device=device)
    if scan == "row":
        return raster
    if scan == "column":
        return raster.view(rows, columns).T.flatten()
    found = _CLUSTER.fullmatch(scan)
    if found and (size := int(found[1])) > 0:
        image, down, across = raster.view(rows, columns), range(0, rows, size), range(0, columns, size)
        starts = [(r, c) for c in across for r in down] if found[2] else [(r, c) for r in down for c in across]
        return torch.cat([image[r : r + size, c : c + size].flatten() for r, c in starts])
    raise UserError(f"scan must be cluster(k), cluster(k, column), k patches to a side, row or column, got {scan!r}")


def down_columns(coords: Float[Tensor, "B N 2"], rows: int) -> Int[Tensor, "#B N"]:
    """Positions in the sequence of patches at these (row, column) in the order of a walk column by column, from the top.

    ``rows`` is the height of the grid; patches may be missing. Where all samples share one row of coordinates (an expanded
    tensor, as ``partition`` returns it), so they share one row of positions.
    """
    shared = coords[:1] if coords.stride(0) == 0 else coords
    return (shared[..., 1] * rows + shared[..., 0]).argsort(dim=1)
