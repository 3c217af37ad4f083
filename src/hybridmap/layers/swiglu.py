"""The gated MLP of ARM's layers."""

from __future__ import annotations

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn


class SwiGLU(nn.Module):
    """``down(SiLU(gate x) * up x)``, three linear maps with bias; the hidden width is two thirds of ``4 dim``, rounded down.

    Computes what timm's class of this name does; the names of the parts are ours. Source: OliverRensu/ARM.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        hidden = dim * 8 // 3
        self.gate = nn.Linear(dim, hidden)
        self.up = nn.Linear(dim, hidden)
        self.down = nn.Linear(hidden, dim)

    def forward(self, x: Float[Tensor, "B L D"]) -> Float[Tensor, "B L D"]:
        return self.down(F.silu(self.gate(x)) * self.up(x))
