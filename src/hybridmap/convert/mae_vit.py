"""Vision Transformers for classification, as MAE fine-tunes them and DeiT releases them.

``norm`` over the tokens and the class token read out, or ``fc_norm`` over the mean of the patches.
Source: facebookresearch/mae:models_vit.py @ efb2a80; facebookresearch/deit @ 7e160fe (names and shapes).
"""

from __future__ import annotations

from collections.abc import Iterator

from hybridmap.backbones.base import Backbone
from hybridmap.backbones.vit import ViT
from hybridmap.convert.map_hybridnet import transformer_rules
from hybridmap.convert.origin import AFFINE, Origin, Rule, Shapes, indices, rename, square
from hybridmap.errors import UserError

HEADS = {192: 3, 384: 6, 768: 12, 1024: 16, 1280: 16}
"""Width -> heads of the released sizes."""


class MaeViT(Origin):
    """A plain ViT with a head."""

    family = "mae-vit"
    source = "a ViT of MAE or DeiT"

    def recognises(self, shapes: Shapes) -> bool:
        return {"cls_token", "pos_embed", "blocks.0.attn.qkv.weight", "head.weight"} <= shapes.keys() and (
            "layers.0.mixer.A_log" not in shapes and "mask_token" not in shapes
        )

    def rules(self, shapes: Shapes) -> list[Rule]:
        norm = "fc_norm" if "fc_norm.weight" in shapes else "norm"
        return [*encoder_rules(shapes, norm), *rename("head", "head.fc", AFFINE)]

    def config(self, shapes: Shapes, *, num_heads: int | None = None, grid: tuple[int, int] | None = None) -> Backbone.Config:
        pooled = "fc_norm.weight" in shapes
        return vit_config(
            shapes,
            num_heads,
            grid,
            num_classes=shapes["head.weight"][0],
            pool="avg" if pooled else "cls",
            norm_position="pooled" if pooled else "tokens",
            positions="learned",
        )


def encoder_rules(shapes: Shapes, norm: str) -> Iterator[Rule]:
    """Embedding, blocks and the final norm. The first row of the official position table is the class token's."""
    yield from rename("cls_token", "cls_token")
    yield Rule(official="pos_embed", ours=("cls_pos", "pos_embed"), sizes=(1, shapes.get("pos_embed", (1, 2))[1] - 1), dim=1)
    yield from rename("patch_embed.proj", "patch_embed.proj", AFFINE)
    for i in range(indices(shapes, "blocks.")):
        yield from transformer_rules(f"blocks.{i}", f"layers.{i}")
    yield from rename(norm, "norm", AFFINE)


def vit_config(shapes: Shapes, num_heads: int | None, grid: tuple[int, int] | None, **choices: int | str) -> Backbone.Config:
    """The ViT that the shapes describe."""
    width, channels, patch, _ = shapes["patch_embed.proj.weight"]
    rows, columns = square(shapes["pos_embed"][1] - 1, grid)
    heads = num_heads or HEADS.get(width, width // 64 if width % 64 == 0 else 0)
    if not heads or width % heads:
        raise UserError(f"the shapes do not tell how many heads a ViT of width {width} has; give num_heads, which divides it")
    return ViT.Config(
        img_size=(rows * patch, columns * patch),
        patch_size=patch,
        in_chans=channels,
        embed_dim=width,
        depth=indices(shapes, "blocks."),
        num_heads=heads,
        mlp_ratio=shapes["blocks.0.mlp.fc1.weight"][0] / width,
        **choices,  # type: ignore[arg-type]
    )
