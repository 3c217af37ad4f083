"""Tar files of images, as WebDataset writes them: members of one name and different endings are one sample.

    000000123.jpg  000000123.cls          an image and the number of its class; or 000000123.json with a "label"
    cat/0001.jpg                          or the first directory is the class

What lies where is read from the tar's headers once and kept in the user's cache; after that an image is one read at an offset,
and any order is as good as any other. Shards that lie elsewhere are fetched whole, once, when the first of their images is
asked for; an epoch's order then mixes a few shards at a time.
Source of the format: webdataset (BSD-3).
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import tarfile
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np

from hybridmap.data import remote
from hybridmap.data.base import UnreadableImage
from hybridmap.data.files import EXTENSIONS
from hybridmap.data.source import Source
from hybridmap.errors import UserError
from hybridmap.files import replacing

log = logging.getLogger("hybridmap.data")

DESCRIPTION = "dataset.json"
"""Beside packed shards: class names, and count and checksum of every shard."""
_OPEN_FILES = 64
"""Shards that a process keeps open at a time."""
_INDEX_VERSION = 1
_LARGEST_NOTE = 1 << 20
"""Bytes of a .cls or .json member beyond which it is no label."""


@dataclass(frozen=True, kw_only=True)
class Index:
    """What lies where in one shard."""

    names: np.ndarray
    """(n,) names of the members that are images, as bytes."""
    offsets: np.ndarray
    """(n,) int64, where each begins."""
    sizes: np.ndarray
    """(n,) int64, bytes of each."""
    labels: np.ndarray
    """(n,) int64, -1 where a sample has none; numbers of classes, or places in ``words``."""
    words: tuple[str, ...] = ()
    """Directories that name classes; empty where the classes are numbers."""


class TarShards(Source):
    """The images of some shards, shard by shard in the order of their members."""

    def __init__(self, shards: Sequence[str], siblings: Sequence[str] = (), *, cache: str = "") -> None:
        """Look what is in the shards.

        Args:
            shards: paths or addresses.
            siblings: shards of other splits, whose classes count as well.
            cache: where shards from elsewhere are kept; empty = in the user's cache.

        Raises:
            UserError: if a shard is missing, is no tar file, was cut off, or if there is no image in any.
        """
        self._shards, self._cache = list(shards), cache
        self.place = shards[0].rpartition("/")[0] or "."
        self._described = _description(shards, cache)
        self._indices: list[Index | None] = [None] * len(shards)
        self._open: OrderedDict[int, int] = OrderedDict()
        told = self._described.get("shards", {})
        names = [shard.rpartition("/")[2] for shard in shards]
        if told and remote.is_remote(shards[0]):
            missing = [name for name in names if name not in told]
            if missing:
                raise UserError(
                    f"{self.place}/{DESCRIPTION} does not name the shard {missing[0]}; expected all that are asked for"
                )
            counts = [told[name]["images"] for name in names]
            self.blocks = tuple(count for count in counts if count)
        else:
            counts = [len(self._index(k).names) for k in range(len(shards))]
        self._ends = list(accumulate(counts))
        if not self._ends[-1]:
            raise UserError(f"no images in the {len(shards)} shards of {self.place}; expected members such as 000123.jpg")
        if self._described:
            found = self._described.get("classes")
            self.classes = None if found is None else tuple(found)
        else:
            self.classes = _classes_of([self._index(k) for k in range(len(shards))] + [_index_of(path) for path in siblings])
        self._numbers = {name: i for i, name in enumerate(self.classes or ())}

    def __len__(self) -> int:
        return self._ends[-1]

    def read(self, index: int) -> bytearray:
        shard, at = self._find(index)
        entry = self._index(shard)
        data = bytearray(int(entry.sizes[at]))
        try:
            got = os.preadv(self._file(shard), [data], int(entry.offsets[at]))
        except OSError as error:
            raise UnreadableImage(self.name(index), error.strerror or str(error)) from None
        if got != len(data):
            raise UnreadableImage(self.name(index), f"its shard ends after {got} of its {len(data)} bytes")
        return data

    def name(self, index: int) -> str:
        shard, at = self._find(index)
        return f"{self._shards[shard]}/{self._index(shard).names[at].decode()}"

    def stable_name(self, index: int) -> str:
        return self.name(index).removeprefix(self.place)

    def label(self, index: int) -> int:
        shard, at = self._find(index)
        entry = self._index(shard)
        label = int(entry.labels[at])
        if not self._numbers or label < 0:
            return -1
        return self._numbers[entry.words[label]] if entry.words else label

    def _find(self, index: int) -> tuple[int, int]:
        """(shard, place in it) of an image."""
        if not 0 <= index < len(self):
            raise IndexError(index)
        shard = bisect_right(self._ends, index)
        return shard, index - (self._ends[shard - 1] if shard else 0)

    def _index(self, shard: int) -> Index:
        found = self._indices[shard]
        if found is None:
            found = self._indices[shard] = _index_of(self._here(shard))
        return found

    def _here(self, shard: int) -> str:
        """The path of a shard on this machine."""
        path = self._shards[shard]
        if not remote.is_remote(path):
            return path
        folder, _, name = path.rpartition("/")
        told = self._described.get("shards", {}).get(name, {})
        return str(remote.fetch(path, remote.cache_for(folder, self._cache) / name, sha256=told.get("sha256")))

    def _file(self, shard: int) -> int:
        """An open file. Reads name their offset, so that processes may share what they inherited."""
        number = self._open.pop(shard, None)
        if number is None:
            number = os.open(self._here(shard), os.O_RDONLY)
            if len(self._open) >= _OPEN_FILES:
                os.close(self._open.popitem(last=False)[1])
        self._open[shard] = number
        return number

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_open": OrderedDict()}


def _description(shards: Sequence[str], cache: str) -> dict[str, Any]:
    """The description beside shards; empty where there is none."""
    folder = shards[0].rpartition("/")[0] or "."
    path = Path(folder) / DESCRIPTION
    if remote.is_remote(folder):
        if not remote.exists(f"{folder}/{DESCRIPTION}"):
            log.info("%s has no %s: all %d shards are fetched before the first step", folder, DESCRIPTION, len(shards))
            return {}
        path = remote.cache_for(folder, cache) / DESCRIPTION
        remote.fetch(f"{folder}/{DESCRIPTION}", path)
    return read_description(path) if path.exists() else {}


def read_description(path: Path) -> dict[str, Any]:
    """The contents of a ``dataset.json``.

    Raises:
        UserError: if it is something else.
    """
    try:
        found = json.loads(path.read_text())
        assert isinstance(found["shards"], dict)
        return found
    except (OSError, ValueError, KeyError, TypeError, AssertionError):
        raise UserError(f"{path} is not the description of packed shards; pack them again, or remove it") from None


def _classes_of(indices: Sequence[Index]) -> tuple[str, ...] | None:
    """Directories where they are the classes, else numbers up to the largest; None if a sample has no label."""
    if any((index.labels < 0).any() for index in indices):
        return None
    if any(index.words for index in indices):
        return tuple(sorted({word for index in indices for word in index.words}))
    return tuple(
        str(i) for i in range(1 + max((int(index.labels.max()) for index in indices if len(index.labels)), default=-1))
    )


def _index_of(path: str) -> Index:
    """The index of a shard on this machine, from the user's cache if it is there.

    Raises:
        UserError: if there is no such file, or it is no whole tar file.
    """
    try:
        status = os.stat(path)
    except OSError as error:
        raise UserError(f"the shard {path} cannot be read ({error.strerror}); check --data.root") from None
    what = f"{_INDEX_VERSION} {os.path.abspath(path)} {status.st_size} {status.st_mtime_ns}"
    kept = remote.cache_for("indices", "") / f"{hashlib.sha256(what.encode()).hexdigest()[:32]}.npz"
    if kept.exists():
        try:
            with np.load(kept, allow_pickle=False) as file:
                words = tuple(str(word) for word in file["words"])
                return Index(**{name: file[name] for name in ("names", "offsets", "sizes", "labels")}, words=words)
        except (OSError, ValueError, KeyError):
            log.info("the index %s is damaged; it is made again", kept)
    found = read_index(path)
    try:
        with replacing(kept) as temporary, temporary.open("wb") as file:
            fields = {name: getattr(found, name) for name in ("names", "offsets", "sizes", "labels")}
            np.savez(file, words=np.array(found.words, dtype=str), **fields)
    except UserError as error:
        log.info("the index of %s is not kept: %s", path, error)
    return found


def read_index(path: str) -> Index:
    """What lies where in a tar file, by its headers.

    Raises:
        UserError: if it is no whole tar file.
    """
    images: dict[str, tuple[str, int, int]] = {}
    labels: dict[str, int] = {}
    try:
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                if not member.isfile():
                    continue
                folder, _, base = member.name.removeprefix("./").rpartition("/")
                key, _, ending = base.partition(".")
                key = f"{folder}/{key}"
                if os.path.splitext(base)[1].lower() in EXTENSIONS:
                    images.setdefault(key, (member.name, member.offset_data, member.size))
                elif ending in ("cls", "json") and member.size <= _LARGEST_NOTE:
                    file = tar.extractfile(member)
                    label = _label_in(file.read() if file else b"", ending)
                    if label is not None:
                        labels[key] = label
        size = os.stat(path).st_size
        cut = [name for name, offset, length in images.values() if offset + length > size]
    except (tarfile.TarError, EOFError, ValueError) as error:
        raise UserError(f"{path} is not a whole tar file ({error}); fetch or pack it again") from None
    except OSError as error:
        raise UserError(f"the shard {path} cannot be read ({error.strerror or error}); check --data.root") from None
    if cut:
        raise UserError(f"{path} is not a whole tar file (it ends inside {cut[0]}); fetch or pack it again")
    folders = [key.partition("/")[0] for key in images]
    words = tuple(sorted(set(folders))) if not labels and images and all(folders) else ()
    place = {word: i for i, word in enumerate(words)}
    return Index(
        names=np.array([name.encode() for name, _, _ in images.values()], dtype=np.bytes_),
        offsets=np.array([offset for _, offset, _ in images.values()], dtype=np.int64),
        sizes=np.array([length for _, _, length in images.values()], dtype=np.int64),
        labels=np.array(
            [place[folder] if words else labels.get(key, -1) for key, folder in zip(images, folders, strict=True)],
            dtype=np.int64,
        ),
        words=words,
    )


def _label_in(text: bytes, ending: str) -> int | None:
    """The class that a note names: a number, or the "label" (or "cls") of a JSON object."""
    try:
        found: Any = json.loads(text)
    except ValueError:
        return None
    if ending == "json":
        found = found.get("label", found.get("cls")) if isinstance(found, dict) else None
    return found if isinstance(found, int) and not isinstance(found, bool) and found >= 0 else None
