"""The step between two blocks of a pre-norm network: add the branch to the residual stream and normalise the sum.

    summed = residual + x
    normed = (summed - mean) / sqrt(mean((summed - mean)^2) + eps) * weight + bias          mean = 0 for "rms"

Over the last axis, any leading ones. The sum and its statistics are at least float32, and the norm sees the unrounded sum;
``normed`` returns in the dtype of ``x``. With ``residual_in_fp32`` the stream ``summed`` stays wide, so that under mixed
precision small branches are not lost in a large stream. Source: the residual blocks of Vim (arXiv:2401.09417), and
state-spaces/mamba:mamba_ssm/ops/triton/layernorm.py (v1.1.1).

``reference.py`` is the meaning, ``cpu.py`` the plain-PyTorch implementation, ``gpu.py`` the Triton one for CUDA devices. Under
``torch.compile`` and ``torch.export`` the formula itself is traced: a compiler fuses it better than any opaque operator.
"""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from hybridmap.errors import UserError
from hybridmap.ops import backend
from hybridmap.ops.add_norm import reference


def add_norm(
    x: Float[Tensor, "*batch D"],
    residual: Float[Tensor, "*batch D"] | None,
    weight: Float[Tensor, "D"],
    bias: Float[Tensor, "D"] | None = None,
    *,
    eps: float = 1e-5,
    kind: Literal["rms", "layer"] = "rms",
    residual_in_fp32: bool = True,
) -> tuple[Float[Tensor, "*batch D"], Float[Tensor, "*batch D"]]:
    """Return (normed, summed); without a residual the sum is ``x`` itself."""
    if kind not in ("rms", "layer"):
        raise UserError(f'add_norm expects kind "rms" or "layer", but "{kind}" came; try "rms".')
    if weight.shape != x.shape[-1:] or (residual is not None and residual.shape != x.shape):
        raise UserError(
            f"add_norm expects a residual of the shape of x and a weight over its last axis, but x {tuple(x.shape)}, residual "
            f"{None if residual is None else tuple(residual.shape)} and weight {tuple(weight.shape)} came; check the width."
        )
    wide = torch.promote_types(x.dtype, torch.float32)
    weight, bias = weight.to(wide), None if bias is None else bias.to(wide)
    if torch.compiler.is_compiling() or backend.by_reference(x.device, x.dtype):
        return reference.add_norm(x, residual, weight, bias, eps=eps, kind=kind, residual_in_fp32=residual_in_fp32)
    normed, summed, _, _ = _add_norm(x, residual, weight, bias, eps, kind, residual_in_fp32)
    return normed, summed


@torch.library.custom_op(
    "hybridmap::add_norm",
    mutates_args=(),
    schema="(Tensor x, Tensor? residual, Tensor weight, Tensor? bias, float eps, str kind, bool residual_in_fp32) -> "
    "(Tensor normed, Tensor summed, Tensor mean, Tensor rstd)",
)
def _add_norm(x, residual, weight, bias, eps, kind, residual_in_fp32):
    return backend.performer("add_norm", x.device, x.dtype).forward(x, residual, weight, bias, eps, kind, residual_in_fp32)


@_add_norm.register_fake
def _(x, residual, weight, bias, eps, kind, residual_in_fp32):
    wide = torch.promote_types(x.dtype, torch.float32)
    kept = wide if residual_in_fp32 else x.dtype if residual is None else residual.dtype
    statistics = x.new_empty((*x.shape[:-1], 1), dtype=wide)
    mean = x.new_empty(0, dtype=wide) if kind == "rms" else torch.empty_like(statistics)
    return x.new_empty(x.shape), x.new_empty(x.shape, dtype=kept), mean, statistics


@torch.library.custom_op(
    "hybridmap::add_norm_bwd",
    mutates_args=(),
    schema="(Tensor? dnormed, Tensor? dsummed, Tensor summed, Tensor mean, Tensor rstd, Tensor weight, Tensor? bias, str kind)"
    " -> (Tensor dsum, Tensor dweight, Tensor dbias)",
)
def _add_norm_bwd(dnormed, dsummed, summed, mean, rstd, weight, bias, kind):
    return backend.performer("add_norm", summed.device, rstd.dtype).backward(
        dnormed, dsummed, summed, mean, rstd, weight, bias, kind
    )


@_add_norm_bwd.register_fake
def _(dnormed, dsummed, summed, mean, rstd, weight, bias, kind):
    dsum = summed.new_empty(summed.shape, dtype=rstd.dtype)
    return dsum, weight.new_empty(weight.shape), weight.new_empty(0 if bias is None else bias.shape)


def _setup(ctx, inputs, output) -> None:
    x, residual, weight, bias, _, ctx.kind, _ = inputs
    _, summed, mean, rstd = output
    ctx.set_materialize_grads(False)
    ctx.dtypes = (x.dtype, None if residual is None else residual.dtype)
    ctx.save_for_backward(summed, mean, rstd, weight, bias)


def _backward(ctx, dnormed, dsummed, *_):
    *saved, bias = ctx.saved_tensors
    dsum, dweight, dbias = torch.ops.hybridmap.add_norm_bwd(dnormed, dsummed, *saved, bias, ctx.kind)
    dx, dresidual = (None if dtype is None else dsum.to(dtype) for dtype in ctx.dtypes)
    return dx, dresidual, dweight, None if bias is None else dbias, None, None, None


_add_norm.register_autograd(_backward, setup_context=_setup)
