"""``hybridmap bench`` prints ratios, writes them as CSV, and tells mistakes before it measures anything."""

from __future__ import annotations

import csv
import math
import os
import re
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import pytest
import torch

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
    assert re.search(r"^[\d.e+-]+ GFLOP/s, [\d.]+% of what its products reach by themselves$", shown, re.MULTILINE)
    whole = re.search(
        r"^a whole run of map-tiny: 300 epochs of 1,281,167 images in ([\d,.]+) h on this, ([\d,.]+) h on 8 x", shown, re.M
    )
    assert whole is not None
    one, many = (float(hours.replace(",", "")) for hours in whole.groups())
    assert one == pytest.approx(8 * many, rel=1e-3)
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


MODEL_NAMES = ["hybridnet_tiny_patch16_224", "mae_deit_tiny_patch16_224"]


def test_models_are_measured_side_by_side(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "model.csv"
    flags = ["--device", "cpu", "--csv", str(path), "--no-memory", "--dtype", "bf16", "--img-size", "64", "--threads", "1"]
    assert main(["bench", "model", *MODEL_NAMES, *flags]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith("batch 2, dtype bf16, device cpu (")
    assert re.search(r"^inference: forward in evaluation mode", shown, re.MULTILINE)
    assert re.search(r"^training: gradients to zero, forward, cross-entropy, backward", shown, re.MULTILINE)
    assert "peak: " not in shown
    first, second = lines_of(path)
    assert [first["model"], second["model"]] == MODEL_NAMES
    for line in (first, second):
        assert (line["size"], line["batch"], line["dtype"], line["threads"], line["rounds"]) == ("64x64", "2", "bf16", "1", "1")
        assert float(line["parameters M"]) > 0
        assert float(line["GMACs"]) > 0
        for phase in ("inference", "training"):
            rate = float(line[f"{phase} images/s"])
            assert 0 < rate < math.inf
            assert float(line[f"{phase} / first"]) == pytest.approx(rate / float(first[f"{phase} images/s"]))
            assert line[f"{phase} peak MB"] == ""


def test_without_training_the_table_has_no_such_columns(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "model.csv"
    flags = ["--no-train", "--no-memory", "--device", "cpu", "--csv", str(path)]
    assert main(["bench", "model", "map_tiny_patch16_224", *flags]) == 0
    assert "training" not in capsys.readouterr().out
    (line,) = lines_of(path)
    assert line["model"] == "map_tiny_patch16_224"
    assert not [name for name in line if name.startswith("training")]


@pytest.mark.skipif(not os.environ.get("HYBRIDMAP_LONG"), reason="half a minute: make test-long")
@pytest.mark.slow
def test_the_peak_of_a_model_is_printed_with_what_it_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if not Path("/proc/self/clear_refs").exists():
        pytest.skip("this system does not say how large a process was")
    path = tmp_path / "model.csv"
    assert main(["bench", "model", "mae_deit_tiny_patch16_224", "--device", "cpu", "--csv", str(path)]) == 0
    assert re.search(r"^peak: growth of a fresh process", capsys.readouterr().out, re.MULTILINE)
    (line,) = lines_of(path)
    assert float(line["training peak MB"]) > float(line["inference peak MB"]) > 0


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError(
            "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to ..."
        ),
        BrokenProcessPool("A process in the process pool was terminated abruptly while the future was running or pending."),
    ],
)
def test_too_little_memory_is_a_sentence(
    error: Exception, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def too_small(*_: object, **__: object) -> None:
        raise error

    for where, what in (("models", "model"), ("step", "step")):
        monkeypatch.setattr(f"hybridmap.bench.{where}.measure", too_small)
        name = "mae_deit_tiny_patch16_224" if what == "model" else "map-tiny"
        assert main(["bench", what, name, "--device", "cpu"]) == 2
        assert "cpu has too little memory for 2 images; try a smaller --batch" in capsys.readouterr().err


def test_other_errors_are_not_taken_for_too_little_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("a defect of ours")

    monkeypatch.setattr("hybridmap.bench.models.measure", broken)
    with pytest.raises(RuntimeError, match="a defect of ours"):
        main(["bench", "model", "mae_deit_tiny_patch16_224", "--device", "cpu"])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "expected ops, model or step; try hybridmap bench --help"),
        (["steps"], "bench measures ops, model or step, got 'steps'; did you mean step"),
        (["step", "map-bse"], "there is no recipe 'map-bse'; did you mean map-base"),
        (["step", "knn"], "knn is an exam, which trains nothing; hybridmap recipes lists what does"),
        (["ops", "--rounds", "0"], "--rounds must be at least 1, got 0"),
        (["step", "--batch", "0"], "--batch must be at least 1, got 0"),
        (["ops", "--threads", "-1"], "--threads must be at least 1, got -1"),
        (["ops", "--length", "0"], "--length must be at least 1, got 0"),
        (["ops", "--dtype", "int8"], "invalid choice 'int8'"),
        (["model"], "expected the names of models, such as hybridnet_tiny_patch16_224; hybridmap models lists them all"),
        (
            ["model", "mambar_tinny_patch16_224"],
            "'mambar_tinny_patch16_224'; did you mean mambar_tiny_patch16_224",
        ),
        (
            ["model", *MODEL_NAMES, "--img-size", "100"],
            "hybridnet_tiny_patch16_224: the image size must be a multiple of",
        ),
        (["model", *MODEL_NAMES, "--img-size", "0"], "--img-size must be at least 1, got 0"),
        (["model", *MODEL_NAMES, "--batch", "0"], "--batch must be at least 1, got 0"),
        (["model", *MODEL_NAMES, "--dtype", "int8"], "invalid choice 'int8'"),
        (["model", *MODEL_NAMES, "--csv", "no/such/folder/x.csv"], "No such file or directory (no/such/folder/x.csv)"),
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
    assert main(["bench", "model", "--help"]) == 0
    assert "--img-size" in capsys.readouterr().out
    assert main(["bench", "--help"]) == 0
    assert "bench model NAME..." in capsys.readouterr().out
