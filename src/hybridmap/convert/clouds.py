"""Official files of networks for clouds of points: classifiers, and pretraining with or without its decoder.

Such files hold, for classifiers, the network as it is, and for pretraining the encoder below ``MAE_encoder.`` with the decoder
beside it. Shapes tell neither how a cloud is cut nor how many neighbours a token looks at: these are as released unless told.
Sources (names and shapes): xhanxu/Mamba3D @ b519a9c, yunzeliu/MAP:PointMAP @ f3bcdff, Pang-Yatian/Point-MAE @ 7445a68,
LMD0311/PointMamba.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from typing import Any

from hybridmap.backbones.base import Backbone
from hybridmap.backbones.hybrid3d import HybridNet3D
from hybridmap.backbones.point_mamba import PointMamba
from hybridmap.backbones.point_transformer import PointTransformer
from hybridmap.convert.origin import AFFINE, Origin, Rule, Shapes, indices, rename

BATCH_NORM = (".weight", ".bias", ".running_mean", ".running_var", ".num_batches_tracked")
ENCODER = "MAE_encoder."


class CloudOrigin(Origin):
    """Abstract: a concrete one gives the rules of the layers and the kind of its network."""

    untold = ("num_patches", "patch_points", "num_points")
    marks: tuple[str, ...]
    """Names by which a file is recognised, below the encoder's prefix."""

    def recognises(self, shapes: Shapes) -> bool:
        prefix = _prefix(shapes)
        return {prefix + name for name in ("encoder.first_conv.0.weight", *self.marks)} <= shapes.keys()

    @abstractmethod
    def layer_rules(self, shapes: Shapes, prefix: str) -> Iterator[Rule]:
        """Of everything between the embedding and the head."""

    @abstractmethod
    def network(self, shapes: Shapes, prefix: str, heads: int | None, **common: Any) -> Backbone.Config:
        """The configuration, given what all networks have in common."""

    def decoder_layer_rules(self, shapes: Shapes) -> Iterator[Rule]:
        """Of the decoder's layers and norm."""
        for j in range(indices(shapes, "MAE_decoder.blocks.")):
            yield from transformer_rules(f"MAE_decoder.blocks.{j}", f"decoder.layers.{j}")
        yield from rename("MAE_decoder.norm", "decoder.norm", AFFINE)

    def rules(self, shapes: Shapes) -> list[Rule]:
        prefix, pretraining = _prefix(shapes), "mask_token" in shapes
        return [
            *_embedding_rules(prefix),
            *self.layer_rules(shapes, prefix),
            *_class_token_rules(shapes, prefix, untrained=pretraining),
            *_head_rules(shapes),
            *(self._decoder_rules(shapes) if pretraining else ()),
        ]

    def _decoder_rules(self, shapes: Shapes) -> Iterator[Rule]:
        yield from rename("mask_token", "decoder.mask_token")
        for part in (0, 2):
            yield from rename(f"decoder_pos_embed.{part}", f"decoder.position.{part}", AFFINE)
        yield from self.decoder_layer_rules(shapes)
        yield from _linear_rules("increase_dim.0", "decoder.pred")

    def config(self, shapes: Shapes, *, num_heads: int | None = None, grid: tuple[int, int] | None = None) -> Backbone.Config:
        prefix = _prefix(shapes)
        head = "cls_head_finetune.8.weight"
        common: dict[str, Any] = {
            "embed_dim": shapes[prefix + "encoder.second_conv.3.weight"][0],
            "num_classes": shapes[head][0] if head in shapes else 0,
            "skip_origin": True,
        }
        if "increase_dim.0.weight" in shapes:
            common |= {"patch_points": shapes["increase_dim.0.weight"][0] // 3, "num_patches": 64}
        return self.network(shapes, prefix, num_heads, **common)

    def decoder(self, shapes: Shapes) -> dict[str, float]:
        if "mask_token" not in shapes:
            return {}
        layers = max(indices(shapes, "MAE_decoder.blocks."), indices(shapes, "MAE_decoder.blocks.layers."))
        return {"width": shapes["mask_token"][-1], "depth": layers, "mlp_ratio": 4.0, "num_heads": 6}


class OfficialHybrid3D(CloudOrigin):
    """Mamba3D, and MAP's hybrid, whose Transformer layers lie in ``blocks.blocks_vit`` and follow every third Mamba layer."""

    family = "mamba3d"
    source = "Mamba3D, or MAP's hybrid for points"
    untold = (*CloudOrigin.untold, "neighbours", "channel_backwards")
    marks = ("blocks.blocks.0.lfa.lga.affine_alpha_feat", "blocks.blocks.0.mixer.A_b_log")

    def layer_rules(self, shapes: Shapes, prefix: str) -> Iterator[Rule]:
        layout = _layout(shapes, prefix)
        mambas = [s for s, kind in enumerate(layout) if kind == "M"]
        transformers = [s for s, kind in enumerate(layout) if kind == "T"]
        for i, s in enumerate(mambas):
            official = f"{prefix}blocks.blocks.{i}"
            yield from _neighbour_rules(official, f"layers.{s}")
            yield from scan_rules(f"{official}.mixer", f"layers.{s}.mixer", {"": "fwd", "_b": "channel_bwd"})
        for j, s in enumerate(transformers):
            official = f"{prefix}blocks.blocks_vit.{j}"
            yield from _neighbour_rules(official, f"layers.{s}")
            yield from transformer_rules(f"{official}.mixer", f"layers.{s}.mixer")
        yield from rename(f"{prefix}norm", "norm", AFFINE)

    def network(self, shapes: Shapes, prefix: str, heads: int | None, **common: Any) -> Backbone.Config:
        return HybridNet3D.Config(
            layout=_layout(shapes, prefix),
            num_heads=heads or 6,
            deviation="batch",
            pool_mean="first",
            class_token=prefix + "cls_token" in shapes,
            **common,
        )


class OfficialPointTransformer(CloudOrigin):
    """The plain Transformer of Point-MAE."""

    family = "point-mae"
    source = "Point-MAE's Transformer"
    marks = ("blocks.blocks.0.attn.qkv.weight",)

    def layer_rules(self, shapes: Shapes, prefix: str) -> Iterator[Rule]:
        for i in range(indices(shapes, f"{prefix}blocks.blocks.")):
            yield from transformer_rules(f"{prefix}blocks.blocks.{i}", f"layers.{i}")
        yield from rename(f"{prefix}norm", "norm", AFFINE)

    def network(self, shapes: Shapes, prefix: str, heads: int | None, **common: Any) -> Backbone.Config:
        depth, token = indices(shapes, f"{prefix}blocks.blocks."), prefix + "cls_token" in shapes
        return PointTransformer.Config(depth=depth, num_heads=heads or 6, class_token=token, **common)


class OfficialPointMamba(CloudOrigin):
    """PointMamba with two Hilbert orders (the version of the conference)."""

    family = "pointmamba"
    source = "PointMamba"
    marks = ("OrderScale_gamma_1", "blocks.layers.0.mixer.A_log")

    def layer_rules(self, shapes: Shapes, prefix: str) -> Iterator[Rule]:
        for k in (1, 2):
            yield from rename(f"{prefix}OrderScale_gamma_{k}", f"order_scale.{k - 1}")
            yield from rename(f"{prefix}OrderScale_beta_{k}", f"order_shift.{k - 1}")
        yield from _curve_rules(shapes, f"{prefix}blocks", "")

    def network(self, shapes: Shapes, prefix: str, heads: int | None, **common: Any) -> Backbone.Config:
        return PointMamba.Config(depth=indices(shapes, f"{prefix}blocks.layers."), shared_depth=True, **common)

    def decoder_layer_rules(self, shapes: Shapes) -> Iterator[Rule]:
        yield from _curve_rules(shapes, "MAE_decoder.blocks", "decoder.")


def _prefix(shapes: Shapes) -> str:
    return ENCODER if ENCODER + "encoder.first_conv.0.weight" in shapes else ""


def _layout(shapes: Shapes, prefix: str) -> str:
    depth, attention = indices(shapes, f"{prefix}blocks.blocks."), indices(shapes, f"{prefix}blocks.blocks_vit.")
    return "".join("MT" if i % 3 == 2 and i // 3 < attention else "M" for i in range(depth))


def _linear_rules(official: str, ours: str) -> Iterator[Rule]:
    """A convolution over single points is a linear map."""
    yield Rule(official=f"{official}.weight", ours=(f"{ours}.weight",), trailing=1)
    yield from rename(f"{official}.bias", f"{ours}.bias")


def _embedding_rules(prefix: str) -> Iterator[Rule]:
    for stage, names in (("first", ("point1", "norm1", "point2")), ("second", ("patch1", "norm2", "patch2"))):
        official = f"{prefix}encoder.{stage}_conv"
        yield from _linear_rules(f"{official}.0", f"patch_embed.{names[0]}")
        yield from rename(f"{official}.1", f"patch_embed.{names[1]}", BATCH_NORM)
        yield from _linear_rules(f"{official}.3", f"patch_embed.{names[2]}")
    for part in (0, 2):
        yield from rename(f"{prefix}pos_embed.{part}", f"position.{part}", AFFINE)


def _class_token_rules(shapes: Shapes, prefix: str, *, untrained: bool) -> Iterator[Rule]:
    for name in ("cls_token", "cls_pos"):
        if prefix + name in shapes:
            yield from rename(prefix + name, name, untrained=untrained)


def _head_rules(shapes: Shapes) -> Iterator[Rule]:
    if "cls_head_finetune.0.weight" in shapes:
        for k in (0, 4):
            yield from rename(f"cls_head_finetune.{k}", f"head.hidden.{k}", AFFINE)
            yield from rename(f"cls_head_finetune.{k + 1}", f"head.hidden.{k + 1}", BATCH_NORM)
        yield from rename("cls_head_finetune.8", "head.fc", AFFINE)


def _neighbour_rules(official: str, ours: str) -> Iterator[Rule]:
    yield from rename(f"{official}.norm1", f"{ours}.norm1", AFFINE)
    yield from rename(f"{official}.norm2", f"{ours}.norm2", AFFINE)
    yield from rename(f"{official}.lfa.lga.affine_alpha_feat", f"{ours}.local.scale")
    yield from rename(f"{official}.lfa.lga.affine_beta_feat", f"{ours}.local.shift")
    yield from rename(f"{official}.lfa.pre_norm_ft", f"{ours}.local.norm", AFFINE)
    yield from _linear_rules(f"{official}.lfa.mlp.share_mlp", f"{ours}.local.proj")


def scan_rules(official: str, ours: str, directions: dict[str, str]) -> Iterator[Rule]:
    """A Mamba mixer; ``directions``: ending of the official names -> our direction."""
    yield from rename(official, ours, (".in_proj.weight", ".out_proj.weight"))
    for ending, direction in directions.items():
        own = f"{ours}.dirs.{direction}"
        yield from rename(f"{official}.conv1d{ending}", f"{own}.conv", AFFINE)
        yield from rename(f"{official}.x_proj{ending}.weight", f"{own}.x_proj.weight")
        yield from rename(f"{official}.dt_proj{ending}", f"{own}.dt_proj", AFFINE)
        yield from rename(f"{official}.A{ending}_log", f"{own}.A_log")
        yield from rename(f"{official}.D{ending}", f"{own}.D")


def transformer_rules(official: str, ours: str) -> Iterator[Rule]:
    """A Transformer block without biases for q, k and v."""
    for module in ("norm1", "norm2", "attn.proj", "mlp.fc1", "mlp.fc2"):
        yield from rename(f"{official}.{module}", f"{ours}.{module}", AFFINE)
    yield from rename(f"{official}.attn.qkv.weight", f"{ours}.attn.qkv.weight")


def _curve_rules(shapes: Shapes, official: str, ours: str) -> Iterator[Rule]:
    for i in range(indices(shapes, f"{official}.layers.")):
        yield from rename(f"{official}.layers.{i}.norm", f"{ours}layers.{i}.norm", AFFINE)
        yield from scan_rules(f"{official}.layers.{i}.mixer", f"{ours}layers.{i}.mixer", {"": "fwd"})
    yield from rename(f"{official}.norm_f", f"{ours}norm", AFFINE)
