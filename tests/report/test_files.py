"""A file is replaced whole, or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest

from hybridmap.report.files import replace_file


def test_a_file_is_replaced(tmp_path: Path) -> None:
    assert replace_file(tmp_path / "deep" / "a.txt", "old").read_text() == "old"
    assert replace_file(tmp_path / "deep" / "a.txt", b"new").read_text() == "new"


def test_a_full_disk_leaves_the_old_file_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = replace_file(tmp_path / "a.txt", "old")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space"):
        replace_file(path, "new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]
