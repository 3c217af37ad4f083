"""What lies at --data.root: directories, shards, addresses; and which part is training, which is test."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import test_parquet as rows
import test_shards as tars
import torch
from test_remote import served  # noqa: F401  (a fixture)

from hybridmap.data import remote
from hybridmap.data.files import Files
from hybridmap.data.folder import ImageFolder
from hybridmap.data.loader import Loader
from hybridmap.data.opening import look, open_source
from hybridmap.data.pack import checksum
from hybridmap.data.parquet import ParquetFiles
from hybridmap.data.shards import TarShards
from hybridmap.data.source import Part
from hybridmap.errors import UserError


def test_directories_of_images_are_files(album: Path) -> None:
    assert isinstance(open_source(str(album)), Files)


def test_shards_below_train_and_val_are_the_splits_and_share_their_classes(tmp_path: Path) -> None:
    tars.write(tmp_path / "train" / "0.tar", tars.labelled(0, 2))
    tars.write(tmp_path / "val" / "0.tar", tars.labelled(0, 3))
    train, test = (open_source(str(tmp_path), split) for split in ("train", "test"))
    assert (len(train), len(test), len(open_source(str(tmp_path)))) == (2, 3, 5)
    assert train.classes == test.classes == ("0", "1", "2")


def test_shards_may_name_their_split_and_the_hub_keeps_them_below_data(tmp_path: Path) -> None:
    for name in ("train-00000-of-00002", "train-00001-of-00002", "validation-00000-of-00001"):
        rows.write(tmp_path / "data" / f"{name}.parquet", range(5))
    train, test = (open_source(str(tmp_path), split) for split in ("train", "test"))
    assert isinstance(train, ParquetFiles)
    assert (len(train), len(test)) == (10, 5)


def test_where_nothing_tells_the_splits_apart_the_same_images_are_held_out(tmp_path: Path) -> None:
    paths = [tars.write(tmp_path / "here" / f"{k}.tar", tars.labelled(30 * k, 30)) for k in range(2)]
    train, test = (open_source(str(tmp_path / "here"), split) for split in ("train", "test"))
    assert isinstance(test, Part)
    assert (len(train), len(test)) == (54, 6)
    held = [test.stable_name(i) for i in range(6)]
    assert not set(held) & {train.stable_name(i) for i in range(54)}
    assert sorted(test.label(i) for i in range(6)) == [0, 0, 1, 1, 2, 2]
    shutil.copytree(paths[0].parent, tmp_path / "there")
    moved = open_source(str(tmp_path / "there"), "test")
    assert [moved.stable_name(i) for i in range(6)] == held
    assert [bytes(moved.read(i)) for i in range(6)] == [bytes(test.read(i)) for i in range(6)]


def test_a_part_of_blocks_has_blocks(tmp_path: Path) -> None:
    rows.write(tmp_path / "a.parquet", range(40), group=8)
    train = open_source(str(tmp_path), "train")
    assert train.blocks is not None
    assert sum(train.blocks) == len(train) == 37
    assert len(train.blocks) == 5


def test_one_shard_or_a_pattern_will_do(tmp_path: Path) -> None:
    for k in range(3):
        tars.write(tmp_path / f"s-{k}.tar", tars.labelled(k, 2))
    assert len(open_source(str(tmp_path / "s-1.tar"))) == 2
    assert len(open_source(f"{tmp_path}/s-{{0..1}}.tar")) == 4


def test_shards_from_elsewhere_are_fetched_when_they_are_asked_for(served, tmp_path: Path, monkeypatch) -> None:  # noqa: F811
    address, folder, asked = served
    for k in range(3):
        tars.write(folder / f"s-{k}.tar", tars.labelled(4 * k, 4))
    shards = {path.name: {"images": 4, "sha256": checksum(path)} for path in folder.glob("*.tar")}
    (folder / "dataset.json").write_text(json.dumps({"classes": ["a", "b", "c"], "shards": shards}))
    config = ImageFolder.Config(root=f"{address}/s-{{0..2}}.tar", size=16, cache=str(tmp_path / "mine"))
    data = config.build()
    assert (len(data), data.classes, data.blocks) == (12, ("a", "b", "c"), (4, 4, 4))
    assert not [path for path in asked if path.endswith(".tar")]
    assert [data.sample(i, 0).label for i in (4, 5)] == [1, 2]
    assert [path for path in asked if path.endswith(".tar")] == ["/s-1.tar"]
    assert list((tmp_path / "mine").rglob("s-1.tar"))
    (folder / "s-2.tar").write_bytes(b"something else")
    monkeypatch.setattr(remote, "_PAUSE_S", 0.0)
    with pytest.raises(UserError, match=r"s-2\.tar cannot be fetched \(its checksum"):
        data.sample(9, 0)


def test_shards_from_elsewhere_without_a_description_are_fetched_at_once(served, own_cache: Path) -> None:  # noqa: F811
    address, folder, asked = served
    tars.write(folder / "s-0.tar", tars.labelled(0, 4))
    source = open_source(f"{address}/s-{{0..0}}.tar")
    assert isinstance(source, TarShards)
    assert (len(source), source.classes, source.blocks) == (4, ("0", "1", "2"), None)
    assert "/s-0.tar" in asked


def test_what_is_wrong_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "both").mkdir()
    tars.write(tmp_path / "both" / "a.tar", tars.labelled(0, 1))
    rows.write(tmp_path / "both" / "a.parquet", range(1))
    with pytest.raises(UserError, match=r"holds both \.tar and \.parquet files"):
        look(str(tmp_path / "both"))
    (tmp_path / "packed").mkdir()
    (tmp_path / "packed" / "a.tar.gz").write_bytes(b"")
    with pytest.raises(UserError, match=r"a\.tar\.gz is compressed, .* unpack it to \.tar first"):
        look(str(tmp_path / "packed"))
    with pytest.raises(UserError, match="names no shards"):
        look("https://127.0.0.1/images/")
    with pytest.raises(UserError, match="cannot be read from elsewhere"):
        look("https://127.0.0.1/a.parquet")
    with pytest.raises(UserError, match=r"does not exist; expected --data\.root"):
        look(str(tmp_path / "nowhere"))


@pytest.mark.parametrize("workers", [0, 1, 2])
@pytest.mark.parametrize("kind", ["tar", "parquet"])
def test_any_reader_resumes_in_the_middle_of_an_epoch_and_any_split_sees_the_same(
    tmp_path: Path, kind: str, workers: int
) -> None:
    if kind == "tar":
        for k in range(3):
            tars.write(tmp_path / f"{k}.tar", tars.labelled(8 * k, 8))
    else:
        rows.write(tmp_path / "a.parquet", range(24), group=3)
    config = ImageFolder.Config(root=str(tmp_path), size=16, workers=workers)
    alone = replace(config, workers=0)
    whole = [batch for step in Loader(alone, batch_size=4, steps=9, seed=2) for batch in step]
    later = [batch for step in Loader(config, batch_size=4, steps=9, seed=2, start_step=4) for batch in step]
    assert torch.equal(torch.cat([b.inputs for b in later]), torch.cat([b.inputs for b in whole[4:]]))
    parts = [
        [b for step in Loader(config, batch_size=4, steps=9, seed=2, rank=rank, world=2) for b in step] for rank in range(2)
    ]
    assert all(torch.equal(torch.cat([a.inputs, b.inputs]), c.inputs) for a, b, c in zip(*parts, whole, strict=True))
    assert sorted(torch.cat([b.labels for b in whole[:6]]).tolist()) == sorted(i % 3 for i in range(24))
