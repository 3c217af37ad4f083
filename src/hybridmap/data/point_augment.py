"""What is done to clouds of points in training, a batch at a time; the samples' keys decide all of it.

Rotate               about the vertical axis y, by any angle             Mamba3D, PointMamba
ScaleAndTranslate    each axis by its own factor, then moved             Point-MAE, ModelNet40
RotateAndScale       both, one after the other                           MAP
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from hybridmap.config import Config, Configurable
from hybridmap.errors import UserError
from hybridmap.hashing import uniform

_STREAM = 0x706F696E


class PointAugment(Configurable):
    """Abstract: a change of whole clouds."""

    @dataclass(frozen=True, kw_only=True)
    class Config(Config):
        pass

    @abstractmethod
    def __call__(self, clouds: Float[Tensor, "B P 3"], keys: Sequence[int]) -> Float[Tensor, "B P 3"]:
        """The changes that ``keys`` (on the host) name, to each cloud its own, on any device."""


class Unmoved(PointAugment):
    """Nothing."""

    @dataclass(frozen=True, kw_only=True)
    class Config(PointAugment.Config):
        """Nothing to choose."""

    def __call__(self, clouds: Float[Tensor, "B P 3"], keys: Sequence[int]) -> Float[Tensor, "B P 3"]:
        return clouds


class Rotate(PointAugment):
    """About y by an angle between 0 and a full turn. Source: xhanxu/Mamba3D (section 5 of its data transforms)."""

    @dataclass(frozen=True, kw_only=True)
    class Config(PointAugment.Config):
        """Nothing to choose."""

    def __call__(self, clouds: Float[Tensor, "B P 3"], keys: Sequence[int]) -> Float[Tensor, "B P 3"]:
        angle = 2 * math.pi * uniform(torch.tensor(keys), 1, _STREAM)[:, 0]
        cos, sin, zero, one = angle.cos(), angle.sin(), torch.zeros(len(keys)), torch.ones(len(keys))
        rows = [torch.stack(row, dim=1) for row in ((cos, zero, sin), (zero, one, zero), (-sin, zero, cos))]
        return clouds @ torch.stack(rows, dim=1).to(clouds.device, non_blocking=True)


class ScaleAndTranslate(PointAugment):
    """``x * scale + shift``, both drawn for each axis. Source: Point-MAE, datasets/data_transforms.py (MIT)."""

    @dataclass(frozen=True, kw_only=True)
    class Config(PointAugment.Config):
        scale: tuple[float, float] = (2 / 3, 3 / 2)
        """Smallest and largest factor."""
        shift: float = 0.2
        """Largest movement along an axis, either way."""

        def __post_init__(self) -> None:
            if not 0 < self.scale[0] <= self.scale[1]:
                raise UserError(f"augment.scale must be two factors with 0 < low <= high, got {self.scale}")
            if self.shift < 0:
                raise UserError(f"augment.shift must be 0 or more, got {self.shift}")

    config: ScaleAndTranslate.Config

    def __call__(self, clouds: Float[Tensor, "B P 3"], keys: Sequence[int]) -> Float[Tensor, "B P 3"]:
        (low, high), most = self.config.scale, self.config.shift
        drawn = uniform(torch.tensor(keys), 6, _STREAM + 1).to(clouds.device, non_blocking=True)[:, None]
        return clouds * (low + (high - low) * drawn[..., :3]) + most * (2 * drawn[..., 3:] - 1)


class RotateAndScale(PointAugment):
    """What the paper names: random rotation, then random scale and translation."""

    @dataclass(frozen=True, kw_only=True)
    class Config(ScaleAndTranslate.Config):
        """As :class:`ScaleAndTranslate`."""

    config: RotateAndScale.Config

    def __init__(self, config: RotateAndScale.Config) -> None:
        super().__init__(config)
        self._steps = (Rotate.Config().build(), ScaleAndTranslate.Config(scale=config.scale, shift=config.shift).build())

    def __call__(self, clouds: Float[Tensor, "B P 3"], keys: Sequence[int]) -> Float[Tensor, "B P 3"]:
        for step in self._steps:
            clouds = step(clouds, keys)
        return clouds
