"""The benchmarks' readers on files in their official layouts, whole, missing and broken."""

from __future__ import annotations

import builtins
import json
import logging
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from hybridmap.data.base import UnreadableImage
from hybridmap.data.clouds import (
    CloudSource,
    ModelNet40Cache,
    ModelNet40Hdf5,
    ModelNet40Text,
    ModelNetFewShot,
    ScanObjectNN,
    ShapeNet55,
    ShapeNetPart,
    open_modelnet40,
)
from hybridmap.data.clouds.modelnet40 import CLASSES
from hybridmap.data.clouds.pickles import read_pickle
from hybridmap.data.clouds.shapenetpart import PARTS
from hybridmap.errors import UserError

CLOUD = np.random.default_rng(0).normal(size=(32, 6)).astype(np.float32)


@pytest.fixture(autouse=True)
def _quiet(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING, "hybridmap.data")


# ShapeNet55


@pytest.fixture
def shapenet(tmp_path: Path) -> Path:
    place = tmp_path / "ShapeNet55-34"
    (place / "ShapeNet-55").mkdir(parents=True)
    (place / "shapenet_pc").mkdir()
    lists = {"train": ["04379243-a1-x.npy", "02691156-b2.npy"], "test": ["03001627-c3.npy"]}
    for split, names in lists.items():
        (place / "ShapeNet-55" / f"{split}.txt").write_text("\n".join(names) + "\n\n")
        for name in names:
            np.save(place / "shapenet_pc" / name, CLOUD[:, :3])
    return place


def test_shapenet55_is_read_from_either_folder(shapenet: Path, caplog: pytest.LogCaptureFixture) -> None:
    for root in (shapenet, shapenet.parent):
        source = ShapeNet55(str(root))
        assert len(source) == 2
        assert source.classes == ("02691156", "03001627", "04379243")
        assert [source.label(k) for k in range(2)] == [2, 0]
        assert (source.read(0).points == CLOUD[:, :3]).all()
        assert source.normalised
    assert "ShapeNet55, train: 2 clouds; 41952 are published" in caplog.text
    assert len(ShapeNet55(str(shapenet), "all")) == 3
    assert ShapeNet55(str(shapenet), "test").read(0).label == 1


def test_shapenet55_says_what_is_missing(shapenet: Path) -> None:
    (shapenet / "ShapeNet-55" / "test.txt").unlink()
    with pytest.raises(UserError, match=r"test\.txt, ShapeNet55's list of clouds, does not exist"):
        ShapeNet55(str(shapenet))
    with pytest.raises(UserError, match=r"is not the folder of ShapeNet55-34; expected ShapeNet-55 in it"):
        ShapeNet55(str(shapenet / "shapenet_pc"))
    with pytest.raises(UserError, match="does not exist"):
        ShapeNet55(str(shapenet / "nowhere"))
    with pytest.raises(UserError, match="none was named"):
        ShapeNet55("")


@pytest.mark.parametrize("line", ["../../secret-1.npy", "no synset", "02691156-b2.txt", "-x.npy"])
def test_shapenet55_refuses_lines_that_name_no_cloud(shapenet: Path, line: str) -> None:
    with (shapenet / "ShapeNet-55" / "train.txt").open("a") as file:
        file.write(line + "\n")
    with pytest.raises(UserError, match=r"train\.txt has the line .*; expected <synset>-<model>\.npy"):
        ShapeNet55(str(shapenet))


@pytest.mark.parametrize("content", [b"", b"\n \n", b"\xff\xfe\x00broken\x80"])
def test_a_split_file_without_lines_or_text_is_named(shapenet: Path, content: bytes) -> None:
    (shapenet / "ShapeNet-55" / "train.txt").write_bytes(content)
    with pytest.raises(UserError, match=r"train\.txt, ShapeNet55's list of clouds, is (empty|no text)"):
        ShapeNet55(str(shapenet))


