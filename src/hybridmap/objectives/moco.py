"""Momentum contrast (MoCo v2): two crops of one image must be told from crops of all other images.

    crop 1 ─ backbone ───── pooled ─ projector ─────▶ query q ──┬─▶ logits [q·k, q·queue] / temperature ─▶ the first is right
    crop 2 ─ key backbone ─ pooled ─ key projector ─▶ key k ────┘
                 ▲                                      └─ then into the queue, in place of the oldest keys
       follows the query's: key = momentum key + (1 - momentum) query, before every pass; no gradient

All vectors have unit length. What an image is pooled to is the backbone's matter: the class token of ViT and Vim, the mean of
the patches of all others, without registers. Nothing is masked.

Keys of all processes enter the queue, which is the same everywhere. Queue and key network are part of the state, so that a run
continues as if it had never stopped. Micro-steps (``train.accumulate``) are passes of their own: the key network moves in each.
Batch statistics, where a backbone has any, are those of one process; images are not shuffled between processes.
Source: MoCo (arXiv:1911.05722), MoCo v2 (arXiv:2003.04297), facebookresearch/moco:moco/builder.py @ 5670021.
Differs from source: the hidden width of the projector is free, and there is no shuffling.
"""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from hybridmap.backbones.base import Backbone
from hybridmap.errors import UserError
from hybridmap.objectives.base import Objective
from hybridmap.types import Batch, InitReport, Loss

_KEY = "key_"
"""Beginning of the names of the key network's parts, before the name of the query's."""


