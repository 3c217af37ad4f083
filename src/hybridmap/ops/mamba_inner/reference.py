"""The inside of a Mamba mixer as a composition of its parts, differentiated by autograd."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from hybridmap.ops.causal_conv1d import causal_conv1d
from hybridmap.ops.selective_scan import bidirectional_scan, selective_scan


class Parameters(NamedTuple):
    """What one direction owns: E channels, W taps, S states, R = rank of the step size."""

    taps: Float[Tensor, "E W"]
    taps_bias: Float[Tensor, "E"] | None
    x_proj: Float[Tensor, "rows E"]
    """Rows: rank of the step size, then B, then C."""
    dt_proj: Float[Tensor, "E R"]
    A: Float[Tensor, "E S"]
    D: Float[Tensor, "E"]
    bias: Float[Tensor, "E"]


def scan_inputs(c: Float[Tensor, "batch L E"], p: Parameters) -> tuple[Tensor, ...]:
    """From the convolution's output to what the scan of one direction needs: (c, raw dt, A, B, C, D, bias of dt)."""
    states = p.A.shape[1]
    delta, B, C = F.linear(c, p.x_proj).split([p.dt_proj.shape[1], states, states], -1)
    return c, F.linear(delta, p.dt_proj), p.A, B, C, p.D, p.bias


def mamba_inner(
    xz: Float[Tensor, "batch L E2"], directions: Sequence[Parameters], scale: float = 1.0
) -> Float[Tensor, "batch L E"]:
    """Convolve, project, scan and gate; the second direction, if there is one, runs from the last token to the first."""
    x, z = xz.chunk(2, -1)
    inputs = [
        scan_inputs(causal_conv1d(x, p.taps, p.taps_bias, reverse=reverse), p)
        for p, reverse in zip(directions, (False, True), strict=False)
    ]
    if len(inputs) == 2:
        return bidirectional_scan(inputs[0], inputs[1], z, scale=scale)
    c, dt, A, B, C, D, bias = inputs[0]
    return selective_scan(c, dt, A, B, C, D=D, z=z, bias=bias, out_scale=scale)
