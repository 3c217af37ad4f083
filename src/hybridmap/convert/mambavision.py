"""MambaVision classifiers as released. Source: NVlabs/MambaVision:mambavision/models/mamba_vision.py (names and shapes).

All names may start with ``model.``, as in the port to another library. A file without the counters of BatchNorm, which only
training with a cumulative average reads, is complete; they start from zero.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from hybridmap.backbones.base import Backbone
from hybridmap.backbones.mambavision import MambaVision
from hybridmap.convert.origin import AFFINE, Loaded, Origin, Rule, Shapes, indices, rename
from hybridmap.errors import UserError

HEADS = {80: 8, 96: 8, 128: 8, 196: 16}
"""Width of the first stage -> heads in stage 2 of the released sizes; stage 3 has twice as many."""

_COUNTER = "num_batches_tracked"


class MambaVisionOrigin(Origin):
    """Stem, four stages with three downsamplings, BatchNorm and the classifier."""

    family = "mambavision"
    source = "MambaVision"
    untold = ("window_size",)

    def recognises(self, shapes: Shapes) -> bool:
        start = prefix(shapes)
        return {f"{start}patch_embed.conv_down.0.weight", f"{start}levels.0.blocks.0.conv1.weight"} <= shapes.keys()

    def rules(self, shapes: Shapes) -> list[Rule]:
        start = prefix(shapes)
        bare = {name.removeprefix(start): shape for name, shape in shapes.items()}
        return [replace(rule, official=start + rule.official) for rule in bare_rules(bare)]

    def config(self, shapes: Shapes, *, num_heads: int | None = None, grid: tuple[int, int] | None = None) -> Backbone.Config:
        """``num_heads`` is that of stage 2. Windows, which shapes do not tell either, are those of 224 pixels."""
        start = prefix(shapes)
        bare = {name.removeprefix(start): shape for name, shape in shapes.items()}
        stem_dim, in_chans = bare["patch_embed.conv_down.0.weight"][:2]
        width = bare["patch_embed.conv_down.3.weight"][0]
        heads = num_heads or HEADS.get(width, 0)
        if not heads:
            raise UserError(f"the shapes do not tell how many heads a MambaVision of width {width} has; give num_heads")
        return MambaVision.Config(
            in_chans=in_chans,
            embed_dim=width,
            depths=tuple(indices(bare, f"levels.{s}.blocks.") for s in range(4)),
            stem_dim=stem_dim,
            num_heads=(heads, 2 * heads),
            mlp_ratio=bare["levels.2.blocks.0.mlp.fc1.weight"][0] / (4 * width),
            qk_norm=any(name.endswith("mixer.q_norm.weight") for name in bare),
            layer_scale=1e-5 if "levels.2.blocks.0.gamma_1" in bare else None,
            conv_layer_scale=1e-5 if "levels.0.blocks.0.gamma" in bare else None,
            num_classes=bare["head.weight"][0] if "head.weight" in bare else 0,
        )

    def convert(self, state: Mapping[str, Tensor], **options: Any) -> Loaded:
        loaded = super().convert(state, **options)
        counters = [name for name in loaded.report.fresh if name.endswith(_COUNTER)]
        return replace(loaded, weights=loaded.weights | {name: torch.tensor(0) for name in counters})


def prefix(shapes: Shapes) -> str:
    """What stands before every name."""
    return "model." if shapes and all(name.startswith("model.") for name in shapes) else ""


def bare_rules(shapes: Shapes) -> Iterator[Rule]:
    """All rules, for names without a prefix."""
    for layer in (0, 3):
        yield from rename(f"patch_embed.conv_down.{layer}.weight", f"stem.{layer}.weight")
        yield from batch_norm(f"patch_embed.conv_down.{layer + 1}", f"stem.{layer + 1}")
    for s in range(4):
        for j in range(indices(shapes, f"levels.{s}.blocks.")):
            official, ours = f"levels.{s}.blocks.{j}", f"stages.{s}.blocks.{j}"
            yield from conv_block(shapes, official, ours) if s < 2 else window_block(shapes, official, ours)
        if s < 3:
            yield from rename(f"levels.{s}.downsample.reduction.0.weight", f"stages.{s}.downsample.weight")
    yield from batch_norm("norm", "norm")
    yield from rename("head", "head.fc", AFFINE, optional="the file has no classifier")


def batch_norm(official: str, ours: str) -> Iterator[Rule]:
    """Parameters and running statistics; the counter may be absent."""
    yield from rename(official, ours, (*AFFINE, ".running_mean", ".running_var"))
    yield from rename(f"{official}.{_COUNTER}", f"{ours}.{_COUNTER}", optional="the file does not count batches")


def conv_block(shapes: Shapes, official: str, ours: str) -> Iterator[Rule]:
    """A block of stages 0 and 1."""
    for i in (1, 2):
        yield from rename(f"{official}.conv{i}", f"{ours}.conv{i}", AFFINE)
        yield from batch_norm(f"{official}.norm{i}", f"{ours}.norm{i}")
    if f"{official}.gamma" in shapes:
        yield from rename(f"{official}.gamma", f"{ours}.scale.gamma")


def window_block(shapes: Shapes, official: str, ours: str) -> Iterator[Rule]:
    """A block of stages 2 and 3: the scan or attention, and the MLP."""
    for i in (1, 2):
        yield from rename(f"{official}.norm{i}", f"{ours}.norm{i}", AFFINE)
        yield from rename(f"{official}.mlp.fc{i}", f"{ours}.mlp.fc{i}", AFFINE)
        if f"{official}.gamma_{i}" in shapes:
            yield from rename(f"{official}.gamma_{i}", f"{ours}.scale{i}.gamma")
    official, ours = f"{official}.mixer", f"{ours}.mixer"
    if f"{official}.A_log" in shapes:
        leaves = (".in_proj.weight", ".x_proj.weight", ".dt_proj.weight", ".dt_proj.bias", ".out_proj.weight", ".A_log", ".D")
        yield from rename(official, ours, leaves)
        for half in ("x", "z"):
            yield from rename(f"{official}.conv1d_{half}.weight", f"{ours}.conv_{half}.weight")
        return
    for part in ("qkv", "proj"):
        yield from rename(f"{official}.{part}", f"{ours}.{part}", AFFINE)
    for norm in ("q_norm", "k_norm"):
        if f"{official}.{norm}.weight" in shapes:
            yield from rename(f"{official}.{norm}", f"{ours}.{norm}", AFFINE)
