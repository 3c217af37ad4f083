"""ScanObjectNN: 15 classes of scanned objects, 2048 points each, in the three variants that are reported.

obj_bg       main_split/{training,test}_objectdataset.h5                           with what stood behind them
obj_only     main_split_nobg/{training,test}_objectdataset.h5                      without
pb_t50_rs    main_split/{training,test}_objectdataset_augmentedrot_scale75.h5      boxes shifted, turned and scaled: the hardest
"""

from __future__ import annotations

from typing import Literal

from hybridmap.data.clouds.listing import find_place, warn_of_count
from hybridmap.data.clouds.modelnet40 import read_clouds_hdf5
from hybridmap.data.clouds.source import Cloud, CloudSource, finite_points

Variant = Literal["obj_bg", "obj_only", "pb_t50_rs"]

# fmt: off
CLASSES = (
    "bag", "bin", "box", "cabinet", "chair", "desk", "display", "door", "shelf", "table", "bed", "pillow", "sink",
    "sofa", "toilet",
)
# fmt: on
"""The classes by label. Source: Point-BERT, ``data/ScanObjectNN_shape_names.txt``."""
COUNTS = {
    "obj_bg": {"train": 2309, "test": 581},
    "obj_only": {"train": 2309, "test": 581},
    "pb_t50_rs": {"train": 11416, "test": 2882},
}
"""Published numbers of clouds."""


class ScanObjectNN(CloudSource):
    """One variant, held in memory (280 MB at most). The official loaders do not normalise these clouds."""

    normalised = False

    def __init__(self, root: str, split: Literal["train", "test"] = "train", variant: Variant = "pb_t50_rs") -> None:
        """Read the file; ``root`` is the folder that main_split or main_split_nobg lies in, or one above it.

        Raises:
            UserError: if it is missing or broken, or h5py is not installed.
        """
        folder = "main_split_nobg" if variant == "obj_only" else "main_split"
        place = find_place(root, (folder,), ("h5_files", "ScanObjectNN", "ScanObjectNN/h5_files"), "ScanObjectNN")
        ending = "_augmentedrot_scale75" if variant == "pb_t50_rs" else ""
        path = place / folder / f"{'training' if split == 'train' else 'test'}_objectdataset{ending}.h5"
        self.place, self.classes = str(path), CLASSES
        self._clouds, self._labels = read_clouds_hdf5(path, len(CLASSES))
        warn_of_count(f"ScanObjectNN {variant}", split, len(self._clouds), COUNTS[variant][split])

    def __len__(self) -> int:
        return len(self._clouds)

    def read(self, index: int) -> Cloud:
        return Cloud(points=finite_points(self.name(index), self._clouds[index]), label=self.label(index))

    def name(self, index: int) -> str:
        return f"{self.place}, cloud {index}"

    def label(self, index: int) -> int:
        return int(self._labels[index])
