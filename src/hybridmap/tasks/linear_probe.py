"""A linear classifier on frozen features: how much of the classes can be read off without touching the network?

    head(x) = W . BatchNorm(x) + b        BatchNorm without weights, eps 1e-6; W from N(0, 0.01) truncated, b = 0

All learning rates of a sweep are trained in one pass: they share each minibatch, and their weights are one tensor
(rates, D, classes). The rate is chosen on a part of the TRAINING features that no head has seen; test images choose nothing.
Source: MAE (arXiv:2111.06377), ``main_linprobe.py`` and ``util/lars.py``; LARS is arXiv:1708.03888.
Differs from source: features are computed once, so an image looks the same in every epoch (the source crops it anew).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Generator, Tensor, nn

from hybridmap.config import Config, Configurable
from hybridmap.data.base import Dataset
from hybridmap.errors import UserError
from hybridmap.tasks.features import Table, common_labels, extract, named

_TRUST = 0.001
_MOMENTUM = 0.9


@dataclass(frozen=True, kw_only=True)
class Heads:
    """One linear classifier per learning rate, over one normalisation."""

    norm: nn.BatchNorm1d
    weight: Float[Tensor, "rates D classes"]
    bias: Float[Tensor, "rates classes"]

    def logits(self, features: Float[Tensor, "m D"]) -> Float[Tensor, "rates m classes"]:
        """Scores of every head, with the normalisation's running statistics."""
        return torch.baddbmm(self.bias[:, None], self.norm.eval()(features).expand(len(self.weight), -1, -1), self.weight)


@dataclass(frozen=True, kw_only=True)
class Answers:
    """What the chosen classifier said about the test images."""

    correct: Bool[Tensor, "m"]
    """Whether the highest score is the right class, on the host."""
    within_5: Bool[Tensor, "m"]
    """Whether the right class is among the five highest."""
    base_lr: float
    """The learning rate per 256 samples that was used."""
    validation: dict[float, float]
    """Accuracy in per cent of every rate on the held-out training features; empty where there was nothing to choose."""


