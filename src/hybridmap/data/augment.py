"""What is done to crops beside cropping and mirroring, where a classifier is trained. The samples' keys decide all of it.

    ThreeAugment   one of {grey, solarise, blur}, then brightness, contrast and saturation   DeiT III, Mamba-R, HybridNet
    RandAugment    two of fifteen operations at about the same strength                      MAE, Vim, ARM, MambaVision

Both act on a batch of bytes, before the normalisation: on the GPU where there is one, else in the processes that prepare it. A
batch goes through rounds. In each, every image draws one operation and its amount, on the host; those that drew the same one
are treated at once.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from hybridmap.config import Config, Configurable
from hybridmap.data import image_operations as op
from hybridmap.data.image_operations import Amount, Images
from hybridmap.errors import UserError
from hybridmap.hashing import uniform

_STREAM = 0x61756774
"""Tells the numbers for augmentation apart from those for the crop, which are drawn from the same key."""

Operation = Callable[[Images, Amount, UInt8[Tensor, "3"]], Images]
"""(images, amount, colour of what comes in from outside) -> images."""


class Augment(Configurable):
    """How crops are changed, without another size."""

    @dataclass(frozen=True, kw_only=True)
    class Config(Config):
        pass

    @abstractmethod
    def __call__(self, images: UInt8[Tensor, "B 3 H W"], keys: Sequence[int], mean: Sequence[float]) -> Images:
        """The changes that ``keys`` name, to each image its own, whatever stands beside it; ``images`` are left as they are.

        Args:
            images: on any device.
            keys: one for each image, on the host; nobody waits for the device.
            mean: per channel and at most 1, the colour of what comes in from outside.
        """


class Unchanged(Augment):
    """Nothing beside the crop, as in pretraining."""

    @dataclass(frozen=True, kw_only=True)
    class Config(Augment.Config):
        """Nothing to choose."""

    def __call__(self, images: UInt8[Tensor, "B 3 H W"], keys: Sequence[int], mean: Sequence[float]) -> Images:
        return images


def _round(
    images: UInt8[Tensor, "B 3 H W"],
    operations: Sequence[Operation],
    which: Int[Tensor, "B"],
    amounts: Float[Tensor, "B"],
    outside: UInt8[Tensor, "3"],
) -> None:
    """Change each image, in place, by the operation of its number (none beyond the last). ``which`` and ``amounts`` (float64)
    are on the host."""
    rows = which.argsort()
    counts = which.bincount(minlength=len(operations)).tolist()
    amounts = amounts[rows].to(images.device, non_blocking=True)
    if images.is_cuda:
        rows = rows.to(images.device, non_blocking=True)
    for operation, chosen, amount in zip(operations, rows.split(counts), amounts.split(counts), strict=False):
        if images.is_cuda:
            if len(chosen):
                images[chosen] = operation(images[chosen], amount, outside)
        else:  # one at a time, as a view: it stays in the cache from one line of the operation to the next
            for row, by in zip(chosen.tolist(), amount.split(1), strict=False):
                one = images[row : row + 1]
                one.copy_(operation(one, by, outside))


def _outside(mean: Sequence[float], device: torch.device) -> UInt8[Tensor, "3"]:
    return torch.tensor([round(255 * value) for value in mean], dtype=torch.uint8).to(device, non_blocking=True)


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

    def __call__(self, images: UInt8[Tensor, "B 3 H W"], keys: Sequence[int], mean: Sequence[float]) -> Images:
        low, high = self.config.blur
        first: list[Operation] = [
            lambda images, amount, outside: op.grey(images),
            lambda images, amount, outside: op.solarise(images, torch.full_like(amount, 128)),
            lambda images, amount, outside: op.blur(images, amount, high),
        ]
        jitter: list[Operation] = [
            lambda images, amount, outside: op.brightness(images, amount),
            lambda images, amount, outside: op.contrast(images, amount),
            lambda images, amount, outside: op.colour(images, amount),
        ]
        images, outside = images.clone(memory_format=torch.contiguous_format), _outside(mean, images.device)
        drawn = uniform(torch.tensor(keys), 8, _STREAM).double()
        _round(images, first, (3 * drawn[:, 0]).long(), low + (high - low) * drawn[:, 1], outside)
        if self.config.jitter:
            order, factors = drawn[:, 2:5].argsort(dim=1), 1 + self.config.jitter * (2 * drawn[:, 5:8] - 1)
            for which in order.unbind(1):
                _round(images, jitter, which, factors.gather(1, which[:, None])[:, 0], outside)
        return images


class RandAugment(Augment):
    """A few of fifteen operations, drawn with replacement, each left out half of the time, with a strength around a given one.

    Source: arXiv:1909.13719, in the form of timm.data.auto_augment (Apache-2.0): the defaults are its policy
    rand-m9-mstd0.5-inc1 with bicubic resampling, of the recipes of MAE, DeiT and their descendants.
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

    def __call__(self, images: UInt8[Tensor, "B 3 H W"], keys: Sequence[int], mean: Sequence[float]) -> Images:
        images, outside = images.clone(memory_format=torch.contiguous_format), _outside(mean, images.device)
        operations = list(OPERATIONS.values())
        drawn = uniform(torch.tensor(keys), 4 * self.config.operations, _STREAM).double()
        for applied, which, normal, side in drawn.view(len(keys), -1, 4).movedim(0, 2):
            level = self.config.strength + self.config.spread * torch.special.ndtri(normal.clamp(min=2**-25))
            level = level.clamp(0, 10) / 10
            number = torch.where(applied < self.config.probability, (which * len(operations)).long(), len(operations))
            _round(images, operations, number, torch.where(side < 0.5, -level, level), outside)
        return images


def _factor(signed: Amount) -> Amount:
    return (1 + 0.9 * signed).clamp(min=0.1)


OPERATIONS: dict[str, Operation] = {
    "AutoContrast": lambda images, signed, outside: op.auto_contrast(images),
    "Equalize": lambda images, signed, outside: op.equalise(images),
    "Invert": lambda images, signed, outside: op.invert(images),
    "Rotate": lambda images, signed, outside: op.rotate(images, 30 * signed, outside),
    "PosterizeIncreasing": lambda images, signed, outside: op.posterise(images, 4 - (4 * signed.abs()).floor()),
    "SolarizeIncreasing": lambda images, signed, outside: op.solarise(images, 256 - (256 * signed.abs()).floor()),
    "SolarizeAdd": lambda images, signed, outside: op.solarise_add(images, (110 * signed.abs()).floor()),
    "ColorIncreasing": lambda images, signed, outside: op.colour(images, _factor(signed)),
    "ContrastIncreasing": lambda images, signed, outside: op.contrast(images, _factor(signed)),
    "BrightnessIncreasing": lambda images, signed, outside: op.brightness(images, _factor(signed)),
    "SharpnessIncreasing": lambda images, signed, outside: op.sharpness(images, _factor(signed)),
    "ShearX": lambda images, signed, outside: op.shear(images, 0.3 * signed, "x", outside),
    "ShearY": lambda images, signed, outside: op.shear(images, 0.3 * signed, "y", outside),
    "TranslateXRel": lambda images, signed, outside: op.translate(images, 0.45 * signed, "x", outside),
    "TranslateYRel": lambda images, signed, outside: op.translate(images, 0.45 * signed, "y", outside),
}
"""timm's name -> the operation, by a strength between -1 and 1, whose sign is random."""
