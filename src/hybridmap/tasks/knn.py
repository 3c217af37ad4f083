"""Nearest neighbours: how well do the features sort images by class, with nothing trained?

    sim(q, t) = q . t / (|q| |t|)
    score(q, class) = sum of exp(sim(q, t) / 0.07) over those of the k most similar t that are of that class

Source: DINO (arXiv:2104.14294), the protocol of its ``eval_knn.py``: k = 10, 20, 100, 200, temperature 0.07; 20 is
usually best.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from hybridmap.config import Config, Configurable
from hybridmap.data.base import Dataset
from hybridmap.errors import UserError
from hybridmap.tasks.features import Table, common_labels, extract, named

_SIMILARITIES = 1 << 25
"""Similarities held at a time (128 MiB); bounds the memory, the answers do not depend on it."""


def vote(
    train: Float[Tensor, "n D"],
    labels: Int[Tensor, "n"],
    test: Float[Tensor, "m D"],
    *,
    classes: int,
    k: tuple[int, ...] = (10, 20, 100, 200),
    temperature: float = 0.07,
) -> dict[int, Float[Tensor, "m classes"]]:
    """The classes' scores of every test vector, for each k; a k beyond the number of training vectors means all of them.

    A neighbour gives its class ``exp(cosine / temperature)``.

    Raises:
        UserError: without training or test vectors, or if a k is less than 1.
    """
    if not len(train) or not len(test):
        raise UserError(f"nearest neighbours need training and test images, got {len(train)} and {len(test)}")
    if not k or min(k) < 1:
        raise UserError(f"the numbers of neighbours must be at least 1, got {k}")
    train, test = F.normalize(train, dim=1), F.normalize(test, dim=1)
    widest = min(max(k), len(train))
    scores: dict[int, list[Tensor]] = {number: [] for number in k}
    for queries in test.split(max(1, _SIMILARITIES // len(train))):
        similarity, neighbour = (queries @ train.T).topk(widest, dim=1)  # both (chunk, widest), most similar first
        weight, category = (similarity / temperature).exp(), labels[neighbour]
        for number, parts in scores.items():
            empty = weight.new_zeros(len(queries), classes)
            parts.append(empty.scatter_add(1, category[:, :number], weight[:, :number]))
    return {number: torch.cat(parts) for number, parts in scores.items()}


class KNN(Configurable):
    """The exam: an accuracy in per cent for every k, of a learner's backbone as it stands."""

    @dataclass(frozen=True, kw_only=True)
    class Config(Config):
        train: Dataset.Config
        """Labelled images whose neighbours are sought, cropped without randomness."""
        test: Dataset.Config
        """Labelled images to be sorted."""
        k: tuple[int, ...] = (10, 20, 100, 200)
        """Numbers of neighbours; each is clipped to the number of training images."""
        temperature: float = 0.07
        """Similarities are divided by it before the exponential."""
        per_class: int | None = None
        """Use only the first so many training images of each class: a cheap version for watching a run; None = all."""
        batch_size: int = 256
        """Images per forward pass; does not change the answers."""

    def __init__(self, config: KNN.Config) -> None:
        super().__init__(config)
        if config.temperature <= 0:
            raise UserError(f"the temperature must be positive, got {config.temperature}")

    def __call__(self, learner: nn.Module, device: torch.device | str = "cpu") -> dict[str, float]:
        """``{"k10": ..., "k20": ..., ...}``: accuracies in per cent; empty while the data has no directory."""
        if not named(self.config.train, self.config.test):
            return {}
        train, test = (
            extract(learner, data, device=device, batch_size=self.config.batch_size)
            for data in (self.config.train, self.config.test)
        )
        correct = self.answers(train, test, device=device)
        return {f"k{number}": 100.0 * hit.float().mean().item() for number, hit in correct.items()}

    def answers(self, train: Table, test: Table, *, device: torch.device | str = "cpu") -> dict[int, Tensor]:
        """For every k, which test images were sorted correctly: boolean (m,), on the host, for error bars (``bootstrap``)."""
        labels, wanted, classes = common_labels(train, test)
        features = train.features
        if self.config.per_class is not None:
            kept = first_per_class(labels, self.config.per_class)
            features, labels = features[kept], labels[kept]
        scores = vote(
            features.to(device),
            labels.to(device),
            test.features.to(device),
            classes=classes,
            k=self.config.k,
            temperature=self.config.temperature,
        )
        return {number: score.argmax(1).cpu() == wanted for number, score in scores.items()}


def first_per_class(labels: Int[Tensor, "n"], count: int) -> Int[Tensor, "m"]:
    """Positions of the first ``count`` samples of each class, ascending."""
    order = labels.argsort(stable=True)
    ranked = labels[order]
    rank = torch.arange(len(labels)) - torch.searchsorted(ranked, ranked)
    return order[rank < count].sort().values
