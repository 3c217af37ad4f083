"""What is done to a crop beside cropping and mirroring, where a classifier is trained. The sample's key decides all of it.

    ThreeAugment   one of {grey, solarise, blur}, then brightness, contrast and saturation   DeiT III, Mamba-R, HybridNet
    RandAugment    two of fifteen operations at about the same strength                      MAE, Vim, ARM, MambaVision

Both act on uint8 tensors, before the normalisation.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import torchvision.transforms.v2.functional as F
from jaxtyping import UInt8
from PIL import Image
from timm.data import auto_augment as timm
from torch import Tensor

from hybridmap.config import Config, Configurable
from hybridmap.errors import UserError
from hybridmap.hashing import uniform_int

_STREAM = 0x61756774
"""Tells the numbers for augmentation apart from those for the crop, which are drawn from the same key."""


class Augment(Configurable):
    """How a crop is changed, without another size."""

    @dataclass(frozen=True, kw_only=True)
    class Config(Config):
        pass

    @abstractmethod
    def __call__(self, image: UInt8[Tensor, "3 H W"], key: int, mean: Sequence[float]) -> UInt8[Tensor, "3 H W"]:
        """The change that ``key`` names. ``mean``, per channel and at most 1, is the colour of what comes in from outside."""


class Unchanged(Augment):
    """Nothing beside the crop, as in pretraining."""

    @dataclass(frozen=True, kw_only=True)
    class Config(Augment.Config):
        """Nothing to choose."""

    def __call__(self, image: UInt8[Tensor, "3 H W"], key: int, mean: Sequence[float]) -> UInt8[Tensor, "3 H W"]:
        return image


class ThreeAugment(Augment):
    """One of grey, solarised and blurred, each as often; then brightness, contrast and saturation in any order.

    Source: arXiv:2204.07118 (DeiT III), ``deit/augment.py`` (Apache-2.0).
    Differs from source: the blur is a Gaussian of that deviation, where Pillow's is three boxes close to it.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config(Augment.Config):
        jitter: float = 0.3
        """Brightness, contrast and saturation are multiplied by a factor in [1 - jitter, 1 + jitter] each; 0 = left alone."""
        blur: tuple[float, float] = (0.1, 2.0)
        """Smallest and largest standard deviation of the blur, in pixels."""

        def __post_init__(self) -> None:
            if not 0 <= self.jitter <= 1:
                raise UserError(f"augment.jitter must lie in [0, 1], got {self.jitter}")
            if not 0 < self.blur[0] <= self.blur[1]:
                raise UserError(f"augment.blur must be two deviations with 0 < low <= high, got {self.blur}")

    config: ThreeAugment.Config

    def __call__(self, image: UInt8[Tensor, "3 H W"], key: int, mean: Sequence[float]) -> UInt8[Tensor, "3 H W"]:
        which, low, spread = int(3 * uniform_int(key, _STREAM)), self.config.blur[0], self.config.blur[1] - self.config.blur[0]
        if which == 0:
            image = F.rgb_to_grayscale(image, num_output_channels=3)
        elif which == 1:
            image = F.solarize(image, 128)
        else:
            sigma = low + spread * uniform_int(key, _STREAM + 1)
            image = F.gaussian_blur(image, [2 * math.ceil(3 * sigma) + 1] * 2, [sigma, sigma])
        return self._jittered(image, key)

    def _jittered(self, image: UInt8[Tensor, "3 H W"], key: int) -> UInt8[Tensor, "3 H W"]:
        if self.config.jitter:
            changes: list[Callable[..., Tensor]] = [F.adjust_brightness, F.adjust_contrast, F.adjust_saturation]
            for k in sorted(range(3), key=lambda k: uniform_int(key, _STREAM + 2 + k)):
                image = changes[k](image, 1 + self.config.jitter * (2 * uniform_int(key, _STREAM + 5 + k) - 1))
        return image


