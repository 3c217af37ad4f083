"""What the operators on point clouds mean: plain PyTorch, on any device; the witness for everything faster."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

ORIGIN = 1e-3
"""Squared distance from the origin up to which ``skip_origin`` passes a point over."""
FAR = 1e10
"""Squared distance from the points chosen so far, as long as there are none."""


def fps(points: Float[Tensor, "B N 3"], count: int, *, skip_origin: bool = False) -> Int[Tensor, "B M"]:
    """Greedy: each next point is the farthest from those chosen; see :func:`hybridmap.ops.points.fps`."""
    batch, size, _ = points.shape
    origin = points.new_zeros(batch, 1, 3)
    eligible = squared_distances(origin, points)[:, 0] > (ORIGIN if skip_origin else -1.0)
    nearest = torch.full((batch, size), FAR, dtype=points.dtype, device=points.device)
    chosen = torch.zeros(batch, count, dtype=torch.int64, device=points.device)
    rows = torch.arange(batch, device=points.device)
    for k in range(1, count):
        last = points[rows, chosen[:, k - 1]]  # (B, 3)
        nearest = nearest.minimum(squared_distances(last[:, None], points)[:, 0])
        # nothing eligible at all gives index 0
        chosen[:, k] = torch.where(eligible, nearest, -1.0).argmax(1)
    return chosen


def squared_distances(a: Float[Tensor, "B M 3"], b: Float[Tensor, "B N 3"]) -> Float[Tensor, "B M N"]:
    """(x^2 + y^2) + z^2 of the differences, each operation rounded: the same bits wherever it is done in this order.

    The form with a matrix product loses near ties.
    """
    x, y, z = (a[:, :, None] - b[:, None]).square().unbind(-1)
    return x + y + z


def knn(
    reference: Float[Tensor, "B N 3"], query: Float[Tensor, "B M 3"], k: int
) -> tuple[Float[Tensor, "B M k"], Int[Tensor, "B M k"]]:
    """(squared distances, indices) of the nearest, ascending; see :func:`hybridmap.ops.points.knn`."""
    distance, index = squared_distances(query, reference).sort(dim=-1, stable=True)
    return distance[..., :k], index[..., :k]


def ball_query(
    points: Float[Tensor, "B N 3"], centres: Float[Tensor, "B M 3"], radius: float, count: int
) -> Int[Tensor, "B M K"]:
    """The first ``count`` points inside, by index; see :func:`hybridmap.ops.points.ball_query`."""
    size = points.shape[1]
    inside = squared_distances(centres, points) < radius * radius
    index = torch.where(inside, torch.arange(size, device=points.device), size).sort(dim=-1).values[..., :count]
    index = torch.nn.functional.pad(index, (0, count - index.shape[-1]), value=size)
    first = index[..., :1] % size  # none inside: 0
    return torch.where(index == size, first, index)


def chamfer(a: Float[Tensor, "B N 3"], b: Float[Tensor, "B M 3"]) -> tuple[Float[Tensor, "B N"], Float[Tensor, "B M"]]:
    """Squared distances to the nearest of the other cloud, both ways; see :func:`hybridmap.ops.points.chamfer`."""
    distances = squared_distances(a, b)
    # the minimum of equals would share its gradient among them; these take the first
    nearest_b, nearest_a = distances.argmin(2, keepdim=True), distances.argmin(1, keepdim=True)
    return distances.gather(2, nearest_b)[..., 0], distances.gather(1, nearest_a)[:, 0]
