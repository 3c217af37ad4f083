"""The only gather and scatter of the project: pick tokens by position, and put them back."""

from __future__ import annotations

from jaxtyping import Int, Shaped
from torch import Tensor


def take(x: Shaped[Tensor, "B N ..."], index: Int[Tensor, "B V"]) -> Shaped[Tensor, "B V ..."]:
    """``out[b, v] = x[b, index[b, v]]``; trailing axes come along."""
    shape = index.shape + x.shape[2:]
    return x.gather(1, index.view(index.shape + (1,) * (x.ndim - 2)).expand(shape))


def put(x: Shaped[Tensor, "B V D"], index: Int[Tensor, "B V"], fill: Shaped[Tensor, "B N D"]) -> Shaped[Tensor, "B N D"]:
    """``fill`` with ``fill[b, index[b, v]]`` replaced by ``x[b, v]``: the inverse of :func:`take` on the visible positions."""
    return fill.scatter(1, index[..., None].expand(x.shape), x)
