"""The target of clouds: the points of a patch, in any order."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from jaxtyping import Float, Int
from torch import Tensor

from hybridmap.errors import UserError
from hybridmap.objectives.targets import Target, exact, predicted_positions
from hybridmap.ops import points as ops
from hybridmap.tokens.select import take
from hybridmap.types import Mask, Patches


class Chamfer(Target):
    """How far every true point of a patch is from the nearest predicted one, and the other way round, on the average.

    ``l2``: sum of the two mean squared distances; ``l1``: mean of the two mean distances. Coordinates are relative to the
    patch's centre, as ``Patches.content`` holds them. Source: Point-MAE (arXiv:2203.06604), which trains with l2.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config(Target.Config):
        kind: Literal["l2", "l1"] = "l2"
        """Squared distances, or distances."""

    config: Chamfer.Config

    def __init__(self, config: Chamfer.Config, *, patch_values: int, **runtime: Any) -> None:
        super().__init__(config)
        if config.kind not in ("l1", "l2"):
            raise UserError(f"the Chamfer distance is l1 or l2, got {config.kind!r}")
        self.patch_points = patch_values // 3

    def loss(
        self, pred: Float[Tensor, "B N P"], patches: Patches, mask: Mask | None, key: Int[Tensor, "B"] | None = None
    ) -> Float[Tensor, ""]:
        positions = predicted_positions(patches, mask)
        found, true = (self._points(take(exact(x), positions)) for x in (pred, patches.content))
        return ops.chamfer_l2(found, true) if self.config.kind == "l2" else ops.chamfer_l1(found, true)

    def _points(self, values: Float[Tensor, "B M P"]) -> Float[Tensor, "BM K 3"]:
        return values.flatten(0, 1).unflatten(1, (self.patch_points, 3))

    def values_of(
        self, pred: Float[Tensor, "B N P"], patches: Patches, key: Int[Tensor, "B"] | None = None
    ) -> Float[Tensor, "B N P"]:
        return pred

    def unnormalise(self, pred: Float[Tensor, "B N P"], patches: Patches) -> Float[Tensor, "B N P"]:
        return exact(pred)
