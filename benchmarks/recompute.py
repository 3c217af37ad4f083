"""What recomputing activations saves and costs: a training step with all of them kept, and with every n-th block recomputed.

    python benchmarks/recompute.py [RECIPE] [--batch 16] [--blocks 1 2 3 4] [--rounds 5] [--device cuda] [--csv FILE]

Time in turns, one thread; the peak of memory (weights, gradients, optimiser and activations) in fresh processes on a CPU, from
step to step on a card. Recipe: map-base where nothing else is said.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch
from rich.console import Console

from hybridmap import recipes
from hybridmap.bench.clock import in_fresh_process, in_turns, peak_allocated
from hybridmap.bench.sheet import Sheet
from hybridmap.bench.step import Step, peak_growth_of
from hybridmap.config import override
from hybridmap.ops.heap import keep_freed_memory
from hybridmap.train.loop import reproducible
from hybridmap.train.recipe import Recipe

KEPT = "all kept"


def choices(recipe: Recipe, blocks: list[int]) -> dict[str, Recipe]:
    """The recipe with nothing recomputed, and with every n-th block for each n of ``blocks``."""
    every = {1: "every block recomputed"} | {n: f"one block in {n} recomputed" for n in blocks if n > 1}
    recomputing = {
        every[n]: override(recipe, {"train.checkpoint_activations": True, "train.checkpoint_blocks": n}) for n in blocks
    }
    return {KEPT: override(recipe, {"train.checkpoint_activations": False})} | recomputing


def peaks(compared: dict[str, Recipe], steps: dict[str, Step], device: torch.device) -> dict[str, float]:
    """Bytes at the highest."""
    if device.type == "cuda":
        return {name: peak_allocated(step, device) for name, step in steps.items()}
    return {name: in_fresh_process(peak_growth_of, recipe, None, 1) for name, recipe in compared.items()}


def main() -> int:
    """Measure, print, and write a CSV file when asked."""
    keep_freed_memory()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", nargs="?", default="map-base", help="hybridmap recipes lists them")
    parser.add_argument("--batch", type=int, default=16, help="images")
    parser.add_argument("--blocks", type=int, nargs="+", default=[1, 2, 3, 4], help="recompute one block in so many")
    parser.add_argument("--rounds", type=int, default=5, help="measured rounds, of which the median counts")
    parser.add_argument("--device", type=torch.device, default=torch.device("cpu"))
    parser.add_argument("--csv", type=Path, help="also write the table there")
    options = parser.parse_args()
    torch.set_num_threads(1)
    asked = override(recipes.find(options.recipe), {"train.batch_size": options.batch})
    if options.device.type == "cpu":
        asked = override(asked, {"train.precision": "fp32"})
    compared = choices(asked, options.blocks)
    with reproducible(options.device, strict=False):
        steps = {name: Step.of(recipe, options.device) for name, recipe in compared.items()}
        took = in_turns(steps, options.rounds, options.device)
    memory = peaks(compared, steps, options.device)
    sheet = Sheet({"what": "{}", "s": "{:.3f}", "/ all kept": "{:.2f} x", "peak GB": "{:.2f}", "peak / all kept": "{:.2f} x"})
    for name, seconds in took.items():
        sheet.add(name, seconds, seconds / took[KEPT], memory[name] / 1e9, memory[name] / memory[KEPT])
    print(f"{options.recipe}, batch {options.batch}, {asked.train.precision}, {options.device}")
    Console(width=120).print(sheet.table())
    if options.csv:
        sheet.write(options.csv, {"recipe": options.recipe, "batch": options.batch, "device": str(options.device)})
    return 0


if __name__ == "__main__":
    sys.exit(main())
