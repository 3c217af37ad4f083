"""The inside of a Mamba mixer with a backward pass by hand: less is kept, nothing is concatenated, sums are formed in place.

Kept for the backward pass are the input, the narrow projections (batch, L, R + 2 S) and the states that the scan keeps. The
convolution's output and the step size, both of width E and cheap, are computed again. The gradients of x and of z are written
straight into the halves of one (batch, L, 2 E) tensor, those of both directions' x one upon the other, and what reaches the
convolution's output through the projection is added by the matrix product itself.

Convolution and scan run as what their operators choose for these tensors; nothing here depends on the device.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from hybridmap.ops.causal_conv1d import performer as convolver
from hybridmap.ops.mamba_inner.reference import Parameters
from hybridmap.ops.selective_scan import performer as scanner
from hybridmap.ops.selective_scan.reference import Direction

REVERSE = (False, True)
"""Whether the first and the second direction start at the last token."""


def _convolved(xz: Tensor, p: Parameters, reverse: bool) -> Tensor:
    x = xz.chunk(2, -1)[0]
    return convolver(x).forward(x, p.taps, p.taps_bias, True, reverse)


def _scan_inputs(c: Tensor, projected: Tensor, p: Parameters) -> Direction:
    rank, states = p.dt_proj.shape[1], p.A.shape[1]
    delta, B, C = projected.split([rank, states, states], -1)
    dt = (delta.flatten(0, 1) @ p.dt_proj.mT).view(c.shape)
    return Direction(c, dt, p.A, B, C, p.D, p.bias)


def forward(xz: Tensor, parameters: Sequence[Parameters], scale: float, keep: bool) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Return (out, states kept by the scan, projections of each direction)."""
    directions, projections = [], []
    for p, reverse in zip(parameters, REVERSE, strict=False):
        c = _convolved(xz, p, reverse)
        projections.append((c.flatten(0, 1) @ p.x_proj.mT).view(*c.shape[:2], p.x_proj.shape[0]))
        directions.append(_scan_inputs(c, projections[-1], p))
    z = xz.chunk(2, -1)[1]
    scan = scanner(xz)
    out, _, kept = scan.forward(directions, REVERSE[: len(directions)], z, None, softplus=True, scale=scale, keep=keep)
    return out, kept, projections


def backward(
    dout: Tensor, kept: Tensor | None, projections: Sequence[Tensor], xz: Tensor, parameters: Sequence[Parameters], scale: float
) -> tuple[Tensor, list[Parameters]]:
    """Return the gradients of xz, contiguous, and of every direction's parameters."""
    directions = [
        _scan_inputs(_convolved(xz, p, reverse), projected, p)
        for p, projected, reverse in zip(parameters, projections, REVERSE, strict=False)
    ]
    x, z = xz.chunk(2, -1)
    dxz = torch.empty_like(xz, memory_format=torch.contiguous_format)
    dx, dz = dxz.chunk(2, -1)
    scan, conv = scanner(xz), convolver(xz)
    scanned, _, _ = scan.backward(
        dout, None, kept, directions, REVERSE[: len(directions)], z, None, softplus=True, scale=scale, dz=dz
    )
    gradients = []
    for i, (p, d, g) in enumerate(zip(parameters, directions, scanned, strict=True)):
        rank, tokens = p.dt_proj.shape[1], d.x.shape[0] * d.x.shape[1]
        ddt, dc, c, delta = (v.reshape(tokens, v.shape[-1]) for v in (g.dt, g.x, d.x, projections[i][..., :rank]))
        dprojected = torch.empty(tokens, p.x_proj.shape[0], dtype=xz.dtype, device=xz.device)
        into = dprojected.split([rank, p.A.shape[1], p.A.shape[1]], -1)
        for part, value in zip(into, (ddt @ p.dt_proj, g.B, g.C), strict=True):
            part.copy_(value.reshape(part.shape))
        dc.addmm_(dprojected, p.x_proj)
        _, dtaps, dtaps_bias = conv.backward(dc.view(d.x.shape), x, p.taps, p.taps_bias, True, REVERSE[i], into=dx, add=i > 0)
        gradients.append(
            Parameters(dtaps, dtaps_bias, dprojected.mT @ c, ddt.mT @ delta, g.A, g.D, g.bias)  # pyright: ignore[reportArgumentType]
        )
    return dxz, gradients
