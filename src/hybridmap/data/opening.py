"""What lies at ``--data.root``, and which part of it is asked for.

    a directory of images          photos/cat/1.jpg; photos/train/cat/1.jpg and photos/val/... are the splits
    a directory of shards          *.tar (WebDataset) or *.parquet (Hugging Face), also below train/ and val/, or with the split
                                   in their names; one such file
    an address, or braces          https://host/imagenet-{000000..001280}.tar, s3://bucket/shard-{00..63}.tar

Where nothing says what is for training and what for tests, one image in ten is held out, always the same.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from hybridmap.data import remote
from hybridmap.data.files import Files
from hybridmap.data.parquet import ParquetFiles
from hybridmap.data.shards import TarShards
from hybridmap.data.source import Part, Source, divide
from hybridmap.errors import UserError

Split = Literal["all", "train", "test"]

SPLIT_NAMES = {"train": ("train",), "test": ("val", "test", "validation")}
"""Split -> words that name it, in directories and in names of shards, the first that is there."""
_SHARDS = (".tar", ".parquet")
_COMPRESSED = (".tar.gz", ".tgz", ".tar.xz", ".tar.bz2", ".tar.zst")


@dataclass(frozen=True, kw_only=True)
class Place:
    """What there is, before it is opened: a directory of images, or shards; for each split, where they are told apart."""

    root: str
    shards: tuple[str, ...] = ()
    """Shards of all splits together; empty for a directory of images."""
    parts: dict[str, tuple[str, ...]]
    """Split -> its shards, or its one directory; empty where the splits are not told apart."""


def open_source(root: str, split: Split = "all", *, held_out: float = 0.1, cache: str = "") -> Source:
    """The images at ``root``, or a part of them.

    Raises:
        UserError: if there is nothing to be had, or it cannot be divided.
    """
    place = look(root)
    if split != "all" and place.parts:
        others = tuple(one for name, part in place.parts.items() if name != split for one in part)
        return _open(place.parts[split], place.shards, others, cache)
    whole = _open(place.shards or (place.root,), place.shards, (), cache)
    if split == "all":
        return whole
    train, test = divide(whole, held_out)
    if not (train if split == "train" else test):
        raise UserError(
            f"{root} has too few images to be divided into training and test images ({len(whole)}); "
            "give it directories train and val"
        )
    return Part(whole, train if split == "train" else test)


def look(root: str) -> Place:
    """What lies at ``root``, by names alone.

    Raises:
        UserError: if there is nothing.
    """
    if not root:
        raise UserError("a folder of images was expected, but none was named; use --data.root DIR")
    if remote.is_remote(root) or ("{" in root and not Path(root).expanduser().exists()):
        return _named(root)
    path = Path(root).expanduser()
    if not path.exists():
        raise UserError(f"the folder {root} does not exist; expected --data.root to name a folder of images")
    if path.suffix in _SHARDS and path.is_file():
        return Place(root=str(path.parent), shards=(str(path),), parts={})
    if not path.is_dir():
        raise UserError(
            f"{root} is a file; expected --data.root to name a folder of images, such as {path.parent}, or a shard (.tar or "
            ".parquet)"
        )
    directories = _divided({split: [path / word for word in words] for split, words in SPLIT_NAMES.items()})
    parts = {split: _shards_in(directory) for split, directory in directories.items()}
    if directories and all(parts.values()):
        return Place(root=str(path), shards=tuple(one for part in parts.values() for one in part), parts=parts)
    shards = _shards_in(path) or (() if directories else _shards_in(path / "data"))
    if shards:
        return Place(root=str(path), shards=shards, parts=_by_name(shards))
    return Place(root=str(path), parts={split: (str(directory),) for split, directory in directories.items()})


def _named(root: str) -> Place:
    """Shards by an address or a pattern."""
    shards = tuple(remote.expand(root))
    if not shards[0].endswith(_SHARDS):
        raise UserError(f"{root} names no shards; expected names that end in .tar, such as shard-{{000000..000146}}.tar")
    if remote.is_remote(root) and not shards[0].endswith(".tar"):
        raise UserError(f"{root} cannot be read from elsewhere; fetch the Parquet files, and give --data.root their folder")
    return Place(root=root, shards=shards, parts=_by_name(shards))


def _divided(candidates: dict[str, list[Path]]) -> dict[str, Path]:
    """Split -> its directory; empty unless there is one for each."""
    found = {split: next((path for path in paths if path.is_dir()), None) for split, paths in candidates.items()}
    return {split: path for split, path in found.items() if path} if all(found.values()) else {}


def _shards_in(directory: Path) -> tuple[str, ...]:
    """The shards that lie in a directory, of the one kind that is there.

    Raises:
        UserError: if there are only compressed ones, or both kinds.
    """
    names = sorted(path.name for path in directory.iterdir() if not path.name.startswith(".")) if directory.is_dir() else []
    kinds = {ending: [name for name in names if name.endswith(ending)] for ending in _SHARDS}
    if all(kinds.values()):
        raise UserError(f"{directory} holds both .tar and .parquet files; expected shards of one kind")
    packed = next((name for name in names if name.endswith(_COMPRESSED)), None)
    if packed and not any(kinds.values()):
        raise UserError(f"{directory}/{packed} is compressed, and cannot be read in any order; unpack it to .tar first")
    return tuple(f"{directory}/{name}" for found in kinds.values() for name in found)


def _by_name(shards: tuple[str, ...]) -> dict[str, tuple[str, ...]]:
    """Split -> the shards whose names say so; empty unless every shard says one, and there is one for each split."""
    told: dict[str, list[str]] = {split: [] for split in SPLIT_NAMES}
    for shard in shards:
        words = re.split(r"[^a-z]+", shard.rpartition("/")[2].lower())
        split = next((split for split, names in SPLIT_NAMES.items() if any(name in words for name in names)), None)
        if split is None:
            return {}
        told[split].append(shard)
    return {split: tuple(found) for split, found in told.items()} if all(told.values()) else {}


def _open(what: tuple[str, ...], shards: tuple[str, ...], others: tuple[str, ...], cache: str) -> Source:
    if not shards:
        return Files(what[0], others)
    return TarShards(what, others, cache=cache) if what[0].endswith(".tar") else ParquetFiles(what, others)
