"""The causal convolution in Triton; arguments and results are those of ``cpu.py``.

One program convolves TOKENS tokens of a block of channels of one sample. Taps and tokens lie in registers, a vector of
channels each, so that a token is read once by its program, and the W-1 tokens before the first one again. The backward pass
recomputes u for its own tokens and the W-1 next ones, whose gradients reach back; it returns one partial sum of the
gradients of w and b per program, and PyTorch adds these: no atomics, so two runs give the same bits.
"""

# Inside a kernel, annotations and operators mean what Triton makes of them, which pyright cannot follow.
# pyright: reportArgumentType=false, reportCallIssue=false, reportOperatorIssue=false, reportReturnType=false
# pyright: reportIndexIssue=false
from __future__ import annotations

import math
from typing import no_type_check

import torch
import triton
import triton.language as tl
from torch import Tensor

from hybridmap.ops.gpu import launch, load_wide, power_of_two, sigmoid, silu_slope
from hybridmap.ops.native import rows

TOKENS = 16
"""Of one program. Those before and after them that it reads, too, are a fifth more."""
CHANNELS = 256
"""Of one program, at most."""
WARPS = 4


@triton.jit
@no_type_check
def _place(L, E, BT: tl.constexpr, BD: tl.constexpr):
    """What this program does: the sample, its first token in scan order, its channels, and its place among the partial sums."""
    blocks, spans = tl.cdiv(E, BD), tl.cdiv(L, BT)
    part = tl.program_id(0) // blocks
    b = tl.cast(part // spans, tl.int64)
    return b, part % spans * BT, tl.program_id(0) % blocks * BD + tl.arange(0, BD), tl.cast(part, tl.int64)


@triton.jit
@no_type_check
def _load_tokens(pointer, stride_b, stride_t, b, first, ch, L, E, count: tl.constexpr, reverse: tl.constexpr):
    """So many tokens in scan order from the ``first`` on, one vector each, with zeros where there is none."""
    tokens = ()
    for k in tl.static_range(count):
        i = first + k
        t = tl.cast(L - 1 - i if reverse else i, tl.int64)
        inside = tl.where(i < 0, 0, tl.where(i < L, E, 0))
        tokens = tokens + (load_wide(pointer + b * stride_b + t * stride_t + ch, ch < inside),)
    return tokens


@triton.jit
@no_type_check
def _load_taps(w, bias, ch, E, W: tl.constexpr):
    taps = ()
    for j in tl.static_range(W):
        taps = taps + (tl.load(w + j * E + ch, mask=ch < E, other=0.0),)
    return taps, 0.0 if bias is None else tl.load(bias + ch, mask=ch < E, other=0.0)


@triton.jit
@no_type_check
def _convolve(xs, taps, bias, k: tl.constexpr, W: tl.constexpr):
    """u of the k-th token, when the first of ``xs`` is W-1 tokens before the first."""
    u = bias + taps[0] * xs[k]
    for j in tl.static_range(1, W):
        u += taps[j] * xs[k + j]
    return u


@triton.jit
@no_type_check
def causal_conv1d_fwd_kernel(
    x, x_b, x_t, w, bias, out, L, E,
    W: tl.constexpr, silu: tl.constexpr, reverse: tl.constexpr, BT: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    b, first, ch, _ = _place(L, E, BT, BD)
    taps, bias = _load_taps(w, bias, ch, E, W)
    xs = _load_tokens(x, x_b, x_t, b, first - (W - 1), ch, L, E, BT + W - 1, reverse)
    for k in tl.static_range(BT):
        u = _convolve(xs, taps, bias, k, W)
        i = first + k
        t = tl.cast(L - 1 - i if reverse else i, tl.int64)
        value = u * sigmoid(u) if silu else u
        tl.store(out + (b * L + t) * E + ch, value.to(out.dtype.element_ty), mask=ch < tl.where(i < L, E, 0))


@triton.jit
@no_type_check
def causal_conv1d_bwd_kernel(
    dout, dout_b, dout_t, x, x_b, x_t, w, bias, dx, dx_b, dx_t, dw, db, L, E,
    W: tl.constexpr, silu: tl.constexpr, reverse: tl.constexpr, add: tl.constexpr, BT: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    b, first, ch, part = _place(L, E, BT, BD)
    taps, bias = _load_taps(w, bias, ch, E, W)
    xs = _load_tokens(x, x_b, x_t, b, first - (W - 1), ch, L, E, BT + 2 * (W - 1), reverse)
    douts = _load_tokens(dout, dout_b, dout_t, b, first, ch, L, E, BT + W - 1, reverse)
    dus = ()
    for k in tl.static_range(BT + W - 1):
        du = douts[k]
        if silu:
            du *= silu_slope(_convolve(xs, taps, bias, k, W))
        dus = dus + (tl.where(first + k < L, du, 0.0),)
    for k in tl.static_range(BT):
        total = taps[0] * dus[k + W - 1]
        for j in tl.static_range(1, W):
            total += taps[j] * dus[k + W - 1 - j]
        i = first + k
        t = tl.cast(L - 1 - i if reverse else i, tl.int64)
        to, inside = dx + b * dx_b + t * dx_t + ch, ch < tl.where(i < L, E, 0)
        if add:
            total += load_wide(to, inside)
        tl.store(to, total.to(dx.dtype.element_ty), mask=inside)
    for j in tl.static_range(W):
        total = dus[0] * xs[j]
        for k in tl.static_range(1, BT):
            total += dus[k] * xs[k + j]
        tl.store(dw + (part * W + j) * E + ch, total, mask=ch < E)
    if db is not None:
        total = dus[0]
        for k in tl.static_range(1, BT):
            total += dus[k]
        tl.store(db + part * E + ch, total, mask=ch < E)


def _programs(x: Tensor) -> tuple[int, int, int]:
    """Spans of tokens over all samples, programs, and channels of a program."""
    batch, length, channels = x.shape
    BD = min(CHANNELS, power_of_two(channels))
    spans = batch * math.ceil(length / TOKENS)
    return spans, spans * math.ceil(channels / BD), BD


def forward(x: Tensor, w: Tensor, b: Tensor | None, silu: bool, reverse: bool) -> Tensor:
    """See ``cpu.forward``."""
    x, bias = rows(x), None if b is None else b.contiguous()
    _, length, channels = x.shape
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    _, programs, BD = _programs(x)
    launch(
        causal_conv1d_fwd_kernel, programs, x, x, x.stride(0), x.stride(1), w.mT.contiguous(), bias, out, length, channels,
        W=w.shape[1], silu=silu, reverse=reverse, BT=TOKENS, BD=BD, warps=WARPS,
    )  # fmt: skip
    return out


def backward(
    dout: Tensor,
    x: Tensor,
    w: Tensor,
    b: Tensor | None,
    silu: bool,
    reverse: bool,
    *,
    into: Tensor | None = None,
    add: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """See ``cpu.backward``."""
    x, dout, bias = rows(x), rows(dout), None if b is None else b.contiguous()
    _, length, channels = x.shape
    spans, programs, BD = _programs(x)
    dx = torch.empty(x.shape, dtype=x.dtype, device=x.device) if into is None else into
    dw = w.new_empty(spans, w.shape[1], channels)
    db = None if b is None else w.new_empty(spans, channels)
    launch(
        causal_conv1d_bwd_kernel, programs, x, dout, dout.stride(0), dout.stride(1), x, x.stride(0), x.stride(1),
        w.mT.contiguous(), bias, dx, dx.stride(0), dx.stride(1), dw, db, length, channels,
        W=w.shape[1], silu=silu, reverse=reverse, add=add, BT=TOKENS, BD=BD, warps=WARPS,
    )  # fmt: skip
    return dx, dw.sum(0).mT.contiguous(), w.new_empty(0) if db is None else db.sum(0)
