"""One training step of a recipe's learner on made-up images: how long it takes, of what that consists, and its floor.

The step is the loop's: gradients to zero, forward under autocast, backward, norm of the gradient, optimiser. The learning rate
is zero, so that the weights stay where they are. Images are noise that is on the device before the clock runs.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.amp.grad_scaler import GradScaler
from torch.utils._python_dispatch import TorchDispatchMode

from hybridmap import ops
from hybridmap.bench.clock import elapsed, in_fresh_process, in_turns, mark, peak_allocated, peak_growth
from hybridmap.bench.products import Product, operations, products_of, replay
from hybridmap.ops.backend import Backend
from hybridmap.train.loop import DTYPES, build_learner, reproducible
from hybridmap.train.optim import Optimizer
from hybridmap.train.recipe import Recipe
from hybridmap.types import Batch

KINDS = {
    "inside of mixers (scan, convolution, their projections)": r"hybridmap::mamba_inner",
    "products": r"aten::(addmm|mm|bmm|baddbmm)$",
    "scan": r"hybridmap::(selective|bidirectional)_scan",
    "convolution": r"hybridmap::causal_conv1d|aten::.*convolution",
    "norm": r"hybridmap::add_norm|aten::.*(layer|rms)_norm",
    "attention": r"aten::_scaled_dot_product",
    "optimizer": r"aten::_fused_adam",
    "casts": r"aten::_to_copy$",
}
"""Kind of operation -> the operators of that kind; all others are "rest"."""
STEP, PLAIN, FLOOR = "step", "step by plain PyTorch kernels", "floor: its matrix products alone"


class Step:
    """One training step, ready to be called again and again."""

    def __init__(self, learner: nn.Module, batch: Batch, optim: Optimizer, *, precision: str, device: torch.device) -> None:
        self.learner, self.batch, self.precision, self.device = learner, batch, precision, device
        self.optimizer = optim.optimizer(learner.named_parameters(), optim.rules(learner))
        self.scaler = GradScaler(device.type, enabled=precision == "fp16")

    @classmethod
    def of(cls, recipe: Recipe, device: torch.device) -> Step:
        """The step of a recipe's learner, on noise of its images' size."""
        data, size = recipe.data, recipe.train.batch_size
        learner = build_learner(recipe, fresh=False).to(device)
        classes = getattr(recipe.learner, "num_classes", None)
        key = torch.arange(size, device=device)
        shape = size, len(data.mean), *data.image_size  # type: ignore[attr-defined]
        form = torch.channels_last if recipe.train.channels_last else torch.contiguous_format
        views = tuple(torch.randn(shape, device=device).contiguous(memory_format=form) for _ in range(data.views))  # type: ignore[attr-defined]
        labels = None if classes is None else key % classes
        batch = Batch(inputs=views[0], key=key, labels=labels, views=views if len(views) > 1 else None)
        return cls(learner, batch, recipe.optim.build(), precision=recipe.train.precision, device=device)

    def __call__(self) -> None:
        self.optimizer.zero_grad()
        with torch.autocast(self.device.type, DTYPES[self.precision], enabled=self.precision != "fp32"):
            loss = self.learner(self.batch).total
        self.scaler.scale(loss).backward()
        self.scaler.unscale_(self.optimizer)
        trained = [parameter for group in self.optimizer.param_groups for parameter in group["params"]]
        norm = torch.nn.utils.get_total_norm([p.grad for p in trained if p.grad is not None])
        self.optimizer.found_inf = (~norm.isfinite()).float()  # type: ignore[attr-defined]
        self.optimizer.step()
        self.scaler.update()


class Ledger(TorchDispatchMode):
    """While it is active: the time of every operator by kind, and every matrix product."""

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self.device = device
        self.products: Counter[Product] = Counter()
        self._calls: list[tuple[str, Any, Any]] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name = func._schema.name
        begin = mark(self.device)
        out = func(*args, **(kwargs or {}))
        self._calls.append((name, begin, mark(self.device)))
        self.products.update(products_of(name, args))
        return out

    def shares(self) -> dict[str, float]:
        """Kind -> share of the time that all operators took, the largest first; what Python took between them is not in it."""
        taken: Counter[str] = Counter()
        for name, begin, end in self._calls:
            taken[_kind(name)] += elapsed(begin, end)  # type: ignore[assignment]
        total = sum(taken.values()) or 1.0
        return {kind: spent / total for kind, spent in taken.most_common()}


def _kind(name: str) -> str:
    return next((kind for kind, pattern in KINDS.items() if re.match(pattern, name)), "rest")


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What one step takes."""

    seconds: dict[str, float]
    """STEP, FLOOR, and PLAIN if it was asked for."""
    images: int
    operations: int
    """Floating-point operations of its matrix products."""
    shares: dict[str, float]
    """Kind of operation -> share of the operators' time, uncompiled."""
    memory: dict[str, float]
    """Peak in bytes, by name as in ``seconds``: weights, gradients, optimiser and activations together."""

    @property
    def images_per_s(self) -> float:
        return self.images / self.seconds[STEP]

    @property
    def over_floor(self) -> float:
        """The step's time over that of its matrix products alone."""
        return self.seconds[STEP] / self.seconds[FLOOR]

    @property
    def rate(self) -> float:
        """Operations per second of the step, counting its matrix products only."""
        return self.operations / self.seconds[STEP]


def hours(images_per_s: float, epochs: float, images: int, devices: int = 1) -> float:
    """Hours of so many passes over so many images on ``devices`` that each do ``images_per_s``, if none waits for another."""
    return epochs * images / images_per_s / devices / 3600


def measure(recipe: Recipe, device: torch.device, *, rounds: int, plain: bool = True, memory: bool = True) -> Measured:
    """Take a recipe's step apart: in turns with the same step by plain PyTorch kernels (if ``plain``) and with its floor."""
    backends: dict[str, Backend | None] = {STEP: None, PLAIN: "torch"} if plain else {STEP: None}
    peaks: dict[str, float] = {}
    if memory and device.type == "cpu":
        threads = torch.get_num_threads()
        peaks = {label: in_fresh_process(peak_growth_of, recipe, by, threads) for label, by in backends.items()}
    with reproducible(device, strict=False):
        step = Step.of(recipe, device)
        with torch.compiler.set_stance("force_eager"):
            step()
            with Ledger(device) as ledger:
                step()

        def with_kernels(backend: Backend | None) -> Callable[[], None]:
            def run() -> None:
                with ops.use_backend(backend):
                    step()

            return run

        runs = {label: with_kernels(backend) for label, backend in backends.items()}
        if memory and device.type == "cuda":
            peaks = {label: peak_allocated(run, device) for label, run in runs.items()}
        seconds = in_turns(runs | {FLOOR: replay(ledger.products, device)}, rounds, device)
    return Measured(
        seconds=seconds,
        images=recipe.train.batch_size,
        operations=operations(ledger.products),
        shares=ledger.shares(),
        memory=peaks,
    )


def peak_growth_of(recipe: Recipe, backend: Backend | None, threads: int) -> float:
    """Bytes by which this process, a fresh one, grows from building the learner to the end of its second step."""
    torch.set_num_threads(threads)
    device = torch.device("cpu")

    def build_and_step() -> None:
        step = Step.of(recipe, device)
        for _ in range(2):
            step()

    with reproducible(device, strict=False), ops.use_backend(backend):
        return peak_growth(build_and_step)
