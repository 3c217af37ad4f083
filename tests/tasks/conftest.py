"""The smallest network and data that the tasks can be tried on."""

import pytest

from hybridmap.backbones import HybridNet, ViT
from hybridmap.data.synthetic import Synthetic


@pytest.fixture
def hybrid() -> HybridNet.Config:
    return HybridNet.Config(
        layout="MMMT", embed_dim=16, num_heads=2, img_size=32, patch_size=8, num_registers=2, cls_reduce=2, num_classes=5
    )


@pytest.fixture
def vit() -> ViT.Config:
    return ViT.Config(
        depth=2, embed_dim=16, num_heads=2, img_size=32, patch_size=8, pool="avg", norm_position="pooled", num_classes=5
    )


@pytest.fixture
def gratings() -> Synthetic.Config:
    return Synthetic.Config(size=32, length=20, num_classes=5)
