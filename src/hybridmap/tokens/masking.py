"""Which patches are hidden: a masking is a score; the highest scores are masked.

A strategy says in :meth:`Masking.scores` which patches it would rather hide. How many, and whether over the image or inside
every region, is the same for all of them and lives in :meth:`Masking.__call__`. Half of a 4 x 4 grid (``#`` is masked):

    Random       Sequential   Diagonal     Random, scope="region", regions = rows
    # . . #      . . . .      . . . .      # . # .
    . # . .      . . . .      . . . #      . # # .
    # # . #      # # # #      . # # #      # . . #
    . . # #      # # # #      # # # #      . # . #

Counts are Python integers and the same in every sample, so that all visible sequences are equally long. Nothing is read back
from the device, and a mask is a function of the sample's key alone: the batch around it plays no part.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import NormalDist
from typing import Any, Literal

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from hybridmap import config as configuration
from hybridmap.config import Configurable
from hybridmap.errors import UserError
from hybridmap.hashing import uniform, uniform_int
from hybridmap.tokens.regions import image_grid, prediction_order
from hybridmap.types import Mask, Patches

_STREAM = 0x6D61736B
"""Tells the numbers for masks apart from all others that are drawn from the same keys."""


class Masking(Configurable):
    """Abstract. A strategy implements :meth:`scores`."""

    @dataclass(frozen=True, kw_only=True)
    class Config(configuration.Config):
        """How much is masked; fields that all strategies have."""

        ratio: float = 0.5
        """Share of the patches that is masked, in [0, 1). With 0 all are visible, which needs a loss on all patches."""
        ratio_range: tuple[float, float] | None = None
        """Draw the ratio anew in every optimiser step from a normal distribution around ``ratio``, cut to this range."""
        ratio_std: float = 0.25
        """Standard deviation of that distribution before it is cut."""
        count: int | None = None
        """Mask exactly so many patches instead of a share: of the image, or of each region."""
        scope: Literal["image", "region"] = "image"
        """``image``: the highest scores of all patches. ``region``: the highest of each region, the share of each."""
        rounding: Literal["ceil", "floor", "keep_floor"] = "ceil"
        """Of N patches ``ceil`` masks ceil(N * ratio), as MAP does, ``floor`` int(N * ratio), as Point-MAE does; ``keep_floor``
        keeps int(N * (1 - ratio)), as MAE does."""

        def small(self) -> Any:
            """For images of 16 patches instead of 196: a count masks the same share of them."""
            return self if self.count is None else replace(self, count=small_count(self.count))

    config: Any

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        c = config
        if not 0 <= c.ratio < 1:
            raise UserError(f"the mask ratio must lie in [0, 1), got {c.ratio}; try 0.5")
        if c.ratio_range is not None:
            low, high = c.ratio_range
            if not 0 < low <= c.ratio <= high < 1:
                raise UserError(
                    f"ratio_range must lie inside (0, 1) around the ratio {c.ratio}, got {low} to {high}; try 0.3 0.7"
                )
            if not c.ratio_std > 0:
                raise UserError(f"ratio_std must be positive, got {c.ratio_std}; try 0.25")
        if c.count is not None and c.count < 0:
            raise UserError(f"the number of masked patches cannot be negative, got {c.count}")
        for name, words in {"scope": ("image", "region"), "rounding": ("ceil", "floor", "keep_floor")}.items():
            if getattr(c, name) not in words:
                raise UserError(f"{name} must be {' or '.join(words)}, got {getattr(c, name)!r}")

    @property
    def hides_nothing(self) -> bool:
        """Whether all patches stay visible, always."""
        return self.config.count == 0 or (self.config.count is None and self.config.ratio == 0)

    @abstractmethod
    def scores(self, patches: Patches, ranks: Int[Tensor, "B N"], key: Int[Tensor, "B"]) -> Shaped[Tensor, "B N"]:
        """How much each patch, by position in the scan, asks to be masked; of equal scores the later in the scan is masked."""

    def __call__(
        self, patches: Patches, ranks: Int[Tensor, "B N"], sizes: Sequence[int], key: Int[Tensor, "B"], step_key: int = 0
    ) -> Mask:
        """Mask the top scorers.

        ``ranks`` and ``sizes`` are the regions' (:class:`hybridmap.tokens.regions.Regions`), ``key`` names the samples and
        ``step_key`` the optimiser step, for a ratio that is drawn once per step.

        Raises:
            UserError: if no patch would stay visible.
        """
        order = self.scores(patches, ranks, key).argsort(dim=1, stable=True)  # positions by ascending score
        if self.config.scope == "region":
            order = order.gather(1, ranks.gather(1, order).argsort(dim=1, stable=True))  # region by region, inside it by score
        else:
            sizes = (sum(sizes),)
        kept = self.kept(sizes, step_key)
        pieces = [piece[:, :keep] for piece, keep in zip(order.split(list(sizes), dim=1), kept, strict=True)]
        visible = torch.cat(pieces, dim=1).sort(dim=1).values  # (B, V), ascending
        masked = torch.ones_like(ranks, dtype=torch.bool).scatter(1, visible, False)
        return Mask(masked=masked, visible=visible)

    def kept(self, sizes: Sequence[int], step_key: int = 0) -> tuple[int, ...]:
        """How many patches of each group (the image, or its regions) stay visible in this optimiser step.

        Unless nothing is to be hidden, at least one patch of the image is masked and at least one visible.

        Raises:
            UserError: if that is impossible, or ``count`` exceeds a group.
        """
        c, total = self.config, sum(sizes)
        if self.hides_nothing:
            return tuple(sizes)
        if total < 2:
            raise UserError(
                f"one patch must be masked and another visible, but the input has {total}; use larger inputs or ratio 0"
            )
        if c.count is not None:
            if c.count >= total or c.count > min(sizes):
                of = "patches" if len(sizes) == 1 else "patches in the smallest region"
                raise UserError(f"count={c.count} patches cannot be masked where there are only {min(sizes)} {of}; use fewer")
            kept = [size - c.count for size in sizes]
        else:
            ratio = self.draw_ratio(step_key)
            kept = [_kept(size, ratio, c.rounding) for size in sizes]
            if len(sizes) == 1:
                kept = [min(max(kept[0], 1), total - 1)]
        if not 0 < sum(kept) < total:
            raise UserError(
                f"masking inside each of {len(sizes)} regions would leave {sum(kept)} of {total} patches visible;"
                ' use larger regions or scope "image"'
            )
        return tuple(kept)

    def draw_ratio(self, step_key: int) -> float:
        """The share to be masked in this optimiser step."""
        c = self.config
        if c.ratio_range is None:
            return c.ratio
        return truncated_normal(uniform_int(step_key, _STREAM), c.ratio, c.ratio_std, *c.ratio_range)


class Random(Masking):
    """A uniformly random choice per sample."""

    @dataclass(frozen=True, kw_only=True)
    class Config(Masking.Config):
        """Nothing beyond how much."""

    def scores(self, patches: Patches, ranks: Int[Tensor, "B N"], key: Int[Tensor, "B"]) -> Float[Tensor, "B N"]:
        return uniform(key, ranks.shape[1], _STREAM)


class Sequential(Masking):
    """The last patches in the order of prediction: with a ``count``, "the tail"."""

    @dataclass(frozen=True, kw_only=True)
    class Config(Masking.Config):
        """Nothing beyond how much."""

    def scores(self, patches: Patches, ranks: Int[Tensor, "B N"], key: Int[Tensor, "B"]) -> Int[Tensor, "B N"]:
        return prediction_order(ranks)


class Diagonal(Masking):
    """One side of a diagonal of the image."""

    @dataclass(frozen=True, kw_only=True)
    class Config(Masking.Config):
        kind: Literal["anti", "main"] = "anti"
        """``anti``: the largest row + column, of equal ones the lower, are masked, which leaves the upper left.
        ``main``: the largest column/(columns-1) - row/(rows-1) are masked, which leaves the lower left."""

    config: Diagonal.Config

    def __init__(self, config: Diagonal.Config) -> None:
        super().__init__(config)
        if config.kind not in ("anti", "main"):
            raise UserError(f"the diagonal must be anti or main, got {config.kind!r}")

    def scores(self, patches: Patches, ranks: Int[Tensor, "B N"], key: Int[Tensor, "B"]) -> Int[Tensor, "B N"]:
        rows, columns = image_grid(patches, "Diagonal")
        row, column = patches.source // columns, patches.source % columns
        if self.config.kind == "anti":
            return (row + column) * rows + row
        return column * max(rows - 1, 1) - row * max(columns - 1, 1)  # times both denominators: integers have no rounding


def truncated_normal(uniform: float, mean: float, std: float, low: float, high: float) -> float:
    """The quantile at ``uniform`` in [0, 1) of a normal distribution cut to [low, high].

    MAP's released ratio is ``mean=0.5, std=0.25, low=0.3, high=0.7``, whose own standard deviation is 0.1106.
    Source: yunzeliu/MAP:models_mamba.py (``mask_ratio_generator``).
    """
    standard = NormalDist()
    below, above = standard.cdf((low - mean) / std), standard.cdf((high - mean) / std)
    value = mean + std * standard.inv_cdf(below + uniform * (above - below))
    return min(max(value, low), high)


def small_count(count: int) -> int:
    """Of 16 patches as large a share as ``count`` are of 196; 0 stays 0, and no other count becomes it.

    >>> [small_count(count) for count in (0, 1, 40, 140)]
    [0, 1, 3, 11]
    """
    return max(round(count * 16 / 196), min(count, 1))


def _kept(size: int, ratio: float, rounding: str) -> int:
    """Visible patches of ``size``; in Python floats exactly as the released codes round."""
    if rounding == "keep_floor":
        return int(size * (1 - ratio))
    return size - (math.ceil(size * ratio) if rounding == "ceil" else int(size * ratio))
