"""Vim classifiers as released, and those that the options of the official class describe.

The official position table holds the class tokens' rows among those of the patches, in the order of the sequence; ours are
apart, so that the patches' positions can be resampled to another grid.
Source: hustvl/Vim:vim/models_mamba.py @ dd0358a (names and shapes).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from hybridmap.backbones.base import Backbone
from hybridmap.backbones.vim import TOKENS, ClassToken, Vim, class_positions
from hybridmap.convert.mamba_reg import DIRECTIONS, affine, mamba_rules
from hybridmap.convert.origin import AFFINE, NOTHING, Loaded, Origin, Rule, Shapes, indices, rename, square
from hybridmap.errors import UserError

ROTATIONS = "a fixed table, which our network computes"
"""Why the rotary tables of a file are left out."""
OVERLAPPING = 27
"""Patches to a side of the released networks with stride 8, at 224 pixels: side by side they would make 432 pixels."""


@dataclass(frozen=True, kw_only=True)
class Positions(Rule):
    """A position table with rows of class tokens among those of the patches: our ``cls_pos`` and ``pos_embed``."""

    rows: tuple[int, ...]
    """Where the class tokens' rows are."""

    def split(self, tensor: Tensor) -> dict[str, Tensor]:
        ours, count = list(self.rows), tensor.shape[1]
        patches = [i for i in range(count) if i not in self.rows]
        return {"cls_pos": tensor[:, ours], "pos_embed": tensor[:, patches]}

    def join(self, tensors: Mapping[str, Tensor]) -> Tensor:
        own, patches = tensors["cls_pos"].unbind(1), list(tensors["pos_embed"].unbind(1))
        for row, position in zip(self.rows, own, strict=True):
            patches.insert(row, position)
        return torch.stack(patches, dim=1)


class VimClassifier(Origin):
    """Embedding, one class token or two, a stack of Mamba layers, and a linear head.

    No shape tells whether one class token stands in the middle, as in all released files, or first: ``class_token`` says it,
    here or among what is told.
    """

    family = "vim"
    source = "Vim"
    untold = (
        "class_token",
        "pool",
        "divide",
        "bidirectional_pairs",
        "rope_residual",
        "rope_side",
        "residual_in_fp32",
        "scan",
        "stride",
        "img_size",
    )

    def __init__(self, class_token: Literal["middle", "first"] = "middle") -> None:
        self.one: ClassToken = class_token

    def recognises(self, shapes: Shapes) -> bool:
        telling = {"patch_embed.proj.weight", "layers.0.norm.weight", "layers.0.mixer.A_log", "norm_f.weight"}
        others = {"pos_embed_cls", "mask_token", "blocks.0.norm1.weight", "layers.0.mixer.conv1d_c.weight"}
        return telling <= shapes.keys() and not others & shapes.keys()

    def rules(self, shapes: Shapes) -> list[Rule]:
        rules = [*rename("patch_embed.proj", "patch_embed.proj", AFFINE)]
        kind = self._class_token(shapes)
        for name in TOKENS[kind]:
            rules += rename(name, name)
        if "pos_embed" in shapes and kind != "none":
            rows = class_positions(kind, shapes["pos_embed"][1] - len(TOKENS[kind]))
            rules.append(Positions(official="pos_embed", ours=("cls_pos", "pos_embed"), rows=rows))
        elif "pos_embed" in shapes:
            rules += rename("pos_embed", "pos_embed")
        if _has_rope(shapes):
            rules += [Rule(official=name, left_out=ROTATIONS) for name in ("rope.freqs_cos", "rope.freqs_sin")]
        mixer, depth = _mixer(shapes), indices(shapes, "layers.")
        rules += mamba_rules(shapes, range(depth), DIRECTIONS if mixer == "v2" else {"": "fwd"})
        for i in range(depth):
            if mixer == "v1":
                rules += rename(f"layers.{i}.mixer.A_b_log", f"layers.{i}.mixer.dirs.bwd.A_log")
            if _has_scale(shapes):
                rules += rename(f"layers.{i}.mixer.gamma", f"layers.{i}.mixer.gamma")
        rules += rename("norm_f", "norm", affine(shapes, "norm_f"))
        rules += rename("head", "head.fc", AFFINE, optional="the file has no classifier")
        return rules

    def convert(self, state: Mapping[str, Tensor], *, told: Mapping[str, Any] = NOTHING, **options: Any) -> Loaded:
        place = told.get("class_token")
        origin = VimClassifier(place) if place in ("middle", "first") else self  # its row of the positions depends on it
        return super(VimClassifier, origin).convert(state, told=told, **options)

    def config(self, shapes: Shapes, *, num_heads: int | None = None, grid: tuple[int, int] | None = None) -> Backbone.Config:
        width, channels, patch, _ = shapes["patch_embed.proj.weight"]
        inner, d_state = shapes["layers.0.mixer.A_log"]
        kind = self._class_token(shapes)
        learned = "pos_embed" in shapes
        if learned:
            grid = square(shapes["pos_embed"][1] - len(TOKENS[kind]), grid)
        elif _has_rope(shapes):
            grid = square(shapes["rope.freqs_cos"][0], grid)
        elif grid is None:
            raise UserError(
                "a Vim without positions does not tell for which size it was made; pass grid=(rows, columns)"
                " (--grid ROWS COLUMNS)"
            )
        rows, columns = grid
        stride = patch // 2 if rows == columns == OVERLAPPING else patch
        return Vim.Config(
            img_size=((rows - 1) * stride + patch, (columns - 1) * stride + patch),
            patch_size=patch,
            stride=None if stride == patch else stride,
            in_chans=channels,
            embed_dim=width,
            num_classes=shapes["head.weight"][0] if "head.weight" in shapes else 0,
            depth=indices(shapes, "layers."),
            class_token=kind,
            positions="learned" if learned else "none",
            mixer=_mixer(shapes),
            layer_scale=1.0 if _has_scale(shapes) else None,
            rope=_has_rope(shapes),
            norm_kind="layer" if "norm_f.bias" in shapes else "rms",
            d_state=d_state,
            d_conv=shapes["layers.0.mixer.conv1d.weight"][-1],
            expand=inner // width,
        )

    def _class_token(self, shapes: Shapes) -> ClassToken:
        if "cls_token_head" in shapes:
            return "double"
        return self.one if "cls_token" in shapes else "none"


def _has_rope(shapes: Shapes) -> bool:
    return "rope.freqs_cos" in shapes


def _has_scale(shapes: Shapes) -> bool:
    return "layers.0.mixer.gamma" in shapes


def _mixer(shapes: Shapes) -> Literal["v2", "v1", "uni"]:
    if "layers.0.mixer.conv1d_b.weight" in shapes:
        return "v2"
    return "v1" if "layers.0.mixer.A_b_log" in shapes else "uni"
