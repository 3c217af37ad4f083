"""Residual addition and normalisation in Triton, one pass over memory each way; arguments and results are those of ``cpu.py``.

A program has a whole row in registers. In the backward pass it takes a group of rows one after another and adds up their
shares of the gradients of weight and bias; PyTorch adds the groups: no atomics, so two runs give the same bits.
"""

# Inside a kernel, annotations and operators mean what Triton makes of them, which pyright cannot follow.
# pyright: reportArgumentType=false, reportCallIssue=false, reportOperatorIssue=false, reportReturnType=false
from __future__ import annotations

import math
from typing import no_type_check

import torch
import triton
import triton.language as tl
from torch import Tensor

from hybridmap.ops.add_norm import cpu
from hybridmap.ops.gpu import launch, load_wide, power_of_two

GROUPS = 1024
"""Groups of rows in the backward pass, at most."""


@triton.jit
@no_type_check
def add_norm_fwd_kernel(
    x, x_row, residual, residual_row, weight, bias, normed, summed, mean, rstd, eps, D, BD: tl.constexpr
):  # fmt: skip
    row = tl.cast(tl.program_id(0), tl.int64)
    d = tl.arange(0, BD)
    real = d < D
    s = load_wide(x + row * x_row + d, real)
    if residual is not None:
        s += load_wide(residual + row * residual_row + d, real)
    tl.store(summed + row * D + d, s.to(summed.dtype.element_ty), mask=real)
    if mean is not None:
        average = tl.sum(s, 0) / D
        tl.store(mean + row, average)
        s = tl.where(real, s - average, 0.0)
    inverse = tl.rsqrt(tl.sum(s * s, 0) / D + eps)
    tl.store(rstd + row, inverse)
    value = s * inverse * tl.load(weight + d, mask=real, other=0.0)
    if bias is not None:
        value += tl.load(bias + d, mask=real, other=0.0)
    tl.store(normed + row * D + d, value.to(normed.dtype.element_ty), mask=real)


@triton.jit
@no_type_check
def add_norm_bwd_kernel(
    dnormed, dnormed_row, dsummed, dsummed_row, summed, summed_row, mean, rstd, weight, dsum, dweight, dbias,
    rows, D, per_group, BD: tl.constexpr,
):  # fmt: skip
    group = tl.cast(tl.program_id(0), tl.int64)
    d = tl.arange(0, BD)
    real = d < D
    w = tl.load(weight + d, mask=real, other=0.0)
    to_weight = tl.zeros((BD,), tl.float32)
    to_bias = tl.zeros((BD,), tl.float32)
    for row in range(group * per_group, tl.minimum((group + 1) * per_group, rows)):
        inverse = tl.load(rstd + row)
        unit = load_wide(summed + row * summed_row + d, real)
        if mean is not None:
            unit = tl.where(real, unit - tl.load(mean + row), 0.0)
        unit *= inverse
        g = load_wide(dnormed + row * dnormed_row + d, real)
        to_weight += g * unit
        to_bias += g
        g *= w
        # what changes the statistics alone has no effect: its share is taken out
        ds = g - unit * (tl.sum(g * unit, 0) / D)
        if mean is not None:
            ds -= tl.sum(g, 0) / D
        ds *= inverse
        if dsummed is not None:
            ds += load_wide(dsummed + row * dsummed_row + d, real)
        tl.store(dsum + row * D + d, ds, mask=real)
    tl.store(dweight + group * D + d, to_weight, mask=real)
    if dbias is not None:
        tl.store(dbias + group * D + d, to_bias, mask=real)


def _flat(tensor: Tensor | None) -> tuple[Tensor | None, int]:
    """The tensor as (rows, D) and the stride of its rows; a view where neighbouring features and rows lie regularly."""
    if tensor is None:
        return None, 0
    flat = tensor.reshape(-1, tensor.shape[-1])
    flat = flat if flat.stride(1) == 1 else flat.contiguous()
    return flat, flat.stride(0)


def _sizes(width: int) -> dict[str, int]:
    BD = power_of_two(width)
    return {"BD": BD, "warps": min(16, max(1, BD // 256))}


def forward(
    x: Tensor, residual: Tensor | None, weight: Tensor, bias: Tensor | None, eps: float, kind: str, residual_in_fp32: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """See ``cpu.forward``."""

    def new(dtype: torch.dtype, *shape: int) -> Tensor:
        return torch.empty(shape, dtype=dtype, device=x.device)

    wide = torch.float32
    normed = new(x.dtype, *x.shape)
    summed = new(wide if residual_in_fp32 else x.dtype if residual is None else residual.dtype, *x.shape)
    rstd = new(wide, *x.shape[:-1], 1)
    mean = torch.empty_like(rstd) if kind == "layer" else None
    launch(
        add_norm_fwd_kernel, rstd.numel(), x, *_flat(x), *_flat(residual), weight.contiguous(),
        None if bias is None else bias.contiguous(), normed, summed, mean, rstd, eps, x.shape[-1], **_sizes(x.shape[-1]),
    )  # fmt: skip
    return normed, summed, new(wide, 0) if mean is None else mean, rstd


def backward(
    dnormed: Tensor | None,
    dsummed: Tensor | None,
    summed: Tensor,
    mean: Tensor,
    rstd: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    kind: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """See ``cpu.backward``."""
    if dnormed is None:
        return cpu.backward(dnormed, dsummed, summed, mean, rstd, weight, bias, kind)
    width = summed.shape[-1]
    per_group = max(1, math.ceil(rstd.numel() / GROUPS))
    groups = math.ceil(rstd.numel() / per_group)
    dsum = torch.empty(summed.shape, dtype=rstd.dtype, device=summed.device)
    dweight = weight.new_empty(groups, width)
    dbias = None if bias is None else weight.new_empty(groups, width)
    launch(
        add_norm_bwd_kernel, groups, summed, *_flat(dnormed), *_flat(dsummed), *_flat(summed),
        mean if kind == "layer" else None, rstd, weight.contiguous(), dsum, dweight, dbias,
        rstd.numel(), width, per_group, **_sizes(width),
    )  # fmt: skip
    return dsum, dweight.sum(0), weight.new_empty(0) if dbias is None else dbias.sum(0)
