"""A rank that dies or hangs is named with its step, and nobody is named who is only slow."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from train_child import SlowExam, wait_for
from train_toy import ToyLearner, toy_recipe

from hybridmap.train.distributed import World
from hybridmap.train.heartbeat import EXIT_CODE, Heartbeat, Record, _place, read, verdict

HERE = {"host": "node1", "place": "elsewhere", "pid": 1}


def record(rank: int, count: int = 100, **fields: Any) -> Record:
    return Record(**(HERE | {"rank": rank, "count": count, "step": 17, "phase": "saving", "alive": count} | fields))


def later(records: list[Record]) -> list[Record]:
    return [replace(found, alive=found.alive + 1) for found in records]


def test_nobody_is_named_while_all_move() -> None:
    ranks = [record(0), record(1, 90), record(2, ended="finished")]
    assert verdict(ranks, later(ranks)) is None
    assert verdict([], []) is None


def test_whoever_is_behind_hangs() -> None:
    ranks = [record(0), record(1, 99, step=16, phase="waiting for data", host="node7"), record(2)]
    rank, sentence = verdict(ranks, later(ranks), stalled_s=600.0) or (None, "")
    assert rank == 1
    assert (
        sentence == "rank 1 on node7 hangs at step 16, in the phase 'waiting for data': the others have waited for it for 600 s"
    )


def test_where_all_wait_for_each_other_the_connection_is_suspected() -> None:
    ranks = [record(0), record(1, host="node2")]
    rank, sentence = verdict(ranks, later(ranks), stalled_s=600.0) or (0, "")
    assert rank is None
    assert "all ranks hang at step 17" in sentence
    assert "node1 and node2" in sentence


def test_a_process_that_shows_no_life_is_suspended_or_gone() -> None:
    before = [record(0), record(1), record(2)]
    now = [*later(before[:2]), before[2]]
    rank, sentence = verdict(before, now) or (None, "")
    assert rank == 2
    assert "does not run any more: it was last seen at step 17" in sentence


def test_what_failed_by_itself_comes_before_those_who_left_because_of_it() -> None:
    ranks = [record(0, ended="left"), record(1), record(2, ended="failed", why="OutOfMemoryError: no memory")]
    rank, sentence = verdict(ranks, ranks) or (None, "")
    assert rank == 2
    assert sentence.endswith("'saving': OutOfMemoryError: no memory")


def test_a_process_of_this_machine_that_is_no_more_is_gone() -> None:
    child = subprocess.Popen(["true"])
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert record(1, place=_place(), pid=child.pid).gone, "though its parent has not asked how it ended"
    child.wait()
    assert record(1, place=_place(), pid=child.pid).gone
    assert not record(1, place=_place(), pid=child.pid, ended="finished").gone
    assert not record(1, place=_place(), pid=os.getpid()).gone
    assert not record(1, pid=child.pid).gone, "on another machine, or in another container, the number means nothing"


def test_half_a_record_is_none(tmp_path: Path) -> None:
    assert read(tmp_path / "rank-00000") is None
    (tmp_path / "rank-00000").write_text('{"rank": 0, "host": "no')
    assert read(tmp_path / "rank-00000") is None


def test_a_world_of_one_writes_nothing(tmp_path: Path) -> None:
    with Heartbeat(tmp_path, World(rank=0, size=1, device=torch.device("cpu")), 600.0) as mark:
        mark("saving", 3)
    assert not list(tmp_path.iterdir())


def recipe_of(**train: Any) -> Any:
    return toy_recipe(learner=ToyLearner.Config(), **({"steps": 400, "checkpoint_every": 5} | train))


def step_of(out: Path, rank: int) -> int:
    found = read(out / "heartbeats" / f"rank-{rank:05d}")
    return -1 if found is None else found.step


def ends(processes: list[Any], seconds: float = 60) -> list[int]:
    for process in processes:
        process.join(seconds)
    return [process.exitcode for process in processes]


@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_a_killed_rank_is_named_with_its_step(launch: Any, tmp_path: Path, parallel: str) -> None:
    out = tmp_path / "run"
    processes = launch.together(recipe_of(parallel=parallel), out, 2, sleep=0.02)
    wait_for(lambda: step_of(out, 1) >= 7, processes[0])
    os.kill(processes[1].pid, signal.SIGKILL)
    assert ends(processes) == [EXIT_CODE, -signal.SIGKILL]
    line = (out / "log.txt").read_text().splitlines()[-1]
    last = step_of(out, 1)
    assert f"rank 1 on {os.uname().nodename} died at step {last}, in the phase" in line
    assert f"(process {processes[1].pid} is gone)" in line
    assert last - 2 <= json.loads((out / "metrics.jsonl").read_text().splitlines()[-1])["step"] <= last + 1


def test_rank_0_is_named_by_the_next(launch: Any, tmp_path: Path) -> None:
    out = tmp_path / "run"
    processes = launch.together(recipe_of(), out, 2, sleep=0.02)
    wait_for(lambda: step_of(out, 1) >= 7, processes[0])
    os.kill(processes[0].pid, signal.SIGKILL)
    assert ends(processes) == [-signal.SIGKILL, EXIT_CODE]
    assert f"died at step {step_of(out, 0)}, in the phase" in (out / "log.txt").read_text().splitlines()[-1]


def test_a_suspended_rank_is_named_with_its_step(launch: Any, tmp_path: Path) -> None:
    out = tmp_path / "run"
    processes = launch.together(recipe_of(patience=1.5), out, 2, sleep=0.02)
    wait_for(lambda: step_of(out, 1) >= 7, processes[0])
    os.kill(processes[1].pid, signal.SIGSTOP)
    try:
        processes[0].join(60)
        assert processes[0].exitcode == EXIT_CODE
    finally:
        os.kill(processes[1].pid, signal.SIGKILL)
    line = (out / "log.txt").read_text().splitlines()[-1]
    assert f"rank 1 on {os.uname().nodename} does not run any more: it was last seen at step {step_of(out, 1)}, in the" in line
    assert "_watch" in (out / "heartbeats" / "rank-00000.stacks").read_text()


def test_a_rank_whose_data_do_not_come_is_named_with_what_it_does(launch: Any, tmp_path: Path) -> None:
    out = tmp_path / "run"
    processes = launch.together(recipe_of(patience=1.0), out, 2, hang=(1, 9))
    assert ends(processes) == [EXIT_CODE, EXIT_CODE]
    log = (out / "log.txt").read_text()
    assert f"rank 1 on {os.uname().nodename} hangs at step 9, in the phase 'waiting for data'" in log
    assert "train_child" in (out / "heartbeats" / "rank-00001.stacks").read_text()


def test_a_rank_that_fails_by_itself_is_named_with_its_reason(launch: Any, tmp_path: Path) -> None:
    out = tmp_path / "run"
    processes = launch.together(recipe_of(), out, 2, fail=(1, 9))
    assert ends(processes) == [EXIT_CODE, 1]
    line = (out / "log.txt").read_text().splitlines()[-1]
    assert (
        f"rank 1 on {os.uname().nodename} failed at step 9, in the phase 'waiting for data': ConnectionError: the data" in line
    )


def test_a_rank_that_is_suspended_during_an_exam_is_named(launch: Any, tmp_path: Path) -> None:
    out = tmp_path / "run"
    recipe = recipe_of(steps=6, patience=0.5, eval_every=3, exams={"slow": SlowExam.Config(seconds=60.0)})
    processes = launch.together(recipe, out, 2)
    wait_for(lambda: (found := read(out / "heartbeats" / "rank-00001")) and found.phase == "an exam", processes[0])
    os.kill(processes[1].pid, signal.SIGSTOP)
    try:
        processes[0].join(30)
        assert processes[0].exitcode == EXIT_CODE
    finally:
        os.kill(processes[1].pid, signal.SIGKILL)
    line = (out / "log.txt").read_text().splitlines()[-1]
    assert "rank 1 on" in line
    assert "does not run any more: it was last seen at step 3, in the phase 'an exam'" in line


def test_a_slow_exam_is_no_hang(launch: Any, tmp_path: Path) -> None:
    out = tmp_path / "run"
    recipe = recipe_of(steps=6, patience=0.5, eval_every=3, exams={"slow": SlowExam.Config(seconds=1.5)})
    began = time.monotonic()
    processes = launch.together(recipe, out, 2)
    assert ends(processes) == [0, 0]
    assert time.monotonic() - began > 3.0
    assert "hangs" not in (out / "log.txt").read_text()
    assert read(out / "heartbeats" / "rank-00001").ended == "finished"  # type: ignore[union-attr]
