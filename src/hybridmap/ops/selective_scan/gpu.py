"""The selective scan in Triton: same arguments and results as ``cpu.py``, in one launch per pass over memory.

One program scans a block of channels of one sample, both directions one after another. Its state is a (states, channels)
tile in registers; for 16 states a program is one warp, so that no two warps ever wait for each other.

    per direction:
        token by token, in scan order:             state = exp2(delta A log2 e) * state + delta x B     S E
                                                   y = C . state + D x; gate and store, or leave y
                                                   for the other direction                              E

    backward, first of all:                        the same again, but keep every T-th state            S E
                                                   and store dz and the gradient of y instead of out    E
    then, T tokens at a time, the last first:      their states, from the kept one                      S E
                                                   the adjoint recurrence (README.md)                   S E

Between the passes nothing is kept: states before every fourth token would be the largest part of what a network keeps, and
all of the first half together takes a quarter of the backward pass.

How a tile lies in the lanes decides the cost, and Triton derives it from how the tile lies in memory. The forward pass has
one sum, over states (y): there a lane has whole channels, with all their states, and nothing crosses lanes, see ``_tile``.
The sweep back sums over states (s, q) and over channels (dB, dC): there a lane has four neighbouring channels and every
fourth state of them, so that the former meet in two steps between lanes and the latter in three.

What is left is latency. Registers for values on their way would cost warps, so the next tokens are only touched: one read per
32 bytes brings them into the first cache. Tokens that fill no group are taken one by one, so that groups need no masks, and
strides of tokens are constants, so that places within a group are part of an instruction. Sums over samples and over blocks
of channels are written as partial sums and added by PyTorch: no atomics, so two runs give the same bits.
"""

# Inside a kernel, annotations and operators mean what Triton makes of them, which pyright cannot follow.
# pyright: reportArgumentType=false, reportCallIssue=false, reportOperatorIssue=false, reportReturnType=false
# pyright: reportIndexIssue=false, reportAttributeAccessIssue=false, reportOptionalMemberAccess=false
from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple, no_type_check

import torch
import triton
import triton.language as tl
from torch import Tensor

from hybridmap.ops.gpu import LN2, LOG2E, launch, load, load_wide, power_of_two, sigmoid, silu_slope, softplus
from hybridmap.ops.native import rows
from hybridmap.ops.selective_scan.reference import Direction

GROUP = 4
"""T: tokens of a group."""
VALUES = 32
"""Of a tile, per lane, in the forward pass; half as many in the sweep, which has more tiles."""
REGISTERS = 168
"""Per lane in the forward pass: 12 warps to a multiprocessor."""
REGISTERS_AGAIN = 255
"""The same when it runs again for a backward pass; with fewer, it would spill."""


class _Side(NamedTuple):
    """One direction as the kernels see it: tensors, strides of samples and tokens, None for what this call lacks.

    Strides of tokens are constants of the kernel (``tl.constexpr``), so each set of them is compiled once.
    """

    x: Tensor
    x_b: int
    x_t: tl.constexpr
    dt: Tensor
    dt_b: int
    dt_t: tl.constexpr
    B: Tensor
    B_b: int
    B_t: tl.constexpr
    C: Tensor
    C_b: int
    C_t: tl.constexpr
    A: Tensor
    """(S, E)"""
    D: Tensor | None
    bias: Tensor | None
    kept: Tensor | None = None
    """(chunks, directions, batch, S, E), from this direction on: the states before every T-th token"""
    start: Tensor | None = None
    """(batch, S, E), as are last, dlast and dstart: the states before and after the scan and their gradients"""
    last: Tensor | None = None
    dlast: Tensor | None = None
    dstart: Tensor | None = None
    dx: Tensor | None = None
    ddt: Tensor | None = None
    dBC: Tensor | None = None
    """(blocks, batch, L, S, 2): dB and dC of every block of channels"""
    dA: Tensor | None = None
    """(batch, S, E)"""
    dD: Tensor | None = None
    """(batch, E), as is dbias"""
    dbias: Tensor | None = None


