"""The linear probe as a training run: the network is frozen, its images are cropped anew in every epoch, as MAE does it.

    images ─> frozen backbone in eval mode ─> one vector per image ─> BatchNorm without weights ─> linear ─> cross-entropy

``LinearProbe`` asks the same question of features that are computed once, and so costs one pass over the images; this is
MAE's protocol to the letter, at the cost of as many passes as there are epochs.
Source: MAE (arXiv:2111.06377), appendix A.1 and ``main_linprobe.py``.
Differs from source: the backbone is in eval mode, which matters to networks with BatchNorm.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from hybridmap.backbones.base import ImageBackbone
from hybridmap.errors import UserError
from hybridmap.layers.pos_embed import on_grid
from hybridmap.tasks.classifier import Classifier
from hybridmap.tasks.features import describe
from hybridmap.types import Batch, InitReport, Loss

_BACKBONE = "backbone."
_READ_OUT = ("registers.", "head.", "cls_", "norm.")
"""Parts of a backbone that only another way of reading it out needs."""


class LinearClassification(Classifier):
    """A learner: a linear classifier on what the frozen backbone says of an image."""

    @dataclass(frozen=True, kw_only=True)
    class Config(Classifier.Config):
        """The network as pretraining builds it: without registers, neck and head."""

    config: LinearClassification.Config

    def __init__(self, config: LinearClassification.Config) -> None:
        super().__init__(config)
        self.backbone: ImageBackbone = config.backbone.image_encoder().build().requires_grad_(False)
        self.norm = nn.BatchNorm1d(self.backbone.num_features, affine=False, eps=1e-6)
        self.head = nn.Linear(self.backbone.num_features, config.num_classes)
        nn.init.trunc_normal_(self.head.weight, std=0.01)
        nn.init.zeros_(self.head.bias)
        self.train()

    def train(self, mode: bool = True) -> LinearClassification:
        """As every module; but the backbone stays in eval mode."""
        super().train(mode)
        self.backbone.eval()
        return self

    def forward(self, batch: Batch) -> Loss:
        """The loss of a labelled batch.

        Raises:
            UserError: if the data has no labels.
        """
        return self.step(batch.inputs, self.labels_of(batch))

    def step(self, images: Float[Tensor, "B ..."], labels: Int[Tensor, "B"]) -> Loss:
        """Cross-entropy in at least fp32. Public, because it is what gets compiled."""
        logits = self.logits(images)
        return Loss(total=F.cross_entropy(logits.to(torch.promote_types(logits.dtype, torch.float32)), labels))

    def logits(self, images: Float[Tensor, "B ..."]) -> Float[Tensor, "B classes"]:
        with torch.no_grad():
            features = describe(self.backbone, images)
        return self.head(self.norm(features))

    def initialise(self, weights: dict[str, Tensor]) -> InitReport:
        """Take over the backbone of any run or file, by our names; the classifier starts fresh unless it is one of this kind.

        Raises:
            UserError: if the weights are of another backbone.
        """
        wrapped = any(name.startswith(_BACKBONE) for name in weights)
        given = {name if wrapped or name.startswith("decoder.") else _BACKBONE + name: name for name in weights}
        own = self.state_dict()
        taken: dict[str, Tensor] = {}
        fresh: dict[str, str] = {}
        for name, value in own.items():
            found = weights.get(given.get(name, ""))
            if found is not None and name == "backbone.pos_embed":
                found = on_grid(found, cast(tuple[int, int], self.backbone.grid))
            if found is not None and found.shape == value.shape:
                taken[name] = found
            elif name.startswith(_BACKBONE):
                what = "are missing" if found is None else f"are {tuple(found.shape)} in the file and {tuple(value.shape)} here"
                raise UserError(
                    f"the weights are of another backbone: those of {name.removeprefix(_BACKBONE)} {what}; choose a recipe of "
                    "the same family, layout and size"
                )
            else:
                fresh[name] = "it is what the probe learns"
        unused = sorted(given.keys() - taken.keys())
        allowed = tuple(_BACKBONE + part for part in (*_READ_OUT, *self.backbone.pretraining_parts))
        for name in unused:
            if name.startswith(_BACKBONE) and not name.startswith(allowed):
                raise UserError(
                    f"the weights are of another backbone: they hold {name.removeprefix(_BACKBONE)}, which this one has not; "
                    "choose a recipe of the same family, layout and size"
                )
        self.load_state_dict(own | taken)
        dropped = {given[name]: "a probe of the frozen backbone has no such part" for name in unused}
        return InitReport(loaded=tuple(taken), dropped=dropped, fresh=fresh)
