"""The selective scan in Triton: same arguments and results as ``cpu.py``, in one launch per pass over memory.

One program scans a block of channels of one sample, both directions one after another. Its state is a (states, channels)
tile in registers. For 16 states a program is one warp and has 32 channels: a lane then has four neighbouring channels and
every fourth state of them, because Triton lays a tile out to be loaded 16 bytes at a time. So sums over states (y, s, q) meet
in two steps between lanes and sums over channels (dB, dC) in three, no two warps ever wait for each other, and 16 values of a
tile per lane leave room for the states of a chunk.

    per direction:
        per chunk of T tokens, in scan order:      keep the state, when training                        S E
            all T tokens:                          load x, dt (and z, and y of the other direction)     E
            token by token:                        state = exp2(delta A log2 e) * state + delta x B     S E
                                                   y = C . state + D x                                  E
            all T tokens:                          gate and store, or leave y for the other direction   E

The backward pass takes the chunks from the last to the first: it recomputes the T states of a chunk in registers from the
kept one, then runs the adjoint recurrence (README.md). Tokens beyond the end are steps of length zero. Sums over samples
and over blocks of channels are written as partial sums and added by PyTorch: no atomics, so two runs give the same bits.
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

from hybridmap.ops.gpu import LN2, launch, load_wide, power_of_two, sigmoid, silu_slope, softplus
from hybridmap.ops.native import rows
from hybridmap.ops.selective_scan.cpu import KEPT_TOGETHER, chunk_on, kept_states
from hybridmap.ops.selective_scan.reference import Direction


class _Side(NamedTuple):
    """One direction as the kernels see it: tensors, strides of samples and tokens, None for what this call lacks."""

    x: Tensor
    x_b: int
    x_t: int
    dt: Tensor
    dt_b: int
    dt_t: int
    B: Tensor
    B_b: int
    B_t: int
    C: Tensor
    C_b: int
    C_t: int
    A: Tensor
    """(S, E), times log2(e)"""
    D: Tensor | None
    bias: Tensor | None
    kept: Tensor | None
    """(chunks, directions, batch, blocks, S, 16), from this direction on"""
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
    z_t: int
    other: Tensor | None
    out: Tensor | None = None
    dout: Tensor | None = None
    dout_b: int = 0
    dout_t: int = 0
    dz: Tensor | None = None
    dz_b: int = 0
    dz_t: int = 0


@triton.jit
@no_type_check
def _tile(ch, E, N, NP: tl.constexpr):
    """Where the (states, channels) tile lies in a sample's (S, E), and which of its cells exist."""
    n = tl.arange(0, NP)
    return n[:, None] * E + ch[None, :], (n < N)[:, None] & (ch < E)[None, :]


