"""The selective scan through the compiled kernel: same arguments and results as ``cpu.py``, in one pass over memory.

The kernel divides a scan into slots of samples and strips of channels, by the shape alone, and returns one partial sum of the
parameters' gradients per slot, and of dB and dC per strip; they are added here, always in the same order. So results are the
same to the bit for any number of threads. Kept states have the layout of ``cpu.py``.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from hybridmap.ops import native
from hybridmap.ops.selective_scan.cpu import KEPT_TOGETHER, kept_states
from hybridmap.ops.selective_scan.reference import Direction

_pointer, _integer = ctypes.c_void_p, ctypes.c_int64


class _Direction(ctypes.Structure):
    """struct Direction of hybridmap.cpp."""

    _fields_ = [
        *((name, _pointer) for name in ("x", "dt", "B", "C", "A", "D", "bias", "start", "last", "dx", "ddt", "dB", "dC", "dA")),
        *((name, _pointer) for name in ("dD", "dbias", "dlast", "dstart")),
        *((name, _integer) for name in ("x_b", "x_t", "dt_b", "dt_t", "B_b", "B_t", "C_b", "C_t", "reverse")),
    ]


class _Scan(ctypes.Structure):
    """struct Scan of hybridmap.cpp."""

    _fields_ = [
        *((name, _integer) for name in ("batch", "length", "channels", "states", "directions", "softplus", "dtype")),
        *((name, _integer) for name in ("slots", "strips", "strip")),
        *((name, _pointer) for name in ("z", "dout", "out", "dz", "kept")),
        *((name, _integer) for name in ("z_b", "z_t", "dout_b", "dout_t", "dz_b", "dz_t")),
        ("scale", ctypes.c_double),
        ("failed", _integer),
        ("direction", _Direction * 2),
    ]


class _Call:
    """One call's struct, filled, and the tensors that must live as long as it."""

    def __init__(
        self, directions: Sequence[Direction], reverse: Sequence[bool], z: Tensor | None, softplus: bool, scale: float
    ) -> None:
        x, A = directions[0].x, directions[0].A
        self.batch, self.length, self.channels = x.shape
        self.states = A.shape[1]
        self.new = x.new_empty
        self.alive: list[Tensor] = []
        self.slots, self.strips, strip = native.division(self.batch, self.channels, self.length)
        self.scan = _Scan(
            batch=self.batch,
            length=self.length,
            channels=self.channels,
            states=self.states,
            directions=len(directions),
            softplus=softplus,
            dtype=native.DTYPES[x.dtype],
            slots=self.slots,
            strips=self.strips,
            strip=strip,
            scale=scale,
        )
        self.read(self.scan, "z", z)
        for into, d, backwards in zip(self.scan.direction, directions, reverse, strict=False):
            into.reverse = backwards
            for name in ("x", "dt", "B", "C"):
                self.read(into, name, getattr(d, name))
            self.point(into, "A", (d.A * math.log2(math.e)).mT)
            self.point(into, "D", d.D)
            self.point(into, "bias", d.bias)

    def read(self, struct: ctypes.Structure, name: str, tensor: Tensor | None) -> None:
        """Let the struct read a (batch, L, K) tensor, or write to it, where it lies."""
        if tensor is not None:
            tensor = native.rows(tensor)
            self.alive.append(tensor)
            setattr(struct, name, tensor.data_ptr())
            setattr(struct, f"{name}_b", tensor.stride(0))
            setattr(struct, f"{name}_t", tensor.stride(1))

    def point(self, struct: ctypes.Structure, name: str, tensor: Tensor | None) -> None:
        """Let the struct point to a tensor, made contiguous."""
        if tensor is not None:
            tensor = tensor.contiguous()
            self.alive.append(tensor)
            setattr(struct, name, tensor.data_ptr())

    def made(self, struct: ctypes.Structure, name: str, *shape: int, narrow: bool = False) -> Tensor:
        """A new tensor that the kernel fills, float32 unless ``narrow``."""
        tensor = self.new(shape) if narrow else self.new(shape, dtype=torch.float32)
        setattr(struct, name, tensor.data_ptr())
        self.alive.append(tensor)
        return tensor

    def run(self, function: str) -> None:
        native.parallel(getattr(native.library().functions, function), self.slots * self.strips, self.scan)


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
    call = _Call(directions, reverse, z, softplus, scale)
    B, L, E, N = call.batch, call.length, call.channels, call.states
    out = call.made(call.scan, "out", B, L, E, narrow=True)
    shape = kept_states(directions[0].x, N, E, (len(directions),))
    kept = call.made(call.scan, "kept", *shape) if keep else out.new_empty(0, dtype=torch.float32)
    if E % KEPT_TOGETHER:
        kept.zero_()
    ends = []
    for g in range(len(directions)):
        call.point(call.scan.direction[g], "start", None if h0 is None else h0[g].mT)
        if end:
            ends.append(call.made(call.scan.direction[g], "last", B, N, E))
    call.run("hybridmap_scan_forward")
    return out, torch.stack(ends).mT.contiguous() if end else None, kept


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
    call = _Call(directions, reverse, z, softplus, scale)
    B, L, E, N = call.batch, call.length, call.channels, call.states
    call.read(call.scan, "dout", dout)
    call.point(call.scan, "kept", kept)
    if z is not None:
        dz = z.new_empty(B, L, E) if dz is None else dz
        call.read(call.scan, "dz", dz)
    filled: list[tuple[Tensor, ...]] = []
    starts = []
    for g in range(len(directions)):
        into = call.scan.direction[g]
        dx, ddt = (call.made(into, name, B, L, E, narrow=True) for name in ("dx", "ddt"))
        dB, dC = (call.made(into, name, call.strips, B, L, N) for name in ("dB", "dC"))
        dA = call.made(into, "dA", call.slots, N, E)
        dD, dbias = (call.made(into, name, call.slots, E) for name in ("dD", "dbias"))
        filled.append((dx, ddt, dA, dB, dC, dD, dbias))
        call.point(into, "dlast", None if dlast is None else dlast[g].mT)
        if h0 is not None:
            starts.append(call.made(into, "dstart", B, N, E))
    call.run("hybridmap_scan_backward")
    gradients = []
    for d, (dx, ddt, dA, dB, dC, dD, dbias) in zip(directions, filled, strict=True):
        to_B, to_C = (v[0].to(d.x.dtype) if call.strips == 1 else v.sum(0).to(d.x.dtype) for v in (dB, dC))
        to_D, to_bias = (None if p is None else v.sum(0) for p, v in ((d.D, dD), (d.bias, dbias)))
        gradients.append(Direction(dx, ddt, dA.sum(0).mT.contiguous(), to_B, to_C, to_D, to_bias))
    return gradients, dz, torch.stack(starts).mT.contiguous() if starts else None
