"""Any folder of images: nested or not, labelled or not, of mixed size, mode, orientation and format.

photos/cat/1.jpg, photos/dog/2.png      every image lies in a first-level directory: those are the classes
photos/1.jpg, photos/2019/2.png         one does not: no labels
photos/train/cat/1.jpg, photos/val/...  split="train" and "test" are these directories; where they are missing, one
                                        image in ten is held out, always the same
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from hybridmap.data.augment import Augment, Unchanged
from hybridmap.data.base import Dataset, Sample
from hybridmap.data.decode import decode
from hybridmap.data.image_transforms import Crop, RandomResizedCrop
from hybridmap.errors import UserError

EXTENSIONS = frozenset(
    (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".ppm", ".pgm", ".pbm", ".avif")
)
"""Endings of the files that are taken for images, in lower case; other files are not opened."""

_SPLIT_NAMES = {"train": ("train",), "test": ("val", "test", "validation")}
"""Split -> directories below the root that hold it, the first that exists."""


class ImageFolder(Dataset):
    """The images below one directory, in the order of their paths."""

    @dataclass(frozen=True, kw_only=True)
    class Config(Dataset.Config):
        root: str = ""
        """The directory, searched with all below it; names that start with a dot are passed over."""
        split: Literal["all", "train", "test"] = "all"
        """All images, or a part: the directories train and val (or test) of ``root`` where both exist, else by ``held_out``."""
        held_out: float = 0.1
        """Part of each class that is the test split where ``root`` has no directories for it."""
        crop: Crop.Config = field(default_factory=RandomResizedCrop.Config)
        """How an image of any size becomes one of ``size``."""
        augment: Augment.Config = field(default_factory=Unchanged.Config)
        """What is done to the crop."""
        workers: int = 2
        """Processes that prepare images besides the one that trains; 0 prepares them in it. The samples are the same."""

        def __post_init__(self) -> None:
            super().__post_init__()
            if not 0 < self.held_out < 1:
                raise UserError(f"data.held_out must be a part between 0 and 1, got {self.held_out}")

    config: ImageFolder.Config

    def __init__(self, config: Config) -> None:
        """List the images.

        Raises:
            UserError: if the directory is missing, is a file, cannot be listed, or holds no image.
        """
        super().__init__(config)
        root = _root_of(config)
        parts = _directories_of_splits(root) if config.split != "all" else {}
        self.root = str(parts.get(config.split, root))
        found = list_images(self.root)
        if not found:
            emptiness = " or below it" if os.listdir(self.root) else ", which is empty"
            raise UserError(f"no images in {self.root}{emptiness}; expected files ending in {' '.join(sorted(EXTENSIONS))}")
        self.crop: Crop = config.crop.build()
        self.augment: Augment = config.augment.build()
        # Both splits number the classes alike: those of the whole folder, even where one split lacks some.
        self.classes = _classes_of(found, list(parts.values()))
        if config.split != "all" and not parts:
            found = _part(found, config, labelled=self.classes is not None)
        self.files = found
        number = {name: i for i, name in enumerate(self.classes or ())}
        self.labels = [number[path.split("/", 1)[0]] if number else -1 for path in found]

    def __len__(self) -> int:
        return len(self.files)

    def sample(self, index: int, key: int) -> Sample:
        path = f"{self.root}/{self.files[index]}"
        size = self.config.image_size

        def shrink(full: tuple[int, int]) -> float:
            window = self.crop.window(full, size, key)
            return min(window[0] / size[0], window[1] / size[1])

        decoded = decode(path, shrink)
        image = self.augment(self.crop(decoded.image, size, key, decoded.full), key, self.config.mean)
        return Sample(image=image, label=self.labels[index], path=path)

    def describe(self) -> str:
        return f"the folder {self.root}"

    def labelled(self) -> tuple[str, ...]:
        if self.classes is None:
            loose = next(path for path in self.files if "/" not in path)
            raise UserError(
                f"labelled images were expected, each in a directory that names its class below {self.root}, but {loose} "
                "lies in none; sort the images into directories, or pretrain, which needs no labels"
            )
        return self.classes


def list_images(root: str) -> list[str]:
    """Paths below ``root``, relative and with forward slashes, of all files with an image's ending, sorted.

    Links are followed, each directory once; a link that leads nowhere is listed, so that it is named when it cannot be read.

    Raises:
        UserError: if a directory cannot be listed.
    """
    found: list[str] = []
    visited: set[tuple[int, int]] = set()
    waiting = [""]
    while waiting:
        below = waiting.pop()
        directory = f"{root}/{below}" if below else root
        try:
            status = os.stat(directory)
            if (status.st_dev, status.st_ino) in visited:
                continue
            visited.add((status.st_dev, status.st_ino))
            with os.scandir(directory) as entries:
                for entry in entries:
                    if entry.name.startswith("."):
                        continue
                    path = f"{below}/{entry.name}" if below else entry.name
                    if entry.is_dir():
                        waiting.append(path)
                    elif os.path.splitext(entry.name)[1].lower() in EXTENSIONS:
                        found.append(path)
        except OSError as error:
            raise UserError(f"the directory {directory} cannot be listed ({error.strerror}); check its permissions") from None
    return sorted(found)


def _root_of(config: ImageFolder.Config) -> Path:
    if not config.root:
        raise UserError("a folder of images was expected, but none was named; use --data.root DIR")
    root = Path(config.root).expanduser()
    if not root.exists():
        raise UserError(f"the folder {config.root} does not exist; expected --data.root to name a folder of images")
    if not root.is_dir():
        raise UserError(f"{config.root} is a file; expected --data.root to name a folder of images, such as {root.parent}")
    return root


def _directories_of_splits(root: Path) -> dict[str, Path]:
    """Split -> its directory below ``root``; empty unless there is one for each."""
    parts = {}
    for split, names in _SPLIT_NAMES.items():
        directory = next((root / name for name in names if (root / name).is_dir()), None)
        if directory is None:
            return {}
        parts[split] = directory
    return parts


def _classes_of(files: list[str], parts: list[Path]) -> tuple[str, ...] | None:
    """The first-level directories, of all ``parts`` together, if every file lies in one; else None."""
    if not all("/" in path for path in files):
        return None
    names = {path.split("/", 1)[0] for path in files}
    for part in parts:
        names.update(entry.name for entry in os.scandir(part) if entry.is_dir() and not entry.name.startswith("."))
    return tuple(sorted(names))


def _part(files: list[str], config: ImageFolder.Config, *, labelled: bool) -> list[str]:
    """The training or the test part: in each class the same images are held out, chosen by a hash of their paths."""
    groups: dict[str, list[str]] = {}
    for path in files:
        groups.setdefault(path.split("/", 1)[0] if labelled else "", []).append(path)
    test: set[str] = set()
    for group in groups.values():
        shuffled = sorted(group, key=lambda path: hashlib.blake2b(path.encode("utf-8", "surrogateescape")).digest())
        test.update(shuffled[: max(1, round(len(group) * config.held_out))])
    chosen = [path for path in files if (path in test) == (config.split == "test")]
    if not chosen:
        raise UserError(
            f"{config.root} has too few images to be divided into training and test images ({len(files)}); "
            "give it directories train and val"
        )
    return chosen
