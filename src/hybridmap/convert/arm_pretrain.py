"""ARM pretraining as released: one scanning direction, no class token, and the decoder where it was kept.

The official model has no final norm but one for each output that the decoder reads; that of the last layer's is our ``norm``.
Source: OliverRensu/ARM:models_pretrain.py @ 996d93e (names and shapes).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from hybridmap.backbones.base import Backbone
from hybridmap.convert.arm_finetune import arm_config, layer_rules
from hybridmap.convert.map_hybridnet import cross_rules
from hybridmap.convert.origin import AFFINE, Origin, Rule, Shapes, indices, rename, square

CLUSTER = 4
"""Patches to a side of a cluster; the released code knows no other."""


@dataclass(frozen=True, kw_only=True)
class ClusterMask(Rule):
    """The additive mask of the official decoder, a buffer: 0 where the query's cluster comes after the key's, else -inf."""

    tokens: int
    """Rows of the mask: all patches but one cluster's."""

    def split(self, tensor: Tensor) -> dict[str, Tensor]:
        return {}

    def join(self, tensors: Mapping[str, Tensor]) -> Tensor:
        cluster = torch.arange(self.tokens) // CLUSTER**2
        return torch.zeros(self.tokens, self.tokens).masked_fill(cluster[:, None] < cluster, -torch.inf)


class ArmPretrain(Origin):
    """Encoder with fixed sine-cosine positions, and a decoder that attends to four layers of it."""

    family = "arm-pretrain"
    source = "ARM pretraining"

    def recognises(self, shapes: Shapes) -> bool:
        return {"pos_embed", "layers.0.mixer.A_log", "layers.0.mlp.w1.weight"} <= shapes.keys() and not (
            {"cls_token", "layers.0.mixer.A_b_log"} & shapes.keys()
        )

    def rules(self, shapes: Shapes) -> list[Rule]:
        last = f"norm_{max(indices(shapes, 'dec_block.'), 1)}"
        return [
            *rename("patch_embed.proj", "patch_embed.proj", AFFINE),
            *rename("pos_embed", "pos_embed"),
            *layer_rules(shapes, {"": "fwd"}),
            *rename(last, "norm", AFFINE, optional="the file has no decoder, to which the norm belongs"),
            *(decoder_rules(shapes) if "ar_token" in shapes else ()),
        ]

    def config(self, shapes: Shapes, *, num_heads: int | None = None, grid: tuple[int, int] | None = None) -> Backbone.Config:
        return arm_config(
            shapes,
            square(shapes["pos_embed"][1], grid),
            num_classes=0,
            directions=1,
            scan=f"cluster({CLUSTER})",
            cls_token=False,
            positions="sincos",
        )

    def decoder(self, shapes: Shapes) -> dict[str, float]:
        """Heads have 64 channels."""
        if "ar_token" not in shapes:
            return {}
        hidden, width = shapes["dec_block.0.mlp.fc1.weight"]
        depth = indices(shapes, "dec_block.")
        return {"width": width, "depth": depth, "mlp_ratio": hidden / width, "num_heads": width // 64}


def decoder_rules(shapes: Shapes) -> Iterator[Rule]:
    """The decoder: a norm for each of the encoder's outputs but the last, one map for all of them, and the blocks."""
    depth = indices(shapes, "dec_block.")
    for j in range(depth - 1):
        yield from rename(f"norm_{j + 1}", f"decoder.norms.{j}", AFFINE)
    yield from rename("enc2dec", "decoder.embed", AFFINE)
    yield from rename("ar_token", "decoder.mask_token")
    yield from rename("dec_pos_embed", "decoder.pos_embed")
    for j in range(depth):
        yield from cross_rules(f"dec_block.{j}", f"decoder.layers.{j}")
    yield from rename("ar_norm", "decoder.norm", AFFINE)
    yield from rename("ar_pred", "decoder.pred", AFFINE)
    if "mask" in shapes:
        why = "it follows from the clusters, and is made anew"
        yield ClusterMask(official="mask", tokens=shapes["mask"][0], left_out=why, derived=True)
