"""Pictures of a run while it goes on."""

from __future__ import annotations

import pytest
import torch
from PIL import Image

from hybridmap.backbones import HybridNet
from hybridmap.data.synthetic import Synthetic
from hybridmap.errors import UserError
from hybridmap.objectives.map import MAP
from hybridmap.report.reconstruction import Reconstruction
from hybridmap.tasks.classification import Classification

NET = HybridNet.Config(layout="MT", embed_dim=16, num_heads=2, img_size=32, patch_size=8, num_registers=2, num_classes=5)
EXAM = Reconstruction.Config(test=Synthetic.Config(size=32, length=9, num_classes=5), images=3)


def test_the_same_images_are_drawn_under_the_same_masks_each_time() -> None:
    torch.manual_seed(0)
    learner = MAP.Config(backbone=NET).build().eval()
    first, second = (EXAM.build()(learner)["reconstructions"] for _ in range(2))
    assert isinstance(first, Image.Image)
    assert first.tobytes() == second.tobytes()
    with torch.no_grad():
        for parameter in learner.decoder.parameters():
            parameter.normal_()
    assert EXAM.build()(learner)["reconstructions"].tobytes() != first.tobytes()


def test_a_learner_that_predicts_no_patches_has_no_picture() -> None:
    assert EXAM.build()(Classification.Config(backbone=NET, num_classes=5).build()) == {}


def test_a_picture_of_nothing_is_refused() -> None:
    with pytest.raises(UserError, match="needs at least one image, got 0"):
        Reconstruction.Config(test=Synthetic.Config(), images=0)
