"""Launches of ``hybridmap pretrain map-smoke``: started, watched through the files they write, disturbed, waited for."""

from __future__ import annotations

import json
import os
import re
import resource
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol, TypeVar

HERE = Path(__file__).parent
STEPS, EVERY = 24, 3
"""Length of the run, and steps between its checkpoints."""
LONGEST_S = 240.0
"""Seconds after which a launch counts as hanging."""
_GRACE_S = 30.0
"""Seconds between SIGTERM and SIGKILL for the processes that are left when one of them failed. Source: torchrun."""

T = TypeVar("T")


class Process(Protocol):
    """One operating-system process; its number is that of its group, too."""

    pid: int

    def code(self) -> int | None:
        """How it ended: the exit code, or minus the signal; None while it runs."""
        ...


class Started:
    """A process started the usual way."""

    def __init__(self, words: Sequence[str], environment: Mapping[str, str], output: Path, limit: int | None) -> None:
        def before() -> None:
            if limit is not None:
                resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))

        with output.open("ab") as file:
            self._process = subprocess.Popen(
                words,
                env=os.environ | environment,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
                start_new_session=True,
                preexec_fn=before,
            )
        self.pid = self._process.pid

    def code(self) -> int | None:
        return self._process.poll()


class Forked:
    """A process forked from the nursery."""

    def __init__(self, pid: int, output: Path) -> None:
        self.pid, self._note = pid, Path(f"{output}.{pid}.code")

    def code(self) -> int | None:
        return int(self._note.read_text()) if self._note.exists() else None


class Nursery:
    """Where launches come from."""

    def __init__(self) -> None:
        paths = [str(HERE), *filter(None, [os.environ.get("PYTHONPATH")])]
        self.environment = {
            "PYTHONPATH": os.pathsep.join(paths),
            "OMP_NUM_THREADS": "1",
            "HYBRIDMAP_NO_SHAPE_CHECKS": "1",
            "COLUMNS": "500",
        }
        self._process: subprocess.Popen[str] | None = None
        self._started: list[Process] = []

    def start(self, words: Sequence[str], output: Path, environment: Mapping[str, str], limit: int | None) -> Process:
        """``python WORDS``, with everything still to be imported."""
        process = Started([sys.executable, *words], self.environment | dict(environment), output, limit)
        self._started.append(process)
        return process

    def fork(self, arguments: Sequence[str], output: Path, environment: Mapping[str, str], limit: int | None) -> Process:
        """``hybridmap ARGUMENTS``, with everything imported."""
        if self._process is None:
            self._process = subprocess.Popen(
                [sys.executable, str(HERE / "soak_nursery.py")],
                env=os.environ | self.environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                start_new_session=True,
            )
            assert self._process.stdout is not None
            assert self._process.stdout.readline() == "ready\n"
        request: dict[str, Any] = {"arguments": list(arguments), "output": str(output), "environment": dict(environment)}
        if limit is not None:
            request["limit"] = limit
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(json.dumps(request), file=self._process.stdin, flush=True)
        process = Forked(int(self._process.stdout.readline()), output)
        self._started.append(process)
        return process

    def sweep(self) -> None:
        """Kill what is left of every launch."""
        for process in self._started:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            # The nursery reaps its own; until then the number is not given to another process.
            wait_until(lambda process=process: process.code() is not None)
        self._started.clear()

    def close(self) -> None:
        """Sweep, and end."""
        self.sweep()
        if self._process is not None:
            assert self._process.stdin is not None
            self._process.stdin.close()
            self._process.wait()
            assert self._process.stdout is not None
            self._process.stdout.close()


