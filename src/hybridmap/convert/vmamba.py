"""VMamba classifiers as released, with the names of their second generation or of older files.

    layers.{s}.blocks.{j}.op.*   older: layers.{s}.blocks.{j}.self_attention.*     ours: stages.{s}.blocks.{j}.mixer.*

Linear maps may be stored as 1x1 convolutions; they are viewed as matrices. Source: MzeroMiko/VMamba:classification/models/
vmamba.py @ 2ed52ea (names and shapes).
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator

from hybridmap.backbones.base import Backbone
from hybridmap.backbones.vmamba import VMamba
from hybridmap.convert.origin import AFFINE, Origin, Rule, Shapes, indices
from hybridmap.errors import UserError

OLDER = (
    (r"^(layers\.\d+\.blocks\.\d+)\.ln_1\.", r"\1.norm."),
    (r"^(layers\.\d+\.blocks\.\d+)\.self_attention\.", r"\1.op."),
    (r"^patch_embed\.proj\.", "patch_embed.0."),
    (r"^patch_embed\.norm\.", "patch_embed.2."),
    (r"^(norm|head)\.", r"classifier.\1."),
)
"""Names of older files -> those of the second generation."""

STEM = {"0": "conv1", "2": "norm1", "5": "conv2", "7": "norm2"}
"""Places in the official stem that hold parameters -> our names of these layers."""
DOWNSAMPLE = {"1": "conv", "3": "norm"}
"""The same for the step between two stages."""
SCAN = (
    "x_proj_weight",
    "dt_projs_weight",
    "dt_projs_bias",
    "A_logs",
    "Ds",
    "conv2d.weight",
    "out_norm.weight",
    "out_norm.bias",
)
"""What a mixer has beside its linear maps."""
LINEAR = (".in_proj.weight", ".out_proj.weight", ".fc1.weight", ".fc2.weight", ".fc.weight")
"""Ends of our names of matrices, which official files may hold as 1x1 convolutions."""


class VMambaV2(Origin):
    """Stem of two convolutions, stages of SS2D blocks (variant ``v05_noz``), normalised and averaged for the classifier."""

    family = "vmamba"
    source = "VMamba (second generation)"

    def recognises(self, shapes: Shapes) -> bool:
        stacked = by_newer_names(shapes).get("layers.0.blocks.0.op.x_proj_weight", ())
        return len(stacked) == 3 and stacked[0] == 4

    def rules(self, shapes: Shapes) -> list[Rule]:
        in_file = {newer(name): name for name in shapes}
        named = by_newer_names(shapes)

        def rule(name: str, ours: str, optional: str) -> Rule:
            trailing = 2 if ours.endswith(LINEAR) and len(named.get(name, ())) == 4 else 0
            return Rule(official=in_file.get(name, name), ours=(ours,), trailing=trailing, optional=optional)

        return [rule(*names) for names in pairs(named)]

    def config(self, shapes: Shapes, *, num_heads: int | None = None, grid: tuple[int, int] | None = None) -> Backbone.Config:
        named = by_newer_names(shapes)
        block = "layers.0.blocks.0"
        width, inner = named[f"{block}.norm.weight"][0], named[f"{block}.op.conv2d.weight"][0]
        if named[f"{block}.op.in_proj.weight"][0] != inner:
            raise UserError(
                f"expected mixers without a gate (v05_noz), whose in_proj gives the {inner} channels of the convolution, got"
                f" {named[f'{block}.op.in_proj.weight'][0]}; only VMamba's second generation is supported"
            )
        rank = named[f"{block}.op.dt_projs_weight"][2]
        if rank != math.ceil(width / 16):
            raise UserError(f"expected step sizes of rank {math.ceil(width / 16)} (width {width} / 16), got {rank}")
        classifier = named.get("classifier.head.weight")
        depths = tuple(indices(named, f"layers.{s}.blocks.") for s in range(indices(named, "layers.")))
        unit = VMamba.STEM_STRIDE * 2 ** (len(depths) - 1)
        rows, columns = grid or (224 // unit, 224 // unit)
        return VMamba.Config(
            img_size=(unit * rows, unit * columns),
            patch_size=unit,
            in_chans=named["patch_embed.0.weight"][1],
            embed_dim=width,
            num_classes=classifier[0] if classifier else 0,
            depths=depths,
            d_state=named[f"{block}.op.A_logs"][1],
            expand=inner / width,
            mlp_ratio=named[f"{block}.mlp.fc1.weight"][0] / width,
        )


def newer(name: str) -> str:
    """The second generation's name of a tensor."""
    for pattern, replacement in OLDER:
        name = re.sub(pattern, replacement, name)
    return name


def by_newer_names(shapes: Shapes) -> Shapes:
    """The same shapes, whatever the age of the file."""
    return {newer(name): shape for name, shape in shapes.items()}


def pairs(named: Shapes) -> Iterator[tuple[str, str, str]]:
    """(official name, our name, why it may be missing) of every tensor, official names those of the second generation."""

    def affine(official: str, ours: str, optional: str = "") -> Iterator[tuple[str, str, str]]:
        for leaf in AFFINE:
            yield official + leaf, ours + leaf, optional

    for place, ours in STEM.items():
        yield from affine(f"patch_embed.{place}", f"stem.{ours}")
    stages = indices(named, "layers.")
    for s in range(stages):
        for j in range(indices(named, f"layers.{s}.blocks.")):
            official, ours = f"layers.{s}.blocks.{j}", f"stages.{s}.blocks.{j}"
            yield from affine(f"{official}.norm", f"{ours}.norm1")
            yield from affine(f"{official}.norm2", f"{ours}.norm2")
            for leaf in ("in_proj.weight", "out_proj.weight", *SCAN):
                yield f"{official}.op.{leaf}", f"{ours}.mixer.{leaf}", ""
            for layer in ("fc1", "fc2"):
                yield from affine(f"{official}.mlp.{layer}", f"{ours}.mlp.{layer}")
        if s < stages - 1:
            for place, ours in DOWNSAMPLE.items():
                yield from affine(f"layers.{s}.downsample.{place}", f"stages.{s}.downsample.{ours}")
    yield from affine("classifier.norm", "norm")
    yield from affine("classifier.head", "head.fc", "the file has no classifier")
