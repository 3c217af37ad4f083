"""Voting: several random views of each cloud are judged together, and how that depends on chance.

The field prints the *maximum* over 299 repeats on the test set as "with voting". That is the highest of many noisy
measurements; mean and deviation say what a network can be expected to reach.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from hybridmap.config import Config, Configurable
from hybridmap.data.base import Dataset
from hybridmap.data.loader import each
from hybridmap.errors import UserError
from hybridmap.hashing import hash_ints
from hybridmap.tasks.classifier import Classifier
from hybridmap.tasks.features import frozen, named


class Voting(Configurable):
    """An exam of classifiers: logits (not probabilities) are averaged over the views.

    Source: Point-MAE and Mamba3D, ``test_vote`` of their runners.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config(Config):
        test: Dataset.Config
        """Labelled clouds, with random points and augmentation: each view is another draw."""
        views: int = 10
        """Views of a cloud that vote together."""
        repeats: int = 10
        """Times that all is done with other draws; the official protocol is 299."""
        batch_size: int = 32
        """Clouds per forward pass."""

        def __post_init__(self) -> None:
            for name in ("views", "repeats", "batch_size"):
                if getattr(self, name) < 1:
                    raise UserError(f"{name} must be at least 1, got {getattr(self, name)}")

    config: Voting.Config

    def __call__(self, learner: Classifier, device: torch.device | str = "cpu") -> dict[str, float]:
        """``mean``, ``std`` and ``max`` of the accuracy in per cent over the repeats, ``single``: the mean of one view alone,
        and the number of ``clouds``; empty while the data has no directory.

        Raises:
            UserError: if the clouds have other classes than the head.
        """
        c = self.config
        if not named(c.test):
            return {}
        source = c.test.build()
        if len(source.labelled()) != learner.config.num_classes:
            raise UserError(
                f"the head has {learner.config.num_classes} classes, but the clouds have {len(source.labelled())}; give data "
                "of the same classes"
            )
        voted, single, clouds = [], [], 0
        with frozen(learner):
            for repeat in range(c.repeats):
                total = torch.zeros(())
                for view in range(c.views):
                    batches = each(source, c.batch_size, device=device, seed=hash_ints(repeat, view))
                    judged = [(learner.logits(inputs).float(), labels) for inputs, labels, _ in batches]
                    logits, labels = (torch.cat(part) for part in zip(*judged, strict=True))
                    single.append(_accuracy(logits, labels))
                    total = total.to(logits.device) + logits
                voted.append(_accuracy(total, labels))
                clouds = len(labels)
        accuracies = torch.tensor(voted, dtype=torch.float64)
        return {
            "mean": accuracies.mean().item(),
            "std": accuracies.std(correction=0).item(),
            "max": accuracies.max().item(),
            "single": sum(single) / len(single),
            "clouds": float(clouds),
        }


def _accuracy(logits: Tensor, labels: Tensor) -> float:
    return 100.0 * (logits.argmax(1) == labels).float().mean().item()
