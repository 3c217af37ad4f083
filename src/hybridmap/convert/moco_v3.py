"""MoCo v3 pretraining of Vision Transformers: the encoder that was trained, without what the contrastive loss needed besides.

``base_encoder`` is a ViT with fixed sine-cosine positions whose head is the projector; ``momentum_encoder`` is its moving
average, ``predictor`` stands behind the projector. Files of its linear probe hold a plain classifier and are read as one.
Source: facebookresearch/moco-v3 (names and shapes).
"""

from __future__ import annotations

from dataclasses import replace

from hybridmap.backbones.base import Backbone
from hybridmap.convert.mae_vit import encoder_rules, vit_config
from hybridmap.convert.origin import Origin, Rule, Shapes

ENCODER = "base_encoder."
LEFT_OUT = {
    "base_encoder.head.": "projector of the contrastive loss",
    "momentum_encoder.": "moving average of the encoder, which made the keys",
    "predictor.": "predictor of the contrastive loss",
}
HEADS = {384: 12, 768: 12}
"""Width -> heads of the released sizes; the small one has twice the heads of DeiT's."""


class MocoV3(Origin):
    """Encoder of a contrastive pretraining."""

    family = "moco-v3"
    source = "MoCo v3"

    def recognises(self, shapes: Shapes) -> bool:
        return {f"{ENCODER}cls_token", f"{ENCODER}blocks.0.attn.qkv.weight"} <= shapes.keys()

    def rules(self, shapes: Shapes) -> list[Rule]:
        encoder = [replace(rule, official=ENCODER + rule.official) for rule in encoder_rules(_encoder(shapes), "norm")]
        left_out = [
            Rule(official=name, left_out=why) for name in shapes for prefix, why in LEFT_OUT.items() if name.startswith(prefix)
        ]
        return [*encoder, *left_out]

    def config(self, shapes: Shapes, *, num_heads: int | None = None, grid: tuple[int, int] | None = None) -> Backbone.Config:
        encoder = _encoder(shapes)
        heads = num_heads or HEADS.get(encoder["patch_embed.proj.weight"][0])
        return vit_config(encoder, heads, grid, num_classes=0, pool="cls", norm_position="tokens", positions="sincos")


def _encoder(shapes: Shapes) -> Shapes:
    """Names and shapes of the encoder alone, as a ViT has them."""
    return {name.removeprefix(ENCODER): shape for name, shape in shapes.items() if name.startswith(ENCODER)}
