"""Any set of clouds of points as training data: so many points of each cloud, in the unit sphere, augmented a batch at a time.

source ─ cloud ─ normalised ─ some of its points, by the sample's key or always the same ─ batch ─ augmented
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from hybridmap.data.base import Dataset, Sample, UnreadableImage
from hybridmap.data.clouds.families import FAMILIES
from hybridmap.data.clouds.files import CloudFiles
from hybridmap.data.clouds.modelnet40 import open_modelnet40
from hybridmap.data.clouds.procedural import Procedural
from hybridmap.data.clouds.scanobjectnn import ScanObjectNN, Variant
from hybridmap.data.clouds.shapenet55 import ShapeNet55
from hybridmap.data.clouds.source import CloudSource, normalise_cloud
from hybridmap.data.point_augment import PointAugment, Unmoved
from hybridmap.errors import UserError
from hybridmap.hashing import hash_ints

_STREAM = 0x636C6F75


class PointClouds(Dataset):
    """Abstract: a concrete class opens its source."""

    @dataclass(frozen=True, kw_only=True)
    class Config(Dataset.Config):
        points: int = 1024
        """Points of a cloud that is handed out."""
        sampling: Literal["random", "first"] = "random"
        """Which points: drawn anew each time, without replacement where there are enough; or the first ones of the file, the
        same every time, as in tests on clouds that are stored in order of farthest point sampling."""
        pool: int | None = None
        """Points among which are drawn, the first of the file; None = all. Of clouds stored in order of farthest point sampling
        the first ones are spread evenly: the official trainers draw 1024 of 1200, or 2048 of 2400."""
        augment: PointAugment.Config = field(default_factory=Unmoved.Config)
        """What is done to a batch of clouds."""

        def __post_init__(self) -> None:
            super().__post_init__()
            if self.points < 1:
                raise UserError(f"data.points must be at least 1, got {self.points}")
            if self.pool is not None and self.pool < self.points:
                raise UserError(f"data.pool must be at least data.points = {self.points}, got {self.pool}")
            if self.sampling not in ("random", "first"):
                raise UserError(f"data.sampling must be random or first, got {self.sampling!r}")

    config: PointClouds.Config
    noun = "clouds"

    def __init__(self, config: PointClouds.Config) -> None:
        """Open the source.

        Raises:
            UserError: if there is none.
        """
        super().__init__(config)
        self.source = self.open()
        self.classes = self.source.classes
        self.augment: PointAugment = config.augment.build()

    @abstractmethod
    def open(self) -> CloudSource:
        """Where the clouds come from."""

    def __len__(self) -> int:
        return len(self.source)

    def empty(self) -> Tensor:
        return torch.empty(0, self.config.points, 3)

    def sample(self, index: int, key: int) -> Sample:
        cloud, name = self.source.read(index), self.source.name(index)
        wanted, there = self.config.points, len(cloud.points)
        if self.config.sampling == "random":
            generator = np.random.Generator(np.random.Philox(key=hash_ints(key, _STREAM) & ((1 << 64) - 1)))
            pool = there if self.config.pool is None else min(self.config.pool, there)
            chosen = generator.choice(pool, wanted, replace=pool < wanted)
        elif there < wanted:
            raise UnreadableImage(name, f"it has {there} points where {wanted} are wanted")
        else:
            chosen = np.arange(wanted)
        points = normalise_cloud(cloud.points) if self.source.normalised else cloud.points
        return Sample(image=torch.from_numpy(np.ascontiguousarray(points[chosen])), label=cloud.label, path=name)

    def change(self, images: Tensor, keys: Sequence[int]) -> Tensor:
        return self.augment(images, keys)

    def describe(self) -> str:
        return f"the clouds of {self.source.place}"


class MadeShapes(PointClouds):
    """Shapes that are made: fourteen families, nothing to download."""

    @dataclass(frozen=True, kw_only=True)
    class Config(PointClouds.Config):
        count: int = 1120
        """Shapes, of all families equally many."""
        seed: int = 0
        """Other seeds give other shapes."""
        families: tuple[str, ...] = tuple(FAMILIES)
        """Which, as classes in this order."""
        dense: int = 2048
        """Points of a shape, of which ``points`` are handed out."""

    config: MadeShapes.Config

    def open(self) -> CloudSource:
        return Procedural(self.config.count, self.config.dense, self.config.seed, self.config.families)


class CloudFolder(PointClouds):
    """A folder of meshes or clouds (.ply, .obj, .off, .stl, .npy, .xyz), classes by first-level directories."""

    @dataclass(frozen=True, kw_only=True)
    class Config(PointClouds.Config):
        root: str = ""
        """The directory."""
        split: Literal["all", "train", "test"] = "all"
        """All, or a part."""

    config: CloudFolder.Config

    def open(self) -> CloudSource:
        return CloudFiles(self.config.root, self.config.split)


class ShapeNet(PointClouds):
    """ShapeNet55, which the field pretrains on."""

    @dataclass(frozen=True, kw_only=True)
    class Config(PointClouds.Config):
        root: str = ""
        """ShapeNet55-34, or the folder that it lies in."""
        split: Literal["train", "test", "all"] = "train"
        """Its own lists."""

    config: ShapeNet.Config

    def open(self) -> CloudSource:
        return ShapeNet55(self.config.root, self.config.split)


class ModelNet(PointClouds):
    """ModelNet40, as text, as the cache of 8192 points, or in HDF5."""

    @dataclass(frozen=True, kw_only=True)
    class Config(PointClouds.Config):
        root: str = ""
        """The folder of one of the three."""
        split: Literal["train", "test"] = "train"
        """Its own lists."""

    config: ModelNet.Config

    def open(self) -> CloudSource:
        return open_modelnet40(self.config.root, self.config.split)


class Scans(PointClouds):
    """ScanObjectNN, in three variants."""

    @dataclass(frozen=True, kw_only=True)
    class Config(PointClouds.Config):
        root: str = ""
        """The folder that main_split and main_split_nobg lie in."""
        split: Literal["train", "test"] = "train"
        """Its own division."""
        variant: Variant = "pb_t50_rs"
        """With background, without, or moved, rotated and scaled."""

    config: Scans.Config

    def open(self) -> CloudSource:
        return ScanObjectNN(self.config.root, self.config.split, self.config.variant)
