"""``hybridmap pretrain RECIPE``: run a recipe, then draw what it learned."""

from __future__ import annotations

from collections.abc import Sequence

from hybridmap.cli.flags import parse_recipe
from hybridmap.cli.runs import run_recipe


def main(arguments: Sequence[str]) -> int:
    """Pretrain; the same command again continues an unfinished run."""
    name, recipe, options = parse_recipe(arguments, "pretrain", "Pretrain a backbone on any folder of images.")
    run_recipe(name, recipe, options, "pretrain", arguments)
    return 0