class Evil:
    """Leaves a mark where it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Callable, tuple]:
        return os.mkdir, (str(self.mark),)


def test_clouds_that_cannot_be_read_are_named_with_their_reason(shapenet: Path, tmp_path: Path) -> None:
    source, path = ShapeNet55(str(shapenet)), shapenet / "shapenet_pc" / "04379243-a1-x.npy"
    whole = path.read_bytes()
    huge = io_header("{'descr': '<f4', 'fortran_order': False, 'shape': (1000000000000, 3), }")
    np.save(tmp_path / "evil.npy", np.array([Evil(tmp_path / "mark")]), allow_pickle=True)
    contents: dict[bytes, str] = {
        whole[:-10]: "cut off: 10 bytes are missing",
        huge: "it is cut off",
        b"": "not a whole .npy file",
        b"hello": "not a whole .npy file",
        (tmp_path / "evil.npy").read_bytes(): "holds Python objects",
    }
    arrays: dict[str, np.ndarray] = {
        "3 of its 32 points are not finite": np.where(np.arange(32)[:, None] < 3, np.nan, CLOUD[:, :3]),
        "holds no points": np.zeros((0, 3), np.float32),
        "expected a table of points": np.zeros((5, 2), np.float32),
        "1 of its 2 points are not finite": np.array([[1e300, 0, 0], [0, 0, 0]]),
        "where numbers were expected": np.array([["a", "b", "c"]]),
    }
    for reason, array in arrays.items():
        np.save(path, array)
        contents[path.read_bytes()] = reason
    for content, reason in contents.items():
        path.write_bytes(content)
        with pytest.raises(UnreadableImage) as caught:
            source.read(0)
        assert caught.value.path == str(path)
        assert reason in caught.value.reason
    path.unlink()
    with pytest.raises(UnreadableImage, match="No such file"):
        source.read(0)
    assert not (tmp_path / "mark").exists()


def io_header(text: str) -> bytes:
    padded = text + " " * (118 - len(text) - 1) + "\n"
    return b"\x93NUMPY\x01\x00" + len(padded).to_bytes(2, "little") + padded.encode()


# ModelNet40


ODD = ("flower_pot", "glass_box", "night_stand", "range_hood", "tv_stand", "xbox")


@pytest.fixture
def modelnet(tmp_path: Path) -> Path:
    place = tmp_path / "modelnet40_normal_resampled"
    place.mkdir()
    (place / "modelnet40_shape_names.txt").write_text("\n".join(CLASSES) + "\n")
    ids = [f"{name}_{number:04}" for number, name in enumerate(ODD, 1)]
    (place / "modelnet40_train.txt").write_text("\r\n".join(ids))
    (place / "modelnet40_test.txt").write_text("airplane_0627\n")
    for one in [*ids, "airplane_0627"]:
        folder = place / one.rpartition("_")[0]
        folder.mkdir()
        np.savetxt(folder / f"{one}.txt", CLOUD, delimiter=",", fmt="%.6f")
    return place


def test_modelnet40_text_knows_classes_with_underscores(modelnet: Path, caplog: pytest.LogCaptureFixture) -> None:
    source = ModelNet40Text(str(modelnet))
    assert source.classes == CLASSES
    assert [source.classes[source.label(k)] for k in range(6)] == list(ODD)
    cloud = source.read(0)
    assert cloud.points == pytest.approx(CLOUD[:, :3], abs=1e-6)
    assert cloud.label == CLASSES.index("flower_pot") == 15
    assert source.name(0).endswith("/flower_pot/flower_pot_0001.txt")
    assert "6 clouds; 9843 are published" in caplog.text
    assert len(ModelNet40Text(str(modelnet.parent), "test")) == 1


def test_modelnet40_text_says_what_is_wrong(modelnet: Path) -> None:
    source = ModelNet40Text(str(modelnet))
    path = modelnet / "flower_pot" / "flower_pot_0001.txt"
    for text, reason in (
        ("", "the file is empty"),
        ("1,2,3\n4,5", "no table of numbers"),
        ("a,b,c", "no table of numbers"),
        ("1,2,nan", "1 of its 1 points are not finite"),
        ("1,2\n3,4", "three columns"),
    ):
        path.write_text(text)
        with pytest.raises(UnreadableImage, match=reason):
            source.read(0)
    (modelnet / "modelnet40_train.txt").write_text("flower_pot_0001\nspaceship_0001\n")
    with pytest.raises(UserError, match=r"has the line 'spaceship_0001'; expected <class>_NNNN"):
        ModelNet40Text(str(modelnet))
    (modelnet / "modelnet40_train.txt").unlink()
    with pytest.raises(UserError, match=r"modelnet40_train\.txt, ModelNet40's list of clouds, does not exist"):
        ModelNet40Text(str(modelnet))


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_modelnet40_cache_is_read_whatever_wrote_it(modelnet: Path, protocol: int) -> None:
    clouds, labels = [CLOUD, CLOUD[::-1], np.asfortranarray(CLOUD)], [np.array([k], np.int32) for k in (4, 15, 39)]
    path = modelnet / "modelnet40_train_8192pts_fps.dat"
    path.write_bytes(pickle.dumps([clouds, labels], protocol=protocol))
    for root in (modelnet, modelnet.parent, path):
        source = ModelNet40Cache(str(root))
        assert [source.label(k) for k in range(3)] == [4, 15, 39]
        for k in range(3):
            assert (source.read(k).points == clouds[k][:, :3]).all()
        assert source.classes == CLASSES


def test_modelnet40_cache_refuses_what_is_no_cache(modelnet: Path) -> None:
    path = modelnet / "modelnet40_train_8192pts_fps.dat"
    for content in ([], [[CLOUD], []], [[], []], {"a": 1}, [[CLOUD], [40]], [[CLOUD], ["x"]], [["y"], [1]], "text"):
        path.write_bytes(pickle.dumps(content))
        with pytest.raises(UserError, match=r"expected a list of clouds|labels from 40 to 40|no whole numbers"):
            ModelNet40Cache(str(modelnet))
    path.write_bytes(pickle.dumps([[CLOUD], [1]])[:-100])
    with pytest.raises(UserError, match="is not a whole pickle of arrays; fetch it again"):
        ModelNet40Cache(str(modelnet))
    path.write_bytes(pickle.dumps([[np.full((4, 6), np.nan, np.float32)], [1]]))
    with pytest.raises(UnreadableImage, match="cloud 0: 4 of its 4 points are not finite"):
        ModelNet40Cache(str(modelnet)).read(0)


def test_a_malicious_pickle_is_refused_and_nothing_of_it_runs(modelnet: Path, tmp_path: Path) -> None:
    mark, path = tmp_path / "mark", modelnet / "modelnet40_train_8192pts_fps.dat"
    name = f"{os.mkdir.__module__}.mkdir"
    path.write_bytes(pickle.dumps([[CLOUD], [Evil(mark)]]))
    with pytest.raises(UserError, match=rf"holds {name}, but only arrays, lists and numbers"):
        ModelNet40Cache(str(modelnet))
    folder = tmp_path / "5way10shot"
    folder.mkdir()
    (folder / "0.pkl").write_bytes(pickle.dumps({"train": [(Evil(mark), 0, 0)], "test": []}))
    with pytest.raises(UserError, match="do not trust it"):
        ModelNetFewShot(str(tmp_path))
    assert not mark.exists()


class Disguised:
    """Pickled as a call of its choice."""

    def __init__(self, call: Callable, *arguments: object) -> None:
        self.call, self.arguments = call, arguments

    def __reduce__(self) -> tuple[Callable, tuple]:
        return self.call, self.arguments


@pytest.mark.parametrize(
    "content",
    [
        np.array([{"a": 1}, None], dtype=object),
        np.array([(1, 2.0)], dtype=[("x", "i4"), ("y", "f4")]),
        np.array(["text"]),
        np.array([1j]),
        np.dtype("O"),
        np.ndarray,
        np.array,
        Disguised(eval, "1 + 1"),
        Disguised(getattr, "text", "upper"),
        Disguised(np.load, "file"),
        Disguised(bytes, 10**12),
        {1, 2},
        Path("somewhere"),
    ],
    ids=lambda content: f"{type(content).__name__}",
)
@pytest.mark.parametrize("protocol", [2, 5])
def test_pickles_may_hold_arrays_of_numbers_only(tmp_path: Path, content: Any, protocol: int) -> None:
    (tmp_path / "one.pkl").write_bytes(pickle.dumps([content], protocol=protocol))
    with pytest.raises(UserError, match=r"one\.pkl"):
        read_pickle(tmp_path / "one.pkl", "a test")


def test_types_of_arrays_cannot_be_forged(tmp_path: Path) -> None:
    for code, flags in ((b"O8", 0), (b"f4", 63), (b"V8", 0)):
        # numpy.dtype(code) with a state that lies about it, then an array of it out of raw bytes.
        forged = (
            b"\x80\x02cnumpy\nndarray\n0cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\nK\x00\x85U\x01btR(K\x01K\x01\x85"
            b"cnumpy\ndtype\n(U"
            + bytes([len(code)])
            + code
            + b"I00\nI01\ntR(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK"
            + bytes([flags])
            + b"tbI00\nU\x08AAAAAAAAtb."
        )
        (tmp_path / "one.pkl").write_bytes(forged)
        if code == b"f4":
            # Only its size and order count: two floats do not fit the shape that was claimed, (1,).
            with pytest.raises(UserError, match="not a whole pickle"):
                read_pickle(tmp_path / "one.pkl", "a test")
        else:
            with pytest.raises(UserError, match="an array of the type"):
                read_pickle(tmp_path / "one.pkl", "a test")


def test_plain_values_come_out_of_a_pickle_as_they_went_in(tmp_path: Path) -> None:
    big = np.arange(3, dtype=">f8")
    content = {
        "a": [1, 2.5, "x", None, True, b"y"],
        "b": (np.float32(1.5), np.int64(7)),
        "c": big,
        "d": [big, big],
        "e": np.zeros(()),
    }
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        (tmp_path / "one.pkl").write_bytes(pickle.dumps(content, protocol=protocol))
        found = read_pickle(tmp_path / "one.pkl", "a test")
        assert found["a"] == content["a"]
        assert found["b"] == (1.5, 7)
        assert (found["c"] == big).all()
        assert (found["d"][1] == big).all()
        assert found["e"].shape == ()


def test_arrays_that_python_2_wrote_are_read(tmp_path: Path) -> None:
    written = (
        b"\x80\x02cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\nK\x00\x85U\x01btR(K\x01K\x02\x85"
        b"cnumpy\ndtype\n(U\x02f4I00\nI01\ntR(K\x03U\x01<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tbI00\nU\x08"
        + np.array([1.5, -2], "<f4").tobytes()
        + b"tb."
    )
    (tmp_path / "one.pkl").write_bytes(written)
    assert read_pickle(tmp_path / "one.pkl", "a test").tolist() == [1.5, -2]


def write_h5(path: Path, **arrays: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        for name, array in arrays.items():
            file[name] = array
    return path


@pytest.fixture
def modelnet_h5(tmp_path: Path, drawn: np.random.Generator) -> Path:
    place = tmp_path / "modelnet40_ply_hdf5_2048"
    for name, labels in (("train0", (3, 15)), ("train1", (39,)), ("test0", (1,))):
        data = drawn.normal(size=(len(labels), 20, 3)).astype(np.float32)
        write_h5(place / f"ply_data_{name}.h5", data=data, label=np.array(labels, np.uint8)[:, None], normal=data)
    lines = "\n".join(f"data/modelnet40_ply_hdf5_2048/ply_data_train{k}.h5" for k in range(2))
    (place / "train_files.txt").write_text(lines + "\n")
    (place / "test_files.txt").write_text("somewhere/else/ply_data_test0.h5\n")
    (place / "shape_names.txt").write_text("\n".join(CLASSES))
    return place


def test_modelnet40_hdf5_uses_the_last_part_of_the_paths_in_its_lists(modelnet_h5: Path) -> None:
    source = ModelNet40Hdf5(str(modelnet_h5.parent))
    assert [source.label(k) for k in range(3)] == [3, 15, 39]
    assert source.read(2).points.shape == (20, 3)
    assert source.name(2).endswith("ply_data_train1.h5, cloud 0")
    assert len(ModelNet40Hdf5(str(modelnet_h5), "test")) == 1


def test_modelnet40_opens_in_the_form_that_is_there(modelnet: Path, modelnet_h5: Path) -> None:
    assert isinstance(open_modelnet40(str(modelnet), "train"), ModelNet40Text)
    assert isinstance(open_modelnet40(str(modelnet_h5), "test"), ModelNet40Hdf5)
    (modelnet / "modelnet40_train_8192pts_fps.dat").write_bytes(pickle.dumps([[CLOUD], [1]]))
    assert isinstance(open_modelnet40(str(modelnet), "train"), ModelNet40Cache)
    assert isinstance(open_modelnet40(str(modelnet), "train", "text"), ModelNet40Text)
    with pytest.raises(UserError, match=r"is not the folder of ModelNet40"):
        open_modelnet40(str(modelnet / "xbox"), "train")


# Few-shot


def fold_of(way: int, shot: int) -> dict[str, list[tuple[np.ndarray, int, int]]]:
    originals = [7, 15, 2, 39, 38, 1, 0, 20, 21, 22][:way]
    return {
        split: [(CLOUD, new, original) for new, original in enumerate(originals) for _ in range(count)]
        for split, count in (("train", shot), ("test", 20))
    }


@pytest.mark.parametrize("spelling", ["{}way_{}shot", "{}way{}shot"])
@pytest.mark.parametrize(("way", "shot"), [(5, 10), (10, 20)])
def test_few_shot_folds_are_found_in_both_spellings(
    tmp_path: Path, spelling: str, way: int, shot: int, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "ModelNetFewshot" / spelling.format(way, shot)
    folder.mkdir(parents=True)
    (folder / "3.pkl").write_bytes(pickle.dumps(fold_of(way, shot)))
    for root in (tmp_path, tmp_path / "ModelNetFewshot"):
        for split, count in (("train", way * shot), ("test", way * 20)):
            source = ModelNetFewShot(str(root), split, way=way, shot=shot, fold=3)
            assert len(source) == count
            assert source.classes[:3] == ("car", "flower_pot", "bed")
            assert source.read(count - 1).label == way - 1
            assert (source.read(0).points == CLOUD[:, :3]).all()
    assert not caplog.records, "these are the published counts"


def test_few_shot_says_what_is_missing_or_wrong(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(UserError, match="no folder 5way_10shot or 5way10shot"):
        ModelNetFewShot(str(tmp_path))
    with pytest.raises(UserError, match="does not exist"):
        ModelNetFewShot("")
    folder = tmp_path / "5way_10shot"
    folder.mkdir()
    with pytest.raises(UserError, match=r"has no file 0\.pkl; folds are usually 0 to 9"):
        ModelNetFewShot(str(tmp_path))
    fold = fold_of(5, 10)
    for content, told in (
        ([1], "expected a dict with lists train and test"),
        ({"train": fold["train"]}, "has no list test"),
        (fold | {"test": [(CLOUD, 1)]}, "something else than"),
        (fold | {"test": [(CLOUD, 5, 0)]}, "labels from 5 to 5"),
        (fold | {"test": [(CLOUD, 0, 40)]}, "expected 0 to 39"),
        (fold | {"test": [(CLOUD, 0, 3)]}, "each under one new label"),
        ({"train": fold["train"][:10], "test": fold["test"][:10]}, "expected to hold 5 classes"),
    ):
        (folder / "0.pkl").write_bytes(pickle.dumps(content))
        with pytest.raises(UserError, match=told):
            ModelNetFewShot(str(tmp_path))
    (folder / "0.pkl").write_bytes(pickle.dumps(fold | {"train": fold["train"][1:]}))
    assert len(ModelNetFewShot(str(tmp_path))) == 49
    assert "49 clouds; 50 are published" in caplog.text


# ScanObjectNN


@pytest.fixture
def scans(tmp_path: Path, drawn: np.random.Generator) -> Path:
    for folder in ("main_split", "main_split_nobg"):
        for split, count in (("training", 4), ("test", 2)):
            for ending in ("", "_augmentedrot_scale75"):
                data = (
                    drawn.normal(size=(count, 16, 3)).astype(np.float32) + (5 if "nobg" in folder else 0) + (9 if ending else 0)
                )
                labels, mask = np.arange(count) + 11, np.zeros((count, 16), np.int32)
                write_h5(tmp_path / folder / f"{split}_objectdataset{ending}.h5", data=data, label=labels, mask=mask)
    return tmp_path


def test_scanobjectnn_has_three_variants_which_are_not_normalised(scans: Path, caplog: pytest.LogCaptureFixture) -> None:
    for variant, offset, published in (("obj_bg", 0, 2309), ("obj_only", 5, 2309), ("pb_t50_rs", 9, 11416)):
        source = ScanObjectNN(str(scans), "train", variant)
        assert len(source) == 4
        assert not source.normalised
        assert source.classes[source.read(3).label] == "toilet"
        assert source.read(0).points.mean() == pytest.approx(offset, abs=1)
        assert f"ScanObjectNN {variant}, train: 4 clouds; {published} are published" in caplog.text
    assert len(ScanObjectNN(str(scans), "test")) == 2


def test_a_truncated_h5_is_one_sentence(scans: Path) -> None:
    path = scans / "main_split" / "training_objectdataset.h5"
    whole = path.read_bytes()
    for content in (whole[: len(whole) // 2], whole[:100], b"", b"no hdf5 at all"):
        path.write_bytes(content)
        with pytest.raises(UserError) as caught:
            ScanObjectNN(str(scans), "train", "obj_bg")
        assert str(caught.value) == f"{path} is not a whole HDF5 file; fetch it again"
    path.unlink()
    with pytest.raises(UserError, match=r"training_objectdataset\.h5 does not exist"):
        ScanObjectNN(str(scans), "train", "obj_bg")
    with pytest.raises(UserError, match="is not the folder of ScanObjectNN; expected main_split in it"):
        ScanObjectNN(str(scans / "main_split"))


def test_an_h5_with_other_contents_is_told(scans: Path) -> None:
    path = scans / "main_split" / "test_objectdataset.h5"
    data, label = np.zeros((2, 16, 3), np.float32), np.zeros(2, np.int32)
    for arrays, told in (
        ({"data": data}, "has no array label; expected one, and found data"),
        ({"data": data, "label": label[:1]}, r"expected \(n, points, 3\) and \(n,\)"),
        ({"data": data[0], "label": label}, r"expected \(n, points, 3\)"),
        ({"data": data, "label": label + 15}, "labels from 15 to 15; expected 0 to 14"),
        ({"data": data.astype("S3"), "label": label}, "where numbers were expected"),
    ):
        write_h5(path, **arrays)
        with pytest.raises(UserError, match=told):
            ScanObjectNN(str(scans), "test", "obj_bg")
    data[1, 3] = np.inf
    write_h5(path, data=data, label=label)
    source = ScanObjectNN(str(scans), "test", "obj_bg")
    assert len(source.read(0).points) == 16
    with pytest.raises(UnreadableImage, match="cloud 1: 1 of its 16 points are not finite"):
        source.read(1)


def test_an_h5_cannot_point_at_other_files(scans: Path) -> None:
    path, other = (scans / "main_split" / f"{name}_objectdataset.h5" for name in ("test", "training"))
    with h5py.File(path, "w") as file:
        file["data"] = h5py.ExternalLink(str(other), "data")
        file["label"] = np.zeros(4)
    with pytest.raises(UserError, match=r"data of .* does not lie in the file itself"):
        ScanObjectNN(str(scans), "test", "obj_bg")


def test_without_h5py_the_extra_is_named(scans: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def refuse(name: str, *rest: Any, **named: Any) -> Any:
        if name == "h5py":
            raise ModuleNotFoundError(name)
        return real(name, *rest, **named)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(UserError, match=r"needs h5py, which is not installed; pip install 'hybridmap\[points\]'"):
        ScanObjectNN(str(scans))


# ShapeNetPart


@pytest.fixture
def parted(tmp_path: Path) -> Path:
    place = tmp_path / "shapenetcore_partanno_segmentation_benchmark_v0_normal"
    (place / "train_test_split").mkdir(parents=True)
    (place / "synsetoffset2category.txt").write_text("Airplane\t02691156\nBag\t02773838\nMug\t03797390\n")
    lists = {"train": ["02773838/b1", "03797390/m1"], "val": ["02691156/a1"], "test": ["03797390/m2"]}
    first = {"02691156": 0, "02773838": 4, "03797390": 36}
    for split, models in lists.items():
        listed = json.dumps([f"shape_data/{model}" for model in models])
        (place / "train_test_split" / f"shuffled_{split}_file_list.json").write_text(listed)
        for number, model in enumerate(models):
            synset = model.partition("/")[0]
            (place / synset).mkdir(exist_ok=True)
            rows = np.column_stack([CLOUD[: 20 + number], first[synset] + np.arange(20 + number) % 2])
            np.savetxt(place / f"{model}.txt", rows, fmt="%.6f")
    return place


def test_shapenetpart_has_parts_for_every_point(parted: Path, caplog: pytest.LogCaptureFixture) -> None:
    for root in (parted, parted.parent):
        source = ShapeNetPart(str(root))
        assert len(source) == 3, "training is train and val"
        assert source.classes == ("Airplane", "Bag", "Mug")
        assert source.parts == ((0, 1, 2, 3), (4, 5), (36, 37))
        cloud = source.read(1)
        assert cloud.points == pytest.approx(CLOUD[:21, :3], abs=1e-6)
        assert cloud.label == 2
        assert cloud.parts.tolist() == [36, 37] * 10 + [36]
        assert source.read(2).label == 0
    assert "3 clouds; 14007 are published" in caplog.text
    assert [len(ShapeNetPart(str(parted), split)) for split in ("train", "val", "test")] == [2, 1, 1]


def test_the_fifty_parts_are_numbered_as_published() -> None:
    assert [part for parts in PARTS.values() for part in parts] == list(range(50))
    assert PARTS["Motorbike"] == (30, 31, 32, 33, 34, 35)
    assert PARTS["Earphone"] == (16, 17, 18)
    assert PARTS["Skateboard"] == (44, 45, 46)
    assert PARTS["Table"] == (47, 48, 49)


def test_shapenetpart_says_what_is_wrong(parted: Path) -> None:
    path = parted / "train_test_split" / "shuffled_test_file_list.json"
    for text, told in (
        ("[", "is not whole JSON"),
        ("{}", "is not a list of names"),
        ("[]", "is not a list of names"),
        ("[1]", "is not a list of names"),
        ('["shape_data/1234/x"]', "expected shape_data/<synset>/<model> with a known synset"),
        ('["shape_data/03797390/../../x"]', "expected shape_data"),
    ):
        path.write_text(text)
        with pytest.raises(UserError, match=told):
            ShapeNetPart(str(parted), "test")
    path.unlink()
    with pytest.raises(UserError, match=r"shuffled_test_file_list\.json, .* does not exist"):
        ShapeNetPart(str(parted), "test")
    source = ShapeNetPart(str(parted), "train")
    cloud = parted / "02773838" / "b1.txt"
    for text, told in (
        ("0 0 0 0 0 0 3\n1 1 1 0 0 0 4", "parts other than 4 to 5, which are those of Bag"),
        ("0 0 0 0 0 0 4.5\n1 1 1 0 0 0 4", "parts other than"),
        ("0 0 0 4", "expected 7 columns"),
        ("nan 0 0 0 0 0 4", "not finite"),
    ):
        cloud.write_text(text)
        with pytest.raises(UnreadableImage, match=told):
            source.read(0)
    (parted / "synsetoffset2category.txt").write_text("Airplane\t02691156\nSpaceship\t1\n")
    with pytest.raises(UserError, match="has the line 'Spaceship 1'; expected the name of a category"):
        ShapeNetPart(str(parted))
    (parted / "synsetoffset2category.txt").unlink()
    with pytest.raises(UserError, match="ShapeNetPart's categories, does not exist"):
        ShapeNetPart(str(parted))


def test_every_reader_is_a_source(shapenet: Path, modelnet: Path, parted: Path) -> None:
    for source in (ShapeNet55(str(shapenet)), ModelNet40Text(str(modelnet)), ShapeNetPart(str(parted))):
        assert isinstance(source, CloudSource)
        assert pickle.loads(pickle.dumps(source)).read(0).points.dtype == np.float32
