from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from hybridmap.backbones.base import Backbone
from hybridmap.backbones.hybrid import HybridNet
from hybridmap.backbones.vit import ViT
from hybridmap.hashing import hash_ints
from hybridmap.objectives.decoder import MAEDecoder, MAPDecoder
from hybridmap.objectives.map import MAP
from hybridmap.types import Batch

HYBRID = HybridNet.Config(
    img_size=(12, 20), patch_size=4, embed_dim=16, layout="MT", num_heads=2, num_classes=7, num_registers=2
)
VIT = ViT.Config(img_size=(12, 20), patch_size=4, embed_dim=16, depth=2, num_heads=2, num_classes=7)


@pytest.fixture
def network() -> Backbone.Config:
    """A tiny HybridNet for images of 12 x 20 pixels: 3 x 5 patches."""
    return HYBRID


@pytest.fixture(params=[HYBRID, VIT], ids=["hybrid", "vit"])
def any_network(request: pytest.FixtureRequest) -> Backbone.Config:
    return request.param


@pytest.fixture
def build() -> Callable[..., MAP]:
    """Make a tiny objective with random weights everywhere, fields of its configuration as keywords."""

    def make(backbone: Backbone.Config = HYBRID, **fields: Any) -> MAP:
        decoder = fields.pop("decoder", MAPDecoder.Config(width=16, depth=2, num_heads=4))
        objective: MAP = MAP.Config(backbone=backbone, decoder=decoder, **fields).build()
        with torch.no_grad():
            for parameter in objective.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
        return objective.eval()

    return make


@pytest.fixture
def mae_decoder() -> MAEDecoder.Config:
    return MAEDecoder.Config(width=16, depth=2, num_heads=4)


@pytest.fixture
def batch() -> Batch:
    return Batch(inputs=torch.randn(3, 3, 12, 20), key=torch.tensor([hash_ints(0, i) for i in range(3)]), step_key=1)
