"""Who has stopped? Every rank writes down where it is, so that the others can say it when they wait in vain.

    heartbeats/rank-00003           one line of what the rank does (step, phase), one that says that its process runs, and in
                                    the end one that says how it left
    heartbeats/rank-00003.stacks    what its threads were doing when it gave up

Plain files in the run directory: they outlive the process that wrote them, need no connection that may be what has broken, and
can be read with ``cat``. Writing one is a system call of a microsecond or two (benchmarks/heartbeat.py).

In every rank a thread looks after the next rank (the last one's next is the first), which is one small file to read in each
period however many ranks there are. Whoever finds that something is wrong reads all of them, says which rank it was, at which
step and doing what, and leaves with :data:`EXIT_CODE`; the launcher then ends the others and may start all of them again.
"""

from __future__ import annotations

import faulthandler
import json
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from hybridmap.errors import UserError
from hybridmap.files import writing
from hybridmap.train.distributed import World

EXIT_CODE = 75
"""Of a process that leaves because another one is gone or nothing moves: "try again" (EX_TEMPFAIL of sysexits.h)."""
LONG_PHASES = frozenset({"setting up", "an exam", "saving", "going back", "finishing"})
"""What may take any time: one process is busy, and the others wait for it."""
_FIRST_STEP = 10
"""How many times as long the first step of a launch may take: kernels and graphs are compiled."""
_GRACE_S = 5.0
"""How long another's end may be known before this process leaves: its own error or signal usually says more."""
_LINE, _ALIVE, _ENDED = 384, 384, 448
"""Width of the first line; where the second and the third begin."""


@dataclass(frozen=True, kw_only=True)
class Record:
    """What a rank has written about itself."""

    rank: int
    host: str
    place: str
    """Host and process namespace: ``pid`` means the same process where this is equal."""
    pid: int
    count: int
    """Marks so far. All ranks pass the same marks in the same order, so whoever has the fewest is behind."""
    step: int
    phase: str
    alive: int = 0
    """Grows while the process runs, whatever its main thread does."""
    ended: str | None = None
    """How it left: "finished", "stopped" (it was asked to), "left" (because of another), "failed"; None = it has not."""
    why: str = ""
    """What failed."""

    @property
    def told(self) -> str:
        return f"rank {self.rank} on {self.host}"

    @property
    def where(self) -> str:
        return f"at step {self.step}, in the phase {self.phase!r}"

    @property
    def gone(self) -> bool:
        """Whether its process, one of this machine, is no more though it has not said good-bye."""
        if self.ended is not None or self.place != _place():
            return False
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return True
        except PermissionError:
            return False
        try:
            state = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()[0]
        except (OSError, IndexError):
            return False
        return state in ("Z", "X")  # dead, and its parent has not asked yet


def read(path: Path) -> Record | None:
    """What a rank says about itself; None where it has not said anything yet, or is about to."""
    try:
        parts: dict[str, Any] = {}
        for line in path.read_text().replace("\0", "").splitlines():
            parts |= json.loads(line)
        return Record(**parts)
    except (OSError, ValueError, TypeError):
        return None


def verdict(
    before: Sequence[Record], now: Sequence[Record], *, stalled_s: float | None = None
) -> tuple[int | None, str] | None:
    """(rank, sentence) about whoever stopped first; None if nobody did. The rank is None where it is nobody's fault alone.

    Args:
        before, now: the records of all ranks, read twice, with time enough between for every living process to show itself.
        stalled_s: for how long nothing has moved; None = that is not known to be so, and nobody is called slow.
    """
    alive = {record.rank: record.alive for record in before}
    here = [record for record in now if record.ended is None]
    for record in now:
        if record.ended == "failed":
            return record.rank, f"{record.told} failed {record.where}: {record.why}"
    for record in here:
        if record.gone:
            return record.rank, f"{record.told} died {record.where} (process {record.pid} is gone)"
    for record in here:
        if alive.get(record.rank) == record.alive:
            told = f"its process {record.pid} is suspended, or its machine is gone"
            return record.rank, f"{record.told} does not run any more: it was last seen {record.where} ({told})"
    if stalled_s is None or not here:
        return None
    last = min(here, key=lambda record: record.count)
    if last.count < max(record.count for record in here):
        return last.rank, f"{last.told} hangs {last.where}: the others have waited for it for {stalled_s:.0f} s"
    hosts = " and ".join(sorted({record.host for record in here})[:8])
    return None, f"all ranks hang {last.where}, for {stalled_s:.0f} s: what connects the processes (on {hosts}) may be broken"


