"""The selective scan in plain PyTorch, without a compiler: the fallback everywhere, and the meeting point of all tests.

The buffers of a chunk lie in memory as (T tokens, rows, S, E), a row being one direction of one sample, with the channels
innermost: so every elementwise operation streams over contiguous channels, the sums over states (y, and dx's share of B) and
over channels (dB, dC) are batched matrix products, and one token of the recurrence is ONE call, for all rows at once.

    per block of samples, small enough for its buffers to stay in the cache:
        per chunk of T tokens, in scan order:      decay = exp2(delta A log2 e)                         T rows S E
                                                   state = delta x (outer) B                            T rows S E
                                                   state[t] += decay[t] * state[t-1]                    token by token
                                                   y = C . state + D x                                  T rows E

Only the state before each chunk is kept for the backward pass, which recomputes a chunk's states and then runs the
adjoint recurrence (README.md) through the same buffers. Both directions of a layer walk side by side: the reverse one is
turned around when its inputs, which are S times smaller than its states, are copied to the order of the scan.

``exp2`` because it is three times faster than ``exp`` on CPUs where the latter goes through a vendor's library; sums over
one axis at a time, because a sum over two that do not lie together is many times slower.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from hybridmap.ops.selective_scan.reference import Direction

CHUNK = 16
"""T: tokens between two kept states."""
KEPT_TOGETHER = 16
"""Channels whose kept states lie together, so that a compiled kernel writes a few lines of memory and not one per state."""
_CACHED = 1 << 19
"""Elements of one chunk buffer per thread of a CPU (2 MB in float32); as many samples share a block as fit."""
_MOST_THREADS = 8
"""Beyond these the buffers grow no further."""
_LARGE = 1 << 26
"""The same on any other device, where the cost is the launch and not the cache."""


def kept_states(x: Tensor, states: int, channels: int, directions: tuple[int, ...] = ()) -> tuple[int, ...]:
    """Shape of what the scan of (batch, L, E) tokens keeps for its backward pass: the state before every chunk.

    (chunks, directions, batch, blocks, S, 16): the channels in blocks, the last one filled up with zeros.
    """
    chunks = (x.shape[1] + CHUNK - 1) // CHUNK
    blocks = (channels + KEPT_TOGETHER - 1) // KEPT_TOGETHER
    return chunks, *directions, x.shape[0], blocks, states, KEPT_TOGETHER


def _in_blocks(states: Tensor) -> Tensor:
    """(..., S, E) as it is kept: (..., blocks, S, 16)."""
    return F.pad(states, (0, -states.shape[-1] % KEPT_TOGETHER)).unflatten(-1, (-1, KEPT_TOGETHER)).movedim(-2, -3)


def _out_of_blocks(kept: Tensor, width: int) -> Tensor:
    """The other way round."""
    return kept.movedim(-3, -2).flatten(-2)[..., :width]


class _Scan:
    """One call's constants and buffers, and the two steps that the forward and the backward pass share."""

    def __init__(self, directions: Sequence[Direction], reverse: Sequence[bool], softplus: bool, buffers: int) -> None:
        x, A = directions[0].x, directions[0].A
        self.directions, self.reverse, self.softplus = directions, reverse, softplus
        self.batch, self.length, self.width = x.shape
        self.states = A.shape[1]
        self.wide = torch.promote_types(x.dtype, torch.float32)
        self.device = x.device
        self.chunk = min(CHUNK, max(self.length, 1))
        per_sample = max(self.chunk * len(directions) * self.states * self.width, 1)
        budget = _CACHED * min(torch.get_num_threads(), _MOST_THREADS) if x.device.type == "cpu" else _LARGE
        most = max(1, budget // per_sample)
        self.block = max(1, math.ceil(self.batch / math.ceil(self.batch / most))) if self.batch else 1
        self.scratch = self.new(buffers, self.block * per_sample)
        self.A = torch.stack([d.A.to(self.wide).mT for d in directions]).unsqueeze(1)  # directions 1 S E
        self.A_log2 = self.A * math.log2(math.e)
        self.D = self._stack([d.D for d in directions])
        self.bias = self._stack([d.bias for d in directions])

    def _stack(self, parameters: list[Tensor | None]) -> Tensor | None:
        """Stack one parameter of every direction to (directions, 1, E), with zeros where it is None; None if all are."""
        present = [p for p in parameters if p is not None]
        if not present:
            return None
        return torch.stack([torch.zeros_like(present[0]) if p is None else p for p in parameters]).to(self.wide).unsqueeze(1)

    def new(self, *shape: int) -> Tensor:
        return torch.empty(shape, dtype=self.wide, device=self.device)

    def start(self, states: Tensor | None) -> Tensor:
        """A copy of (directions, batch, E, S) states, or zeros; what an empty scan ends with."""
        fresh = self.new(len(self.directions), self.batch, self.width, self.states)
        return fresh.zero_() if states is None else fresh.copy_(states)

    def states_of(self, states: Tensor | None, rows: slice) -> Tensor:
        """The states of a block of samples as the buffers have them, (directions, samples, S, E), to be written to."""
        fresh = self.new(len(self.directions), rows.stop - rows.start, self.states, self.width)
        return fresh.zero_() if states is None else fresh.copy_(states[:, rows].mT)

    def blocks(self) -> list[slice]:
        firsts = range(0, self.batch, self.block) if self.length else ()
        return [slice(first, min(first + self.block, self.batch)) for first in firsts]

    def chunks(self) -> list[slice]:
        return [slice(first, min(first + self.chunk, self.length)) for first in range(0, self.length, self.chunk)]

    def buffers(self, tokens: slice, samples: int) -> list[Tensor]:
        """Contiguous (tokens, directions, samples, S, E) views of the scratch memory, the same memory for every chunk."""
        shape = (tokens.stop - tokens.start, len(self.directions), samples, self.states, self.width)
        return [buffer[: math.prod(shape)].view(shape) for buffer in self.scratch.unbind(0)]

    def load(self, tensors: Sequence[Tensor]) -> Tensor:
        """Copy one (samples, L, K) tensor per direction to (L, directions, samples, K), in scan order and wide."""
        into = self.new(self.length, len(tensors), tensors[0].shape[0], tensors[0].shape[2])
        for values, column, reverse in zip(tensors, into.unbind(1), self.reverse, strict=True):
            column.copy_((values.flip(1) if reverse else values).transpose(0, 1))
        return into

    def store(self, values: Tensor, into: Sequence[Tensor], rows: slice) -> None:
        """Write (L, directions, samples, K) in scan order to the rows of one (batch, L, K) tensor per direction."""
        for column, target, reverse in zip(values.unbind(1), into, self.reverse, strict=True):
            target[rows] = (column.flip(0) if reverse else column).transpose(0, 1)

    def total(self, values: Tensor) -> Tensor:
        """Add the directions of (L, directions, samples, E) token by token: (samples, L, E) in memory order."""
        parts = [v.flip(0) if reverse else v for v, reverse in zip(values.unbind(1), self.reverse, strict=True)]
        return sum(parts[1:], start=parts[0]).transpose(0, 1)

    def inputs(self, rows: slice) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Return (x, B, C, raw, delta) of a block, in scan order; raw is what softplus turns into the step size delta."""
        x, raw = self.load([d.x[rows] for d in self.directions]), self.load([d.dt[rows] for d in self.directions])
        B, C = self.load([d.B[rows] for d in self.directions]), self.load([d.C[rows] for d in self.directions])
        if self.bias is not None:
            raw += self.bias
        return x, B, C, raw, F.softplus(raw) if self.softplus else raw

    def run(self, delta: Tensor, dx: Tensor, B: Tensor, before: Tensor, decay: Tensor, state: Tensor) -> None:
        """Fill a chunk's ``decay`` and ``state`` buffers, given the state before it; ``dx`` is delta * x."""
        torch.mul(delta.unsqueeze(-2), self.A_log2, out=decay)
        torch.exp2(decay, out=decay)
        torch.mul(dx.unsqueeze(-2), B.unsqueeze(-1), out=state)
        for now, a in zip(state.unbind(0), decay.unbind(0), strict=True):
            now.addcmul_(a, before)
            before = now


def _contract(left: Tensor, right: Tensor, out: Tensor) -> None:
    """Per token and row a vector times a matrix: (..., K) and (..., K, M) -> out (..., M), as one batched product."""
    torch.bmm(left.flatten(0, -2).unsqueeze(1), right.flatten(0, -3), out=out.flatten(0, -2).unsqueeze(1))


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
    """Scan every direction, add them, gate and scale once; return (out, last, kept).

    ``h0`` and ``last`` are (directions, batch, E, S), the latter None unless the ``end`` is asked for; ``kept``, the state
    before each chunk, has the shape ``kept_states``, or no elements without ``keep``.
    """
    scan = _Scan(directions, reverse, softplus, buffers=2)
    out = torch.empty(directions[0].x.shape, dtype=directions[0].x.dtype, device=scan.device)
    last = scan.start(h0) if end else None
    shape = kept_states(directions[0].x, scan.states, scan.width, (len(directions),)) if keep else (0,)
    kept = scan.new(*shape)
    for rows in scan.blocks():
        x, B, C, _, delta = scan.inputs(rows)
        dx = delta * x
        y = torch.empty_like(x)
        before = scan.states_of(h0, rows)  # directions samples S E
        for c, tokens in enumerate(scan.chunks()):
            decay, state = scan.buffers(tokens, before.shape[1])
            if keep:
                kept[c, :, rows] = _in_blocks(before)
            scan.run(delta[tokens], dx[tokens], B[tokens], before, decay, state)
            before.copy_(state[-1])
            _contract(C[tokens], state, y[tokens])
        if last is not None:
            last[:, rows] = before.mT
        if scan.D is not None:
            y.addcmul_(x, scan.D)
        total = scan.total(y)
        if z is not None:
            total = F.silu(z[rows].to(scan.wide)).mul_(total)
        out[rows] = total * scale if scale != 1.0 else total
    return out, last, kept


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
    """Return the gradients of every direction's tensors, of z, and of h0; ``dlast`` is (directions, batch, E, S).

    Without the ``kept`` states of the forward pass, they are computed again. The gradient of z is written into ``dz`` if given.
    """
    if kept is None:
        _, _, kept = forward(directions, reverse, z, h0, softplus=softplus, scale=scale, keep=True)
    scan = _Scan(directions, reverse, softplus, buffers=3)
    like = [[torch.empty(v.shape, dtype=v.dtype, device=scan.device) for v in (d.x, d.dt, d.B, d.C)] for d in directions]
    to_x, to_dt, to_B, to_C = zip(*like, strict=True)
    if z is not None and dz is None:
        dz = torch.empty(z.shape, dtype=z.dtype, device=scan.device)
    dh0 = None if h0 is None else scan.start(dlast)
    dA = torch.zeros_like(scan.A).squeeze(1)  # directions S E
    dD, dbias = scan.new(2, len(directions), scan.width).zero_()
    for rows in scan.blocks():
        x, B, C, raw, delta = scan.inputs(rows)
        dx = delta * x
        gate = None if z is None else z[rows].to(scan.wide)
        dtotal = dout[rows].to(scan.wide) * scale  # samples L E
        gy = scan.load([dtotal if gate is None else dtotal * F.silu(gate)] * len(directions))
        y, s, q = (torch.empty_like(x) for _ in range(3))  # L directions samples E
        dB, dC = torch.empty_like(B), torch.empty_like(C)
        after = scan.states_of(dlast, rows)  # directions samples S E
        dA_rows = torch.zeros_like(after)
        for c, tokens in reversed(list(enumerate(scan.chunks()))):
            a, h, dh = scan.buffers(tokens, after.shape[1])
            before = _out_of_blocks(kept[c, :, rows], scan.width)
            scan.run(delta[tokens], dx[tokens], B[tokens], before, a, h)
            if gate is not None:
                _contract(C[tokens], h, y[tokens])
            _contract(gy[tokens], h.mT, dC[tokens])
            torch.mul(gy[tokens].unsqueeze(-2), C[tokens].unsqueeze(-1), out=dh)
            decays, adjoints = a.unbind(0), dh.unbind(0)
            adjoints[-1].add_(after)
            for t in range(len(adjoints) - 2, -1, -1):
                adjoints[t].addcmul_(decays[t + 1], adjoints[t + 1])
            torch.mul(adjoints[0], decays[0], out=after)
            _contract(B[tokens], dh, s[tokens])
            _contract(dx[tokens], dh.mT, dB[tokens])
            # from here on ``a`` is dh_t a_t h_{t-1}, what reaches the exponent delta A
            a[1:].mul_(h[:-1])
            a[0].mul_(before)
            a.mul_(dh)
            torch.mul(a, scan.A, out=h)
            torch.sum(h, -2, out=q[tokens])
            dA_rows += a.mul_(delta[tokens].unsqueeze(-2)).sum(0)
        dA += dA_rows.sum(1)
        if dh0 is not None:
            dh0[:, rows] = after.mT
        if gate is not None:
            assert dz is not None
            if scan.D is not None:
                y.addcmul_(x, scan.D)
            dz[rows] = torch.ops.aten.silu_backward(dtotal * scan.total(y), gate)
        q.addcmul_(s, x)
        ddt = torch.ops.aten.softplus_backward(q, raw, 1, 20) if softplus else q
        s *= delta
        if scan.D is not None:
            s.addcmul_(gy, scan.D)
            dD += (gy * x).sum(0).sum(1)
        if scan.bias is not None:
            dbias += ddt.sum(0).sum(1)
        for values, into in ((s, to_x), (ddt, to_dt), (dB, to_B), (dC, to_C)):
            scan.store(values, into, rows)
    gradients = [
        Direction(
            to_x[g],
            to_dt[g],
            dA[g].mT.clone(memory_format=torch.contiguous_format),
            to_B[g],
            to_C[g],
            None if d.D is None else dD[g].clone(),
            None if d.bias is None else dbias[g].clone(),
        )
        for g, d in enumerate(directions)
    ]
    return gradients, dz, dh0
