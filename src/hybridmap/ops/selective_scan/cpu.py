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
adjoint recurrence (README.md) through the same three buffers. Both directions of a layer walk side by side: the reverse one
is turned around when a chunk of its inputs, which are S times smaller than its states, is copied into the buffers.

``exp2`` because it is three times faster than ``exp`` on CPUs where the latter goes through a vendor's library.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

CHUNK = 16
"""T: tokens between two kept states."""
_CACHED = 1 << 20
"""Elements of one chunk buffer on a CPU (4 MB in float32); as many samples share a block as fit."""
_LARGE = 1 << 26
"""The same on any other device, where the cost is the launch and not the cache."""


class Direction(NamedTuple):
    """What one direction of a layer scans with; shapes as in ``hybridmap.ops.selective_scan``."""

    x: Tensor
    dt: Tensor
    A: Tensor
    B: Tensor
    C: Tensor
    D: Tensor | None = None
    bias: Tensor | None = None


class Gradients(NamedTuple):
    """The gradients of one direction's tensors; zero-size for an argument that was None."""

    x: Tensor
    dt: Tensor
    A: Tensor
    B: Tensor
    C: Tensor
    D: Tensor
    bias: Tensor


class _Scan:
    """One call's constants and buffers, and the two steps that the forward and the backward pass share."""

    def __init__(self, directions: list[Direction], reverse: list[bool], softplus: bool) -> None:
        first = directions[0]
        self.directions, self.reverse, self.softplus = directions, reverse, softplus
        self.batch, self.length, self.width = first.x.shape
        self.states = first.A.shape[1]
        self.wide = torch.promote_types(first.x.dtype, torch.float32)
        self.chunk = min(CHUNK, max(self.length, 1))
        per_sample = max(self.chunk * len(directions) * self.states * self.width, 1)
        budget = _CACHED if first.x.device.type == "cpu" else _LARGE
        self.block = max(1, min(self.batch, budget // per_sample))
        self.A = self._stack([d.A.mT for d in directions])  # directions 1 S E
        self.A_log2 = self.A * math.log2(math.e)
        self.D = self._stack([d.D for d in directions])  # directions 1 E
        self.bias = self._stack([d.bias for d in directions])

    def _stack(self, parameters: list[Tensor | None]) -> Tensor | None:
        present = [p for p in parameters if p is not None]
        if not present:
            return None
        return torch.stack([torch.zeros_like(present[0]) if p is None else p for p in parameters]).to(self.wide).unsqueeze(1)

    def new(self, *shape: int) -> Tensor:
        return torch.empty(shape, dtype=self.wide, device=self.directions[0].x.device)

    def blocks(self) -> list[slice]:
        return [slice(first, min(first + self.block, self.batch)) for first in range(0, self.batch, self.block)]

    def chunks(self) -> list[tuple[int, int]]:
        return [(first, min(first + self.chunk, self.length)) for first in range(0, self.length, self.chunk)]

    def where(self, g: int, begin: int, end: int) -> slice:
        """The memory positions of the tokens [begin, end) of direction g's scan order."""
        return slice(self.length - end, self.length - begin) if self.reverse[g] else slice(begin, end)

    def load(self, tensors: list[Tensor], rows: slice, begin: int, end: int) -> Tensor:
        """Copy a chunk, one (batch, L, K) tensor per direction, into (tokens, directions, samples, K), in scan order."""
        parts = [v[rows, self.where(g, begin, end)].transpose(0, 1) for g, v in enumerate(tensors)]
        into = self.new(end - begin, len(parts), *parts[0].shape[1:])
        for g, part in enumerate(parts):
            into[:, g].copy_(part.flip(0) if self.reverse[g] else part)
        return into

    def store(self, values: Tensor, into: list[Tensor], rows: slice, begin: int, end: int, *, add: bool = False) -> None:
        """The inverse of ``load``: write, or add, a chunk of results to the directions' tensors."""
        for g, target in enumerate(into):
            part = values[:, g].flip(0) if self.reverse[g] else values[:, g]
            view = target[rows, self.where(g, begin, end)]
            (view.add_ if add else view.copy_)(part.transpose(0, 1))

    def step_sizes(self, rows: slice, begin: int, end: int) -> tuple[Tensor, Tensor]:
        """Return (raw, delta): the input of softplus and the step size, (tokens, directions, samples, E)."""
        raw = self.load([d.dt for d in self.directions], rows, begin, end)
        if self.bias is not None:
            raw += self.bias
        return raw, F.softplus(raw) if self.softplus else raw

    def run(self, delta: Tensor, x: Tensor, B: Tensor, carried: Tensor, decay: Tensor, state: Tensor) -> Tensor:
        """Fill the chunk's ``decay`` and ``state`` buffers from the state before it; return delta * x."""
        assert self.A_log2 is not None
        torch.mul(delta.unsqueeze(-2), self.A_log2, out=decay)
        torch.exp2(decay, out=decay)
        dx = delta * x
        torch.mul(dx.unsqueeze(-2), B.unsqueeze(-1), out=state)
        before = carried
        for now, a in zip(state.unbind(0), decay.unbind(0), strict=True):
            now.addcmul_(a, before)
            before = now
        return dx


def _rows_times(left: Tensor, right: Tensor) -> Tensor:
    """Per token and row a vector times a matrix: (..., K) and (..., K, M) -> (..., M), as one batched product."""
    product = torch.bmm(left.reshape(-1, 1, left.shape[-1]), right.flatten(0, -3))
    return product.view(*left.shape[:-1], right.shape[-1])


def forward(
    directions: list[Direction], reverse: list[bool], z: Tensor | None, h0: Tensor | None, softplus: bool, scale: float, keep: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Scan every direction, add them, gate and scale once.

    ``h0`` and the returned last state are (directions, batch, E, S); the returned ``kept`` states are
    (chunks, directions, batch, S, E), zero-size unless ``keep``.
    """
    scan = _Scan(directions, reverse, softplus)
    x0, G = directions[0].x, len(directions)
    out = torch.empty(x0.shape, dtype=x0.dtype, device=x0.device)
    last = scan.new(G, scan.batch, scan.width, scan.states)
    kept = scan.new(len(scan.chunks()), G, scan.batch, scan.states, scan.width) if keep else scan.new(0)
    buffers = scan.new(2, scan.chunk, G, scan.block, scan.states, scan.width)
    for rows in scan.blocks():
        samples = rows.stop - rows.start
        carried = scan.new(G, samples, scan.states, scan.width)
        carried.zero_() if h0 is None else carried.copy_(h0[:, rows].mT)
        y = scan.new(samples, scan.length, scan.width).zero_()
        for c, (begin, end) in enumerate(scan.chunks()):
            if keep:
                kept[c, :, rows] = carried
            decay, state = buffers[:, : end - begin, :, :samples]
            x = scan.load([d.x for d in directions], rows, begin, end)
            B, C = (scan.load([d[i] for d in directions], rows, begin, end) for i in (3, 4))
            _, delta = scan.step_sizes(rows, begin, end)
            scan.run(delta, x, B, carried, decay, state)
            carried.copy_(state[-1])
            part = _rows_times(C, state)  # tokens directions samples E
            if scan.D is not None:
                part.addcmul_(x, scan.D)
            scan.store(part, [y] * G, slice(None), begin, end, add=True)
        if z is not None:
            y *= F.silu(z[rows].to(scan.wide))
        out[rows] = y.mul_(scale) if scale != 1.0 else y
        last[:, rows] = carried.mT
    return out, last, kept


def backward(
    dout: Tensor,
    dlast: Tensor | None,
    kept: Tensor,
    directions: list[Direction],
    reverse: list[bool],
    z: Tensor | None,
    has_h0: bool,
    softplus: bool,
    scale: float,
) -> tuple[list[Gradients], Tensor, Tensor]:
    """Return the gradients of every direction, of z, and of h0 (the latter two zero-size where there is none)."""
    scan = _Scan(directions, reverse, softplus)
    G, device = len(directions), dout.device
    assert scan.A is not None
    grads = [
        Gradients(
            *(torch.empty(v.shape, dtype=v.dtype, device=device) for v in (d.x, d.dt)),
            torch.zeros(d.A.shape, dtype=scan.wide, device=device),
            *(torch.empty(v.shape, dtype=v.dtype, device=device) for v in (d.B, d.C)),
            *(torch.zeros(0 if v is None else scan.width, dtype=scan.wide, device=device) for v in (d.D, d.bias)),
        )
        for d in directions
    ]
    dz = torch.empty(0 if z is None else z.shape, dtype=dout.dtype, device=device)
    dh0 = scan.new(G, scan.batch, scan.width, scan.states) if has_h0 else scan.new(0)
    dA = torch.zeros_like(scan.A)  # directions 1 S E
    dD, dbias = (scan.new(G, scan.width).zero_() for _ in range(2))
    buffers = scan.new(3, scan.chunk, G, scan.block, scan.states, scan.width)
    for rows in scan.blocks():
        samples = rows.stop - rows.start
        gy = dout[rows].to(scan.wide)
        if scale != 1.0:
            gy = gy * scale
        dgate = gy
        if z is not None:
            gate = z[rows].to(scan.wide)
            gy = gy * F.silu(gate)
        y = None if z is None else torch.zeros_like(gy)
        carried = scan.new(G, samples, scan.states, scan.width)
        carried.zero_() if dlast is None else carried.copy_(dlast[:, rows].mT)
        dA_rows = torch.zeros_like(carried)
        for c, (begin, end) in reversed(list(enumerate(scan.chunks()))):
            a, h, dh = buffers[:, : end - begin, :, :samples]
            x = scan.load([d.x for d in directions], rows, begin, end)
            B, C = (scan.load([d[i] for d in directions], rows, begin, end) for i in (3, 4))
            raw, delta = scan.step_sizes(rows, begin, end)
            before = kept[c, :, rows]
            dx = scan.run(delta, x, B, before, a, h)
            g = scan.load([gy] * G, slice(None), begin, end)
            if y is not None:
                part = _rows_times(C, h)
                if scan.D is not None:
                    part.addcmul_(x, scan.D)
                scan.store(part, [y] * G, slice(None), begin, end, add=True)
            scan.store(_rows_times(g, h.mT), [d.C for d in grads], rows, begin, end)
            # the adjoint recurrence: dh_t = gy_t C_t + a_{t+1} dh_{t+1}
            torch.mul(g.unsqueeze(-2), C.unsqueeze(-1), out=dh)
            dhs, decays = dh.unbind(0), a.unbind(0)
            dhs[-1].add_(carried)
            for t in range(end - begin - 2, -1, -1):
                dhs[t].addcmul_(decays[t + 1], dhs[t + 1])
            torch.mul(dhs[0], decays[0], out=carried)
            scan.store(_rows_times(dx, dh.mT), [d.B for d in grads], rows, begin, end)
            s = _rows_times(B, dh)  # tokens directions samples E
            # a becomes P_t = dh_t a_t h_{t-1}
            a[1:].mul_(h[:-1])
            a[0].mul_(before)
            a.mul_(dh)
            torch.mul(a, scan.A, out=h)
            q = h.sum(-2)  # tokens directions samples E
            for now, step in zip(decays, delta.unsqueeze(-2).unbind(0), strict=True):
                dA_rows.addcmul_(now, step)
            ddt = q.addcmul_(s, x)
            if softplus:
                ddt = torch.ops.aten.softplus_backward(ddt, raw, 1, 20)
            dbias += ddt.sum((0, 2))
            scan.store(ddt, [d.dt for d in grads], rows, begin, end)
            s *= delta
            if scan.D is not None:
                s.addcmul_(g, scan.D)
                dD += (g * x).sum((0, 2))
            scan.store(s, [d.x for d in grads], rows, begin, end)
        dA += dA_rows.sum(1, keepdim=True)
        if z is not None:
            dz[rows] = torch.ops.aten.silu_backward(dgate.mul_(y) if dgate is not dout else dgate * y, gate)
        if has_h0:
            dh0[:, rows] = carried.mT
    for g, grad in enumerate(grads):
        grad.A.copy_(dA[g, 0].mT)
        for mine, all_ in ((grad.D, dD), (grad.bias, dbias)):
            if mine.numel():
                mine.copy_(all_[g])
    return grads, dz, dh0
