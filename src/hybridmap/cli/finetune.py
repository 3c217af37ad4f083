"""``hybridmap finetune RECIPE --init RUN|FILE``: train a classifier, from pretrained weights or from nothing."""

from __future__ import annotations

from collections.abc import Sequence

from hybridmap.cli.flags import parse_recipe
from hybridmap.cli.runs import run_recipe
from hybridmap.config import override
from hybridmap.errors import UserError
from hybridmap.tasks.classifier import Classifier


def main(arguments: Sequence[str]) -> int:
    """Fine-tune. The classes are those of the data; without ``--init`` training starts from nothing."""
    name, recipe, options = parse_recipe(arguments, "finetune", "Train a classifier on labelled images.")
    if not isinstance(recipe.learner, Classifier.Config):
        raise UserError(f"{name} trains no classifier; hybridmap recipes 'ft-*' lists those that do")
    classes = recipe.data.build().labelled()
    recipe = override(recipe, {"learner.num_classes": len(classes), "learner.class_names": classes})
    run_recipe(name, recipe, options, "finetune", arguments)
    return 0
