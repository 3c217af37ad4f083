"""The operators on point clouds in plain PyTorch, for every device: what runs on a GPU, and where there is no compiled kernel.

Distances are those of ``reference.py`` to the bit, by coordinate, for a strip of the queries at a time, so that no table of all
pairs is held. Nothing waits for the device.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from hybridmap.ops.points.reference import FAR, ORIGIN

STRIP = 1 << 22
"""Pairs of points whose distances are held at a time."""
_INDEX = (1 << 32) - 1


def fps(points: Tensor, count: int, skip_origin: bool) -> Tensor:
    """Return the indices, (B, count)."""
    batch, size, _ = points.shape
    nearest = torch.full((batch, size), FAR, device=points.device)
    if skip_origin:  # what is never chosen is nearer than anything
        nearest[_squared_distances(points.new_zeros(batch, 1, 3), points)[:, 0] <= ORIGIN] = -1.0
    chosen = torch.zeros(count, batch, dtype=torch.int64, device=points.device)
    planes = points.permute(2, 0, 1).contiguous()  # (3, B, N)
    squared = torch.empty_like(planes)
    total = squared[0]
    for k in range(1, count):  # few operations and no new memory: on a GPU, it is their launches that take the time
        last = planes.gather(2, chosen[k - 1, :, None].expand(3, -1, 1))
        torch.sub(planes, last, out=squared)
        squared.mul_(squared)
        total.add_(squared[1]).add_(squared[2])
        torch.minimum(nearest, total, out=nearest)
        torch.argmax(nearest, 1, out=chosen[k])
    return chosen.mT.contiguous()


def knn(reference: Tensor, query: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Return squared distances and indices, (B, M, k).

    A distance and its index make one number, of which no two are equal: so the selection need not be stable, nor sort them all.
    """
    batch, queries, _ = query.shape
    distance = query.new_empty(batch, queries, k)
    index = torch.empty(batch, queries, k, dtype=torch.int64, device=query.device)
    number = torch.arange(reference.shape[1], device=query.device)
    for rows in _strips(reference, queries):
        # float32 numbers that are not negative have the order of their bits
        keys = _squared_distances(query[:, rows], reference).view(torch.int32).to(torch.int64)
        keys = keys.bitwise_left_shift_(32).bitwise_or_(number).topk(k, largest=False).values
        distance[:, rows] = (keys >> 32).to(torch.int32).view(torch.float32)
        index[:, rows] = keys & _INDEX
    return distance, index


def ball_query(points: Tensor, centres: Tensor, radius: float, count: int) -> Tensor:
    """Return the indices, (B, M, count)."""
    (batch, size, _), queries = points.shape, centres.shape[1]
    number = torch.arange(size, device=points.device)
    index = torch.empty(batch, queries, count, dtype=torch.int64, device=points.device)
    for rows in _strips(points, queries):
        inside = _squared_distances(centres[:, rows], points) < radius * radius
        found = torch.where(inside, number, size).topk(min(count, size), largest=False).values
        found = F.pad(found, (0, count - found.shape[-1]), value=size)
        index[:, rows] = torch.where(found == size, found[..., :1] % size, found)
    return index


def chamfer(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return squared distances (B, N) and (B, M), then the indices of the nearest of the other cloud."""
    to_b, of_b = a.new_empty(a.shape[:2]), torch.empty(a.shape[:2], dtype=torch.int64, device=a.device)
    to_a = a.new_full(b.shape[:2], torch.inf)
    of_a = torch.zeros(b.shape[:2], dtype=torch.int64, device=a.device)
    for rows in _strips(b, a.shape[1]):
        distances = _squared_distances(a[:, rows], b)
        index = distances.argmin(2, keepdim=True)
        to_b[:, rows], of_b[:, rows] = distances.gather(2, index)[..., 0], index[..., 0]
        index = distances.argmin(1, keepdim=True)
        least, index = distances.gather(1, index)[:, 0], index[:, 0] + rows.start
        closer = least < to_a
        to_a, of_a = torch.where(least.isnan(), least, torch.where(closer, least, to_a)), torch.where(closer, index, of_a)
    return to_b, to_a, of_b, of_a


def chamfer_backward(to_b: Tensor, to_a: Tensor, a: Tensor, b: Tensor, of_b: Tensor, of_a: Tensor) -> tuple[Tensor, Tensor]:
    """Return the gradients of both clouds from those of the squared distances; indices as ``chamfer`` gives them."""
    of_b, of_a = (index[..., None].expand(*index.shape, 3) for index in (of_b, of_a))
    from_a = (a - b.gather(1, of_b)) * (2 * to_b[..., None])  # (B, N, 3)
    from_b = (b - a.gather(1, of_a)) * (2 * to_a[..., None])  # (B, M, 3)
    return from_a.scatter_add(1, of_a, -from_b), from_b.scatter_add(1, of_b, -from_a)


def _squared(values: Tensor) -> Tensor:
    return values.mul_(values)


def _squared_distances(a: Tensor, b: Tensor) -> Tensor:
    """(B, M, N); see ``reference.squared_distances``."""
    total = _squared(a[:, :, 0, None] - b[:, None, :, 0])
    for axis in (1, 2):
        total += _squared(a[:, :, axis, None] - b[:, None, :, axis])
    return total


def _strips(points: Tensor, queries: int) -> list[slice]:
    """The queries, as many at a time as STRIP allows."""
    step = max(1, STRIP // max(1, points.shape[0] * points.shape[1]))
    return [slice(first, min(first + step, queries)) for first in range(0, queries, step)]
