"""Autoregression proper: patches are predicted from the features of earlier ones, which an encoder that scans one way has made.

    first patches in the order of prediction                            last patches in that order
    image ─ partition ──▶ one-way encoder ──▶ features ──▶ decoder: a query for each place ─▶ norm ─ pred

    Shift, n = 2: patch by patch             NextRegion, rows of 2 patches: region by region
    query of rank   features of rank         query in row   features of row
                    0 1 2 3 4                               0 0 1 1 2 2
                2   ■                               1       ■ ■
                3   ■ ■                             1       ■ ■
                4   ■ ■ ■                           2       ■ ■ ■ ■
                5   ■ ■ ■ ■                         2       ■ ■ ■ ■
                6   ■ ■ ■ ■ ■                       3       ■ ■ ■ ■ ■ ■
                                                    3       ■ ■ ■ ■ ■ ■

Nothing is masked at random. The other reading of autoregression with n masked patches, "the tail", needs no such encoder: it is
MAP with ``Sequential`` masking and the decoder mask "ar" (``hybridmap.objectives.map``).

A feature knows what the scan has met before it. Where the order of prediction is not that of the scan (rows are scanned,
columns predicted), a query may therefore look only at features that have met nothing it must not know
(:func:`hybridmap.tokens.regions.earlier`): nothing leaks, and there is little to look at. That is what a crossing means here.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, field, replace
from typing import Any

from jaxtyping import Bool, Float, Int
from torch import Tensor

from hybridmap.backbones.sequence import SequenceBackbone
from hybridmap.errors import UserError
from hybridmap.layers.mamba import freeze_backward
from hybridmap.objectives.base import PatchObjective
from hybridmap.objectives.decoder import MAPQueryDecoder, QueryDecoder
from hybridmap.objectives.targets import Pixels, Target
from hybridmap.tokens.masking import small_count
from hybridmap.tokens.regions import Regions, Rows, check_follows, earlier, prediction_order
from hybridmap.types import Batch, Loss, Mask, Patches


class FromEarlier(PatchObjective):
    """Abstract. A concrete objective says in which units it counts: :meth:`ranks`, ``by`` and :meth:`ends`.

    Directions of scan that are not used are frozen: they keep their initial values for fine-tuning.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config(PatchObjective.Config):
        backbone: SequenceBackbone.Config
        """The network to be pretrained; its layers scan forward only, and its attention looks back only."""
        regions: Regions.Config = field(default_factory=Rows.Config)
        """What follows what in the order of prediction."""
        decoder: QueryDecoder.Config = field(default_factory=MAPQueryDecoder.Config)
        """What predicts."""
        target: Target.Config = field(default_factory=Pixels.Config)
        """What predictions are compared with."""

    config: Any
    by = 1
    """How many ranks before a patch the features end from which it is predicted."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        freeze_backward(self.backbone)
        self.regions: Regions = config.regions.build()
        self.target: Target = config.target.build()
        usual = self.usual_patches()
        self._usual_ends = usual.grid, self.ends(usual)
        self.check_scan(usual)
        self.decoder: QueryDecoder = self.build_decoder(self.backbone.patch_values)

    def build_decoder(self, patch_values: int) -> QueryDecoder:
        """The decoder for this backbone, whose patches hold so many values."""
        return self.config.decoder.build(embed_dim=self.backbone.embed_dim, grid=self.backbone.grid, patch_values=patch_values)

    @abstractmethod
    def ranks(self, patches: Patches) -> Int[Tensor, "B N"]:
        """What is counted: a patch may be predicted from features up to ``by`` ranks before its own."""

    @abstractmethod
    def ends(self, patches: Patches) -> tuple[int, int]:
        """How many patches at the beginning are not predicted, and how many at the end the encoder does not see.

        Raises:
            UserError: if the input has too few patches.
        """

    @abstractmethod
    def check_scan(self, patches: Patches) -> None:
        """Refuse a scan that has nothing to do with the order of prediction.

        Raises:
            UserError: saying which would do.
        """

    def _ends(self, patches: Patches) -> tuple[int, int]:
        """:meth:`ends`, counted beforehand for the configured image size, so that a compiled step need not count."""
        grid, ends = self._usual_ends
        return ends if patches.grid == grid else self.ends(patches)

    def _from(self, patches: Patches, first: int) -> Mask:
        """All patches from place ``first`` on in the order of prediction as the masked ones."""
        behind = prediction_order(self.regions(patches, None)[:1]) >= first  # the regions of images are alike for all samples
        batch = patches.source.shape[0]
        visible = behind.int().argsort(dim=1, stable=True)[:, :first]
        return Mask(masked=behind.expand(batch, -1), visible=visible.expand(batch, -1))

    def draw(self, patches: Patches, batch: Batch) -> Mask:
        """The end: everything is predicted from what comes before it, so the encoder needs all the rest."""
        return self._from(patches, patches.source.shape[1] - self._ends(patches)[1])

    def step(self, patches: Patches, mask: Mask, key: Int[Tensor, "B"] | None = None) -> Loss:
        """The loss over all patches but those at the beginning. Under a given mask these must be visible."""
        predicted = self._from(patches, self._ends(patches)[0])
        return Loss(total=self.target.loss(self.predict(patches, mask), patches, predicted, key))

    def predict(self, patches: Patches, mask: Mask) -> Float[Tensor, "B N P"]:
        """The beginning, which nothing comes before, is not predicted: zero stands there."""
        seen = self.backbone.encode_visible(patches, mask, causal=True, taps=self.decoder.reads)
        return self.decoder(seen, self.predicted(patches), patches, self.allowed(patches, mask))

    def predicted(self, patches: Patches) -> Int[Tensor, "B Q"]:
        """Positions of the patches that are predicted, ascending."""
        first = self._ends(patches)[0]
        behind = self._from(patches, first).masked[:1].int()
        return behind.argsort(dim=1, stable=True)[:, first:].expand(patches.source.shape[0], -1)

    def allowed(self, patches: Patches, mask: Mask) -> Bool[Tensor, "#B 1 Q V"]:
        """Which visible patches (last axis) may be looked at where each of the predicted is predicted."""
        return earlier(self.ranks(patches), mask.visible, self.predicted(patches), self.by)


class Shift(FromEarlier):
    """The pilot study's autoregression, second reading: patch j of the order is predicted from patches up to j - n.

    The encoder sees the first N - n patches; the last N - n are predicted, so that inputs and outputs are equally many. With
    ``count=1`` this is next-token prediction. Source: MAP (arXiv:2410.00871), section 3, which leaves the reading open.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config(FromEarlier.Config):
        count: int = 40
        """n, how many places after a patch those stand that are predicted from it and all before it."""

        def small(self) -> Any:
            """For images of 16 patches instead of 196."""
            return replace(super().small(), count=small_count(self.count))

    config: Shift.Config

    def __init__(self, config: Shift.Config) -> None:
        self.by = config.count
        super().__init__(config)

    def ranks(self, patches: Patches) -> Int[Tensor, "B N"]:
        return prediction_order(self.regions(patches, None)[:1]).expand_as(patches.source)

    def ends(self, patches: Patches) -> tuple[int, int]:
        patch_count, n = patches.source.shape[1], self.config.count
        if not 1 <= n < patch_count:
            raise UserError(
                f"count must be from 1 to {patch_count - 1} where an input has {patch_count} patches, got {n}; try a fifth"
            )
        return n, n

    def check_scan(self, patches: Patches) -> None:
        if int(self.ranks(patches)[0, 0]) != 0:
            raise UserError(
                f"the scan {self.backbone.scan!r} does not start where the prediction by {self.config.regions} does, so that "
                "no feature is free of what is to be predicted; choose regions that start in the corner where the scan does"
            )


class NextRegion(FromEarlier):
    """Next-region prediction in the strict sense: every region is predicted from features of earlier regions alone.

    No mask token of its own or of earlier regions takes part. For diagnostics; not in the paper's figures.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config(FromEarlier.Config):
        """The regions must be at least two, and the scan must go through them one after the other."""

    config: NextRegion.Config

    def ranks(self, patches: Patches) -> Int[Tensor, "B N"]:
        return self.regions(patches, None)

    def ends(self, patches: Patches) -> tuple[int, int]:
        sizes = self.regions.sizes(patches)
        if len(sizes) < 2:
            raise UserError(
                f"an input of {patches.source.shape[1]} patches has one region, and there is nothing to predict it from; use "
                "larger inputs or smaller regions"
            )
        return sizes[0], sizes[-1]

    def check_scan(self, patches: Patches) -> None:
        check_follows(patches, self.regions, self.backbone.scan)
