"""Classification: fine-tune a backbone with its head, and measure it.

    images ─ mixing ─> backbone with registers, neck and head ─> logits ─> cross-entropy with soft targets
                   └─> the same by its averaged weights ───────> logits ─> + mesa * divergence from these, where asked for

Weights may come from pretraining (encoder taken, decoder dropped, what pretraining never trained left fresh), from another
classification run (all taken, the head only where the classes are as many), or from a bare backbone.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import cast

import torch
import torch.nn.functional as F
from jaxtyping import Float
from timm.data.mixup import mixup_target
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from hybridmap.backbones.base import Backbone
from hybridmap.config import Config, Configurable
from hybridmap.data.base import Dataset
from hybridmap.errors import UserError
from hybridmap.layers.mixing import Mixing
from hybridmap.layers.pos_embed import on_grid
from hybridmap.tasks.classifier import Classifier
from hybridmap.tasks.features import named
from hybridmap.types import Batch, InitReport, Loss

_UNTRAINED = ("registers.", "head.")
"""Parts of a backbone that pretraining objectives build without, or keep at their initial values."""


class Classification(Classifier):
    """A learner: its backbone's logits against labels."""

    @dataclass(frozen=True, kw_only=True)
    class Config(Classifier.Config):
        smoothing: float = 0.0
        """Share of every target that is spread over all classes."""
        mixing: Mixing.Config = field(default_factory=Mixing.Config)
        """Mixup and CutMix, applied in training only."""
        head_std: float | None = None
        """Draw the head's weights from a truncated normal of this deviation (MAE: 2e-5); None = as the backbone does."""
        mesa: float = 0.0
        """Weight of the divergence from what the moving average of the weights (``train.ema``) answers; 0 = not asked."""
        mesa_start: float = 0.25
        """Part of the run after which it is asked."""

    config: Classification.Config

    def __init__(self, config: Classification.Config) -> None:
        super().__init__(config)
        if not 0 <= config.smoothing < 1:
            raise UserError(f"label smoothing must lie in [0, 1), got {config.smoothing}")
        if config.mesa < 0 or not 0 <= config.mesa_start <= 1:
            raise UserError(
                f"mesa must be 0 (off) or a positive weight and mesa_start a part of the run, got {config.mesa} and "
                f"{config.mesa_start}"
            )
        self._average: dict[str, Tensor] | None = None
        self.backbone: Backbone = replace(config.backbone, num_classes=config.num_classes).build()
        self.mixing: Mixing = config.mixing.build()
        if config.head_std is not None:
            for weight in self.backbone.get_classifier().parameters():
                if weight.ndim > 1:
                    nn.init.trunc_normal_(weight, std=config.head_std)

    def forward(self, batch: Batch) -> Loss:
        """Mix, then :meth:`step`.

        Raises:
            UserError: if the data has no labels.
        """
        labels = self.labels_of(batch)
        images, kept = self.mixing(batch.inputs) if self.training else (batch.inputs, 1.0)
        targets = mixup_target(labels, self.config.num_classes, kept, self.config.smoothing)
        return self.step(images, targets, self._averaged_logits(images))

    def step(
        self,
        images: Float[Tensor, "B ..."],
        targets: Float[Tensor, "B classes"],
        averaged: Float[Tensor, "B classes"] | None = None,
    ) -> Loss:
        """Cross-entropy against soft targets, in at least fp32; with the logits of the averaged weights, also the divergence
        of the answer from theirs. Public, because it is what gets compiled.

        Source: arXiv:2205.14083, MESA, at temperature 1: weight * KL(softmax(averaged) || softmax(logits)).
        """
        logits = self.backbone(images)
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        loss = F.cross_entropy(logits, targets)
        if averaged is None:
            return Loss(total=loss)
        theirs = averaged.to(logits.dtype).log_softmax(1)
        mesa = F.kl_div(logits.log_softmax(1), theirs, reduction="batchmean", log_target=True)
        return Loss(total=loss + self.config.mesa * mesa, parts={"mesa": mesa})

    def follow(self, average: dict[str, Tensor] | None, progress: float) -> None:
        """Hear of the moving average of the weights, before each step, and of the part of the run that is done.

        Raises:
            UserError: if ``mesa`` is on and there is no average, or one in pieces.
        """
        if not self.config.mesa:
            return
        if average is None:
            raise UserError("learner.mesa needs a moving average of the weights, of which there is none; set train.ema")
        if any(isinstance(value, DTensor) for value in average.values()):
            raise UserError("learner.mesa needs whole weights in every process, got sharded ones; set train.parallel to ddp")
        self._average = average if progress >= self.config.mesa_start else None

    @torch.no_grad()
    def _averaged_logits(self, images: Float[Tensor, "B ..."]) -> Float[Tensor, "B classes"] | None:
        """What the averaged weights answer, without drop path and with their own running statistics; None while nobody asks."""
        if self._average is None or not self.training:
            return None
        weights = {name.removeprefix("backbone."): value for name, value in self._average.items()}
        self.backbone.eval()
        try:
            return torch.func.functional_call(self.backbone, weights, (images,))
        finally:
            self.backbone.train()

    def logits(self, images: Float[Tensor, "B ..."]) -> Float[Tensor, "B classes"]:
        return self.backbone(images)

    def layer_ids(self) -> dict[str, int]:
        """Parameter name -> layer id, for layer-wise learning rates."""
        return {f"backbone.{name}": depth for name, depth in self.backbone.layer_ids().items()}

    def initialise(self, weights: dict[str, Tensor]) -> InitReport:
        """Take over weights of a pretraining run, of a classification run, or of a bare backbone, by our names.

        From pretraining: the decoder is dropped; registers, neck and head start fresh, whatever the file holds for them, and
        so do a norm that stands behind the pooling, and class tokens that pretraining does without. Positions are resampled
        where the grids differ.

        Raises:
            UserError: if the weights are of another network.
        """
        wrapped = any(name.startswith("backbone.") for name in weights)
        given = {name.removeprefix("backbone."): value for name, value in weights.items() if not _foreign(name, wrapped)}
        dropped = {name: "not part of a classifier" for name in weights if _foreign(name, wrapped)}
        pretrained = any(name.startswith("decoder.") for name in weights) or "head.fc.weight" not in given
        if pretrained:
            whole, given = given, self.backbone.from_pretraining(given)
            for name in whole.keys() - given.keys():
                dropped[name if name in weights else f"backbone.{name}"] = "it starts fresh in fine-tuning"
        own = self.backbone.state_dict()
        taken: dict[str, Tensor] = {}
        fresh: dict[str, str] = {}
        for name, value in own.items():
            reason = self._reason_for_fresh(name, value, given.get(name), pretrained)
            if reason is not None:
                fresh[f"backbone.{name}"] = reason
            elif name == "pos_embed":
                taken[name] = on_grid(given[name], cast(tuple[int, int], self.backbone.grid))
            else:
                taken[name] = given[name]
        _check_shapes(taken, own)
        for name in given.keys() - taken.keys():
            original = name if name in weights else f"backbone.{name}"
            dropped[original] = fresh.get(f"backbone.{name}", "this network has no such part")
        allowed = (*_UNTRAINED, "cls_", *self.backbone.pretraining_parts)
        lost = sorted(name for name in given.keys() - own.keys() if not name.startswith(allowed))
        if lost:
            raise UserError(
                f"the weights are of another network: they hold {lost[0]} ({len(lost)} tensors in all), which the network to "
                "be fine-tuned does not have; choose a recipe of the same family, layout and size"
            )
        self.backbone.load_state_dict(own | taken)
        return InitReport(
            loaded=tuple(f"backbone.{name}" for name in taken), dropped=dict(sorted(dropped.items())), fresh=fresh
        )

    def _reason_for_fresh(self, name: str, own: Tensor, given: Tensor | None, pretrained: bool) -> str | None:
        if pretrained and name.startswith(_UNTRAINED):
            return "pretraining does not train it"
        if pretrained and name.startswith("norm.") and getattr(self.backbone.config, "norm_position", "tokens") == "pooled":
            return "it stands behind the pooling, where pretraining has none"
        if name.startswith("head.fc.") and given is not None and given.shape != own.shape:
            return f"the file's head has {len(given)} classes, this one {len(own)}"
        if pretrained and given is None and name.startswith(self.backbone.fresh_parts):
            return "pretraining builds the network without it"
        if given is None:
            raise UserError(
                f"the weights are of another network: they lack {name}, which the network to be fine-tuned has; "
                "choose a recipe of the same family, layout and size"
            )
        return None


