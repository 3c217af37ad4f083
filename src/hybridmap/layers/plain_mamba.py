"""Mamba layers as they were published: ``x = x + DropPath(Mamba(LN x))``, one scan forwards."""

from __future__ import annotations

from hybridmap.layers.block import MambaBlock, Stack
from hybridmap.layers.mamba import MambaMixer


def plain_mamba(dim: int, rates: list[float]) -> Stack:
    """One layer for each rate of drop path, which acts where that layer's output joins the sum: in the next block, or behind
    the last (:meth:`Stack.finish`)."""
    ahead = [0.0, *rates[:-1]]
    blocks = (MambaBlock(dim, MambaMixer(dim, variant="uni"), norm_kind="layer", drop_path=rate) for rate in ahead)
    return Stack(blocks, final_drop_path=rates[-1])
