"""Operators on clouds of points: sampling, neighbours, interpolation, Chamfer distances, codes along space-filling curves.

    fps(points, count)                        indices of points that lie far from each other
    knn(reference, query, k)                  the k nearest, with squared distances
    ball_query(points, centres, radius, count)    the first few within a radius
    interpolate(features, reference, query)   features at other places, from the three nearest
    chamfer(a, b)                             squared distance of every point to the other cloud, with gradients
    chamfer_l1(a, b), chamfer_l2(a, b)        its two means, as losses
    hilbert_code, z_order_code                the place of a cell along a curve through space

All are batched and take float32 (others are converted; autocast does not change them), but for float64, which the formulas
take as it is. Squared distances are (x^2 + y^2) + z^2 of differences, each operation rounded, in every implementation, and ties
go to the lowest index: so indices do not depend on who computes them.

``reference.py`` is the meaning, ``cpu.py`` the plain-PyTorch implementation for every device, ``native.py`` the compiled one
for CPUs, ``curves.py`` the codes.
"""

from __future__ import annotations

import math
from types import ModuleType

import torch
from jaxtyping import Float, Int
from torch import Tensor

from hybridmap.errors import UserError
from hybridmap.ops import backend
from hybridmap.ops.points import cpu, reference
from hybridmap.ops.points.curves import hilbert_code, z_order_code

__all__ = [
    "ball_query",
    "chamfer",
    "chamfer_l1",
    "chamfer_l2",
    "fps",
    "hilbert_code",
    "interpolate",
    "knn",
    "z_order_code",
]


def fps(points: Float[Tensor, "B N 3"], count: int, *, skip_origin: bool = False) -> Int[Tensor, "B M"]:
    """Indices of ``count`` points, the first of which is point 0, each next the farthest from those before it.

    Ties go to the lowest index. With ``skip_origin`` points within 1e-3 (squared) of the origin are never chosen, but for point
    0, as the field's CUDA operator (``pointnet2_ops``) has it.

    Raises:
        UserError: if there are fewer points than ``count``, or a coordinate is not finite (looked at on CPUs only).
    """
    (points,) = _clouds("fps", points=points)
    if not 1 <= count <= points.shape[1]:
        raise UserError(
            f"fps expects to choose 1 to {points.shape[1]} of {points.shape[1]} points, but {count} came; ask for fewer."
        )
    _finite("fps", points)
    if backend.by_reference(points.device, points.dtype):
        return reference.fps(points, count, skip_origin=skip_origin)
    return _fps(points, count, skip_origin)


def knn(
    reference_points: Float[Tensor, "B N 3"], query: Float[Tensor, "B M 3"], k: int
) -> tuple[Float[Tensor, "B M k"], Int[Tensor, "B M k"]]:
    """(squared distances, indices) of the k nearest reference points of each query point, ascending; ties by index.

    Raises:
        UserError: if there are fewer than k reference points, or a coordinate is not finite (looked at on CPUs only).
    """
    points, query = _clouds("knn", reference_points=reference_points, query=query)
    if not 1 <= k <= points.shape[1]:
        raise UserError(f"knn expects k from 1 to the number of reference points, {points.shape[1]}, but k={k} came; lower k.")
    _finite("knn", points, query)
    if backend.by_reference(points.device, points.dtype):
        return reference.knn(points, query, k)
    return _knn(points, query, k)


def ball_query(
    points: Float[Tensor, "B N 3"], centres: Float[Tensor, "B M 3"], radius: float, count: int
) -> Int[Tensor, "B M K"]:
    """The first ``count`` points, in index order, closer than ``radius`` to each centre; the first one again and again where
    there are fewer, 0 where there is none (``pointnet2_ops``).

    Raises:
        UserError: if there is no point, ``count`` or ``radius`` is not positive, or a coordinate is not finite (looked at on
            CPUs only).
    """
    points, centres = _clouds("ball_query", points=points, centres=centres)
    if count < 1 or not points.shape[1]:
        raise UserError(
            f"ball_query expects a count of at least 1 among 1 point or more, but {count} of {points.shape[1]} came."
        )
    if not 0 < radius < math.inf:
        raise UserError(f"ball_query expects a radius above 0, but {radius} came; it has the unit of the coordinates.")
    _finite("ball_query", points, centres)
    if backend.by_reference(points.device, points.dtype):
        return reference.ball_query(points, centres, radius, count)
    return _ball_query(points, centres, radius, count)


