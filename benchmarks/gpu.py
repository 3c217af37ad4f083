"""What one CUDA card gives, in under 8 minutes: the operators beside floors and the usual extension, then pretraining steps.

    python benchmarks/gpu.py [--quick] [--minutes 7] [--csv DIR]

Operators at (128, 196, 1536) and (8, 98, 768) with 16 states, in bfloat16: milliseconds between CUDA events, beside a copy of
the same bytes, beside ``mamba_ssm`` where it is importable, and with the targets of the larger shape. Whether two runs of the
scan agree in every bit. Then MAP on HybridNet-B, MAP and MAE on ViT-B, under bfloat16 autocast: images/s, peak memory, fraction
of the card's peak, and the time of the step's matrix products alone; batches of 128, 256 and 512, uncompiled first.

No case is begun once the minutes are over; those left out are named. ``--quick`` runs all of it at tiny shapes.
"""

from __future__ import annotations

import argparse
import gc
import math
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from hybridmap import recipes
from hybridmap.bench.operators import Contestant, Direction, Problem, Row, Shape, contestants, outcome, problems, race
from hybridmap.bench.products import peak
from hybridmap.bench.sheet import Sheet, operators_sheet
from hybridmap.bench.step import FLOOR, STEP, measure
from hybridmap.cli.doctor import environment
from hybridmap.config import override
from hybridmap.recipes.smoke import scale_down
from hybridmap.train.recipe import Recipe

DIRECTIONS: tuple[Direction, ...] = ("forward", "training forward", "backward")
OPERATORS = ("selective_scan", "causal_conv1d", "add_norm")
SHAPES = (Shape(128, 196, 1536, 16), Shape(8, 98, 768, 16))
TARGETS_MS: dict[Direction, float] = {"forward": 0.3, "training forward": 0.35, "backward": 1.0}
"""Of the scan at the first of the shapes, on an H200."""
LEARNERS = ("map-base", "map-vit-base", "mae-vit-base")
BATCHES = (128, 256, 512)
PEERS = ("mamba_ssm",)
"""The others are far too slow for these shapes; ``hybridmap bench ops`` has them."""


@dataclass(frozen=True)
class Case:
    """One pretraining step to be measured."""

    name: str
    batch: int
    compiled: bool

    def __str__(self) -> str:
        return f"{self.name}, batch {self.batch}, {'compiled' if self.compiled else 'uncompiled'}"

    def recipe(self, quick: bool) -> Recipe:
        recipe = recipes.find(self.name)
        recipe = scale_down(recipe) if quick else recipe
        return override(recipe, {"train.batch_size": self.batch, "train.compile": self.compiled, "train.precision": "bf16"})


class Budget:
    """Which cases still begin."""

    def __init__(self, minutes: float) -> None:
        self.ends = time.monotonic() + 60 * minutes
        self.left_out: list[str] = []

    def allows(self, case: object) -> bool:
        if time.monotonic() < self.ends:
            return True
        self.left_out.append(str(case))
        return False


def cases(quick: bool) -> Iterator[Case]:
    """Uncompiled before compiled, small batches before large ones, so that what is left out is what matters least."""
    for compiled in (False, True):
        for batch in (2, 4) if quick else BATCHES:
            for name in LEARNERS:
                yield Case(name, batch, compiled)


def operators(device: torch.device, quick: bool, rounds: int, budget: Budget) -> Sheet:
    """The table of all operators at all shapes."""
    rows: list[Row] = []
    for shape in (Shape(2, 20, 32, 4), Shape(1, 9, 16, 4)) if quick else SHAPES:
        for problem in problems(shape, torch.bfloat16, device):
            where = f"{problem.operator} {'x'.join(map(str, shape))}"
            if problem.operator not in OPERATORS or not budget.allows(where):
                continue
            try:
                found = race(problem, wanted(problem, device), DIRECTIONS, rounds)
            except torch.OutOfMemoryError:
                found = [Row(where, "all", {}, "out of memory")]
            rows += [row._replace(operator=where) for row in found if row.seconds or row.name in ("all", *PEERS)]
            if problem.operator == "selective_scan" and shape == SHAPES[0]:
                rows.append(Row(where, "target", {d: ms / 1e3 for d, ms in TARGETS_MS.items()}))
    return operators_sheet(rows, DIRECTIONS)


