"""What all learners that name a class have in common: their outputs, the labels they need, and how they are measured."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from hybridmap.backbones.base import Backbone
from hybridmap.config import Config, Configurable
from hybridmap.data.base import Dataset
from hybridmap.data.loader import each
from hybridmap.errors import UserError
from hybridmap.tasks.features import frozen
from hybridmap.types import Batch


class Classifier(nn.Module, Configurable):
    """Abstract: a learner with a backbone that gives one score per class."""

    @dataclass(frozen=True, kw_only=True)
    class Config(Config):
        backbone: Backbone.Config
        """The network; its own number of classes is overruled."""
        num_classes: int = 1000
        """Outputs of the head."""
        class_names: tuple[str, ...] = ()
        """Names of the outputs, in their order; a data set to be evaluated must have the same. Empty = not compared."""

        def __post_init__(self) -> None:
            if self.num_classes < 1:
                raise UserError(f"classification needs at least one class, got {self.num_classes}")

    config: Classifier.Config
    backbone: Backbone

    def __init__(self, config: Classifier.Config) -> None:
        nn.Module.__init__(self)
        self.config = config

    @abstractmethod
    def logits(self, images: Float[Tensor, "B ..."]) -> Float[Tensor, "B classes"]:
        """The scores, images as they are."""

    def labels_of(self, batch: Batch) -> Int[Tensor, "B"]:
        """The labels of a batch.

        Raises:
            UserError: if it has none.
        """
        if batch.labels is None:
            raise UserError("a classifier needs labelled images: a folder with one sub-folder per class")
        return batch.labels

    def predict(
        self, dataset: Dataset.Config, device: torch.device | str = "cpu", batch_size: int = 256
    ) -> tuple[Float[Tensor, "n classes"], Int[Tensor, "n"]]:
        """Logits and labels of every image of a labelled data set, in its order, on the host; the learner stays as it was.

        Raises:
            UserError: if the data has no labels, or other classes than the head.
        """
        source, names = dataset.build(), self.config.class_names
        if source.classes is None or len(source.classes) != self.config.num_classes:
            found = "no classes" if source.classes is None else f"{len(source.classes)} classes"
            raise UserError(
                f"the head has {self.config.num_classes} classes, but the images to evaluate have {found}; give a folder with "
                "one sub-folder per class of the training data"
            )
        if names and tuple(source.classes) != names:
            strange = next(theirs for theirs, ours in zip(source.classes, names, strict=True) if theirs != ours)
            raise UserError(
                f"the images to evaluate have a class {strange!r} that training did not know in this place; give a folder with "
                f"the same sub-folders, such as {names[0]}"
            )
        logits: list[Tensor] = []
        labels: list[Tensor] = []
        with frozen(self):
            for images, numbers, _ in each(source, batch_size, device=device):
                logits.append(self.logits(images).float().cpu())
                labels.append(numbers.cpu())
        return torch.cat(logits), torch.cat(labels)

    def evaluate(self, dataset: Dataset.Config, device: torch.device | str = "cpu", batch_size: int = 256) -> dict[str, float]:
        """``top1`` and ``top5`` in per cent, the plain cross-entropy ``loss``, and the number of ``images``."""
        logits, labels = self.predict(dataset, device, batch_size)
        best = logits.topk(min(5, self.config.num_classes), dim=1).indices
        return {
            "top1": 100.0 * (best[:, 0] == labels).float().mean().item(),
            "top5": 100.0 * (best == labels[:, None]).any(1).float().mean().item(),
            "loss": F.cross_entropy(logits, labels).item(),
            "images": float(len(labels)),
        }
