"""Where the bytes of images come from: all in which a folder, tar shards and Parquet files differ.

    index ─> read() ─> bytes, label(), name()          and, above it, one data set that decodes, crops and augments

A source holds no position and no random state: any process may ask for any image at any time.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from itertools import accumulate

import numpy as np


class Source(ABC):
    """A finite, ordered set of image files."""

    classes: tuple[str, ...] | None = None
    """Class names by label; None where the images have no labels."""
    blocks: tuple[int, ...] | None = None
    """Lengths of the runs of images that are read together, in their order; None where any image costs the same at any time."""
    place: str
    """The directory or file or address, for messages."""

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def read(self, index: int) -> bytearray:
        """The contents of one image file.

        Raises:
            UnreadableImage: if they cannot be had.
        """

    @abstractmethod
    def name(self, index: int) -> str:
        """What one image is called in messages: its path, or where it lies in a larger file."""

    @abstractmethod
    def label(self, index: int) -> int:
        """The class of one image, -1 where it has none."""

    def unlabelled(self) -> str:
        """The name of an image because of which there are no classes."""
        return self.stable_name(next((index for index in range(len(self)) if self.label(index) < 0), 0))

    @abstractmethod
    def stable_name(self, index: int) -> str:
        """What tells an image from others of the set, wherever the set is moved to."""


class Part(Source):
    """Some images of another source, in its order."""

    def __init__(self, whole: Source, indices: Sequence[int]) -> None:
        self._whole, self._indices = whole, np.asarray(indices, dtype=np.int64)
        self.classes, self.place = whole.classes, whole.place
        if whole.blocks is not None:
            ends = list(accumulate(whole.blocks))
            counts = np.diff(np.searchsorted(self._indices, [0, *ends]))
            self.blocks = tuple(int(count) for count in counts if count)

    def __len__(self) -> int:
        return len(self._indices)

    def read(self, index: int) -> bytearray:
        return self._whole.read(int(self._indices[index]))

    def name(self, index: int) -> str:
        return self._whole.name(int(self._indices[index]))

    def label(self, index: int) -> int:
        return self._whole.label(int(self._indices[index]))

    def unlabelled(self) -> str:
        return self._whole.unlabelled()

    def stable_name(self, index: int) -> str:
        return self._whole.stable_name(int(self._indices[index]))


def divide(source: Source, held_out: float) -> tuple[list[int], list[int]]:
    """(training, test) indices: in each class the same share is held out, chosen by a hash of the images' names."""
    groups: dict[int, list[int]] = {}
    for index in range(len(source)):
        groups.setdefault(source.label(index), []).append(index)
    test: set[int] = set()
    for group in groups.values():
        shuffled = sorted(group, key=lambda index: _digest(source.stable_name(index)))
        test.update(shuffled[: max(1, round(len(group) * held_out))])
    return [index for index in range(len(source)) if index not in test], sorted(test)


def _digest(name: str) -> bytes:
    return hashlib.blake2b(name.encode("utf-8", "surrogateescape")).digest()
