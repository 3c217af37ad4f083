"""Any set of images: files in directories or in shards, labelled or not, of mixed size, mode, orientation and format.

photos/cat/1.jpg, photos/dog/2.png      every image lies in a first-level directory: those are the classes
photos/1.jpg, photos/2019/2.png         one does not: no labels
photos/train/cat/1.jpg, photos/val/...  split="train" and "test" are these directories; where they are missing, one
                                        image in ten is held out, always the same
photos/000000.tar, https://...          WebDataset's tar shards and Parquet files (``hybridmap.data.opening``)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from torch import Tensor

from hybridmap.data.augment import Augment, Unchanged
from hybridmap.data.base import ImageDataset, Sample
from hybridmap.data.decode import decode
from hybridmap.data.erasing import erase
from hybridmap.data.image_transforms import Crop, RandomResizedCrop
from hybridmap.data.opening import open_source
from hybridmap.data.source import Source
from hybridmap.errors import UserError


class ImageFolder(ImageDataset):
    """The images at one place, in the order in which its source has them."""

    @dataclass(frozen=True, kw_only=True)
    class Config(ImageDataset.Config):
        root: str = ""
        """A directory of images, searched with all below it (names that start with a dot are passed over); a directory of
        .tar or .parquet shards; or an address of shards with braces, such as https://host/shard-{000000..001280}.tar."""
        split: Literal["all", "train", "test"] = "all"
        """All images, or a part: the directories train and val (or test) of ``root`` where both exist, or shards with these
        words in their names, else by ``held_out``."""
        held_out: float = 0.1
        """Part of each class that is the test split where ``root`` does not tell the splits apart."""
        crop: Crop.Config = field(default_factory=RandomResizedCrop.Config)
        """How an image of any size becomes one of ``size``."""
        augment: Augment.Config = field(default_factory=Unchanged.Config)
        """What is done to the crops."""
        erasing: float = 0.0
        """Part of the training images in which a box is filled with noise (random erasing)."""
        workers: int = 2
        """Processes that prepare images besides the one that trains; 0 prepares them in it. The samples are the same."""
        cache: str = ""
        """Directory for shards that are fetched from elsewhere; empty = in the user's cache."""

        def __post_init__(self) -> None:
            super().__post_init__()
            if not 0 < self.held_out < 1:
                raise UserError(f"data.held_out must be a part between 0 and 1, got {self.held_out}")
            if not 0 <= self.erasing <= 1:
                raise UserError(f"data.erasing must be a part between 0 and 1, got {self.erasing}")

    config: ImageFolder.Config

    def __init__(self, config: Config) -> None:
        """Find out what there is.

        Raises:
            UserError: if ``root`` is missing, cannot be read, or holds no image.
        """
        super().__init__(config)
        self.source: Source = open_source(config.root, config.split, held_out=config.held_out, cache=config.cache)
        self.classes, self.blocks = self.source.classes, self.source.blocks
        self.crop: Crop = config.crop.build()
        self.augment: Augment = config.augment.build()

    def __len__(self) -> int:
        return len(self.source)

    def sample(self, index: int, key: int) -> Sample:
        size = self.config.image_size

        def shrink(full: tuple[int, int]) -> float:
            window = self.crop.window(full, size, key)
            return min(window[0] / size[0], window[1] / size[1])

        name = self.source.name(index)
        decoded = decode(name, self.source.read(index), shrink)
        image = self.crop(decoded.image, size, key, decoded.full)
        return Sample(image=image, label=self.source.label(index), path=name)

    def change(self, images: Tensor, keys: Sequence[int]) -> Tensor:
        return self.augment(images, keys, self.config.mean)

    def finish(self, images: Tensor, keys: Sequence[int]) -> Tensor:
        finished = super().finish(images, keys)
        return erase(finished, keys, self.config.erasing) if self.config.erasing else finished

    def describe(self) -> str:
        return f"the folder {self.source.place}"

    def labelled(self) -> tuple[str, ...]:
        if self.classes is None:
            raise UserError(
                f"labelled images were expected, each in a directory below {self.source.place} that names its class, or with a "
                f"label in its shard, but {self.source.unlabelled()} has none; sort the images, or pretrain, which needs "
                "no labels"
            )
        return self.classes
