"""Everything that a run needs in order to continue. Order, crops and masks follow from the step and need no memory."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler
from torch.optim.swa_utils import get_ema_multi_avg_fn

from hybridmap.train.distributed import like, whole


@dataclass
class TrainState:
    """A run between two steps."""

    learner: nn.Module
    optimizer: torch.optim.Optimizer
    scaler: GradScaler
    """Scales the loss in fp16; does nothing in other precisions."""
    ema: dict[str, Tensor] | None = None
    """Moving average of the floating-point entries of the learner's state; None = none is kept."""
    step: int = 0
    """Optimiser steps that were taken."""
    lr_scale: float = 1.0
    """Factor on the learning rate, halved each time the run had to go back."""
    bad_in_row: int = 0
    """Non-finite steps since the last good one."""
    skipped_steps: int = 0
    """Non-finite steps in all."""
    results: dict[str, float] = field(default_factory=dict)
    """What the last exams gave, by ``exam/number``."""

    def tensors(self) -> dict[str, Tensor]:
        """Name -> tensor of everything above, as it is: on its device, sharded where it is sharded."""
        named = {f"learner.{name}": value for name, value in self.learner.state_dict().items()}
        for name, parameter in self._trained():
            named |= {f"optimizer.{name}.{key}": value for key, value in self.optimizer.state.get(parameter, {}).items()}
        return named | {f"ema.{name}": value for name, value in (self.ema or {}).items()}

    def record(self) -> dict[str, Any]:
        """The numbers beside the tensors, as JSON takes them."""
        return {
            "kind": "checkpoint",
            "lr_scale": self.lr_scale,
            "bad_in_row": self.bad_in_row,
            "skipped_steps": self.skipped_steps,
            "scaler": self.scaler.state_dict(),
        }

    @torch.no_grad()
    def restore(self, tensors: Mapping[str, Tensor], record: Mapping[str, Any]) -> None:
        """Become what :meth:`tensors` and :meth:`record` were taken of, on any number of processes."""
        for name, value in self.learner.state_dict().items():
            value.copy_(like(value, tensors[f"learner.{name}"]))
        for name, value in (self.ema or {}).items():
            value.copy_(like(value, tensors[f"ema.{name}"]))
        self.optimizer.state.clear()
        saved: dict[str, dict[str, Tensor]] = {}
        for full_name, value in tensors.items():
            if full_name.startswith("optimizer."):
                name, _, key = full_name.removeprefix("optimizer.").rpartition(".")
                saved.setdefault(name, {})[key] = value
        for name, parameter in self._trained():
            if name in saved:
                self.optimizer.state[parameter] = {
                    key: like(parameter, value) if value.ndim else value.to(parameter.device)
                    for key, value in saved[name].items()
                }
        self.step, self.lr_scale = record["step"], record["lr_scale"]
        self.bad_in_row, self.skipped_steps = record["bad_in_row"], record["skipped_steps"]
        self.scaler.load_state_dict(record["scaler"])

    def weights(self, *, keep: bool = True) -> dict[str, Tensor]:
        """What the run is for: the learner's state, averaged where there is an average, gathered from all processes, on the
        host; empty without ``keep``, in a process that only takes part in the gathering."""
        return gathered(self.learner.state_dict() | (self.ema or {}), keep)

    @torch.no_grad()
    def average(self, decay: float) -> None:
        """One step of the moving average: ema += (1 - decay) * (now - ema)."""
        if self.ema is not None:
            now = self.learner.state_dict()
            get_ema_multi_avg_fn(decay)(tuple(self.ema.values()), tuple(now[name] for name in self.ema), 0)

    def _trained(self) -> list[tuple[str, Tensor]]:
        """(name, parameter) of what the optimiser holds."""
        return [pair for group in self.optimizer.param_groups for pair in zip(group["names"], group["params"], strict=True)]


def gathered(named: Mapping[str, Tensor], keep: bool) -> dict[str, Tensor]:
    """One tensor at a time, so that no device has to hold them all."""
    found: dict[str, Tensor] = {}
    for name, value in named.items():
        full = whole(value).detach()
        if keep:
            found[name] = full.cpu()
    return found


def begin_average(learner: nn.Module) -> dict[str, Tensor]:
    """The average of the first moment: a copy of every floating-point entry of the learner's state."""
    return {name: value.detach().clone() for name, value in learner.state_dict().items() if value.is_floating_point()}
