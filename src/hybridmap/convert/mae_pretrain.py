"""MAE pretraining as released: a ViT without head, and the decoder where it was kept.

``mae_pretrain_*`` files hold the encoder alone, ``mae_visualize_*`` both.
Source: facebookresearch/mae:models_mae.py @ efb2a80 (names and shapes).
"""

from __future__ import annotations

from collections.abc import Iterator

from hybridmap.backbones.base import Backbone
from hybridmap.convert.mae_vit import encoder_rules, vit_config
from hybridmap.convert.map_hybridnet import transformer_rules
from hybridmap.convert.origin import AFFINE, Origin, Rule, Shapes, indices, rename


class MaePretrain(Origin):
    """Encoder with fixed sine-cosine positions, and a decoder of ordinary Transformer blocks."""

    family = "mae-pretrain"
    source = "MAE pretraining"

    def recognises(self, shapes: Shapes) -> bool:
        return {"cls_token", "pos_embed", "blocks.0.attn.qkv.weight"} <= shapes.keys() and (
            "layers.0.mixer.A_log" not in shapes and "head.weight" not in shapes
        )

    def rules(self, shapes: Shapes) -> list[Rule]:
        return [*encoder_rules(shapes, "norm"), *(decoder_rules(shapes) if "mask_token" in shapes else ())]

    def config(self, shapes: Shapes, *, num_heads: int | None = None, grid: tuple[int, int] | None = None) -> Backbone.Config:
        return vit_config(shapes, num_heads, grid, num_classes=0, pool="cls", norm_position="tokens", positions="sincos")


def decoder_rules(shapes: Shapes) -> Iterator[Rule]:
    """The decoder, whose class token has the first row of its position table."""
    yield from rename("mask_token", "decoder.mask_token")
    yield Rule(
        official="decoder_pos_embed",
        ours=("decoder.cls_pos", "decoder.pos_embed"),
        sizes=(1, shapes.get("decoder_pos_embed", (1, 2))[1] - 1),
        dim=1,
    )
    yield from rename("decoder_embed", "decoder.embed", AFFINE)
    for j in range(indices(shapes, "decoder_blocks.")):
        yield from transformer_rules(f"decoder_blocks.{j}", f"decoder.layers.{j}")
    yield from rename("decoder_norm", "decoder.norm", AFFINE)
    yield from rename("decoder_pred", "decoder.pred", AFFINE)
