"""Masked autoregressive pretraining (MAP), and everything that the paper compares it with: one computation, two choices.

The encoder sees the visible patches. The decoder predicts the masked ones, region after region: for a patch of region r it may
look at regions 0 .. r. The two choices are the partition into regions and who may look at whom:

    objective            regions    decoder_mask    usual masking
    MAP                  Rows       "map"           Random, ratio 0.5
    local MAE            Rows       "local_mae"     Random, ratio 0.5
    AR decoder mask      Rows       "ar"            Random, ratio 0.5
    pilot AR, "tail"     Rows       "ar"            Sequential, count n
    MAE                  any        "mae"           Random, ratio 0.75, rounding "keep_floor"; MAE's own decoder: MAEDecoder

    rows 0..3            "map"        "local_mae"  "mae"        "ar"
                         key 0 1 2 3  key 0 1 2 3  key 0 1 2 3  key 0 1 2 3
    query of region 0        ■            ■            ■ ■ ■ ■      ◣
                    1        ■ ■            ■          ■ ■ ■ ■      ■ ◣
                    2        ■ ■ ■            ■        ■ ■ ■ ■      ■ ■ ◣
                    3        ■ ■ ■ ■            ■      ■ ■ ■ ■      ■ ■ ■ ◣

A target that is a distribution (:class:`hybridmap.objectives.targets.Diffusion`) goes with every line of the table.

Only the decoder is restricted: the encoder is bidirectional over the visible patches of the whole image, unless
``encoder_causal`` says otherwise. Masked content reaches neither. The other reading of the pilot's AR is in
``hybridmap.objectives.shift``. Source: MAP (arXiv:2410.00871), section 4 and Figure 6; yunzeliu/MAP:models_mamba.py @ f3bcdff.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import partial
from typing import Literal, get_args

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from hybridmap.backbones.hierarchical import HierarchicalBackbone
from hybridmap.errors import UserError
from hybridmap.layers.mamba import freeze_backward
from hybridmap.layers.mixing import Mixing
from hybridmap.objectives.base import PatchObjective
from hybridmap.objectives.decoder import InPlaceDecoder, MAPDecoder
from hybridmap.objectives.targets import Pixels, Target
from hybridmap.tokens.masking import Masking, Random
from hybridmap.tokens.regions import DecoderMask, Regions, Rows, check_follows, permission
from hybridmap.types import Batch, Loss, Mask, Patches


class MAP(PatchObjective):
    """The objective of this project; see the table above for its settings."""

    @dataclass(frozen=True, kw_only=True)
    class Config(PatchObjective.Config):
        masking: Masking.Config = field(default_factory=Random.Config)
        """What is hidden from the encoder."""
        regions: Regions.Config = field(default_factory=Rows.Config)
        """What is predicted together, and in which order."""
        decoder_mask: DecoderMask = "map"
        """Who may look at whom in the decoder."""
        decoder: InPlaceDecoder.Config = field(default_factory=MAPDecoder.Config)
        """What predicts."""
        target: Target.Config = field(default_factory=Pixels.Config)
        """What predictions are compared with."""
        encoder_causal: Literal["none", "region"] = "none"
        """``region``: the encoder reads one way, along a scan that follows the regions, so that the features of a region know
        nothing of visible patches of later ones. Scans backwards are left out; inside a region no patch sees a later one."""
        loss_on: Literal["masked", "all"] = "masked"
        """Patches whose prediction counts. ``all`` is our reading of the paper's row with a mask ratio of 0."""
        mixing: Mixing.Config = field(default_factory=partial(Mixing.Config, mixup=0.0, cutmix=0.0))
        """Mixup and CutMix of the images before they are masked; the released script has them on, ours are off."""
        keep_masked_features: bool = False
        """Give the decoder what a backbone that encodes whole images (MambaVision, VMamba) computed at masked units too,
        instead of its mask token. They hold a mixture of the whole image, so that ``decoder_mask`` then restricts little."""

    config: MAP.Config

    def __init__(self, config: MAP.Config) -> None:
        super().__init__(config)
        if config.decoder_mask not in get_args(DecoderMask):
            raise UserError(f"decoder_mask must be one of {', '.join(get_args(DecoderMask))}, got {config.decoder_mask!r}")
        if config.loss_on not in ("masked", "all"):
            raise UserError(f"loss_on must be masked or all, got {config.loss_on!r}")
        if config.encoder_causal not in ("none", "region"):
            raise UserError(f"encoder_causal must be none or region, got {config.encoder_causal!r}")
        dense = isinstance(self.backbone, HierarchicalBackbone)
        if config.keep_masked_features and not dense:
            raise UserError(
                f"keep_masked_features needs a backbone that encodes whole images, such as MambaVision, and "
                f"{type(self.backbone).__name__} never sees masked patches; leave it False"
            )
        if config.encoder_causal == "region" and dense:
            raise UserError(
                f"{type(self.backbone).__name__} cannot encode causally: its convolutions look ahead; leave "
                "encoder_causal at none"
            )
        self.mixing: Mixing = config.mixing.build()
        self.masking: Masking = config.masking.build()
        self.regions: Regions = config.regions.build()
        patch_values = self.backbone.patch_values
        self.target: Target = config.target.build(
            width=config.decoder.width, grid=self.backbone.grid, patch_values=patch_values
        )
        self.decoder: InPlaceDecoder = config.decoder.build(
            embed_dim=self.backbone.embed_dim,
            grid=self.backbone.grid,
            patch_values=None if self.target.of_state else patch_values,
        )
        if config.loss_on == "masked" and self.masking.hides_nothing:
            raise UserError(
                'with a mask ratio of 0 nothing is masked, so a loss on masked patches is 0/0; set loss_on to "all"'
            )
        if config.encoder_causal == "region":
            check_follows(self.usual_patches(), self.regions, getattr(self.backbone, "scan", "row"))
            freeze_backward(self.backbone)

    def forward(self, batch: Batch) -> Loss:
        images = self.mixing(batch.inputs)[0] if self.training else batch.inputs
        return super().forward(replace(batch, inputs=images))

    def draw(self, patches: Patches, batch: Batch) -> Mask:
        ranks, sizes = self.regions(patches, None), self.regions.sizes(patches)
        return self.masking(patches, ranks, sizes, batch.key, batch.step_key)

    def step(self, patches: Patches, mask: Mask, key: Int[Tensor, "B"] | None = None) -> Loss:
        pred = self.decode(patches, mask)
        return Loss(total=self.target.loss(pred, patches, mask if self.config.loss_on == "masked" else None, key))

    def predict(self, patches: Patches, mask: Mask, key: Int[Tensor, "B"] | None = None) -> Float[Tensor, "B N P"]:
        """``key`` names the samples where a prediction is drawn, as :class:`hybridmap.objectives.targets.Diffusion` does."""
        return self.target.values_of(self.decode(patches, mask), patches, key)

    def decode(self, patches: Patches, mask: Mask) -> Float[Tensor, "B N O"]:
        """What the decoder returns for every patch, by position in the scan: values, or the state that the target reads."""
        allowed = self.allowed(patches, mask)
        if not self.config.keep_masked_features:
            seen = self.backbone.encode_visible(patches, mask, causal=self.config.encoder_causal == "region")
            return self.decoder(seen, mask, patches, allowed)
        every = torch.arange(patches.source.shape[1], device=patches.source.device).expand_as(patches.source)
        nothing_masked = Mask(masked=torch.zeros_like(mask.masked), visible=every)
        return self.decoder(self.backbone.encode_dense(patches, mask), nothing_masked, patches, allowed)

    def allowed(self, patches: Patches, mask: Mask | None = None) -> Bool[Tensor, "#B 1 N N"] | None:
        """Who may look at whom in the decoder; None where everybody may look at everybody."""
        if self.config.decoder_mask == "mae":
            return None
        return permission(self.regions(patches, mask), self.config.decoder_mask)
