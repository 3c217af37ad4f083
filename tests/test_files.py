"""A file is replaced whole, or not at all."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from hybridmap.errors import UserError
from hybridmap.files import remove_leftovers, replace_file, replacing, replacing_together


def test_a_file_is_replaced_and_its_directories_are_made(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "deeper" / "a.txt"
    assert replace_file(path, "grün").read_bytes() == "grün".encode()
    assert replace_file(str(path), b"new") == path
    assert path.read_text() == "new"
    assert list(path.parent.iterdir()) == [path]


def test_the_old_file_stays_whole_until_the_new_one_is(tmp_path: Path) -> None:
    path = replace_file(tmp_path / "a.txt", "old")
    with replacing(path) as temporary:
        temporary.write_text("half")
        assert path.read_text() == "old"
        assert temporary.parent == path.parent, "on another file system a rename would be a copy"
        temporary.write_text("whole")
    assert path.read_text() == "whole"


def test_a_block_that_fails_changes_nothing(tmp_path: Path) -> None:
    path = replace_file(tmp_path / "a.txt", "old")
    with pytest.raises(KeyError), replacing(path) as temporary:
        temporary.write_text({}["half"])
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_files_that_belong_together_are_replaced_together_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, beside = tmp_path / "deep" / "a.onnx", tmp_path / "deep" / "a.onnx.data"

    def write(content: str) -> None:
        with replacing_together(path) as temporary:
            assert temporary.name == path.name, "the others are found by their names beside it"
            temporary.write_text(content)
            (temporary.parent / beside.name).write_text(content * 2)

    write("old")
    assert (path.read_text(), beside.read_text()) == ("old", "oldold")
    calls = iter([None, OSError(errno.ENOSPC, "full")])

    def full_at_the_second(_: int) -> None:
        if error := next(calls):
            raise error

    monkeypatch.setattr(os, "fsync", full_at_the_second)
    with pytest.raises(UserError, match="no space left"):
        write("new")
    assert (path.read_text(), beside.read_text()) == ("old", "oldold")
    assert sorted(path.parent.iterdir()) == [path, beside]


@pytest.mark.parametrize(
    ("number", "sentence"),
    [
        (errno.ENOSPC, r"there is no space left to write .*a\.txt; what was saved before is intact"),
        (errno.EFBIG, r"cannot write .*a\.txt \(larger than a file may be here\); raise the limit"),
        (errno.ENOENT, r"cannot write .*a\.txt \(its directory is gone\)"),
        (errno.EIO, r"cannot write .*a\.txt \(Input/output error\)"),
    ],
)
def test_a_failed_sync_is_a_sentence_and_leaves_the_file_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, sentence: str
) -> None:
    path = replace_file(tmp_path / "a.txt", "old")

    def fail(_: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(UserError, match=sentence):
        replace_file(path, "new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_the_file_and_the_directory_that_names_it_are_synced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced = []
    monkeypatch.setattr(os, "fsync", lambda number: synced.append(os.fstat(number).st_ino))
    path = replace_file(tmp_path / "a.txt", "new")
    assert synced == [path.stat().st_ino, tmp_path.stat().st_ino]


def test_a_file_has_the_rights_that_the_user_wants(tmp_path: Path) -> None:
    (tmp_path / "usual").touch()
    with replacing(tmp_path / "a.txt") as temporary:
        temporary.chmod(0o600)
    assert (tmp_path / "a.txt").stat().st_mode == (tmp_path / "usual").stat().st_mode


def test_a_path_below_a_file_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UserError, match="cannot write"):
        replace_file(tmp_path / "file" / "a.txt", "new")


def test_leftovers_of_a_killed_process_are_removed(tmp_path: Path) -> None:
    for name in (".a.txt.71.tmp", ".tmpAbC12x", "a.txt", ".lock"):
        (tmp_path / name).write_text("")
    remove_leftovers(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".lock", "a.txt"]
