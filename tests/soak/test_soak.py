"""One round of everything that ``make soak`` does to a run again and again, at other moments each time.

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

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="processes are found in /proc"),
]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Home]:
    home = Home(tmp_path_factory.mktemp("soak"))
    yield home
    home.nursery.close()


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.__name__)
def test_a_disturbed_run_does_as_promised(scenario: Callable[[Scene], Outcome], home: Home, tmp_path: Path) -> None:
    seed = os.environ.get("SOAK_SEED", str(time.time_ns() % 100_000))
    print(f"SOAK_SEED={seed}")
    try:
        print(scenario(Scene(home, tmp_path, Random(f"{seed} {scenario.__name__}"))))
    except NotHere as reason:
        pytest.skip(str(reason))
    finally:
        home.nursery.sweep()


def test_every_scenario_says_what_is_done_and_what_is_promised() -> None:
    for scenario in SCENARIOS:
        done, promised = (scenario.__doc__ or "").strip().split("\n\n")
        assert done.endswith(".")
        assert promised.strip().endswith(".")
