"""What a run says while it runs: progress on the console, ``log.txt``, ``metrics.jsonl``, and the boards that are asked for."""

from __future__ import annotations

import logging
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from PIL import Image
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from hybridmap.config import to_tree
from hybridmap.files import replacing, writing
from hybridmap.train.boards import Board, TensorBoard, Wandb
from hybridmap.train.recipe import Recipe
from hybridmap.train.run_dir import RunDirectory

_ROOT = logging.getLogger("hybridmap")
_QUIET_S = 15.0
"""Seconds between lines of progress where the console is no terminal."""


class _OnConsole(logging.Handler):
    """Messages on the console, above the bar."""

    def __init__(self, console: Console) -> None:
        super().__init__(logging.INFO)
        self.console = console

    def emit(self, record: logging.LogRecord) -> None:
        style = "yellow" if record.levelno >= logging.WARNING else None
        self.console.print(record.getMessage(), style=style, markup=False, highlight=False, soft_wrap=True)


class _InFile(logging.FileHandler):
    """Messages in ``log.txt``. That the disk is full is said like any other error, not as a traceback beside the run."""

    def __init__(self, run: RunDirectory) -> None:
        self.path = run.path / "log.txt"
        with writing(self.path):
            super().__init__(self.path)
        self.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s", "%Y-%m-%d %H:%M:%S"))

    def handleError(self, record: logging.LogRecord) -> None:
        error = sys.exc_info()[1]
        with writing(self.path):
            raise error or OSError("the log cannot be written")


class RunLog:
    """The numbers of the steps, on their way to everybody who wants them."""

    def __init__(self, run: RunDirectory, bar: Progress, every: int, boards: Sequence[Board]) -> None:
        self._run, self._bar, self._every, self._boards = run, bar, every, boards
        self._task: TaskID | None = None
        self._spoke = time.monotonic()
        self._smooth: float | None = None

    def begin(self, step: int, steps: int) -> None:
        """The run stands at ``step`` of ``steps``: at its start, and wherever it goes back to."""
        if self._task is not None:
            self._bar.remove_task(self._task)
        self._task = self._bar.add_task("train", total=steps, completed=step, told="")
        for board in self._boards:
            board.begin(step)

    def write(self, record: Mapping[str, Any]) -> None:
        """Pass on the numbers of one step; ``record`` has at least ``step`` and ``loss``."""
        step, loss = record["step"], record["loss"]
        examined = any("/" in name for name in record)
        if step % self._every == 0 or examined or record.get("skipped"):
            self._run.append(record)
            for board in self._boards:
                board.numbers(record, step)
        if loss == loss:
            self._smooth = loss if self._smooth is None else 0.95 * self._smooth + 0.05 * loss
        self._tell(record)
        if examined:
            told = "  ".join(f"{name} {value:.4g}" for name, value in record.items() if "/" in name)
            logging.getLogger("hybridmap.train").info("step %d: %s", step, told)

    def picture(self, name: str, picture: Image.Image, step: int) -> None:
        """Keep a picture that an exam drew, ``pictures/step-00001000-NAME.png``, and show it on the boards."""
        with replacing(self._run.path / "pictures" / f"step-{step:08d}-{name.replace('/', '-')}.png") as file:
            picture.save(file, "PNG")
        for board in self._boards:
            board.picture(name, picture, step)

    def _tell(self, record: Mapping[str, Any]) -> None:
        told = (
            f"loss {self._smooth if self._smooth is not None else float('nan'):.4f}  lr {record['lr']:.2e}  "
            f"{record['images_per_s']:.0f} images/s  data wait {record['data_wait']:.1%}"
        )
        assert self._task is not None
        self._bar.update(self._task, completed=record["step"], told=told)
        if not self._bar.console.is_terminal and time.monotonic() - self._spoke > _QUIET_S:
            self._spoke = time.monotonic()
            task = self._bar.tasks[-1]
            left = f"  ETA {task.time_remaining:.0f} s" if task.time_remaining is not None else ""
            self._bar.console.print(f"step {record['step']}/{task.total:.0f}  {told}{left}", highlight=False, soft_wrap=True)


class Silence:
    """The log of a process that is not the one that writes."""

    def begin(self, step: int, steps: int) -> None: ...

    def write(self, record: Mapping[str, Any]) -> None: ...

    def picture(self, name: str, picture: Image.Image, step: int) -> None: ...


@contextmanager
def _quiet_board() -> Iterator[None]:
    """No traceback from TensorBoard's thread where it cannot write: the next number that it is given raises the error here."""
    before = threading.excepthook

    def hook(failed: threading.ExceptHookArgs) -> None:
        if type(failed.thread).__module__.partition(".")[0] != "tensorboard" or not isinstance(failed.exc_value, OSError):
            before(failed)

    threading.excepthook = hook
    try:
        yield
    finally:
        threading.excepthook = before


@contextmanager
def speaking(run: RunDirectory | None, recipe: Recipe) -> Iterator[RunLog | Silence]:
    """The log of a run, as long as the context is open. Everything said to the logger ``hybridmap`` goes to the console and to
    ``log.txt`` meanwhile; with no ``run`` (in a process that writes nothing) the loop says nothing."""
    if run is None:
        ours = logging.getLogger("hybridmap.train")
        level = ours.level
        ours.setLevel(logging.CRITICAL)
        try:
            yield Silence()
        finally:
            ours.setLevel(level)
        return
    console = Console(stderr=True)
    bar = Progress(
        BarColumn(24),
        MofNCompleteColumn(),
        TextColumn("ETA"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[told]}"),
        console=console,
        disable=not console.is_terminal,
    )
    handlers = [_OnConsole(console), _InFile(run)]
    level = _ROOT.level
    for handler in handlers:
        _ROOT.addHandler(handler)
    _ROOT.setLevel(min(level or logging.INFO, logging.INFO))
    boards: list[Board] = []
    try:
        with bar, _quiet_board():
            try:
                if recipe.train.tensorboard and TensorBoard.is_installed():
                    boards.append(TensorBoard(run.path / "tensorboard"))
                if recipe.train.wandb:
                    boards.append(Wandb(run.path / "wandb", recipe.train.wandb, to_tree(recipe)))
                yield RunLog(run, bar, recipe.train.log_every, boards)
            finally:
                for board in boards:
                    board.close()
    finally:
        _ROOT.setLevel(level)
        for handler in handlers:
            _ROOT.removeHandler(handler)
            handler.close()
