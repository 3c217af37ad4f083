"""Packing: smaller, in shards, with equal bytes however it was done; and checking what is there."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import webdataset
from PIL import Image

from hybridmap.cli import main
from hybridmap.data import check, pack
from hybridmap.data.files import Files
from hybridmap.data.opening import open_source
from hybridmap.data.pack import Packing
from hybridmap.errors import UserError


def packed(root: Path, out: Path, *flags: str) -> dict:
    assert main(["data", "pack", str(root), "--out", str(out), "--jobs", "1", *flags]) == 0
    return json.loads((out / "dataset.json").read_text())


def opened(data: bytes) -> Image.Image:
    return Image.open(io.BytesIO(data))


def contents(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(out.iterdir())}


def test_small_images_are_copied_and_large_ones_become_smaller(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    drawn = np.random.default_rng(0)
    sizes = {"small.png": (20, 30), "exact.jpg": (40, 16), "wide.jpg": (80, 32), "tall.webp": (40, 100), "huge.jpg": (700, 500)}
    for name, size in sizes.items():
        Image.fromarray(drawn.integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)).save(tmp_path / "photos" / name)
    packed(tmp_path / "photos", tmp_path / "out", "--short-side", "16")
    source, before = open_source(str(tmp_path / "out")), Files(str(tmp_path / "photos"))
    found = [bytes(source.read(i)) for i in range(5)]
    assert [before.stable_name(i) for i in range(5) if bytes(before.read(i)) in found] == ["exact.jpg"]
    assert sorted(opened(data).size for data in found) == [(16, 24), (16, 40), (22, 16), (40, 16), (40, 16)]
    assert {source.name(i).rpartition(".")[2] for i in range(5)} == {"jpg"}


def test_the_picture_stays_the_same(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    rows, columns = np.mgrid[0:400, 0:600]
    smooth = np.stack([rows // 2, columns // 3, (rows + columns) // 4], -1).astype(np.uint8)
    Image.fromarray(smooth).save(tmp_path / "photos" / "a.png")
    packed(tmp_path / "photos", tmp_path / "out", "--short-side", "100", "--quality", "95")
    source = open_source(str(tmp_path / "out"))
    small = np.asarray(opened(bytes(source.read(0))), dtype=float)
    expected = np.asarray(Image.fromarray(smooth).resize((150, 100), Image.Resampling.BICUBIC), dtype=float)
    assert small.shape == (100, 150, 3)
    assert np.abs(small - expected).mean() < 1.5


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # the witness leaves its files open
def test_shards_are_mixed_labelled_and_readable_by_webdataset(album: Path, tmp_path: Path) -> None:
    told = packed(album, tmp_path / "out", "--images-per-shard", "12")
    assert told["classes"] == ["ant", "bee", "cow"]
    assert [shard["images"] for _, shard in sorted(told["shards"].items())] == [12, 12, 6]
    urls = [f"file:{path}" for path in sorted((tmp_path / "out").glob("*.tar"))]
    theirs = list(webdataset.WebDataset(urls, shardshuffle=False))
    source = open_source(str(tmp_path / "out"))
    assert [sample["png"] for sample in theirs] == [bytes(source.read(i)) for i in range(30)]
    assert [int(sample["cls"]) for sample in theirs] == [source.label(i) for i in range(30)]
    assert len({source.label(i) for i in range(6)}) > 1
    files = Files(str(album))
    originals = {bytes(files.read(i)): files.label(i) for i in range(30)}
    assert all(originals[bytes(source.read(i))] == source.label(i) for i in range(30))


def test_splits_stay_apart(album: Path, tmp_path: Path) -> None:
    (tmp_path / "root").mkdir()
    shutil.copytree(album, tmp_path / "root" / "train")
    shutil.copytree(album / "bee", tmp_path / "root" / "val" / "bee")
    told = packed(tmp_path / "root", tmp_path / "out")
    assert sorted(told["shards"]) == ["train-000000.tar", "val-000000.tar"]
    train, test = (open_source(str(tmp_path / "out"), split) for split in ("train", "test"))
    assert (len(train), len(test)) == (30, 10)
    assert {test.label(i) for i in range(10)} == {1}


def test_packing_again_gives_equal_bytes_and_an_interrupted_pack_goes_on(album: Path, tmp_path: Path, capsys) -> None:
    packed(album, tmp_path / "once", "--images-per-shard", "8")
    packed(album, tmp_path / "twice", "--images-per-shard", "8")
    assert contents(tmp_path / "once") == contents(tmp_path / "twice")
    out, settings = tmp_path / "third", Packing(images_per_shard=8)
    jobs, _ = pack.plan(str(album), out, settings)
    for job in jobs[:3]:
        pack.write_shard(job)
    Path(jobs[1].target).write_bytes(b"torn")
    (out / ".shard-000003.tar.1.tmp").write_bytes(b"half")
    capsys.readouterr()
    packed(album, out, "--images-per-shard", "8")
    assert "2 of 4 shards are there already" in capsys.readouterr().out
    assert contents(out) == contents(tmp_path / "once")
    packed(album, out, "--images-per-shard", "8")
    assert "4 of 4 shards are there already" in capsys.readouterr().out
    assert contents(out) == contents(tmp_path / "once")


@pytest.mark.slow
def test_two_processes_write_what_one_does(album: Path, tmp_path: Path) -> None:
    packed(album, tmp_path / "one", "--images-per-shard", "8")
    packed(album, tmp_path / "two", "--images-per-shard", "8", "--jobs", "2")
    assert contents(tmp_path / "one") == contents(tmp_path / "two")


def test_broken_images_are_left_out_and_named(album: Path, tmp_path: Path, capsys) -> None:
    (album / "bee" / "01.png").write_bytes(b"no image")
    told = packed(album, tmp_path / "out")
    assert list(told["broken"]) == ["bee/01.png"]
    assert "1 images cannot be read and were left out" in capsys.readouterr().out
    assert sum(shard["images"] for shard in told["shards"].values()) == 29
    assert packed(album, tmp_path / "out")["broken"] == told["broken"]


def test_what_is_wrong_is_a_sentence(album: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    packed(album, tmp_path / "out")
    assert main(["data", "pack", str(album), "--out", str(tmp_path / "out"), "--quality", "80"]) == 2
    assert "holds a pack of other images or settings (quality differs)" in capsys.readouterr().err
    assert main(["data", "pack", str(album), "--out", str(album)]) == 2
    assert "is not empty and holds no pack" in capsys.readouterr().err
    assert main(["data", "pick", str(album)]) == 2
    assert "can pack and check, not pick" in capsys.readouterr().err
    assert main(["data", "pack", str(tmp_path / "nowhere"), "--out", str(tmp_path / "x")]) == 2
    assert "does not exist" in capsys.readouterr().err
    for settings in ({"quality": 0}, {"short_side": 0}, {"images_per_shard": 0}):
        with pytest.raises(UserError, match="must"):
            Packing(**settings)


def checked(root: Path, *flags: str) -> tuple[int, dict]:
    file = root.parent / "found.json"
    code = main(["data", "check", str(root), "--json", str(file), "--jobs", "1", *flags])
    return code, json.loads(file.read_text())


def test_a_clean_set_has_nothing_to_mend(album: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, found = checked(album)
    assert code == 0
    assert found["classes"] == {"ant": 10, "bee": 10, "cow": 10}
    assert found["sides"] == [24, 24, 24]
    assert "nothing to mend" in capsys.readouterr().out


def test_broken_images_copies_and_wrong_labels_are_found(album: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (album / "ant" / "00.png").write_bytes(b"no image")
    shutil.copy(album / "bee" / "01.png", album / "bee" / "copy.png")
    Image.open(album / "cow" / "02.png").save(album / "ant" / "same pixels.bmp")
    code, found = checked(album)
    assert code == 1
    assert list(found["broken"]) == [f"{album}/ant/00.png"]
    assert found["copies"] == [[f"{album}/bee/01.png", f"{album}/bee/copy.png"]]
    assert found["torn"] == [[f"{album}/ant/same pixels.bmp", f"{album}/cow/02.png"]]
    shown = capsys.readouterr().out
    assert "the same pixels in several classes: 1" in shown


def test_images_in_training_and_test_are_found(album: Path, tmp_path: Path) -> None:
    (tmp_path / "root").mkdir()
    shutil.copytree(album, tmp_path / "root" / "train")
    (tmp_path / "root" / "val" / "ant").mkdir(parents=True)
    shutil.copy(album / "ant" / "03.png", tmp_path / "root" / "val" / "ant" / "9.png")
    code, found = checked(tmp_path / "root")
    assert code == 1
    assert [len(group) for group in found["leaked"]] == [2]


def test_a_packed_shard_that_changed_is_found(album: Path, tmp_path: Path) -> None:
    packed(album, tmp_path / "out")
    path = tmp_path / "out" / "shard-000000.tar"
    data = bytearray(path.read_bytes())
    data[-700] ^= 1  # in the padding, where no image notices
    path.write_bytes(data)
    code, found = checked(tmp_path / "out")
    assert code == 1
    assert list(found["broken"]) == [str(path)]


def test_pixels_and_not_files_decide(album: Path) -> None:
    looks = check.read(check.Stretch(root=str(album), split="all", first=0, last=2))
    assert len({look.pixels for look in looks}) == 2
    assert looks[0].size == (24, 32)
    assert torch.equal(*(torch.tensor(list(look.size)) for look in looks))
