"""Interim."""
from __future__ import annotations
from hybridmap.ops.causal_conv1d import reference

def causal_conv1d(x, w, b=None, *, silu=True, reverse=False):
    return reference.causal_conv1d(x, w, b, silu=silu, reverse=reverse)

def causal_conv1d_fn(x, weight, bias=None, activation=None):
    return reference.causal_conv1d(x.transpose(1, 2), weight, bias, silu=activation in ("silu", "swish")).transpose(1, 2)
