"""One tiny pretraining run and one tiny classifier, made by the commands themselves and shared by the tests."""

from __future__ import annotations

from pathlib import Path

import pytest

from hybridmap.cli import main


@pytest.fixture(scope="session")
def quick() -> list[str]:
    """Flags that make a run of map-smoke even shorter."""
    return ["--train.steps", "2", "--train.batch-size", "4", "--train.no-tensorboard", "--device", "cpu"]


@pytest.fixture(scope="session")
def pretrained(photo_folder: Path, quick: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "pretrained"
    assert main(["pretrain", "map-smoke", "--data.root", str(photo_folder), "--out", str(out), *quick]) == 0
    return out


@pytest.fixture(scope="session")
def classifier(photo_folder: Path, pretrained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """ft-100-tiny at the size of map-smoke, from its weights."""
    out = tmp_path_factory.mktemp("runs") / "classifier"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HYBRIDMAP_SMOKE", "1")
        flags = ["--data.root", str(photo_folder), "--init", str(pretrained), "--out", str(out), "--device", "cpu"]
        assert main(["finetune", "ft-100-tiny", *flags]) == 0
    return out
