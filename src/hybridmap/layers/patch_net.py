"""From the points of a patch to a token: a small PointNet, and the position of the patch's centre.

(n, K, 3) ─ Linear 128 ─ BN ─ ReLU ─ Linear 256 ─┬─ max over K ─ global 256 ─┐
                                                 └─ local 256 ───────────────┴─ Linear 512 ─ BN ─ ReLU ─ Linear D ─ max over K
"""

from __future__ import annotations

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn


class PatchNet(nn.Module):
    """The order of the points does not matter. In training, statistics are over all points of all patches of the batch.

    Source: Point-BERT (arXiv:2111.14819), Point-MAE (arXiv:2203.06604).
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.point1, self.norm1, self.point2 = nn.Linear(3, 128), nn.BatchNorm1d(128), nn.Linear(128, 256)
        self.patch1, self.norm2, self.patch2 = nn.Linear(512, 512), nn.BatchNorm1d(512), nn.Linear(512, dim)

    def forward(self, points: Float[Tensor, "n K 3"]) -> Float[Tensor, "n D"]:
        count = points.shape[1]
        local = self.point2(F.relu(self.norm1(self.point1(points.flatten(0, 1))))).unflatten(0, (-1, count))  # (n, K, 256)
        # Of the concatenation [global, local] the first half is the same for all points of a patch.
        first, second = self.patch1.weight.chunk(2, dim=1)
        hidden = F.linear(local, second, self.patch1.bias) + F.linear(local.amax(1), first)[:, None]
        return self.patch2(F.relu(self.norm2(hidden.flatten(0, 1)))).unflatten(0, (-1, count)).amax(1)


class CentreEmbed(nn.Sequential):
    """Linear 3 -> 128, activation, Linear 128 -> D of absolute coordinates."""

    def __init__(self, dim: int, activation: nn.Module) -> None:
        super().__init__(nn.Linear(3, 128), activation, nn.Linear(128, dim))
