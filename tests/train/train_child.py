"""What runs in the processes that tests start: a run of the toy, with the faults that the test asks for; and waiting for it."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from train_toy import ToyExam, ToyLearner, ToyLoader

from hybridmap.config import trusted_modules
from hybridmap.errors import UserError
from hybridmap.train import Recipe, checkpoint, train

trusted_modules.add("train_child")


class SlowExam(ToyExam):
    """An exam that takes its time."""

    @dataclass(frozen=True, kw_only=True)
    class Config(ToyExam.Config):
        seconds: float = 1.0

    def __call__(self, learner: ToyLearner, device: torch.device) -> dict[str, float]:
        time.sleep(self.config.seconds)
        return super().__call__(learner, device)


def run(
    recipe: Recipe,
    out: Path,
    *,
    sleep: float = 0.0,
    slow_write: int | None = None,
    rank: int = 0,
    size: int = 1,
    port: int = 0,
    mute: bool = True,
    hang: tuple[int, int] | None = None,
    fail: tuple[int, int] | None = None,
    environment: dict[str, str] | None = None,
) -> None:
    """Train, and end as the command line would.

    Args:
        recipe: what to train.
        out: where.
        sleep: seconds that every batch takes to come.
        slow_write: the step whose checkpoint is written by half, and then waited with until the end of time.
        rank, size, port: what ``torchrun`` would put into the environment.
        mute: do not repeat the log on the console.
        hang, fail: (rank, step) whose data never come, or cannot be had.
        environment: further variables.
    """
    torch.set_num_threads(1)
    if mute:
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115 (until the process ends)
    if size > 1:
        names = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": size, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        os.environ.update({name: str(value) for name, value in names.items()})

    os.environ.update(environment or {})

    class SlowLoader(ToyLoader):
        def __iter__(self) -> Iterator[Any]:
            for number, step in enumerate(super().__iter__(), self.start_step):
                time.sleep(3600 if hang == (self.rank, number) else sleep)
                if fail == (self.rank, number):
                    raise ConnectionError("the data are gone")
                yield step

    save_file = checkpoint.save_file

    def half(tensors: Any, path: Path, metadata: Any) -> None:
        save_file(tensors, path, metadata=metadata)
        if f"{slow_write:08d}" in Path(path).name:
            content = Path(path).read_bytes()
            Path(path).write_bytes(content[: len(content) // 2])
            time.sleep(3600)

    if slow_write is not None:
        checkpoint.save_file = half
    try:
        train(recipe, out, loader=SlowLoader, device="cpu")
    except UserError as error:
        Path(out, f"error-{rank}.txt").write_text(str(error))
        sys.exit(2)


def wait_for(claim: Callable[[], Any], process: Any, seconds: float = 60) -> Any:
    """What ``claim`` returns as soon as it is true; fails if the process ends before."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if found := claim():
            return found
        if not process.is_alive():
            return claim() or pytest.fail(f"the process ended with {process.exitcode} before what was waited for came")
        time.sleep(0.002)
    return pytest.fail("waited in vain")