def wanted(problem: Problem, device: torch.device) -> list[Contestant]:
    """Ours, plain PyTorch, and the peers that are fit for a card."""
    return [c for c in contestants(problem, device) if c.name in ("plain PyTorch", *PEERS) or c.name.startswith("ours")]


def repeatable(device: torch.device, quick: bool) -> bool:
    """Whether two runs of the scan, forward and backward, agree in every bit."""
    problem, *_ = problems(Shape(2, 20, 32, 4) if quick else SHAPES[0], torch.bfloat16, device)
    ours = contestants(problem, device)[0]
    return all(map(torch.equal, outcome(ours, problem.inputs), outcome(ours, problem.inputs)))


def steps(device: torch.device, quick: bool, rounds: int, budget: Budget, out: Console) -> Sheet:
    """The table of all training steps; a line each as soon as it is known."""
    best, whose = peak(device)
    out.print(f"peak: {best / 1e12:.4g} TFLOP/s, dense bf16, {whose}")
    columns = {"learner": "{}", "batch": "{}", "compiled": "{}", "ms": "{:.1f}", "images/s": "{:.0f}", "peak GB": "{:.1f}"}
    sheet = Sheet(
        columns | {"TFLOP/s": "{:.1f}", "of peak": "{:.1%}", "floor ms": "{:.1f}", "/ floor": "{:.2f} x", "note": "{}"}
    )
    for case in cases(quick):
        if not budget.allows(case):
            continue
        torch.compiler.reset()
        cells: tuple[Any, ...] = (case.name, case.batch, "yes" if case.compiled else "no")
        try:
            found = measure(case.recipe(quick), device, rounds=rounds, plain=False, memory=device.type == "cuda")
        except torch.OutOfMemoryError:
            sheet.add(*cells, *[None] * 7, "out of memory")
        except RuntimeError as error:
            if not case.compiled:
                raise
            sheet.add(*cells, *[None] * 7, f"does not compile here: {type(error).__name__}")
        else:
            spent, floor = 1e3 * found.seconds[STEP], 1e3 * found.seconds[FLOOR]
            gigabytes = found.memory[STEP] / 1e9 if found.memory else None
            rate = (found.rate / 1e12, found.rate / best)
            sheet.add(*cells, spent, found.images_per_s, gigabytes, *rate, floor, found.over_floor, "")
            out.print(f"{case}: {found.images_per_s:.0f} images/s; " + ", ".join(_shares(found.shares)))
        gc.collect()  # a compiled learner refers to itself
        if device.type == "cuda":
            torch.cuda.empty_cache()
    return sheet


def _shares(shares: dict[str, float]) -> list[str]:
    return [f"{kind} {share:.0%}" for kind, share in shares.items()]


def report(device: torch.device, *, quick: bool, minutes: float, csv: Path | None) -> None:
    """Measure everything and print it."""
    out, budget, rounds = Console(width=160), Budget(minutes), 3 if quick else 9
    facts = {name: value for name, value in environment(device).items() if name in ("torch", "triton", "CUDA", "hybridmap")}
    out.print(", ".join(f"{name} {value}" for name, value in facts.items()))
    found = {"operators": operators(device, quick, rounds, budget)}
    out.print(found["operators"].table())
    out.print(f"two runs of the scan are {'equal in every bit' if repeatable(device, quick) else 'NOT EQUAL'}")
    found["steps"] = steps(device, quick, min(rounds, 5), budget, out)
    out.print(found["steps"].table())
    if budget.left_out:
        out.print(f"left out after {minutes:g} minutes: {'; '.join(budget.left_out)}")
    if csv is not None:
        csv.mkdir(parents=True, exist_ok=True)
        for name, sheet in found.items():
            sheet.write(csv / f"gpu_{name}.csv", facts)


def main() -> int:
    """Exit code 2 without a card."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="everything at tiny shapes")
    parser.add_argument("--minutes", type=float, default=7.0, help="no case is begun later than that")
    parser.add_argument("--csv", type=Path, help="a directory for the tables as CSV")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        print("benchmarks/gpu.py needs a CUDA device, and torch finds none; hybridmap bench runs on CPUs", file=sys.stderr)
        return 2
    report(torch.device("cuda"), quick=options.quick, minutes=options.minutes or math.inf, csv=options.csv)
    return 0


if __name__ == "__main__":
    sys.exit(main())
