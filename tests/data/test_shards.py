"""Tar shards: what WebDataset writes is read, and what is wrong with a shard is said."""

from __future__ import annotations

import io
import json
import os
import pickle
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
import webdataset
from PIL import Image

from hybridmap.data import shards
from hybridmap.data.base import UnreadableImage
from hybridmap.data.folder import ImageFolder
from hybridmap.data.loader import Loader
from hybridmap.data.shards import TarShards, read_index
from hybridmap.errors import UserError


def jpeg(number: int, size: tuple[int, int] = (32, 24)) -> bytes:
    file = io.BytesIO()
    drawn = np.random.default_rng(number)
    Image.fromarray(drawn.integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)).save(file, "JPEG")
    return file.getvalue()


def write(path: Path, members: dict[str, bytes]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, data in members.items():
            header = tarfile.TarInfo(name)
            header.size = len(data)
            tar.addfile(header, io.BytesIO(data))
    return path


def labelled(first: int, count: int) -> dict[str, bytes]:
    return {
        name: data
        for i in range(first, first + count)
        for name, data in ((f"{i:06}.jpg", jpeg(i)), (f"{i:06}.cls", str(i % 3).encode()))
    }


def test_what_webdataset_writes_is_read_with_its_labels(tmp_path: Path) -> None:
    with webdataset.ShardWriter(f"file:{tmp_path}/shard-%06d.tar", maxcount=4, verbose=0) as writer:
        for i in range(10):
            writer.write({"__key__": f"sample{i:05}", "jpg": jpeg(i), "cls": i % 3})
    source = TarShards(sorted(map(str, tmp_path.glob("*.tar"))))
    assert len(source) == 10
    assert [bytes(source.read(i)) for i in range(10)] == [jpeg(i) for i in range(10)]
    assert [source.label(i) for i in range(10)] == [i % 3 for i in range(10)]
    assert source.classes == ("0", "1", "2")
    assert source.name(5) == f"{tmp_path}/shard-000001.tar/sample00005.jpg"
    assert source.blocks is None


def test_labels_may_stand_in_json_or_be_directories_or_be_missing(tmp_path: Path) -> None:
    notes = write(
        tmp_path / "a.tar", {"1.jpg": jpeg(1), "1.json": b'{"label": 2, "x": []}', "2.json": b'{"cls": 0}', "2.PNG": jpeg(2)}
    )
    assert (source := TarShards([str(notes)])).classes == ("0", "1", "2")
    assert [source.label(i) for i in range(2)] == [2, 0]
    folders = write(tmp_path / "b.tar", {"dog/1.jpg": jpeg(1), "./cat/2.jpg": jpeg(2), "dog/3.jpg": jpeg(3)})
    assert (source := TarShards([str(folders)])).classes == ("cat", "dog")
    assert [source.label(i) for i in range(3)] == [1, 0, 1]
    bare = write(tmp_path / "c.tar", {"1.jpg": jpeg(1), "2.jpg": jpeg(2), "2.cls": b"1"})
    assert (source := TarShards([str(bare)])).classes is None
    assert [source.label(i) for i in range(2)] == [-1, -1]
    assert source.unlabelled() == "/c.tar/1.jpg"


@pytest.mark.parametrize("note", [b"", b"cat", b"-1", b"true", b'{"label": "x"}', b"1.5"])
def test_notes_that_are_no_class_number_are_no_label(tmp_path: Path, note: bytes) -> None:
    assert read_index(str(write(tmp_path / "a.tar", {"1.jpg": jpeg(1), "1.cls": note}))).labels.tolist() == [-1]


def test_one_image_per_sample_and_other_members_are_passed_over(tmp_path: Path) -> None:
    members = {"1.jpg": jpeg(1), "1.seg.png": jpeg(2), "1.txt": b"a dog", "2.cls": b"0", "x" * 150 + "/3.jpg": jpeg(3)}
    index = read_index(str(write(tmp_path / "a.tar", members)))
    assert index.names.tolist() == [b"1.jpg", b"x" * 150 + b"/3.jpg"]


def test_an_index_is_made_once_and_again_when_the_shard_changes(tmp_path: Path, own_cache: Path, monkeypatch) -> None:
    path = write(tmp_path / "a.tar", labelled(0, 3))
    first = TarShards([str(path)])
    assert len(list(own_cache.rglob("*.npz"))) == 1
    with monkeypatch.context() as patched:
        patched.setattr(shards, "read_index", lambda path: pytest.fail("it was in the cache"))
        again = TarShards([str(path)])
    assert [bytes(again.read(i)) for i in range(3)] == [bytes(first.read(i)) for i in range(3)]
    assert [again.label(i) for i in range(3)] == [0, 1, 2]
    write(path, labelled(0, 5))
    assert len(TarShards([str(path)])) == 5
    for kept in own_cache.rglob("*.npz"):
        kept.write_bytes(b"damaged")
    assert len(TarShards([str(path)])) == 5


def test_a_cache_that_cannot_be_written_to_costs_time_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert len(TarShards([str(write(tmp_path / "a.tar", labelled(0, 3)))])) == 3


def test_a_shard_cut_off_or_of_something_else_is_a_sentence(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tar", {"1.jpg": jpeg(1), "2.jpg": jpeg(2, (200, 200))})
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=r"a\.tar is not a whole tar file .* fetch or pack it again"):
        TarShards([str(path)])
    path.write_text("no tar file at all" * 100)
    with pytest.raises(UserError, match="is not a whole tar file"):
        TarShards([str(path)])
    with pytest.raises(UserError, match=r"the shard .*b\.tar cannot be read"):
        TarShards([str(tmp_path / "b.tar")])
    with pytest.raises(UserError, match="no images in the 1 shards"):
        TarShards([str(write(tmp_path / "c.tar", {"readme.txt": b"nothing"}))])


def test_a_shard_that_shrinks_later_costs_its_images_only(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tar", labelled(0, 3))
    source = TarShards([str(path)])
    os.truncate(path, 1000)
    with pytest.raises(UnreadableImage, match=r"a\.tar/000001\.jpg: its shard ends after"):
        source.read(1)


def test_few_shards_are_open_at_a_time_and_none_travels_to_another_process(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(shards, "_OPEN_FILES", 2)
    source = TarShards([str(write(tmp_path / f"{k}.tar", labelled(k, 1))) for k in range(5)])
    before = len(os.listdir("/proc/self/fd")) if os.path.exists("/proc/self/fd") else 0
    for i in (0, 1, 2, 3, 4, 0, 4):
        assert bytes(source.read(i)) == jpeg(i)
    if before:
        assert len(os.listdir("/proc/self/fd")) <= before + 2
    twin = pickle.loads(pickle.dumps(source))
    assert bytes(twin.read(3)) == jpeg(3)


def test_a_damaged_description_is_a_sentence(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tar", labelled(0, 3))
    for content in ("", "[]", json.dumps({"shards": 3})):
        (tmp_path / "dataset.json").write_text(content)
        with pytest.raises(UserError, match=r"dataset\.json is not the description of packed shards"):
            TarShards([str(path)])


@pytest.mark.parametrize("workers", [0, 2])
def test_training_batches_are_the_same_from_shards_as_from_files(tmp_path: Path, workers: int) -> None:
    (tmp_path / "files").mkdir()
    for i in range(12):
        (tmp_path / "files" / f"{i:06}.jpg").write_bytes(jpeg(i))
    for k in range(3):
        write(tmp_path / "shards" / f"{k}.tar", labelled(4 * k, 4))
    runs = []
    for root, used in (("files", 0), ("shards", workers)):
        config = ImageFolder.Config(root=str(tmp_path / root), size=16, workers=used)
        batches = [batch for step in Loader(config, batch_size=4, steps=5, seed=1) for batch in step]
        runs.append(torch.cat([batch.inputs for batch in batches]))
    assert torch.equal(*runs)
