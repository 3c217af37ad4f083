"""Any folder of meshes or clouds: .ply .obj .off .stl .npy .xyz, nested or not, labelled or not.

    things/cup/1.obj, things/jar/2.ply          every file lies in a first-level directory: those are the classes
    things/1.obj, things/scans/2.ply            one does not: no labels
    things/train/cup/1.obj, things/test/...     splits are told apart by directories ...
    things/cup/train/1.off, things/cup/test/... ... also as ModelNet40 is published; else one file in ten is held out

Files may come from anywhere: nothing in them is run, and nothing that they refer to (materials, textures) is opened.
"""

from __future__ import annotations

import hashlib
import io
import os
import re
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Float

from hybridmap.data.base import UnreadableImage
from hybridmap.data.clouds.listing import read_array, read_table
from hybridmap.data.clouds.source import Cloud, CloudSource, finite_points
from hybridmap.data.clouds.surfaces import areas, generator_of, sample_surface
from hybridmap.data.decode import read_file
from hybridmap.errors import UserError

MESHES = frozenset((".ply", ".obj", ".off", ".stl"))
"""Endings of files that trimesh reads; those without faces are clouds."""
EXTENSIONS = MESHES | {".npy", ".xyz"}
"""Endings of the files that are taken for shapes, in lower case; other files are not opened."""

_SPLITS = {"train": ("train", "training"), "test": ("val", "test", "testing", "validation")}
_STREAM = 0x6D657368
"""The hash stream that places points on meshes."""


class CloudFiles(CloudSource):
    """The meshes and clouds below one directory, in the order of their paths.

    Of a mesh ``points`` points are drawn, uniformly by area and by a key made of the file's content: the same file always gives
    the same cloud. Clouds keep the points that they have.
    """

    def __init__(
        self, root: str, split: Literal["all", "train", "test"] = "all", *, points: int = 8192, held_out: float = 0.1
    ) -> None:
        """List the files below ``root``, or those of one split.

        Raises:
            UserError: if there are none, they cannot be divided, or there are meshes and trimesh is not installed.
        """
        if points < 1:
            raise UserError(f"a mesh needs one point or more, got {points}")
        if not 0 < held_out < 1:
            raise UserError(f"held_out must be a part between 0 and 1, got {held_out}")
        if not root:
            raise UserError("a folder of meshes or clouds was expected, but none was named; use --data.root DIR")
        place = Path(root).expanduser()
        if not place.is_dir():
            raise UserError(f"the folder {root} does not exist; expected --data.root to name a folder of meshes or clouds")
        found = _list_shapes(str(place))
        if not found:
            raise UserError(
                f"no meshes or clouds in {root} or below it; expected files ending in {' '.join(sorted(EXTENSIONS))}"
            )
        self.place, self.points = str(place), points
        told = [_told(path) for path in found]
        divided = {name for name, _ in told} >= {"train", "test"} and all(name for name, _ in told)
        shown = [rest for _, rest in told] if divided else found
        names = {rest.partition("/")[0] for rest in shown} if all("/" in rest for rest in shown) else set()
        self.classes = tuple(sorted(names)) or None
        number = {name: label for label, name in enumerate(self.classes or ())}
        labels = [number.get(rest.partition("/")[0], -1) for rest in shown]
        kept = range(len(found))
        if split != "all":
            chosen = (
                {k for k, (name, _) in enumerate(told) if name == "test"} if divided else _held_out(found, labels, held_out)
            )
            kept = [k for k in kept if (k in chosen) == (split == "test")]
            if not kept:
                raise UserError(f"{root} has too few files to be divided ({len(found)}); give it directories train and test")
        self.paths, self._labels = [found[k] for k in kept], [labels[k] for k in kept]
        if any(os.path.splitext(path)[1].lower() in MESHES for path in self.paths):
            _trimesh(root)

    def __len__(self) -> int:
        return len(self.paths)

    def read(self, index: int) -> Cloud:
        path = self.name(index)
        kind = os.path.splitext(path)[1].lower()
        if kind == ".npy":
            points = finite_points(path, read_array(path))
        elif kind == ".xyz":
            points = finite_points(path, read_table(path, read_file(path)))
        else:
            points = _from_mesh(path, kind, self.points)
        if (points == points[0]).all():
            raise UnreadableImage(path, f"its {len(points)} points all lie at one place")
        return Cloud(points=points, label=self.label(index))

    def name(self, index: int) -> str:
        return f"{self.place}/{self.paths[index]}"

    def label(self, index: int) -> int:
        return self._labels[index]


