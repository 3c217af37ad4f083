"""AdamW, with its parameter groups read off the parameters themselves.

Whether a parameter is decayed was said where it was born (marks ``no_weight_decay`` and ``ssm_state``); 1-D parameters and
biases never are. How deep it lies, for layer-wise rates, is what ``learner.layer_ids()`` says. Both are read before the model
is wrapped or sharded, and kept by name.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import nn

from hybridmap import config as configuration
from hybridmap.config import Configurable
from hybridmap.errors import UserError


@dataclass(frozen=True)
class Rule:
    """What the optimiser does with one parameter."""

    lr_scale: float
    """Factor on the learning rate."""
    weight_decay: float
    """Decoupled decay."""


class AdamW(Configurable):
    """Adam with decoupled weight decay (arXiv:1711.05101), in torch's fused form.

    The fused form takes a flag on the device that turns a step into nothing (``found_inf``): that is how a non-finite step is
    skipped without asking the device about it.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config(configuration.Config):
        lr: float | None = None
        """The highest learning rate itself; None = ``base_lr`` scaled with the batch."""
        base_lr: float = 1.5e-4
        """Learning rate per ``base_batch`` samples: lr = base_lr * train.batch_size / base_batch."""
        base_batch: int = 256
        """The batch that ``base_lr`` is for (MAE: 256, DeiT and its descendants: 512)."""
        betas: tuple[float, float] = (0.9, 0.95)
        """Decay rates of the running averages of the gradient and of its square."""
        eps: float = 1e-8
        """Added to the root of the second average."""
        weight_decay: float = 0.05
        """Decoupled decay of the parameters that are decayed at all."""
        decay_ssm_state: bool = False
        """Whether ``A_log`` and its like are decayed as well, as all released training code (unintentionally) does."""
        layer_decay: float | None = None
        """Factor on the learning rate per layer counted from the output; None = the same rate everywhere."""

        def __post_init__(self) -> None:
            if (self.base_lr if self.lr is None else self.lr) < 0:
                raise UserError(f"the learning rate must be 0 or more, got {self.base_lr if self.lr is None else self.lr}")
            if self.base_batch < 1:
                raise UserError(f"optim.base_batch must be at least 1, got {self.base_batch}")
            if not all(0 <= beta < 1 for beta in self.betas):
                raise UserError(f"optim.betas must lie in [0, 1), got {self.betas}")
            if self.layer_decay is not None and not 0 < self.layer_decay <= 1:
                raise UserError(f"optim.layer_decay must lie in (0, 1], got {self.layer_decay}")

    config: Config

    def lr(self, batch_size: int) -> float:
        """The highest learning rate for a global batch of ``batch_size`` samples."""
        c = self.config
        return c.lr if c.lr is not None else c.base_lr * batch_size / c.base_batch

    def rules(self, learner: nn.Module) -> dict[str, Rule]:
        """Parameter name -> rule, for every parameter that is trained.

        With layer decay, a parameter of layer ``id`` has lr_scale = layer_decay ** (last id - id); what ``layer_ids`` leaves
        out belongs to the last layer. Source: facebookresearch/mae:util/lr_decay.py @ efb2a80.

        Raises:
            UserError: if layer decay is asked of a learner that does not number its layers.
        """
        c = self.config
        ids: dict[str, int] = {}
        if c.layer_decay is not None:
            number = getattr(learner, "layer_ids", None)
            if number is None:
                raise UserError(
                    f"optim.layer_decay needs a learner that numbers its layers, and {type(learner).__name__} has no "
                    "layer_ids(); leave it at none"
                )
            ids = number()
        last = max(ids.values(), default=0)
        return {
            name: Rule(
                lr_scale=1.0 if c.layer_decay is None else c.layer_decay ** (last - ids.get(name, last)),
                weight_decay=c.weight_decay if self._is_decayed(name, parameter) else 0.0,
            )
            for name, parameter in learner.named_parameters()
            if parameter.requires_grad
        }

    def _is_decayed(self, name: str, parameter: nn.Parameter) -> bool:
        if parameter.ndim <= 1 or name.endswith(".bias") or getattr(parameter, "no_weight_decay", False):
            return False
        return self.config.decay_ssm_state or not getattr(parameter, "ssm_state", False)

    def optimizer(self, parameters: Iterable[tuple[str, nn.Parameter]], rules: dict[str, Rule]) -> torch.optim.AdamW:
        """The optimiser over named parameters, one group per rule; a group keeps its ``lr_scale`` and its ``names``.

        Raises:
            UserError: if no parameter has a rule.
        """
        groups: dict[Rule, dict] = {}
        for name, parameter in parameters:
            if name in rules:
                rule = rules[name]
                empty = {"params": [], "names": [], "lr_scale": rule.lr_scale, "weight_decay": rule.weight_decay}
                group = groups.setdefault(rule, empty)
                group["params"].append(parameter)
                group["names"].append(name)
        if not groups:
            raise UserError("the learner has no parameter to train")
        return torch.optim.AdamW(list(groups.values()), lr=0.0, betas=self.config.betas, eps=self.config.eps, fused=True)


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Give every group its share of the learning rate."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group["lr_scale"]
