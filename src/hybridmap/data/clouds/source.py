"""Where clouds of points come from: all in which a folder of meshes, a benchmark's files and made shapes differ.

    index ─> read() ─> Cloud (points, label, parts)          and, above it, one data set that samples, augments and batches

A source holds no position and no random state: any process may ask for any cloud at any time.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from hybridmap.data.base import UnreadableImage


@dataclass(frozen=True, kw_only=True)
class Cloud:
    """One cloud, as it was stored or made."""

    points: Float[np.ndarray, "n 3"]
    """x, y, z of every point; float32, finite, not normalised."""
    label: int
    """Its class, -1 where there is none."""
    parts: Int[np.ndarray, "n"] | None = None
    """The part that every point belongs to, numbered over all categories; None where there are none."""


class CloudSource(ABC):
    """A finite, ordered set of clouds."""

    classes: tuple[str, ...] | None = None
    """Class names by label; None where the clouds have no labels."""
    parts: tuple[tuple[int, ...], ...] | None = None
    """For each class, the numbers of the parts that belong to it; None where the points have no parts."""
    normalised: bool = True
    """Whether the official loaders centre these clouds and scale them into the unit sphere (ScanObjectNN's do not)."""
    place: str
    """The directory or file, for messages."""

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def read(self, index: int) -> Cloud:
        """One cloud.

        Raises:
            UnreadableImage: if it cannot be had.
        """

    @abstractmethod
    def name(self, index: int) -> str:
        """What one cloud is called in messages: its path, or where it lies in a larger file."""

    def label(self, index: int) -> int:
        """The class of one cloud, -1 where it has none; most sources know it without reading the cloud."""
        return self.read(index).label


def normalise_cloud(points: Float[np.ndarray, "n 3"]) -> Float[np.ndarray, "n 3"]:
    """Centre and scale into the unit sphere: the points minus their mean, divided by the largest norm, as float32.

    Computed in float64. Where all points are equal, or there is only one, they become zeros.
    Source: the normalisation that all official loaders share (``pc_normalize``).
    """
    centred = points.astype(np.float64)
    centred -= centred.mean(0)
    largest = np.sqrt((centred * centred).sum(1).max())
    # The mean of equal numbers may be off by their rounding; what is left then is no shape.
    extent = np.abs(points.astype(np.float64)).max()
    return (centred / largest if largest > 1e-12 * extent else centred * 0).astype(np.float32)


def finite_points(path: str, array: np.ndarray) -> Float[np.ndarray, "n 3"]:
    """The first three columns of a table of numbers as float32, if they are a cloud; ``path`` is what messages call it.

    Raises:
        UnreadableImage: if there are no points, fewer than three columns, no numbers, or some that are not finite.
    """
    if array.dtype.kind not in "fiu":
        raise UnreadableImage(path, f"it holds {array.dtype} where numbers were expected")
    if array.ndim != 2 or array.shape[1] < 3:
        raise UnreadableImage(path, f"expected a table of points with three columns or more, got the shape {array.shape}")
    if not len(array):
        raise UnreadableImage(path, "it holds no points")
    with np.errstate(over="ignore"):
        points = np.ascontiguousarray(array[:, :3], dtype=np.float32)
    broken = int((~np.isfinite(points).all(1)).sum())
    if broken:
        raise UnreadableImage(path, f"{broken} of its {len(points)} points are not finite (NaN, or too large for float32)")
    return points
