"""The mixer of MambaVision: half of the channels are scanned, the other half is not, and nothing gates.

    u ──in_proj──┬─ x ─ conv ─ SiLU ─┬────────────────────┐
                 │                   └─ x_proj ─ δ, B, C ─ scan ─ y ─┐
                 └─ z ─ conv ─ SiLU ─────────────────────────────────┴─ concat ─ out_proj ──▶

    Δ_t = softplus(W_dt δ_t + 2 b_dt)        otherwise the recurrence of hybridmap.layers.mamba, without the gate

The convolution is symmetric: a token sees its left and its right neighbour. The bias of ``dt_proj`` enters twice, because the
released code adds it in the linear map and again in the scan; the weights are trained that way.
Source: MambaVision (arXiv:2407.08083), NVlabs/MambaVision:mambavision/models/mamba_vision.py.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from hybridmap import ops
from hybridmap.errors import UserError
from hybridmap.layers.decay import state_parameter
from hybridmap.layers.mamba import init_A_log, init_dt, scan_parameters
from hybridmap.ops.mamba_inner import scan_inputs


class MambaVisionMixer(nn.Module):
    """(B, L, dim) -> (B, L, dim) along the sequence, in one direction; the rank of the step size is ceil(dim / 16)."""

    def __init__(self, dim: int, *, d_state: int = 8, d_conv: int = 3) -> None:
        super().__init__()
        if dim % 2:
            raise UserError(f"the mixer of MambaVision halves its width, which must be even, got {dim}; try {dim + 1}")
        if d_conv % 2 == 0:
            raise UserError(f"a symmetric convolution has an odd width, got d_conv={d_conv}; try {d_conv + 1}")
        half, rank = dim // 2, math.ceil(dim / 16)
        self.d_conv = d_conv
        self.in_proj = nn.Linear(dim, dim, bias=False)
        self.conv_x = nn.Conv1d(half, half, d_conv, groups=half, bias=False)
        self.conv_z = nn.Conv1d(half, half, d_conv, groups=half, bias=False)
        self.x_proj = nn.Linear(half, rank + 2 * d_state, bias=False)
        self.dt_proj = nn.Linear(rank, half)
        self.A_log = init_A_log(half, d_state)
        self.D = state_parameter(nn.Parameter(torch.ones(half)))
        self.out_proj = nn.Linear(dim, dim, bias=False)
        init_dt(self.dt_proj)
        with torch.no_grad():
            self.dt_proj.bias.mul_(0.5)  # entering twice, it makes the step sizes that init_dt drew

    def forward(self, u: Float[Tensor, "B L D"]) -> Float[Tensor, "B L D"]:
        taps = torch.cat([self.conv_x.weight, self.conv_z.weight]).squeeze(1)  # (D, W)
        ahead = self.d_conv // 2
        # A symmetric convolution is a causal one that is read a few tokens later.
        x, z = ops.causal_conv1d(F.pad(self.in_proj(u), (0, 0, 0, ahead)), taps)[:, ahead:].chunk(2, -1)
        p = scan_parameters(self.conv_x, self.x_proj, self.dt_proj, self.A_log, self.D)
        c, dt, A, B, C, D, bias = scan_inputs(x, p._replace(bias=2 * p.bias))
        y = ops.selective_scan(c, dt, A, B, C, D=D, bias=bias)
        return self.out_proj(torch.cat([y, z], dim=-1))
