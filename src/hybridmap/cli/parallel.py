"""The same work on many things, in processes that stay: one that fails or dies is named, and the rest goes on.

things ──▶ worker 1..N (spawned, each with its share of the cores) ──▶ (thing, what came out), as they finish
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import FrameType
from typing import Any, TypeVar

from hybridmap.errors import UserError

T = TypeVar("T")
R = TypeVar("R")

_PATIENCE_S = 60.0
"""How long a worker may take to save what it is doing, once it is asked to stop."""


@dataclass(frozen=True, kw_only=True)
class Failure:
    """Why there is no result."""

    reason: str
    """One sentence."""
    details: str = ""
    """The traceback, where the reason is not the user's."""


def run_all(
    things: Mapping[str, T], work: Callable[[T], R], *, jobs: int = 1, threads: int | None = None
) -> Iterator[tuple[str, R | Failure]]:
    """Name and outcome of ``work(thing)`` for every thing, in the order in which they finish.

    Args:
        things: name -> thing; things and results must be picklable where ``jobs`` > 1.
        work: a function of a module's top level, or a partial of one.
        jobs: processes; with 1 everything runs in this one.
        threads: of each process; None = as they are.

    An interrupt (Ctrl-C, SIGTERM) reaches the work, which may save its state, and then leaves here as it came.
    """
    if jobs <= 1:
        for name, thing in things.items():
            yield name, _attempt(work, thing)
        return
    left, interrupted = iter(things.items()), False
    workers = [_Worker(work, threads) for _ in range(min(jobs, len(things)))]
    before = signal.signal(signal.SIGTERM, _leave) if threading.current_thread() is threading.main_thread() else None
    try:
        for worker in list(workers):
            if (task := next(left, None)) is not None:
                worker.start(*task)
        while busy := [worker for worker in workers if worker.doing is not None]:
            ready = wait([worker.connection for worker in busy])
            for worker in busy:
                if worker.connection not in ready:
                    continue
                name = worker.doing
                assert name is not None
                outcome = worker.receive()
                if not worker.process.is_alive() or isinstance(outcome, _Gone):
                    workers.remove(worker)
                    worker.stop()
                    outcome = Failure(reason=f"its process ended with code {worker.process.exitcode} (out of memory?)")
                    worker = _Worker(work, threads)
                    workers.append(worker)
                yield name, outcome
                if (task := next(left, None)) is not None:
                    worker.start(*task)
    except KeyboardInterrupt:
        interrupted = True  # Ctrl-C went to the workers too; a second signal would not let them save
        raise
    finally:
        if before is not None:
            signal.signal(signal.SIGTERM, before)
        for worker in workers:
            worker.stop(ask=not interrupted)


def _leave(number: int, frame: FrameType | None) -> None:
    raise SystemExit(0)


class _Gone:
    """What is heard from a worker that died."""


class _Worker:
    """One process, and the thing that it works on."""

    def __init__(self, work: Callable[[Any], Any], threads: int | None) -> None:
        context = multiprocessing.get_context("spawn")  # a forked process would inherit PyTorch's threads, which do not live on
        self.connection, theirs = context.Pipe()
        # Not a daemon: those may have no children, and a loader has workers of its own.
        self.process: BaseProcess = context.Process(target=_serve, args=(theirs, work, threads))
        self.process.start()
        theirs.close()
        self.doing: str | None = None

    def start(self, name: str, thing: Any) -> None:
        """Hand a thing over. That the process is gone is noticed when its answer is awaited."""
        self.doing = name
        with suppress(OSError):
            self.connection.send(thing)

    def receive(self) -> Any:
        """The outcome of the thing, or :class:`_Gone`."""
        self.doing = None
        try:
            return self.connection.recv()
        except (EOFError, OSError):
            self.process.join(_PATIENCE_S)
            return _Gone()

    def stop(self, *, ask: bool = True) -> None:
        """Close the process: an idle one leaves at once, a busy one is asked to (unless it was already), and saves first."""
        if ask and self.doing is not None and self.process.is_alive():
            self.process.terminate()
        self.connection.close()
        self.process.join(_PATIENCE_S)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()


def _serve(connection: Connection, work: Callable[[Any], Any], threads: int | None) -> None:
    """The life of a worker."""
    from hybridmap.ops.heap import keep_freed_memory

    keep_freed_memory()
    if threads is not None:
        import torch

        torch.set_num_threads(threads)
    with suppress(EOFError, KeyboardInterrupt, OSError):
        while True:
            connection.send(_attempt(work, connection.recv()))


def _attempt(work: Callable[[T], R], thing: T) -> R | Failure:
    try:
        return work(thing)
    except (UserError, OSError) as error:
        return Failure(reason=str(error))
    except Exception as error:
        return Failure(reason=f"{type(error).__name__}: {error}".splitlines()[0], details=traceback.format_exc())


def jobs_that_fit(memory_gb: float, cores: int | None = None) -> int:
    """How many processes of ``memory_gb`` each fit into what is free, at most one per core and at least one."""
    return max(1, min(cores or usable_cores(), int(_free_gb() / memory_gb)))


def usable_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _free_gb() -> float:
    """Memory that can be had without swapping; where the system does not say, half of what there is."""
    with suppress(OSError, StopIteration, ValueError):
        lines = Path("/proc/meminfo").read_text().splitlines()
        return int(next(line for line in lines if line.startswith("MemAvailable")).split()[1]) / 2**20
    if not hasattr(os, "sysconf"):
        return 0.0
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**31


__all__ = ["Failure", "jobs_that_fit", "run_all", "usable_cores"]
