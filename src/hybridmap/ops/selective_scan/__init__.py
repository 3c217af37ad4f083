"""Interim."""
from __future__ import annotations
from torch import Tensor
import torch
from hybridmap.ops.selective_scan import reference

def selective_scan(x, dt, A, B, C, *, D=None, z=None, bias=None, h0=None, softplus=True, reverse=False, out_scale=1.0, return_last_state=False):
    out, last = reference.selective_scan(x, dt, A, B, C, D=D, z=z, bias=bias, h0=h0, softplus=softplus, reverse=reverse, out_scale=out_scale)
    return (out, last) if return_last_state else out

def bidirectional_scan(fwd, bwd, z=None, *, softplus=True, scale=0.5):
    """fwd, bwd: (x, dt, A, B, C, D, bias)."""
    return reference.bidirectional_scan(fwd, bwd, z, softplus=softplus, scale=scale)

def selective_scan_fn(u, delta, A, B, C, D=None, z=None, delta_bias=None, delta_softplus=False, return_last_state=False):
    def tokens_last(M):
        if M.dim() == 2:
            raise NotImplementedError
        return M.transpose(1, 2)
    t = lambda v: None if v is None else v.transpose(1, 2)
    out, last = reference.selective_scan(t(u), t(delta), A, tokens_last(B), tokens_last(C), D=D, z=t(z), bias=delta_bias, softplus=delta_softplus)
    out = out.transpose(1, 2)
    return (out, last) if return_last_state else out
