"""Runs in processes of their own, to be killed, stopped and counted.

They are forked from one process that has imported everything already, so that a launch takes milliseconds, not seconds.
"""

from __future__ import annotations

import multiprocessing
import os
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

HERE = str(Path(__file__).parent)


class Launcher:
    """Starts ``train_child.run`` in new processes, and ends what is left of them."""

    def __init__(self) -> None:
        import train_child

        self._context = multiprocessing.get_context("forkserver")
        self._run = train_child.run
        self._started: list[Any] = []

    def __call__(self, recipe: Any, out: Path, **faults: Any) -> Any:
        """A process that trains ``recipe`` in ``out``; see ``train_child.run`` for the ``faults``."""
        process = self._context.Process(target=self._run, args=(recipe, out), kwargs=faults)
        process.start()
        self._started.append(process)
        return process

    def together(self, recipe: Any, out: Path, size: int, **faults: Any) -> list[Any]:
        """``size`` processes that train one run, as ``torchrun`` would start them."""
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        return [self(recipe, out, rank=rank, size=size, port=port, **faults) for rank in range(size)]

    def clean(self) -> None:
        for process in self._started:
            if process.is_alive():
                process.kill()
            process.join()


@pytest.fixture(scope="session")
def _fork_server() -> None:
    from multiprocessing import forkserver

    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["train_child"])
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [HERE, before]))
    try:
        forkserver.ensure_running()
    finally:
        os.environ.pop("PYTHONPATH")
        if before is not None:
            os.environ["PYTHONPATH"] = before


@pytest.fixture
def launch(_fork_server: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[Launcher]:
    # A child would run the file of the main module again, which is the test runner's.
    monkeypatch.delattr(sys.modules["__main__"], "__file__", raising=False)
    monkeypatch.setattr(sys.modules["__main__"], "__spec__", None, raising=False)
    launcher = Launcher()
    yield launcher
    launcher.clean()
