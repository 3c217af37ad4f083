"""What the tokens of a cloud learn from their neighbours: K-norm and K-pool of Mamba3D.

token ─┬─ its k nearest in space ─ minus itself ─ / deviation ─┐
       └───────────────────────────────────────────────────────┴─ affine ─ softmax-weighted mean over k ─ LN ─ Linear ─ SiLU
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

Deviation = Literal["sample", "batch"]
"""Over what K-norm takes the one standard deviation that it divides by; ``batch`` is what the official code does."""


class LocalNormPool(nn.Module):
    """Source: Mamba3D (arXiv:2404.14966). Prefix tokens have no place in space and stay as they are."""

    def __init__(self, dim: int, deviation: Deviation) -> None:
        super().__init__()
        self.deviation = deviation
        # Not of one axis, because those are not decayed, and the official ones are.
        self.scale, self.shift = nn.Parameter(torch.ones(1, 1, 1, 2 * dim)), nn.Parameter(torch.zeros(1, 1, 1, 2 * dim))
        self.norm = nn.LayerNorm(2 * dim)
        self.proj = nn.Linear(2 * dim, dim)

    def forward(self, x: Float[Tensor, "B L D"], neighbours: Int[Tensor, "B V k"]) -> Float[Tensor, "B L D"]:
        """``neighbours``: for each token that is no prefix, the places of its nearest among these, itself included."""
        count = neighbours.shape[1]
        prefix, own = x[:, : x.shape[1] - count], x[:, x.shape[1] - count :]
        rows = torch.arange(len(own), device=own.device)[:, None, None]
        difference = own[rows, neighbours] - own[:, :, None]  # (B, V, k, D)
        axes = None if self.deviation == "batch" else (1, 2, 3)
        exact = difference.to(torch.promote_types(x.dtype, torch.float32))
        normed = (exact / (exact.std(axes, keepdim=axes is not None) + 1e-5)).to(x.dtype)
        scale, beside_scale = self.scale.flatten().chunk(2)
        shift, beside_shift = self.shift.flatten().chunk(2)
        value = normed * scale + shift
        pooled = (value * value.softmax(2)).sum(2)
        # The token itself is the same for all neighbours: its weighted mean is itself.
        both = torch.cat([pooled, own * beside_scale + beside_shift], dim=-1)
        return torch.cat([prefix, F.silu(self.proj(self.norm(both)))], dim=1)