class _Gate(NamedTuple):
    """What both directions share; ``other`` is float32, (batch, L, E), and carries y from one direction to the next."""

    z: Tensor | None
    z_b: int
    z_t: tl.constexpr
    other: Tensor | None
    out: Tensor | None = None
    dout: Tensor | None = None
    dout_b: int = 0
    dout_t: tl.constexpr = tl.constexpr(0)
    dz: Tensor | None = None
    dz_b: int = 0
    dz_t: tl.constexpr = tl.constexpr(0)
    dy: Tensor | None = None
    """The gradient of y, before the gate"""
    dy_b: int = 0
    dy_t: tl.constexpr = tl.constexpr(0)


@triton.jit
@no_type_check
def _tile(ch, E: tl.constexpr, NP: tl.constexpr):
    """Where the (states, channels) tile lies in a sample's (S, E).

    Where Triton can count on the alignment of neighbouring channels, a lane takes four of them, to load them at once. In the
    forward pass it cannot, because the channels were shifted by a number that it does not know to be 0: there a lane takes
    every 32nd channel with all its states.
    """
    return tl.arange(0, NP)[:, None] * E + ch[None, :]


@triton.jit
@no_type_check
def _first(pointer, b, stride_b, stride_t: tl.constexpr, L, reverse: tl.constexpr):
    """Where the token lies that comes first in scan order."""
    return pointer + b * stride_b + (tl.cast(L - 1, tl.int64) * stride_t if reverse else 0)


@triton.jit
@no_type_check
def _next_state(h, A, delta, driven, B):
    return tl.exp2(delta[None, :] * A) * h + driven[None, :] * B[:, None]


@triton.jit
@no_type_check
def _load_tokens(pointer, stride_b, stride_t: tl.constexpr, b, i, L, at, inside, reverse: tl.constexpr, count: tl.constexpr):
    """So many tokens in scan order from the i-th on, a vector each, as they are: what is used later must not be waited for."""
    place = _first(pointer, b, stride_b, stride_t, L, reverse) + i * (-stride_t if reverse else stride_t) + at
    tokens = ()
    for j in tl.static_range(count):
        tokens = tokens + (load(place + j * (-stride_t if reverse else stride_t), inside),)
    return tokens


@triton.jit
@no_type_check
def _step_size(raw, bias, is_softplus: tl.constexpr):
    """dt + bias, and the step size."""
    raw = raw.to(tl.float32) + bias
    return raw, softplus(raw) if is_softplus else raw


@triton.jit
@no_type_check
def _touch(
    pointer, stride_b, stride_t: tl.constexpr, b, i, L, at, end: tl.constexpr, width: tl.constexpr,
    reverse: tl.constexpr, count: tl.constexpr,
):  # fmt: skip
    """One value of every 32 bytes of so many tokens, from place ``at`` on: whoever wants the others finds them close by."""
    each: tl.constexpr = 256 // pointer.dtype.element_ty.primitive_bitwidth
    row: tl.constexpr = (width + each - 1) // each
    k = tl.arange(0, count * row)
    j, place = k // row, at + k % row * each
    first = _first(pointer, b, stride_b, stride_t, L, reverse) + i * (-stride_t if reverse else stride_t)
    return load_wide(first + j * (-stride_t if reverse else stride_t) + place, place < end)


@triton.jit
@no_type_check
def _hold(values, anywhere, batch):
    """Stores nothing, since no batch is negative. The compiler cannot know that, so it does not drop what was touched."""
    tl.store(anywhere + tl.arange(0, values.shape[0]), values, mask=tl.arange(0, values.shape[0]) + batch < 0)


