"""Interim."""
from __future__ import annotations
from hybridmap.ops.add_norm import reference

def add_norm(x, residual, weight, bias=None, *, eps=1e-5, kind="rms", residual_in_fp32=True):
    return reference.add_norm(x, residual, weight, bias, eps=eps, kind=kind, residual_in_fp32=residual_in_fp32)
