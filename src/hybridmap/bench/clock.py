"""How time and memory are taken: contestants in turns, medians, and a clock that other load on the machine hardly reaches.

CPU, one thread      the CPU time of this process, so that whatever else runs here matters little
CPU, more threads    wall time, for idle machines
CUDA                 between two events of the stream; short calls are repeated until the queue hides their launch
"""

from __future__ import annotations

import math
import multiprocessing
import statistics
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import torch

T = TypeVar("T")

_SLOW = 100
"""A contestant that needs this many times the fastest one's time takes part in ``_FEW`` rounds only."""
_FEW = 3
_SHORT = 0.1
"""Seconds up to which a call on a CPU is preceded by one that is not counted, so that it finds its own memory on the heap: what
a neighbour in the round returned to the system would have to be fetched again."""
_QUEUED = 0.01
"""Seconds that a measurement on CUDA fills with calls."""


def mark(device: torch.device) -> Any:
    """A point in time, for :func:`elapsed`."""
    if device.type == "cuda":
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event
    if device.type != "cpu":
        torch.get_device_module(device).synchronize()
    return time.process_time() if device.type == "cpu" and torch.get_num_threads() == 1 else time.perf_counter()


def elapsed(begin: Any, end: Any) -> float:
    """Seconds between two marks of one device."""
    if isinstance(begin, float):
        return end - begin
    end.synchronize()
    return begin.elapsed_time(end) / 1e3


def seconds(run: Callable[[], object], device: torch.device, calls: int = 1) -> float:
    """What one call takes."""
    begin = mark(device)
    for _ in range(calls):
        run()
    return elapsed(begin, mark(device)) / calls


def in_turns(runs: Mapping[str, Callable[[], object]], rounds: int, device: torch.device) -> dict[str, float]:
    """Median seconds of each, taking turns after a round that is not counted; nor is a call right before each short one."""
    first = {name: seconds(run, device) for name, run in runs.items()}
    if device.type == "cuda":  # where the very first call has built kernels
        first = {name: seconds(run, device) for name, run in runs.items()}
    calls = {name: min(math.ceil(_QUEUED / took), 100) if device.type == "cuda" else 1 for name, took in first.items()}
    taken: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(rounds):
        patience = _SLOW * min((min(times) for times in taken.values() if times), default=math.inf)
        for name, run in runs.items():
            if turn < _FEW or min(taken[name]) <= patience:
                if device.type == "cpu" and first[name] <= _SHORT:
                    run()
                taken[name].append(seconds(run, device, calls[name]))
    return {name: statistics.median(times) for name, times in taken.items()}


def in_fresh_process(function: Callable[..., T], *arguments: Any) -> T:
    """What a function of some module returns in a process that has done nothing before."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def peak_growth(run: Callable[[], object]) -> float:
    """Bytes by which a call lifts the resident size of this process at its worst moment; NaN where the system does not say it.

    Meaningful in a fresh process: memory that was used before and given back to the allocator is not seen. Linux says it.
    """
    reset = Path("/proc/self/clear_refs")
    if not reset.exists():
        return math.nan
    reset.write_text("5")  # the peak starts again at the present size
    before = _resident("VmRSS")
    run()
    return _resident("VmHWM") - before


def peak_allocated(run: Callable[[], object], device: torch.device) -> float:
    """Bytes allocated on a CUDA device at the worst moment of a second call, what was there before included."""
    run()
    torch.cuda.reset_peak_memory_stats(device)
    run()
    return float(torch.cuda.max_memory_allocated(device))


def _resident(field: str) -> float:
    """A size of this process in bytes, from the kernel."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(float(line.split()[1]) * 1024 for line in lines if line.startswith(field))
