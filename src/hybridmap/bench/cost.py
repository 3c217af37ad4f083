"""How long a recipe would take on hardware that it has not run on: an estimate, and called so.

    operations of a step per image, counted while its learner runs on the meta device (forward once, backward twice as many)
    hours = epochs * images * operations / (rate * devices)

    python scripts/costs.py         writes it into the recipes' docstrings

The rate is what one recipe was measured to do: ``map-base``, batch 512, uncompiled, on one H200: 1226 images per second
(docs/diary.md). Other shapes reach more or less of the card; nothing is said of loading images, or of waiting for each other.
"""

from __future__ import annotations

import torch

from hybridmap.backbones.flops import flops, flops_of
from hybridmap.train.recipe import Recipe
from hybridmap.types import Batch

IMAGES = 1_281_167
"""Of ImageNet-1K's training set."""
MEASURED_IMAGES_PER_S = 1226.0
"""Of ``map-base`` on one H200."""
MARK = "estimated from"
"""Stands in every cost that was not measured."""
_FEW = 2


def operations(recipe: Recipe) -> float:
    """Floating-point operations of one training step per image."""
    data = recipe.data
    with torch.device("meta"):
        learner = recipe.learner.build()
    if hasattr(learner, "key_backbone"):  # needs numbers to run: one crop is learnt from, the other only looked at
        return 4.0 * flops(learner.backbone, data.image_size)  # type: ignore[attr-defined]
    with torch.device("meta"):
        images = torch.empty(_FEW, len(data.mean), *data.image_size)  # type: ignore[attr-defined]
        labels = torch.zeros(_FEW, dtype=torch.int64) if hasattr(recipe.learner, "num_classes") else None
        batch = Batch(inputs=images, key=torch.arange(_FEW), labels=labels)
    forward = flops_of(lambda: learner(batch)) / _FEW
    frozen = not any(parameter.requires_grad for parameter in learner.backbone.parameters())
    return forward if frozen else 3.0 * forward


def estimate_hours(recipe: Recipe, reference: Recipe, *, devices: int = 8, images: int = IMAGES) -> float | None:
    """Hours of a recipe on so many H200s, by what ``reference``, the recipe that was measured, does on one; None where the
    recipe counts steps instead of epochs, or is not about images."""
    if recipe.train.epochs is None or not hasattr(recipe.data, "image_size"):
        return None
    rate = MEASURED_IMAGES_PER_S * devices * operations(reference)
    return recipe.train.epochs * images * operations(recipe) / (rate * 3600)


def told(recipe: Recipe, reference: Recipe) -> str:
    """What a recipe's docstring says of its cost."""
    hours = estimate_hours(recipe, reference)
    if hours is None:
        return "not measured."
    return f"about {float(f'{hours:.2g}'):g} h on 8 H200 for {recipe.train.epochs:g} epochs of ImageNet, {MARK} its operations."
