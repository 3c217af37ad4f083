"""``hybridmap export``: what it writes, what it leaves alone, and what it refuses."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

from hybridmap.cli import main


def command(environment: dict[str, str], *words: str | Path) -> subprocess.CompletedProcess[str]:
    """The command in a process of its own, since tracing does not go through shape checks."""
    line = [sys.executable, "-m", "hybridmap", "export", *map(str, words), "--device", "cpu"]
    return subprocess.run(line, capture_output=True, text=True, env=environment)


@pytest.mark.slow
@pytest.mark.parametrize("suffix", ["onnx", "pt2"])
def test_a_run_becomes_a_file(suffix: str, pretrained: Path, tmp_path: Path, unchecked_environment: dict[str, str]) -> None:
    file = tmp_path / f"net.{suffix}"
    outcome = command(unchecked_environment, pretrained, "-o", file, "--img-size", "48")
    assert outcome.returncode == 0, outcome.stderr
    assert outcome.stdout.startswith(f"{file}: (dynamic, 3, 48, 48) -> 32; largest difference from the network ")
    assert outcome.stderr == ""
    assert [path.name for path in tmp_path.iterdir()] == [file.name]


def test_mistakes_are_told_before_anything_is_traced(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, file = "mae_deit_tiny_patch16_224", str(tmp_path / "net.onnx")
    for words, sentence in [
        ([model, "-o", str(tmp_path / "net.pth")], "-o must end in .onnx or .pt2"),
        ([model, "-o", file, "--batch", "0"], "--batch expects dynamic or a number of images, got 0"),
        ([model, "-o", file, "--img-size", "50"], "multiple of the patch size 16, got 50x50; try 48x48"),
        (["mae_deit_tinny", "-o", file], "did you mean"),
    ]:
        assert main(["export", *words]) == 2
        assert sentence in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_missing_package_is_named_with_its_extra(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from hybridmap import export

    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "onnxscript" else found(name, *rest))
    monkeypatch.setattr(export, "trace", lambda *_: pytest.fail("nothing should be traced"))
    assert main(["export", "mae_deit_tiny_patch16_224", "-o", str(tmp_path / "net.onnx")]) == 2
    assert "needs onnxscript, which is not installed; try pip install 'hybridmap[export]'" in capsys.readouterr().err


def test_a_file_that_differs_is_not_kept(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from hybridmap import export

    file = tmp_path / "net.pt2"
    file.write_text("the file of before")
    monkeypatch.setattr(export, "trace", lambda *_: None)
    monkeypatch.setattr(export, "save_program", lambda program, path: path.write_text("wrong"))
    monkeypatch.setattr(export, "difference", lambda *_: float("nan"))
    words = ["export", "mae_deit_tiny_patch16_224", "-o", str(file), "--device", "cpu"]
    assert main(words) == 2
    assert "the pt2 file differs from the network by nan, more than 1e-04, and was not kept" in capsys.readouterr().err
    assert file.read_text() == "the file of before"
    assert [path.name for path in tmp_path.iterdir()] == ["net.pt2"]


def test_large_weights_lie_beside_and_fixed_batches_are_kept(unchecked_environment: dict[str, str], tmp_path: Path) -> None:
    code = """
import onnx, pytest
from pathlib import Path
from hybridmap import export
from hybridmap.backbones import create_backbone
from hybridmap.errors import UserError

small = create_backbone("mae_deit_tiny_patch16_224", img_size=32, depth=1)
assert export.export(small, "one.onnx", "onnx", (32, 32), 1) < 1e-4
print(onnx.load("one.onnx").graph.input[0].type.tensor_type.shape.dim[0].dim_value)
inside = Path("one.onnx").stat().st_size
export.LARGEST_INSIDE = 1_000_000
assert export.export(small, "deep/two.onnx", "onnx", (32, 32)) < 1e-4
print(sorted(path.name for path in Path("deep").iterdir()))
graph, weights = Path("deep/two.onnx"), Path("deep/two.onnx.data")
assert graph.stat().st_size < inside / 10 < weights.stat().st_size
before = graph.read_bytes(), weights.read_bytes()
export.TOLERANCE = -1.0
with pytest.raises(UserError, match="was not kept"):
    export.export(create_backbone("mae_deit_tiny_patch16_224", img_size=32, depth=1), "deep/two.onnx", "onnx", (32, 32))
assert before == (graph.read_bytes(), weights.read_bytes())
assert len(list(Path("deep").iterdir())) == 2
"""
    outcome = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=unchecked_environment, cwd=tmp_path
    )
    assert outcome.returncode == 0, outcome.stderr
    assert outcome.stdout.splitlines() == ["1", "['two.onnx', 'two.onnx.data']"]
