"""Shards from elsewhere: addresses, one fetch for all processes, and what is said when nobody answers."""

from __future__ import annotations

import hashlib
import http.server
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import fsspec
import pytest

from hybridmap.data import remote
from hybridmap.data.remote import expand, fetch, is_remote
from hybridmap.errors import UserError


@pytest.fixture
def served(tmp_path: Path) -> Iterator[tuple[str, Path, list[str]]]:
    """(address, folder behind it, paths that were asked for)."""
    folder = tmp_path / "served"
    folder.mkdir()
    asked: list[str] = []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *words: object) -> None: ...

        def do_GET(self) -> None:
            asked.append(self.path)
            super().do_GET()

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", folder, asked
    server.shutdown()
    server.server_close()
    thread.join()


def test_braces_are_ranges_and_lists() -> None:
    assert expand("a.tar") == ["a.tar"]
    assert expand("a-{008..010}.tar") == ["a-008.tar", "a-009.tar", "a-010.tar"]
    assert expand("{8..10}") == ["8", "9", "10"]
    assert expand("{train,val}-{0..1}.tar") == ["train-0.tar", "train-1.tar", "val-0.tar", "val-1.tar"]


@pytest.mark.parametrize("pattern", ["a-{0..3.tar", "a-0..3}.tar", "a-{3..1}", "a-{a..c}", "a-{}", "a-{5}", "{{0..1}}"])
def test_braces_that_do_not_fit_are_a_sentence(pattern: str) -> None:
    with pytest.raises(UserError, match=r"expected .*000000\.\.000146"):
        expand(pattern)


def test_addresses_are_told_from_paths() -> None:
    assert all(map(is_remote, ("http://a/b.tar", "s3://bucket/c.tar", "file:///d.tar")))
    assert not any(map(is_remote, ("/a/b.tar", "a.tar", "C:/x", "~/x")))


def test_a_file_is_fetched_once(served: tuple[str, Path, list[str]], tmp_path: Path) -> None:
    address, folder, asked = served
    (folder / "a.tar").write_bytes(b"contents")
    targets = [tmp_path / "cache" / "a.tar"] * 4
    threads = [threading.Thread(target=fetch, args=(f"{address}/a.tar", target)) for target in targets]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert targets[0].read_bytes() == b"contents"
    assert asked == ["/a.tar"]


def test_a_wrong_checksum_is_tried_again_and_refused(served: tuple[str, Path, list[str]], tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(remote, "_PAUSE_S", 0.0)
    address, folder, asked = served
    (folder / "a.tar").write_bytes(b"contents")
    with pytest.raises(UserError, match=r"a\.tar cannot be fetched \(its checksum is not"):
        fetch(f"{address}/a.tar", tmp_path / "a.tar", sha256="0" * 64)
    assert len(asked) == 3
    assert not (tmp_path / "a.tar").exists()
    right = hashlib.sha256(b"contents").hexdigest()
    assert fetch(f"{address}/a.tar", tmp_path / "a.tar", sha256=right).read_bytes() == b"contents"


def test_what_is_not_there_is_a_sentence_at_once(served: tuple[str, Path, list[str]], tmp_path: Path) -> None:
    address, _, asked = served
    with pytest.raises(UserError, match=r"gone\.tar cannot be fetched \(.*not found.*\); check the address"):
        fetch(f"{address}/gone.tar", tmp_path / "gone.tar")
    assert len(asked) == 1
    assert not remote.exists(f"{address}/gone.json")


def test_nobody_there_is_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "_PAUSE_S", 0.0)
    with pytest.raises(UserError, match="cannot be fetched"):
        fetch("http://127.0.0.1:9/a.tar", tmp_path / "a.tar")
    with pytest.raises(UserError, match="cannot be reached"):
        remote.exists("http://127.0.0.1:9/dataset.json")
    with pytest.raises(UserError, match=r"nosuch://x/a\.tar cannot be read"):
        fetch("nosuch://x/a.tar", tmp_path / "a.tar")


def test_everything_that_fsspec_knows_is_fetched_too(tmp_path: Path) -> None:
    with fsspec.open("memory://shelf/a.tar", "wb") as file:
        file.write(b"contents")
    assert fetch("memory://shelf/a.tar", tmp_path / "a.tar").read_bytes() == b"contents"
    assert remote.exists("memory://shelf/a.tar")
    assert not remote.exists("memory://shelf/b.tar")
