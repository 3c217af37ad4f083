"""One pass of a frozen network over a data set: the features that probes work on, computed once and kept.

    images ─> network in eval mode ─> one vector per image ─> Table(features, labels, paths)

The vector is what ``Backbone.pooled`` returns: the class token of a ViT, the mean of the final-norm patch tokens of all others.
Source: MAE (arXiv:2111.06377) for the class token; the mean is our choice, the paper being silent.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from hybridmap.backbones.base import Backbone
from hybridmap.config import Config
from hybridmap.data.base import Dataset
from hybridmap.data.loader import each
from hybridmap.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Table:
    """The features of a data set, row by row in its own order, on the host."""

    features: Float[Tensor, "n D"]
    labels: Int[Tensor, "n"] | None
    """Class numbers; None where the data set has none."""
    paths: tuple[str, ...]
    """Where each image came from."""
    classes: tuple[str, ...] | None
    """Class names by number."""

    def labelled(self) -> tuple[Int[Tensor, "n"], int]:
        """The labels and the number of classes.

        Raises:
            UserError: if the data has no labels.
        """
        if self.labels is None or self.classes is None:
            where = self.paths[0] if self.paths else "an empty data set"
            raise UserError(f"a probe needs labelled images (one folder per class), but {where} has no class")
        return self.labels, len(self.classes)


def common_labels(train: Table, test: Table) -> tuple[Int[Tensor, "n"], Int[Tensor, "m"], int]:
    """Labels of training and test images, and the number of classes, which must be the same ones by name.

    Raises:
        UserError: if either has no labels, or their classes differ.
    """
    given, classes = train.labelled()
    wanted, _ = test.labelled()
    if train.classes != test.classes:
        differing = sorted(set(train.classes or ()) ^ set(test.classes or ()))
        raise UserError(
            f"training and test images must have the same classes, but {', '.join(differing[:3])} is only in one of them; "
            "give two folders with the same sub-folders"
        )
    return given, wanted, classes


def network_of(learner: nn.Module) -> Backbone:
    """The backbone inside a learner (``learner.backbone``), or the module itself where it is one.

    Raises:
        UserError: if there is no backbone in it.
    """
    backbone = getattr(learner, "backbone", learner)
    if not isinstance(backbone, Backbone):
        raise UserError(f"features need a backbone, but {type(learner).__name__} has none in its attribute 'backbone'")
    return backbone


def describe(backbone: Backbone, images: Float[Tensor, "B ..."]) -> Float[Tensor, "B D"]:
    """One vector per image: all patches embedded, encoded with the network's own prefix tokens, and pooled."""
    return backbone.pooled(backbone.encode_visible(backbone.partition(images), None, prefix=True))


def raw_pixels(images: Float[Tensor, "B ..."]) -> Float[Tensor, "B D"]:
    """The images themselves as vectors: the baseline that any features have to beat."""
    return images.flatten(1)


def named(*datasets: Config) -> bool:
    """Whether every data set says where it is. A recipe's exams may leave the directory open; then they are not held."""
    return all(getattr(dataset, "root", None) != "" for dataset in datasets)


@contextmanager
def frozen(module: nn.Module) -> Iterator[None]:
    """Evaluation mode and no gradients inside, the former modes of all submodules restored afterwards."""
    modes = {part: part.training for part in module.modules()}
    module.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for part, mode in modes.items():
            part.training = mode


def extract(
    network: nn.Module | Callable[[Tensor], Tensor],
    dataset: Dataset.Config,
    *,
    device: torch.device | str = "cpu",
    batch_size: int = 256,
) -> Table:
    """The features of every image of ``dataset``, in its order, each image once.

    ``network`` is a backbone, a learner with one, or any function from images (B, C, H, W) to vectors (B, D) such as
    :func:`raw_pixels`. A backbone is used in evaluation mode, without gradients, and left as it was found.
    """
    source = dataset.build()
    if isinstance(network, nn.Module):
        backbone = network_of(network)
        with frozen(backbone):
            return _collect(lambda images: describe(backbone, images), source, device, batch_size)
    with torch.no_grad():
        return _collect(network, source, device, batch_size)


def _collect(read: Callable[[Tensor], Tensor], source: Dataset, device: torch.device | str, batch_size: int) -> Table:
    features: list[Tensor] = []
    labels: list[Tensor] = []
    paths: list[str] = []
    for images, numbers, names in each(source, batch_size, device=device):
        features.append(read(images).float().cpu())
        labels.append(numbers.cpu())
        paths.extend(names)
    classes = source.classes
    return Table(
        features=torch.cat(features), labels=torch.cat(labels) if classes else None, paths=tuple(paths), classes=classes
    )
