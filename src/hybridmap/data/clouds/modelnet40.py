"""ModelNet40: 12,311 clouds of 40 classes, in the three forms in which they are passed around.

ModelNet40Text    modelnet40_normal_resampled/<class>/<class>_NNNN.txt       x,y,z,nx,ny,nz, 10,000 lines
                  modelnet40_{train,test}.txt, modelnet40_shape_names.txt    ids; class = id without the last _NNNN
ModelNet40Cache   modelnet40_{train,test}_8192pts_fps.dat                    pickle [clouds (8192, 6), labels], in FPS order
ModelNet40Hdf5    modelnet40_ply_hdf5_2048/ply_data_*.h5                     data (n, 2048, 3), label (n, 1)
                  {train,test}_files.txt, shape_names.txt                    lists of these files; results with them are
                                                                             another protocol
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np

from hybridmap.data.clouds.hdf5 import read_hdf5
from hybridmap.data.clouds.listing import find_place, read_lines, read_table, warn_of_count
from hybridmap.data.clouds.pickles import read_pickle
from hybridmap.data.clouds.source import Cloud, CloudSource, finite_points
from hybridmap.data.decode import read_file
from hybridmap.errors import UserError

Split = Literal["train", "test"]
Form = Literal["auto", "cache", "text", "hdf5"]

# fmt: off
CLASSES = (
    "airplane", "bathtub", "bed", "bench", "bookshelf", "bottle", "bowl", "car", "chair", "cone", "cup", "curtain",
    "desk", "door", "dresser", "flower_pot", "glass_box", "guitar", "keyboard", "lamp", "laptop", "mantel", "monitor",
    "night_stand", "person", "piano", "plant", "radio", "range_hood", "sink", "sofa", "stairs", "stool", "table",
    "tent", "toilet", "tv_stand", "vase", "wardrobe", "xbox",
)
# fmt: on
"""The classes by label: alphabetical, as ``modelnet40_shape_names.txt`` has them."""
COUNTS = {"train": 9843, "test": 2468}
"""Clouds of the official split."""
COUNTS_HDF5 = {"train": 9840, "test": 2468}
"""Clouds of the HDF5 files."""

_TEXT_INSIDE = ("modelnet40_normal_resampled", "ModelNet/modelnet40_normal_resampled")
_HDF5_INSIDE = ("modelnet40_ply_hdf5_2048",)


def open_modelnet40(root: str, split: Split, form: Form = "auto") -> CloudSource:
    """ModelNet40 in the form that is there: the cache before the text, the text before HDF5.

    Raises:
        UserError: if there is none, or not in the form that was asked for.
    """
    if form == "auto":
        marks = (f"modelnet40_{split}_8192pts_fps.dat", f"modelnet40_{split}.txt", f"{split}_files.txt")
        place = find_place(root, marks, (*_TEXT_INSIDE, *_HDF5_INSIDE), "ModelNet40")
        form = next(name for name, mark in zip(("cache", "text", "hdf5"), marks, strict=True) if (place / mark).exists())
    kinds = {"cache": ModelNet40Cache, "text": ModelNet40Text, "hdf5": ModelNet40Hdf5}
    return kinds[form](root, split)


class ModelNet40Text(CloudSource):
    """The tree of text files: all 10,000 points of each, in the order of the split's list."""

    def __init__(self, root: str, split: Split = "train") -> None:
        """Read the names of the classes and the list; ``root`` is modelnet40_normal_resampled or lies above it.

        Raises:
            UserError: if one is missing, or an id is of no class.
        """
        place = find_place(root, (f"modelnet40_{split}.txt", "modelnet40_shape_names.txt"), _TEXT_INSIDE, "ModelNet40")
        self.place = str(place)
        self.classes = tuple(read_lines(place / "modelnet40_shape_names.txt", "ModelNet40's names of classes"))
        path = place / f"modelnet40_{split}.txt"
        self.ids = read_lines(path, "ModelNet40's list of clouds")
        number = {name: label for label, name in enumerate(self.classes)}
        stray = next((one for one in self.ids if one.rpartition("_")[0] not in number), None)
        if stray is not None:
            raise UserError(f"{path} has the line {stray!r}; expected <class>_NNNN with a class of modelnet40_shape_names.txt")
        self._labels = [number[one.rpartition("_")[0]] for one in self.ids]
        warn_of_count("ModelNet40", split, len(self.ids), COUNTS[split])

    def __len__(self) -> int:
        return len(self.ids)

    def read(self, index: int) -> Cloud:
        path = self.name(index)
        return Cloud(points=finite_points(path, read_table(path, read_file(path))), label=self.label(index))

    def name(self, index: int) -> str:
        return f"{self.place}/{self.ids[index].rpartition('_')[0]}/{self.ids[index]}.txt"

    def label(self, index: int) -> int:
        return self._labels[index]


