"""A recipe: everything that decides what a run computes."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

from hybridmap.config import Config
from hybridmap.errors import UserError
from hybridmap.train.optim import AdamW, Optimizer
from hybridmap.train.schedule import Cosine


@dataclass(frozen=True, kw_only=True)
class TrainConfig(Config):
    """How long, how much at once, in which precision; what is written how often."""

    epochs: float | None = None
    """Passes over the data; None = as many as ``steps`` make."""
    steps: int | None = None
    """Optimiser steps; overrides the length of ``epochs``, and the schedule is compressed with it."""
    batch_size: int = 256
    """Samples per optimiser step, over all processes and micro-steps."""
    accumulate: int = 1
    """Micro-steps per optimiser step: the gradient is the mean over the whole batch, in this many portions."""
    clip: float | None = None
    """Largest norm of the gradient; None = not clipped."""
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """Of the autocast regions; parameters, optimiser, scan states and losses stay in fp32. fp16 scales the loss."""
    compile: bool = False
    """Compile the learner's ``step`` with torch.compile."""
    checkpoint_activations: bool = False
    """Recompute activations in the backward pass: less memory, about a third more time."""
    checkpoint_blocks: int = 1
    """Of the blocks, every so manieth is recomputed, where ``checkpoint_activations`` is on: 2 = half of them."""
    channels_last: bool = False
    """Keep images and the weights of convolutions pixel by pixel in memory: convolutional backbones are faster for it."""
    cuda_graphs: bool = False
    """Replay each compiled step as a CUDA graph, which spares the host its launches: for fixed shapes, on a GPU, with
    ``compile``."""
    parallel: Literal["ddp", "fsdp"] = "ddp"
    """With several processes: a copy of the parameters each, or a share of them each."""
    ema: float | None = None
    """Decay of a moving average of the weights; where there is one, exams and ``final.safetensors`` are of the average."""
    checkpoint_every: int | None = None
    """Steps between checkpoints; None = a twentieth of the run, at most 1000."""
    keep: int = 2
    """How many of the newest checkpoints stay, besides the best."""
    best: str = "loss"
    """What makes a checkpoint the best: the mean training loss since the one before (lowest), or the number of an exam, such as
    ``knn/top1``: highest, or lowest where the name ends with ``loss`` or ``error``."""
    eval_every: int | None = None
    """Steps between exams; None = at the end only."""
    eval_epochs: float | None = None
    """The same in epochs, where ``eval_every`` is none."""
    log_every: int = 1
    """Steps between lines of ``metrics.jsonl``."""
    tensorboard: bool = True
    """Write TensorBoard's files too, where it is installed."""
    wandb: str | None = None
    """Project of Weights & Biases that the run is shown in, offline where nobody is logged in; None = in none."""
    patience: float = 600.0
    """With several processes: seconds without progress, outside of exams and checkpoints, after which all give up and say which
    one hangs."""
    deterministic: bool = False
    """Only deterministic algorithms, for equal bytes on a GPU; on a CPU they are used anyway."""

    def __post_init__(self) -> None:
        for name in (
            "batch_size",
            "accumulate",
            "keep",
            "log_every",
            "steps",
            "checkpoint_every",
            "eval_every",
            "checkpoint_blocks",
        ):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"train.{name} must be at least 1, got {value}")
        for name in ("epochs", "clip", "eval_epochs", "patience"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise UserError(f"train.{name} must be more than 0, got {value}")
        if self.cuda_graphs and not self.compile:
            raise UserError("train.cuda_graphs replays compiled steps: set train.compile too")
        if self.ema is not None and not 0 < self.ema < 1:
            raise UserError(f"train.ema must lie between 0 and 1, got {self.ema}")

    def tell_batch(self, processes: int) -> str:
        """How the global batch is divided, in words."""
        share = self.batch_size // (processes * self.accumulate)
        ranks = f"{processes} process{'es' * (processes > 1)}"
        return f"global batch {self.batch_size} = {ranks} x {self.accumulate} micro-step{'s' * (self.accumulate > 1)} x {share}"

    def length(self, samples: int) -> tuple[int, float]:
        """(optimiser steps, epochs of the schedule) of a run over ``samples`` samples per epoch.

        Step s belongs to epoch ``epochs * s / steps``. So a run that ``steps`` shortens has the whole schedule, warm-up
        included, in fewer steps.

        Raises:
            UserError: if the recipe says neither.
        """
        if self.steps is None and self.epochs is None:
            raise UserError("the recipe does not say how long to train: set train.epochs or train.steps")
        if samples < 1:
            raise UserError("the data set is empty: there is nothing to train on")
        steps = self.steps or max(1, round((self.epochs or 0.0) * samples / self.batch_size))
        return steps, self.epochs or steps * self.batch_size / samples

    def exam_interval(self, steps: int, epochs: float) -> int | None:
        """Steps between exams of a run of so many steps and epochs; None = there are none before its end."""
        if self.eval_every is not None or self.eval_epochs is None:
            return self.eval_every
        return max(1, round(self.eval_epochs * steps / epochs))


@dataclass(frozen=True, kw_only=True)
class Recipe(Config):
    """What is trained, on what, how, and how it is examined. Two runs of one recipe are the same run."""

    learner: Config
    """The objective or task, with its network."""
    data: Config
    """The data set."""
    exams: dict[str, Config] = field(default_factory=dict)
    """Named evaluations; each builds something that is called with (learner, device) and gives numbers or pictures by name."""
    optim: Optimizer.Config = field(default_factory=AdamW.Config)
    """The optimiser."""
    schedule: Cosine.Config = field(default_factory=Cosine.Config)
    """The learning rate over time."""
    train: TrainConfig = field(default_factory=TrainConfig)
    """Length, batch, precision, checkpoints."""
    init_from: str | None = None
    """A run directory or weights file whose weights the learner starts from; None = fresh."""
    seed: int = 0
    """Decides everything that is drawn: initial weights, order, crops, masks, drop path."""
