"""What every pretraining objective promises: a learner around a backbone, which is what transfers.

Objective              forward(batch) -> Loss; takes over weights; numbers its layers
  PatchObjective       the same, by predicting patches: draw a mask, step under it, predict; the mask can also be hand-made
  MoCo                 the same, by comparing images
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from hybridmap import config as configuration
from hybridmap.backbones.base import Backbone
from hybridmap.config import Configurable
from hybridmap.errors import UserError
from hybridmap.layers.pos_embed import on_grid
from hybridmap.layers.running import measured_anew, running_norms
from hybridmap.types import Batch, InitReport, Loss, Mask, Patches

_BACKBONE = "backbone."
_FIXED = "fixed positions are computed for the grid"
_LEFT_OUT = ("registers.", "cls_", "head.")
"""Parts of a backbone that pretraining builds it without."""


class Objective(nn.Module, Configurable):
    """Abstract. A concrete objective sets ``backbone``, which is what transfers, and implements :meth:`forward`."""

    @dataclass(frozen=True, kw_only=True)
    class Config(configuration.Config):
        """Fields that all objectives have."""

        backbone: Backbone.Config
        """The network to be pretrained; it is built without registers, neck and classifier."""

        def __post_init__(self) -> None:
            wanted = configuration.field_types(type(self))["backbone"]
            if not isinstance(self.backbone, wanted):
                ours, theirs, given = (c.owner.__name__ for c in (type(self), wanted, type(self.backbone)))
                raise UserError(
                    f"{ours} pretrains networks of the kind {theirs} only, got {given}; choose another objective or another "
                    "backbone"
                )

    config: Any
    backbone: Any
    """The encoder, a :class:`hybridmap.backbones.base.Backbone`."""

    def __init__(self, config: Any, encoder: Backbone.Config) -> None:
        """Build ``encoder``, the part of ``config.backbone`` that the objective trains."""
        nn.Module.__init__(self)
        self.config = config
        self.backbone = encoder.build()

    @abstractmethod
    def forward(self, batch: Batch) -> Loss:
        """The loss of a batch."""

    def layer_ids(self) -> dict[str, int]:
        """Parameter name -> depth for layer-wise learning rates; everything beside the backbone counts as behind it."""
        ids = {f"backbone.{name}": depth for name, depth in self.backbone.layer_ids().items()}
        last = max(ids.values())
        return {name: ids.get(name, last) for name, _ in self.named_parameters()}

    def set_grad_checkpointing(self, enable: bool = True, every: int = 1) -> None:
        """Recompute the backbone's activations in the backward pass, as its own method does."""
        self.backbone.set_grad_checkpointing(enable, every)

    @torch.no_grad()
    def settle(self, batches: Iterable[Batch]) -> None:
        """Measure the backbone's running statistics anew on whole inputs, since it was trained on inputs with blank parts.

        They depend on the weights and on ``batches`` alone. Without such statistics, no batch is asked for.
        """
        norms, training = running_norms(self.backbone), self.training
        if not norms:
            return
        self.eval()
        with measured_anew(norms):
            for batch in batches:
                self.backbone.encode_visible(self.backbone.partition(batch.inputs), None)
        self.train(training)

    def initialise(self, weights: dict[str, Tensor]) -> InitReport:
        """Continue from weights of such an objective, of a fine-tuned network, or of a bare backbone, by our names.

        The backbone is taken over whole, with learned positions resampled where the grids differ. What stands beside it (a
        decoder, a projector) is taken over whole or starts fresh.

        Raises:
            UserError: if the weights are of another backbone.
        """
        wrapped = any(name.startswith("backbone.") for name in weights)
        original = {_own_name(name, wrapped): name for name in weights}
        own = dict(self.state_dict())
        fitted = {name: self._fit(name, value, weights.get(original.get(name, ""))) for name, value in own.items()}
        taken = {name: value for name, value in fitted.items() if isinstance(value, Tensor)}
        fresh = {name: reason for name, reason in fitted.items() if isinstance(reason, str)}
        surplus = {name for name in original.keys() - own.keys() if name.startswith(_BACKBONE)}
        self._check_backbone(fresh, {name for name in surplus if not name.removeprefix(_BACKBONE).startswith(_LEFT_OUT)})
        beside = {name for name in own if not name.startswith(_BACKBONE)}
        if any(fresh.get(name, _FIXED) != _FIXED for name in beside):
            fresh |= {name: "it belongs to other parts that do not fit" for name in own if name in beside & taken.keys()}
            taken = {name: value for name, value in taken.items() if name not in beside}
        self.load_state_dict(own | taken)
        reasons = fresh | dict.fromkeys(surplus, "pretraining builds the network without it")
        dropped = {original[name]: reasons.get(name, "there is no such part here") for name in original if name not in taken}
        return InitReport(loaded=tuple(taken), dropped=dropped, fresh=fresh)

    def _fit(self, name: str, own: Tensor, given: Tensor | None) -> Tensor | str:
        """The given tensor as it can be loaded under this name, or why it cannot."""
        if given is None:
            return "the weights hold no such part"
        if name.endswith("pos_embed") and given.shape[1:2] != own.shape[1:2]:
            if not self.get_parameter(name).requires_grad:
                return _FIXED
            given = on_grid(given, tuple(self.backbone.grid))
        return given if given.shape == own.shape else f"it is {tuple(given.shape)} in the weights and {tuple(own.shape)} here"

    def _check_backbone(self, fresh: dict[str, str], surplus: set[str]) -> None:
        own = tuple(_BACKBONE + part for part in self.backbone.pretraining_parts)
        misfits = [(name, reason) for name, reason in fresh.items() if name.startswith(_BACKBONE) and reason != _FIXED]
        misfits = [(name, reason) for name, reason in misfits if not name.startswith(own)]
        misfits += [(name, "the network has no such part") for name in sorted(surplus)]
        if misfits:
            name, reason = misfits[0]
            raise UserError(
                f"the weights are of another backbone ({name.removeprefix(_BACKBONE)}: {reason}; {len(misfits)} such tensors);"
                " choose a recipe of the same family, layout and size"
            )


class PatchObjective(Objective):
    """Abstract. An objective that predicts patches; what it draws can also be made by hand."""

    def __init__(self, config: Any) -> None:
        super().__init__(config, config.backbone.masked_encoder())

    def usual_patches(self) -> Patches:
        """Those of one blank input of the configured size, on the host: to count and to refuse before the first step."""
        return self.backbone.partition(self.backbone.blank())

    def forward(self, batch: Batch) -> Loss:
        patches = self.backbone.partition(batch.inputs, batch.step_key)
        return self.step(patches, self.draw(patches, batch), batch.key)

    @abstractmethod
    def draw(self, patches: Patches, batch: Batch) -> Mask:
        """Decide what is masked: a function of the batch's keys."""

    @abstractmethod
    def step(self, patches: Patches, mask: Mask, key: Int[Tensor, "B"] | None = None) -> Loss:
        """The loss under a given mask. Public: a recorded or hand-made mask goes in here, and this is what gets compiled."""

    @abstractmethod
    def predict(self, patches: Patches, mask: Mask) -> Float[Tensor, "B N P"]:
        """What the objective says about every patch, on the target's scale, by position in the scan."""


def _own_name(name: str, wrapped: bool) -> str:
    """Our name of a given tensor: that of a bare backbone lacks the ``backbone.`` in front, unless it is of a decoder."""
    return name if wrapped or name.startswith("decoder.") else f"backbone.{name}"
