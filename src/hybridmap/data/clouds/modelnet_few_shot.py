"""Few-shot ModelNet40: ten draws of w classes, with s training clouds and 20 test clouds of each.

ModelNetFewshot/<w>way_<s>shot/<fold>.pkl     (or <w>way<s>shot) pickle {train, test}: [(float (8192, 6), new, old label)]
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import numpy as np

from hybridmap.data.clouds.listing import warn_of_count
from hybridmap.data.clouds.modelnet40 import CLASSES, whole_labels
from hybridmap.data.clouds.pickles import read_pickle
from hybridmap.data.clouds.source import Cloud, CloudSource, finite_points
from hybridmap.errors import UserError

TEST_SHOTS = 20
"""Test clouds per class."""


class ModelNetFewShot(CloudSource):
    """The training or test clouds of one fold; labels are the fold's own, 0 to ``way`` - 1."""

    def __init__(
        self, root: str, split: Literal["train", "test"] = "train", *, way: int = 5, shot: int = 10, fold: int = 0
    ) -> None:
        """Read the pickle; ``root`` is ModelNetFewshot or the folder that it lies in.

        Raises:
            UserError: if it is missing, broken, or holds anything but such lists.
        """
        path = _file_of(root, way, shot, fold)
        self.place = str(path)
        content = read_pickle(path, "a fold of few-shot ModelNet40")
        if not isinstance(content, dict):
            raise UserError(f"{path} is no fold of few-shot ModelNet40; expected a dict with lists train and test")
        parts = {name: _entries(content.get(name), name, path) for name in ("train", "test")}
        new = {name: whole_labels([one[1] for one in entries], way, path) for name, entries in parts.items()}
        old = {name: whole_labels([one[2] for one in entries], len(CLASSES), path) for name, entries in parts.items()}
        pairs = {(int(n), int(o)) for name in parts for n, o in zip(new[name], old[name], strict=True)}
        names = {number: CLASSES[original] for number, original in pairs}
        if len(pairs) != len(names) or set(names) != set(range(way)):
            raise UserError(f"{path} was expected to hold {way} classes, each under one new label, but it holds {len(pairs)}")
        self.classes = tuple(names[number] for number in range(way))
        self._clouds, self._labels = [one[0] for one in parts[split]], new[split]
        expected = way * (shot if split == "train" else TEST_SHOTS)
        warn_of_count(f"ModelNet40 {way}-way {shot}-shot", f"fold {fold}, {split}", len(self._clouds), expected)

    def __len__(self) -> int:
        return len(self._clouds)

    def read(self, index: int) -> Cloud:
        return Cloud(points=finite_points(self.name(index), self._clouds[index]), label=self.label(index))

    def name(self, index: int) -> str:
        return f"{self.place}, cloud {index}"

    def label(self, index: int) -> int:
        return int(self._labels[index])


def _file_of(root: str, way: int, shot: int, fold: int) -> Path:
    """The file of a fold, in whichever of the two spellings its folder has."""
    if not root or not Path(root).expanduser().is_dir():
        raise UserError(f"the folder {root or '(none)'} does not exist; expected --data.root to name ModelNetFewshot")
    above = Path(root).expanduser()
    for place in (above, above / "ModelNetFewshot", above / "ModelNet" / "ModelNetFewshot"):
        for name in (f"{way}way_{shot}shot", f"{way}way{shot}shot"):
            if (place / name).is_dir():
                if not (place / name / f"{fold}.pkl").is_file():
                    raise UserError(f"{place / name} has no file {fold}.pkl; folds are usually 0 to 9")
                return place / name / f"{fold}.pkl"
    raise UserError(
        f"{root} has no folder {way}way_{shot}shot or {way}way{shot}shot; expected --data.root to name ModelNetFewshot"
    )


def _entries(entries: Any, name: str, path: Path) -> list[tuple]:
    """A list of (cloud, new label, old label)."""
    if not isinstance(entries, list) or not entries:
        raise UserError(f"{path} has no list {name} of clouds; expected {{train, test}}, each a list of (cloud, label, label)")
    for entry in entries:
        if not isinstance(entry, tuple | list) or len(entry) != 3 or not isinstance(entry[0], np.ndarray):
            raise UserError(f"{path} holds something else than (cloud, label, original label) in its list {name}")
    return [tuple(entry) for entry in entries]
