"""One round of what ``make soak`` does to a run again and again, at other moments each time: of a part of it, so that all
tests together stay quick; ``make test-long`` plays one round of everything.

A failure names the seed: SOAK_SEED=... repeats it.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random

import pytest
from soak_scenarios import SCENARIOS, Home, NotHere, Outcome, Scene

QUICK = {
    "killed_rank",
    "killed_worker",
    "asked_rank",
    "file_too_large",
    "directory_deleted",
    "images_damaged",
    "clocks_jump",
    "nan_always",
}
"""What no other test does as well."""
PLAYED = SCENARIOS if os.environ.get("HYBRIDMAP_LONG") else [s for s in SCENARIOS if s.__name__ in QUICK]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="processes are found in /proc"),
]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Home]:
    home = Home(tmp_path_factory.mktemp("soak"))
    yield home
    home.nursery.close()


@pytest.mark.parametrize("scenario", PLAYED, ids=lambda scenario: scenario.__name__)
def test_a_disturbed_run_does_as_promised(scenario: Callable[[Scene], Outcome], home: Home, tmp_path: Path) -> None:
    seed = os.environ.get("SOAK_SEED", str(time.time_ns() % 100_000))
    print(f"SOAK_SEED={seed}")
    try:
        print(scenario(Scene(home, tmp_path, Random(f"{seed} {scenario.__name__}"))))
    except NotHere as reason:
        pytest.skip(str(reason))
    finally:
        home.nursery.sweep()


def test_what_is_played_exists() -> None:
    assert {scenario.__name__ for scenario in SCENARIOS} >= QUICK


def test_every_scenario_says_what_is_done_and_what_is_promised() -> None:
    for scenario in SCENARIOS:
        done, promised = (scenario.__doc__ or "").strip().split("\n\n")
        assert done.endswith(".")
        assert promised.strip().endswith(".")
