"""What a data set is: an index and a key go in, a sample comes out, and nothing else decides what it looks like.

    index, key ─> sample() ─> Sample          one image, cropped as the key says
    indices, keys ─> samples() ─> Samples     a batch of them; files that cannot be read are replaced or left out, and named
    images, keys ─> change() ─> finish()      the batch augmented, then normalised

A data set holds no random state. The same (index, key) gives the same pixels in every process, which is why the number of
loader workers cannot matter, and why a run continues from its step number alone. For objectives that compare crops of one
image, independent crops (views) of it follow from the same key.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import torch
from jaxtyping import Int
from torch import Tensor

from hybridmap.config import Config, Configurable
from hybridmap.data.image_transforms import normalise
from hybridmap.errors import UserError
from hybridmap.hashing import hash_ints

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class UnreadableImage(Exception):
    """One image that cannot be read; ``Dataset.samples`` decides what becomes of it."""

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(path, reason)
        self.path = path
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}"


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One image."""

    image: Tensor
    """(C, height, width); uint8 is yet to be normalised, float32 already is. Or a cloud of points (P, 3), float32."""
    label: int
    """Its class, -1 where the data set has none."""
    path: str
    """The file, or for images that are made, words that say which one it is."""


@dataclass(frozen=True, kw_only=True)
class Samples:
    """A batch of images as the workers hand it over."""

    images: Tensor
    """(B, C, height, width), uint8 or float32 as in ``Sample``; or clouds (B, P, 3)."""
    labels: Int[Tensor, "B"]
    """Classes, -1 where there are none."""
    paths: tuple[str, ...]
    """Where each image came from; a substitute names the file that it was really read from."""
    keys: Int[Tensor, "B"]
    """The key of each image."""
    skipped: dict[str, str] = field(default_factory=dict)
    """Files that could not be read: path -> reason."""

    def pin_memory(self) -> Samples:
        """The same batch in page-locked memory (the loader's machinery calls this when the device is a GPU)."""
        return Samples(
            images=self.images.pin_memory(),
            labels=self.labels.pin_memory(),
            paths=self.paths,
            keys=self.keys.pin_memory(),
            skipped=self.skipped,
        )


def _stacked(images: list[Tensor]) -> Tensor:
    """One batch of images that lie in memory as they did: pixel by pixel where decoders deliver them so."""
    if images[0].stride(0) == 1:
        return torch.stack([image.permute(1, 2, 0) for image in images]).permute(0, 3, 1, 2)
    return torch.stack(images)


def key_of_view(key: int, view: int | None) -> int:
    """The key that decides about one of several independent crops; without ``view`` the sample's own."""
    return key if view is None else hash_ints(key, view)


