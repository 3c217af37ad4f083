"""Backbones side by side: images per second and peak memory of inference and of a training step, on made-up images.

    inference    forward in evaluation mode, without gradients
    training     the loop's step (``step.py``) with cross-entropy and AdamW

Images are noise, labels are made up, the learning rate is zero. All models take turns (``clock.py``), so that what else happens
on the machine meets all of them. Peaks are taken of one model at a time: on a CPU in a fresh process each, on CUDA before the
models that are timed are built.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hybridmap.backbones.base import ImageBackbone
from hybridmap.backbones.flops import gmacs
from hybridmap.backbones.sequence import sides
from hybridmap.bench.clock import in_fresh_process, in_turns, peak_allocated, peak_growth
from hybridmap.bench.step import Step
from hybridmap.errors import UserError
from hybridmap.train.loop import DTYPES, reproducible
from hybridmap.train.optim import AdamW
from hybridmap.types import Batch, Loss

Phase = Literal["inference", "training"]

TIMED: dict[Phase, str] = {
    "inference": "forward in evaluation mode, without gradients, of images that are on the device",
    "training": "gradients to zero, forward, cross-entropy, backward, norm of the gradient, AdamW",
}
"""Phase -> what one call of it is."""
PEAKS = {
    "cpu": "growth of a fresh process from building the model to its second call",
    "cuda": "most bytes allocated on the device during a second call, one model there at a time",
}
"""Kind of device -> what its peak is."""


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """What is the same for all models."""

    batch: int
    """Images."""
    dtype: str
    """fp32, or the autocast regions in bf16 or fp16."""
    rounds: int
    """Measured rounds."""
    phases: tuple[Phase, ...] = ("inference", "training")
    memory: bool = True
    """Whether peaks are taken too."""


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What one model is and takes."""

    size: tuple[int, int]
    """(height, width) of the images in pixels."""
    parameters: int
    gmacs: float
    """10^9 multiply-adds per image, forward."""
    images_per_s: dict[Phase, float]
    memory: dict[Phase, float]
    """Peak in bytes: weights and activations; in training gradients and optimiser too."""


class Classifier(nn.Module):
    """Cross-entropy of a backbone's logits: the shortest learner that trains every parameter."""

    def __init__(self, backbone: ImageBackbone) -> None:
        super().__init__()
        self.backbone = backbone

    def forward(self, batch: Batch) -> Loss:
        assert batch.labels is not None
        return Loss(total=F.cross_entropy(self.backbone(batch.inputs), batch.labels))


def images(config: ImageBackbone.Config, batch: int, device: torch.device) -> Tensor:
    """Noise (batch, C, height, width)."""
    return torch.randn(batch, config.in_chans, *sides(config.img_size), device=device)


def prepare(config: ImageBackbone.Config, phase: Phase, protocol: Protocol, device: torch.device) -> Callable[[], object]:
    """A freshly built network in one phase, ready to be called again and again."""
    torch.manual_seed(0)
    backbone, inputs = config.build().to(device), images(config, protocol.batch, device)
    if phase == "training":
        key = torch.arange(protocol.batch, device=device)
        batch = Batch(inputs=inputs, key=key, labels=key % config.num_classes)
        learner = Classifier(backbone).train()
        return Step(learner, batch, AdamW.Config().build(), precision=protocol.dtype, device=device)
    backbone.eval()

    def infer() -> None:
        with torch.inference_mode(), torch.autocast(device.type, DTYPES[protocol.dtype], enabled=protocol.dtype != "fp32"):
            backbone(inputs)

    return infer


def measure(configs: Mapping[str, ImageBackbone.Config], device: torch.device, protocol: Protocol) -> dict[str, Measured]:
    """Measure all models, each phase in turns of its own.

    Raises:
        UserError: if one of them cannot be built or cannot take its images, before anything is measured.
    """
    known = {name: describe(name, config, protocol) for name, config in configs.items()}
    rates: dict[str, dict[Phase, float]] = {name: {} for name in configs}
    peaks: dict[str, dict[Phase, float]] = {name: {} for name in configs}
    with reproducible(device, strict=False):
        for name, config in configs.items():
            for phase in protocol.phases:
                peak = peak_of(config, phase, protocol, device) if protocol.memory else None
                if peak is not None:
                    peaks[name][phase] = peak
        for phase in protocol.phases:
            runs = {name: prepare(config, phase, protocol, device) for name, config in configs.items()}
            for name, seconds in in_turns(runs, protocol.rounds, device).items():
                rates[name][phase] = protocol.batch / seconds
            del runs
            _release(device)
    return {
        name: Measured(size=size, parameters=parameters, gmacs=count, images_per_s=rates[name], memory=peaks[name])
        for name, (size, parameters, count) in known.items()
    }


def describe(name: str, config: ImageBackbone.Config, protocol: Protocol) -> tuple[tuple[int, int], int, float]:
    """(size of its images, parameters, GMACs) of a network, which goes through all phases on the meta device for it.

    Raises:
        UserError: naming the model, if it cannot be built or cannot take its images.
    """
    size = sides(config.img_size)
    try:
        if config.num_classes < 1:
            raise UserError(f"a training step needs a classifier, got num_classes={config.num_classes}; try 1000")
        with torch.device("meta"):
            backbone = config.build()
            for phase in protocol.phases:
                backbone.train(phase == "training")(images(config, protocol.batch, torch.device("meta")))
        return size, sum(parameter.numel() for parameter in backbone.parameters()), gmacs(backbone)
    except UserError as error:
        raise UserError(f"{name}: {error}") from None
    except (RuntimeError, ValueError, TypeError) as error:  # torch, of sizes beyond its numbers, or one value for a batch norm
        reason = str(error).partition("\n")[0]
        raise UserError(
            f"{name}: {protocol.batch} images of {size[0]}x{size[1]} cannot go through it ({reason});"
            " try another --img-size or --batch"
        ) from error


def peak_of(config: ImageBackbone.Config, phase: Phase, protocol: Protocol, device: torch.device) -> float | None:
    """Bytes at the worst moment of one phase of one model; None on a device that does not say."""
    if device.type == "cpu":
        return in_fresh_process(growth_of, config, phase, protocol, torch.get_num_threads())
    if device.type != "cuda":
        return None
    _release(device)
    before = torch.cuda.memory_allocated(device)
    peak = peak_allocated(prepare(config, phase, protocol, device), device) - before
    _release(device)
    return peak


def growth_of(config: ImageBackbone.Config, phase: Phase, protocol: Protocol, threads: int) -> float:
    """Bytes by which this process, a fresh one, grows from building the model to the end of its second call."""
    torch.set_num_threads(threads)
    device = torch.device("cpu")

    def build_and_run() -> None:
        run = prepare(config, phase, protocol, device)
        for _ in range(2):
            run()

    with reproducible(device, strict=False):
        return peak_growth(build_and_run)


def _release(device: torch.device) -> None:
    """Give back what the models before held."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