class ModelNet40Cache(CloudSource):
    """The official pickles of 8192 points each, in FPS order from a random start; held in memory, 2 GB for training."""

    def __init__(self, root: str, split: Split = "train") -> None:
        """Read the pickle; ``root`` is the folder that it lies in, or above it, or the file itself.

        Raises:
            UserError: if it is missing, broken, holds anything but numbers, or a label is of no class.
        """
        file = f"modelnet40_{split}_8192pts_fps.dat"
        given = Path(root).expanduser()
        path = given if root and given.is_file() else find_place(root, (file,), _TEXT_INSIDE, "ModelNet40's FPS cache") / file
        self.place = str(path)
        names = path.parent / "modelnet40_shape_names.txt"
        self.classes = tuple(read_lines(names, "ModelNet40's names of classes")) if names.exists() else CLASSES
        content = read_pickle(path, "ModelNet40's FPS cache")
        expected = f"{path} is not ModelNet40's FPS cache; expected a list of clouds and a list of as many labels"
        if not isinstance(content, list | tuple) or len(content) != 2:
            raise UserError(expected)
        clouds, labels = content
        if not isinstance(clouds, list) or not isinstance(labels, list) or len(clouds) != len(labels) or not clouds:
            raise UserError(expected)
        if not all(isinstance(cloud, np.ndarray) for cloud in clouds):
            raise UserError(expected)
        self._clouds, self._labels = clouds, whole_labels(labels, len(self.classes), path)
        warn_of_count("ModelNet40", split, len(clouds), COUNTS[split])

    def __len__(self) -> int:
        return len(self._clouds)

    def read(self, index: int) -> Cloud:
        return Cloud(points=finite_points(self.name(index), self._clouds[index]), label=self.label(index))

    def name(self, index: int) -> str:
        return f"{self.place}, cloud {index}"

    def label(self, index: int) -> int:
        return int(self._labels[index])


class ModelNet40Hdf5(CloudSource):
    """The files of 2048 points each, held in memory, in the order of the split's list."""

    def __init__(self, root: str, split: Split = "train") -> None:
        """Read the files; ``root`` is modelnet40_ply_hdf5_2048 or the folder that it lies in. Of the paths in the lists only
        the last part counts.

        Raises:
            UserError: if a list or a file is missing or broken.
        """
        place = find_place(root, (f"{split}_files.txt", "shape_names.txt"), _HDF5_INSIDE, "ModelNet40 in HDF5")
        self.place = str(place)
        self.classes = tuple(read_lines(place / "shape_names.txt", "ModelNet40's names of classes"))
        listed = read_lines(place / f"{split}_files.txt", "ModelNet40's list of files")
        paths = [place / line.replace("\\", "/").rpartition("/")[2] for line in listed]
        self._names, self._clouds, self._labels = [], [], []
        for path in paths:
            clouds, labels = read_clouds_hdf5(path, len(self.classes))
            self._names += [f"{path}, cloud {row}" for row in range(len(clouds))]
            self._clouds += list(clouds)
            self._labels += labels.tolist()
        warn_of_count("ModelNet40", split, len(self._clouds), COUNTS_HDF5[split])

    def __len__(self) -> int:
        return len(self._clouds)

    def read(self, index: int) -> Cloud:
        return Cloud(points=finite_points(self.name(index), self._clouds[index]), label=self.label(index))

    def name(self, index: int) -> str:
        return self._names[index]

    def label(self, index: int) -> int:
        return self._labels[index]


def read_clouds_hdf5(path: Path, classes: int) -> tuple[np.ndarray, np.ndarray]:
    """(clouds (n, points, 3 or more), labels (n,)) of a file with ``data`` and ``label``.

    Raises:
        UserError: if it is missing or broken, or does not hold as many labels as clouds.
    """
    clouds, labels = read_hdf5(path, ("data", "label"))
    if clouds.ndim != 3 or not len(clouds) or len(labels.reshape(-1)) != len(clouds):
        raise UserError(f"{path} holds data {clouds.shape} and label {labels.shape}; expected (n, points, 3) and (n,)")
    return clouds, whole_labels(list(labels.reshape(-1)), classes, path)


def whole_labels(labels: list, classes: int, path: Path) -> np.ndarray:
    """Labels, each a number or an array of one, as (n,) int64.

    Raises:
        UserError: if one is no number from 0 to ``classes`` - 1.
    """
    try:
        whole = np.array([int(np.asarray(label).item()) for label in labels], dtype=np.int64)
    except (TypeError, ValueError, OverflowError):
        raise UserError(f"{path} has labels that are no whole numbers; fetch it again") from None
    if ((whole < 0) | (whole >= classes)).any():
        raise UserError(f"{path} has labels from {whole.min()} to {whole.max()}; expected 0 to {classes - 1}")
    return whole
