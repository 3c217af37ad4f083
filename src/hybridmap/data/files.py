"""Image files in directories: nested or not, labelled or not, of mixed format."""

from __future__ import annotations

import os

from hybridmap.data.decode import read_file
from hybridmap.data.source import Source
from hybridmap.errors import UserError

EXTENSIONS = frozenset(
    (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".ppm", ".pgm", ".pbm", ".avif")
)
"""Endings of the files that are taken for images, in lower case; other files are not opened."""


class Files(Source):
    """The images below one directory, in the order of their paths.

    Where every image lies in a first-level directory, those are the classes.
    """

    def __init__(self, root: str, others: tuple[str, ...] = ()) -> None:
        """List the images below ``root``; ``others`` are directories whose classes count as well.

        Raises:
            UserError: if the directory cannot be listed, or holds no image.
        """
        self.place = root
        self.paths = list_images(root)
        if not self.paths:
            emptiness = " or below it" if os.listdir(root) else ", which is empty"
            raise UserError(
                f"no images in {root}{emptiness}; expected files ending in {' '.join(sorted(EXTENSIONS))}, or shards ending in "
                ".tar or .parquet"
            )
        self.classes = _classes_of(self.paths, others)
        number = {name: i for i, name in enumerate(self.classes or ())}
        self._labels = [number[path.split("/", 1)[0]] if number else -1 for path in self.paths]

    def __len__(self) -> int:
        return len(self.paths)

    def read(self, index: int) -> bytearray:
        return read_file(self.name(index))

    def name(self, index: int) -> str:
        return f"{self.place}/{self.paths[index]}"

    def label(self, index: int) -> int:
        return self._labels[index]

    def unlabelled(self) -> str:
        return next(path for path in self.paths if "/" not in path)

    def stable_name(self, index: int) -> str:
        return self.paths[index]


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
                    if _is_directory(entry):
                        waiting.append(path)
                    elif os.path.splitext(entry.name)[1].lower() in EXTENSIONS:
                        found.append(path)
        except OSError as error:
            raise UserError(f"the directory {directory} cannot be listed ({error.strerror}); check its permissions") from None
    return sorted(found)


def _is_directory(entry: os.DirEntry[str]) -> bool:
    """Whether an entry is one, or a link to one; a link that leads in a circle is none."""
    try:
        return entry.is_dir()
    except OSError:
        return False


def _classes_of(files: list[str], others: tuple[str, ...]) -> tuple[str, ...] | None:
    """The first-level directories, those of ``others`` besides, if every file lies in one; else None."""
    if not all("/" in path for path in files):
        return None
    names = {path.split("/", 1)[0] for path in files}
    for directory in others:
        names.update(entry.name for entry in os.scandir(directory) if _is_directory(entry) and not entry.name.startswith("."))
    return tuple(sorted(names))
