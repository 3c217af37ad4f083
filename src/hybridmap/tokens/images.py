"""Between images and patches: cut an image along a grid and put the pieces in scan order; and back, for pictures.

    ┌───┬───┬───┐      scan "row"           scan "column"
    │ 0 │ 1 │ 2 │      content  0 1 2 3 4 5    content  0 3 1 4 2 5
    ├───┼───┼───┤      source   0 1 2 3 4 5    source   0 3 1 4 2 5
    │ 3 │ 4 │ 5 │
    └───┴───┴───┘      grid (2, 3)

The order is settled here, once. From here on the position in the sequence is the position in the scan. With a stride smaller
than the patch, neighbours overlap.
"""

from __future__ import annotations

import torch
from jaxtyping import Int, Shaped
from torch import Tensor

from hybridmap.errors import UserError
from hybridmap.tokens.scan import order
from hybridmap.tokens.select import put
from hybridmap.types import Patches


def partition(
    images: Shaped[Tensor, "B C height width"], patch_size: int, scan: str = "row", stride: int | None = None
) -> Patches:
    """Cut images into square patches of ``patch_size`` pixels, one every ``stride`` (by default side by side), in scan order.

    Value ``(i * patch_size + j) * C + channel`` of a patch is its pixel in row i and column j: the channel is fastest.
    Source: facebookresearch/mae:models_mae.py (``patchify``), for images of any shape.

    Raises:
        UserError: if patches do not cover height or width exactly, or the scan is unknown.
    """
    batch, channels, height, width = images.shape
    step = patch_size if stride is None else stride
    if min(patch_size, step) < 1 or any(side < patch_size or (side - patch_size) % step for side in (height, width)):
        first, more = max(patch_size, 1), max(step, 1)
        nearest = tuple(first + max(0, round((side - first) / more)) * more for side in (height, width))
        fits = "multiples of the patch size" if step == patch_size else f"multiples of {step} above the patch size"
        raise UserError(
            f"expected images whose height and width are {fits} {patch_size},"
            f" got {height} x {width}; try {nearest[0]} x {nearest[1]}"
        )
    rows, columns = grid = ((height - patch_size) // step + 1, (width - patch_size) // step + 1)
    if step == patch_size:
        cut = images.reshape(batch, channels, rows, patch_size, columns, patch_size).transpose(3, 4)
    else:
        cut = images.unfold(2, patch_size, step).unfold(3, patch_size, step)
    content = cut.permute(0, 2, 3, 4, 5, 1).reshape(batch, rows * columns, patch_size * patch_size * channels)
    source = order(scan, grid, images.device)  # (N,)
    if scan != "row":
        content = content[:, source]
    coords = torch.stack([source // columns, source % columns], dim=-1).float()  # (N, 2)
    return Patches(
        content=content,
        coords=coords.expand(batch, -1, -1),
        source=source.expand(batch, -1),
        grid=grid,
    )


def assemble(
    content: Shaped[Tensor, "B N P"], source: Int[Tensor, "B N"], grid: tuple[int, ...], patch_size: int, channels: int
) -> Shaped[Tensor, "B C height width"]:
    """The inverse of :func:`partition`: patch values in scan order -> images of ``grid * patch_size`` pixels."""
    rows, columns = grid
    raster = put(content, source, torch.empty_like(content))
    cut = raster.view(-1, rows, columns, patch_size, patch_size, channels)
    return cut.permute(0, 5, 1, 3, 2, 4).reshape(-1, channels, rows * patch_size, columns * patch_size)
