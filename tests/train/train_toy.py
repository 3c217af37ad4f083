"""A learner, data and a loader just large enough to train: what the tests of the training loop are about is the loop."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from hybridmap import config as configuration
from hybridmap.config import Config, Configurable, trusted_modules
from hybridmap.hashing import hash_ints, uniform
from hybridmap.train import AdamW, Cosine, Recipe, TrainConfig
from hybridmap.train.optim import Optimizer
from hybridmap.types import Batch, InitReport, Loss

trusted_modules.add("train_toy")


class ToyData(Configurable):
    """Points whose label is a function of them; sample i depends on i alone."""

    @dataclass(frozen=True, kw_only=True)
    class Config(configuration.Config):
        samples: int = 40
        workers: int = 0
        size: int = 6
        mean: tuple[float, ...] = (0.5,)
        std: tuple[float, ...] = (0.25,)

    def __len__(self) -> int:
        return self.config.samples


class ToyLoader:
    """The loader's contract in thirty lines: everything follows from the position in an endless stream."""

    def __init__(
        self,
        config: ToyData.Config,
        *,
        batch_size: int,
        steps: int,
        accumulate: int = 1,
        rank: int = 0,
        world: int = 1,
        seed: int = 0,
        start_step: int = 0,
        device: torch.device | str = "cpu",
    ) -> None:
        self.dataset: ToyData = config.build()
        self.batch_size, self.steps, self.accumulate, self.start_step = batch_size, steps, accumulate, start_step
        self.rank, self.world, self.seed, self.device = rank, world, seed, torch.device(device)
        self.wait_s = 0.0
        self.skipped: dict[str, str] = {}

    def __iter__(self) -> Iterator[Iterator[Batch]]:
        for step in range(self.start_step, self.steps):
            yield (self._batch(step, micro) for micro in range(self.accumulate))

    def _batch(self, step: int, micro: int) -> Batch:
        share = self.batch_size // (self.accumulate * self.world)
        first = step * self.batch_size + (micro * self.world + self.rank) * share
        epochs = [divmod(position, len(self.dataset)) for position in range(first, first + share)]
        keys = torch.tensor([hash_ints(self.seed, epoch, place) for epoch, place in epochs])
        points = uniform(torch.tensor([place for _, place in epochs]), self.dataset.config.size, 0)
        return Batch(
            inputs=points.to(self.device), key=keys.to(self.device), step_key=hash_ints(self.seed, step), labels=points.sum(1)
        )


class Net(nn.Module):
    """A list of layers, as backbones have."""

    def __init__(self, size: int, width: int, dropout: float) -> None:
        super().__init__()
        self.embed = nn.Linear(size, width)
        self.layers = nn.ModuleList(nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Dropout(dropout)) for _ in range(2))
        self.norm = nn.LayerNorm(width)
        self.checkpointing = False

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        for layer in self.layers:
            x = x + (torch.utils.checkpoint.checkpoint(layer, x, use_reentrant=False) if self.checkpointing else layer(x))
        return self.norm(x)

    def set_grad_checkpointing(self, enable: bool = True, every: int = 1) -> None:
        self.checkpointing = enable


class Break(nn.Module):
    """Divides by zero when its flag is up."""

    def __init__(self) -> None:
        super().__init__()
        self.now = False

    def forward(self, x: Tensor) -> Tensor:
        return x / 0.0 * 0.0 if self.now else x


class ToyLearner(nn.Module, Configurable):
    """Regression, with the faults that tests want."""

    @dataclass(frozen=True, kw_only=True)
    class Config(configuration.Config):
        width: int = 8
        dropout: float = 0.0
        bad_steps: tuple[int, ...] = ()
        """Steps (from 0) whose forward is not finite."""
        bad_above: float | None = None
        """The forward is not finite while the weights are larger than this."""
        seed: int = 0
        """The recipe's seed, to know the step by its key."""

    def __init__(self, config: ToyLearner.Config) -> None:
        super().__init__()
        self.config = config
        self.backbone = Net(6, config.width, config.dropout)
        self.fault = Break()
        self.head = nn.Linear(config.width, 1)
        self._bad_keys = {hash_ints(config.seed, step) for step in config.bad_steps}

    def forward(self, batch: Batch) -> Loss:
        self.fault.now = batch.step_key in self._bad_keys
        return self.step(batch.inputs, batch.labels)

    def step(self, inputs: Tensor, labels: Tensor) -> Loss:
        error = (self.head(self.fault(self.backbone(inputs)))[:, 0].float() - labels).square().mean()
        return Loss(total=error, parts={"error": error})

    def layer_ids(self) -> dict[str, int]:
        return {
            f"backbone.{name}": 1 + int(name.split(".")[1])
            if name.startswith("layers.")
            else 3
            if name.startswith("norm")
            else 0
            for name, _ in self.backbone.named_parameters()
        }

    def initialise(self, weights: dict[str, Tensor]) -> InitReport:
        self.load_state_dict(weights)
        return InitReport(loaded=tuple(weights), dropped={}, fresh={})


class ToyExam(Configurable):
    """How far the learner is from the truth on fixed points. It disturbs whatever it can reach, as an exam might."""

    @dataclass(frozen=True, kw_only=True)
    class Config(configuration.Config):
        samples: int = 16

    def __call__(self, learner: ToyLearner, device: torch.device) -> dict[str, float]:
        torch.manual_seed(99)
        points = torch.rand(self.config.samples, 6, device=device)
        with torch.no_grad():
            loss = learner.step(points, points.sum(1)).total.item()
            for parameter in learner.parameters():
                parameter.zero_()
        return {"error": loss, "score": -loss}


def toy_recipe(
    *,
    learner: Config | None = None,
    exams: dict[str, Config] | None = None,
    optim: Optimizer.Config | None = None,
    seed: int = 0,
    **train: Any,
) -> Recipe:
    """Ten steps of eight samples; keywords are fields of ``train``."""
    return Recipe(
        learner=learner or ToyLearner.Config(dropout=0.1),
        data=ToyData.Config(),
        exams=exams or {},
        optim=optim or AdamW.Config(lr=1e-2),
        schedule=Cosine.Config(warmup_epochs=0.5),
        train=TrainConfig(**({"steps": 10, "batch_size": 8, "checkpoint_every": 4, "tensorboard": False} | train)),
        seed=seed,
    )
