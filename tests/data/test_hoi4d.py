"""HOI4D's reader on files in the official layout, whole, missing and broken."""

from __future__ import annotations

import builtins
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from hybridmap.data.base import UnreadableImage
from hybridmap.data.hoi4d import FILES, HOI4D
from hybridmap.errors import UserError


def write(path: Path, count: int = 2, **changes: Any) -> None:
    """A file of ``count`` clips of five frames of eight points; ``changes`` replace arrays, None leaves one out."""
    rng = np.random.default_rng(len(path.stem) + ord(path.stem[-1]))
    arrays = {
        "pcd": rng.normal(size=(count, 5, 8, 3)).astype(np.float32),
        "center": np.zeros((count, 5, 3), np.float32),
        "label": rng.integers(0, 19, (count, 5)),
    }
    with h5py.File(path, "w") as file:
        for name, array in (arrays | changes).items():
            if array is not None:
                file[name] = array


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for names in FILES.values():
        for i, name in enumerate(names):
            write(tmp_path / name, count=i + 1, **({"label": None} if name == "test_wolabel.h5" else {}))
    return tmp_path


def test_clips_come_file_by_file(root: Path) -> None:
    train = HOI4D(root)
    assert len(train) == 1 + 2 + 3 + 4
    points, labels = train.read(4)
    with h5py.File(root / "train3.h5") as file:
        assert np.array_equal(points, file["pcd"][1])  # pyright: ignore
        assert np.array_equal(labels, file["label"][1])  # pyright: ignore
    assert (points.dtype, labels.dtype) == (np.float32, np.int64)
    assert (points.shape, labels.shape) == ((5, 8, 3), (5,))
    assert train.name(4) == f"{root / 'train3.h5'}, clip 1"
    assert len(HOI4D(str(root), "test")) == 3


def test_clips_without_labels_have_minus_one(root: Path) -> None:
    points, labels = HOI4D(root, "unlabelled").read(0)
    assert labels.tolist() == [-1] * len(points)
    assert labels.dtype == np.int64


def test_it_travels_to_other_processes(root: Path) -> None:
    train = HOI4D(root)
    again = pickle.loads(pickle.dumps(train))
    assert all(np.array_equal(a, b) for a, b in zip(again.read(9), train.read(9), strict=True))


def test_labels_may_be_stored_in_any_kind_of_number(root: Path) -> None:
    write(root / "test1.h5", count=1, label=np.array([[0.0, 1, 2, 3, 18]]), pcd=np.ones((1, 5, 8, 3), np.float64))
    points, labels = HOI4D(root, "test").read(0)
    assert labels.tolist() == [0, 1, 2, 3, 18]
    assert points.dtype == np.float32


def test_missing_files_are_named(root: Path) -> None:
    (root / "train2.h5").unlink()
    (root / "train4.h5").unlink()
    with pytest.raises(UserError, match=r"lacks train2.h5, train4.h5; expected the HDF5 files") as caught:
        HOI4D(root)
    assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match="lacks"):
        HOI4D(root / "nowhere", "test")
    with pytest.raises(UserError, match="has the splits train, test, unlabelled, got 'val'"):
        HOI4D(root, "val")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pcd": None}, "has no array pcd; expected one, and found center, label"),
        ({"label": None}, "has no array label"),
        ({"pcd": np.zeros((2, 5, 8), np.float32)}, r"must be \(clips, frames, points, 3\), got \(2, 5, 8\)"),
        ({"pcd": np.zeros((2, 5, 0, 3), np.float32)}, r"must be \(clips, frames, points, 3\)"),
        ({"label": np.zeros((2, 4), np.int64)}, r"must be \(2, 5\), one for every frame, got \(2, 4\)"),
        ({"label": np.full((2, 5), b"a")}, "where numbers were expected"),
    ],
)
def test_files_of_another_layout_are_refused_in_one_sentence(root: Path, changes: dict[str, Any], message: str) -> None:
    write(root / "test2.h5", **changes)
    with pytest.raises(UserError, match=message) as caught:
        HOI4D(root, "test")
    assert "\n" not in str(caught.value)


def test_files_that_are_cut_off_or_empty_are_refused(root: Path) -> None:
    content = (root / "test1.h5").read_bytes()
    for broken in (b"", b"no HDF5", content[:100], content[: len(content) // 2]):
        (root / "test1.h5").write_bytes(broken)
        with pytest.raises(UserError, match="not a whole HDF5 file"):
            HOI4D(root, "test")
    for name in FILES["test"]:
        write(root / name, count=0)
    with pytest.raises(UserError, match="hold no clips"):
        HOI4D(root, "test")


def linked(file: h5py.File, train: Path) -> None:
    file["pcd"] = h5py.ExternalLink(str(train), "/pcd")


def virtual(file: h5py.File, train: Path) -> None:
    layout = h5py.VirtualLayout((1, 5, 8, 3), np.float32)
    layout[:] = h5py.VirtualSource(train, "pcd", (1, 5, 8, 3))
    file.create_virtual_dataset("pcd", layout)


def outside(file: h5py.File, train: Path) -> None:
    file.create_dataset("pcd", (1, 5, 8, 3), np.float32, external=[(str(train), 0, 480)])


@pytest.mark.parametrize("place", [linked, virtual, outside])
def test_arrays_that_lie_elsewhere_are_not_followed(root: Path, place: Callable[[h5py.File, Path], None]) -> None:
    write(root / "test1.h5", count=1, pcd=None)
    with h5py.File(root / "test1.h5", "a") as file:
        place(file, root / "train1.h5")
    with pytest.raises(UserError, match="does not lie in the file itself"):
        HOI4D(root, "test")


@pytest.mark.parametrize("label", [-1, 19])
def test_clips_that_are_damaged_are_named(root: Path, label: int) -> None:
    points = np.zeros((1, 5, 8, 3), np.float32)
    points[0, 2, 3] = np.nan
    write(root / "test1.h5", count=1, pcd=points)
    write(root / "test2.h5", count=2, label=np.full((2, 5), label))
    test = HOI4D(root, "test")
    with pytest.raises(UnreadableImage, match=r"test1.h5, clip 0: some of its points are not finite"):
        test.read(0)
    with pytest.raises(UnreadableImage, match=r"test2.h5, clip 1: some of its labels are no whole numbers from 0 to 18"):
        test.read(2)
    (root / "test1.h5").write_bytes(b"")
    with pytest.raises(UnreadableImage, match="damaged"):
        test.read(0)


def test_without_h5py_the_message_says_what_to_install(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    imported = builtins.__import__

    def without(name: str, *args: Any, **kwargs: Any) -> Any:
        if name == "h5py":
            raise ModuleNotFoundError("No module named 'h5py'", name="h5py")
        return imported(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(UserError, match=r"needs h5py, which is not installed; pip install 'hybridmap\[points\]'"):
        HOI4D(root)