class LinearProbe(Configurable):
    """The exam: accuracy in per cent of a linear classifier on a learner's frozen backbone."""

    @dataclass(frozen=True, kw_only=True)
    class Config(Config):
        train: Dataset.Config
        """Labelled images to train on, cropped without randomness."""
        test: Dataset.Config
        """Labelled images to be classified."""
        protocol: Literal["mae", "sgd"] = "mae"
        """"mae": LARS with momentum 0.9 and trust coefficient 0.001 (the bias without trust). "sgd": the same without trust
        ratios, which needs fewer steps on small data."""
        base_lrs: tuple[float, ...] = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0)
        """Learning rates per 256 samples: lr = base * batch / 256. MAE's own is (0.1,); a single one is taken as it is."""
        epochs: int = 90
        """Passes over the features. MAE: 90 for base, 50 for large and huge."""
        warmup_epochs: float = 10.0
        """The rate rises linearly over these, then falls as half a cosine to 0, per step."""
        batch_size: int = 16384
        """Features per step, clipped to their number."""
        validation: float = 0.1
        """Fraction of every class's training features that is held out while the rate is chosen."""
        seed: int = 0
        """Of the initial weights, the order of the features and the held-out part."""
        feature_batch_size: int = 256
        """Images per forward pass; does not change the answers."""

    def __init__(self, config: LinearProbe.Config) -> None:
        super().__init__(config)
        if not config.base_lrs or min(config.base_lrs) <= 0:
            raise UserError(f"the learning rates of a probe must be positive, got {config.base_lrs}")
        if not 0 <= config.warmup_epochs < config.epochs:
            raise UserError(f"warm-up must be shorter than the {config.epochs} epochs, got {config.warmup_epochs}")
        if not 0 < config.validation < 1:
            raise UserError(f"the held-out fraction must lie between 0 and 1, got {config.validation}")

    def __call__(self, learner: nn.Module, device: torch.device | str = "cpu") -> dict[str, float]:
        """``top1`` and ``top5`` in per cent, the ``base_lr`` used, and its accuracy ``validation`` where there was a choice;
        empty while the data has no directory."""
        if not named(self.config.train, self.config.test):
            return {}
        train, test = (
            extract(learner, data, device=device, batch_size=self.config.feature_batch_size)
            for data in (self.config.train, self.config.test)
        )
        found = self.answers(train, test, device=device)
        result = {
            "top1": 100.0 * found.correct.float().mean().item(),
            "top5": 100.0 * found.within_5.float().mean().item(),
            "base_lr": found.base_lr,
        }
        return result | ({"validation": found.validation[found.base_lr]} if found.validation else {})

    def answers(self, train: Table, test: Table, *, device: torch.device | str = "cpu") -> Answers:
        """Choose the rate, train on all training features with it, and classify the test features.

        Raises:
            UserError: if the tables have no labels, different classes, or fewer than two training images.
        """
        labels, wanted, classes = common_labels(train, test)
        features, labels = train.features.to(device), labels.to(device)
        base_lrs, validation = self.config.base_lrs, {}
        if len(base_lrs) > 1:
            held = held_out(labels.cpu(), self.config.validation, self.config.seed).to(device)
            heads = self.fit(features[~held], labels[~held], classes, base_lrs)
            right = (_argmax(heads.logits(features[held])) == labels[held]).float().mean(1)
            validation = {lr: 100.0 * share for lr, share in zip(base_lrs, right.tolist(), strict=True)}
            base_lrs = (max(validation, key=lambda lr: validation[lr]),)
        heads = self.fit(features, labels, classes, base_lrs)
        logits = heads.logits(test.features.to(device))[0].cpu()
        best = logits.topk(min(5, classes), dim=1).indices
        return Answers(
            correct=best[:, 0] == wanted,
            within_5=(best == wanted[:, None]).any(1),
            base_lr=base_lrs[0],
            validation=validation,
        )

    def fit(self, features: Float[Tensor, "n D"], labels: Int[Tensor, "n"], classes: int, base_lrs: tuple[float, ...]) -> Heads:
        """Train one head per learning rate on the same minibatches.

        Per head, with p = softmax(xW + b) of a batch of B and y the one-hot labels: dW = x^T (p - y) / B, scaled by the trust
        ratio 0.001 |W| / |dW|; velocity v = 0.9 v + dW; W = W - lr v. The bias has no trust ratio.

        Raises:
            UserError: with fewer than two training vectors.
        """
        config, n, width = self.config, len(features), features.shape[1]
        if n < 2:
            raise UserError(f"a linear probe needs at least two training images, got {n}")
        device, batch = features.device, min(config.batch_size, n)
        generator = Generator().manual_seed(config.seed)
        norm = nn.BatchNorm1d(width, affine=False, eps=1e-6, device=device)
        weight = torch.empty(width, classes)
        nn.init.trunc_normal_(weight, std=0.01, generator=generator)
        weight = weight.to(device).repeat(len(base_lrs), 1, 1)
        bias = weight.new_zeros(len(base_lrs), classes)
        velocity, bias_velocity = torch.zeros_like(weight), torch.zeros_like(bias)
        peak = torch.tensor(base_lrs, device=device)[:, None] * batch / 256
        steps = n // batch  # the incomplete last batch is dropped, as in the source
        with torch.no_grad():
            for epoch in range(config.epochs):
                order = torch.randperm(n, generator=generator).to(device)
                for step in range(steps):
                    chosen = order[step * batch : (step + 1) * batch]
                    x = norm(features[chosen])  # B D
                    logits = torch.baddbmm(bias[:, None], x.expand(len(weight), -1, -1), weight)  # rates B classes
                    error = (logits.softmax(2) - F.one_hot(labels[chosen], classes)) / batch
                    gradient, bias_gradient = x.T @ error, error.sum(1)
                    if config.protocol == "mae":
                        gradient = gradient * _trust_ratio(weight, gradient)[:, None, None]
                    velocity.mul_(_MOMENTUM).add_(gradient)
                    bias_velocity.mul_(_MOMENTUM).add_(bias_gradient)
                    lr = peak * cosine(epoch + step / steps, config.warmup_epochs, config.epochs)
                    weight -= lr[..., None] * velocity
                    bias -= lr * bias_velocity
        return Heads(norm=norm, weight=weight, bias=bias)


def cosine(epoch: float, warmup: float, epochs: int) -> float:
    """The share of the peak rate at a fractional epoch: a line from 0 to 1, then half a cosine from 1 to 0."""
    if epoch < warmup:
        return epoch / warmup
    return 0.5 * (1 + math.cos(math.pi * (epoch - warmup) / (epochs - warmup)))


def held_out(labels: Int[Tensor, "n"], fraction: float, seed: int) -> Bool[Tensor, "n"]:
    """Choose ``fraction`` of every class (rounded up, but one sample always stays) at random from ``seed``."""
    shuffled = torch.randperm(len(labels), generator=Generator().manual_seed(seed))
    order = shuffled[labels[shuffled].argsort(stable=True)]  # by class, at random within it
    ranked = labels[order]
    start = torch.searchsorted(ranked, ranked)
    size = torch.searchsorted(ranked, ranked, right=True) - start
    rank = torch.arange(len(labels)) - start
    held = torch.zeros(len(labels), dtype=torch.bool)
    held[order] = rank < torch.minimum((size * fraction).ceil(), size - 1)
    return held


def _trust_ratio(
    weight: Float[Tensor, "rates D classes"], gradient: Float[Tensor, "rates D classes"]
) -> Float[Tensor, "rates"]:
    size, slope = weight.flatten(1).norm(dim=1), gradient.flatten(1).norm(dim=1)
    return torch.where((size > 0) & (slope > 0), _TRUST * size / slope, 1.0)


def _argmax(logits: Float[Tensor, "rates m classes"]) -> Int[Tensor, "rates m"]:
    """The chosen classes; -1 where a head's scores are no numbers, because its rate was too high."""
    return torch.where(logits.isfinite().all(2), logits.argmax(2), -1)
