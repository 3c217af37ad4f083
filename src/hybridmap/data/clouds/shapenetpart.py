"""ShapeNetPart: 16,881 clouds of 16 categories, every point with one of 50 parts.

shapenetcore_partanno_segmentation_benchmark_v0_normal/<synset>/<model>.txt     x y z nx ny nz part
synsetoffset2category.txt                                                       name TAB synset; line order = label
train_test_split/shuffled_{train,val,test}_file_list.json                       ["shape_data/<synset>/<model>", ...]
"""

from __future__ import annotations

from typing import Literal

import numpy as np

from hybridmap.data.base import UnreadableImage
from hybridmap.data.clouds.listing import find_place, read_json_names, read_lines, read_table, warn_of_count
from hybridmap.data.clouds.source import Cloud, CloudSource, finite_points
from hybridmap.data.decode import read_file
from hybridmap.errors import UserError

Split = Literal["train", "val", "trainval", "test"]

_SIZES = {
    "Airplane": 4,
    "Bag": 2,
    "Cap": 2,
    "Car": 4,
    "Chair": 4,
    "Earphone": 3,
    "Guitar": 3,
    "Knife": 2,
    "Lamp": 4,
    "Laptop": 2,
    "Motorbike": 6,
    "Mug": 2,
    "Pistol": 3,
    "Rocket": 3,
    "Skateboard": 3,
    "Table": 3,
}
_ENDS = np.cumsum(list(_SIZES.values()))
PARTS = {name: tuple(range(int(end) - size, int(end))) for (name, size), end in zip(_SIZES.items(), _ENDS, strict=True)}
"""Category -> the numbers of its parts, 0 to 49 over all categories."""
COUNTS = {"train": 12137, "val": 1870, "trainval": 14007, "test": 2874}
"""Published numbers of clouds. The protocol trains on train and val together."""

_NAME = "shapenetcore_partanno_segmentation_benchmark_v0_normal"


class ShapeNetPart(CloudSource):
    """The clouds of one list, or of train and val together, in its order; their numbers of points differ."""

    def __init__(self, root: str, split: Split = "trainval") -> None:
        """Read the categories and the lists; ``root`` is the benchmark's folder or the one that it lies in.

        Raises:
            UserError: if one is missing or broken.
        """
        place = find_place(root, ("synsetoffset2category.txt", "train_test_split"), (_NAME,), "ShapeNetPart")
        self.place = str(place)
        path = place / "synsetoffset2category.txt"
        lines = [line.split() for line in read_lines(path, "ShapeNetPart's categories")]
        broken = next((line for line in lines if len(line) != 2 or line[0] not in PARTS), None)
        if broken is not None:
            raise UserError(f"{path} has the line {' '.join(broken)!r}; expected the name of a category and its synset")
        self.classes = self._categories = tuple(name for name, _ in lines)
        self.parts = tuple(PARTS[name] for name in self._categories)
        number = {synset: label for label, (_, synset) in enumerate(lines)}
        self._models: list[str] = []
        for one in ("train", "val") if split == "trainval" else (split,):
            path = place / "train_test_split" / f"shuffled_{one}_file_list.json"
            for name in read_json_names(path, "ShapeNetPart's list of clouds"):
                pieces = name.split("/")
                if len(pieces) != 3 or pieces[1] not in number or pieces[2] in ("", "..") or "\\" in name:
                    raise UserError(f"{path} names {name!r}; expected shape_data/<synset>/<model> with a known synset")
                self._models.append("/".join(pieces[1:]))
        self._labels = [number[model.partition("/")[0]] for model in self._models]
        warn_of_count("ShapeNetPart", split, len(self._models), COUNTS[split])

    def __len__(self) -> int:
        return len(self._models)

    def read(self, index: int) -> Cloud:
        path, label = self.name(index), self.label(index)
        table = read_table(path, read_file(path))
        points = finite_points(path, table)
        if table.shape[1] != 7:
            raise UnreadableImage(path, f"expected 7 columns (x y z nx ny nz part), got {table.shape[1]}")
        name = self._categories[label]
        allowed = PARTS[name]
        if not np.isin(table[:, 6], allowed).all():
            raise UnreadableImage(path, f"it has parts other than {allowed[0]} to {allowed[-1]}, which are those of {name}")
        return Cloud(points=points, label=label, parts=table[:, 6].astype(np.int64))

    def name(self, index: int) -> str:
        return f"{self.place}/{self._models[index]}.txt"

    def label(self, index: int) -> int:
        return self._labels[index]
