"""The causal convolution through the compiled kernel, in memory order; arguments and results are those of ``cpu.py``."""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from hybridmap.ops import native

_pointer, _integer = ctypes.c_void_p, ctypes.c_int64


class _Conv(ctypes.Structure):
    """struct Conv of hybridmap.cpp."""

    _fields_ = [
        *((name, _integer) for name in ("batch", "length", "channels", "taps", "silu", "reverse", "dtype", "add")),
        *((name, _integer) for name in ("slots", "strips", "strip")),
        *((name, _pointer) for name in ("x", "dout", "w", "bias", "out", "dx", "dw", "db")),
        *((name, _integer) for name in ("x_b", "x_t", "dout_b", "dout_t", "dx_b", "dx_t")),
        ("failed", _integer),
    ]


def _call(x: Tensor, w: Tensor, b: Tensor | None, silu: bool, reverse: bool) -> tuple[_Conv, list[Tensor]]:
    """The struct, and what must live as long as it."""
    x, taps = native.rows(x), w.mT.contiguous()
    batch, length, channels = x.shape
    slots, strips, strip = native.division(batch, channels)
    conv = _Conv(
        batch=batch,
        length=length,
        channels=channels,
        taps=w.shape[1],
        silu=silu,
        reverse=reverse,
        dtype=native.DTYPES[x.dtype],
        slots=slots,
        strips=strips,
        strip=strip,
        x=x.data_ptr(),
        w=taps.data_ptr(),
        x_b=x.stride(0),
        x_t=x.stride(1),
    )
    bias = None if b is None else b.contiguous()
    if bias is not None:
        conv.bias = bias.data_ptr()
    return conv, [x, taps, *([] if bias is None else [bias])]


def forward(x: Tensor, w: Tensor, b: Tensor | None, silu: bool, reverse: bool) -> Tensor:
    """See ``cpu.forward``."""
    conv, alive = _call(x, w, b, silu, reverse)
    out = torch.empty(x.shape, dtype=x.dtype)
    conv.out = out.data_ptr()
    native.parallel(native.library().functions.hybridmap_conv_forward, conv.slots * conv.strips, conv)
    del alive
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
    conv, alive = _call(x, w, b, silu, reverse)
    dout = native.rows(dout)
    dx = torch.empty(x.shape, dtype=x.dtype) if into is None else into
    dw, db = w.new_empty(conv.slots, w.shape[1], w.shape[0]), w.new_empty(conv.slots, w.shape[0])
    for name, tensor in (("dout", dout), ("dx", dx), ("dw", dw), ("db", db)):
        setattr(conv, name, tensor.data_ptr())
    conv.add = add
    conv.dout_b, conv.dout_t, conv.dx_b, conv.dx_t = *dout.stride()[:2], *dx.stride()[:2]
    native.parallel(native.library().functions.hybridmap_conv_backward, conv.slots * conv.strips, conv)
    del alive
    return dx, dw.sum(0).mT.contiguous(), w.new_empty(0) if b is None else db.sum(0)
