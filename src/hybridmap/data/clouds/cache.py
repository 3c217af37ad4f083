"""Farthest point sampling once per cloud: the points in that order are kept on disk, and every run after the first reads them.

    Cloud ─> digest of its points ─> <folder>/ab/ab12....npz there? read it : order the points, write it whole

Files are named by content: a cloud that changed is another file, and two data sets with one cloud share it. The order of fewer
points is the beginning of the order of more, so a model that takes 1024 points takes the first 1024 rows.
"""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from hybridmap.data.clouds.source import Cloud, CloudSource
from hybridmap.errors import UserError
from hybridmap.files import replacing

Order = Callable[[Tensor, int], Tensor]
"""``hybridmap.ops.points.fps``: (1, n, 3) points and a count to (1, count) indices that start with 0."""

_VERSION = b"fps 1"
"""Part of the names; another number where orders would come out differently."""


class FpsCache:
    """Clouds in FPS order of up to ``count`` points from point 0, kept in ``folder``. Any number of processes may share it."""

    def __init__(self, folder: str | Path, count: int, fps: Order) -> None:
        """``fps`` is :func:`hybridmap.ops.points.fps`, which data sets do not import themselves.

        Raises:
            UserError: if there are to be no points.
        """
        if count < 1:
            raise UserError(f"the order of one point or more can be kept, got {count}")
        self.folder, self.count, self._fps = Path(folder).expanduser(), count, fps

    def __call__(self, cloud: Cloud) -> Cloud:
        """The same cloud with its points, and their parts, in FPS order; at most ``count`` of them.

        Raises:
            UserError: if the file cannot be written.
        """
        path = self.path_of(cloud)
        count = min(self.count, len(cloud.points))
        index = _read(path, cloud, count)
        if index is None:
            index = self._ordered(cloud, count)
            with replacing(path) as temporary, temporary.open("wb") as file:
                np.savez(file, points=cloud.points[index], index=index)
        return Cloud(points=cloud.points[index], label=cloud.label, parts=None if cloud.parts is None else cloud.parts[index])

    def path_of(self, cloud: Cloud) -> Path:
        """Where the order of a cloud is kept: named by a digest of its points and the number of those that are ordered."""
        content = np.ascontiguousarray(cloud.points, dtype="<f4")
        digest = hashlib.blake2b(_VERSION, digest_size=20)
        digest.update(f" {len(content)} {min(self.count, len(content))} ".encode())
        digest.update(content.tobytes())
        return self.folder / digest.hexdigest()[:2] / f"{digest.hexdigest()}.npz"

    def _ordered(self, cloud: Cloud, count: int) -> Int[np.ndarray, "m"]:
        """Indices in FPS order; where fewer points differ than are wanted, the copies follow in the order that they had."""
        index = self._fps(torch.from_numpy(np.ascontiguousarray(cloud.points))[None], count)[0].numpy()
        kept = index[np.sort(np.unique(index, return_index=True)[1])]
        others = np.setdiff1d(np.arange(len(cloud.points)), kept)
        return np.concatenate([kept, others[: count - len(kept)]]).astype(np.int32)


class Ordered(CloudSource):
    """Another source whose clouds come in FPS order."""

    def __init__(self, whole: CloudSource, cache: FpsCache) -> None:
        self._whole, self._cache = whole, cache
        self.classes, self.parts, self.normalised, self.place = whole.classes, whole.parts, whole.normalised, whole.place

    def __len__(self) -> int:
        return len(self._whole)

    def read(self, index: int) -> Cloud:
        return self._cache(self._whole.read(index))

    def name(self, index: int) -> str:
        return self._whole.name(index)

    def label(self, index: int) -> int:
        return self._whole.label(index)


def _read(path: Path, cloud: Cloud, count: int) -> Int[np.ndarray, "m"] | None:
    """The order in a file, unless there is none, it is damaged, or it is not that of this cloud."""
    try:
        with path.open("rb") as content, np.load(content, allow_pickle=False) as file:
            index, points = file["index"], file["points"]
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None
    if index.shape != (count,) or index.dtype.kind not in "iu" or index.min() < 0 or index.max() >= len(cloud.points):
        return None
    return index if np.array_equal(points, cloud.points[index]) else None
