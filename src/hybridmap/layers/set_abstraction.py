"""Set abstraction of PointNet++: a cloud becomes fewer points that know their surroundings.

points (B, N, 3) ─ farthest points ─▶ centres (B, M, 3) ─────────────────────────────────────────┐
          └────── ball query around each ─▶ [offset from the centre, features] (B, 3 + C, M, K)   │
                                              └─ (1x1 convolution, BatchNorm, ReLU) x n ─ max over K ─▶ features (B, M, W)

Which points are chosen has no gradient; where they lie has one.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor, nn

from hybridmap.errors import UserError
from hybridmap.ops.points import ball_query, fps


class SetAbstraction(nn.Module):
    """``count`` centres, each with up to ``neighbours`` points closer than ``radius``, the first in the order of the cloud.

    Where there are fewer, the first is repeated, which changes the statistics of the norms but not the maximum. In training,
    statistics are over all neighbours of all centres of the batch. ``channels`` is C, the width of the features that come with
    the points (0 = none); ``widths`` are those of the convolutions.
    Source: PointNet++ (arXiv:1706.02413); the operators' semantics are those of ``pointnet2_ops``.

    Raises:
        UserError: if a size is not positive.
    """

    def __init__(
        self, count: int, radius: float, neighbours: int, channels: int, widths: Sequence[int], *, skip_origin: bool = True
    ) -> None:
        super().__init__()
        sizes = {"count": count, "radius": radius, "neighbours": neighbours, "number of widths": len(widths)}
        sizes |= {f"width {i}": width for i, width in enumerate(widths)}
        for name, size in sizes.items():
            if size <= 0:
                raise UserError(f"set abstraction needs a positive {name}, got {size}")
        self.count, self.radius, self.neighbours, self.skip_origin = count, radius, neighbours, skip_origin
        layers: list[nn.Module] = []
        for before, width in pairwise((3 + channels, *widths)):
            layers += [nn.Conv2d(before, width, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
        self.mlp = nn.Sequential(*layers)

    def forward(
        self, points: Float[Tensor, "B N 3"], features: Float[Tensor, "B N C"] | None = None
    ) -> tuple[Float[Tensor, "B M 3"], Float[Tensor, "B M W"]]:
        """(centres, features of the centres).

        Raises:
            UserError: if there are fewer points than centres, or a coordinate is not finite (looked at on CPUs only).
        """
        centres = _rows(points, fps(points, self.count, skip_origin=self.skip_origin))
        near = ball_query(points, centres, self.radius, self.neighbours)  # (B, M, K)
        grouped = _rows(points, near) - centres[:, :, None]  # (B, M, K, 3)
        if features is not None:
            grouped = torch.cat([grouped, _rows(features, near)], dim=-1)
        return centres, self.mlp(grouped.permute(0, 3, 1, 2)).amax(3).transpose(1, 2)

    def extra_repr(self) -> str:
        return f"{self.count} centres, radius={self.radius:g}, neighbours={self.neighbours}"


def _rows(x: Tensor, index: Tensor) -> Tensor:
    """``out[b, ..., c] = x[b, index[b, ...], c]``: whole rows are copied."""
    batch, size, width = x.shape
    first = size * torch.arange(batch, device=x.device).view(-1, *(1,) * (index.ndim - 1))
    return x.reshape(-1, width).index_select(0, (index + first).flatten()).view(*index.shape, width)
