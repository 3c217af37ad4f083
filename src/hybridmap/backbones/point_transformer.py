"""The plain Transformer for clouds of points of Point-BERT and Point-MAE.

Source: Point-MAE (arXiv:2203.06604), models/Point_MAE.py (MIT).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from hybridmap.backbones.cloud import ClassTokenCloudBackbone
from hybridmap.errors import UserError
from hybridmap.layers.block import TransformerBlock


class PointTransformer(ClassTokenCloudBackbone):
    """Attention among all patches; the classifier reads the class token and the largest value over the patches."""

    @dataclass(frozen=True, kw_only=True)
    class Config(ClassTokenCloudBackbone.Config):
        num_patches: int = 64
        """Centres of a cloud."""
        depth: int = 12
        """Number of layers."""
        num_heads: int = 6
        """Attention heads; must divide the width."""

    config: PointTransformer.Config
    activation = nn.GELU

    def __init__(self, config: PointTransformer.Config) -> None:
        super().__init__(config)
        if config.depth < 1:
            raise UserError(f"depth must be at least 1, got {config.depth}")
        rates = torch.linspace(0, config.drop_path, config.depth, device="cpu").tolist()
        self.layers = nn.ModuleList(
            TransformerBlock(config.embed_dim, config.num_heads, qkv_bias=False, drop_path=rate) for rate in rates
        )
        self._read_marks()

    def layer_inputs(self, coords: Float[Tensor, "B V 3"]) -> tuple[Any, ...]:
        return ()

    def read_out(self, token: Float[Tensor, "B D"], patches: Float[Tensor, "B N D"]) -> Float[Tensor, "B D2"]:
        return torch.cat([token, patches.amax(1)], dim=1)
