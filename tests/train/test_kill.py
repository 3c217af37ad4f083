"""Promises 1 and 3: killed at any moment and continued, a run gives the bytes of an uninterrupted one."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path
from random import Random
from typing import Any

import pytest
from train_child import wait_for
from train_toy import ToyExam, ToyLoader, toy_recipe

from hybridmap.train import train

STEPS = 40


def steps_seen(out: Path) -> list[int]:
    metrics = out / "metrics.jsonl"
    lines = metrics.read_text().splitlines() if metrics.exists() else []
    return [json.loads(line)["step"] for line in lines if line.endswith("}")]


@pytest.fixture(scope="module")
def recipe() -> Any:
    return toy_recipe(
        steps=STEPS, checkpoint_every=6, ema=0.9, accumulate=2, clip=1.0, eval_every=15, exams={"toy": ToyExam.Config()}
    )


@pytest.fixture(scope="module")
def uninterrupted(recipe: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("uninterrupted") / "run"
    train(recipe, out, loader=ToyLoader, device="cpu")
    return out


def test_five_kills_at_random_steps_change_no_byte(launch: Any, recipe: Any, uninterrupted: Path, tmp_path: Path) -> None:
    seed = int(os.environ.get("HYBRIDMAP_KILL_SEED", time.time_ns() % 100_000))
    print(f"HYBRIDMAP_KILL_SEED={seed}")
    random, out, kills = Random(seed), tmp_path / "run", []
    for attempt in range(5):
        # The third launch dies while it writes its next checkpoint, the others at a step that metrics.jsonl shows.
        reached = max(steps_seen(out), default=0)
        slow = (reached // 6 + 1) * 6 if attempt == 2 else None
        process = launch(recipe, out, sleep=0.02, slow_write=slow)
        if slow is None:
            target = min(reached + random.randint(1, 7), STEPS - 2)
            wait_for(lambda target=target: target in steps_seen(out), process)
        else:
            temporary = out / "checkpoints" / f".step-{slow:08d}.safetensors.{process.pid}.tmp"
            wait_for(lambda temporary=temporary: temporary.exists() and temporary.stat().st_size > 0, process)
            time.sleep(0.05)
            assert not (out / "checkpoints" / f"step-{slow:08d}.safetensors").exists()
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        assert process.exitcode == -signal.SIGKILL
        kills.append(max(steps_seen(out), default=0))
    print("killed at steps", kills)
    process = launch(recipe, out)
    process.join(60)
    assert process.exitcode == 0
    assert (out / "final.safetensors").read_bytes() == (uninterrupted / "final.safetensors").read_bytes(), f"seed {seed}"
    assert steps_seen(out) == list(range(1, STEPS + 1)), "every step has one line"
    losses = [
        [json.loads(line)["loss"] for line in (run / "metrics.jsonl").read_text().splitlines()] for run in (out, uninterrupted)
    ]
    assert losses[0] == losses[1]
    assert not list(out.rglob(".*tmp*")), "nothing half-written stays"


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
def test_a_signal_saves_and_leaves_and_changes_no_byte(
    launch: Any, recipe: Any, uninterrupted: Path, tmp_path: Path, number: int, code: int
) -> None:
    out = tmp_path / "run"
    process = launch(recipe, out, sleep=0.02)
    wait_for(lambda: 8 in steps_seen(out), process)
    os.kill(process.pid, number)
    process.join(60)
    assert process.exitcode == code
    last = max(steps_seen(out))
    assert (out / "checkpoints" / f"step-{last:08d}.safetensors").exists(), "no step is lost"
    assert f"stopped at step {last} of {STEPS}" in (out / "log.txt").read_text()
    train(recipe, out, loader=ToyLoader, device="cpu")
    assert (out / "final.safetensors").read_bytes() == (uninterrupted / "final.safetensors").read_bytes()


def test_a_second_signal_leaves_at_once(launch: Any, recipe: Any, tmp_path: Path) -> None:
    out = tmp_path / "run"
    process = launch(recipe, out, sleep=2.0, slow_write=None)
    wait_for(lambda: (out / "checkpoints").exists() and list((out / "checkpoints").glob("step-*")), process)
    time.sleep(0.1)
    os.kill(process.pid, signal.SIGTERM)
    time.sleep(0.1)
    began = time.monotonic()
    os.kill(process.pid, signal.SIGTERM)
    process.join(60)
    assert process.exitcode == 128 + signal.SIGTERM
    assert time.monotonic() - began < 1.5, "it did not wait for the batch"