class Heartbeat:
    """Marks what this process does, and looks after the next one, as long as the context is open. Alone, it does nothing.

    An error that comes from another rank's end becomes a sentence about that rank and ``SystemExit(75)``.
    """

    def __init__(self, run: Path, world: World, patience: float) -> None:
        """``run``: the run directory, the same in all processes. ``patience``: seconds without a mark that mean trouble."""
        self._run, self._world, self._patience = run, world, patience
        self._folder = run / "heartbeats"
        self._period = min(max(patience / 20, 0.05), 1.0)
        self._file: int | None = None
        self._count, self._step, self._phase = 0, 0, "setting up"
        self._moved = time.monotonic()
        self._first: int | None = None
        """The first step of this launch."""
        self._about = ""
        self._quit = threading.Event()
        self._speaking = threading.Lock()
        self._thread = threading.Thread(target=self._watch, name="hybridmap-heartbeat", daemon=True)

    def __call__(self, phase: str, step: int) -> None:
        """The main thread is about to do ``phase`` of ``step``."""
        if self._file is None:
            return
        if self._first is None and phase not in LONG_PHASES:
            self._first = step
        self._count += 1
        self._step, self._phase = step, phase
        self._moved = time.monotonic()
        line = f'{self._about}, "count": {self._count}, "step": {step}, "phase": "{phase}"}}'
        with suppress(OSError):  # a full disk is said by whoever writes something that matters
            os.pwrite(self._file, f"{line:{_LINE - 1}}\n".encode(), 0)

    def __enter__(self) -> Heartbeat:
        if self._world.size == 1:
            return self
        self._world.on_main(self._clear)
        host = socket.gethostname()[:64]
        about = {"rank": self._world.rank, "host": host, "place": _place(), "pid": os.getpid()}
        self._about = json.dumps(about).removesuffix("}")
        with writing(self._folder):
            self._folder.mkdir(parents=True, exist_ok=True)
            self._file = os.open(self._path(self._world.rank), os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
        self(self._phase, self._step)
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._file is None:
            return
        try:
            # What a broken connection raises is a RuntimeError; only then can the reason be another rank.
            if isinstance(error, RuntimeError) and not _is_own(error):
                with _undisturbed():
                    if (found := self._find(after_error=True)) is not None:
                        self._leave_soon(f"{found[1]}; it was noticed by: {_first_line(error)}", found[0])
                        raise SystemExit(EXIT_CODE) from error
            self._end(*_how(error))
        finally:
            self._quit.set()
            self._thread.join()
            os.close(self._file)
            self._file = None

    def _clear(self) -> None:
        """Remove what an earlier launch left; ranks that are no more must not be taken for dead ones."""
        with writing(self._folder):
            for path in self._folder.glob("rank-*"):
                path.unlink(missing_ok=True)

    def _path(self, rank: int) -> Path:
        return self._folder / f"rank-{rank:05d}"

    def _read_all(self) -> list[Record]:
        found = [read(self._path(rank)) for rank in range(self._world.size)]
        return [record for record in found if record is not None]

    # ------------------------------------------------------------------------------------------- the thread beside the training

    def _watch(self) -> None:
        next_rank = self._path((self._world.rank + 1) % self._world.size)
        alive, seen, trouble = -1, time.monotonic(), None
        while not self._quit.wait(self._period):
            self._show_life()
            now = time.monotonic()
            record = read(next_rank)
            if record is not None and record.alive != alive:
                alive, seen = record.alive, now
            ended = record is not None and (record.gone or record.ended in ("failed", "left"))
            trouble = (trouble or now) if ended else None
            limit = self._patience * (_FIRST_STEP if self._step == self._first else 1)
            quiet = now - self._moved
            if trouble is not None and now - trouble > _GRACE_S:
                self._give_up(stalled_s=None)
            elif self._phase in LONG_PHASES:
                # Somebody is busy, for however long it takes; but a process that does not even run is not.
                if record is not None and record.ended is None and min(quiet, now - seen) > self._patience:
                    self._give_up(stalled_s=None)
            elif quiet > limit:
                self._give_up(stalled_s=quiet)

    def _show_life(self) -> None:
        """Opened and closed again, which is when a network file system passes on what was written, the marks included."""
        with suppress(OSError):
            file = os.open(self._path(self._world.rank), os.O_WRONLY)
            try:
                line = json.dumps({"alive": time.monotonic_ns()})
                os.pwrite(file, f"{line:{_ENDED - _ALIVE - 1}}\n".encode(), _ALIVE)
            finally:
                os.close(file)

    def _give_up(self, stalled_s: float | None) -> None:
        """End the process from beside its main thread, which may be waiting in a library and hear nothing."""
        count = self._count
        found = self._find(after_error=False, stalled_s=stalled_s)
        if found is None or self._count != count or self._quit.is_set() or not self._speaking.acquire(blocking=False):
            return
        with suppress(OSError), self._path(self._world.rank).with_suffix(".stacks").open("w") as file:
            faulthandler.dump_traceback(file, all_threads=True)
        own = found[0] == self._world.rank
        self._say(f"{found[1]}; the stacks of this process are in {self._path(self._world.rank)}.stacks", found[0])
        self._end("failed" if own else "left", found[1] if own else "")
        os._exit(EXIT_CODE)

    # ------------------------------------------------------------------------------------------------------- finding and saying

    def _find(self, *, after_error: bool, stalled_s: float | None = None) -> tuple[int | None, str] | None:
        """Who stopped first. After an error it may take a moment until the dead are known to be dead."""
        before = self._read_all()
        # Long enough for every living process to show itself, over a network file system too.
        end = time.monotonic() + max(4 * self._period, 3.0 if self._spread(before) else 0.5)
        while time.monotonic() < end:
            now = self._read_all()
            if any(record.gone or record.ended == "failed" for record in now):
                return verdict(now, now)
            if not after_error and self._quit.is_set():
                return None
            self._show_life()
            again = time.monotonic() + self._period
            while time.monotonic() < again and not any(record.gone for record in now):
                time.sleep(0.05)
        return verdict(before, self._read_all(), stalled_s=stalled_s)

    def _spread(self, records: Sequence[Record]) -> bool:
        return len({record.place for record in records}) > 1

    def _leave_soon(self, sentence: str, culprit: int | None) -> None:
        """Say it; and if leaving hangs, as the end of a broken process group may, leave anyway."""
        if self._speaking.acquire(blocking=False):
            self._say(sentence, culprit)
        self._end("left")
        timer = threading.Timer(2 * _GRACE_S, os._exit, (EXIT_CODE,))
        timer.daemon = True
        timer.start()

    def _say(self, sentence: str, culprit: int | None) -> None:
        """On the console of every rank; in ``log.txt`` by the first rank that is not the culprit."""
        sentence += "; the same command continues from the last checkpoint"
        if self._world.rank == (1 if culprit == 0 else 0):
            with suppress(OSError), (self._run / "log.txt").open("a") as file:
                file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} ERROR {sentence}\n")
        sys.stderr.write(f"hybridmap (process {self._world.rank}): {sentence}\n")
        sys.stderr.flush()

    def _end(self, how: str, why: str = "") -> None:
        if self._file is not None:
            with suppress(OSError):
                os.pwrite(self._file, (json.dumps({"ended": how, "why": why}) + "\n").encode(), _ENDED)


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Do not let the launcher, which ends the survivors of a broken run, end this one before it has said why."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _place() -> str:
    namespace = ""
    with suppress(OSError):
        namespace = os.readlink("/proc/self/ns/pid")
    return f"{socket.gethostname()[:64]} {namespace}".strip()


def _is_own(error: RuntimeError) -> bool:
    """Whether it is of a kind that no connection raises."""
    return type(error).__name__ in ("OutOfMemoryError", "NotImplementedError", "RecursionError")


def _how(error: BaseException | None) -> tuple[str, str]:
    """How a process ends by ``error``, and why."""
    if error is None:
        return "finished", ""
    if isinstance(error, (SystemExit, KeyboardInterrupt)):
        return "stopped", ""
    return "failed", str(error)[:300] if isinstance(error, UserError) else f"{type(error).__name__}: {_first_line(error)}"


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
