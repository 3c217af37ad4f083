"""Disturbs runs again and again at random moments, and writes down whether they did as they promise.

python scripts/soak.py --rounds 20                  every scenario of tests/soak/soak_scenarios.py, 20 times
python scripts/soak.py --seed 7 --only killed_rank  some of them, with the same moments as another time
python scripts/soak.py --seed 7 --round 3 --only killed_rank --keep DIR     one round again, its files left in DIR

Each round of each scenario draws its moments from (seed, round, scenario). In every fifth round the processes of the disturbed
launch are started the usual way, several of a run by torchrun; in the others they are forked from one that has imported
everything. The result goes to results/reliability.json, from which scripts/readme.py makes docs/reliability.md. Exit code 1 if
a promise was broken.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shlex
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from importlib import metadata
from pathlib import Path
from random import Random
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests" / "soak"))

from soak_scenarios import SCENARIOS, Home, NotHere, Outcome, Scene  # noqa: E402 (found there)

RESULTS = ROOT / "results" / "reliability.json"
ANEW_EVERY = 5
"""Rounds between those that start every process the usual way."""


def wanted() -> argparse.Namespace:
    """What the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=20, help="how often (default: 20)")
    parser.add_argument("--seed", type=int, default=time.time_ns() % 100_000, help="decides the moments (default: the clock)")
    parser.add_argument("--round", type=int, help="this round alone, counted from 0")
    parser.add_argument("--only", nargs="*", default=[], help="these scenarios alone")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="begin no further round after so many")
    parser.add_argument(
        "--out", type=Path, default=RESULTS, help=f"where the result goes (default: {RESULTS.name} in results/)"
    )
    parser.add_argument("--keep", type=Path, help="directory for the files of the runs, which then stay")
    options = parser.parse_args()
    unknown = set(options.only) - {scenario.__name__ for scenario in SCENARIOS}
    if unknown:
        parser.error(f"no such scenario: {', '.join(sorted(unknown))}; there are {', '.join(s.__name__ for s in SCENARIOS)}")
    return options


def play(scenario: Callable[[Scene], Outcome], home: Home, place: Path, seed: int, turn: int) -> dict[str, Any]:
    """One round of one scenario: how it went, as JSON takes it."""
    began = time.monotonic()
    place.mkdir(parents=True)
    scene = Scene(home, place, Random(f"{seed} {turn} {scenario.__name__}"), anew=turn % ANEW_EVERY == ANEW_EVERY - 1)
    try:
        outcome = scenario(scene)
        found: dict[str, Any] = {"kept": True, "end": outcome.end, "codes": outcome.codes, "same": outcome.same}
        found["said"] = outcome.said.replace(f"{place}/", "").replace(f"{home.place}/", "")
    except NotHere as reason:
        found = {"kept": None, "said": str(reason)}
    except Exception as error:
        what = str(error) if isinstance(error, AssertionError) and str(error) else traceback.format_exc()
        found = {"kept": False, "said": what.replace(f"{place}/", "")}
    finally:
        home.nursery.sweep()
    return found | {"seconds": round(time.monotonic() - began, 1)}


def summary(scenario: Callable[[Scene], Outcome], rounds: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """All rounds of one scenario."""
    done, promised = (" ".join(part.split()) for part in (scenario.__doc__ or "").strip().split("\n\n"))
    kept = [found for found in rounds if found["kept"]]
    return {
        "done": done,
        "promised": promised,
        "rounds": sum(found["kept"] is not None for found in rounds),
        "kept": len(kept),
        "not_here": next((found["said"] for found in rounds if found["kept"] is None), None),
        "launches": sum(len(found["codes"]) for found in kept),
        "ends": dict(Counter(found["end"] for found in kept).most_common()),
        "first_codes": {str(code): count for code, count in sorted(Counter(found["codes"][0] for found in kept).items())},
        "same": sum(found["same"] is True for found in kept),
        "comparable": sum(found["same"] is not None for found in kept),
        "said": next((found["said"] for found in kept if found["said"]), ""),
        "seconds": round(sum(found["seconds"] for found in rounds), 1),
    }


def facts(seed: int, rounds: int) -> dict[str, Any]:
    """What it takes to repeat the result."""

    def git(*words: str) -> str:
        return subprocess.run(["git", "-C", str(ROOT), *words], capture_output=True, text=True, check=True).stdout.strip()

    changed = git("status", "--porcelain", "--untracked-files=no", "--", "src", "tests/soak", "scripts/soak.py")
    command = ["make", "soak", f"SOAK_ROUNDS={rounds}", f"SEED={seed}"]
    return {
        "command": shlex.join(command),
        "commit": git("rev-parse", "HEAD") + ("+" if changed else ""),
        "hardware": f"{os.cpu_count()} cores",
        "system": platform.system(),
        "versions": {name: metadata.version(name) for name in ("torch", "safetensors", "numpy")}
        | {"python": platform.python_version()},
    }


def main() -> int:
    """Play, show how it goes, write down how it went."""
    options = wanted()
    os.environ["OMP_NUM_THREADS"] = "1"
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))  # so that what was started is ended, too
    scenarios = [scenario for scenario in SCENARIOS if not options.only or scenario.__name__ in options.only]
    turns = range(options.rounds) if options.round is None else range(options.round, options.round + 1)
    found: dict[str, list[dict[str, Any]]] = {scenario.__name__: [] for scenario in scenarios}
    failures: list[dict[str, Any]] = []
    began = time.monotonic()
    print(f"seed {options.seed}: {len(scenarios)} scenarios, {len(turns)} rounds", flush=True)
    with ExitStack() as opened:
        place = options.keep or Path(
            opened.enter_context(tempfile.TemporaryDirectory(prefix="soak-", ignore_cleanup_errors=True))
        )
        home = Home(place / "home")
        home.place.mkdir(parents=True)
        opened.callback(home.nursery.close)
        for turn in turns:
            if time.monotonic() - began > 60 * options.minutes:
                break
            for scenario in scenarios:
                here = place / f"{turn}-{scenario.__name__}"
                result = play(scenario, home, here, options.seed, turn)
                found[scenario.__name__].append(result)
                word = {True: "kept", False: "BROKEN", None: "not here"}[result["kept"]]
                told = f"{result.get('end', '')} {result.get('codes', '')}"
                print(f"round {turn}  {scenario.__name__:26} {word:8} {result['seconds']:6.1f} s  {told}", flush=True)
                if result["kept"] is False:
                    repeat = f"python scripts/soak.py --seed {options.seed} --round {turn} --only {scenario.__name__}"
                    failures.append(
                        {"scenario": scenario.__name__, "round": turn, "repeat": repeat, "what": result["said"][-2000:]}
                    )
                    print(f"  {result['said']}\n  again: {repeat}", flush=True)
                if options.keep is None:
                    subprocess.run(["rm", "-rf", str(here)], check=False)
    rounds = max(map(len, found.values()))
    results = facts(options.seed, rounds) | {
        "seed": options.seed,
        "rounds": rounds,
        "seconds": round(time.monotonic() - began),
        "scenarios": {scenario.__name__: summary(scenario, found[scenario.__name__]) for scenario in scenarios},
        "failures": failures,
    }
    if options.round is None and (not options.only or options.out != RESULTS):
        options.out.write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n")
        print(f"written: {options.out}")
    print(f"{sum(map(len, found.values()))} rounds in {time.monotonic() - began:.0f} s, {len(failures)} promises broken")
    return int(bool(failures))


if __name__ == "__main__":
    sys.exit(main())