class MoCo(Objective):
    """Tell two crops of one image from all others; see the picture above."""

    @dataclass(frozen=True, kw_only=True)
    class Config(Objective.Config):
        momentum: float = 0.999
        """Part of its own weights that the key network keeps before every pass."""
        temperature: float = 0.2
        """What cosine similarities are divided by (MoCo v1: 0.07)."""
        queue_size: int = 65536
        """Keys of earlier images to tell the query from; a multiple of the images of a micro-step over all processes."""
        hidden: int | None = None
        """Width of the projector's hidden layer; None = the width of the features, 0 = one linear map, as in MoCo v1."""
        out: int = 128
        """Width of queries and keys."""

        def small(self) -> Any:
            """A queue of two batches of four."""
            return replace(super().small(), queue_size=8, out=16)

        def __post_init__(self) -> None:
            super().__post_init__()
            if not 0 <= self.momentum < 1:
                raise UserError(f"learner.momentum must lie in [0, 1), got {self.momentum}; usual are 0.99 to 0.999")
            if self.temperature <= 0:
                raise UserError(f"learner.temperature must be more than 0, got {self.temperature}; usual are 0.07 to 0.2")
            if self.queue_size < 1:
                raise UserError(f"learner.queue_size must be a multiple of the batch, got {self.queue_size}; usual is 65536")
            if self.out < 1 or (self.hidden or 0) < 0:
                raise UserError(
                    f"the projector needs widths, got hidden {self.hidden} and out {self.out}; usual are none and 128"
                )

    config: MoCo.Config
    queue: Float[Tensor, "K out"]
    position: Tensor

    def __init__(self, config: MoCo.Config) -> None:
        super().__init__(config, config.backbone.image_encoder())
        self.projector = _projector(self.backbone.num_features, config)
        self.key_backbone: Backbone = deepcopy(self.backbone).requires_grad_(False)
        self.key_projector = deepcopy(self.projector).requires_grad_(False)
        self.register_buffer("queue", F.normalize(torch.randn(config.queue_size, config.out), dim=1))
        self.register_buffer("position", torch.zeros(1, dtype=torch.int64))
        """Row of the queue that is replaced next."""

    def forward(self, batch: Batch) -> Loss:
        """The loss of a batch with two views.

        Raises:
            UserError: if it has another number of views, or the queue does not hold a whole number of batches.
        """
        given = 1 if batch.views is None else len(batch.views)
        if batch.views is None or given != 2:
            raise UserError(f"MoCo compares two crops of each image, but the batch has {given}; set data.views to 2")
        first, second = batch.views
        self._check_queue(len(batch.inputs) * _processes())
        self._follow()
        queue = self.queue.clone()  # because the queue moves on before the backward pass
        loss, keys = self.step(first, second, queue)
        self._enqueue(keys)
        return loss

    def step(
        self, queries_of: Float[Tensor, "B C H W"], keys_of: Float[Tensor, "B C H W"], queue: Float[Tensor, "K out"]
    ) -> tuple[Loss, Float[Tensor, "B out"]]:
        """The loss of queries from the first crops under a given queue, and the keys from the second ones."""
        with torch.no_grad():
            keys = _encode(self.key_backbone, self.key_projector, keys_of)
        queries = _encode(self.backbone, self.projector, queries_of)
        logits = self.logits(queries, keys, queue)
        right = torch.zeros(len(logits), dtype=torch.int64, device=logits.device)
        return Loss(total=F.cross_entropy(logits, right)), keys

    def logits(
        self, queries: Float[Tensor, "B out"], keys: Float[Tensor, "B out"], queue: Float[Tensor, "K out"]
    ) -> Float[Tensor, "B more"]:
        """Similarity over temperature of each query to its own key (first) and to all keys of the queue."""
        with torch.autocast(queries.device.type, enabled=False):
            own = (queries * keys).sum(1, keepdim=True)
            return torch.cat([own, queries @ queue.mT], dim=1) / self.config.temperature

    @torch.no_grad()
    def _follow(self) -> None:
        """The key network's step towards the query's."""
        keys, queries = (list(side) for side in zip(*self._pairs(), strict=True))
        if any(isinstance(parameter, DTensor) for parameter in keys):
            raise UserError(
                "MoCo's key network needs whole weights in every process, got sharded ones; set train.parallel to ddp"
            )
        torch._foreach_lerp_(keys, queries, 1 - self.config.momentum)  # pyright: ignore[reportPrivateImportUsage]

    def _pairs(self) -> Iterator[tuple[Tensor, Tensor]]:
        """(key, query) parameters."""
        yield from zip(self.key_backbone.parameters(), self.backbone.parameters(), strict=True)
        yield from zip(self.key_projector.parameters(), self.projector.parameters(), strict=True)

    @torch.no_grad()
    def _enqueue(self, keys: Float[Tensor, "B out"]) -> None:
        """Keys of all processes, in the order of their ranks, replace the oldest ones."""
        if _processes() > 1:
            everyone = [torch.empty_like(keys) for _ in range(_processes())]
            dist.all_gather(everyone, keys)
            keys = torch.cat(everyone)
        rows = (self.position + torch.arange(len(keys), device=keys.device)) % len(self.queue)
        self.queue.index_copy_(0, rows, keys.to(self.queue.dtype))
        self.position.add_(len(keys)).remainder_(len(self.queue))

    def _check_queue(self, count: int) -> None:
        """Refuse batches that do not fill the queue evenly: its oldest keys would be of one age in part only."""
        size = self.config.queue_size
        if size % count:
            raise UserError(
                f"learner.queue_size must be a multiple of the {count} images of a micro-step over all processes "
                f"(train.batch_size / train.accumulate), got {size}; try {max(1, round(size / count)) * count}"
            )

    def initialise(self, weights: dict[str, Tensor]) -> InitReport:
        """As :meth:`Objective.initialise`; a key network that the weights do not hold starts as a copy of the query's."""
        report = super().initialise(weights)
        if any(name.startswith(_KEY) for name in report.fresh):
            self.key_backbone.load_state_dict(self.backbone.state_dict())
            self.key_projector.load_state_dict(self.projector.state_dict())
        return report


def _processes() -> int:
    """How many processes train together."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def _projector(width: int, config: MoCo.Config) -> nn.Module:
    if config.hidden == 0:
        return nn.Linear(width, config.out)
    hidden = width if config.hidden is None else config.hidden
    return nn.Sequential(nn.Linear(width, hidden), nn.ReLU(), nn.Linear(hidden, config.out))


def _encode(backbone: Backbone, projector: nn.Module, images: Float[Tensor, "B C H W"]) -> Float[Tensor, "B out"]:
    """One vector of unit length per image, in at least float32."""
    features = backbone.encode_visible(backbone.partition(images), None, prefix=True)
    projected = projector(backbone.pooled(features))
    return F.normalize(projected.to(torch.promote_types(projected.dtype, torch.float32)), dim=1)