class RandAugment(Augment):
    """A few of fifteen operations, drawn with replacement, each left out half of the time, with a strength around a given one.

    Source: arXiv:1909.13719, in the form of timm.data.auto_augment (Apache-2.0), whose functions do the work, on Pillow images:
    the defaults are its policy rand-m9-mstd0.5-inc1 with bicubic resampling, of the recipes of MAE, DeiT and their descendants.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config(Augment.Config):
        operations: int = 2
        """How many are drawn."""
        probability: float = 0.5
        """Of applying one that was drawn."""
        strength: float = 9.0
        """Mean strength, from 0 to 10."""
        spread: float = 0.5
        """Standard deviation of the strength, which is cut to 0 to 10."""

        def __post_init__(self) -> None:
            if self.operations < 1:
                raise UserError(f"augment.operations must be at least 1, got {self.operations}")
            if not 0 <= self.probability <= 1:
                raise UserError(f"augment.probability must lie in [0, 1], got {self.probability}")
            if not 0 <= self.strength <= 10:
                raise UserError(f"augment.strength must lie in [0, 10], got {self.strength}")
            if self.spread < 0:
                raise UserError(f"augment.spread must be 0 or more, got {self.spread}")

    config: RandAugment.Config

    def __call__(self, image: UInt8[Tensor, "3 H W"], key: int, mean: Sequence[float]) -> UInt8[Tensor, "3 H W"]:
        picture = F.to_pil_image(image)
        outside = {"fillcolor": tuple(round(255 * value) for value in mean), "resample": Image.Resampling.BICUBIC}
        for k in range(self.config.operations):
            applied, which, strength, side = (uniform_int(key, _STREAM + 4 * k + j) for j in range(4))
            if applied < self.config.probability:
                level = self.config.strength
                if self.config.spread:
                    level += self.config.spread * NormalDist().inv_cdf(max(strength, 2.0**-53))
                level = min(max(level, 0.0), 10.0) / 10
                operation = list(OPERATIONS.values())[int(which * len(OPERATIONS))]
                picture = operation(picture, level, -level if side < 0.5 else level, outside)
        return F.pil_to_tensor(picture)


def _factor(signed: float) -> float:
    return max(0.1, 1 + 0.9 * signed)


def _posterize(image: Image.Image, bits: int) -> Image.Image:
    """With no bits, which Pillow refuses, black."""
    return timm.posterize(image, bits) if bits else Image.new(image.mode, image.size)


OPERATIONS: dict[str, Callable[[Image.Image, float, float, dict[str, Any]], Image.Image]] = {
    "AutoContrast": lambda image, level, signed, outside: timm.auto_contrast(image),
    "Equalize": lambda image, level, signed, outside: timm.equalize(image),
    "Invert": lambda image, level, signed, outside: timm.invert(image),
    "Rotate": lambda image, level, signed, outside: timm.rotate(image, 30 * signed, **outside),
    "PosterizeIncreasing": lambda image, level, signed, outside: _posterize(image, 4 - int(4 * level)),
    "SolarizeIncreasing": lambda image, level, signed, outside: timm.solarize(image, 256 - int(256 * level)),
    "SolarizeAdd": lambda image, level, signed, outside: timm.solarize_add(image, int(110 * level)),
    "ColorIncreasing": lambda image, level, signed, outside: timm.color(image, _factor(signed)),
    "ContrastIncreasing": lambda image, level, signed, outside: timm.contrast(image, _factor(signed)),
    "BrightnessIncreasing": lambda image, level, signed, outside: timm.brightness(image, _factor(signed)),
    "SharpnessIncreasing": lambda image, level, signed, outside: timm.sharpness(image, _factor(signed)),
    "ShearX": lambda image, level, signed, outside: timm.shear_x(image, 0.3 * signed, **outside),
    "ShearY": lambda image, level, signed, outside: timm.shear_y(image, 0.3 * signed, **outside),
    "TranslateXRel": lambda image, level, signed, outside: timm.translate_x_rel(image, 0.45 * signed, **outside),
    "TranslateYRel": lambda image, level, signed, outside: timm.translate_y_rel(image, 0.45 * signed, **outside),
}
"""timm's name -> the operation on (image, strength in [0, 1], the same with a random sign, what comes in from outside)."""
