"""PointNet4D as released: classifiers of frames, and encoders pretrained by 4DMAP with or without the decoder.

Files of pretraining hold the encoder below ``encoder.`` and with it a head that pretraining never trains; those of fine-tuning
hold the same names without the prefix. Shapes tell the product of heads and their width, not either.
Source: yunzeliu/MAP:pointnet4D/HOI4DAS/pn4d @ f3bcdff (names and shapes).
"""

from __future__ import annotations

from collections.abc import Iterator

from hybridmap.backbones.base import Backbone
from hybridmap.backbones.pointnet4d import PointNet4D
from hybridmap.convert.mamba_reg import affine, mixer_rules
from hybridmap.convert.map_hybridnet import TRANSFORMER
from hybridmap.convert.origin import AFFINE, Origin, Rule, Shapes, indices, rename
from hybridmap.errors import UserError

ENCODER = "encoder."
STAGES = ("sa1", "sa2", "sa3")
BATCH_NORM = (".weight", ".bias", ".running_mean", ".running_var", ".num_batches_tracked")
HEADS = 4
"""Of the released size."""
DECODER_HEADS = 8
"""Of the released decoder."""
POINTS = 2048
"""Points of a frame where no decoder tells their number."""


class OfficialPointNet4D(Origin):
    """The network with PointNet++ for every frame (``PointNet4D``), not the one with convolutions over frames."""

    family = "pointnet4d-4dmap"
    source = "PointNet4D"
    untold = ("num_frames", "num_points", "centres", "radii", "neighbours")

    def recognises(self, shapes: Shapes) -> bool:
        prefix = _prefix(shapes)
        telling = ("pos_embed", "frame_extractor.sa1.mlp.0.weight", "temporal.mamba.0.mixer.A_log")
        return {prefix + name for name in telling} <= shapes.keys()

    def rules(self, shapes: Shapes) -> list[Rule]:
        prefix = _prefix(shapes)
        return [
            *_frame_rules(prefix),
            *_temporal_rules(shapes, prefix),
            *_head_rules(shapes, prefix),
            *(_decoder_rules(shapes) if "decoder.mask_token" in shapes else ()),
        ]

    def config(self, shapes: Shapes, *, num_heads: int | None = None, grid: tuple[int, int] | None = None) -> Backbone.Config:
        prefix = _prefix(shapes)
        _, max_frames, width = shapes[f"{prefix}pos_embed"]
        inner = shapes[f"{prefix}temporal.layers.0.0.fn.fn.to_qkv.weight"][0] // 3
        heads = num_heads or HEADS
        if inner % heads:
            raise UserError(
                f"{heads} heads do not share a width of {inner}, and shapes do not tell their number; give num_heads"
            )
        has_head = f"{prefix}head.3.weight" in shapes
        classes, hidden = shapes[f"{prefix}head.3.weight"] if has_head else (0, PointNet4D.Config.head_hidden)
        return PointNet4D.Config(
            num_frames=min(PointNet4D.Config.num_frames, max_frames),
            num_points=shapes["decoder.to_points.bias"][0] // 3 if "decoder.to_points.bias" in shapes else POINTS,
            embed_dim=width,
            depth=indices(shapes, f"{prefix}temporal.layers."),
            num_heads=heads,
            head_width=inner // heads,
            mlp_ratio=shapes[f"{prefix}temporal.layers.0.1.fn.fn.net.0.weight"][0] / width,
            num_classes=classes,
            head_hidden=hidden,
            max_frames=max_frames,
        )

    def decoder(self, shapes: Shapes) -> dict[str, float]:
        if "decoder.mask_token" not in shapes:
            return {}
        hidden, width = shapes["decoder.blocks.blocks.0.mlp.fc1.weight"]
        depth = indices(shapes, "decoder.blocks.blocks.")
        return {"width": width, "depth": depth, "mlp_ratio": hidden / width, "num_heads": DECODER_HEADS}


def _prefix(shapes: Shapes) -> str:
    return ENCODER if f"{ENCODER}pos_embed" in shapes else ""


def _frame_rules(prefix: str) -> Iterator[Rule]:
    """PointNet++, three stages of three convolutions with their norms, and the places in time."""
    for stage in STAGES:
        for i in (0, 3, 6):
            there, here = f"{prefix}frame_extractor.{stage}.mlp", f"frames.{stage}.mlp"
            yield from rename(f"{there}.{i}.weight", f"{here}.{i}.weight")
            yield from rename(f"{there}.{i + 1}", f"{here}.{i + 1}", BATCH_NORM)
    yield from rename(f"{prefix}pos_embed", "frame_pos")


def _temporal_rules(shapes: Shapes, prefix: str) -> Iterator[Rule]:
    """The temporal layers; the official code keeps their Mamba parts in a list of their own."""
    for i in range(indices(shapes, f"{prefix}temporal.layers.")):
        mamba, (attention, mlp) = f"{prefix}temporal.mamba.{i}", (f"{prefix}temporal.layers.{i}.{j}.fn" for j in (0, 1))
        ours = f"layers.{i}"
        yield from rename(f"{mamba}.norm", f"{ours}.norm1", AFFINE)
        yield from mixer_rules(shapes, f"{mamba}.mixer", f"{ours}.mixer", {"": "fwd"})
        yield from rename(f"{attention}.norm", f"{ours}.norm2", AFFINE)
        yield from rename(f"{attention}.fn.to_qkv.weight", f"{ours}.attn.qkv.weight")
        yield from rename(f"{attention}.fn.to_out.0", f"{ours}.attn.proj", AFFINE)
        yield from rename(f"{mlp}.norm", f"{ours}.norm3", AFFINE)
        yield from rename(f"{mlp}.fn.net.0", f"{ours}.mlp.fc1", AFFINE)
        yield from rename(f"{mlp}.fn.net.3", f"{ours}.mlp.fc2", AFFINE)


def _head_rules(shapes: Shapes, prefix: str) -> Iterator[Rule]:
    """The head, where the file has one."""
    if f"{prefix}head.3.weight" in shapes:
        for number, name in {0: "norm", 1: "hidden", 3: "fc"}.items():
            yield from rename(f"{prefix}head.{number}", f"head.{name}", AFFINE, untrained=bool(prefix))


def _decoder_rules(shapes: Shapes) -> Iterator[Rule]:
    """The decoder of 4DMAP."""
    yield from rename("decoder.mask_token", "decoder.mask_token")
    yield from rename("decoder.pos_embed", "decoder.frame_pos")
    for j in range(indices(shapes, "decoder.blocks.blocks.")):
        for module in TRANSFORMER:
            there = f"decoder.blocks.blocks.{j}.{module}"
            yield from rename(there, f"decoder.layers.{j}.{module}", affine(shapes, there))
    yield from rename("decoder.norm", "decoder.norm", AFFINE)
    yield from rename("decoder.to_points", "decoder.pred", AFFINE)