class Dataset(Configurable):
    """Abstract: a finite, ordered set of images or of clouds. Concrete classes say how many there are and make one of them."""

    @dataclass(frozen=True, kw_only=True)
    class Config(Config):
        workers: int = 0
        """Processes that prepare images besides the one that trains; 0 prepares them in it. The samples are the same."""
        on_error: Literal["substitute", "fail"] = "substitute"
        """What becomes of an image that cannot be read: replaced by the next readable one and counted, or the run stops."""
        views: int = 1
        """Independent crops of each image in a training batch; two for contrastive objectives."""
        repeats: int = 1
        """Times that an image comes in a row, each time cropped and augmented anew; an epoch then has so many fewer images."""

        def __post_init__(self) -> None:
            if self.workers < 0:
                raise UserError(f"data.workers must be 0 or more, got {self.workers}")
            for name in ("views", "repeats"):
                if getattr(self, name) < 1:
                    raise UserError(f"data.{name} must be at least 1, got {getattr(self, name)}")

    config: Dataset.Config
    noun: ClassVar[str] = "images"
    """What its samples are, in messages."""
    classes: tuple[str, ...] | None = None
    """Class names by label; None where the images have no labels."""
    blocks: tuple[int, ...] | None = None
    """Lengths of runs of images that are best read together, in their order; None where any order is as good as any other."""

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def empty(self) -> Tensor:
        """A batch of no samples."""

    @abstractmethod
    def sample(self, index: int, key: int) -> Sample:
        """Image ``index`` as ``key`` would have it cropped.

        Raises:
            UnreadableImage: if the file cannot be read.
        """

    def samples(
        self, indices: Sequence[int], keys: Sequence[int], *, view: int | None = None, substitute: bool = True
    ) -> Samples:
        """A batch of images, each tried twice before it is given up.

        What cannot be read is replaced by the next image in the set's order that can, cropped by the same key; with
        ``substitute=False`` (evaluation) it is left out instead, and the batch is smaller. Either way it is reported in
        ``skipped``. The choice depends on the files alone, not on who asks. ``view`` names one of any number of independent
        crops; without it a sample is cropped as its own key says.

        Raises:
            UserError: if ``on_error`` is "fail" and an image cannot be read, or if none can.
        """
        skipped: dict[str, str] = {}
        found, kept_keys = [], []
        for index, key in zip(indices, keys, strict=True):
            sample = self._first_readable(index, key_of_view(key, view), len(self) if substitute else 1, skipped)
            if sample is not None:
                found.append(sample)
                kept_keys.append(key)
            elif substitute:
                path, reason = next(iter(skipped.items()))
                raise UserError(f"none of the {len(self)} {self.noun} can be read; the first of them is {path}: {reason}")
        images = _stacked([s.image for s in found]) if found else self.empty()
        return Samples(
            images=images,
            labels=torch.tensor([s.label for s in found], dtype=torch.int64),
            paths=tuple(s.path for s in found),
            keys=torch.tensor(kept_keys, dtype=torch.int64),
            skipped=skipped,
        )

    def _first_readable(self, index: int, key: int, candidates: int, skipped: dict[str, str]) -> Sample | None:
        """The sample at ``index`` or the next after it (around the end) that can be read, among ``candidates`` of them."""
        for candidate in range(index, index + candidates):
            # The second try is for storage that fails once in a while, not for the file.
            for last_try in (False, True):
                try:
                    return self.sample(candidate % len(self), key)
                except UnreadableImage as error:
                    if last_try and self.config.on_error == "fail":
                        mend = "mend it, remove it, or use --data.on-error substitute"
                        raise UserError(f"{error.path} cannot be read ({error.reason}); {mend}") from None
                    if last_try:
                        skipped[error.path] = error.reason
        return None

    def change(self, images: Tensor, keys: Sequence[int]) -> Tensor:
        """A batch of ``samples``, augmented: by the workers, or on a GPU if the batch is going to be there anyway.

        ``keys`` are those of the images, on the host. Data sets that augment say so here.
        """
        return images

    def normalised(self, images: Tensor) -> Tensor:
        """A batch as the network gets it, on its device."""
        return images

    def finish(self, images: Tensor, keys: Sequence[int]) -> Tensor:
        """A training batch as the network gets it, from an augmented one, on its device: normalised.

        ``keys`` are those of the images, on the host. Data sets that change images after that say so here.
        """
        return self.normalised(images)

    def labelled(self) -> tuple[str, ...]:
        """The class names, for tasks that cannot do without.

        Raises:
            UserError: if the images have no labels.
        """
        if self.classes is None:
            raise UserError(f"labelled images were expected, but {self.describe()} has no classes; choose data that has them")
        return self.classes

    def describe(self) -> str:
        """A few words that name this data set in messages."""
        return type(self).__name__


class ImageDataset(Dataset):
    """Abstract: images of one size."""

    @dataclass(frozen=True, kw_only=True)
    class Config(Dataset.Config):
        size: int | tuple[int, int] = 224
        """Height and width of the images handed out, in pixels; one number for a square."""
        mean: tuple[float, ...] = IMAGENET_MEAN
        """Mean per channel that is subtracted, where white is 1."""
        std: tuple[float, ...] = IMAGENET_STD
        """Standard deviation per channel that is divided by, where white is 1."""

        def __post_init__(self) -> None:
            super().__post_init__()
            if min(self.image_size) < 1:
                raise UserError(f"data.size must be at least 1 pixel, got {self.size}")
            if len(self.mean) != len(self.std):
                raise UserError(f"data.mean and data.std need one number per channel, got {self.mean} and {self.std}")
            if min(self.std) <= 0:
                raise UserError(f"data.std must be positive in every channel, got {self.std}")

        @property
        def image_size(self) -> tuple[int, int]:
            """(height, width) in pixels."""
            return (self.size, self.size) if isinstance(self.size, int) else self.size

    config: ImageDataset.Config

    def empty(self) -> Tensor:
        return torch.empty(0, 3, *self.config.image_size, dtype=torch.uint8)

    def normalised(self, images: Tensor) -> Tensor:
        return normalise(images, self.config.mean, self.config.std)
