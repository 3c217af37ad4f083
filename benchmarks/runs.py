"""What a run costs beside its steps: checkpoints, resuming, a second process. Ratios of one run, on made-up images.

    checkpoint   ten steps with a checkpoint at their beginning / ten steps without: beside the training, and waited for
    resume       seconds from the end of the imports to the first step of a continued run (HybridNet-B)
    processes    images per second of two processes with half of the threads each / one process with all

    python benchmarks/runs.py [checkpoint] [resume] [processes] [--model hybridnet_tiny_patch16_224] [--batch 16] [--rounds 3]

Steps of both kinds are taken in turns in one process, so that whatever else the machine does strikes both.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from hybridmap import recipes
from hybridmap.backbones import find
from hybridmap.bench.step import Step
from hybridmap.config import override
from hybridmap.data.loader import Loader
from hybridmap.data.synthetic import Synthetic
from hybridmap.ops.heap import keep_freed_memory
from hybridmap.train.checkpoint import Checkpoints
from hybridmap.train.distributed import World
from hybridmap.train.loop import train
from hybridmap.train.recipe import Recipe
from hybridmap.train.saver import Saver
from hybridmap.train.state import TrainState

STEPS = 10
TARGETS = {"checkpoint": 1.05, "resume_s": 10.0, "processes": 0.9}


def recipe_of(model: str, batch: int, steps: int) -> Recipe:
    """MAP on one of our backbones, as many steps, images that cost nothing."""
    plain = override(recipes.find("map-tiny"), {"train.batch_size": batch, "train.precision": "fp32"})
    backbone: Any = find(model)
    size = backbone.img_size
    changed = replace(
        plain, learner=replace(plain.learner, backbone=backbone), data=Synthetic.Config(size=size, length=1 << 16)
    )
    return override(changed, {"train.steps": steps, "train.epochs": None, "train.tensorboard": False})


def checkpoint(model: str, batch: int, rounds: int) -> dict[str, float]:
    """Ratios of ten steps: with a checkpoint beside them, and with one that is waited for."""
    step = Step.of(recipe_of(model, batch, 1), torch.device("cpu"))
    state = TrainState(step.learner, step.optimizer, step.scaler)
    times: dict[str, list[float]] = {"without": [], "beside": [], "waited for": []}
    with tempfile.TemporaryDirectory() as folder:
        checkpoints = Checkpoints(Path(folder), keep=1)
        with Saver(checkpoints, World(rank=0, size=1, device=torch.device("cpu")), sharded=False) as saver:

            def seconds(kind: str) -> float:
                began = time.perf_counter()
                if kind != "without":
                    saver.save(state, state.record())
                if kind == "waited for":
                    saver.wait()
                for _ in range(STEPS):
                    step()
                return time.perf_counter() - began

            seconds("beside")
            for _ in range(rounds):
                for kind in times:
                    saver.wait()
                    state.step += 1
                    times[kind].append(seconds(kind))
        saver.wait()
        size = sum(path.stat().st_size for path in checkpoints.paths())
    told = {"step_s": statistics.median(times["without"]) / STEPS, "checkpoint_mb": size / 1e6}
    for kind in ("beside", "waited for"):
        told[f"{kind}/without"] = statistics.median(a / b for a, b in zip(times[kind], times["without"], strict=True))
    return told


class Clocked(Loader):
    """Says when the first step begins, and ends the run there."""

    def __iter__(self) -> Any:
        if self.start_step > 0:
            raise SystemExit(f"{time.perf_counter():.6f}")
        return super().__iter__()


def resume() -> dict[str, float]:
    """Seconds of a continued run of HybridNet-B before its first step, imports left out."""
    with tempfile.TemporaryDirectory() as folder:
        here = [sys.executable, str(Path(__file__)), "child", folder]
        subprocess.run([*here, "1"], check=True, capture_output=True)
        told = subprocess.run([*here, "2"], capture_output=True, text=True)
    began, first = (float(word) for word in told.stdout.split()[:1] + told.stderr.split()[-1:])
    return {"resume_s": first - began}


def child(folder: str, steps: str) -> None:
    """A run of HybridNet-B that takes one step, or continues after it."""
    print(f"{time.perf_counter():.6f}", flush=True)
    recipe = override(recipe_of("hybridnet_base_patch16_224", 2, 2), {"train.checkpoint_every": 1})

    class Once(Clocked):
        def __iter__(self) -> Any:
            for number, step in enumerate(super().__iter__()):
                if number == 1:
                    raise SystemExit(0)
                yield step

    train(recipe, Path(folder) / "run", loader=Once if steps == "1" else Clocked, device="cpu")


def processes(model: str, batch: int) -> dict[str, float]:
    """Images per second of one process and of two, and their ratio."""
    threads = torch.get_num_threads()
    rates = {}
    for count in (1, 2):
        with tempfile.TemporaryDirectory() as folder:
            port = _free_port()
            environment = os.environ | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(count)}
            environment["OMP_NUM_THREADS"] = str(threads // count)
            started = [
                subprocess.Popen(
                    [sys.executable, str(Path(__file__)), "rank", folder, model, str(batch)],
                    env=environment | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
                    stderr=subprocess.DEVNULL,
                )
                for rank in range(count)
            ]
            assert [process.wait() for process in started] == [0] * count
            lines = [json.loads(line) for line in (Path(folder) / "run" / "metrics.jsonl").read_text().splitlines()]
        rates[count] = statistics.median(line["images_per_s"] for line in lines[3:])
    return {"one process images/s": rates[1], "two processes images/s": rates[2], "two/one": rates[2] / rates[1]}


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def main() -> int:
    if sys.argv[1:2] == ["child"]:
        child(*sys.argv[2:])
        return 0
    if sys.argv[1:2] == ["rank"]:
        keep_freed_memory()
        train(recipe_of(sys.argv[3], int(sys.argv[4]), 12), Path(sys.argv[2]) / "run", loader=Loader, device="cpu")
        return 0
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("what", nargs="*", default=["checkpoint", "resume", "processes"])
    parser.add_argument("--model", default="hybridnet_tiny_patch16_224")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    keep_freed_memory()
    told: dict[str, dict[str, float]] = {}
    if "checkpoint" in arguments.what:
        told["checkpoint"] = checkpoint(arguments.model, arguments.batch, arguments.rounds)
    if "resume" in arguments.what:
        told["resume"] = resume()
    if "processes" in arguments.what:
        told["processes"] = processes(arguments.model, arguments.batch)
    rounded = {name: {key: round(value, 3) for key, value in numbers.items()} for name, numbers in told.items()}
    print(json.dumps(rounded | {"targets": TARGETS}))
    reached = [
        told.get("checkpoint", {}).get("beside/without", 0.0) <= TARGETS["checkpoint"],
        told.get("resume", {}).get("resume_s", 0.0) <= TARGETS["resume_s"],
        told.get("processes", {}).get("two/one", 1.0) >= TARGETS["processes"],
    ]
    return 0 if all(reached) else 1


if __name__ == "__main__":
    raise SystemExit(main())
