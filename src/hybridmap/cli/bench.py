"""``hybridmap bench ops``: how fast the operators run here, as ratios to plain PyTorch and to the reference in the same run."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import tyro
from rich.table import Table
from torch import Tensor

from hybridmap import ops
from hybridmap.cli.flags import Common, parse
from hybridmap.cli.output import console
from hybridmap.cli.runs import device_named, smoke
from hybridmap.ops.backend import Backend


@dataclass(frozen=True, kw_only=True)
class Options(Common):
    what: tyro.conf.Positional[Literal["ops"]] = "ops"
    """What to measure."""
    batch: int = 8
    """Images, B."""
    length: int = 98
    """Tokens, L: the visible half of 14 x 14 patches."""
    width: int = 768
    """Inner width, E."""
    state: int = 16
    """State size, S."""
    rounds: int = 9
    """Interleaved repetitions; medians are shown."""
    threads: int | None = None
    """Threads on a CPU; default: torch's choice."""


def main(arguments: Sequence[str]) -> int:
    """Time forward, and forward with backward, of each operator and of its reference, in turns."""
    options = parse(Options, arguments, "bench", "Speed of the operators, as ratios in one run.")
    if smoke():
        options = Options(batch=1, length=8, width=16, state=4, rounds=1, threads=options.threads, device=options.device)
    device = device_named(options.device)
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    table = Table("operator", "kernel", "direction", "ms", "plain PyTorch", "reference", box=None, pad_edge=False)
    for column in table.columns[3:]:
        column.justify = "right"
    for name, make in cases(options, device).items():
        for direction, backward in (("forward", False), ("forward + backward", True)):
            ours, *others = compare(make, backward, options.rounds, device)
            kernel = ops.active(name, device)
            table.add_row(name, kernel, direction, f"{1e3 * ours:.2f}", *(f"{other / ours:.1f} x" for other in others))
    out = console()
    shape = f"B {options.batch}, L {options.length}, E {options.width}, S {options.state}"
    out.print(f"{shape}, fp32, {device}, {torch.get_num_threads()} threads, median of {options.rounds} interleaved rounds")
    out.print(table)
    return 0


def cases(options: Options, device: torch.device) -> dict[str, Callable[[], tuple[Tensor, list[Tensor]]]]:
    """Operator -> a function that calls it once and returns its output and the inputs that get gradients."""
    shape = (options.batch, options.length, options.width)

    def normal(*size: int) -> Tensor:
        return torch.randn(*size, device=device).requires_grad_()

    x, dt, z = normal(*shape), normal(*shape), normal(*shape)
    b, c = normal(*shape[:2], options.state), normal(*shape[:2], options.state)
    a = (-torch.rand(options.width, options.state, device=device) - 0.1).requires_grad_()
    d, bias, taps, weight = normal(options.width), normal(options.width), normal(options.width, 4), normal(options.width)

    def scan() -> tuple[Tensor, list[Tensor]]:
        inputs = [x, dt, a, b, c, d, z, bias]
        return ops.selective_scan(x, dt, a, b, c, D=d, z=z, bias=bias), inputs

    def convolution() -> tuple[Tensor, list[Tensor]]:
        return ops.causal_conv1d(x, taps, bias), [x, taps, bias]

    def norm() -> tuple[Tensor, list[Tensor]]:
        normed, summed = ops.add_norm(x, z, weight, eps=1e-5, kind="rms")
        return normed + summed, [x, z, weight]

    return {"selective_scan": scan, "causal_conv1d": convolution, "add_norm": norm}


def compare(
    make: Callable[[], tuple[Tensor, list[Tensor]]], backward: bool, rounds: int, device: torch.device
) -> tuple[float, ...]:
    """Median seconds of the kernel in use, of plain PyTorch and of the reference, in turns after one unmeasured round."""

    def once() -> float:
        _wait(device)
        began = time.perf_counter()
        if backward:
            out, inputs = make()
            torch.autograd.grad(out.sum(), inputs)
        else:
            with torch.no_grad():
                make()
        _wait(device)
        return time.perf_counter() - began

    backends: tuple[Backend | None, ...] = (None, "torch", "reference")
    spent: list[list[float]] = [[] for _ in backends]
    for _ in range(rounds + 1):
        for backend, times in zip(backends, spent, strict=True):
            with ops.use_backend(backend):
                times.append(once())
    return tuple(statistics.median(times[1:]) for times in spent)


def _wait(device: torch.device) -> None:
    if device.type != "cpu":
        torch.get_device_module(device).synchronize()
