"""Mamba3D's mixer: two scans in the same direction of the tokens, the second over the channels backwards.

    [x | z] = in_proj(u)        y = S(x, z) + R S(R z, R x)        R reverses channels; x and z swap roles

``R S(R ., R .)`` with parameters p is ``S`` itself with the parameters reversed, because channels meet only in x_proj, whose
inputs can be reversed. So no activation is ever reversed, only parameters.
Source: Mamba3D (arXiv:2404.14966), variant "v4".
"""

from __future__ import annotations

import math
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from hybridmap import ops
from hybridmap.layers.mamba import Direction


class ChannelScanMixer(nn.Module):
    """``backwards=False`` leaves the second scan out; its parameters exist all the same."""

    def __init__(self, dim: int, *, d_state: int = 16, d_conv: int = 4, expand: int = 2, backwards: bool = True) -> None:
        super().__init__()
        inner = expand * dim

        def direction() -> Direction:
            rank = math.ceil(dim / 16)
            return Direction(inner, d_state=d_state, d_conv=d_conv, dt_rank=rank, conv_bias=True, reverse=False)

        self.backwards = backwards
        self.in_proj = nn.Linear(dim, 2 * inner, bias=False)
        self.dirs = nn.ModuleDict({"fwd": direction(), "channel_bwd": direction()})
        self.out_proj = nn.Linear(inner, dim, bias=False)

    def forward(self, u: Float[Tensor, "B L D"], causal: bool = False) -> Float[Tensor, "B L D"]:
        """``causal`` changes nothing: no token ever sees a later one."""
        xz = self.in_proj(u)  # (B, L, 2 E)
        fwd, bwd = (direction.parameters_of_scan() for direction in self.dirs.values())  # pyright: ignore[reportCallIssue]
        y = ops.mamba_inner(xz, fwd)
        if self.backwards:
            x, z = xz.chunk(2, dim=-1)
            y = y + ops.mamba_inner(torch.cat([z, x], dim=-1), _reversed(bwd))
        return self.out_proj(y)


def _reversed(p: ops.Parameters) -> ops.Parameters:
    """The parameters of a scan for channels in the opposite order."""
    flipped: dict[str, Any] = {name: value if value is None else value.flip(0) for name, value in p._asdict().items()}
    flipped.pop("x_proj")
    return ops.Parameters(x_proj=p.x_proj.flip(1), **flipped)
