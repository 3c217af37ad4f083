"""Pretraining that is watched by exams and pictures."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from hybridmap.cli import main

QUICK = ["--device", "cpu", "--train.steps", "4", "--train.batch-size", "8", "--train.no-tensorboard"]


def test_neighbours_and_pictures_are_taken_every_so_many_epochs(photo_folder: Path, tmp_path: Path) -> None:
    flags = ["--watch", "knn", "pictures", "--train.eval-epochs", "0.67", "--out", str(tmp_path / "run")]
    assert main(["pretrain", "map-smoke", "--data.root", str(photo_folder), *QUICK, *flags]) == 0
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "knn/top1_k20" in line or any(key.startswith("knn/") for key in line)] == [2, 4]
    assert sorted(path.name for path in (tmp_path / "run" / "pictures").glob("step-*.png")) == [
        "step-00000002-pictures-reconstructions.png",
        "step-00000004-pictures-reconstructions.png",
    ]


def test_neighbours_need_labels(photo_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flat = tmp_path / "flat"
    flat.mkdir()
    for number, path in enumerate(photo_folder.rglob("*.jpg")):
        (flat / f"{number}.jpg").write_bytes(path.read_bytes())
    flags = ["--watch", "knn", "--out", str(tmp_path / "run")]
    assert main(["pretrain", "map-smoke", "--data.root", str(flat), *QUICK, *flags]) == 2
    assert "labelled images were expected" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
