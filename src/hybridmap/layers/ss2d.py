"""The two-dimensional selective scan (SS2D) of VMamba, without a gate: every position hears the whole map from four sides.

    u ─ in_proj ─ depthwise 3x3 ─ SiLU ─ c ─┬─ rows     0 ──▶ ◀── 2 ─┬─ ⊕ ─ LayerNorm ─ out_proj ──▶
                                            └─ columns  1 ──▶ ◀── 3 ─┘

    direction k:   [δ, B, C] = x_proj[k] c       Δ = softplus(dt_proj[k] δ + bias[k])       scan with A = -exp(A_log[k]), D[k]

Directions 0 and 2 walk the map row by row from the first and from the last position, 1 and 3 column by column. Their outputs
are added, never averaged. The map is channels-last, (B, rows, columns, channels), which is the layout of the scan: the rows are
scanned where they lie, once forwards and once backwards, and for the columns the map is transposed once. As projections act on
single positions, those of all four directions are one matrix product; of the columns only the narrow result is transposed.
Source: VMamba (arXiv:2401.10166), MzeroMiko/VMamba:classification/models/vmamba.py @ 2ed52ea, ``v05_noz``.
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
from hybridmap.layers.mamba import at_least_float32, init_A_log, init_dt

DIRECTIONS = 4
"""Rows, columns, rows backwards, columns backwards: the order of the stacked parameters."""


class SS2D(nn.Module):
    """Mixer of VMamba: (B, rows, columns, dim) -> the same shape, over the whole map.

    What the directions own is stacked, direction by direction in the order above; with S states and steps of rank R these are
    ``x_proj_weight`` (4, R + 2 S, E), ``dt_projs_weight`` (4, E, R), ``dt_projs_bias`` (4, E), ``A_logs`` (4 E, S) and ``Ds``
    (4 E), the official names.
    """

    def __init__(self, dim: int, *, d_state: int = 1, expand: float = 2.0) -> None:
        super().__init__()
        inner, rank = int(expand * dim), math.ceil(dim / 16)
        if inner < 1 or d_state < 1:
            raise UserError(
                f"a scan needs channels and states, got {inner} channels (expand {expand} of width {dim}) and {d_state} states;"
                " try expand=2 and d_state=1"
            )
        self.d_state, self.dt_rank = d_state, rank
        self.in_proj = nn.Linear(dim, inner, bias=False)
        self.conv2d = nn.Conv2d(inner, inner, 3, padding=1, groups=inner, bias=False)
        bound = inner**-0.5  # of torch's Linear, direction by direction
        self.x_proj_weight = nn.Parameter(torch.empty(DIRECTIONS, rank + 2 * d_state, inner).uniform_(-bound, bound))
        steps = [nn.Linear(rank, inner) for _ in range(DIRECTIONS)]
        for step in steps:
            init_dt(step)
        self.dt_projs_weight = nn.Parameter(torch.stack([step.weight.detach() for step in steps]))
        self.dt_projs_bias = state_parameter(nn.Parameter(torch.stack([step.bias.detach() for step in steps])))
        self.A_logs = init_A_log(DIRECTIONS * inner, d_state)
        self.Ds = state_parameter(nn.Parameter(torch.ones(DIRECTIONS * inner)))
        self.out_norm = nn.LayerNorm(inner, 1e-5)
        self.out_proj = nn.Linear(inner, dim, bias=False)

    def forward(self, u: Float[Tensor, "B rows columns D"]) -> Float[Tensor, "B rows columns D"]:
        x = self.in_proj(u).permute(0, 3, 1, 2)  # (B, E, rows, columns), its memory still channels-last
        c = F.silu(self.conv2d(x)).permute(0, 2, 3, 1)  # (B, rows, columns, E)
        turned = c.transpose(1, 2)
        by_rows, by_columns = c.flatten(1, 2), turned.flatten(1, 2)  # (B, L, E)
        p = F.linear(c, self.x_proj_weight.flatten(0, 1)).chunk(DIRECTIONS, -1)
        A, D = at_least_float32(self.A_logs).exp().neg().chunk(DIRECTIONS), self.Ds.chunk(DIRECTIONS)

        def direction(k: int, sequence: Tensor, projected: Tensor) -> tuple[Tensor, ...]:
            delta, B, C = projected.flatten(1, 2).split([self.dt_rank, self.d_state, self.d_state], -1)
            return sequence, F.linear(delta, self.dt_projs_weight[k]), A[k], B, C, D[k], self.dt_projs_bias[k]

        rows = ops.bidirectional_scan(direction(0, by_rows, p[0]), direction(2, by_rows, p[2]), scale=1.0)
        columns = ops.bidirectional_scan(
            direction(1, by_columns, p[1].transpose(1, 2)), direction(3, by_columns, p[3].transpose(1, 2)), scale=1.0
        )
        y = rows.view(c.shape) + columns.view(turned.shape).transpose(1, 2)
        return self.out_proj(self.out_norm(y))