@triton.jit
@no_type_check
def _kept_tile(c, sides, batch, b, ch, E, N, NP: tl.constexpr, together: tl.constexpr):
    """Where the same tile lies in the states kept before chunk c."""
    sample = (c * sides * batch + b) * tl.cdiv(E, together)
    block = (sample + ch // together) * N
    return (block[None, :] + tl.arange(0, NP)[:, None]) * together + (ch % together)[None, :]


@triton.jit
@no_type_check
def _token(i, L, reverse: tl.constexpr):
    """The place in memory of the token that comes i-th in scan order."""
    return tl.cast(L - 1 - i if reverse else i, tl.int64)


@triton.jit
@no_type_check
def _load_step(side, b, ch, i, L, here, bias, reverse: tl.constexpr, is_softplus: tl.constexpr):
    """x, dt + bias, and the step size, which is zero beyond the end."""
    t = _token(i, L, reverse)
    x = load_wide(side.x + b * side.x_b + t * side.x_t + ch, i < here)
    raw = load_wide(side.dt + b * side.dt_b + t * side.dt_t + ch, i < here) + bias
    return x, raw, tl.where(i < here, softplus(raw) if is_softplus else raw, 0.0)


@triton.jit
@no_type_check
def _load_states(pointer, stride_b, stride_t, b, i, L, N, NP: tl.constexpr, reverse: tl.constexpr):
    """B_t or C_t."""
    n = tl.arange(0, NP)
    return load_wide(pointer + b * stride_b + _token(i, L, reverse) * stride_t + n, n < tl.where(i < L, N, 0))


@triton.jit
@no_type_check
def _forward_side(
    side, gate, scale, b, ch, batch, L, E, N,
    first_side: tl.constexpr, last_side: tl.constexpr, sides: tl.constexpr,
    reverse: tl.constexpr, is_softplus: tl.constexpr, T: tl.constexpr, together: tl.constexpr, NP: tl.constexpr,
):  # fmt: skip
    cell, real = _tile(ch, E, N, NP)
    here = tl.where(ch < E, L, 0)  # a channel that does not exist has no tokens
    A = tl.load(side.A + cell, mask=real, other=0.0)
    bias = 0.0 if side.bias is None else tl.load(side.bias + ch, mask=ch < E, other=0.0)
    D = 0.0 if side.D is None else tl.load(side.D + ch, mask=ch < E, other=0.0)
    nothing = tl.zeros(cell.shape, tl.float32)
    h = nothing if side.start is None else tl.load(side.start + b * N * E + cell, mask=real, other=0.0)
    for c in range(tl.cdiv(L, T)):
        if side.kept is not None:
            tl.store(side.kept + _kept_tile(c, sides, batch, b, ch, E, N, NP, together), h, mask=real)
        # all loads of the chunk come before its first store, so that their latency is paid once
        deltas, driven, ys, zs = (), (), (), ()
        for j in tl.static_range(T):
            i = c * T + j
            t = _token(i, L, reverse)
            x, _, delta = _load_step(side, b, ch, i, L, here, bias, reverse, is_softplus)
            y = D * x
            if not first_side:
                y += load_wide(gate.other + (b * L + t) * E + ch, i < here)
            if last_side and gate.z is not None:
                zs = zs + (load_wide(gate.z + b * gate.z_b + t * gate.z_t + ch, i < here),)
            deltas, driven, ys = deltas + (delta,), driven + (delta * x,), ys + (y,)
        sums = ()
        for j in tl.static_range(T):
            B = _load_states(side.B, side.B_b, side.B_t, b, c * T + j, L, N, NP, reverse)
            C = _load_states(side.C, side.C_b, side.C_t, b, c * T + j, L, N, NP, reverse)
            h = tl.exp2(deltas[j][None, :] * A) * h + driven[j][None, :] * B[:, None]
            sums = sums + (ys[j] + tl.sum(h * C[:, None], 0),)
        for j in tl.static_range(T):
            i = c * T + j
            at = (b * L + _token(i, L, reverse)) * E + ch
            if not last_side:
                tl.store(gate.other + at, sums[j], mask=i < here)
            else:
                y = sums[j] * scale
                if gate.z is not None:
                    y *= zs[j] * sigmoid(zs[j])
                tl.store(gate.out + at, y.to(gate.out.dtype.element_ty), mask=i < here)
    if side.last is not None:
        tl.store(side.last + b * N * E + cell, h, mask=real)


@triton.jit
@no_type_check
def selective_scan_fwd_kernel(
    pair, gate, scale, batch, L, E, N,
    sides: tl.constexpr, reverse: tl.constexpr, is_softplus: tl.constexpr,
    T: tl.constexpr, together: tl.constexpr, NP: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    blocks = tl.cdiv(E, BD)
    b = tl.cast(tl.program_id(0) // blocks, tl.int64)
    ch = tl.program_id(0) % blocks * BD + tl.arange(0, BD)
    for g in tl.static_range(sides):
        if g > 0:
            tl.debug_barrier()  # what one direction has left for the next is read by the whole program
        _forward_side(
            pair[g], gate, scale, b, ch, batch, L, E, N,
            g == 0, g == sides - 1, sides, reverse[g], is_softplus, T, together, NP,
        )  # fmt: skip


@triton.jit
@no_type_check
def _load_token(
    side, gate, scale, b, ch, i, L, N, here, bias, reverse: tl.constexpr, is_softplus: tl.constexpr, NP: tl.constexpr
):
    """What the adjoint recurrence needs to know of a token."""
    t = _token(i, L, reverse)
    dout = load_wide(gate.dout + b * gate.dout_b + t * gate.dout_t + ch, i < here) * scale
    z = 0.0 if gate.z is None else load_wide(gate.z + b * gate.z_b + t * gate.z_t + ch, i < here)
    B = _load_states(side.B, side.B_b, side.B_t, b, i, L, N, NP, reverse)
    C = _load_states(side.C, side.C_b, side.C_t, b, i, L, N, NP, reverse)
    x, raw, delta = _load_step(side, b, ch, i, L, here, bias, reverse, is_softplus)
    return x, raw, delta, dout, z, B, C


@triton.jit
@no_type_check
def _backward_side(
    side, gate, scale, b, ch, block, batch, L, E, N,
    first_side: tl.constexpr, last_side: tl.constexpr, sides: tl.constexpr,
    reverse: tl.constexpr, is_softplus: tl.constexpr, T: tl.constexpr, together: tl.constexpr, NP: tl.constexpr,
):  # fmt: skip
    cell, real = _tile(ch, E, N, NP)
    here = tl.where(ch < E, L, 0)
    A = tl.load(side.A + cell, mask=real, other=0.0)
    bias = 0.0 if side.bias is None else tl.load(side.bias + ch, mask=ch < E, other=0.0)
    D = 0.0 if side.D is None else tl.load(side.D + ch, mask=ch < E, other=0.0)
    dA = tl.zeros(cell.shape, tl.float32)
    carried = dA if side.dlast is None else tl.load(side.dlast + b * N * E + cell, mask=real, other=0.0)
    dD = tl.zeros(ch.shape, tl.float32)
    dbias = tl.zeros(ch.shape, tl.float32)
    chunks = tl.cdiv(L, T)
    for back in range(chunks):
        c = chunks - 1 - back
        states = (tl.load(side.kept + _kept_tile(c, sides, batch, b, ch, E, N, NP, together), mask=real, other=0.0),)
        for j in tl.static_range(T - 1):
            x, _, delta = _load_step(side, b, ch, c * T + j, L, here, bias, reverse, is_softplus)
            B = _load_states(side.B, side.B_b, side.B_t, b, c * T + j, L, N, NP, reverse)
            states = states + (tl.exp2(delta[None, :] * A) * states[j] + (delta * x)[None, :] * B[:, None],)
        ahead = _load_token(side, gate, scale, b, ch, c * T + T - 1, L, N, here, bias, reverse, is_softplus, NP)
        for j in tl.static_range(T - 1, -1, -1):
            i = c * T + j
            at = (b * L + _token(i, L, reverse)) * E + ch
            x, raw, delta, dout, z, B, C = ahead
            if j > 0:  # the next loads are under way before this token's arithmetic begins
                ahead = _load_token(side, gate, scale, b, ch, i - 1, L, N, here, bias, reverse, is_softplus, NP)
            decay = tl.exp2(delta[None, :] * A)
            h = decay * states[j] + (delta * x)[None, :] * B[:, None]
            gy = dout
            if gate.z is not None:
                y = D * x + tl.sum(h * C[:, None], 0)
                if not first_side:
                    y += load_wide(gate.other + at, i < here)
                if last_side:
                    to_z = gate.dz + b * gate.dz_b + _token(i, L, reverse) * gate.dz_t + ch
                    tl.store(to_z, (dout * y * silu_slope(z)).to(gate.dz.dtype.element_ty), mask=i < here)
                else:
                    tl.store(gate.other + at, y, mask=i < here)
                gy *= z * sigmoid(z)
            dh = carried + gy[None, :] * C[:, None]
            to_B_and_C = tl.sum(tl.join(dh * (delta * x)[None, :], gy[None, :] * h), 1)  # NP 2
            s = tl.sum(dh * B[:, None], 0)
            carried = dh * decay
            r = carried * states[j]
            dA += r * delta[None, :]
            ddt = s * x + tl.sum(r * A, 0) * LN2
            if is_softplus:
                ddt *= sigmoid(raw)
            dD += gy * x
            dbias += tl.where(i < here, ddt, 0.0)
            tl.store(side.dx + at, (s * delta + D * gy).to(side.dx.dtype.element_ty), mask=i < here)
            tl.store(side.ddt + at, ddt.to(side.ddt.dtype.element_ty), mask=i < here)
            n = tl.arange(0, NP)
            row = (block * batch + b) * L + _token(i, L, reverse)
            place = side.dBC + (row * N + n)[:, None] * 2 + tl.arange(0, 2)[None, :]
            tl.store(place, to_B_and_C, mask=(n < tl.where(i < L, N, 0))[:, None])
    tl.store(side.dA + b * N * E + cell, dA, mask=real)
    tl.store(side.dD + b * E + ch, dD, mask=ch < E)
    tl.store(side.dbias + b * E + ch, dbias, mask=ch < E)
    if side.dstart is not None:
        tl.store(side.dstart + b * N * E + cell, carried, mask=real)


@triton.jit
@no_type_check
def selective_scan_bwd_kernel(
    pair, gate, scale, batch, L, E, N,
    sides: tl.constexpr, reverse: tl.constexpr, is_softplus: tl.constexpr,
    T: tl.constexpr, together: tl.constexpr, NP: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    blocks = tl.cdiv(E, BD)
    block = tl.program_id(0) % blocks
    b = tl.cast(tl.program_id(0) // blocks, tl.int64)
    ch = block * BD + tl.arange(0, BD)
    for g in tl.static_range(sides):
        if g > 0:
            tl.debug_barrier()
        _backward_side(
            pair[g], gate, scale, b, ch, block, batch, L, E, N,
            g == 0, g == sides - 1, sides, reverse[g], is_softplus, T, together, NP,
        )  # fmt: skip


def _sizes(states: int) -> tuple[int, int, int]:
    """States of a tile, its channels, and warps: at most 16 values of the tile per lane.

    With more states than 16, the warps of a program share the states of its channels.
    """
    NP = power_of_two(states)
    warps = min(8, max(1, NP // 16))
    return NP, min(32, 512 * warps // NP), warps


def _side(d: Direction, kept: Tensor | None, **more: Tensor | None) -> _Side:
    per_token = [rows(v) for v in (d.x, d.dt, d.B, d.C)]
    strided = [v for tensor in per_token for v in (tensor, tensor.stride(0), tensor.stride(1))]
    D, bias = (None if p is None else p.contiguous() for p in (d.D, d.bias))
    return _Side(*strided, A=(d.A * math.log2(math.e)).mT.contiguous(), D=D, bias=bias, kept=kept, **more)


def _strided(tensor: Tensor | None) -> tuple[Tensor | None, int, int]:
    """A (batch, L, E) tensor where it lies, with the strides of samples and tokens."""
    if tensor is None:
        return None, 0, 0
    tensor = rows(tensor)
    return tensor, tensor.stride(0), tensor.stride(1)


def _turned(states: Tensor | None, g: int) -> Tensor | None:
    """One direction of (directions, batch, E, S) states, as (batch, S, E)."""
    return None if states is None else states[g].mT.contiguous()


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
    """See ``cpu.forward``."""
    x, sides = directions[0].x, len(directions)
    (batch, L, E), N = x.shape, directions[0].A.shape[1]

    def new(*shape: int) -> Tensor:
        return x.new_empty(shape, dtype=torch.float32)

    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    kept = new(*kept_states(x, N, E, (sides,))) if keep else new(0)
    if E % KEPT_TOGETHER:
        kept.zero_()
    last = [new(batch, N, E) if end else None for _ in directions]
    pair = tuple(_side(d, kept[:, g] if keep else None, start=_turned(h0, g), last=last[g]) for g, d in enumerate(directions))
    gate = _Gate(*_strided(z), other=new(batch, L, E) if sides > 1 else None, out=out)
    NP, BD, warps = _sizes(N)
    launch(
        selective_scan_fwd_kernel, batch * math.ceil(E / BD), x, pair, gate, scale, batch, L, E, N,
        sides=sides, reverse=tuple(reverse), is_softplus=softplus,
        T=chunk_on(x.device), together=KEPT_TOGETHER, NP=NP, BD=BD, warps=warps,
    )  # fmt: skip
    return out, torch.stack([h for h in last if h is not None]).mT.contiguous() if end else None, kept


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
    """See ``cpu.backward``."""
    if kept is None:
        _, _, kept = forward(directions, reverse, z, h0, softplus=softplus, scale=scale, keep=True)
    x, sides = directions[0].x, len(directions)
    (batch, L, E), N = x.shape, directions[0].A.shape[1]
    NP, BD, warps = _sizes(N)
    blocks = math.ceil(E / BD)

    def new(*shape: int) -> Tensor:
        return x.new_empty(shape, dtype=torch.float32)

    def like(tensor: Tensor) -> Tensor:
        return torch.empty(tensor.shape, dtype=tensor.dtype, device=tensor.device)

    pair = tuple(
        _side(
            d,
            kept[:, g],
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
    )
    dz = like(z) if dz is None and z is not None else dz
    other = new(batch, L, E) if sides > 1 and z is not None else None
    gate = _Gate(*_strided(z), other, None, *_strided(dout), *_strided(dz))
    launch(
        selective_scan_bwd_kernel, batch * blocks, x, pair, gate, scale, batch, L, E, N,
        sides=sides, reverse=tuple(reverse), is_softplus=softplus,
        T=chunk_on(x.device), together=KEPT_TOGETHER, NP=NP, BD=BD, warps=warps,
    )  # fmt: skip
    gradients = []
    for d, side in zip(directions, pair, strict=True):
        dB, dC = (v.to(x.dtype, copy=True).contiguous() for v in side.dBC.sum(0).unbind(-1))
        dD, dbias = (None if p is None else v.sum(0) for p, v in ((d.D, side.dD), (d.bias, side.dbias)))
        dA = side.dA.sum(0).mT.contiguous()
        gradients.append(Direction(side.dx, side.ddt, dA, dB, dC, dD, dbias))
    dh0 = None if h0 is None else torch.stack([side.dstart for side in pair]).mT.contiguous()
    return gradients, dz, dh0
