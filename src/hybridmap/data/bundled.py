"""Real images without a download: crops of the photographs and textures that ship inside scikit-image and scikit-learn.

    left half of each picture ─> training crops          right half ─> test crops          label = which picture

The question is honest because no pixel is in both sets, crops are grey (colour would give the answer away) and of equal mean
and variance (so would brightness and contrast). Nearest neighbours on raw pixels are right about one time in four. The pictures
are found beside the installed packages and read as files; the packages are not imported and nothing is fetched.

An image of this set is a crop, not a picture: views of it are cut out of that crop. Two crops from anywhere in one picture
would tell a contrastive objective which picture they are from, and that is the label.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from hybridmap.data.base import ImageDataset, Sample, Samples, key_of_view
from hybridmap.data.image_transforms import RandomResizedCrop
from hybridmap.errors import UserError
from hybridmap.hashing import uniform, uniform_int

SOURCES = (
    "skimage/data/astronaut.png",
    "skimage/data/brick.png",
    "skimage/data/camera.png",
    "skimage/data/cell.png",
    "skimage/data/chelsea.png",
    "skimage/data/coffee.png",
    "skimage/data/coins.png",
    "skimage/data/grass.png",
    "skimage/data/gravel.png",
    "skimage/data/hubble_deep_field.jpg",
    "skimage/data/ihc.png",
    "skimage/data/moon.png",
    "skimage/data/motorcycle_left.png",
    "skimage/data/page.png",
    "skimage/data/retina.jpg",
    "skimage/data/rocket.jpg",
    "sklearn/datasets/images/china.jpg",
    "sklearn/datasets/images/flower.jpg",
)
"""Photographs and textures, below the folder where packages are; drawings and test patterns are left out."""

_STREAM = 0x63726F70
"""The hash stream that places the crops."""
_FLAT = 2.0
"""Standard deviation, in grey levels of 255, below which a crop counts as empty and is not amplified to full contrast."""
_VIEW = RandomResizedCrop.Config(scale=(0.2, 1.0)).build()
"""Which part of a crop a view shows: as MoCo v2 (arXiv:2003.04297) cuts its images."""


def bundled_files() -> tuple[Path, ...]:
    """The picture files, sorted by name.

    Raises:
        UserError: if a package or a picture of it is missing.
    """
    found = []
    for source in SOURCES:
        package, _, below = source.partition("/")
        spec = importlib.util.find_spec(package)
        if spec is None or spec.origin is None:
            raise UserError(
                f"the bundled photographs need the package {package}, which is missing; pip install hybridmap[demo]"
            )
        found.append(Path(spec.origin).parent / below)
    for path in found:
        if not path.is_file():
            raise UserError(f"the bundled photograph {path} is missing; pip install --force-reinstall hybridmap[demo]")
    return tuple(sorted(found, key=lambda path: path.name))


@cache
def _grey_pictures() -> dict[str, Float[Tensor, "H W"]]:
    """Name -> grey picture in [0, 255], decoded once per process."""
    from PIL import Image

    pictures = {}
    for path in bundled_files():
        with Image.open(path) as image:
            pictures[path.stem] = torch.from_numpy(np.asarray(image.convert("L"), dtype=np.float32).copy())
    return pictures


class BundledPhotos(ImageDataset):
    """About 18 pictures, cut in halves; ``per_source`` crops of each half, every crop's place and scale decided by its key."""

    @dataclass(frozen=True, kw_only=True)
    class Config(ImageDataset.Config):
        size: int | tuple[int, int] = 64
        """Height and width of the crops, in pixels; one number for a square."""
        split: Literal["train", "test"] = "train"
        """The left halves of the pictures, or the right halves."""
        per_source: int = 256
        """Crops of each picture in one pass through the set."""
        scale: tuple[float, float] = (64.0, 160.0)
        """Smallest and largest height of the square that is cut out, in pixels of the picture; drawn evenly on a log scale."""
        flip: bool = False
        """Mirror half of the crops left to right."""
        contrast: float = 0.25
        """Standard deviation of every crop, whose mean is 0. Below 1, so that embedded patches do not drown the positions that
        a network adds to them."""
        mean: tuple[float, ...] = (0.5,)
        """Where zero lies when a crop is shown; the crops themselves are normalised one by one. One number per channel: the
        crops have one channel, or three equal ones for networks that expect colour."""
        std: tuple[float, ...] = (1.0,)
        """The grey that one unit stands for when a crop is shown, as many as of ``mean``."""

        def __post_init__(self) -> None:
            super().__post_init__()
            if self.contrast <= 0:
                raise UserError(f"data.contrast must be positive, got {self.contrast}")
            if self.per_source < 1:
                raise UserError(f"data.per_source must be at least 1, got {self.per_source}")
            if not 1 <= self.scale[0] <= self.scale[1]:
                raise UserError(f"data.scale must be two heights in pixels with 1 <= low <= high, got {self.scale}")

    config: BundledPhotos.Config

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self._halves: dict[str, Tensor] = {}
        for name, picture in _grey_pictures().items():
            middle = picture.shape[1] // 2
            self._halves[name] = picture[:, :middle] if config.split == "train" else picture[:, picture.shape[1] - middle :]
        self.classes = tuple(self._halves)

    def __len__(self) -> int:
        return self.config.per_source * len(self._halves)

    def sample(self, index: int, key: int) -> Sample:
        one = self.samples([index], [key])
        return Sample(image=one.images[0], label=int(one.labels[0]), path=one.paths[0])

    def samples(
        self, indices: Sequence[int], keys: Sequence[int], *, view: int | None = None, substitute: bool = True
    ) -> Samples:
        """A batch of crops (B, C, height, width), one C for each number of ``mean``: float32, mean 0, deviation ``contrast``.

        Nothing here can be unreadable.
        """
        names, config = tuple(self._halves), self.config
        height, width = config.image_size
        key_tensor = torch.tensor(keys, dtype=torch.int64)
        draws = uniform(key_tensor, 4, _STREAM).tolist()  # per crop: size, row, column, flip
        labels = [index // config.per_source for index in indices]
        crops = torch.empty(len(labels), 1, height, width)
        paths = []
        low, high = config.scale
        for slot, label, key, (u_size, u_row, u_column, u_flip) in zip(crops, labels, keys, draws, strict=True):
            half = self._halves[names[label]]
            rows = min(low * (high / low) ** u_size, half.shape[0], half.shape[1] * height / width)
            h, w = max(1, int(rows)), max(1, int(rows * width / height))
            top, left = int((half.shape[0] - h + 1) * u_row), int((half.shape[1] - w + 1) * u_column)
            if view is not None:
                own = key_of_view(key, view)
                down, across, h, w = _VIEW.box((h, w), own)
                top, left, u_flip = top + down, left + across, uniform_int(own, _STREAM)
            window = half[None, None, top : top + h, left : left + w]
            crop = F.interpolate(window, (height, width), mode="bicubic", antialias=True, align_corners=False)[0]
            slot.copy_(crop.flip(-1) if config.flip and u_flip < 0.5 else crop)
            paths.append(f"{names[label]}[{config.split}] {h}x{w}+{top}+{left}")
        crops.sub_(crops.mean(dim=(2, 3), keepdim=True))
        crops.mul_(config.contrast / crops.square().mean(dim=(2, 3), keepdim=True).sqrt_().clamp_min(_FLAT))
        return Samples(
            images=crops.expand(-1, len(config.mean), -1, -1).contiguous(),
            labels=torch.tensor(labels),
            paths=tuple(paths),
            keys=key_tensor,
        )

    def describe(self) -> str:
        return "the bundled photographs"
