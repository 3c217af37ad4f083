"""Optimisers, with their parameter groups read off the parameters themselves.

Whether a parameter is decayed was said where it was born (marks ``no_weight_decay`` and ``ssm_state``); 1-D parameters and
biases never are. How deep it lies, for layer-wise rates, is what ``learner.layer_ids()`` says. Both are read before the model
is wrapped or sharded, and kept by name.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from hybridmap import config as configuration
from hybridmap.config import Configurable
from hybridmap.errors import UserError
from hybridmap.train.distributed import like, whole


@dataclass(frozen=True)
class Rule:
    """What the optimiser does with one parameter."""

    lr_scale: float
    """Factor on the learning rate."""
    weight_decay: float
    """Decoupled decay."""
    matrix: bool = False
    """Whether it is a weight matrix that :class:`Muon` treats as a whole."""


class Optimizer(Configurable):
    """Abstract: the learning rate, the rule of every parameter, and the groups that follow from the rules.

    What :meth:`optimizer` makes takes a flag on the device that turns a step into nothing (``found_inf``): that is how a
    non-finite step is skipped without asking the device about it.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config(configuration.Config):
        lr: float | None = None
        """The highest learning rate itself; None = ``base_lr`` scaled with the batch."""
        base_lr: float = 1.5e-4
        """Learning rate per ``base_batch`` samples: lr = base_lr * train.batch_size / base_batch."""
        base_batch: int = 256
        """The batch that ``base_lr`` is for (MAE: 256, DeiT and its descendants: 512)."""
        weight_decay: float = 0.05
        """Decay of the parameters that are decayed at all; decoupled, unless the optimiser says otherwise."""
        decay_ssm_state: bool = False
        """Whether ``A_log`` and its like are decayed as well, as all released training code (unintentionally) does."""
        layer_decay: float | None = None
        """Factor on the learning rate per layer counted from the output; None = the same rate everywhere."""

        def __post_init__(self) -> None:
            if (self.base_lr if self.lr is None else self.lr) < 0:
                raise UserError(f"the learning rate must be 0 or more, got {self.base_lr if self.lr is None else self.lr}")
            if self.base_batch < 1:
                raise UserError(f"optim.base_batch must be at least 1, got {self.base_batch}")
            if self.layer_decay is not None and not 0 < self.layer_decay <= 1:
                raise UserError(f"optim.layer_decay must lie in (0, 1], got {self.layer_decay}")

    config: Config

    def lr(self, batch_size: int) -> float:
        """The highest learning rate for a global batch of ``batch_size`` samples."""
        c = self.config
        return c.lr if c.lr is not None else c.base_lr * batch_size / c.base_batch

    def tell_lr(self, batch_size: int) -> str:
        """Where :meth:`lr` comes from, in words."""
        c, lr = self.config, self.lr(batch_size)
        if c.lr is not None:
            return f"lr {lr:.4g}, as set"
        return f"lr {lr:.4g} = {c.base_lr:.4g} x {batch_size} / {c.base_batch}"

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

    def groups(self, parameters: Iterable[tuple[str, nn.Parameter]], rules: dict[str, Rule]) -> list[dict[str, Any]]:
        """Named parameters, one group per rule; a group keeps its ``lr_scale``, its ``matrix`` and its ``names``.

        Raises:
            UserError: if no parameter has a rule.
        """
        groups: dict[Rule, dict[str, Any]] = {}
        for name, parameter in parameters:
            if name in rules:
                group = groups.setdefault(rules[name], {"params": [], "names": []} | asdict(rules[name]))
                group["params"].append(parameter)
                group["names"].append(name)
        if not groups:
            raise UserError("the learner has no parameter to train")
        return list(groups.values())

    @abstractmethod
    def optimizer(self, parameters: Iterable[tuple[str, nn.Parameter]], rules: dict[str, Rule]) -> torch.optim.Optimizer:
        """The optimiser over named parameters; its groups are those of :meth:`groups`."""