def _list_shapes(root: str) -> list[str]:
    """Paths below ``root``, relative and with forward slashes, sorted; links are followed, each directory once."""

    def fail(error: OSError) -> None:
        raise UserError(f"the directory {error.filename} cannot be listed ({error.strerror}); check its permissions")

    found: list[str] = []
    visited: set[tuple[int, int]] = set()
    for folder, below, files in os.walk(root, followlinks=True, onerror=fail):
        status = os.stat(folder)
        if (status.st_dev, status.st_ino) in visited:
            below.clear()
            continue
        visited.add((status.st_dev, status.st_ino))
        below[:] = sorted(name for name in below if not name.startswith("."))
        for name in files:
            if not name.startswith(".") and os.path.splitext(name)[1].lower() in EXTENSIONS:
                found.append(os.path.relpath(f"{folder}/{name}", root).replace(os.sep, "/"))
    return sorted(found)


def _told(path: str) -> tuple[str, str]:
    """(the split that the first or second directory of a path names, or nothing; the path without that directory)."""
    pieces = path.split("/")
    for at in range(min(2, len(pieces) - 1)):
        for split, words in _SPLITS.items():
            if pieces[at].lower() in words:
                return split, "/".join(pieces[:at] + pieces[at + 1 :])
    return "", path


def _held_out(paths: list[str], labels: list[int], part: float) -> set[int]:
    """Test indices: in each class the same share, chosen by a hash of the names, as image folders do it."""
    test: set[int] = set()
    for label in set(labels):
        group = [k for k in range(len(paths)) if labels[k] == label]
        group.sort(key=lambda k: hashlib.blake2b(paths[k].encode("utf-8", "surrogateescape")).digest())
        test.update(group[: max(1, round(len(group) * part))])
    return test


def _trimesh(place: str) -> Any:
    try:
        import trimesh
    except ModuleNotFoundError:
        raise UserError(
            f"reading the meshes in {place} needs trimesh, which is not installed; pip install 'hybridmap[points]'"
        ) from None
    return trimesh


def _from_mesh(path: str, kind: str, count: int) -> Float[np.ndarray, "n 3"]:
    """Points on a mesh; of a file without faces, its own points.

    Raises:
        UnreadableImage: if the file is broken or empty, or its faces have no area.
    """
    data = read_file(path)
    if not data:
        raise UnreadableImage(path, "the file is empty")
    trimesh = _trimesh(path)
    try:
        # From memory, so that there is no folder in which a file could name others.
        loaded = trimesh.load(io.BytesIO(bytes(data)), file_type=kind[1:], process=False, skip_materials=True)
        pieces = list(loaded.geometry.values()) if isinstance(loaded, trimesh.Scene) else [loaded]
        vertices = [np.asarray(piece.vertices, dtype=np.float64).reshape(-1, 3) for piece in pieces]
        faces = [np.asarray(getattr(piece, "faces", ()), dtype=np.int64).reshape(-1, 3) for piece in pieces]
        triangles = [v[f] for v, f in zip(vertices, faces, strict=True) if len(f)]
    except Exception:
        # Readers of four formats raise whatever they like; for the caller each of them is a file that cannot be read.
        raise UnreadableImage(path, f"it is not a whole {kind} file") from None
    if not sum(map(len, vertices)):
        raise UnreadableImage(path, "neither faces nor points can be read from it")
    promised = _promised(kind, bytes(data[:65536]))
    if sum(map(len, vertices)) < promised[0] or sum(map(len, faces)) < promised[1]:
        # trimesh is content with the lines that are there.
        raise UnreadableImage(path, f"it is cut off: its header promises {promised[0]} points and {promised[1]} faces")
    if not triangles:
        return finite_points(path, np.concatenate(vertices))
    corners = np.concatenate(triangles)
    finite_points(path, corners.reshape(-1, 3))
    with np.errstate(over="ignore"):
        area = areas(corners).sum()
    if not 0 < area < np.inf:
        raise UnreadableImage(path, f"its {len(corners)} faces have no area")
    key = int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little")
    return sample_surface(corners, count, generator_of(_STREAM, key))[0].astype(np.float32)


def _promised(kind: str, head: bytes) -> tuple[int, int]:
    """(points, faces) that the header of a PLY or OFF file promises; zeros where the format has none."""
    if kind == ".ply":
        counts = dict(re.findall(rb"^element (vertex|face) (\d+)\s*$", head.partition(b"end_header")[0], re.MULTILINE))
        return int(counts.get(b"vertex", 0)), int(counts.get(b"face", 0))
    found = re.search(rb"OFF\s*(\d+)\s+(\d+)", re.sub(rb"#[^\n]*", b"", head)) if kind == ".off" else None
    return (int(found[1]), int(found[2])) if found else (0, 0)
