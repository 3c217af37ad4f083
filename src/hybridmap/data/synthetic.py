"""Images that need no files: coloured gratings in noise, whose direction and fineness tell their class.

For tests, benchmarks and first steps. They can be learned, so that a falling loss or a rising accuracy means something.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hybridmap.data.base import ImageDataset, Sample, Samples, key_of_view
from hybridmap.errors import UserError
from hybridmap.hashing import uniform

_STREAM = 0x67726174
"""The hash stream that phases, colours and noise come from."""


class Synthetic(ImageDataset):
    """``length`` images (3, height, width), about mean 0 and variance 1, each a function of its label and key alone.

    Views of an image are other gratings of its class.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config(ImageDataset.Config):
        length: int = 1024
        """Images in one pass through the set."""
        num_classes: int = 10
        """Classes; image i has class i modulo this number."""
        noise: float = 0.5
        """Standard deviation of the noise; the grating's is about 0.7."""

        def __post_init__(self) -> None:
            super().__post_init__()
            if self.length < 1 or self.num_classes < 1:
                raise UserError(
                    f"synthetic data needs one image and one class, got length {self.length}, num_classes {self.num_classes}"
                )

    config: Synthetic.Config

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.classes = tuple(f"grating{i}" for i in range(config.num_classes))

    def __len__(self) -> int:
        return self.config.length

    def sample(self, index: int, key: int) -> Sample:
        one = self.samples([index], [key])
        return Sample(image=one.images[0], label=int(one.labels[0]), path=one.paths[0])

    def samples(
        self, indices: Sequence[int], keys: Sequence[int], *, view: int | None = None, substitute: bool = True
    ) -> Samples:
        """A batch of gratings (B, C, height, width), C as many as ``mean`` has, at most 3. Nothing here can be unreadable."""
        height, width = self.config.image_size
        key_tensor = torch.tensor(keys, dtype=torch.int64)
        labels = torch.tensor(indices, dtype=torch.int64) % self.config.num_classes
        drawn = torch.tensor([key_of_view(key, view) for key in keys], dtype=torch.int64)
        images = self._gratings(labels, drawn, height, width)
        return Samples(images=images, labels=labels, paths=tuple(f"synthetic:{i}" for i in indices), keys=key_tensor)

    def _gratings(self, labels: Tensor, keys: Tensor, height: int, width: int) -> Tensor:
        draws = uniform(keys, 4 + 3 * height * width, _STREAM)  # (B, phase and colour, then noise)
        angle = labels * (math.pi / self.config.num_classes)  # (B,)
        cycles = 3.0 + labels % 3  # (B,) periods along the height
        row = torch.arange(height)[:, None] / height
        column = torch.arange(width)[None, :] / height
        along = angle.cos()[:, None, None] * row + angle.sin()[:, None, None] * column  # (B, height, width)
        wave = torch.sin(2 * math.pi * (cycles[:, None, None] * along + draws[:, :1, None]))
        colour = 0.5 + draws[:, 1:4, None, None]  # (B, 3, 1, 1)
        # A uniform number has variance 1/12.
        noise = (draws[:, 4:].view(-1, 3, height, width) - 0.5) * (self.config.noise * math.sqrt(12))
        return (colour * wave[:, None] + noise)[:, : len(self.config.mean)]

    def describe(self) -> str:
        return "the synthetic data"
