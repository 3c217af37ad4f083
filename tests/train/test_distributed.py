"""Two processes train what one does, up to the order of sums."""

from __future__ import annotations

import json
import os
import signal
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from train_child import wait_for
from train_toy import ToyExam, ToyLearner, ToyLoader, toy_recipe

from hybridmap.config import override
from hybridmap.errors import UserError
from hybridmap.train import LAMB, SGD, Muon, read_weights, train
from hybridmap.train.distributed import World, choose_device, of_this_launch, restarted


def plain_recipe(**train: Any) -> Any:
    """Without dropout, which is drawn per batch."""
    return toy_recipe(learner=ToyLearner.Config(), **({"steps": 20, "accumulate": 2, "clip": 1.0, "ema": 0.5} | train))


def numbers(out: Path, name: str) -> torch.Tensor:
    whole = [line for line in (out / "metrics.jsonl").read_text().splitlines() if line.endswith("}")]
    return torch.tensor([json.loads(line)[name] for line in whole])


def losses(out: Path) -> torch.Tensor:
    return numbers(out, "loss")


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("alone") / "run"
    train(plain_recipe(), out, loader=ToyLoader, device="cpu")
    return out


def together(launch: Any, recipe: Any, out: Path, size: int = 2) -> None:
    processes = launch.together(recipe, out, size)
    for process in processes:
        process.join(120)
    assert [process.exitcode for process in processes] == [0] * size


@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_two_processes_train_what_one_does(launch: Any, alone: Path, tmp_path: Path, parallel: str) -> None:
    recipe = plain_recipe(parallel=parallel, exams={"toy": ToyExam.Config()}, eval_every=4)
    together(launch, recipe, tmp_path / "run")
    torch.testing.assert_close(losses(tmp_path / "run"), losses(alone), rtol=1e-5, atol=1e-6)
    ours, theirs = read_weights(tmp_path / "run")[0], read_weights(alone)[0]
    for name, value in theirs.items():
        torch.testing.assert_close(ours[name], value, rtol=1e-4, atol=1e-5, msg=lambda text, name=name: f"{name}: {text}")
    assert "toy/error" in json.loads((tmp_path / "run" / "summary.json").read_text())["exams"]


