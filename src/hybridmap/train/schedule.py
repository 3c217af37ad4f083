"""The learning rate as a function of the epoch: a linear warm-up, then half a cosine.

Two forms are in use, and they differ in more than how often they change::

    form="iter"    e <  w:  lr * e / w            e >= w:  min + (lr - min) / 2 * (1 + cos(pi * (e - w) / (E - w)))
    form="epoch"   t <  w:  s + t * (lr - s) / w  t >= w:  min + (lr - min) / 2 * (1 + cos(pi * t / E))

with e the fractional epoch, E the number of epochs, w the warm-up, s the rate that it starts from. The second form does not
take the warm-up off the cosine, and lags: epoch number e trains with t = max(e - 1, 0), because the released trainers step it
with the number of the epoch that just ended. A cooldown takes its epochs off E, and goes on at the last rate behind.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from hybridmap import config as configuration
from hybridmap.config import Configurable
from hybridmap.errors import UserError


class Cosine(Configurable):
    """Warm-up and cosine.

    Source: facebookresearch/mae:util/lr_sched.py @ efb2a80 ("iter"); timm 0.4.12, ``CosineLRScheduler``, as DeiT's descendants
    call it ("epoch").
    """

    @dataclass(frozen=True, kw_only=True)
    class Config(configuration.Config):
        form: Literal["iter", "epoch"] = "iter"
        """A new rate at every optimiser step, or one per epoch; see the module's text."""
        warmup_epochs: float = 40.0
        """Length of the warm-up in epochs (of ``train.epochs``, where ``train.steps`` shortens a run)."""
        warmup_lr: float = 0.0
        """Rate that the warm-up starts from; absolute, not scaled with the batch."""
        min_lr: float = 0.0
        """Rate that the cosine ends at; absolute, not scaled with the batch."""
        cooldown_epochs: float = 0.0
        """Epochs (of ``train.epochs``) behind the cosine, at the rate that it ends at."""

        def __post_init__(self) -> None:
            for name in ("warmup_epochs", "warmup_lr", "min_lr", "cooldown_epochs"):
                if not 0 <= getattr(self, name) < math.inf:
                    raise UserError(f"schedule.{name} must be 0 or more, got {getattr(self, name)}")

    config: Config

    def __call__(self, epoch: float, epochs: float, lr: float) -> float:
        """The rate at ``epoch`` (fractional, from 0) of ``epochs`` when the highest one is ``lr``.

        A run too short for all three has its warm-up first, then its cooldown, and no cosine.
        """
        c = self.config
        end = max(epochs - c.cooldown_epochs, c.warmup_epochs)
        t = epoch if c.form == "iter" else float(max(math.floor(epoch) - 1, 0))
        if t < c.warmup_epochs:
            return c.warmup_lr + t * (lr - c.warmup_lr) / c.warmup_epochs
        if t >= end:
            return c.min_lr
        done = (t - c.warmup_epochs) / (end - c.warmup_epochs) if c.form == "iter" else t / end
        return c.min_lr + (lr - c.min_lr) * 0.5 * (1.0 + math.cos(math.pi * done))
