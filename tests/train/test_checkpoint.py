from __future__ import annotations

import errno
import json
import logging
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from hybridmap.errors import UserError
from hybridmap.train import checkpoint
from hybridmap.train.checkpoint import BrokenFile, Checkpoints, read, read_record, write

TENSORS = {"b": torch.arange(5.0), "a": torch.ones(2, 3, dtype=torch.bfloat16), "n": torch.tensor(3), "t": torch.eye(3).t()[:2]}


def test_what_is_written_is_read(tmp_path: Path) -> None:
    write(tmp_path / "x.safetensors", TENSORS, {"step": 3, "list": [1, 2]})
    tensors, record = read(tmp_path / "x.safetensors")
    assert tensors.keys() == TENSORS.keys()
    for name, value in TENSORS.items():
        assert tensors[name].dtype == value.dtype
        assert tensors[name].equal(value)
    assert (record["step"], record["list"]) == (3, [1, 2])
    assert [path.name for path in tmp_path.iterdir()] == ["x.safetensors"], "no temporary file stays"


def test_equal_contents_are_equal_bytes_and_one_metadata_key(tmp_path: Path) -> None:
    write(tmp_path / "x.safetensors", TENSORS, {"b": 1, "a": 2})
    write(tmp_path / "y.safetensors", dict(reversed(TENSORS.items())), {"a": 2, "b": 1})
    assert (tmp_path / "x.safetensors").read_bytes() == (tmp_path / "y.safetensors").read_bytes()
    with safe_open(tmp_path / "x.safetensors", "pt") as file:
        assert list(file.metadata()) == ["hybridmap"]
        assert list(json.loads(file.metadata()["hybridmap"])) == ["a", "b", "checksum"]


def test_a_file_has_the_rights_that_the_user_wants(tmp_path: Path) -> None:
    (tmp_path / "usual").touch()
    write(tmp_path / "x.safetensors", TENSORS, {})
    assert (tmp_path / "x.safetensors").stat().st_mode == (tmp_path / "usual").stat().st_mode


@pytest.mark.parametrize("kept", [0, 5, 60, -1])
def test_a_truncated_file_is_noticed(tmp_path: Path, kept: int) -> None:
    path = tmp_path / "x.safetensors"
    write(path, TENSORS, {})
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(BrokenFile, match="not a whole safetensors file"):
        read(path)


def test_a_flipped_bit_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    write(path, TENSORS, {})
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(BrokenFile, match="checksum differs"):
        read(path)


@pytest.mark.parametrize("record", [{"kind": "checkpoint", "step": 12, "lr_scale": 0.5, "extra": True}, {}])
def test_whatever_bit_is_flipped_what_is_read_is_what_was_written(tmp_path: Path, record: dict) -> None:
    """A flipped bit of the header may pass as another step, another name, another type."""
    path = tmp_path / "x.safetensors"
    write(path, {"a": torch.tensor([1.0, 2.0]), "n": torch.tensor([3])}, record)
    content = path.read_bytes()
    for bit in range(8 * len(content)):
        changed = bytearray(content)
        changed[bit // 8] ^= 1 << bit % 8
        path.write_bytes(changed)
        with pytest.raises(BrokenFile, match=r"not a whole safetensors file|does not hold what was written"):
            read(path, ours=True)


def test_files_of_others_need_no_checksum_unless_they_are_to_be_ours(tmp_path: Path) -> None:
    save_file({"a": torch.ones(2)}, tmp_path / "x.safetensors")
    tensors, record = read(tmp_path / "x.safetensors")
    assert tensors["a"].equal(torch.ones(2))
    assert record == {}
    with pytest.raises(BrokenFile, match="it has no checksum"):
        read(tmp_path / "x.safetensors", ours=True)


def test_a_missing_file_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot read"):
        read_record(tmp_path / "none.safetensors")


def steps(checkpoints: Checkpoints) -> list[int]:
    return [int(path.stem.removeprefix("step-")) for path in checkpoints.paths()]


def test_the_newest_and_the_best_stay(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path / "checkpoints", keep=2)
    for step, score in enumerate([None, 0.1, 0.9, 0.3, 0.2, None, 0.4]):
        checkpoints.save(step, TENSORS, {"score": score, "extra": False})
    assert steps(checkpoints) == [2, 5, 6]


def test_those_of_a_stopped_run_are_extra(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path / "checkpoints", keep=2)
    for step, extra in [(0, False), (4, False), (5, True), (6, True)]:
        checkpoints.save(step, TENSORS, {"extra": extra})
    assert steps(checkpoints) == [0, 4, 6]
    newest, regular = checkpoints.newest(), checkpoints.newest(extra=False)
    assert newest is not None
    assert regular is not None
    assert (newest.name, regular.name) == ("step-00000006.safetensors", "step-00000004.safetensors")
    checkpoints.save(8, TENSORS, {"extra": False})
    assert steps(checkpoints) == [4, 8]


def test_a_run_directory_that_is_gone_is_not_made_again(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path / "run" / "checkpoints", keep=2)
    with pytest.raises(UserError, match=r"cannot write .*checkpoints \(its directory is gone\)"):
        checkpoints.save(1, TENSORS, {})
    assert not (tmp_path / "run").exists()


def test_a_broken_newest_gives_way_to_the_one_before(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    checkpoints = Checkpoints(tmp_path / "checkpoints", keep=3)
    for step in (1, 2):
        checkpoints.save(step, TENSORS, {})
    newest = checkpoints.paths()[-1]
    newest.write_bytes(newest.read_bytes()[:-3])
    with caplog.at_level(logging.WARNING, "hybridmap.train"):
        found = checkpoints.newest()
    assert found == checkpoints.paths()[0]
    assert f"{newest} is not a whole safetensors file" in caplog.text
    assert "the checkpoint before it is used" in caplog.text
    checkpoints.drop_after(1)
    assert steps(checkpoints) == [1]


@pytest.mark.parametrize(
    "error",
    [OSError(errno.ENOSPC, "No space left on device"), SafetensorError("I/O error: No space left on device (os error 28)")],
    ids=["os", "safetensors"],
)
def test_a_full_disk_is_a_sentence_and_leaves_the_file_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    path = tmp_path / "x.safetensors"
    write(path, TENSORS, {"step": 1})
    before = path.read_bytes()

    def full(tensors: dict, name: Path, metadata: dict) -> None:
        Path(name).write_bytes(b"half")
        raise error

    monkeypatch.setattr(checkpoint, "save_file", full)
    with pytest.raises(UserError, match=r"there is no space left to write .*: make room and run the same command again"):
        write(path, TENSORS, {"step": 2})
    assert path.read_bytes() == before
    assert [item.name for item in tmp_path.iterdir()] == ["x.safetensors"]


def test_a_directory_that_was_deleted_is_not_made_again(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"its directory is gone"):
        write(tmp_path / "run" / "checkpoints" / "step-00000001.safetensors", {"a": torch.zeros(1)}, {})
    assert not (tmp_path / "run").exists()
