"""Mixup and CutMix: a batch is blended with its own reversal, and the targets with it.

    mixup    x' = lam x + (1 - lam) x[::-1]                              lam from Beta(alpha, alpha)
    cutmix   a box of area about 1 - lam of x is replaced by x[::-1]'s    lam is then the share of x that is left
    targets  y' = lam y + (1 - lam) y[::-1]

This is ``timm.data.Mixup`` in batch mode. But timm draws from NumPy's global generator, and nothing here touches that: draws
come from torch's default CPU generator, which the training loop seeds, as Python numbers, so nothing waits for the device.
Source: arXiv:1710.09412 (mixup), arXiv:1905.04899 (CutMix), timm.data.mixup.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from torch.distributions import Beta

from hybridmap.config import Config, Configurable
from hybridmap.errors import UserError


class Mixing(Configurable):
    """Blends images of a batch; says by how much, so that the targets can follow."""

    @dataclass(frozen=True, kw_only=True)
    class Config(Config):
        mixup: float = 0.8
        """Parameter of mixup's Beta distribution; 0 = no mixup."""
        cutmix: float = 1.0
        """Parameter of CutMix's Beta distribution; 0 = no CutMix."""
        probability: float = 1.0
        """Of mixing a batch at all."""
        switch: float = 0.5
        """Of choosing CutMix, where both are on."""

    def __init__(self, config: Mixing.Config) -> None:
        super().__init__(config)
        if config.mixup < 0 or config.cutmix < 0:
            raise UserError(f"mixup and cutmix must be 0 (off) or positive, got {config.mixup} and {config.cutmix}")
        if not (0 <= config.probability <= 1 and 0 <= config.switch <= 1):
            raise UserError(f"probabilities must lie between 0 and 1, got {config.probability} and {config.switch}")

    def __call__(self, images: Float[Tensor, "B ..."]) -> tuple[Float[Tensor, "B ..."], float]:
        """(mixed images, share ``lam`` that each image kept); 1.0 where this batch is left alone."""
        config = self.config
        alphas = {"mixup": config.mixup, "cutmix": config.cutmix}
        if not (config.mixup or config.cutmix) or _uniform() >= config.probability:
            return images, 1.0
        kind = "mixup" if not config.cutmix or (config.mixup and _uniform() >= config.switch) else "cutmix"
        lam = float(Beta(alphas[kind], alphas[kind]).sample())
        return blend(images, lam) if kind == "mixup" else cut(images, lam, _uniform(), _uniform())


def blend(images: Float[Tensor, "B ..."], lam: float) -> tuple[Float[Tensor, "B ..."], float]:
    """Mixup with a given share."""
    return images * lam + images.flip(0) * (1 - lam), lam


def cut(images: Float[Tensor, "B ..."], lam: float, y: float, x: float) -> tuple[Float[Tensor, "B ..."], float]:
    """CutMix with a box of sides sqrt(1 - lam) of the image's, centred at (y, x) in [0, 1), clipped at the border."""
    height, width = images.shape[-2:]
    top, bottom = _span(height, (1 - lam) ** 0.5, y)
    left, right = _span(width, (1 - lam) ** 0.5, x)
    mixed = images.clone()
    mixed[..., top:bottom, left:right] = images.flip(0)[..., top:bottom, left:right]
    return mixed, 1 - (bottom - top) * (right - left) / (height * width)


def _span(length: int, share: float, at: float) -> tuple[int, int]:
    extent, centre = int(length * share), int(length * at)
    return max(centre - extent // 2, 0), min(centre + (extent + 1) // 2, length)


def _uniform() -> float:
    return float(torch.rand(()))