class AdamW(Optimizer):
    """Adam with decoupled weight decay, in torch's fused form. Source: arXiv:1711.05101."""

    @dataclass(frozen=True, kw_only=True)
    class Config(Optimizer.Config):
        betas: tuple[float, float] = (0.9, 0.95)
        """Decay rates of the running averages of the gradient and of its square."""
        eps: float = 1e-8
        """Added to the root of the second average."""

        def __post_init__(self) -> None:
            super().__post_init__()
            if not all(0 <= beta < 1 for beta in self.betas):
                raise UserError(f"optim.betas must lie in [0, 1), got {self.betas}")

    config: AdamW.Config

    def optimizer(self, parameters: Iterable[tuple[str, nn.Parameter]], rules: dict[str, Rule]) -> torch.optim.AdamW:
        return torch.optim.AdamW(
            self.groups(parameters, rules), lr=0.0, betas=self.config.betas, eps=self.config.eps, fused=True
        )


class SGD(Optimizer):
    """Gradient descent with momentum; decay is added to the gradient.

        v = momentum v + g + decay W        W = W - lr v

    Not torch's: its fused form leaves v unfilled where the first step is skipped, and cannot step sharded parameters.
    Source: facebookresearch/moco:main_moco.py, which takes lr 0.03 per 256 images, momentum 0.9 and decay 1e-4.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config(Optimizer.Config):
        base_lr: float = 0.03
        """Learning rate per ``base_batch`` samples: lr = base_lr * train.batch_size / base_batch."""
        weight_decay: float = 1e-4
        """Decay of the parameters that are decayed at all, added to their gradient."""
        momentum: float = 0.9
        """Decay rate of the running sum of the gradient."""

        def __post_init__(self) -> None:
            super().__post_init__()
            if not 0 <= self.momentum < 1:
                raise UserError(f"optim.momentum must lie in [0, 1), got {self.momentum}")

    config: SGD.Config

    def optimizer(self, parameters: Iterable[tuple[str, nn.Parameter]], rules: dict[str, Rule]) -> torch.optim.Optimizer:
        return _Momentum(self.groups(parameters, rules), self.config)


class _Momentum(torch.optim.Optimizer):
    def __init__(self, groups: list[dict[str, Any]], config: SGD.Config) -> None:
        super().__init__(groups, {"lr": 0.0})
        self.momentum = config.momentum

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        for group, parameter, gradient in _trained(self):
            sum_after = _before(self, parameter, "momentum") * self.momentum + gradient + group["weight_decay"] * parameter
            _settle(self, parameter, parameter - group["lr"] * sum_after, {"momentum": sum_after})


class LARS(Optimizer):
    """Gradient descent with momentum whose update of every matrix is in proportion to the matrix, for very large batches.

        u = g + decay W        v = momentum v + trust |W| / |u| u        W = W - lr v

    1-D parameters take their gradient as it is, without decay. Source: arXiv:1708.03888, as MAE's linear probe uses it
    (facebookresearch/mae:main_linprobe.py: lr 0.1 per 256 images, momentum 0.9, trust 0.001, no decay).
    """

    @dataclass(frozen=True, kw_only=True)
    class Config(SGD.Config):
        base_lr: float = 0.1
        """Learning rate per ``base_batch`` samples: lr = base_lr * train.batch_size / base_batch."""
        weight_decay: float = 0.0
        """Decay of the parameters that are decayed at all, added to their gradient."""
        trust: float = 0.001
        """Length of a matrix's step, at learning rate 1, as a part of its own."""

        def __post_init__(self) -> None:
            super().__post_init__()
            if self.trust <= 0:
                raise UserError(f"optim.trust must be more than 0, got {self.trust}")

    config: LARS.Config

    def optimizer(self, parameters: Iterable[tuple[str, nn.Parameter]], rules: dict[str, Rule]) -> torch.optim.Optimizer:
        return _Lars(self.groups(parameters, rules), self.config)


class _Lars(torch.optim.Optimizer):
    def __init__(self, groups: list[dict[str, Any]], config: LARS.Config) -> None:
        super().__init__(groups, {"lr": 0.0})
        self.momentum, self.trust = config.momentum, config.trust

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        for group, parameter, gradient in _trained(self):
            update = gradient
            if parameter.ndim > 1:
                update = gradient + group["weight_decay"] * parameter
                update = update * _stretch(parameter, update, self.trust)
            sum_after = _before(self, parameter, "momentum") * self.momentum + update
            _settle(self, parameter, parameter - group["lr"] * sum_after, {"momentum": sum_after})


