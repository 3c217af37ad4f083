"""Voting: logits are averaged over views, repeats give mean, deviation and maximum."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from hybridmap.backbones.point_transformer import PointTransformer
from hybridmap.data.loader import each
from hybridmap.data.point_augment import ScaleAndTranslate
from hybridmap.data.point_clouds import CloudFolder, MadeShapes
from hybridmap.errors import UserError
from hybridmap.hashing import hash_ints
from hybridmap.recipes.smoke import FOUR
from hybridmap.tasks.classification import Classification
from hybridmap.tasks.voting import Voting

CLOUDS = MadeShapes.Config(points=64, count=12, dense=128, families=FOUR, augment=ScaleAndTranslate.Config())


@pytest.fixture
def learner() -> Any:
    torch.manual_seed(0)
    return Classification.Config(backbone=PointTransformer.Config().small(), num_classes=4).build()


def test_logits_of_the_views_are_averaged(learner: Any) -> None:
    found = Voting.Config(test=CLOUDS, views=3, repeats=2, batch_size=5).build()(learner)
    learner.eval()
    accuracies, single = [], []
    with torch.no_grad():
        for repeat in range(2):
            total, labels = torch.zeros(12, 4), torch.arange(12) % 4
            for view in range(3):
                batches = list(each(CLOUDS.build(), 12, seed=hash_ints(repeat, view)))
                logits = learner.logits(batches[0][0])
                single.append((logits.argmax(1) == labels).double().mean().item())
                total += logits / 3
            accuracies.append((total.argmax(1) == labels).double().mean().item())
    expected = 100 * torch.tensor(accuracies)
    assert found["mean"] == pytest.approx(expected.mean().item(), abs=1e-4)
    assert found["std"] == pytest.approx(expected.std(correction=0).item(), abs=1e-4)
    assert found["max"] == pytest.approx(expected.max().item(), abs=1e-4)
    assert found["single"] == pytest.approx(100 * sum(single) / 6, abs=1e-4)
    assert found["clouds"] == 12


def test_it_repeats_and_leaves_the_learner_as_it_was(learner: Any) -> None:
    learner.train()
    vote = Voting.Config(test=CLOUDS, views=2, repeats=2).build()
    assert vote(learner) == vote(learner)
    assert learner.training


def test_without_a_directory_it_is_not_held(learner: Any) -> None:
    assert Voting.Config(test=CloudFolder.Config()).build()(learner) == {}


def test_other_classes_and_no_views_are_refused(learner: Any) -> None:
    with pytest.raises(UserError, match="the head has 4 classes, but the clouds have 2"):
        Voting.Config(test=MadeShapes.Config(count=2, families=FOUR[:2])).build()(learner)
    with pytest.raises(UserError, match="views must be at least 1"):
        Voting.Config(test=CLOUDS, views=0)