class Launch:
    """A launched command: one process, or all that work on one run."""

    def __init__(self, out: Path, output: Path, processes: list[Process], torchrun: bool) -> None:
        self.out, self.output = out, output
        self._processes, self._torchrun = processes, torchrun
        self.began = time.monotonic()

    @property
    def pid(self) -> int:
        """The process that was started first; under torchrun that one, which trains nothing."""
        return self._processes[0].pid

    def ranks(self) -> list[int]:
        """The processes that train, by rank; fewer while they are still being started."""
        if not self._torchrun:
            return [process.pid for process in self._processes]
        found = {}
        for pid in children(self.pid):
            with suppress(OSError):
                names = dict(
                    entry.split("=", 1) for entry in Path(f"/proc/{pid}/environ").read_text().split("\0") if "=" in entry
                )
                if "RANK" in names:
                    found[int(names["RANK"])] = pid
        return [found[rank] for rank in sorted(found)]

    def workers(self) -> list[int]:
        """The processes that prepare images: forks of those that train."""
        found = []
        for rank in self.ranks():
            for pid in children(rank):
                with suppress(OSError):
                    if Path(f"/proc/{pid}/cmdline").read_bytes() == Path(f"/proc/{rank}/cmdline").read_bytes():
                        found.append(pid)
        return found

    def running(self) -> bool:
        """Whether none of it has ended."""
        return all(process.code() is None for process in self._processes)

    def until(self, claim: Callable[[], Any]) -> None:
        """Wait until ``claim`` is true, or the launch has ended."""
        wait_until(lambda: claim() or not self.running())

    def kill(self, *, everything: bool) -> int:
        """kill -9 of what was started, or of ``everything`` that came of it. Returns the exit code."""
        for process in self._processes:
            with suppress(ProcessLookupError):
                if everything:
                    os.killpg(process.pid, signal.SIGKILL)
                else:
                    os.kill(process.pid, signal.SIGKILL)
        return self.wait()

    def signal_all(self, number: int) -> None:
        """Send a signal to what was started and to all of its group."""
        for process in self._processes:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, number)

    def wait(self) -> int:
        """Wait for the end. Returns the exit code of what was started: the first that is not 0, where there are several."""
        failed = 0
        told_at: float | None = None
        limit = time.monotonic() + LONGEST_S
        while True:
            codes = [process.code() for process in self._processes]
            failed = failed or next((code for code in codes if code), 0)
            left = [process.pid for process, code in zip(self._processes, codes, strict=True) if code is None]
            if not left:
                return failed
            now = time.monotonic()
            # What torchrun does where it is not there to do it.
            if failed and (told_at is None or now > told_at + _GRACE_S):
                for pid in left:
                    with suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGTERM if told_at is None else signal.SIGKILL)
                told_at = now
            assert now < limit, f"a launch hangs; it said: {self.told()[-2000:]}"
            time.sleep(0.005)

    def told(self) -> str:
        """What it has written to the console so far."""
        return self.output.read_text(errors="replace") if self.output.exists() else ""

    def said(self, pattern: str) -> str:
        """The line of the console that matches, from the match's beginning."""
        found = re.search(rf"({pattern}).*", self.told())
        assert found, f"expected to read {pattern!r}, got: {self.told()[-3000:]}"
        return found[0].strip()

    def steps(self) -> list[int]:
        """The steps of the whole lines of metrics.jsonl."""
        return [line["step"] for line in metrics(self.out)]


def metrics(out: Path) -> list[dict[str, Any]]:
    """The whole lines of metrics.jsonl."""
    file = out / "metrics.jsonl"
    lines = file.read_text().splitlines() if file.exists() else []
    return [json.loads(line) for line in lines if line.endswith("}")]


def checkpoints(out: Path) -> list[Path]:
    """The checkpoints of a run, oldest first: files, or directories of files."""
    return sorted((out / "checkpoints").glob("step-*"))


def children(pid: int) -> list[int]:
    """The children of a process, as Linux lists them."""
    try:
        return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


def wait_until(claim: Callable[[], T]) -> T:
    """What ``claim`` returns as soon as that is true."""
    limit = time.monotonic() + LONGEST_S
    while not (found := claim()):
        assert time.monotonic() < limit, "waited in vain"
        time.sleep(0.002)
    return found


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
