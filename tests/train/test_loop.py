from __future__ import annotations

import errno
import json
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from train_toy import ToyData, ToyExam, ToyLearner, ToyLoader, toy_recipe

from hybridmap.config import from_tree, override
from hybridmap.errors import UserError
from hybridmap.train import LAMB, SGD, AdamW, Muon, load_run, read_weights, train


def run(recipe: Any, out: Path, loader: Any = ToyLoader, **keywords: Any) -> Any:
    return train(recipe, out, loader=loader, device="cpu", **keywords)


def lines(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def final(out: Path) -> bytes:
    return (out / "final.safetensors").read_bytes()


class Breaking(ToyLoader):
    """Data that are gone after a few steps: a crash at a known place."""

    at = 5

    def _batch(self, step: int, micro: int) -> Any:
        if step == self.at:
            raise ConnectionError("the data are gone")
        return super()._batch(step, micro)


VARIANTS = {
    "plain": {},
    "averaged": {"ema": 0.9, "clip": 0.5, "accumulate": 4},
    "bf16": {"precision": "bf16"},
    "fp16": {"precision": "fp16"},
    "recomputed": {"checkpoint_activations": True},
    "channels last": {"channels_last": True},
    "strict": {"deterministic": True},
    "muon": {"optim": Muon.Config(lr=1e-2)},
    "lamb": {"optim": LAMB.Config(lr=1e-2)},
    "sgd": {"optim": SGD.Config(lr=1e-2)},
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_five_and_five_steps_are_ten_bit_for_bit(tmp_path: Path, variant: str) -> None:
    recipe = toy_recipe(**(VARIANTS[variant] | {"checkpoint_every": 5}))
    run(recipe, tmp_path / "whole")
    with pytest.raises(ConnectionError):
        run(recipe, tmp_path / "parts", Breaking)
    assert not (tmp_path / "parts" / "final.safetensors").exists()
    state = run(recipe, tmp_path / "parts")
    assert state.step == 10
    assert final(tmp_path / "parts") == final(tmp_path / "whole")
    names = [f"checkpoints/step-{step:08d}.safetensors" for step in (5, 10)]
    for name in names:
        assert (tmp_path / "parts" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert [line["loss"] for line in lines(tmp_path / "parts")] == [line["loss"] for line in lines(tmp_path / "whole")]


def test_runs_learn_and_seeds_differ(tmp_path: Path) -> None:
    run(toy_recipe(steps=60), tmp_path / "a")
    run(toy_recipe(steps=60, seed=1), tmp_path / "b")
    losses = [line["loss"] for line in lines(tmp_path / "a")]
    assert losses[-1] < 0.2 * losses[0]
    assert final(tmp_path / "a") != final(tmp_path / "b")


def test_the_global_generator_and_switches_are_left_alone(tmp_path: Path) -> None:
    before, deterministic = torch.get_rng_state(), torch.are_deterministic_algorithms_enabled()
    run(toy_recipe(deterministic=True), tmp_path)
    assert torch.get_rng_state().equal(before)
    assert torch.are_deterministic_algorithms_enabled() == deterministic


def test_accumulation_is_the_mean_over_the_whole_batch(tmp_path: Path) -> None:
    recipe = toy_recipe(learner=ToyLearner.Config(), accumulate=1)
    one = run(recipe, tmp_path / "1")
    four = run(override(recipe, {"train.accumulate": 4}), tmp_path / "4")
    for name, value in one.learner.state_dict().items():
        torch.testing.assert_close(four.learner.state_dict()[name], value, rtol=1e-4, atol=1e-5)
    for a, b in zip(lines(tmp_path / "1"), lines(tmp_path / "4"), strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-4)
        assert a["grad_norm"] == pytest.approx(b["grad_norm"], rel=1e-4)


def test_the_first_step_is_that_of_plain_adamw(tmp_path: Path) -> None:
    recipe = override(toy_recipe(learner=ToyLearner.Config(), steps=1, clip=0.1), {"schedule.warmup_epochs": 0})
    state = run(recipe, tmp_path)
    torch.manual_seed(recipe.seed)
    learner = recipe.learner.build()
    decayed = [p for p in learner.parameters() if p.ndim > 1]
    rest = [p for p in learner.parameters() if p.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": 0.05}, {"params": rest, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=1e-2, betas=(0.9, 0.95))
    (batch,) = next(iter(ToyLoader(recipe.data, batch_size=8, steps=1)))
    learner(batch).total.backward()
    assert torch.nn.utils.clip_grad_norm_(learner.parameters(), 0.1) > 0.1
    optimizer.step()
    for name, value in learner.state_dict().items():
        torch.testing.assert_close(state.learner.state_dict()[name], value, rtol=1e-6, atol=1e-7)


def test_the_average_is_the_average(tmp_path: Path) -> None:
    recipe = toy_recipe(learner=ToyLearner.Config(), ema=0.75, checkpoint_every=1, keep=20)
    run(recipe, tmp_path)
    average: dict[str, torch.Tensor] = {}
    for step in range(11):
        with safe_open(tmp_path / "checkpoints" / f"step-{step:08d}.safetensors", "pt") as file:
            now = {name: file.get_tensor(f"learner.{name}") for name in recipe.learner.build().state_dict()}
        average = {name: 0.75 * average[name] + 0.25 * value if average else value for name, value in now.items()}
    weights, record = read_weights(tmp_path)
    assert record["average"] is True
    for name, value in average.items():
        torch.testing.assert_close(weights[name], value, rtol=1e-5, atol=1e-6)


def test_exams_cannot_reach_the_run(tmp_path: Path) -> None:
    """The toy's exam reseeds the generator and zeroes the weights that it is given."""
    examined = toy_recipe(exams={"toy": ToyExam.Config()}, eval_every=3)
    state = run(examined, tmp_path / "examined")
    run(toy_recipe(), tmp_path / "plain")
    assert final(tmp_path / "examined") == final(tmp_path / "plain")
    assert [line["step"] for line in lines(tmp_path / "examined") if "toy/error" in line] == [3, 6, 9, 10]
    assert [line["step"] for line in lines(tmp_path / "examined")] == list(range(1, 11)), "one line per step"
    assert state.results.keys() == {"toy/error", "toy/score"}
    assert json.loads((tmp_path / "examined" / "summary.json").read_text())["exams"] == state.results


def test_the_best_checkpoint_by_an_exam_is_kept(tmp_path: Path) -> None:
    recipe = toy_recipe(exams={"toy": ToyExam.Config()}, eval_every=2, keep=1, best="toy/error", checkpoint_every=5)
    run(recipe, tmp_path)
    errors = {line["step"]: line["toy/error"] for line in lines(tmp_path) if "toy/error" in line}
    best = min(errors, key=lambda step: (errors[step], -step))
    kept = {int(path.stem.removeprefix("step-")) for path in (tmp_path / "checkpoints").iterdir()}
    assert kept == {best, 10}


def test_an_unknown_best_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"train\.best must be 'loss' or one of toy/error, toy/score, got 'toy/acc'"):
        run(toy_recipe(exams={"toy": ToyExam.Config()}, best="toy/acc"), tmp_path)


def test_a_finished_run_says_so_and_returns(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    recipe = toy_recipe(exams={"toy": ToyExam.Config()})
    first = run(recipe, tmp_path)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.name not in ("log.txt", ".lock")}
    with caplog.at_level(logging.INFO, "hybridmap.train"):
        second = run(recipe, tmp_path)
    assert "is finished: nothing is left to do" in caplog.text
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert (second.step, second.results) == (first.step, first.results)
    for name, value in first.learner.state_dict().items():
        assert second.learner.state_dict()[name].equal(value)


def test_overwrite_starts_anew(tmp_path: Path) -> None:
    run(toy_recipe(), tmp_path / "a")
    run(toy_recipe(seed=1), tmp_path / "a", overwrite=True)
    run(toy_recipe(seed=1), tmp_path / "b")
    assert final(tmp_path / "a") == final(tmp_path / "b")
    assert len(lines(tmp_path / "a")) == 10


def test_weights_can_be_taken_over(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    run(toy_recipe(ema=0.9), tmp_path / "first")
    given, _ = read_weights(tmp_path / "first")
    recipe = override(toy_recipe(), {"init_from": str(tmp_path / "first"), "optim.lr": 0.0})
    with caplog.at_level(logging.INFO, "hybridmap.train"):
        state = run(recipe, tmp_path / "second")
    assert "loaded 10 tensors; dropped: none; freshly initialised: none" in caplog.text
    for name, value in given.items():
        assert state.learner.state_dict()[name].equal(value)


def test_the_final_file_says_how_to_use_it(tmp_path: Path) -> None:
    recipe = toy_recipe(learner=ToyLearner.Config(width=12))
    run(recipe, tmp_path)
    loaded, weights = load_run(tmp_path)
    assert loaded == recipe
    _, record = read_weights(tmp_path / "final.safetensors")
    assert from_tree(record["learner"]) == recipe.learner
    assert record["data"] == {"size": 6, "mean": [0.5], "std": [0.25]}
    recipe.learner.build().load_state_dict(weights)
    assert str(tmp_path) not in json.dumps(record)


def test_an_unfinished_run_gives_its_newest_weights(tmp_path: Path) -> None:
    with pytest.raises(ConnectionError):
        run(toy_recipe(ema=0.9), tmp_path, Breaking)
    weights, record = read_weights(tmp_path)
    assert record["step"] == 4
    with safe_open(tmp_path / "checkpoints" / "step-00000004.safetensors", "pt") as file:
        assert weights["head.weight"].equal(file.get_tensor("ema.head.weight"))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("none", "does not exist"),
        ("weights.pth", "convert a checkpoint of others first"),
        ("empty", "is it the directory of a run"),
    ],
)
def test_what_holds_no_weights_is_a_sentence(tmp_path: Path, name: str, message: str) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "weights.pth").write_text("")
    with pytest.raises(UserError, match=message):
        read_weights(tmp_path / name)


def test_a_broken_newest_checkpoint_costs_no_byte(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    recipe = toy_recipe(checkpoint_every=2)
    run(recipe, tmp_path / "whole")
    with pytest.raises(ConnectionError):
        run(recipe, tmp_path / "parts", Breaking)
    newest = tmp_path / "parts" / "checkpoints" / "step-00000004.safetensors"
    newest.write_bytes(newest.read_bytes()[:-100])
    run(recipe, tmp_path / "parts")
    assert "the checkpoint before it is used" in caplog.text
    assert final(tmp_path / "parts") == final(tmp_path / "whole")
    assert [line["step"] for line in lines(tmp_path / "parts")] == list(range(1, 11))


def test_only_broken_checkpoints_are_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(ConnectionError):
        run(toy_recipe(), tmp_path, Breaking)
    for path in (tmp_path / "checkpoints").iterdir():
        path.write_bytes(b"")
    with pytest.raises(UserError, match=r"no checkpoint in .* is whole; start anew with --overwrite"):
        run(toy_recipe(), tmp_path)


def test_broken_final_weights_are_named_and_written_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    run(toy_recipe(), tmp_path)
    whole = final(tmp_path)
    (tmp_path / "final.safetensors").write_bytes(whole[:-1])
    run(toy_recipe(), tmp_path)
    assert final(tmp_path) == whole
    assert "may have been cut off; it is written again from the last checkpoint" in caplog.text
    for path in (tmp_path / "checkpoints").iterdir():
        path.unlink()
    (tmp_path / "final.safetensors").write_bytes(whole[:-1])
    with pytest.raises(UserError, match="cut off"):
        run(toy_recipe(), tmp_path)
    assert final(tmp_path) == whole[:-1], "a run without checkpoints would begin from nothing; that is not ours to decide"


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
def test_a_signal_before_the_first_step_is_answered_like_any_other(tmp_path: Path, number: int, code: int) -> None:
    class Asked(ToyLoader):
        def __init__(self, *arguments: Any, **keywords: Any) -> None:
            os.kill(os.getpid(), number)
            super().__init__(*arguments, **keywords)

    with pytest.raises(SystemExit) as stopped:
        run(toy_recipe(), tmp_path / "parts", Asked)
    assert stopped.value.code == code
    assert "stopped at step 0 of 10" in (tmp_path / "parts" / "log.txt").read_text()
    run(toy_recipe(), tmp_path / "parts")
    run(toy_recipe(), tmp_path / "whole")
    assert final(tmp_path / "parts") == final(tmp_path / "whole")


def test_a_full_disk_stops_the_run_and_nothing_is_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from hybridmap.train import checkpoint

    recipe, save_file = toy_recipe(), checkpoint.save_file
    run(recipe, tmp_path / "whole")

    def full(tensors: Any, path: Path, metadata: Any) -> None:
        if "00000008" in Path(path).name:
            Path(path).write_bytes(b"half")
            raise OSError(errno.ENOSPC, "No space left on device")
        save_file(tensors, path, metadata=metadata)

    with monkeypatch.context() as patched:
        patched.setattr(checkpoint, "save_file", full)
        with pytest.raises(UserError, match=r"there is no space left to write .*step-00000008"):
            run(recipe, tmp_path / "parts")
    assert [path.name for path in sorted((tmp_path / "parts" / "checkpoints").iterdir())][-1] == "step-00000004.safetensors"
    run(recipe, tmp_path / "parts")
    assert final(tmp_path / "parts") == final(tmp_path / "whole")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 48 KiB of its own."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=48k", "none", str(place)], capture_output=True, check=False)
    if mounted.returncode:
        pytest.skip("mounting a small file system needs root; the same is tested with a substituted error above")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


