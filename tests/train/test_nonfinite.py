"""Promise 5: NaN never wins."""

from __future__ import annotations

import json
import logging
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from train_child import wait_for
from train_toy import ToyLearner, ToyLoader, toy_recipe

from hybridmap.errors import UserError
from hybridmap.train import read_weights, train
from hybridmap.train.nonfinite import first_culprit


def run(recipe: Any, out: Path) -> Any:
    return train(recipe, out, loader=ToyLoader, device="cpu")


def lines(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def bad(*steps: int, **train: Any) -> Any:
    return toy_recipe(learner=ToyLearner.Config(bad_steps=steps), **train)


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_a_bad_step_is_skipped_counted_and_said(tmp_path: Path, caplog: pytest.LogCaptureFixture, precision: str) -> None:
    with caplog.at_level(logging.WARNING, "hybridmap.train"):
        state = run(bad(3, 4, 7, precision=precision, checkpoint_every=1, keep=20, ema=0.5), tmp_path)
    skipped = [line["step"] for line in lines(tmp_path) if line.get("skipped")]
    assert state.skipped_steps == len(skipped)
    assert skipped[-3:] == [4, 5, 8], "before, fp16 may look for a scale"
    assert len(skipped) == 3 or precision == "fp16"
    assert [line["step"] for line in lines(tmp_path) if line["loss"] is None] == [4, 5, 8]
    assert "step 4 was not finite (loss nan, gradient nan) and was skipped" in caplog.text
    assert len(caplog.records) == 3, "the search for a scale is nothing to warn of"
    assert json.loads((tmp_path / "summary.json").read_text())["skipped_steps"] == len(skipped)
    assert all(value.isfinite().all() for value in read_weights(tmp_path)[0].values())
    saved = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert "step-00000004.safetensors" not in saved, "nothing is saved while steps are bad"
    assert "step-00000006.safetensors" in saved


def test_a_skipped_step_changes_neither_weights_nor_moments(tmp_path: Path) -> None:
    """Steps 0 and 1 good, 2 bad, stop: the same state as after two steps, but for the count."""
    two = run(bad(2, steps=3), tmp_path / "bad").learner.state_dict()
    longer = toy_recipe(learner=ToyLearner.Config(bad_steps=()), steps=3, checkpoint_every=2)
    run(longer, tmp_path / "good")
    saved, _ = read_weights(tmp_path / "good" / "checkpoints" / "step-00000002.safetensors")
    for name, value in saved.items():
        assert two[name].equal(value)


def test_a_skipped_step_leaves_no_trace_in_running_statistics(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make = ToyLearner.__init__

    def with_norm(self: ToyLearner, config: ToyLearner.Config) -> None:
        make(self, config)
        self.head = nn.Sequential(nn.BatchNorm1d(config.width), self.head)  # pyright: ignore[reportAttributeAccessIssue]

    monkeypatch.setattr(ToyLearner, "__init__", with_norm)
    three = run(bad(2, steps=3, accumulate=2), tmp_path / "bad").learner.state_dict()
    run(bad(steps=3, accumulate=2, checkpoint_every=2), tmp_path / "good")
    saved, _ = read_weights(tmp_path / "good" / "checkpoints" / "step-00000002.safetensors")
    assert saved["head.0.num_batches_tracked"] == 4
    for name, value in saved.items():
        assert three[name].equal(value), name


def test_three_in_a_row_go_back_with_half_the_rate_and_name_the_culprit(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The fault is cured by smaller steps here: it is there as long as the rate is."""
    from hybridmap.train import loop

    rates = []
    set_lr = loop.set_lr
    monkeypatch.setattr(loop, "set_lr", lambda optimizer, lr: (rates.append(lr), set_lr(optimizer, lr)))
    forward = ToyLearner.forward

    def cured(self: ToyLearner, batch: Any) -> Any:
        if rates and len(rates) > 12:
            self._bad_keys = set()
        return forward(self, batch)

    monkeypatch.setattr(ToyLearner, "forward", cured)
    with caplog.at_level(logging.WARNING, "hybridmap.train"):
        state = run(bad(5, 6, 7), tmp_path)
    assert "3 steps in a row were not finite, first of all the output of fault; back to step 4 with 0.5" in caplog.text
    assert state.lr_scale < 1
    assert state.step == 10
    assert [line["step"] for line in lines(tmp_path)] == list(range(1, 11)), "the lines of what was undone are gone"


def test_a_run_that_stays_bad_stops_with_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(
        UserError,
        match=r"the loss is not finite around step \d+, even with 0.015625 of the learning rate, and first of all the output",
    ):
        run(bad(5, 6, 7, 8), tmp_path)
    weights, record = read_weights(tmp_path)
    assert record["step"] == 4
    assert record["lr_scale"] == 2.0**-6, "what was learned about the rate is saved"
    assert all(value.isfinite().all() for value in weights.values())


def test_bad_steps_from_the_first_on_have_something_to_go_back_to(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="the loss is not finite around step 3"):
        run(bad(0, 1, 2), tmp_path)
    assert read_weights(tmp_path)[1]["step"] == 0


def test_a_run_killed_among_bad_steps_ends_in_the_same_bytes(launch: Any, tmp_path: Path) -> None:
    """Two bad steps, then good ones; stopped between them, and stopped right behind them."""
    recipe = bad(9, 10, 14, steps=20, checkpoint_every=6)
    run(recipe, tmp_path / "whole")
    for number in (signal.SIGKILL, signal.SIGTERM):
        process = launch(recipe, tmp_path / "parts", sleep=0.03)
        metrics = tmp_path / "parts" / "metrics.jsonl"
        wait_for(lambda metrics=metrics: metrics.exists() and '"step": 10' in metrics.read_text(), process)
        os.kill(process.pid, number)
        process.join(60)
    run(recipe, tmp_path / "parts")
    ours, theirs = (tmp_path / name / "final.safetensors" for name in ("parts", "whole"))
    assert ours.read_bytes() == theirs.read_bytes()
    assert json.loads((tmp_path / "parts" / "summary.json").read_text())["skipped_steps"] == 3


@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_two_processes_go_back_together(launch: Any, tmp_path: Path, parallel: str) -> None:
    processes = launch.together(bad(5, 6, 7, 8, parallel=parallel), tmp_path / "run", 2)
    for process in processes:
        process.join(120)
    assert [process.exitcode for process in processes] == [2, 2]
    assert "first of all the output of fault" in (tmp_path / "run" / "error-1.txt").read_text()
    assert read_weights(tmp_path / "run")[1]["lr_scale"] == 2.0**-6


class Chain(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(2, 2), nn.Linear(2, 2)
        self.between = 1.0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(self.first(x) * self.between).sum()


def test_the_culprit_is_the_module_that_makes_it() -> None:
    chain = Chain()
    with torch.no_grad():
        chain.second.weight[0, 0] = torch.inf
    assert first_culprit(chain, lambda: iter([chain(torch.ones(1, 2))])) == "the output of second"
    assert all(parameter.grad is None for parameter in chain.parameters())


def test_the_culprit_may_sit_between_modules_or_come_with_the_data() -> None:
    chain = Chain()
    chain.between = torch.nan
    assert first_culprit(chain, lambda: iter([chain(torch.ones(1, 2))])) == "the input of second"
    assert first_culprit(chain, lambda: iter([chain(torch.full((1, 2), torch.inf))])) == "the input of Chain"


def test_the_culprit_may_be_a_gradient() -> None:
    class Root(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale, self.root = nn.Linear(1, 1, bias=False), nn.Hardtanh()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.root(self.scale(x)).abs().sqrt().sum()

    root = Root()
    assert first_culprit(root, lambda: iter([root(torch.zeros(1, 1))])) == "the gradient at root"


def test_an_output_that_nobody_uses_has_no_gradient_to_look_at() -> None:
    class Halves(nn.Module):
        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
            return x.chunk(2, -1)

    class Root(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.halves, self.scale = Halves(), nn.Parameter(torch.zeros(2))

        def forward(self) -> torch.Tensor:
            return self.halves(self.scale)[1].abs().sqrt().sum()

    root = Root()
    assert first_culprit(root, lambda: iter([root()])) == "the gradient at halves"


def test_nothing_is_named_where_all_is_finite() -> None:
    chain = Chain()
    assert first_culprit(chain, lambda: iter([chain(torch.ones(1, 2))])) is None


def test_the_healthy_path_reads_the_flag_one_step_late(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The host asks for the numbers of step n after it has launched forward and backward of step n + 1."""
    from hybridmap.train.nonfinite import Watch

    events: list[str] = []
    send, receive, forward = Watch.send, Watch.receive, ToyLearner.forward

    def note_send(self: Watch, numbers: Any, facts: Any) -> None:
        events.append(f"send {facts['step']}")
        send(self, numbers, facts)

    def note_receive(self: Watch) -> Any:
        record = receive(self)
        if record:
            events.append(f"receive {record['step']}")
        return record

    def note_forward(self: ToyLearner, batch: Any) -> Any:
        events.append("forward")
        return forward(self, batch)

    monkeypatch.setattr(Watch, "send", note_send)
    monkeypatch.setattr(Watch, "receive", note_receive)
    monkeypatch.setattr(ToyLearner, "forward", note_forward)
    run(toy_recipe(steps=3, checkpoint_every=10), tmp_path)
    assert events == ["forward", "send 1", "forward", "receive 1", "send 2", "forward", "receive 2", "send 3", "receive 3"]
