"""Weight files are opened without trusting them."""

from __future__ import annotations

import argparse
import os
import pathlib
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from hybridmap.convert.read import read
from hybridmap.errors import UserError

WEIGHTS = {"a.weight": torch.arange(6.0).view(2, 3), "a.bias": torch.ones(2)}


def same(found: dict[str, torch.Tensor]) -> bool:
    return found.keys() == WEIGHTS.keys() and all(torch.equal(found[name], WEIGHTS[name]) for name in WEIGHTS)


class Runs:
    """A pickle of this object calls a function with arguments when it is loaded."""

    def __init__(self, function: Callable[..., Any], *args: Any) -> None:
        self.call = (function, args)

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return self.call


@pytest.mark.parametrize("wrap", [lambda w: w, lambda w: {"model": w}, lambda w: {"state_dict": w, "epoch": 3}])
@pytest.mark.parametrize("prefix", ["", "module.", "module._orig_mod."])
def test_wrappers_and_prefixes_are_stripped(tmp_path: Path, wrap: Callable[..., Any], prefix: str) -> None:
    torch.save(wrap({prefix + name: value for name, value in WEIGHTS.items()}), tmp_path / "w.pth")
    found, metadata = read(tmp_path / "w.pth")
    assert same(found)
    assert metadata is None


def test_a_training_file_with_namespace_paths_and_numpy_scalars_is_read(tmp_path: Path) -> None:
    args = argparse.Namespace(lr=1e-3, output_dir=pathlib.PosixPath("/runs/a"), resume="", betas=[0.9, 0.95])
    extras = {"epoch": np.int64(7), "best": np.float32(81.5), "kind": np.dtype("float64"), "flag": np.bool_(True)}
    torch.save({"model": WEIGHTS, "args": args, "scaler": {"scale": 65536.0}, **extras}, tmp_path / "checkpoint.pth")
    assert same(read(tmp_path / "checkpoint.pth")[0])


def test_a_path_of_the_other_system_is_read(tmp_path: Path) -> None:
    torch.save({"model": WEIGHTS, "out": Runs(pathlib.PurePosixPath, "C:\\runs")}, tmp_path / "w.pth")
    renamed = tmp_path / "renamed.pth"
    # The pickle lies uncompressed in the archive; its name of the class is replaced by one of equal length.
    content = (tmp_path / "w.pth").read_bytes()
    assert b"PurePosixPath" in content
    import io
    import zipfile

    with zipfile.ZipFile(io.BytesIO(content)) as source, zipfile.ZipFile(renamed, "w", zipfile.ZIP_STORED) as target:
        for entry in source.infolist():
            target.writestr(entry, source.read(entry).replace(b"cpathlib\nPurePosixPath", b"cpathlib\nWindowsPath"))
    assert same(read(renamed)[0])


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
@pytest.mark.parametrize("function", [os.mkdir, eval], ids=["os", "builtins"])
def test_a_malicious_pickle_is_refused_and_nothing_runs(tmp_path: Path, legacy: bool, function: Callable[..., Any]) -> None:
    trap = tmp_path / "trapped"
    argument = str(trap) if function is os.mkdir else f"__import__('os').mkdir({str(trap)!r})"
    torch.save(
        {"model": WEIGHTS, "args": Runs(function, argument)}, tmp_path / "w.pth", _use_new_zipfile_serialization=not legacy
    )
    with pytest.raises(UserError, match="could run code"):
        read(tmp_path / "w.pth")
    assert not trap.exists()
    pickle.loads(pickle.dumps(Runs(function, argument)))  # the trap is a real one
    assert trap.exists()


def test_a_plain_malicious_pickle_is_refused_too(tmp_path: Path) -> None:
    trap = tmp_path / "trapped"
    (tmp_path / "w.pkl").write_bytes(pickle.dumps(Runs(os.mkdir, str(trap)), protocol=2))
    with pytest.raises(UserError):
        read(tmp_path / "w.pkl")
    assert not trap.exists()


@pytest.mark.parametrize("harmless", [list, pathlib.PurePosixPath, argparse.ArgumentParser])
def test_no_class_beyond_the_list_is_admitted(tmp_path: Path, harmless: Callable[..., Any]) -> None:
    torch.save({"model": WEIGHTS, "extra": Runs(harmless)}, tmp_path / "w.pth")
    with pytest.raises(UserError):
        read(tmp_path / "w.pth")


def test_the_moving_average_is_an_option(tmp_path: Path) -> None:
    average = {name: value + 1 for name, value in WEIGHTS.items()}
    torch.save({"model": WEIGHTS, "model_ema": average}, tmp_path / "both.pth")
    torch.save({"model": WEIGHTS}, tmp_path / "raw.pth")
    torch.save({"model_ema": average}, tmp_path / "only.pth")
    assert same(read(tmp_path / "both.pth")[0])
    assert torch.equal(read(tmp_path / "both.pth", ema=True)[0]["a.bias"], average["a.bias"])
    with pytest.raises(UserError, match="no moving average"):
        read(tmp_path / "raw.pth", ema=True)
    with pytest.raises(UserError, match="only a moving average"):
        read(tmp_path / "only.pth")


def test_safetensors_are_recognised_by_their_content(tmp_path: Path) -> None:
    save_file(WEIGHTS, tmp_path / "w.pth", metadata={"hybridmap": "{}"})
    found, metadata = read(tmp_path / "w.pth")
    assert same(found)
    assert metadata == "{}"


@pytest.mark.parametrize("content", [b"", b"text that is no weights at all", b"\x80\x02}q\x00.", b"PK\x03\x04 half a zip"])
def test_files_that_hold_no_weights_are_refused_in_one_sentence(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "w.pth").write_bytes(content)
    with pytest.raises(UserError) as refused:
        read(tmp_path / "w.pth")
    assert "w.pth" in str(refused.value)
    assert "\n" not in str(refused.value)


def test_damaged_safetensors_missing_files_and_folders_are_refused(tmp_path: Path) -> None:
    save_file(WEIGHTS, tmp_path / "w.safetensors")
    whole = (tmp_path / "w.safetensors").read_bytes()
    (tmp_path / "cut.safetensors").write_bytes(whole[:-4])
    with pytest.raises(UserError, match="damaged"):
        read(tmp_path / "cut.safetensors")
    with pytest.raises(UserError, match="not there"):
        read(tmp_path / "nothing.pth")
    with pytest.raises(UserError, match="a folder"):
        read(tmp_path)


def test_sparse_tensors_are_refused_by_name(tmp_path: Path) -> None:
    torch.save({"model": {"a": torch.ones(2), "b": torch.eye(3).to_sparse()}}, tmp_path / "w.pth")
    with pytest.raises(UserError, match=r"w\.pth holds b in a sparse or quantised form; expected plain tensors"):
        read(tmp_path / "w.pth")
