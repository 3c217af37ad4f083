"""Pictures of a run while it goes on: the same images under the same masks, reconstructed anew at every exam."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from hybridmap.config import Config, Configurable
from hybridmap.data.base import ImageDataset
from hybridmap.data.loader import each
from hybridmap.errors import UserError
from hybridmap.report.pictures import Predicts, reconstructions, sheet


class Reconstruction(Configurable):
    """An exam whose answer is a picture: original, visible patches, prediction."""

    @dataclass(frozen=True, kw_only=True)
    class Config(Config):
        test: ImageDataset.Config
        """Images, cropped without randomness; the first ``images`` of them are drawn."""
        images: int = 8
        """Rows of the picture."""

        def __post_init__(self) -> None:
            if self.images < 1:
                raise UserError(f"a picture of reconstructions needs at least one image, got {self.images}")

    config: Reconstruction.Config

    def __call__(self, learner: nn.Module, device: torch.device | str = "cpu") -> dict[str, Any]:
        """``reconstructions``: a picture; nothing where the learner predicts no patches."""
        if not isinstance(learner, Predicts):
            return {}
        data = self.config.test
        images = next(each(data.build(), self.config.images, device=device, workers=0))[0]
        with torch.no_grad():
            return {"reconstructions": sheet(reconstructions(learner, images, data.mean, data.std))}
