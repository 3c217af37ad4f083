"""What predictions are compared with."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from hybridmap import config as configuration
from hybridmap.config import Configurable
from hybridmap.errors import UserError
from hybridmap.types import Mask, Patches


class Target(Configurable):
    """Abstract: what is predicted for each patch, and how far a prediction is from it."""

    @dataclass(frozen=True, kw_only=True)
    class Config(configuration.Config):
        """Fields that all targets have: none."""

    config: Any

    @abstractmethod
    def loss(
        self, pred: Float[Tensor, "B N P"], patches: Patches, mask: Mask | None, key: Int[Tensor, "B"] | None = None
    ) -> Float[Tensor, ""]:
        """Mean over the masked patches, each with the same weight; over all patches without a mask.

        ``key`` names the samples, for targets that draw something.

        Raises:
            UserError: if the mask hides nothing.
        """

    @abstractmethod
    def unnormalise(self, pred: Float[Tensor, "B N P"], patches: Patches) -> Float[Tensor, "B N P"]:
        """Predictions on the scale of ``patches.content``, for pictures; looks at the true patches where it must."""


class Pixels(Target):
    """The pixels of a patch, normalised by the mean and the deviation of that patch; squared error.

    ``target = (x - mean) / sqrt(variance + 1e-6)`` over the P values of a patch, with the unbiased variance (divisor P - 1);
    the loss of a patch is the mean over its values. Both are computed in at least float32, whatever the prediction comes in.
    Source: MAE (arXiv:2111.06377); facebookresearch/mae:models_mae.py, yunzeliu/MAP:models_mamba.py.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config(Target.Config):
        normalise: bool = True
        """Normalise every patch; otherwise its pixels are compared as they are."""

    config: Pixels.Config

    def values(self, patches: Patches) -> Float[Tensor, "B N P"]:
        """The targets of all patches, by position in the scan.

        Raises:
            UserError: if a patch holds a single value, which has no deviation.
        """
        x = _exact(patches.content)
        if not self.config.normalise:
            return x
        mean, deviation = self._moments(x)
        return (x - mean) / deviation

    def loss(
        self, pred: Float[Tensor, "B N P"], patches: Patches, mask: Mask | None, key: Int[Tensor, "B"] | None = None
    ) -> Float[Tensor, ""]:
        error = (_exact(pred) - self.values(patches)).square().mean(-1)  # (B, N)
        if mask is None:
            return error.mean()
        batch, patch_count = mask.masked.shape
        masked_count = batch * (patch_count - mask.visible.shape[1])  # on the host
        if masked_count == 0:
            raise UserError('no patch is masked, and the loss is over masked patches; use loss_on="all" with a mask ratio of 0')
        return error.masked_fill(~mask.masked, 0.0).sum() / masked_count

    def unnormalise(self, pred: Float[Tensor, "B N P"], patches: Patches) -> Float[Tensor, "B N P"]:
        if not self.config.normalise:
            return _exact(pred)
        mean, deviation = self._moments(_exact(patches.content))
        return _exact(pred) * deviation + mean

    def _moments(self, x: Float[Tensor, "B N P"]) -> tuple[Float[Tensor, "B N 1"], Float[Tensor, "B N 1"]]:
        if x.shape[-1] < 2:
            raise UserError("patches of a single value cannot be normalised; use larger patches or normalise=False")
        variance, mean = torch.var_mean(x, dim=-1, keepdim=True)
        return mean, (variance + 1e-6).sqrt()


def _exact(x: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """In at least float32."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