@pytest.mark.parametrize(("size", "accumulate"), [(1, 1), (1, 4), (2, 1), (2, 4)])
def test_a_batch_is_the_same_batch_however_it_is_divided(
    launch: Any, alone: Path, tmp_path: Path, size: int, accumulate: int
) -> None:
    out = tmp_path / "run"
    together(launch, plain_recipe(accumulate=accumulate), out, size)
    torch.testing.assert_close(losses(out), losses(alone), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(numbers(out, "lr"), numbers(alone, "lr"), rtol=0, atol=0)
    torch.testing.assert_close(numbers(out, "grad_norm"), numbers(alone, "grad_norm"), rtol=1e-4, atol=1e-6)
    share = 8 // (size * accumulate)
    told = f"global batch 8 = {size} process{'es' * (size > 1)} x {accumulate} micro-step{'s' * (accumulate > 1)} x {share}"
    assert f"{told}; lr 0.01, as set" in (out / "log.txt").read_text()


@pytest.mark.parametrize("optim", [Muon.Config(lr=1e-2, matrix_lr=2.0), LAMB.Config(lr=1e-2), SGD.Config(lr=1e-2)])
def test_whole_tensors_count_though_each_process_holds_a_part(launch: Any, tmp_path: Path, optim: Any) -> None:
    train(plain_recipe(optim=optim), tmp_path / "alone", loader=ToyLoader, device="cpu")
    together(launch, plain_recipe(optim=optim, parallel="fsdp"), tmp_path / "two")
    torch.testing.assert_close(losses(tmp_path / "two"), losses(tmp_path / "alone"), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_a_run_of_one_process_is_continued_by_two_and_back(launch: Any, alone: Path, tmp_path: Path, parallel: str) -> None:
    out = tmp_path / "run"
    recipe = plain_recipe(parallel=parallel)
    _until(recipe, out, 5)
    processes = launch.together(recipe, out, 2, sleep=0.1)
    wait_for(lambda: len(losses(out)) >= 7, processes[0])
    for process in processes:
        os.kill(process.pid, signal.SIGTERM)
    for process in processes:
        process.join(120)
    assert [process.exitcode for process in processes] == [0, 0]
    assert 7 <= len(losses(out)) < 20, "all processes stop at the same step, a step or two after the signal"
    train(recipe, out, loader=ToyLoader, device="cpu")
    torch.testing.assert_close(losses(out), losses(alone), rtol=1e-5, atol=1e-6)


def _until(recipe: Any, out: Path, step: int) -> None:
    """Train until the loader breaks at ``step``."""

    class Breaking(ToyLoader):
        def _batch(self, at: int, micro: int) -> Any:
            if at == step:
                raise ConnectionError("the data are gone")
            return super()._batch(at, micro)

    with pytest.raises(ConnectionError):
        train(recipe, out, loader=Breaking, device="cpu")


def test_a_mistake_of_the_user_ends_both_processes_with_the_sentence(launch: Any, tmp_path: Path) -> None:
    out = tmp_path / "run"
    train(plain_recipe(steps=2), out, loader=ToyLoader, device="cpu")
    processes = launch.together(override(plain_recipe(steps=2), {"seed": 9}), out, 2)
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [2, 2]
    sentences = {(out / f"error-{rank}.txt").read_text() for rank in range(2)}
    assert len(sentences) == 1
    assert "seed was 0, now 9" in sentences.pop()


def test_non_finite_steps_are_skipped_by_both_processes(launch: Any, tmp_path: Path) -> None:
    learner = ToyLearner.Config(bad_steps=(3, 6))
    recipe = toy_recipe(learner=learner, parallel="fsdp")
    together(launch, recipe, tmp_path / "two")
    train(recipe, tmp_path / "one", loader=ToyLoader, device="cpu")
    ours, theirs = (json.loads((tmp_path / name / "summary.json").read_text()) for name in ("two", "one"))
    assert ours["skipped_steps"] == theirs["skipped_steps"] == 2
    assert json.loads((tmp_path / "two" / "metrics.jsonl").read_text().splitlines()[3])["skipped"] is True


def test_a_launch_does_not_read_what_an_earlier_one_wrote() -> None:
    store = dist.HashStore()
    for launch in ("first", "second, with another number of processes", "third"):
        size = 3 if launch != "third" else 2
        with ThreadPoolExecutor(size) as pool:
            parts = list(pool.map(lambda rank, size=size: of_this_launch(store, rank, size), range(size)))
        parts[0].set("address", launch)
        assert [part.get("address") for part in parts] == [launch.encode()] * size
        assert not parts[-1].check(["other"])
        parts[-1].set("other", "")


def test_processes_that_do_not_come_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hybridmap.train.distributed._PATIENCE", timedelta(seconds=0.1))
    with pytest.raises(UserError, match=r"of 4 processes, 3 have not come \(the first is rank 1\)"):
        of_this_launch(dist.HashStore(), 0, 4)


def test_a_world_of_one_does_nothing() -> None:
    world = World(rank=0, size=1, device=torch.device("cpu"))
    assert world.mean(torch.tensor(3.0)) == 3.0
    assert world.gather("x") == ["x"]
    assert world.on_main(lambda: 5) == 5


def test_the_local_rank_chooses_the_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    assert choose_device("auto", 3) == torch.device("cuda", 3)
    assert choose_device("cuda:1", 3) == torch.device("cuda", 1)
    with pytest.raises(UserError, match="GPU 4 was asked for, but there are 4"):
        choose_device("cuda", 4)


@pytest.mark.parametrize(
    ("environment", "again"),
    [
        ({}, False),
        ({"TORCHELASTIC_RESTART_COUNT": "0"}, False),
        ({"TORCHELASTIC_RESTART_COUNT": "2"}, True),
        ({"SLURM_RESTART_COUNT": "1"}, True),
    ],
)
def test_a_launch_knows_that_it_is_a_restart(environment: dict[str, str], again: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("TORCHELASTIC_RESTART_COUNT", "SLURM_RESTART_COUNT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert restarted() is again


def test_devices_that_are_not_there_are_sentences(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match="finds no CUDA GPU; try --device cpu"):
        choose_device("cuda")
    with pytest.raises(UserError, match="there is no device 'tpux'"):
        choose_device("tpux")
    assert choose_device("cpu") == torch.device("cpu")