class Accuracy(Configurable):
    """The exam of a classification run: accuracy on images that it was not trained on."""

    @dataclass(frozen=True, kw_only=True)
    class Config(Config):
        test: Dataset.Config
        """Labelled images of the same classes."""
        batch_size: int = 256
        """Images per forward pass; does not change the result."""

    def __call__(self, learner: Classifier, device: torch.device | str = "cpu") -> dict[str, float]:
        """``top1``, ``top5``, ``loss`` and ``images``, as :meth:`Classifier.evaluate` gives them; empty while the data has
        no directory."""
        if not named(self.config.test):
            return {}
        return learner.evaluate(self.config.test, device, self.config.batch_size)


def _foreign(name: str, wrapped: bool) -> bool:
    """Whether a tensor belongs to something else than the backbone: a decoder, or whatever stands beside ``backbone.``."""
    return name.startswith("decoder.") or (wrapped and not name.startswith("backbone."))


def _check_shapes(taken: dict[str, Tensor], own: dict[str, Tensor]) -> None:
    for name, value in taken.items():
        if value.shape != own[name].shape:
            raise UserError(
                f"the weights are of another network: {name} is {tuple(value.shape)} in the file and "
                f"{tuple(own[name].shape)} in the network to be fine-tuned; choose a recipe of the same family and size"
            )
