"""How long a recipe would take on hardware that it has not run on: an estimate, and called so.

    operations of a step per image, counted while its learner runs on the meta device (forward once, backward twice as many)
    hours = epochs * images * operations / (rate * devices)

The rate is what one recipe was measured to do: ``map-base``, batch 512, uncompiled, on one H200: 1226 images per second
(docs/diary.md). Other shapes reach more or less of the card; nothing is said of loading images, or of waiting for each other.
"""

from __future__ import annotations

import torch

from hybridmap.backbones.flops import flops_of
from hybridmap.train.recipe import Recipe
from hybridmap.types import Batch

IMAGES = 1_281_167
"""Of ImageNet-1K's training set."""
MEASURED_IMAGES_PER_S = 1226.0
"""Of ``map-base`` on one H200."""
_FEW = 2


def operations(recipe: Recipe) -> float | None:
    """Floating-point operations of one training step per image; None where the learner does not run without data."""
    data = recipe.data
    try:
        with torch.device("meta"):
            learner = recipe.learner.build()
            shape = _FEW, len(data.mean), *data.image_size  # type: ignore[attr-defined]
            views = tuple(torch.empty(shape) for _ in range(data.views))  # type: ignore[attr-defined]
            labels = torch.zeros(_FEW, dtype=torch.int64) if hasattr(recipe.learner, "num_classes") else None
            batch = Batch(inputs=views[0], key=torch.arange(_FEW), labels=labels, views=views if len(views) > 1 else None)
        forward = flops_of(lambda: learner(batch)) / _FEW
    except (RuntimeError, NotImplementedError):  # what has no meaning without numbers, such as a queue of keys
        return None
    frozen = not any(parameter.requires_grad for parameter in learner.backbone.parameters())
    return forward if frozen else 3.0 * forward


def estimate_hours(recipe: Recipe, reference: Recipe, *, devices: int = 8, images: int = IMAGES) -> float | None:
    """Hours of a recipe on so many H200s, by what ``reference``, the recipe that was measured, does on one; None = unknown."""
    own, measured = operations(recipe), operations(reference)
    if own is None or measured is None or recipe.train.epochs is None:
        return None
    return recipe.train.epochs * images * own / (MEASURED_IMAGES_PER_S * measured * devices * 3600)
