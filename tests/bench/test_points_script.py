"""benchmarks/points.py stays runnable, and its contestants agree."""

from __future__ import annotations

import csv
import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hybridmap.ops import points as ops

FILE = Path(__file__).parents[2] / "benchmarks" / "points.py"


@pytest.fixture
def script() -> Any:
    spec = importlib.util.spec_from_file_location("benchmarks_points", FILE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_all_of_it_runs_at_tiny_shapes(
    script: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [
        "--points",
        "20",
        "33",
        "--batch",
        "2",
        "--groups",
        "4",
        "--samples",
        "9",
        "--neighbours",
        "3",
        "--rounds",
        "1",
    ]
    monkeypatch.setattr("sys.argv", ["points.py", *arguments, "--csv", str(tmp_path / "points.csv")])
    assert script.main() in (0, 1)
    assert "one thread" in capsys.readouterr().out
    with (tmp_path / "points.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert {(line["points"], line["operator"]) for line in lines} == {
        (points, operator) for points in ("20", "33") for operator in ("fps 4", "fps 9", "knn 3 of 4")
    }
    assert [line["what"] for line in lines[:4]] == ["ours", "plain PyTorch", "naive torch", "NumPy loop"]
    assert [line["target"] for line in lines[:4]] == ["", "", ">= 3 x", ">= 20 x"]
    assert all(float(line["ms"]) > 0 for line in lines)


def test_all_contestants_find_the_same_points(script: Any) -> None:
    cloud, query = torch.randn(2, 60, 3), torch.randn(2, 7, 3)
    expected = ops.fps(cloud, 12)
    assert torch.equal(script.naive_fps(cloud, 12), expected)
    assert np.array_equal(script.numpy_fps(cloud.numpy(), 12), expected.numpy())
    expected = ops.knn(cloud, query, 5)[1]
    assert torch.equal(script.naive_knn(cloud, query, 5), expected)
    assert np.array_equal(script.numpy_knn(cloud.numpy(), query.numpy(), 5), expected.numpy())