def interpolate(
    features: Float[Tensor, "B N D"], reference_points: Float[Tensor, "B N 3"], query: Float[Tensor, "B M 3"]
) -> Float[Tensor, "B M D"]:
    """Features at ``query``: those of the three nearest reference points, weighted by 1 / (squared distance + 1e-8).

    Of all of them where there are fewer. Gradients flow into the features.

    Raises:
        UserError: if there is no reference point, or not one feature vector for each, and as :func:`knn`.
    """
    if features.dim() != 3 or features.shape[:2] != reference_points.shape[:2]:
        raise UserError(
            f"interpolate expects features (batch, points, D) for points {tuple(reference_points.shape)}, but "
            f"{tuple(features.shape)} came; channels go last."
        )
    distance, index = knn(reference_points, query, min(3, max(1, reference_points.shape[1])))
    weight = 1 / (distance + 1e-8)
    weight = (weight / weight.sum(-1, keepdim=True)).to(features.dtype)
    rows = torch.arange(len(features), device=features.device)[:, None, None]
    return (features[rows, index] * weight[..., None]).sum(2)


def chamfer(a: Float[Tensor, "B N 3"], b: Float[Tensor, "B M 3"]) -> tuple[Float[Tensor, "B N"], Float[Tensor, "B M"]]:
    """Squared distance from every point of ``a`` to the nearest of ``b``, and the other way round. Gradients flow through the
    nearest pairs into both; of equally near ones through the first. What is not finite gets through.

    Raises:
        UserError: if one of the clouds has no points.
    """
    a, b = _clouds("chamfer", detach=False, a=a, b=b)
    if not a.shape[1] or not b.shape[1]:
        raise UserError(f"chamfer expects points in both clouds, but {a.shape[1]} and {b.shape[1]} came.")
    if backend.by_reference(a.device, a.dtype):
        return reference.chamfer(a, b)
    to_b, to_a, _, _ = _chamfer(a, b)
    return to_b, to_a


def chamfer_l2(a: Float[Tensor, "B N 3"], b: Float[Tensor, "B M 3"]) -> Float[Tensor, ""]:
    """CDL2: the mean squared distance from ``a`` to ``b`` plus that from ``b`` to ``a``."""
    to_b, to_a = chamfer(a, b)
    return to_b.mean() + to_a.mean()


def chamfer_l1(a: Float[Tensor, "B N 3"], b: Float[Tensor, "B M 3"]) -> Float[Tensor, ""]:
    """CDL1: half the mean distance from ``a`` to ``b``, half that from ``b`` to ``a``. It is flat where points meet."""
    to_b, to_a = chamfer(a, b)
    return (_root(to_b).mean() + _root(to_a).mean()) / 2


def performer(points: Tensor) -> ModuleType:
    """Who computes, with the signatures of ``cpu.py``: its compiled twin on CPUs where the one library is there."""
    # the library has all operators or none, and there is no Triton kernel for these
    if backend.active("causal_conv1d", points.device, points.dtype) in ("prebuilt", "jit"):
        from hybridmap.ops.points import native

        return native
    return cpu


def _clouds(name: str, *, detach: bool = True, **clouds: Tensor) -> list[Tensor]:
    """The clouds in one dtype, float32 or float64, if they are clouds of one batch."""
    names = " and ".join(clouds)
    if any(cloud.dim() != 3 or cloud.shape[2] != 3 for cloud in clouds.values()):
        raise UserError(f"{name} expects {names} as (batch, points, 3), but {_shapes(clouds)} came; x, y, z go last.")
    first, *others = clouds.values()
    if any(cloud.shape[0] != first.shape[0] for cloud in others):
        raise UserError(f"{name} expects {names} of one batch, but {_shapes(clouds)} came; pair every cloud with its own.")
    wide = torch.float32
    for cloud in clouds.values():
        wide = torch.promote_types(wide, cloud.dtype)
    return [(cloud.detach() if detach else cloud).to(wide) for cloud in clouds.values()]


