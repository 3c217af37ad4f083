"""What ordered regions cost: a MAP step over the MAE step of the same network and ratio, and the share of drawing a mask.

    python benchmarks/objectives.py [--learners map-tiny map-vit-base ...] [--batch 8] [--rounds 9] [--device cpu] [--quick]

For each recipe of MAP, in turns on one machine: the step as it is, the same with the decoder mask "mae" (which asks for no
permission at all), and what draws regions and mask alone. MAP may cost at most 1.15 of MAE, drawing at most 1 % of a step.
A ratio of 1 is the floor: MAE's step is MAP's without its permission. Exit code 1 where a target is missed.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from typing import Any

import torch

from hybridmap import recipes
from hybridmap.bench.clock import in_turns
from hybridmap.bench.step import Step
from hybridmap.config import override
from hybridmap.ops.heap import keep_freed_memory
from hybridmap.recipes.smoke import scale_down
from hybridmap.train.recipe import Recipe

LEARNERS = ("map-tiny", "map-vit-base", "map-mambar-tiny")
STEP_TARGET, DRAW_TARGET = 1.15, 0.01


def contestants(recipe: Recipe, device: torch.device) -> dict[str, Callable[[], object]]:
    """The steps of a recipe of MAP and of its MAE twin, and what draws their masks."""
    step, twin = Step.of(recipe, device), Step.of(override(recipe, {"learner.decoder_mask": "mae"}), device)
    learner: Any = step.learner
    patches = learner.backbone.partition(step.batch.inputs)
    return {"map": step, "mae": twin, "draw": lambda: learner.draw(patches, step.batch)}


def compare(name: str, recipe: Recipe, device: torch.device, rounds: int) -> dict[str, Any]:
    """Milliseconds, ratios and whether both targets are met."""
    took = in_turns(contestants(recipe, device), rounds, device)
    over, share = took["map"] / took["mae"], took["draw"] / took["map"]
    return {
        "learner": name,
        **{f"{what} ms": round(1e3 * seconds, 3) for what, seconds in took.items()},
        "map / mae": round(over, 3),
        "draw / map": round(share, 5),
        "met": over <= STEP_TARGET and share <= DRAW_TARGET,
    }


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--learners", nargs="+", default=LEARNERS)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--precision", default="fp32", choices=("fp32", "bf16"))
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--quick", action="store_true", help="everything at tiny shapes, which says nothing about the targets")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    keep_freed_memory()
    changes = {"train.batch_size": options.batch, "train.precision": options.precision, "train.compile": False}
    found = []
    for name in options.learners:
        recipe = scale_down(recipes.find(name)) if options.quick else recipes.find(name)
        found.append(compare(name, override(recipe, changes), torch.device(options.device), options.rounds))
    for line in found:
        print(json.dumps(line), flush=True)
    return 0 if all(line["met"] for line in found) else 1


if __name__ == "__main__":
    sys.exit(main())