class LAMB(Optimizer):
    """Adam whose update of every tensor is made as long as the tensor itself, for very large batches.

        u = Adam's direction + decay W        W = W - lr |W| / |u| u

    Tensors that are not decayed take Adam's direction as it is. First of all, the whole gradient is cut to ``max_grad_norm``.
    Source: arXiv:1904.00962, in the form of timm:timm/optim/lamb.py (Apache-2.0), which MambaVision trains with.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config(AdamW.Config):
        max_grad_norm: float | None = 1.0
        """The longest gradient of all parameters together, None = any. This is apart from the clipping of the training loop."""

        def __post_init__(self) -> None:
            super().__post_init__()
            if self.max_grad_norm is not None and self.max_grad_norm <= 0:
                raise UserError(f"optim.max_grad_norm must be more than 0 or none, got {self.max_grad_norm}")

    config: LAMB.Config

    def optimizer(self, parameters: Iterable[tuple[str, nn.Parameter]], rules: dict[str, Rule]) -> torch.optim.Optimizer:
        return _Lamb(self.groups(parameters, rules), self.config)


class _Lamb(torch.optim.Optimizer):
    """The number of steps is counted on the device, since skipped ones do not count."""

    def __init__(self, groups: list[dict[str, Any]], config: LAMB.Config) -> None:
        super().__init__(groups, {"lr": 0.0, "betas": config.betas, "eps": config.eps})
        self.max_grad_norm = config.max_grad_norm

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        trained, scale = _trained(self), 1.0
        if self.max_grad_norm is not None:
            norm = whole(torch.nn.utils.get_total_norm([gradient for *_, gradient in trained]))
            scale = (self.max_grad_norm / norm).clamp(max=1.0)
        for group, parameter, gradient in trained:
            self._step_one(parameter, gradient * scale, group)

    def _step_one(self, parameter: nn.Parameter, gradient: Tensor, group: dict[str, Any]) -> None:
        beta1, beta2 = group["betas"]
        step = _before(self, parameter, "step", torch.zeros((), device=parameter.device)) + 1
        average = _before(self, parameter, "exp_avg").lerp(gradient, 1 - beta1)
        square = _before(self, parameter, "exp_avg_sq").lerp(gradient * gradient, 1 - beta2)
        update = average / (1 - beta1**step) / ((square / (1 - beta2**step)).sqrt() + group["eps"])
        length: Tensor | float = 1.0
        if group["weight_decay"]:
            update = update + group["weight_decay"] * parameter
            length = _stretch(parameter, update)
        after = {"step": step, "exp_avg": average, "exp_avg_sq": square}
        _settle(self, parameter, parameter - group["lr"] * length * update, after)


def _stretch(parameter: Tensor, update: Tensor, trust: float = 1.0) -> Tensor:
    """The factor that makes an update ``trust`` times as long as its parameter; 1 where either has no length."""
    own, new = whole(parameter.norm()), whole(update.norm())
    return torch.where((own > 0) & (new > 0), trust * own / new, 1.0)


def _trained(optimizer: torch.optim.Optimizer) -> list[tuple[dict[str, Any], nn.Parameter, Tensor]]:
    """(group, parameter, gradient) of every parameter that has one."""
    return [(group, p, p.grad) for group in optimizer.param_groups for p in group["params"] if p.grad is not None]


def _before(optimizer: torch.optim.Optimizer, parameter: nn.Parameter, name: str, like: Tensor | None = None) -> Tensor:
    """What the optimiser keeps of a parameter under this name; before the first step zeros, shaped as ``like`` or as itself."""
    state = optimizer.state[parameter]
    return state[name] if name in state else torch.zeros_like(parameter if like is None else like)


def _settle(optimizer: torch.optim.Optimizer, parameter: nn.Parameter, moved: Tensor, after: dict[str, Tensor]) -> None:
    """Take over what a step makes of a parameter and of what is kept of it, unless the step is flagged."""
    bad = getattr(optimizer, "found_inf", None)
    for name, value in after.items():
        kept = value if bad is None else torch.where(bad.bool(), _before(optimizer, parameter, name, value), value)
        optimizer.state[parameter][name] = kept
    parameter.copy_(moved if bad is None else torch.where(bad.bool(), parameter, moved))


class Muon(Optimizer):
    """The momentum of every linear map's matrix, orthogonalised; AdamW for all other parameters, convolutions included.

        m = momentum m + (1 - momentum) g        u = (1 - momentum) g + momentum m
        W = (1 - lr decay) W - 0.2 lr sqrt(max(rows, columns)) U V',    u = U S V'

    An update in which all directions are equally long learns rare directions as fast as frequent ones. That matters where the
    inputs are pixels, whose spectrum is steep, and the steps are few. The factor makes an update as large as AdamW's.
    Source: Keller Jordan, "Muon: an optimizer for hidden layers in neural networks", 2024; the factor is arXiv:2502.16982's.
    Differs from source: the first and the last linear map are not left to AdamW; and the iteration runs in float32 on every
    device, since bfloat16 products are slow on many CPUs, which is also why this is not ``torch.optim.Muon``.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config(AdamW.Config):
        momentum: float = 0.95
        """Decay rate of the running average of a matrix's gradient."""
        matrix_lr: float = 1.0
        """Learning rate of the matrices over that of the other parameters."""

        def __post_init__(self) -> None:
            super().__post_init__()
            if not 0 <= self.momentum < 1:
                raise UserError(f"optim.momentum must lie in [0, 1), got {self.momentum}")
            if self.matrix_lr <= 0:
                raise UserError(f"optim.matrix_lr must be more than 0, got {self.matrix_lr}")

    config: Muon.Config

    def rules(self, learner: nn.Module) -> dict[str, Rule]:
        parameters = dict(learner.named_parameters())

        def rule_of(name: str, rule: Rule) -> Rule:
            parameter = parameters[name]
            marked = getattr(parameter, "no_weight_decay", False) or getattr(parameter, "ssm_state", False)
            if parameter.ndim != 2 or not name.endswith("weight") or marked:
                return rule
            return replace(rule, matrix=True, lr_scale=rule.lr_scale * self.config.matrix_lr)

        return {name: rule_of(name, rule) for name, rule in super().rules(learner).items()}

    def optimizer(self, parameters: Iterable[tuple[str, nn.Parameter]], rules: dict[str, Rule]) -> torch.optim.Optimizer:
        return _MuonBesideAdamW(self.groups(parameters, rules), self.config)


