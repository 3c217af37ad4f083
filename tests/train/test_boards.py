"""Numbers and pictures of a run on the boards that show them."""

from __future__ import annotations

import builtins
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from train_toy import ToyLoader, toy_recipe

from hybridmap.errors import UserError
from hybridmap.train import train
from hybridmap.train.boards import TensorBoard, Wandb, scalars

RECORD = {"step": 3, "loss": 0.25, "knn/top1": 61.5, "skipped": True, "lr": 1e-3}
PICTURE = Image.new("RGB", (12, 8), (255, 0, 0))


def test_exams_keep_their_names_and_numbers_of_the_step_are_trains() -> None:
    assert scalars(RECORD) == {"train/loss": 0.25, "knn/top1": 61.5, "train/lr": 1e-3}


def test_tensorboard_has_numbers_and_pictures_and_forgets_what_is_done_again(tmp_path: Path) -> None:
    board = TensorBoard(tmp_path)
    board.begin(0)
    for step in (1, 2, 3):
        board.numbers(RECORD | {"loss": float(step)}, step)
    board.begin(1)
    board.numbers(RECORD | {"loss": 20.0}, 2)
    board.picture("pictures/reconstructions", PICTURE, 2)
    board.close()
    found = EventAccumulator(str(tmp_path), size_guidance={"scalars": 0, "images": 0}).Reload()
    assert [(event.step, event.value) for event in found.Scalars("train/loss")] == [(1, 1.0), (2, 20.0)]
    assert [(image.step, image.width, image.height) for image in found.Images("pictures/reconstructions")] == [(2, 12, 8)]


@pytest.fixture
def nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody is logged in."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for name in ("WANDB_API_KEY", "WANDB_MODE", "NETRC"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.slow
@pytest.mark.usefixtures("nobody")
def test_wandb_keeps_a_run_offline_and_continues_it_under_the_same_name(tmp_path: Path) -> None:
    for step in (1, 2):
        board = Wandb(tmp_path / "run" / "wandb", "project", {"seed": 7})
        board.begin(step - 1)
        board.numbers(RECORD | {"loss": 0.125 * step}, step)
        board.picture("pictures/reconstructions", PICTURE, step)
        board.close()
    files = [path for path in (tmp_path / "run" / "wandb").rglob("*.wandb") if not path.parent.is_symlink()]
    assert len(files) == 2
    assert len({path.name for path in files}) == 1, "one run"
    for path, loss in zip(sorted(files), (b"0.125", b"0.25"), strict=True):
        content = path.read_bytes()
        assert b"train/loss" in content
        assert loss in content
        assert b"seed" in content
        assert b"reconstructions" in content


@pytest.mark.slow
@pytest.mark.usefixtures("nobody")
def test_a_run_shown_by_wandb_has_the_bytes_of_one_that_is_not(tmp_path: Path) -> None:
    train(toy_recipe(steps=4), tmp_path / "plain", loader=ToyLoader, device="cpu")
    train(toy_recipe(steps=4, wandb="project"), tmp_path / "shown", loader=ToyLoader, device="cpu")
    ours, theirs = ((tmp_path / name / "final.safetensors").read_bytes() for name in ("plain", "shown"))
    assert ours == theirs
    assert list((tmp_path / "shown" / "wandb").rglob("*.wandb"))


def test_wandb_that_is_not_installed_is_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import_ = builtins.__import__

    def without(name: str, *arguments: Any, **more: Any) -> Any:
        if name == "wandb":
            raise ModuleNotFoundError(name)
        return import_(name, *arguments, **more)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(UserError, match=r"needs wandb, which is not installed; pip install 'hybridmap\[wandb\]'"):
        Wandb(tmp_path / "wandb", "project", {})
