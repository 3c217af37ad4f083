"""ShapeNet55: 52,470 clouds of 8192 points in 55 categories, on which 3D models are pretrained.

ShapeNet55-34/shapenet_pc/<synset>-<model>.npy           float (8192, 3)
ShapeNet55-34/ShapeNet-55/{train,test}.txt               one file name per line
"""

from __future__ import annotations

from typing import Literal

from hybridmap.data.clouds.listing import find_place, read_array, read_lines, warn_of_count
from hybridmap.data.clouds.source import Cloud, CloudSource, finite_points
from hybridmap.errors import UserError

COUNTS = {"train": 41952, "test": 10518, "all": 52470}
"""Published numbers of clouds."""


class ShapeNet55(CloudSource):
    """The clouds of one list or of both, in its order; classes are WordNet's numbers (synsets), sorted."""

    def __init__(self, root: str, split: Literal["train", "test", "all"] = "train") -> None:
        """Read the lists; ``root`` is ShapeNet55-34 or the folder that it lies in.

        Raises:
            UserError: if a list or the folder of the clouds is missing, or a list has lines that name none.
        """
        place = find_place(root, ("ShapeNet-55",), ("ShapeNet55-34",), "ShapeNet55-34")
        if not (place / "shapenet_pc").is_dir():
            raise UserError(f"{place} has no folder shapenet_pc, in which ShapeNet55's clouds lie; unpack it there")
        lists: dict[str, list[str]] = {}
        for name in ("train", "test"):
            path = place / "ShapeNet-55" / f"{name}.txt"
            lists[name] = read_lines(path, "ShapeNet55's list of clouds")
            broken = next((one for one in lists[name] if not _names_a_cloud(one)), None)
            if broken is not None:
                raise UserError(f"{path} has the line {broken!r}; expected <synset>-<model>.npy")
        self.place = str(place)
        self.files = lists["train"] + lists["test"] if split == "all" else lists[split]
        self.classes = tuple(sorted({_synset(name) for name in lists["train"] + lists["test"]}))
        number = {name: label for label, name in enumerate(self.classes)}
        self._labels = [number[_synset(name)] for name in self.files]
        warn_of_count("ShapeNet55", split, len(self.files), COUNTS[split])

    def __len__(self) -> int:
        return len(self.files)

    def read(self, index: int) -> Cloud:
        path = self.name(index)
        return Cloud(points=finite_points(path, read_array(path)), label=self.label(index))

    def name(self, index: int) -> str:
        return f"{self.place}/shapenet_pc/{self.files[index]}"

    def label(self, index: int) -> int:
        return self._labels[index]


def _synset(name: str) -> str:
    return name.partition("-")[0]


def _names_a_cloud(line: str) -> bool:
    return bool(_synset(line)) and "-" in line and line.endswith(".npy") and "/" not in line and "\\" not in line
