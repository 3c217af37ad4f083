"""Rotary positions of a patch grid: pairs of channels are turned by angles that grow with row and column.

    channels       0 1 | 2 3 | ...        D/2 D/2+1 | ...
    turned by      row · ω_0, row · ω_1, ...    column · ω_0, column · ω_1, ...        ω_i = 10000^(-4 i / D)

Rows and columns are counted on the grid of the pretraining: on a grid with more patches to a side they grow in smaller steps.
Source: RoFormer (arXiv:2104.09864) for the rotation, hustvl/Vim:vim/rope.py for the angles; the tables are timm's.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from timm.layers.pos_embed_sincos import apply_rot_embed, build_rotary_pos_embed
from torch import Tensor, nn

from hybridmap.errors import UserError


class Rotary(nn.Module):
    """The tables for patches at given places; no parameters, and nothing in the state dict.

    ``side`` is the number of patches to a side in pretraining.
    """

    def __init__(self, dim: int, side: int = 14) -> None:
        super().__init__()
        if dim % 4:
            raise UserError(f"rotary positions need a width that is a multiple of 4, got {dim}; try {dim - dim % 4 + 4}")
        if side < 1:
            raise UserError(f"rotary positions need a grid of at least one patch to a side, got {side}")
        self.dim, self.side = dim, side

    def tables(self, grid: tuple[int, ...], device: torch.device) -> tuple[Float[Tensor, "P D"], Float[Tensor, "P D"]]:
        """(cosine, sine) for every patch of a grid, row by row, each value twice: for both channels of its pair."""
        sine, cosine = build_rotary_pos_embed(
            list(grid), dim=self.dim, in_pixels=False, ref_feat_shape=[self.side, self.side], device=device
        )
        return cosine, sine

    def forward(
        self, coords: Float[Tensor, "B V 2"], grid: tuple[int, ...]
    ) -> tuple[Float[Tensor, "B V D"], Float[Tensor, "B V D"]]:
        """(cosine, sine) for the patches at these (row, column) of a grid."""
        index = (coords[..., 0] * grid[1] + coords[..., 1]).long()
        cosine, sine = self.tables(grid, coords.device)
        return F.embedding(index, cosine), F.embedding(index, sine)


def rotate(x: Float[Tensor, "B L D"], cosine: Float[Tensor, "B L D"], sine: Float[Tensor, "B L D"]) -> Float[Tensor, "B L D"]:
    """Turn channels (2m, 2m + 1) of every token; in the dtype of x, computed in at least that of the tables."""
    return apply_rot_embed(x, sine, cosine)
