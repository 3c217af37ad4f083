"""The causal convolution in plain PyTorch, with a hand-written backward pass that recomputes instead of storing.

One tap is one ``addcmul`` over shifted views, so nothing is padded, transposed or copied. Samples are taken in blocks that
stay in the cache; each block is widened to at least float32 on its own.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

_CACHED = 1 << 18
"""Elements of a block on a CPU (1 MB in float32)."""


def forward(x: Tensor, w: Tensor, b: Tensor | None, silu: bool, reverse: bool) -> Tensor:
    """Return silu(conv(x)), (batch, L, E), in the dtype of x."""
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    taps = _taps(w)
    for rows in _blocks(x):
        u = _convolve(_wide(x[rows]), taps, b, reverse)
        out[rows] = F.silu(u, inplace=True) if silu else u
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
    """Return (dx, dw, db), the last of no elements without a bias; dx is written ``into`` a given tensor, or added to it."""
    taps = _taps(w)
    dx = torch.empty(x.shape, dtype=x.dtype, device=x.device) if into is None else into
    dtaps = torch.zeros_like(taps)
    db = w.new_zeros(0 if b is None else b.shape[0])
    for rows in _blocks(x):
        values, du = _wide(x[rows]), _wide(dout[rows])
        if silu:
            du = torch.ops.aten.silu_backward(du, _convolve(values, taps, b, reverse))
        # what reached the output through the tap `back` tokens ago returns the same way
        dvalues = du * taps[0]
        for back, tap in enumerate(taps.unbind(0)):
            now, then = _meeting(x.shape[1], back, reverse)
            if back:
                dvalues[:, then].addcmul_(du[:, now], tap)
            dtaps[back] += (du[:, now] * values[:, then]).flatten(0, 1).sum(0)
        if b is not None:
            db += du.flatten(0, 1).sum(0)
        dx[rows] = dvalues.add_(dx[rows]) if add else dvalues
    return dx, dtaps.flip(0).mT.clone(memory_format=torch.contiguous_format), db


def _taps(w: Tensor) -> Tensor:
    """The weights as contiguous rows (W, E), the tap on the present token first, then ever earlier ones."""
    return w.mT.flip(0).contiguous()


def _convolve(x: Tensor, taps: Tensor, b: Tensor | None, reverse: bool) -> Tensor:
    u = x * taps[0] if b is None else torch.addcmul(b, x, taps[0])
    for back, tap in enumerate(taps[1:].unbind(0), 1):
        now, then = _meeting(x.shape[1], back, reverse)
        u[:, now].addcmul_(x[:, then], tap)
    return u


def _meeting(length: int, back: int, reverse: bool) -> tuple[slice, slice]:
    """The tokens that have a token ``back`` steps before them in scan order, and those earlier tokens."""
    kept = max(length - back, 0)
    later, earlier = slice(length - kept, length), slice(0, kept)
    return (earlier, later) if reverse else (later, earlier)


def _blocks(x: Tensor) -> list[slice]:
    batch, length, channels = x.shape
    size = max(1, _CACHED // max(length * channels, 1)) if x.device.type == "cpu" else max(batch, 1)
    return [slice(first, min(first + size, batch)) for first in range(0, batch, size)]


def _wide(values: Tensor) -> Tensor:
    return values.to(torch.promote_types(values.dtype, torch.float32))
