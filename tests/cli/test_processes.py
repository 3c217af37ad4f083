"""The promises about whole processes, kept by the command itself on real images: kill -9, and torchrun."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from random import Random

import pytest

from hybridmap.cli import main

pytestmark = pytest.mark.slow

STEPS = 30


def pretrain(folder: Path, out: Path) -> list[str]:
    flags = ["--data.root", str(folder), "--out", str(out), "--device", "cpu", "--train.no-tensorboard"]
    return ["pretrain", "map-smoke", *flags, "--train.steps", str(STEPS), "--train.checkpoint-every", "2"]


def losses(out: Path) -> dict[int, float]:
    """Step -> loss, of the lines that are whole."""
    metrics = out / "metrics.jsonl"
    lines = metrics.read_text().splitlines() if metrics.exists() else []
    return {line["step"]: line["loss"] for line in (json.loads(text) for text in lines if text.endswith("}"))}


@pytest.fixture(scope="module")
def uninterrupted(photo_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("uninterrupted") / "run"
    assert main(pretrain(photo_folder, out)) == 0
    return out


def test_a_command_killed_at_random_steps_ends_in_the_same_bytes(
    photo_folder: Path, uninterrupted: Path, unchecked_environment: dict[str, str], tmp_path: Path
) -> None:
    seed = int(os.environ.get("HYBRIDMAP_KILL_SEED", time.time_ns() % 100_000))
    print(f"HYBRIDMAP_KILL_SEED={seed}")
    random, out = Random(seed), tmp_path / "run"
    for workers in ("0", "2"):
        target = max(losses(out), default=0) + random.randint(1, 6)
        words = [*pretrain(photo_folder, out), "--data.workers", workers]
        process = subprocess.Popen([sys.executable, "-m", "hybridmap", *words], env=unchecked_environment)
        try:
            limit = time.monotonic() + 120
            while target not in losses(out):
                assert process.poll() is None
                assert time.monotonic() < limit
                time.sleep(0.002)
        finally:
            process.kill()
            process.wait()
        assert not (out / "final.safetensors").exists()
    assert main(pretrain(photo_folder, out)) == 0
    assert (out / "final.safetensors").read_bytes() == (uninterrupted / "final.safetensors").read_bytes()
    assert losses(out) == losses(uninterrupted)


def test_torchrun_with_two_processes_gives_the_losses_of_one(
    photo_folder: Path, uninterrupted: Path, unchecked_environment: dict[str, str], tmp_path: Path
) -> None:
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "-m", "hybridmap"]
    subprocess.run([*torchrun, *pretrain(photo_folder, tmp_path / "run")], env=unchecked_environment, check=True, timeout=300)
    assert losses(tmp_path / "run") == pytest.approx(losses(uninterrupted), rel=1e-4)
