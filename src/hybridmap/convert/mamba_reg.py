"""Mamba-R classifiers as released. Source: wangf3014/Mamba-Reg:models_mamba.py @ 0f7c2da (names and shapes)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from hybridmap.backbones.base import Backbone
from hybridmap.backbones.hybrid import HybridNet
from hybridmap.convert.origin import AFFINE, Origin, Rule, Shapes, indices, rename, square

DIRECTIONS = {"": "fwd", "_b": "bwd"}
"""Suffix of the official names -> our direction."""


class MambaReg(Origin):
    """Embedding, registers, a stack of two-direction Mamba layers, and the reducing head."""

    family = "mamba-reg"
    source = "Mamba-Reg"

    def recognises(self, shapes: Shapes) -> bool:
        return (
            {"pos_embed_cls", "layers.0.mixer.A_b_log"} <= shapes.keys()
            and "mask_token" not in shapes
            and not any(name.startswith("blocks.") for name in shapes)
        )

    def rules(self, shapes: Shapes) -> list[Rule]:
        return [*shell_rules(shapes), *mamba_rules(shapes, range(indices(shapes, "layers.")))]

    def config(self, shapes: Shapes, *, num_heads: int | None = None, grid: tuple[int, int] | None = None) -> Backbone.Config:
        return hybrid_config(shapes, "M" * indices(shapes, "layers."), grid)


def shell_rules(shapes: Shapes, *, untrained: bool = False) -> Iterator[Rule]:
    """All but the layers: embedding, final norm, registers and the head that reads them (``untrained`` in MAP's files)."""
    yield from rename("patch_embed.proj", "patch_embed.proj", AFFINE)
    yield from rename("pos_embed", "pos_embed")
    yield from rename("norm_f", "norm", affine(shapes, "norm_f"))
    yield from rename("cls_token", "registers.token", untrained=untrained)
    yield from rename("pos_embed_cls", "registers.pos", untrained=untrained)
    if "neck.weight" in shapes:
        yield from rename("neck.weight", "head.reduce.weight", untrained=untrained)
        yield from rename("norm_neck", "head.norm", affine(shapes, "norm_neck"), untrained=untrained)
    yield from rename("head", "head.fc", AFFINE, untrained=untrained, optional="the file has no classifier")


def mamba_rules(shapes: Shapes, positions: range | list[int], directions: Mapping[str, str] = DIRECTIONS) -> Iterator[Rule]:
    """The Mamba layers, with what each of ``directions`` owns; official layer i is our layer ``positions[i]``."""
    for i, s in enumerate(positions):
        official, ours = f"layers.{i}", f"layers.{s}"
        yield from rename(f"{official}.norm", f"{ours}.norm", affine(shapes, f"{official}.norm"))
        yield from mixer_rules(shapes, f"{official}.mixer", f"{ours}.mixer", directions)


def mixer_rules(shapes: Shapes, official: str, ours: str, directions: Mapping[str, str]) -> Iterator[Rule]:
    """One mixer; ``directions`` maps the suffixes of the official names to our directions."""
    yield from rename(official, ours, (".in_proj.weight", ".out_proj.weight"))
    for suffix, direction in directions.items():
        there = f"{ours}.dirs.{direction}"
        yield from rename(f"{official}.conv1d{suffix}", f"{there}.conv", affine(shapes, f"{official}.conv1d{suffix}"))
        yield from rename(f"{official}.x_proj{suffix}.weight", f"{there}.x_proj.weight")
        yield from rename(f"{official}.dt_proj{suffix}", f"{there}.dt_proj", AFFINE)
        yield from rename(f"{official}.A{suffix}_log", f"{there}.A_log")
        yield from rename(f"{official}.D{suffix}", f"{there}.D")


def affine(shapes: Shapes, name: str) -> tuple[str, ...]:
    """``.weight``, and ``.bias`` where the file has one (RMSNorm has none, nor a convolution built without)."""
    return AFFINE if f"{name}.bias" in shapes else AFFINE[:1]


def hybrid_config(shapes: Shapes, layout: str, grid: tuple[int, int] | None, **transformer: float) -> Backbone.Config:
    """The HybridNet that the shapes describe; ``transformer`` adds what its T blocks need."""
    width, channels, patch, _ = shapes["patch_embed.proj.weight"]
    inner, d_state = shapes["layers.0.mixer.A_log"]
    rows, columns = square(shapes["pos_embed"][1], grid)
    return HybridNet.Config(
        img_size=(rows * patch, columns * patch),
        patch_size=patch,
        in_chans=channels,
        embed_dim=width,
        num_classes=shapes["head.weight"][0] if "head.weight" in shapes else 0,
        layout=layout,
        num_registers=shapes["cls_token"][1],
        cls_reduce=width // shapes["neck.weight"][0] if "neck.weight" in shapes else 1,
        norm_kind="layer" if "norm_f.bias" in shapes else "rms",
        d_state=d_state,
        d_conv=shapes["layers.0.mixer.conv1d.weight"][-1],
        expand=inner // width,
        **transformer,  # type: ignore[arg-type]
    )
