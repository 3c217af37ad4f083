"""Two processes train what one does, up to the order of sums."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from train_child import wait_for
from train_toy import ToyExam, ToyLearner, ToyLoader, toy_recipe

from hybridmap.config import override
from hybridmap.errors import UserError
from hybridmap.train import LAMB, SGD, Muon, read_weights, train
from hybridmap.train.distributed import World, choose_device


def plain_recipe(**train: Any) -> Any:
    """Without dropout, which is drawn per batch."""
    return toy_recipe(learner=ToyLearner.Config(), **({"steps": 20, "accumulate": 2, "clip": 1.0, "ema": 0.5} | train))


def losses(out: Path) -> torch.Tensor:
    whole = [line for line in (out / "metrics.jsonl").read_text().splitlines() if line.endswith("}")]
    return torch.tensor([json.loads(line)["loss"] for line in whole])


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


def test_a_world_of_one_does_nothing() -> None:
    world = World(rank=0, size=1, device=torch.device("cpu"))
    assert world.mean(torch.tensor(3.0)) == 3.0
    assert world.gather("x") == ["x"]
    assert world.on_main(lambda: 5) == 5


def test_devices_that_are_not_there_are_sentences(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match="finds no CUDA GPU; try --device cpu"):
        choose_device("cuda")
    with pytest.raises(UserError, match="there is no device 'tpux'"):
        choose_device("tpux")
    assert choose_device("cpu") == torch.device("cpu")
