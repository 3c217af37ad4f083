"""The scripts in benchmarks/ stay runnable: what needs no card and no patience is run here."""

from __future__ import annotations

import csv
import importlib.util
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from hybridmap.backbones import find

FOLDER = Path(__file__).parents[2] / "benchmarks"


def script(name: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A script as a module."""
    spec = importlib.util.spec_from_file_location(f"benchmarks_{name}", FOLDER / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Any:
    return script("gpu", monkeypatch)


def test_map_is_timed_beside_its_mae_twin(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    objectives = script("objectives", monkeypatch)
    made: list[Any] = []
    kept = objectives.contestants
    monkeypatch.setattr(objectives, "contestants", lambda *given: made.append(kept(*given)) or made[-1])
    objectives.main(["--quick", "--rounds", "1", "--batch", "2", "--learners", "map-tiny", "map-vit-base"])
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["learner"] for line in lines] == ["map-tiny", "map-vit-base"]
    for line, runs in zip(lines, made, strict=True):
        assert line["map / mae"] == pytest.approx(line["map ms"] / line["mae ms"], rel=0.05)  # of rounded milliseconds
        assert 0 < line["draw / map"] < 1
        first, second = runs["map"].learner.config, runs["mae"].learner.config
        assert (first.decoder_mask, second.decoder_mask) == ("map", "mae")
        assert first.masking == second.masking


def test_all_of_it_runs_at_tiny_shapes(
    gpu: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def uncompiled(quick: bool) -> Iterator[Any]:
        yield from (gpu.Case(name, 2, False) for name in gpu.LEARNERS)

    monkeypatch.setattr(gpu, "cases", uncompiled)
    gpu.report(torch.device("cpu"), quick=True, minutes=60, csv=tmp_path)
    shown = capsys.readouterr().out
    assert "two runs of the scan are equal in every bit" in shown
    assert "left out" not in shown
    with (tmp_path / "gpu_operators.csv").open() as file:
        lines = list(csv.DictReader(file))
    for operator in gpu.OPERATORS:
        own = [line for line in lines if line["operator"].startswith(f"{operator} ")]
        assert {line["operator"].partition(" ")[2] for line in own} == {"2x20x32x4", "1x9x16x4"}
        for direction in gpu.DIRECTIONS:
            assert all(float(line[f"{direction} / ours"]) > 0 for line in own)
    with (tmp_path / "gpu_steps.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert [line["learner"] for line in lines] == list(gpu.LEARNERS)
    assert all(float(line["images/s"]) > 0 and float(line["of peak"]) > 0 for line in lines)


def test_what_time_does_not_allow_is_named(gpu: Any, capsys: pytest.CaptureFixture[str]) -> None:
    budget = gpu.Budget(-1)
    gpu.steps(torch.device("cpu"), True, 1, budget, gpu.Console(width=160))
    assert len(budget.left_out) == 12
    assert budget.left_out[0] == "map-base, batch 2, uncompiled"
    assert budget.left_out[-1] == "mae-vit-base, batch 4, compiled"


def test_a_card_that_is_too_small_is_a_note(gpu: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def too_small(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(gpu, "measure", too_small)
    monkeypatch.setattr(gpu, "race", too_small)
    sheet = gpu.steps(torch.device("cpu"), True, 1, gpu.Budget(60), gpu.Console(width=160))
    assert {line[-1] for line in sheet.lines} == {"out of memory"}
    sheet = gpu.operators(torch.device("cpu"), True, 1, gpu.Budget(60))
    assert {line[-1] for line in sheet.lines} == {"out of memory"}


def test_moco_is_measured_beside_its_two_passes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    spec = importlib.util.spec_from_file_location("benchmarks_moco", FOLDER / "moco.py")
    assert spec is not None
    assert spec.loader is not None
    moco = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(moco)
    monkeypatch.setattr(moco, "find", lambda name: find(name).small())
    arguments = ["--batch", "2", "--queue", "4", "--rounds", "1", "--csv", str(tmp_path / "moco.csv")]
    monkeypatch.setattr(sys, "argv", ["moco.py", *arguments])
    assert moco.main() in (0, 1)
    assert "target 1.10 x" in capsys.readouterr().out
    with (tmp_path / "moco.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert [line["what"] for line in lines] == ["MoCo", "its floor"]
    assert all(float(line["s"]) > 0 for line in lines)


def test_augmentation_is_timed_beside_the_libraries(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    sheet = tmp_path / "augment.csv"
    monkeypatch.setattr("sys.argv", ["augment.py", "--batch", "3", "--size", "24", "--rounds", "1", "--csv", str(sheet)])
    assert script("augment", monkeypatch).main() == 0
    assert [line.split(" x")[0].split()[0] for line in capsys.readouterr().out.splitlines()[2:]].count("RandAugment,") == 2
    assert len(sheet.read_text().splitlines()) == 5


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a card")
def test_without_a_card_it_is_one_sentence_and_code_2(
    gpu: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["gpu.py"])
    assert gpu.main() == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err == "benchmarks/gpu.py needs a CUDA device, and torch finds none; hybridmap bench runs on CPUs\n"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no card")
def test_it_runs_on_a_card(unchecked_environment: dict[str, str]) -> None:
    command = [sys.executable, str(FOLDER / "gpu.py"), "--quick", "--minutes", "3"]
    subprocess.run(command, check=True, env=unchecked_environment, timeout=600)
