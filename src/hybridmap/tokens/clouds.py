"""Clouds of points become patches: centres that lie far from each other, and the nearest points of each."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from hybridmap.errors import UserError
from hybridmap.ops import points as ops
from hybridmap.tokens.select import take
from hybridmap.types import Patches


def partition(points: Tensor, patches: int, size: int, *, skip_origin: bool = False) -> Patches:
    """Cut each cloud into ``patches`` overlapping patches of ``size`` points, in the order in which farthest point sampling
    finds their centres. Content: x, y, z of each point less its centre's, the nearest point (the centre itself) first.

    Raises:
        UserError: if there are fewer points than patches, or than a patch holds.
    """
    if points.ndim != 3 or points.shape[-1] != 3:
        raise UserError(f"expected clouds of shape (batch, points, 3), got {tuple(points.shape)}")
    count = points.shape[1]
    if count < max(patches, size):
        raise UserError(
            f"a cloud of {count} points cannot be cut into {patches} patches of {size}; use more points, or fewer and smaller "
            "patches"
        )
    centres = take(points, ops.fps(points, patches, skip_origin=skip_origin))
    _, nearest = ops.knn(points, centres, size)
    around = take(points, nearest.flatten(1)).unflatten(1, (patches, size))
    return Patches(
        content=(around - centres[:, :, None]).flatten(2),
        coords=centres,
        source=torch.arange(patches, device=points.device).expand(len(points), -1),
    )


def in_order(patches: Patches, order: Int[Tensor, "B N"], number: int = 0) -> Patches:
    """The same patches in another scan order, which has this ``number``."""
    return Patches(
        content=take(patches.content, order),
        coords=take(patches.coords, order),
        source=take(patches.source, order),
        grid=patches.grid,
        order=number,
    )


def curve_order(
    centres: Float[Tensor, "B N 3"], cell: float, *, swapped: bool = False, shared_depth: bool = False
) -> Int[Tensor, "B N"]:
    """Places of the centres along a Hilbert curve through cells of this side; ``swapped`` exchanges x and y first.

    The curve is as deep as the cloud needs; with ``shared_depth`` as the largest cloud of the batch does, as in the official
    code of PointMamba, where a sample's order so depends on the others.
    """
    cells = (centres.detach() / cell).floor().long()
    cells = cells - cells.amin(1, keepdim=True)
    if swapped:
        cells = cells[..., [1, 0, 2]]
    largest = cells.amax((1, 2))
    if shared_depth:
        largest = largest.amax().expand_as(largest)
    depth = torch.log2(largest.clamp(min=1).double()).floor().long() + 1
    return ops.hilbert_code(cells, depth[:, None]).argsort(dim=1, stable=True)