@triton.jit
@no_type_check
def _forward_groups(
    h, A, D, bias, side, gate, scale, batch, b, first, groups, L, ch, E: tl.constexpr, N: tl.constexpr,
    first_side: tl.constexpr, last_side: tl.constexpr, sides: tl.constexpr, reverse: tl.constexpr, is_softplus: tl.constexpr,
    again: tl.constexpr, T: tl.constexpr, G: tl.constexpr, NP: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """So many groups of G tokens, from the first token in scan order on; returns the state after them.

    ``again``: not out is wanted but, for a backward pass, the states before every T-th token and the gradients at the gate.
    """
    n = tl.arange(0, NP)
    inside = None if E % BD == 0 else ch < E
    states = None if N == NP else n < N
    real = None if N == NP and E % BD == 0 else (n < N)[:, None] & (ch < E)[None, :]
    step: tl.constexpr = -1 if reverse else 1
    summed: tl.constexpr = gate.z is not None or not again  # without a gate, no gradient depends on y
    gated: tl.constexpr = last_side and gate.z is not None
    ungating: tl.constexpr = gated and again
    alone: tl.constexpr = first_side or not summed
    block = tl.min(ch, 0)
    B = _first(side.B, b, side.B_b, side.B_t, L, reverse) + n
    C = _first(side.C, b, side.C_b, side.C_t, L, reverse) + n
    at = _first(b * L * E, 0, 0, E, L, reverse) + ch
    for group in range(groups):
        i = first + group * G
        after = tl.minimum(i + G, L - G)
        touched = _touch(side.x, side.x_b, side.x_t, b, after, L, block, E, BD, reverse, G)
        touched += _touch(side.dt, side.dt_b, side.dt_t, b, after, L, block, E, BD, reverse, G)
        if gated:
            touched += _touch(gate.z, gate.z_b, gate.z_t, b, after, L, block, E, BD, reverse, G)
        if ungating:
            touched += _touch(gate.dout, gate.dout_b, gate.dout_t, b, after, L, block, E, BD, reverse, G)
        touched_states = _touch(side.B, side.B_b, side.B_t, b, after, L, 0, N, NP, reverse, G)
        if summed:
            touched_states += _touch(side.C, side.C_b, side.C_t, b, after, L, 0, N, NP, reverse, G)
        if again and i % T == 0:
            tl.store(side.kept + (i // T * sides * batch + b) * N * E + _tile(ch, E, NP), h, mask=real)
        xs = _load_tokens(side.x, side.x_b, side.x_t, b, i, L, ch, inside, reverse, G)
        dts = _load_tokens(side.dt, side.dt_b, side.dt_t, b, i, L, ch, inside, reverse, G)
        others = xs if alone else _load_tokens(gate.other, L * E, E, b, i, L, ch, inside, reverse, G)
        zs = _load_tokens(gate.z, gate.z_b, gate.z_t, b, i, L, ch, inside, reverse, G) if gated else xs
        douts = _load_tokens(gate.dout, gate.dout_b, gate.dout_t, b, i, L, ch, inside, reverse, G) if ungating else xs
        deltas, driven, ys = (), (), ()
        for j in tl.static_range(G):
            x = xs[j].to(tl.float32)
            _, delta = _step_size(dts[j], bias, is_softplus)
            y = D * x if alone else D * x + others[j]
            deltas, driven, ys = deltas + (delta,), driven + (delta * x,), ys + (y,)
        for j in tl.static_range(G):
            h = _next_state(h, A, deltas[j], driven[j], load(B + (i + j) * step * side.B_t, states))
            if summed:
                y = ys[j] + tl.sum(h * load(C + (i + j) * step * side.C_t, states)[:, None], 0)
                to = at + (i + j) * step * E
                z = zs[j].to(tl.float32)
                if not last_side:
                    tl.store(gate.other + to, y, mask=inside)
                elif ungating:
                    gy = douts[j].to(tl.float32) * scale
                    to_z = _first(gate.dz, b, gate.dz_b, gate.dz_t, L, reverse) + (i + j) * step * gate.dz_t + ch
                    tl.store(to_z, (gy * y * silu_slope(z)).to(gate.dz.dtype.element_ty), mask=inside)
                    tl.store(gate.dy + to, gy * z * sigmoid(z), mask=inside)
                else:
                    y *= scale
                    if gated:
                        y *= z * sigmoid(z)
                    tl.store(gate.out + to, y.to(gate.out.dtype.element_ty), mask=inside)
        _hold(touched, side.A, batch)
        _hold(touched_states, side.A, batch)
    return h


@triton.jit
@no_type_check
def _forward_side(
    side, gate, scale, b, ch, batch, L, E: tl.constexpr, N: tl.constexpr,
    first_side: tl.constexpr, last_side: tl.constexpr, sides: tl.constexpr, reverse: tl.constexpr, is_softplus: tl.constexpr,
    again: tl.constexpr, T: tl.constexpr, NP: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    cell = _tile(ch, E, NP)
    real = None if N == NP and E % BD == 0 else (tl.arange(0, NP) < N)[:, None] & (ch < E)[None, :]
    A = load_wide(side.A + cell, real) * LOG2E
    bias = 0.0 if side.bias is None else tl.load(side.bias + ch, mask=ch < E, other=0.0)
    D = 0.0 if side.D is None else tl.load(side.D + ch, mask=ch < E, other=0.0)
    h = tl.zeros(cell.shape, tl.float32) if side.start is None else load_wide(side.start + b * N * E + cell, real)
    groups = tl.cast(L // T, tl.int64)
    h = _forward_groups(
        h, A, D, bias, side, gate, scale, batch, b, 0, groups, L, ch, E, N,
        first_side, last_side, sides, reverse, is_softplus, again, T, T, NP, BD,
    )  # fmt: skip
    h = _forward_groups(
        h, A, D, bias, side, gate, scale, batch, b, groups * T, L - groups * T, L, ch, E, N,
        first_side, last_side, sides, reverse, is_softplus, again, T, 1, NP, BD,
    )  # fmt: skip
    if side.last is not None:
        tl.store(side.last + b * N * E + cell, h, mask=real)


@triton.jit(do_not_specialize=["batch", "shift"])
@no_type_check
def selective_scan_fwd_kernel(
    pair, gate, scale, batch, L, shift, E: tl.constexpr, N: tl.constexpr,
    sides: tl.constexpr, reverse: tl.constexpr, is_softplus: tl.constexpr,
    again: tl.constexpr, T: tl.constexpr, NP: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    blocks = tl.cdiv(E, BD)
    b = tl.cast(tl.program_id(0) // blocks, tl.int64)
    ch = tl.program_id(0) % blocks * BD + tl.arange(0, BD) + shift  # 0, see _tile
    for g in tl.static_range(sides):
        if g > 0:
            tl.debug_barrier()  # what one direction has left for the next is read by the whole program
        _forward_side(
            pair[g], gate, scale, b, ch, batch, L, E, N,
            g == 0, g == sides - 1, sides, reverse[g], is_softplus, again, T, NP, BD,
        )  # fmt: skip


@triton.jit
@no_type_check
def _touch_kept(kept, E: tl.constexpr, N: tl.constexpr, NP: tl.constexpr, block, BD: tl.constexpr):
    """One value of every 32 bytes of a (states, channels) tile, see ``_touch``."""
    k = tl.arange(0, NP * BD // 8)
    row, ch = k // (BD // 8), block + k % (BD // 8) * 8
    return load_wide(kept + row * E + ch, tl.where(row < N, ch, E) < E)


@triton.jit
@no_type_check
def _adjoint_groups(
    carried, dA, dD, dbias, A, D, bias, side, gate, scale, b, block, first, groups, batch, L, ch,
    E: tl.constexpr, N: tl.constexpr, sides: tl.constexpr, reverse: tl.constexpr, is_softplus: tl.constexpr,
    T: tl.constexpr, G: tl.constexpr, NP: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """So many groups of G tokens, from the first token in scan order on, the last group first.

    A group's states are recomputed from what was kept before its T tokens, then the adjoint recurrence runs.
    """
    n = tl.arange(0, NP)
    inside = None if E % BD == 0 else ch < E
    states = None if N == NP else n < N
    real = None if N == NP and E % BD == 0 else (n < N)[:, None] & (ch < E)[None, :]
    step: tl.constexpr = -1 if reverse else 1
    at = _first(b * L * E, 0, 0, E, L, reverse) + ch
    row = _first((block * batch + b) * L * N, 0, 0, N, L, reverse)
    dBC = side.dBC + n[:, None] * 2 + tl.arange(0, 2)[None, :] + row * 2
    for back in range(groups):
        i = first + (groups - 1 - back) * G
        after = tl.maximum(i - G, first)  # of the first group, itself
        touched = _touch(side.x, side.x_b, side.x_t, b, after, L, block * BD, E, BD, reverse, G)
        touched += _touch(side.dt, side.dt_b, side.dt_t, b, after, L, block * BD, E, BD, reverse, G)
        touched_dy = _touch(gate.dy, gate.dy_b, gate.dy_t, b, after, L, block * BD, E, BD, reverse, G)
        touched_states = _touch(side.B, side.B_b, side.B_t, b, after, L, 0, N, NP, reverse, G)
        touched_states += _touch(side.C, side.C_b, side.C_t, b, after, L, 0, N, NP, reverse, G)
        kept = side.kept + b * N * E
        touched_kept = _touch_kept(kept + after // T * sides * batch * N * E, E, N, NP, block * BD, BD)
        h = load_wide(kept + i // T * sides * batch * N * E + _tile(ch, E, NP), real)
        xs = _load_tokens(side.x, side.x_b, side.x_t, b, i, L, ch, inside, reverse, G)
        dts = _load_tokens(side.dt, side.dt_b, side.dt_t, b, i, L, ch, inside, reverse, G)
        dys = _load_tokens(gate.dy, gate.dy_b, gate.dy_t, b, i, L, ch, inside, reverse, G)
        Bs = _load_tokens(side.B, side.B_b, side.B_t, b, i, L, n, states, reverse, G)
        Cs = _load_tokens(side.C, side.C_b, side.C_t, b, i, L, n, states, reverse, G)
        for k in range(i // T * T, i):  # none, unless a single token is the group
            (x,) = _load_tokens(side.x, side.x_b, side.x_t, b, k, L, ch, inside, reverse, 1)
            (dt,) = _load_tokens(side.dt, side.dt_b, side.dt_t, b, k, L, ch, inside, reverse, 1)
            (B,) = _load_tokens(side.B, side.B_b, side.B_t, b, k, L, n, states, reverse, 1)
            _, delta = _step_size(dt, bias, is_softplus)
            h = _next_state(h, A, delta, delta * x.to(tl.float32), B)
        hs = (h,)
        for j in tl.static_range(G):
            _, delta = _step_size(dts[j], bias, is_softplus)
            hs = hs + (_next_state(hs[j], A, delta, delta * xs[j].to(tl.float32), Bs[j]),)
        for j in tl.static_range(G - 1, -1, -1):
            x = xs[j].to(tl.float32)
            raw, delta = _step_size(dts[j], bias, is_softplus)
            gy = dys[j].to(tl.float32) * scale
            dh = carried + gy[None, :] * Cs[j][:, None]
            to_B_and_C = tl.sum(tl.join(dh * (delta * x)[None, :], gy[None, :] * hs[j + 1]), 1)  # NP 2
            tl.store(dBC + (i + j) * step * N * 2, to_B_and_C, mask=None if N == NP else (n < N)[:, None])
            s = tl.sum(dh * Bs[j][:, None], 0)
            carried = dh * tl.exp2(delta[None, :] * A)
            r = carried * hs[j]
            dA += r * delta[None, :]
            ddt = s * x + tl.sum(r * A, 0) * LN2
            if is_softplus:
                ddt *= sigmoid(raw)
            dD += gy * x
            dbias += ddt
            to = at + (i + j) * step * E
            tl.store(side.dx + to, (s * delta + D * gy).to(side.dx.dtype.element_ty), mask=inside)
            tl.store(side.ddt + to, ddt.to(side.ddt.dtype.element_ty), mask=inside)
        _hold(touched, side.A, batch)
        _hold(touched_dy, side.A, batch)
        _hold(touched_states, side.A, batch)
        _hold(touched_kept, side.A, batch)
    return carried, dA, dD, dbias


@triton.jit
@no_type_check
def _backward_side(
    side, gate, scale, b, ch, block, batch, L, E: tl.constexpr, N: tl.constexpr,
    sides: tl.constexpr, reverse: tl.constexpr, is_softplus: tl.constexpr,
    T: tl.constexpr, NP: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    cell = _tile(ch, E, NP)
    real = None if N == NP and E % BD == 0 else (tl.arange(0, NP) < N)[:, None] & (ch < E)[None, :]
    A = load_wide(side.A + cell, real) * LOG2E
    bias = 0.0 if side.bias is None else tl.load(side.bias + ch, mask=ch < E, other=0.0)
    D = 0.0 if side.D is None else tl.load(side.D + ch, mask=ch < E, other=0.0)
    dA = tl.zeros(cell.shape, tl.float32)
    carried = dA if side.dlast is None else load_wide(side.dlast + b * N * E + cell, real)
    dD = tl.zeros(ch.shape, tl.float32)
    dbias = tl.zeros(ch.shape, tl.float32)
    whole = tl.cast(L // T, tl.int64)
    carried, dA, dD, dbias = _adjoint_groups(
        carried, dA, dD, dbias, A, D, bias, side, gate, scale, b, block, whole * T, L - whole * T, batch, L, ch, E, N,
        sides, reverse, is_softplus, T, 1, NP, BD,
    )  # fmt: skip
    carried, dA, dD, dbias = _adjoint_groups(
        carried, dA, dD, dbias, A, D, bias, side, gate, scale, b, block, 0, whole, batch, L, ch, E, N,
        sides, reverse, is_softplus, T, T, NP, BD,
    )  # fmt: skip
    tl.store(side.dA + b * N * E + cell, dA, mask=real)
    tl.store(side.dD + b * E + ch, dD, mask=ch < E)
    tl.store(side.dbias + b * E + ch, dbias, mask=ch < E)
    if side.dstart is not None:
        tl.store(side.dstart + b * N * E + cell, carried, mask=real)


@triton.jit(do_not_specialize=["batch"])
@no_type_check
def selective_scan_bwd_kernel(
    pair, gate, scale, batch, L, E: tl.constexpr, N: tl.constexpr,
    sides: tl.constexpr, reverse: tl.constexpr, is_softplus: tl.constexpr,
    T: tl.constexpr, NP: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    blocks = tl.cdiv(E, BD)
    block = tl.program_id(0) % blocks
    b = tl.cast(tl.program_id(0) // blocks, tl.int64)
    ch = block * BD + tl.arange(0, BD)
    for g in tl.static_range(sides):
        _backward_side(
            pair[g], gate, scale, b, ch, block, batch, L, E, N,
            sides, reverse[g], is_softplus, T, NP, BD,
        )  # fmt: skip


def _sizes(states: int, values: int) -> tuple[int, int, int]:
    """States of a tile, its channels, and warps, for so many values of the tile per lane.

    With more states than 16, the warps of a program share the states of its channels.
    """
    NP = power_of_two(states)
    warps = min(8, max(1, NP // 16))
    return NP, min(2 * values, 32 * values * warps // NP), warps


def _side(d: Direction, **more: Tensor | None) -> _Side:
    # B and C are read by every block of channels: widened once, they need not be widened there
    strided = [v for tensor in (d.x, d.dt, d.B.float(), d.C.float()) for v in _strided(tensor)]
    D, bias = (None if p is None else p.contiguous() for p in (d.D, d.bias))
    return _Side(*strided, A=d.A.mT.contiguous(), D=D, bias=bias, **more)


def _strided(tensor: Tensor | None) -> tuple[Tensor | None, int, tl.constexpr]:
    """A (batch, L, E) tensor where it lies, with the strides of samples and tokens, the latter a constant."""
    if tensor is None:
        return None, 0, tl.constexpr(0)
    tensor = rows(tensor)
    return tensor, tensor.stride(0), tl.constexpr(tensor.stride(1))


def _turned(states: Tensor | None, g: int) -> Tensor | None:
    """One direction of (directions, batch, E, S) states, as (batch, S, E)."""
    return None if states is None else states[g].mT.contiguous()


def _run_forward(
    x: Tensor, pair: Sequence[_Side], gate: _Gate, reverse: Sequence[bool], scale: float, *, is_softplus: bool, again: bool
) -> None:
    (batch, L, E), N = x.shape, pair[0].A.shape[0]
    NP, BD, warps = _sizes(N, VALUES)
    launch(
        selective_scan_fwd_kernel, batch * math.ceil(E / BD), x, tuple(pair), gate, scale, batch, L, 0,
        E=E, N=N, sides=len(pair), reverse=tuple(reverse), is_softplus=is_softplus, again=again, T=GROUP, NP=NP, BD=BD,
        warps=warps, maxnreg=REGISTERS_AGAIN if again else REGISTERS,
    )  # fmt: skip


def forward(
    directions: Sequence[Direction],
    reverse: Sequence[bool],
    z: Tensor | None,
    h0: Tensor | None,
    *,
    softplus: bool,
    scale: float,
    keep: bool,
    end: bool = False,
) -> tuple[Tensor, Tensor | None, Tensor]:
    """See ``cpu.forward``. Nothing is kept, whatever is asked for."""
    x, sides = directions[0].x, len(directions)
    (batch, L, E), N = x.shape, directions[0].A.shape[1]

    def new(*shape: int) -> Tensor:
        return x.new_empty(shape, dtype=torch.float32)

    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    last = [new(batch, N, E) if end else None for _ in directions]
    pair = [_side(d, start=_turned(h0, g), last=last[g]) for g, d in enumerate(directions)]
    gate = _Gate(*_strided(z), other=new(batch, L, E) if sides > 1 else None, out=out)
    _run_forward(x, pair, gate, reverse, scale, is_softplus=softplus, again=False)
    return out, torch.stack([h for h in last if h is not None]).mT.contiguous() if end else None, new(0)


def backward(
    dout: Tensor,
    dlast: Tensor | None,
    kept: Tensor | None,
    directions: Sequence[Direction],
    reverse: Sequence[bool],
    z: Tensor | None,
    h0: Tensor | None,
    *,
    softplus: bool,
    scale: float,
    dz: Tensor | None = None,
) -> tuple[list[Direction], Tensor | None, Tensor | None]:
    """See ``cpu.backward``. States that were kept elsewhere are too few to be of use."""
    x, sides = directions[0].x, len(directions)
    (batch, L, E), N = x.shape, directions[0].A.shape[1]
    NP, BD, warps = _sizes(N, VALUES // 2)
    blocks = math.ceil(E / BD)

    def new(*shape: int) -> Tensor:
        return x.new_empty(shape, dtype=torch.float32)

    def like(tensor: Tensor) -> Tensor:
        return torch.empty(tensor.shape, dtype=tensor.dtype, device=tensor.device)

    states = new(math.ceil(L / GROUP), sides, batch, N, E)
    pair = [
        _side(
            d,
            kept=states[:, g],
            start=_turned(h0, g),
            dlast=_turned(dlast, g),
            dstart=None if h0 is None else new(batch, N, E),
            dx=like(d.x),
            ddt=like(d.dt),
            dBC=new(blocks, batch, L, N, 2),
            dA=new(batch, N, E),
            dD=new(batch, E),
            dbias=new(batch, E),
        )
        for g, d in enumerate(directions)
    ]
    dz = like(z) if dz is None and z is not None else dz
    other = None if z is None else new(batch, L, E)  # at last the gradient before the gate
    gate = _Gate(*_strided(z), other, None, *_strided(dout), *_strided(dz), *_strided(dout if z is None else other))
    _run_forward(x, pair, gate, reverse, scale, is_softplus=softplus, again=True)
    launch(
        selective_scan_bwd_kernel, batch * blocks, x, tuple(pair), gate, scale if z is None else 1.0, batch, L,
        E=E, N=N, sides=sides, reverse=tuple(reverse), is_softplus=softplus, T=GROUP, NP=NP, BD=BD, warps=warps,
    )  # fmt: skip
    gradients = []
    for d, side in zip(directions, pair, strict=True):
        dB, dC = (v.to(x.dtype, copy=True).contiguous() for v in side.dBC.sum(0).unbind(-1))
        dD, dbias = (None if p is None else v.sum(0) for p, v in ((d.D, side.dD), (d.bias, side.dbias)))
        dA = side.dA.sum(0).mT.contiguous()
        gradients.append(Direction(side.dx, side.ddt, dA, dB, dC, dD, dbias))
    dh0 = None if h0 is None else torch.stack([side.dstart for side in pair]).mT.contiguous()
    return gradients, dz, dh0
