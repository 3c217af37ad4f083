"""``hybridmap table``: an interrupted table continues, a failing cell is named and the rest goes on, mistakes are sentences."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from hybridmap.cli import main
from hybridmap.cli import table as command
from hybridmap.errors import UserError
from hybridmap.recipes.table import Cell, run

LABELS = ("AR", "MAE", "local MAE", "MAP")


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]):
    """Run a command that must be refused; returns the sentence."""

    def ask(*words: str | Path) -> str:
        assert main(["table", *map(str, words)]) == 2
        shown = capsys.readouterr().err
        assert "Traceback" not in shown
        (line,) = shown.strip().splitlines()
        assert line.startswith("hybridmap table: ")
        return line

    return ask


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Labels of the cells that were really run, not read; labels in ``failing`` (a file name) raise."""
    labels: list[str] = []

    def counted(cell: Cell, folder: Path, device: str) -> dict[str, Any]:
        if not (folder / "result.json").exists():
            labels.append(cell.label)
        return run(cell, folder, device)

    monkeypatch.setattr(command, "run", counted)
    return labels


def table(out: Path, *more: str) -> int:
    return main(["table", "decoder_mask", "--out", str(out), "--jobs", "1", "--device", "cpu", *more])


def test_a_table_continues_and_does_not_rerun(tmp_path: Path, ran: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(cell: Cell, folder: Path, device: str) -> dict[str, Any]:
        if cell.label == "local MAE":
            raise KeyboardInterrupt
        return counted(cell, folder, device)

    counted = command.run
    monkeypatch.setattr(command, "run", interrupted)
    assert table(tmp_path) == 130
    assert ran == ["AR", "MAE"]
    monkeypatch.setattr(command, "run", counted)
    assert table(tmp_path, "--results", str(tmp_path / "numbers.json")) == 0
    assert ran == list(LABELS)
    assert table(tmp_path) == 0
    assert main(["table", "target", "--out", str(tmp_path), "--jobs", "1", "--device", "cpu"]) == 0
    assert ran == [*LABELS, "from scratch", "diffusion"]  # its third row is the same run as MAP
    tree = json.loads((tmp_path / "numbers.json").read_text())
    assert tree == json.loads((tmp_path / "decoder_mask-smoke.json").read_text()) | {"command": tree["command"]}
    rows = tree["tables"]["decoder_mask"]
    assert [row["row"] for row in rows] == list(LABELS)
    assert rows[3]["paper"] == {"t6-map": 84.9}
    assert all(0 <= row["measured"]["top1"][0] <= 100 for row in rows)
    assert tree["hardware"]
    assert tree["seeds"] == [0]
    for name in ("recipe.yaml", "environment.json", "metrics.jsonl", "final.safetensors"):
        for stage in ("pretrain", "finetune"):
            assert (tmp_path / "cells" / rows[0]["cells"][0] / stage / name).is_file()
    assert "84.9" in (tmp_path / "decoder_mask-smoke.md").read_text()


def test_a_cell_that_was_interrupted_keeps_its_pretraining(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from hybridmap.recipes import table as grid

    def interrupted(recipe: Any, out: Path, **more: Any) -> Any:
        if out.name == "finetune":
            raise KeyboardInterrupt
        return real(recipe, out, **more)

    real = grid.train
    monkeypatch.setattr(grid, "train", interrupted)
    assert table(tmp_path) == 130
    (weights,) = (tmp_path / "cells").glob("*/pretrain/final.safetensors")
    written = weights.stat().st_mtime_ns
    monkeypatch.setattr(grid, "train", real)
    assert table(tmp_path) == 0
    assert weights.stat().st_mtime_ns == written
    assert len(list((tmp_path / "cells").glob("*/result.json"))) == len(LABELS)


def test_a_failing_cell_is_named_and_the_rest_goes_on(
    tmp_path: Path, ran: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    counted, broken = command.run, {"MAE": UserError("the disk is gone"), "MAP": ZeroDivisionError("of zero")}

    def failing(cell: Cell, folder: Path, device: str) -> dict[str, Any]:
        if cell.label in broken:
            raise broken[cell.label]
        return counted(cell, folder, device)

    monkeypatch.setattr(command, "run", failing)
    assert table(tmp_path) == 1
    assert ran == ["AR", "local MAE"]
    shown = capsys.readouterr().out
    assert "failed: MAE, seed 0: the disk is gone" in shown
    assert "failed: MAP, seed 0: ZeroDivisionError: of zero" in shown
    text = (tmp_path / "decoder_mask-smoke.md").read_text()
    assert "seed 0 failed: the disk is gone" in text
    told = [file.read_text() for file in sorted((tmp_path / "cells").glob("*/failure.txt"))]
    assert any("Traceback" in one and "of zero" in one for one in told)
    monkeypatch.setattr(command, "run", counted)
    assert table(tmp_path) == 0
    assert ran == ["AR", "local MAE", "MAE", "MAP"]
    assert not list((tmp_path / "cells").glob("*/failure.txt"))


def test_mistakes_are_one_sentence(refused, tmp_path: Path, photo_folder: Path) -> None:
    assert "did you mean masking?" in refused("maskin")
    assert "expected the name of a table (pilot, scan_vs_order" in refused()
    assert "there is no table 'T5'" in refused("T5")
    assert "--seeds must be at least 1, got 0" in refused("masking", "--seeds", "0")
    assert "--jobs must be at least 1, got 0" in refused("masking", "--jobs", "0")
    assert "huge" in refused("masking", "--scale", "huge")
    assert "leave --data.root out" in refused("masking", "--data.root", photo_folder)
    assert "use --data.root DIR" in refused("masking", "--scale", "full", "--out", tmp_path / "a")
    assert "does not exist" in refused(
        "masking", "--scale", "trend", "--data.root", tmp_path / "nowhere", "--out", tmp_path / "b"
    )
    assert not list(tmp_path.iterdir())


def test_smoke_mode_makes_every_scale_smoke(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HYBRIDMAP_SMOKE", "1")
    assert table(tmp_path, "--scale", "trend") == 0
    assert (tmp_path / "decoder_mask-smoke.html").is_file()
