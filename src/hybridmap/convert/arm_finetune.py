"""ARM classifiers as released: four scanning directions, the class token in the middle of the sequence.

Source: OliverRensu/ARM:Finetuning/models_mamba.py @ 996d93e (names and shapes).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from hybridmap.backbones.arm import ARM
from hybridmap.backbones.base import Backbone
from hybridmap.backbones.vim import class_positions
from hybridmap.convert.mamba_reg import mixer_rules
from hybridmap.convert.origin import AFFINE, Origin, Rule, Shapes, indices, rename, square
from hybridmap.convert.vim import Positions

DIRECTIONS = {"": "fwd", "_b": "bwd", "_c": "col_fwd", "_c_b": "col_bwd"}
"""Suffix of the official names -> our direction."""

MLP = {"w1": "gate", "w2": "up", "w3": "down"}
"""Official parts of the gated MLP -> ours."""


class ArmFinetune(Origin):
    """Embedding with class token, four-way layers, final norm and head."""

    family = "arm-finetune"
    source = "an ARM classifier"
    untold = ("pool",)

    def recognises(self, shapes: Shapes) -> bool:
        return {"cls_token", "pos_embed", "layers.0.mixer.A_c_b_log", "layers.0.mlp.w1.weight"} <= shapes.keys()

    def rules(self, shapes: Shapes) -> list[Rule]:
        patches = shapes.get("pos_embed", (1, 2))[1] - 1
        return [
            *rename("patch_embed.proj", "patch_embed.proj", AFFINE),
            *rename("cls_token", "cls_token"),
            Positions(official="pos_embed", ours=("cls_pos", "pos_embed"), rows=class_positions("middle", patches)),
            *layer_rules(shapes, DIRECTIONS),
            *rename("norm_f", "norm", AFFINE),
            *rename("head", "head.fc", AFFINE, optional="the file has no classifier"),
        ]

    def config(self, shapes: Shapes, *, num_heads: int | None = None, grid: tuple[int, int] | None = None) -> Backbone.Config:
        """Shapes do not tell which of the two read-outs was trained; that of the released classifiers is the mean."""
        return arm_config(
            shapes, square(shapes["pos_embed"][1] - 1, grid), num_classes=shapes.get("head.weight", (0,))[0], pool="avg"
        )


def layer_rules(shapes: Shapes, directions: Mapping[str, str]) -> Iterator[Rule]:
    """The layers: a mixer with these directions, and a gated MLP."""
    for i in range(indices(shapes, "layers.")):
        layer = f"layers.{i}"
        for module in ("norm1", "norm2"):
            yield from rename(f"{layer}.{module}", f"{layer}.{module}", AFFINE)
        yield from mixer_rules(shapes, f"{layer}.mixer", f"{layer}.mixer", directions)
        for theirs, ours in MLP.items():
            yield from rename(f"{layer}.mlp.{theirs}", f"{layer}.mlp.{ours}", AFFINE)


def arm_config(shapes: Shapes, grid: tuple[int, int], **choices: int | str | bool) -> Backbone.Config:
    """The ARM that the shapes describe."""
    width, channels, patch, _ = shapes["patch_embed.proj.weight"]
    return ARM.Config(
        img_size=(grid[0] * patch, grid[1] * patch),
        patch_size=patch,
        in_chans=channels,
        embed_dim=width,
        depth=indices(shapes, "layers."),
        **choices,  # type: ignore[arg-type]
    )
