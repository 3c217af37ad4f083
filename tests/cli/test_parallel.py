"""Workers that fail or die are named, and the rest goes on."""

from __future__ import annotations

import os
import time

import pytest

from hybridmap.cli.parallel import Failure, jobs_that_fit, run_all, usable_cores
from hybridmap.errors import UserError


def work(number: int) -> tuple[int, int]:
    if number == 1:
        raise UserError("one is too few")
    if number == 2:
        raise ValueError("two\nlines")
    if number == 3:
        os._exit(7)  # as the system ends a process that takes too much memory
    if number == 9:
        time.sleep(600)
    return number * number, os.getpid()


def test_in_one_process() -> None:
    things = {str(i): i for i in (0, 1, 2, 5)}
    found = dict(run_all(things, work))
    assert list(found) == list(things)
    assert found["5"] == (25, os.getpid())
    assert found["1"] == Failure(reason="one is too few")
    two = found["2"]
    assert isinstance(two, Failure)
    assert two.reason == "ValueError: two"
    assert "Traceback" in two.details


@pytest.mark.slow
def test_in_two_processes_one_of_which_dies() -> None:
    found = dict(run_all({str(i): i for i in (0, 3, 1, 4, 5)}, work, jobs=2, threads=1))
    assert set(found) == {"0", "3", "1", "4", "5"}
    died = found.pop("3")
    assert isinstance(died, Failure)
    assert "ended with code 7" in died.reason
    assert found.pop("1") == Failure(reason="one is too few")
    assert {name: result[0] for name, result in found.items()} == {"0": 0, "4": 16, "5": 25}  # type: ignore[index]
    assert os.getpid() not in {result[1] for result in found.values()}  # type: ignore[index]


@pytest.mark.slow
def test_leaving_early_ends_the_processes() -> None:
    running = run_all({"0": 0, "9": 9, "more": 9}, work, jobs=2)
    name, result = next(running)
    assert name == "0"
    began = time.monotonic()
    running.close()
    assert time.monotonic() - began < 60
    with pytest.raises(ProcessLookupError):
        os.kill(result[1], 0)  # type: ignore[index]


def test_jobs_follow_memory_and_cores() -> None:
    assert jobs_that_fit(1e-6, cores=3) == 3
    assert jobs_that_fit(1e6, cores=3) == 1
    assert 1 <= jobs_that_fit(1e-6) == usable_cores()