@pytest.mark.skipif(sys.platform != "linux", reason="tmpfs is Linux's")
def test_a_disk_that_is_really_full_stops_the_run_and_nothing_is_lost(tmp_path: Path, small_disk: Path) -> None:
    recipe = toy_recipe(keep=9, checkpoint_every=1)
    run(recipe, tmp_path / "whole")
    with pytest.raises(UserError, match=r"there is no space left to write .*: make room and run the same command again"):
        run(recipe, small_disk / "run")
    assert (small_disk / "run" / "checkpoints" / "step-00000000.safetensors").exists()
    subprocess.run(["mount", "-o", "remount,size=1m", str(small_disk)], check=True)
    run(recipe, small_disk / "run")
    assert final(small_disk / "run") == final(tmp_path / "whole")


def test_activation_checkpointing_needs_a_backbone_that_can(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from train_toy import Net

    monkeypatch.delattr(Net, "set_grad_checkpointing")
    with pytest.raises(UserError, match="needs a backbone that can, and ToyLearner has none"):
        run(toy_recipe(checkpoint_activations=True), tmp_path)


def test_cuda_graphs_need_a_compiled_step_and_a_gpu(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"train\.cuda_graphs replays compiled steps: set train\.compile too"):
        toy_recipe(cuda_graphs=True)
    with pytest.raises(UserError, match=r"train\.cuda_graphs needs a CUDA device, and this run is on cpu"):
        run(toy_recipe(cuda_graphs=True, compile=True), tmp_path)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
def test_cuda_graphs_train_what_single_launches_do(tmp_path: Path) -> None:
    losses = []
    for name, settings in (("plain", {}), ("graphs", {"compile": True, "cuda_graphs": True})):
        train(toy_recipe(**settings), tmp_path / name, loader=ToyLoader, device="cuda")
        losses.append(torch.tensor([line["loss"] for line in lines(tmp_path / name)]))
    torch.testing.assert_close(*losses, rtol=1e-3, atol=1e-5)


def test_compiling_compiles_the_step_of_the_learner(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def compiled(function: Any, mode: Any) -> Any:
        assert mode is None
        return lambda *args: calls.append(function.__name__) or function(*args)

    monkeypatch.setattr(torch, "compile", compiled)
    run(toy_recipe(compile=True), tmp_path / "compiled")
    run(toy_recipe(), tmp_path / "plain")
    assert calls == ["step"] * 10
    weights = [read_weights(tmp_path / name)[0] for name in ("compiled", "plain")]
    assert all(weights[0][name].equal(value) for name, value in weights[1].items())


@pytest.mark.slow
def test_a_compiled_run_is_the_same_run(launch: Any, tmp_path: Path) -> None:
    """In a process of its own, where no shape checks stand in the way of the compiler."""
    recipe = toy_recipe(learner=ToyLearner.Config(), steps=3)
    process = launch(override(recipe, {"train.compile": True}), tmp_path / "compiled")
    run(recipe, tmp_path / "plain")
    process.join(300)
    assert process.exitcode == 0
    losses = [[line["loss"] for line in lines(tmp_path / name)] for name in ("compiled", "plain")]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_the_metrics_say_what_a_reader_wants_to_know(tmp_path: Path) -> None:
    run(toy_recipe(log_every=5), tmp_path)
    assert [line["step"] for line in lines(tmp_path)] == [5, 10]
    wanted = {"step", "loss", "loss_error", "lr", "grad_norm", "images_per_s", "data_wait"}
    assert all(line.keys() == wanted for line in lines(tmp_path))


def test_the_log_counts_the_passes_that_are_made(tmp_path: Path) -> None:
    """Not those of the schedule, which ``steps`` compresses."""
    run(toy_recipe(steps=10, epochs=300.0, batch_size=8), tmp_path)
    assert "for 10 steps (2 epochs)" in (tmp_path / "log.txt").read_text()


def test_the_environment_takes_further_facts(tmp_path: Path) -> None:
    run(toy_recipe(steps=1), tmp_path, environment={"kernels": {"scan": "torch"}})
    facts = json.loads((tmp_path / "environment.json").read_text())
    assert facts["kernels"] == {"scan": "torch"}
    assert facts["versions"]["torch"]


def test_skipped_images_are_written_down_even_if_the_run_breaks(tmp_path: Path) -> None:
    class Skipping(Breaking):
        def _batch(self, step: int, micro: int) -> Any:
            self.skipped["broken.jpg"] = "truncated"
            return super()._batch(step, micro)

    with pytest.raises(ConnectionError):
        run(toy_recipe(), tmp_path, Skipping)
    assert json.loads((tmp_path / "skipped.json").read_text()) == {"broken.jpg": "truncated"}


@pytest.mark.slow
def test_tensorboard_gets_the_curve(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    code = (
        "import sys, torch; sys.path.insert(0, sys.argv[1]); from train_toy import ToyLoader, toy_recipe;"
        "from hybridmap.train import train; train(toy_recipe(tensorboard=True), sys.argv[2], loader=ToyLoader, device='cpu');"
        "from tensorboard.backend.event_processing.event_accumulator import EventAccumulator;"
        "events = EventAccumulator(sys.argv[2] + '/tensorboard'); events.Reload();"
        "print([event.step for event in events.Scalars('train/loss')])"
    )
    ran = subprocess.run(
        [sys.executable, "-c", code, str(Path(__file__).parent), str(tmp_path)],
        capture_output=True, text=True, check=False, env=os.environ,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.splitlines()[-1] == str(list(range(1, 11)))


def test_a_batch_size_of_the_rule_scales_the_rate(tmp_path: Path) -> None:
    recipe = override(toy_recipe(steps=1), {"schedule.warmup_epochs": 0})
    recipe = type(recipe)(**(vars(recipe) | {"optim": AdamW.Config(base_lr=0.5, base_batch=16)}))
    run(recipe, tmp_path)
    assert lines(tmp_path)[0]["lr"] == pytest.approx(0.25)


def test_data_without_samples_are_a_sentence(tmp_path: Path) -> None:
    recipe = toy_recipe()
    with pytest.raises(UserError, match="nothing to train on"):
        run(type(recipe)(**(vars(recipe) | {"data": ToyData.Config(samples=0)})), tmp_path)
