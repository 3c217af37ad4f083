"""Everything at one place read once: what is broken, what is there twice, and how large the images are."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from hybridmap.data.base import UnreadableImage
from hybridmap.data.decode import decode
from hybridmap.data.opening import Split, look, open_source
from hybridmap.data.pack import checksum
from hybridmap.data.shards import DESCRIPTION, read_description
from hybridmap.data.source import Source


@dataclass(frozen=True, kw_only=True)
class Stretch:
    """Images ``first`` to ``last`` (not included) of a split, to be read."""

    root: str
    split: Split
    first: int
    last: int


@dataclass(frozen=True, kw_only=True)
class Look:
    """What was seen of one image."""

    name: str
    split: Split
    label: int
    broken: str = ""
    """Why it cannot be read; empty if it can."""
    pixels: bytes = b""
    """Hash of its decoded pixels and their shape."""
    size: tuple[int, int] = (0, 0)
    """(height, width), upright."""


@dataclass(frozen=True, kw_only=True)
class Findings:
    """All that was found."""

    images: int
    broken: dict[str, str] = field(default_factory=dict)
    """Image or shard -> what is wrong with it."""
    copies: list[tuple[str, ...]] = field(default_factory=list)
    """Images with the same pixels, in one class and one split."""
    torn: list[tuple[str, ...]] = field(default_factory=list)
    """Images with the same pixels in different classes: one of the labels is wrong."""
    leaked: list[tuple[str, ...]] = field(default_factory=list)
    """Images with the same pixels in training and in test: an exam on them measures memory."""
    sides: tuple[int, int, int] = (0, 0, 0)
    """Smallest, median and largest short side in pixels."""
    classes: dict[str, int] = field(default_factory=dict)
    """Class -> images."""

    @property
    def clean(self) -> bool:
        """Whether there is nothing to mend."""
        return not (self.broken or self.copies or self.torn or self.leaked)


@cache
def _source(root: str, split: Split) -> Source:
    """Opened once in every process."""
    return open_source(root, split)


def stretches(root: str, length: int = 256) -> list[Stretch]:
    """All images at ``root``, in pieces.

    Raises:
        UserError: if there are none.
    """
    splits: tuple[Split, ...] = ("train", "test") if look(root).parts else ("all",)
    return [
        Stretch(root=root, split=split, first=first, last=min(first + length, total))
        for split in splits
        for total in [len(_source(root, split))]
        for first in range(0, total, length)
    ]


def read(stretch: Stretch) -> list[Look]:
    """Read and decode every image of a stretch."""
    source, seen = _source(stretch.root, stretch.split), []
    for index in range(stretch.first, stretch.last):
        told: dict[str, Any] = {"name": source.name(index), "split": stretch.split, "label": source.label(index)}
        try:
            image = decode(told["name"], source.read(index), lambda full: 1.0).image.contiguous()
        except UnreadableImage as error:
            seen.append(Look(**told, broken=error.reason))
            continue
        shape = bytes(str(tuple(image.shape)), "ascii")
        pixels = hashlib.blake2b(image.numpy().data, digest_size=16, key=shape).digest()
        seen.append(Look(**told, pixels=pixels, size=(image.shape[1], image.shape[2])))
    return seen


def conclude(root: str, looks: Iterable[Look]) -> Findings:
    """What follows from all that was seen, and from the checksums of packed shards."""
    seen = list(looks)
    whole = [one for one in seen if not one.broken]
    same: dict[bytes, list[Look]] = {}
    for one in whole:
        same.setdefault(one.pixels, []).append(one)
    groups = [group for group in same.values() if len(group) > 1]
    torn = [group for group in groups if len({one.label for one in group}) > 1]
    leaked = [group for group in groups if len({one.split for one in group}) > 1]
    special = {id(group) for group in (*torn, *leaked)}
    sides = np.array([min(one.size) for one in whole] or [0])
    classes = open_source(root).classes or ()
    counted = Counter(one.label for one in whole)
    return Findings(
        images=len(seen),
        broken={one.name: one.broken for one in seen if one.broken} | _shards_that_differ(root),
        copies=[_names(group) for group in groups if id(group) not in special],
        torn=[_names(group) for group in torn],
        leaked=[_names(group) for group in leaked],
        sides=(int(sides.min()), int(np.median(sides)), int(sides.max())),
        classes={name: counted[i] for i, name in enumerate(classes)},
    )


def _names(group: list[Look]) -> tuple[str, ...]:
    return tuple(one.name for one in group)


def _shards_that_differ(root: str) -> dict[str, str]:
    """Packed shards on this machine that are not what was packed."""
    described: dict[Path, dict[str, Any]] = {}
    wrong = {}
    for shard in map(Path, look(root).shards):
        folder = shard.parent
        if folder not in described:
            path = folder / DESCRIPTION
            described[folder] = read_description(path)["shards"] if path.exists() else {}
        told = described[folder].get(shard.name)
        if told is not None and shard.exists() and checksum(shard) != told["sha256"]:
            wrong[str(shard)] = "its checksum is not the one of when it was packed"
    return wrong
