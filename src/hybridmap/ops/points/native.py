"""The operators on point clouds through the compiled kernel; arguments and results are those of ``cpu.py``, to the bit.

Coordinates go in as planes, so that a vector is filled from neighbouring points. A task is a cloud, or a strip of the queries
of one; what a task computes does not depend on which thread runs it.
"""

from __future__ import annotations

import ctypes
import math
from typing import Any

import torch
from torch import Tensor

from hybridmap.ops import native
from hybridmap.ops.points import cpu

STRIP = 64
"""Queries of a task; a multiple of all vectors' widths."""

_pointer, _integer = ctypes.c_void_p, ctypes.c_int64


def _struct(name: str, *, integers: str, pointers: str, last: tuple[tuple[str, Any], ...] = ()) -> type[ctypes.Structure]:
    """A struct of hybridmap.cpp: integers, then pointers, then what else it has, then whether a task failed."""
    fields = [
        *((field, _integer) for field in integers.split()),
        *((field, _pointer) for field in pointers.split()),
        *last,
        ("failed", _integer),
    ]
    return type(name, (ctypes.Structure,), {"_fields_": fields, "__doc__": f"struct {name} of hybridmap.cpp."})


_Fps = _struct("Fps", integers="batch padded count skip_origin", pointers="points nearest chosen")
_Knn = _struct("Knn", integers="padded queries k strips strip", pointers="points query distance index")
_Ball = _struct(
    "Ball",
    integers="padded queries count strips strip",
    pointers="points query index",
    last=(("squared_radius", ctypes.c_double),),
)
_Nearest = _struct(
    "Nearest",
    integers="batch queries padded points points_padded strips strip",
    pointers="query cloud distance index",
)
_Pairs = _struct("Pairs", integers="batch a_points b_points", pointers="a b of_b of_a to_b to_a da db")


def fps(points: Tensor, count: int, skip_origin: bool) -> Tensor:
    """See ``cpu.fps``."""
    points = _planes(points)
    batch, _, padded = points.shape
    chosen = torch.empty(batch, count, dtype=torch.int64)
    _run(
        "fps", batch, _Fps, batch=batch, padded=padded, count=count, skip_origin=skip_origin,
        points=points, nearest=points.new_empty(batch, padded), chosen=chosen,
    )  # fmt: skip
    return chosen


def knn(reference: Tensor, query: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """See ``cpu.knn``."""
    (batch, queries, _), strips = query.shape, _strips(query)
    points, query = _planes(reference), query.contiguous()
    distance, index = query.new_empty(batch, queries, k), torch.empty(batch, queries, k, dtype=torch.int64)
    _run(
        "knn", batch * strips, _Knn, padded=points.shape[2], queries=queries, k=k, strips=strips, strip=STRIP,
        points=points, query=query, distance=distance, index=index,
    )  # fmt: skip
    return distance, index


def ball_query(points: Tensor, centres: Tensor, radius: float, count: int) -> Tensor:
    """See ``cpu.ball_query``."""
    (batch, queries, _), strips = centres.shape, _strips(centres)
    points, centres = _planes(points), centres.contiguous()
    index = torch.empty(batch, queries, count, dtype=torch.int64)
    _run(
        "ball_query", batch * strips, _Ball, padded=points.shape[2], queries=queries, count=count, strips=strips, strip=STRIP,
        points=points, query=centres, index=index, squared_radius=radius * radius,
    )  # fmt: skip
    return index


def chamfer(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """See ``cpu.chamfer``, which also takes what is not finite: the kernel would lose NaN."""
    if not all(bound.isfinite() for cloud in (a, b) if cloud.numel() for bound in cloud.aminmax()):
        return cpu.chamfer(a, b)
    planes = _planes(a), _planes(b)
    (to_b, of_b), (to_a, of_a) = _nearest(a, b, *planes), _nearest(b, a, *reversed(planes))
    return to_b, to_a, of_b, of_a


def chamfer_backward(to_b: Tensor, to_a: Tensor, a: Tensor, b: Tensor, of_b: Tensor, of_a: Tensor) -> tuple[Tensor, Tensor]:
    """See ``cpu.chamfer_backward``."""
    given = {"a": a, "b": b, "of_b": of_b, "of_a": of_a, "to_b": to_b, "to_a": to_a}
    da, db = torch.empty(a.shape), torch.empty(b.shape)
    _run(
        "pairs", len(a), _Pairs, batch=len(a), a_points=a.shape[1], b_points=b.shape[1],
        **{name: tensor.contiguous() for name, tensor in given.items()}, da=da, db=db,
    )  # fmt: skip
    return da, db


def _nearest(query: Tensor, cloud: Tensor, query_planes: Tensor, cloud_planes: Tensor) -> tuple[Tensor, Tensor]:
    """Squared distance from each point to the nearest of the other cloud, and its index."""
    (batch, queries, _), strips = query.shape, _strips(query)
    distance, index = query.new_empty(batch, queries), torch.empty(batch, queries, dtype=torch.int64)
    _run(
        "nearest", batch * strips, _Nearest, batch=batch, queries=queries, padded=query_planes.shape[2], points=cloud.shape[1],
        points_padded=cloud_planes.shape[2], strips=strips, strip=STRIP, query=query_planes, cloud=cloud_planes,
        distance=distance, index=index,
    )  # fmt: skip
    return distance, index


def _planes(points: Tensor) -> Tensor:
    """(B, 3, N) of the points, with NaN behind them up to a whole number of vectors."""
    batch, size, _ = points.shape
    lanes = native.variant().lanes
    planes = points.new_empty(batch, 3, math.ceil(size / lanes) * lanes)
    planes[..., :size] = points.mT
    if size % lanes:
        planes[..., size:] = torch.nan
    return planes


def _strips(query: Tensor) -> int:
    return math.ceil(query.shape[1] / STRIP)


def _run(function: str, tasks: int, struct: type[ctypes.Structure], **fields: Any) -> None:
    """Fill the struct, tensors by their addresses, and do the tasks; ``fields`` keeps the tensors alive until then."""
    values = {name: field.data_ptr() if isinstance(field, Tensor) else field for name, field in fields.items()}
    if tasks:
        native.parallel(getattr(native.library().functions, f"hybridmap_{function}"), tasks, struct(**values))
