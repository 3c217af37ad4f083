"""MAP's HybridNet as released, for pretraining. Source: yunzeliu/MAP:models_mamba.py @ f3bcdff (names and shapes).

Such a file holds the encoder, the pretraining decoder, and registers, neck and head that pretraining never trains. A file
without the decoder (an encoder, or a classifier fine-tuned with Mamba-R's script) is accepted; its head counts as trained.
"""

from __future__ import annotations

from collections.abc import Iterator

from hybridmap.backbones.base import Backbone
from hybridmap.convert.mamba_reg import hybrid_config, mamba_rules, shell_rules
from hybridmap.convert.origin import AFFINE, Origin, Rule, Shapes, indices, rename
from hybridmap.errors import UserError

TRANSFORMER = ("norm1", "attn.qkv", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2")
"""Modules of a Transformer block, each with weight and bias; ours have the same names."""


class MapHybridNet(Origin):
    """Mamba layers in ``layers.{i}``, the Transformer block after every third of them in ``blocks.{b}``, and the decoder."""

    family = "map-hybridnet"
    source = "MAP's HybridNet"

    def recognises(self, shapes: Shapes) -> bool:
        telling = "mask_token" in shapes or "blocks.0.attn.qkv.weight" in shapes
        return telling and {"pos_embed_cls", "layers.0.mixer.A_b_log"} <= shapes.keys()

    def rules(self, shapes: Shapes) -> list[Rule]:
        layout = released_layout(shapes)
        positions = {kind: [s for s, letter in enumerate(layout) if letter == kind] for kind in "MT"}
        pretraining = "mask_token" in shapes
        rules = [*shell_rules(shapes, untrained=pretraining), *mamba_rules(shapes, positions["M"])]
        for b, s in enumerate(positions["T"]):
            rules += transformer_rules(f"blocks.{b}", f"layers.{s}")
        return rules + (list(decoder_rules(shapes)) if pretraining else [])

    def config(self, shapes: Shapes, *, num_heads: int | None = None, grid: tuple[int, int] | None = None) -> Backbone.Config:
        width = shapes["patch_embed.proj.weight"][0]
        layout = released_layout(shapes)
        if "T" not in layout:
            return hybrid_config(shapes, layout, grid)
        heads = num_heads or (16 if width == 1024 else 12)
        if width % heads:
            raise UserError(
                f"{heads} heads do not divide the width {width}, and shapes do not tell their number; give num_heads"
            )
        ratio = shapes["blocks.0.mlp.fc1.weight"][0] / width
        return hybrid_config(shapes, layout, grid, num_heads=heads, transformer_mlp_ratio=ratio)


def released_layout(shapes: Shapes) -> str:
    """M and T in execution order, which the names do not show: a T after every third M while there are any left.

    Raises:
        UserError: if the file has another number of Transformer blocks than that rule gives.
    """
    depth, blocks = indices(shapes, "layers."), indices(shapes, "blocks.")
    layout = "".join("MT" if i % 3 == 2 else "M" for i in range(depth))
    if layout.count("T") != blocks:
        raise UserError(
            f"expected a Transformer block after every third of {depth} Mamba layers, {depth // 3} in all, but the file has"
            f" {blocks}; only the released MMMT layout can be converted"
        )
    return layout


def transformer_rules(official: str, ours: str) -> Iterator[Rule]:
    """A Transformer block, whose modules have the same names everywhere."""
    for module in TRANSFORMER:
        yield from rename(f"{official}.{module}", f"{ours}.{module}", AFFINE)


def decoder_rules(shapes: Shapes) -> Iterator[Rule]:
    """The decoder, whose attention normalises queries and keys apart."""
    yield from rename("mask_token", "decoder.mask_token")
    yield from rename("decoder_pos_embed_learned", "decoder.pos_embed")
    yield from rename("decoder_embed", "decoder.embed", AFFINE)
    for j in range(indices(shapes, "decoder_blocks.")):
        yield from cross_rules(f"decoder_blocks.{j}", f"decoder.layers.{j}")
    yield from rename("decoder_norm", "decoder.norm", AFFINE)
    yield from rename("ar_pred", "decoder.pred", AFFINE)


def cross_rules(official: str, ours: str) -> Iterator[Rule]:
    """A decoder block with separate norms of queries and keys, whose parts ARM and MAP call alike."""
    yield from rename(f"{official}.norm2_1", f"{ours}.norm_q", AFFINE)
    yield from rename(f"{official}.norm2_2", f"{ours}.norm_kv", AFFINE)
    yield from rename(f"{official}.norm2", f"{ours}.norm_mlp", AFFINE)
    for module in ("q", "kv", "proj"):
        yield from rename(f"{official}.attn2.{module}", f"{ours}.attn.{module}", AFFINE)
    for module in ("mlp.fc1", "mlp.fc2"):
        yield from rename(f"{official}.{module}", f"{ours}.{module}", AFFINE)
