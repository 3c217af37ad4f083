"""The promises about whole processes, kept by the command itself on real images: kill -9, and torchrun."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from random import Random
from typing import Any

import pytest

from hybridmap.cli import main

pytestmark = pytest.mark.slow
LONG = pytest.mark.skipif(not os.environ.get("HYBRIDMAP_LONG"), reason="a minute or more: make test-long")

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


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def agents(words: list[str], environment: dict[str, str], nodes: str = "2", conf: str = "") -> list[subprocess.Popen[bytes]]:
    """``torchrun`` on two nodes, which are two agents on this machine, one process each; they meet at the first."""
    shared = ["--nnodes", nodes, "--nproc-per-node", "1", "--rdzv-backend", "c10d", "--rdzv-id", "job"]
    shared += ["--rdzv-endpoint", f"127.0.0.1:{free_port()}", "--local-addr", "127.0.0.1", "--max-restarts", "3"]
    confs = [["--rdzv-conf", f"is_host={first}{conf}"] for first in (True, False)]
    torchrun = [sys.executable, "-m", "torch.distributed.run", *shared]
    return [subprocess.Popen([*torchrun, *own, "-m", "hybridmap", *words], env=environment) for own in confs]


def end(processes: list[subprocess.Popen[bytes]]) -> None:
    for process in processes:
        if process.poll() is None:
            process.terminate()
            process.wait(60)


def wait_for_step(out: Path, step: int, processes: list[subprocess.Popen[bytes]]) -> None:
    limit = time.monotonic() + 120
    while step not in losses(out):
        assert all(process.poll() is None for process in processes)
        assert time.monotonic() < limit
        time.sleep(0.002)


def rank_of(out: Path, rank: int) -> dict[str, Any]:
    """What a rank says about itself."""
    return json.loads((out / "heartbeats" / f"rank-{rank:05d}").read_text().splitlines()[0])


@LONG
def test_two_nodes_give_the_losses_of_one_process(
    photo_folder: Path, uninterrupted: Path, unchecked_environment: dict[str, str], tmp_path: Path
) -> None:
    out = tmp_path / "run"
    processes = agents(pretrain(photo_folder, out), unchecked_environment)
    try:
        assert [process.wait(300) for process in processes] == [0, 0]
    finally:
        end(processes)
    assert losses(out) == pytest.approx(losses(uninterrupted), rel=1e-4)
    log = (out / "log.txt").read_text()
    assert log.count("finished after 30 steps") == 1, "one process writes"
    assert "global batch 8 = 2 processes x 1 micro-step x 4; lr 0.001, as set\n" in log


@LONG  # in every run the soak kills a rank and launches again
def test_a_killed_worker_is_started_again_and_the_bytes_are_those_of_an_undisturbed_run(
    photo_folder: Path, unchecked_environment: dict[str, str], tmp_path: Path
) -> None:
    seed = int(os.environ.get("HYBRIDMAP_KILL_SEED", time.time_ns() % 100_000))
    print(f"HYBRIDMAP_KILL_SEED={seed}")
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "--max-restarts", "3"]
    calm, disturbed = tmp_path / "calm", tmp_path / "disturbed"
    processes = []
    try:
        for out in (calm, disturbed):
            # --overwrite empties the directory once, not again at every restart
            words = [*torchrun, "-m", "hybridmap", *pretrain(photo_folder, out), "--overwrite"]
            processes.append(subprocess.Popen(words, env=unchecked_environment))
        random = Random(seed)
        victims = [random.randrange(2), random.randrange(2)]
        steps = [random.randint(3, 12), random.randint(16, 26)]
        for step, victim in zip(steps, victims, strict=True):
            wait_for_step(disturbed, step, processes[1:])
            os.kill(rank_of(disturbed, victim)["pid"], signal.SIGKILL)
        assert [process.wait(300) for process in processes] == [0, 0]
    finally:
        end(processes)
    assert (disturbed / "final.safetensors").read_bytes() == (calm / "final.safetensors").read_bytes(), f"seed {seed}"
    assert losses(disturbed) == losses(calm)
    log = (disturbed / "log.txt").read_text()
    assert log.count("continuing") == 2
    for victim in victims:
        assert re.search(rf"ERROR rank {victim} on \S+ died at step \d+, in the phase", log)


@LONG
def test_a_run_of_two_nodes_goes_on_with_the_one_that_is_left(
    photo_folder: Path, uninterrupted: Path, unchecked_environment: dict[str, str], tmp_path: Path
) -> None:
    out = tmp_path / "run"
    # A node that leaves is missed sooner than by default, so that the test need not wait for it.
    conf = ",last_call_timeout=3,keep_alive_interval=1,keep_alive_max_attempt=2"
    processes = agents(pretrain(photo_folder, out), unchecked_environment, "1:2", conf)
    try:
        wait_for_step(out, 6, processes)
        pids = {rank: rank_of(out, rank)["pid"] for rank in range(2)}
        # The agent that serves the meeting point is the first one; it is the other that goes, with its worker.
        parents = {rank: int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1]) for rank, pid in pids.items()}
        gone = next(rank for rank, parent in parents.items() if parent == processes[1].pid)
        processes[1].kill()
        os.kill(pids[gone], signal.SIGKILL)
        assert processes[0].wait(300) == 0
    finally:
        end(processes)
    assert losses(out) == pytest.approx(losses(uninterrupted), rel=1e-4)
    log = (out / "log.txt").read_text()
    assert "= 2 processes x" in log
    assert "= 1 process x" in log


def descendants(pid: int) -> list[int]:
    """A process and all below it."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [pid, *(found for child in children for found in descendants(int(child)))]


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="asks Linux for the children of a process")
def test_a_signal_to_every_process_of_a_job_saves_before_it_stops(
    photo_folder: Path, unchecked_environment: dict[str, str], tmp_path: Path
) -> None:
    """As a scheduler sends it: to torchrun, its workers, and the workers that read images; torchrun then sends it again."""
    out = tmp_path / "run"
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "hybridmap"]
    words = [*torchrun, *pretrain(photo_folder, out), "--train.checkpoint-every", "1000", "--data.workers", "2"]
    words[words.index("--train.steps") + 1] = "100000"
    process = subprocess.Popen(words, env=unchecked_environment)
    try:
        wait_for_step(out, 5, [process])
        for pid in descendants(process.pid):
            os.kill(pid, signal.SIGTERM)
        assert process.wait(60) == 1, "what torchrun leaves with after a signal, however its workers left"
    finally:
        end([process])
    last = max(losses(out))
    assert f"stopped at step {last} of 100000; the same command continues" in (out / "log.txt").read_text().splitlines()[-1]
    assert (out / "checkpoints" / f"step-{last:08d}.safetensors").exists()