class _MuonBesideAdamW(torch.optim.Optimizer):
    """One optimiser to the outside; groups and state are shared with the AdamW that steps what is no matrix."""

    def __init__(self, groups: list[dict[str, Any]], config: Muon.Config) -> None:
        super().__init__(groups, {"lr": 0.0, "betas": config.betas, "eps": config.eps})
        self.momentum = config.momentum
        others = [group for group in self.param_groups if not group["matrix"]]
        self.adamw = torch.optim.AdamW(others, lr=0.0, fused=True) if others else None
        if self.adamw is not None:
            self.adamw.state = self.state

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        if self.adamw is not None:
            self.adamw.found_inf = getattr(self, "found_inf", None)  # type: ignore[attr-defined]
            self.adamw.step()
        for group, parameter, gradient in _trained(self):
            if group["matrix"]:
                self._step_matrix(parameter, gradient, group["lr"], group["weight_decay"])

    def _step_matrix(self, parameter: nn.Parameter, gradient: Tensor, lr: float, weight_decay: float) -> None:
        average = _before(self, parameter, "momentum").lerp(gradient, 1 - self.momentum)
        update = like(parameter, orthogonalise(whole(gradient.lerp(average, self.momentum))))
        size = 0.2 * lr * max(parameter.shape) ** 0.5
        _settle(self, parameter, parameter.mul(1 - lr * weight_decay).add_(update, alpha=-size), {"momentum": average})


def orthogonalise(matrix: Float[Tensor, "m n"], steps: int = 5) -> Float[Tensor, "m n"]:
    """Nearly U V' where the matrix is U S V': singular values between about 0.7 and 1.2, in float32.

    The Newton-Schulz iteration X = a X + (b X X' + c (X X')^2) X, whose coefficients trade accuracy for speed.
    Source: Keller Jordan, "Muon", 2024.
    """
    a, b, c = 3.4445, -4.7750, 2.0315
    x = matrix.float()
    wide = x if x.shape[0] <= x.shape[1] else x.mT
    wide = wide / wide.norm().clamp(min=1e-7)
    for _ in range(steps):
        square = wide @ wide.mT
        wide = torch.addmm(wide, torch.addmm(square, square, square, beta=b, alpha=c), wide, beta=a)
    return (wide if x.shape[0] <= x.shape[1] else wide.mT).to(matrix.dtype)


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Give every group its share of the learning rate."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group["lr_scale"]
