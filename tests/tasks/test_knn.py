"""Nearest neighbours by DINO's protocol."""

import math

import pytest
import torch

from hybridmap.backbones import HybridNet
from hybridmap.data.folder import ImageFolder
from hybridmap.data.synthetic import Synthetic
from hybridmap.errors import UserError
from hybridmap.tasks import knn
from hybridmap.tasks.features import Table
from hybridmap.tasks.knn import KNN, first_per_class, vote


def naive(train, labels, test, classes, k, temperature):
    """The protocol in words: for each query sort all training vectors by cosine, weigh the first k, add up per class."""
    scores = torch.zeros(len(test), classes, dtype=torch.float64)
    for i, query in enumerate(test.double()):
        cosines = [
            (float(query @ t / (query.norm() * t.norm())), int(label)) for t, label in zip(train.double(), labels, strict=True)
        ]
        for cosine, label in sorted(cosines, reverse=True)[:k]:
            scores[i, label] += math.exp(cosine / temperature)
    return scores


def test_scores_equal_the_protocol_in_words():
    generator = torch.Generator().manual_seed(0)
    train, test = torch.randn(40, 6, generator=generator), torch.randn(7, 6, generator=generator)
    labels = torch.randint(4, (40,), generator=generator)
    for k, scores in vote(train, labels, test, classes=4, k=(1, 5, 20)).items():
        expected = naive(train, labels, test, 4, k, 0.07)
        torch.testing.assert_close(scores.double(), expected, rtol=2e-5, atol=1e-3)


def test_too_large_a_k_means_all_training_vectors():
    generator = torch.Generator().manual_seed(1)
    train, labels = torch.randn(12, 3, generator=generator), torch.arange(12) % 3
    scores = vote(train, labels, train[:4], classes=3, k=(12, 200))
    torch.testing.assert_close(scores[200], scores[12])


def test_chunks_do_not_change_the_scores(monkeypatch: pytest.MonkeyPatch):
    generator = torch.Generator().manual_seed(2)
    train, test = torch.randn(30, 4, generator=generator), torch.randn(11, 4, generator=generator)
    labels = torch.arange(30) % 3
    whole = vote(train, labels, test, classes=3, k=(5,))
    monkeypatch.setattr(knn, "_SIMILARITIES", 60)
    torch.testing.assert_close(vote(train, labels, test, classes=3, k=(5,))[5], whole[5])


def test_the_first_of_each_class_are_kept_in_order():
    assert first_per_class(torch.tensor([2, 0, 2, 0, 0, 2]), 2).tolist() == [0, 1, 2, 3]


def test_every_image_finds_itself(hybrid: HybridNet.Config, gratings: Synthetic.Config):
    found = KNN.Config(train=gratings, test=gratings, k=(1,)).build()(hybrid.build(), "cpu")
    assert found == {"k1": 100.0}


def test_a_subset_uses_only_the_first_of_each_class():
    far, near = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]])
    train = Table(
        features=torch.cat([near, far, near]), labels=torch.tensor([0, 1, 1]), paths=("a", "b", "c"), classes=("x", "y")
    )
    test = Table(features=near, labels=torch.tensor([0]), paths=("d",), classes=("x", "y"))
    config = KNN.Config(train=Synthetic.Config(), test=Synthetic.Config(), k=(1,), per_class=1)
    assert config.build().answers(train, test)[1].tolist() == [True]


def test_an_exam_without_a_folder_is_not_held(hybrid: HybridNet.Config, gratings: Synthetic.Config):
    assert KNN.Config(train=gratings, test=ImageFolder.Config()).build()(hybrid.build()) == {}


def test_impossible_settings_are_refused(gratings: Synthetic.Config):
    with pytest.raises(UserError, match="temperature must be positive"):
        KNN.Config(train=gratings, test=gratings, temperature=0.0).build()
    with pytest.raises(UserError, match="at least 1"):
        vote(torch.ones(3, 2), torch.zeros(3, dtype=torch.int64), torch.ones(1, 2), classes=1, k=(0,))
