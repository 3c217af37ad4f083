"""How much faster and smaller is the selective scan than it has to be? Its targets, with what ``hybridmap bench ops`` measures.

    python benchmarks/ops.py [--csv FILE] [--rounds N]

Forward and backward at (batch 8, 98 tokens, 768 channels, 16 states), float32, one thread, for the compiled kernel and for
plain PyTorch:

    against the published form             >= 350 x, >= 30 x    the loop that slices its tensors; its backward is quadratic in L
    against the loop over unbind, eager    >= 9 x, >= 0.9 x     the honest baseline: our reference.py
    extra memory against the same loop     -, <= 0.5            peak resident size beyond the size before, in fresh processes
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch
from rich.console import Console

from hybridmap.bench.clock import in_fresh_process, peak_growth
from hybridmap.bench.operators import Contestant, Direction, Problem, Shape, contestants, outcome, problems, race
from hybridmap.bench.sheet import Sheet
from hybridmap.ops.heap import keep_freed_memory

CPU = torch.device("cpu")
BOTH: Direction = "forward + backward"
LOOP, PUBLISHED, PLAIN = "loop over unbind", "published form (slices)", "plain PyTorch"


def scan(shape: Shape) -> tuple[Problem, dict[str, Contestant]]:
    """The selective scan at a shape, and those who have targets or are their measure, by name; ours first."""
    problem, *_ = problems(shape, torch.float32, CPU)
    return problem, {c.name: c for c in contestants(problem, CPU) if c.name.startswith(("ours", LOOP, PUBLISHED, PLAIN))}


def extra_bytes(name: str) -> float:
    """How far one step lifts the resident size of this process, which is to be a fresh one."""
    torch.set_num_threads(1)

    def step(shape: Shape) -> None:
        problem, known = scan(shape)
        outcome(known[name], problem.inputs)

    step(Shape(1, 2, 3, 4))  # what is loaded once is not counted
    return peak_growth(lambda: step(Shape()))


def main() -> int:
    """Measure, print, and write a CSV file when asked."""
    keep_freed_memory()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--csv", type=Path, help="also write the table there")
    parser.add_argument("--rounds", type=int, default=7, help="measured rounds; what is very slow takes part in three at most")
    options = parser.parse_args()
    torch.set_num_threads(1)
    problem, known = scan(Shape())
    took = {row.name: row.seconds[BOTH] for row in race(problem, list(known.values()), [BOTH], options.rounds) if row.seconds}
    memory = {name: in_fresh_process(extra_bytes, name) for name in known if name != PUBLISHED}
    sheet = Sheet({"what": "{}", "against": "{}", "ratio": "{:.2f}", "target": "{}"})
    kernel = next(iter(known))
    for name, published, loop in ((kernel, ">= 350", ">= 9"), (PLAIN, ">= 30", ">= 0.9")):
        if name in known:
            sheet.add(f"{name}: speed", PUBLISHED, took[PUBLISHED] / took[name], published)
            sheet.add(f"{name}: speed", LOOP, took[LOOP] / took[name], loop)
            sheet.add(f"{name}: extra memory", LOOP, memory[name] / memory[LOOP], "<= 0.5" if name == PLAIN else "")
    Console(width=120).print(sheet.table())
    if options.csv:
        sheet.write(options.csv, {})
    return 0


if __name__ == "__main__":
    sys.exit(main())