def _shapes(clouds: dict[str, Tensor]) -> str:
    return " and ".join(str(tuple(cloud.shape)) for cloud in clouds.values())


def _finite(name: str, *clouds: Tensor) -> None:
    """Refuse NaN and infinity on CPUs; elsewhere one would have to wait for the device."""
    if torch.compiler.is_compiling():
        return
    for cloud in clouds:
        if cloud.device.type == "cpu" and cloud.numel() and not all(bound.isfinite() for bound in cloud.aminmax()):
            raise UserError(f"{name} expects finite coordinates, but NaN or infinity came; leave such points out.")


def _root(squared: Tensor) -> Tensor:
    """The square root, with slope 0 instead of infinity at 0."""
    above = squared > 0
    return torch.where(above, torch.where(above, squared, 1.0).sqrt(), squared)


@torch.library.custom_op("hybridmap::fps", mutates_args=(), schema="(Tensor points, int count, bool skip_origin) -> Tensor")
def _fps(points, count, skip_origin):
    return performer(points).fps(points, count, skip_origin)


@_fps.register_fake
def _(points, count, skip_origin):
    return points.new_empty(points.shape[0], count, dtype=torch.int64)


@torch.library.custom_op(
    "hybridmap::knn", mutates_args=(), schema="(Tensor points, Tensor query, int k) -> (Tensor distance, Tensor index)"
)
def _knn(points, query, k):
    return performer(points).knn(points, query, k)


@_knn.register_fake
def _(points, query, k):
    distance = query.new_empty(*query.shape[:2], k)
    return distance, torch.empty_like(distance, dtype=torch.int64)


@torch.library.custom_op(
    "hybridmap::ball_query",
    mutates_args=(),
    schema="(Tensor points, Tensor centres, float radius, int count) -> Tensor",
)
def _ball_query(points, centres, radius, count):
    return performer(points).ball_query(points, centres, radius, count)


@_ball_query.register_fake
def _(points, centres, radius, count):
    return centres.new_empty(*centres.shape[:2], count, dtype=torch.int64)


@torch.library.custom_op(
    "hybridmap::chamfer",
    mutates_args=(),
    schema="(Tensor a, Tensor b) -> (Tensor to_b, Tensor to_a, Tensor of_b, Tensor of_a)",
)
def _chamfer(a, b):
    return performer(a).chamfer(a, b)


@_chamfer.register_fake
def _(a, b):
    to_b, to_a = a.new_empty(a.shape[:2]), b.new_empty(b.shape[:2])
    return to_b, to_a, torch.empty_like(to_b, dtype=torch.int64), torch.empty_like(to_a, dtype=torch.int64)


@torch.library.custom_op(
    "hybridmap::chamfer_bwd",
    mutates_args=(),
    schema="(Tensor to_b, Tensor to_a, Tensor a, Tensor b, Tensor of_b, Tensor of_a) -> (Tensor da, Tensor db)",
)
def _chamfer_bwd(to_b, to_a, a, b, of_b, of_a):
    return performer(a).chamfer_backward(to_b, to_a, a, b, of_b, of_a)


@_chamfer_bwd.register_fake
def _(to_b, to_a, a, b, of_b, of_a):
    return a.new_empty(a.shape), b.new_empty(b.shape)


def _setup(ctx, inputs, output) -> None:
    _, _, of_b, of_a = output
    ctx.save_for_backward(*inputs, of_b, of_a)


def _backward(ctx, to_b, to_a, *_):
    return torch.ops.hybridmap.chamfer_bwd(to_b, to_a, *ctx.saved_tensors)


_chamfer.register_autograd(_backward, setup_context=_setup)
