"""A short causal convolution per channel, with SiLU: what lets a Mamba mixer see a few neighbours before it scans.

    u_t = b + sum_j w[:, j] * x_{t-(W-1)+j}          zeros before the first token; the last tap meets the present token
    out = silu(u)

Channels-last, (batch, L, E); only the last stride should be 1. With ``reverse`` the convolution is anti-causal: the taps meet
``x_{t+(W-1)-j}``, zeros after the last token. x and out share one dtype; w and b are float32, and so are the sums and the
gradients of w and b. The backward pass recomputes u. Source: Mamba (arXiv:2312.00752), figure 3.

``reference.py`` is the meaning, ``cpu.py`` the plain-PyTorch implementation, ``native.py`` the compiled one for CPUs,
``gpu.py`` the Triton one for CUDA devices, ``README.md`` the derivation of the backward pass.
"""

from __future__ import annotations

from types import ModuleType
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from hybridmap.errors import UserError
from hybridmap.ops import backend
from hybridmap.ops.causal_conv1d import reference


def causal_conv1d(
    x: Float[Tensor, "batch L E"],
    w: Float[Tensor, "E W"],
    b: Float[Tensor, "E"] | None = None,
    *,
    silu: bool = True,
    reverse: bool = False,
) -> Float[Tensor, "batch L E"]:
    """Convolve every channel with its own taps over the present and the W-1 earlier tokens, then apply SiLU."""
    if x.dim() != 3 or w.dim() != 2 or w.shape[0] != x.shape[2] or w.shape[1] < 1 or (b is not None and b.shape != w.shape[:1]):
        raise UserError(
            f"The convolution expects x as (batch, L, E), w as (E, W) and b as (E,), but {tuple(x.shape)}, {tuple(w.shape)} "
            f"and {None if b is None else tuple(b.shape)} came; squeeze the middle axis of a Conv1d weight."
        )
    wide = torch.promote_types(x.dtype, torch.float32)
    w, b = w.to(wide), None if b is None else b.to(wide)
    if backend.by_reference(x.device, x.dtype):
        return reference.causal_conv1d(x, w, b, silu=silu, reverse=reverse)
    return _causal_conv1d(x, w, b, silu, reverse)


def causal_conv1d_fn(
    x: Float[Tensor, "batch E L"],
    weight: Float[Tensor, "E W"],
    bias: Float[Tensor, "E"] | None = None,
    activation: Literal["silu", "swish"] | None = None,
) -> Float[Tensor, "batch E L"]:
    """The drop-in with the widely used signature and its channels-first layout; contiguous.

    Source: the interface of Dao-AILab/causal-conv1d:causal_conv1d/causal_conv1d_interface.py.
    """
    if activation not in (None, "silu", "swish"):
        raise UserError(f'causal_conv1d_fn expects activation None, "silu" or "swish", but "{activation}" came; try "silu".')
    return causal_conv1d(x.mT, weight, bias, silu=activation is not None).mT.contiguous()


def performer(x: Tensor) -> ModuleType:
    """Who computes: ``forward`` and ``backward`` with the signatures of ``cpu.py``."""
    return backend.performer("causal_conv1d", x.device, x.dtype)


@torch.library.custom_op(
    "hybridmap::causal_conv1d",
    mutates_args=(),
    schema="(Tensor x, Tensor w, Tensor? b, bool silu, bool reverse) -> Tensor",
)
def _causal_conv1d(x, w, b, silu, reverse):
    return performer(x).forward(x, w, b, silu, reverse)


@_causal_conv1d.register_fake
def _(x, w, b, silu, reverse):
    return x.new_empty(x.shape)


@torch.library.custom_op(
    "hybridmap::causal_conv1d_bwd",
    mutates_args=(),
    schema="(Tensor dout, Tensor x, Tensor w, Tensor? b, bool silu, bool reverse) -> (Tensor dx, Tensor dw, Tensor db)",
)
def _causal_conv1d_bwd(dout, x, w, b, silu, reverse):
    return performer(x).backward(dout, x, w, b, silu, reverse)


@_causal_conv1d_bwd.register_fake
def _(dout, x, w, b, silu, reverse):
    return x.new_empty(x.shape), w.new_empty(w.shape), w.new_empty(0 if b is None else b.shape)


def _setup(ctx, inputs, output) -> None:
    x, w, b, *ctx.flags = inputs
    ctx.save_for_backward(x, w, b)


def _backward(ctx, dout):
    x, w, b = ctx.saved_tensors
    dx, dw, db = torch.ops.hybridmap.causal_conv1d_bwd(dout, x, w, b, *ctx.flags)
    return dx, dw, None if b is None else db, None, None


_causal_conv1d.register_autograd(_backward, setup_context=_setup)
