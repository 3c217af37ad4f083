"""Clouds of points from the command line: pretrain, fine-tune, evaluate, vote; and what is about images alone says so."""

from __future__ import annotations

from pathlib import Path

import pytest

from hybridmap.cli import main


@pytest.fixture(autouse=True)
def _in_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HYBRIDMAP_SMOKE", "1")


def test_made_shapes_are_pretrained_on_fine_tuned_and_judged(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pretrained, tuned = str(tmp_path / "map"), str(tmp_path / "ft")
    assert main(["pretrain", "map-points-made", "--out", pretrained, "--data.count", "28"]) == 0
    assert (tmp_path / "map" / "report.html").is_file()
    assert main(["finetune", "ft-points-made", "--init", pretrained, "--out", tuned, "--data.count", "28"]) == 0
    assert "freshly initialised: backbone.cls_token" in capsys.readouterr().err
    assert main(["evaluate", tuned]) == 0
    assert "28" in capsys.readouterr().out
    assert main(["evaluate", tuned, "--vote", "2"]) == 0
    assert {"mean", "std", "max", "single", "clouds"} <= set(capsys.readouterr().out.split())
    assert main(["export", tuned, "-o", str(tmp_path / "x.onnx")]) == 2
    assert "this is about images" in capsys.readouterr().err
    assert main(["compare", pretrained, tuned, "-o", str(tmp_path / "c.html")]) == 2
    assert "this is about images" in capsys.readouterr().err


@pytest.mark.parametrize(("recipe", "place"), [("map-points", "ShapeNet55-34"), ("point-mae", "ShapeNet55-34")])
def test_a_missing_folder_is_one_sentence(recipe: str, place: str, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["pretrain", recipe, "--data.root", str(tmp_path / "none"), "--out", str(tmp_path / "run")]) == 2
    error = capsys.readouterr().err
    assert place in error
    assert error.count("\n") == 1
