"""How fast and how large is the selective scan, compiled and in plain PyTorch? Ratios of one run, one thread.

    python benchmarks/ops.py [--csv FILE] [--rounds N]

Figures at (batch 8, 98 tokens, 768 channels, 16 states), float32, forward and backward, with their targets for the compiled
kernel and for plain PyTorch:

    against the published form, eager      >= 350 x, >= 30 x    the loop that slices its tensors; its backward is quadratic in L
    against the loop over unbind, eager    >= 9 x, >= 0.9 x     the honest baseline: our reference.py
    extra memory against the same loop     -, <= 0.5            peak resident size beyond the size before

and the speed at the shape that the demo trains with, both directions. The contestants take turns, medians of the rounds
are compared, and time is the process's own CPU time, so that other load on the machine matters little. Memory is measured
in a fresh process each.
"""

from __future__ import annotations

import argparse
import csv
import math
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from hybridmap.ops import active, bidirectional_scan, selective_scan, use_backend
from hybridmap.ops.backend import Backend

SHAPE = (8, 98, 768, 16)
"""Batch, tokens, channels, states."""
DEMO_SHAPE = (64, 32, 256, 16)
Scan = Callable[[list[Tensor]], Tensor]


def published_form(tensors: list[Tensor]) -> Tensor:
    """The recurrence as it is usually published: channels first, and every step slices its tensors out of the whole.

    Autograd answers each slice with a full-size zero tensor, so that the backward pass is quadratic in the length.
    """
    x, dt, A, B, C, D, bias, z = tensors
    x, dt, B, C, z = (t.mT for t in (x, dt, B, C, z))
    delta = F.softplus(dt + bias[:, None])
    decay = torch.exp(torch.einsum("bel,es->bels", delta, A))
    driven = torch.einsum("bel,bsl,bel->bels", delta, B, x)
    h = x.new_zeros(x.shape[0], *A.shape)
    outputs = []
    for t in range(x.shape[2]):
        h = decay[:, :, t] * h + driven[:, :, t]
        outputs.append(torch.einsum("bes,bs->be", h, C[:, :, t]))
    y = torch.stack(outputs, 2) + D[:, None] * x
    return (y * F.silu(z)).mT


def one_way(tensors: list[Tensor]) -> Tensor:
    x, dt, A, B, C, D, bias, z = tensors
    return selective_scan(x, dt, A, B, C, D=D, bias=bias, z=z)


def both_ways(tensors: list[Tensor]) -> Tensor:
    """Both directions of a layer in one call."""
    *direction, z = tensors
    return bidirectional_scan(direction, direction, z)


def by(backend: Backend, scan: Scan) -> Scan:
    """The scan, forward and backward, by one backend."""

    def run(tensors: list[Tensor]) -> Tensor:
        use_backend(backend)  # for good: the backward pass is to take it, too
        return scan(tensors)

    return run


def backends() -> dict[str, Backend]:
    """Contestant -> its backend; the compiled kernel where there is one, and reference.py as the loop over ``x.unbind(1)``."""
    compiled: dict[str, Backend] = {} if active("selective_scan", "cpu") == "torch" else {"compiled": "cpu"}
    return compiled | {"plain PyTorch": "torch", "unbind loop": "reference"}


def contestants(scan: Scan) -> dict[str, Scan]:
    return {name: by(backend, scan) for name, backend in backends().items()}


def inputs(shape: tuple[int, int, int, int]) -> list[Tensor]:
    """x, dt, A, B, C, D, bias, z as a trained network has them, all wanting gradients."""
    batch, length, channels, states = shape
    torch.manual_seed(0)
    tokens, projected = (batch, length, channels), (batch, length, states)
    A = -torch.arange(1.0, states + 1).repeat(channels, 1)
    rest = (
        torch.randn(projected),
        torch.randn(projected),
        torch.randn(channels),
        torch.randn(channels) - 3,
        torch.randn(tokens),
    )
    return [t.requires_grad_() for t in (torch.randn(tokens), torch.randn(tokens), A, *rest)]


def step(scan: Scan, tensors: list[Tensor]) -> None:
    """One forward and backward pass."""
    out = scan(tensors)
    torch.autograd.grad(out, tensors, torch.ones_like(out))


def seconds(scans: dict[str, Scan], shape: tuple[int, int, int, int], rounds: int) -> dict[str, float]:
    """Median CPU seconds of each contestant, taking turns after one unmeasured round (none for the very slow one)."""
    tensors = inputs(shape)
    times: dict[str, list[float]] = {name: [] for name in scans}
    for turn in range(rounds + 1):
        for name, scan in scans.items():
            if scan is published_form and turn not in (1, rounds):
                continue
            start = time.process_time()
            step(scan, tensors)
            if turn:
                times[name].append(time.process_time() - start)
    return {name: statistics.median(spent) for name, spent in times.items()}


def extra_megabytes(name: str) -> float:
    """How far one step lifts the resident size of a fresh process; NaN where the system does not say (it does on Linux)."""
    result = subprocess.run([sys.executable, __file__, "--memory-of", name], capture_output=True, text=True, check=True)
    return float(result.stdout)


def measure_memory(name: str) -> None:
    """Print, in megabytes, the peak resident size during one step beyond the size before it."""
    scan = contestants(one_way)[name]
    step(scan, inputs((1, 2, 3, 4)))
    tensors = inputs(SHAPE)
    reset = Path("/proc/self/clear_refs")
    if not reset.exists():
        print(math.nan)
        return
    reset.write_text("5")  # the peak starts again at the present size
    before = resident("VmRSS")
    step(scan, tensors)
    print(resident("VmHWM") - before)


def resident(field: str) -> float:
    """A size of this process in megabytes, from the kernel."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(float(line.split()[1]) * 1024 / 1e6 for line in lines if line.startswith(field))


def main() -> int:
    """Measure, print, and write a CSV file when asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--csv", type=Path, help="also write the table there")
    parser.add_argument("--rounds", type=int, default=7, help="measured rounds; the published form takes part in two at most")
    parser.add_argument("--memory-of", choices=backends(), help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.memory_of:
        measure_memory(options.memory_of)
        return 0

    time_of = seconds(contestants(one_way) | {"published form": published_form}, SHAPE, options.rounds)
    demo = seconds(contestants(both_ways), DEMO_SHAPE, options.rounds)
    memory = {name: extra_megabytes(name) for name in backends()}
    rows = []
    for name, targets in (("compiled", (">= 350", ">= 9", "")), ("plain PyTorch", (">= 30", ">= 0.9", "<= 0.5"))):
        if name in time_of:
            rows += [
                (f"{name}: speed against the published form", time_of["published form"] / time_of[name], targets[0]),
                (f"{name}: speed against the unbind loop", time_of["unbind loop"] / time_of[name], targets[1]),
                (f"{name}: extra memory against the unbind loop", memory[name] / memory["unbind loop"], targets[2]),
                (f"{name}: against the unbind loop, shape of the demo", demo["unbind loop"] / demo[name], ""),
            ]
    print("selective scan, forward + backward, (8, 98, 768) with 16 states, float32, one thread")
    for name, value in time_of.items():
        print(f"  {name:<52}{1e3 * value:10.1f} ms")
    for name, value in memory.items():
        print(f"  {name:<52}{value:10.1f} MB more")
    for name, value, target in rows:
        print(f"  {name:<52}{value:10.2f}   {target}")
    if options.csv:
        with options.csv.open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["figure", "value", "target"])
            writer.writerows(rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
