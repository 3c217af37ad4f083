"""``hybridmap bench`` prints ratios, writes them as CSV, and tells mistakes before it measures anything."""

from __future__ import annotations

import csv
import math
import re
from pathlib import Path

import pytest

from hybridmap.cli import main


@pytest.fixture(autouse=True)
def _smoke(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HYBRIDMAP_SMOKE", "1")


def lines_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_ops_measures_every_operator(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "ops.csv"
    assert main(["bench", "ops", "--device", "cpu", "--csv", str(path), "--dtype", "bf16"]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith("shape 1x8x16x4, dtype bf16, device cpu (")
    lines = lines_of(path)
    for operator in ("selective_scan", "bidirectional_scan", "causal_conv1d", "add_norm"):
        assert re.search(rf"^{operator} +ours \(\w+\) .* 1\.00 x", shown, re.MULTILINE)
        own = [line for line in lines if line["operator"] == operator]
        assert own[0]["what"].startswith("ours (")
        timed = [line for line in own if line["forward ms"]]
        assert len(timed) >= 3
        for line in timed:
            assert (line["shape"], line["dtype"], line["threads"]) == ("1x8x16x4", "bf16", "1")
            for direction in ("forward", "forward + backward"):
                ratio = float(line[f"{direction} / ours"])
                assert 0 < ratio < math.inf
                assert ratio == pytest.approx(float(line[f"{direction} ms"]) / float(own[0][f"{direction} ms"]))
        assert all(line["note"] for line in own if not line["forward ms"])


def test_step_measures_the_step_plain_pytorch_and_the_floor(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "step.csv"
    flags = ["--device", "cpu", "--csv", str(path), "--no-memory", "--precision", "bf16"]
    assert main(["bench", "step", "map-tiny", *flags]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith("recipe map-tiny, batch 2, precision bf16, compiled False, device cpu (")
    assert re.search(r"^step / floor: [\d.]+, [\d.e+-]+ GFLOP of products per step$", shown, re.MULTILINE)
    lines = {line["what"]: line for line in lines_of(path)}
    step = float(lines["step"]["s"])
    for name in ("step", "step by plain PyTorch kernels", "floor: its matrix products alone"):
        assert 0 < float(lines[name]["/ step"]) < math.inf
        assert float(lines[name]["/ step"]) == pytest.approx(float(lines[name]["s"]) / step)
        assert float(lines[name]["images/s"]) == pytest.approx(2 / float(lines[name]["s"]))
    shares = {name: float(line["share"]) for name, line in lines.items() if line["share"]}
    mixers = "operators: inside of mixers (scan, convolution, their projections)"
    assert {"operators: products", mixers, "operators: attention", "operators: optimizer"} <= shares.keys()
    assert sum(shares.values()) == pytest.approx(1)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "expected ops or step; try hybridmap bench --help"),
        (["steps"], "bench measures ops or step, got 'steps'; did you mean step"),
        (["step", "map-bse"], "there is no recipe 'map-bse'; did you mean map-base"),
        (["step", "knn"], "knn is an exam, which trains nothing; hybridmap recipes lists what does"),
        (["ops", "--rounds", "0"], "--rounds must be at least 1, got 0"),
        (["step", "--batch", "0"], "--batch must be at least 1, got 0"),
        (["ops", "--threads", "-1"], "--threads must be at least 1, got -1"),
        (["ops", "--length", "0"], "--length must be at least 1, got 0"),
        (["ops", "--dtype", "int8"], "invalid choice 'int8'"),
        (["ops", "--csv", "no/such/folder/x.csv"], "No such file or directory (no/such/folder/x.csv)"),
        (["step", "--csv", "."], "Is a directory (.)"),
    ],
)
def test_a_mistake_is_one_sentence_and_code_2(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", *words]) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert message in shown.err
    assert shown.err.count("\n") == 1


def test_each_has_its_own_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "ops", "--help"]) == 0
    assert "--compiled" in capsys.readouterr().out
    assert main(["bench", "step", "--help"]) == 0
    assert "--precision" in capsys.readouterr().out
