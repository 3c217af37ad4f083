"""A table as a grid of runs: cell = base ∘ row ∘ scale.

    Table    a base recipe, what follows it, and rows
    Row      a label, what differs from the base, and the numbers that the paper prints for it
    Cell     one row at one scale with one seed: recipes that are run one after the other, each from the weights before

    pretrain ──▶ [kNN, linear probe on the frozen network] ──▶ finetune ... ──▶ answers to the test images

Three scales: ``smoke`` (made-up images, two steps, everything is run and nothing learned), ``trend`` (small and real, see
``hybridmap.recipes.trend``), ``full`` (the recipes as they stand). A cell is kept under the hash of all that decides its
result, so rows that mean the same run, also those of different tables, are one cell, and an interrupted table continues.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from hybridmap import recipes
from hybridmap.config import Config, override, to_tree
from hybridmap.data.bundled import BundledPhotos
from hybridmap.data.loader import Loader
from hybridmap.errors import UserError
from hybridmap.files import replace_file
from hybridmap.ops.backend import show_config
from hybridmap.recipes import trend
from hybridmap.recipes.smoke import scale_down
from hybridmap.tasks.features import extract
from hybridmap.tasks.knn import KNN
from hybridmap.tasks.linear_probe import LinearProbe
from hybridmap.train.loop import build_learner, train
from hybridmap.train.recipe import Recipe
from hybridmap.train.run_dir import version_of
from hybridmap.train.weights import load_run

Scale = Literal["smoke", "trend", "full"]

SCRATCH = "none"
"""The base of rows that start from nothing."""
PAPER = {"train.epochs": 1600, "train.batch_size": 4096}
"""Changes that give a recipe the length of the paper's pretraining."""
RESULT = "result.json"
"""What a finished cell found, beside its run directories."""
_PROCEDURE = 1
"""Version of what :func:`run` does with the recipes of a cell; another one makes all cells new."""
_NEIGHBOURS = 20
"""The k that is reported, fixed beforehand; DINO's protocol finds it usually best."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line of a table, as a difference from its base."""

    label: str
    base: str | None = None
    """Another pretraining recipe than the table's; :data:`SCRATCH` for none at all."""
    then: tuple[str, ...] | None = None
    """Other fine-tuning recipes than the table's."""
    changes: Mapping[str, Any] = field(default_factory=dict)
    """Override of the pretraining recipe."""
    network: Mapping[str, Any] = field(default_factory=dict)
    """Override of the backbone, in pretraining and fine-tuning alike."""
    paper: tuple[str, ...] = ()
    """The numbers that the paper prints for it, by their ids in ``paper/results.yaml``."""
    note: str = ""
    """What a reader should know, such as which reading of an unclear sentence this is."""


@dataclass(frozen=True, kw_only=True)
class Table:
    """Rows over one base. The file's docstring says whom the rows follow where paper and code disagree."""

    number: str
    """The paper's, such as "T5"; empty for a grid of our own."""
    title: str
    base: str
    """Name of the pretraining recipe."""
    then: tuple[str, ...]
    """Names of the fine-tuning recipes, run one after the other."""
    rows: tuple[Row, ...]
    layers: int = 4
    """Layers of the networks at scale ``trend``: as few as keep the rows apart."""

    def __post_init__(self) -> None:
        labels = [row.label for row in self.rows]
        if len(set(labels)) < len(labels):
            raise ValueError(f"two rows of {self.title!r} have the same label")
        for row in self.rows:
            if self.base_of(row) == SCRATCH and row.changes:
                raise ValueError(f"{row.label!r} changes a pretraining that it does not have")

    def base_of(self, row: Row) -> str:
        """Name of the row's pretraining recipe, or :data:`SCRATCH`."""
        return self.base if row.base is None else row.base

    def recipes_of(self, row: Row) -> tuple[str, ...]:
        """Names of all recipes of a row, in the order in which they are run."""
        base = self.base_of(row)
        return (*(() if base == SCRATCH else (base,)), *(self.then if row.then is None else row.then))

    def missing(self, row: Row) -> tuple[str, ...]:
        """Those recipes of a row that do not exist, so that it cannot be run."""
        known = {entry.name for entry in recipes.listing()}
        return tuple(name for name in self.recipes_of(row) if name not in known)


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One row at one scale with one seed, with everything resolved."""

    label: str
    """For messages; not a part of what the cell is."""
    scale: Scale
    pretrained: bool
    """Whether the first stage is pretraining."""
    stages: tuple[Recipe, ...]
    """Recipes, each to be started from the weights of the one before; the last one names the exam."""
    exams: tuple[Config, ...] = ()
    """Exams of the frozen network as fine-tuning finds it."""

    @property
    def seed(self) -> int:
        return self.stages[0].seed

    @property
    def key(self) -> str:
        """Hash of all that decides the result: resolved recipes with their seed, exams, scale, and the version of the code."""
        what = {
            "procedure": _PROCEDURE,
            "version": version_of("hybridmap"),
            "scale": self.scale,
            "stages": [to_tree(stage) for stage in self.stages],
            "exams": [to_tree(exam) for exam in self.exams],
        }
        return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:16]

    def stage_names(self) -> tuple[str, ...]:
        """The directory of each stage: ``pretrain``, then ``finetune``, or ``finetune-1`` and so on where there are several."""
        rest = len(self.stages) - self.pretrained
        tuned = ("finetune",) if rest == 1 else tuple(f"finetune-{i + 1}" for i in range(rest))
        return (("pretrain",) if self.pretrained else ()) + tuned


def resolve(
    table: Table, row: Row, scale: Scale, *, seed: int = 0, root: str = "", budget: trend.Budget = trend.CPU_HOUR
) -> Cell:
    """The cell of a row.

    Args:
        table: the row's table.
        row: one of its rows.
        scale: how large.
        seed: of all stages.
        root: a folder of labelled images; empty = made-up images (smoke) or the bundled photographs (trend).
        budget: sizes and steps of scale ``trend``.

    Raises:
        UserError: for a missing recipe, or a root that is missing or superfluous at this scale.
    """
    if scale == "smoke" and root:
        raise UserError("scale smoke runs on made-up images and reads no folder; leave --data.root out, or try --scale trend")
    if scale == "full" and not root:
        raise UserError("scale full needs images; use --data.root DIR with DIR/train and DIR/val, one folder per class in each")
    base = table.base_of(row)
    network = {f"learner.backbone.{name}": value for name, value in row.network.items()}
    stages = [override(recipes.find(name), network) for name in table.recipes_of(row)]
    if base != SCRATCH:
        stages[0] = override(stages[0], row.changes)
    pretrained, exams = base != SCRATCH, ()
    if scale == "smoke":
        stages = [_smoke(stage) for stage in stages]
    elif scale == "trend":
        # Stages of one schedule would be unequal budgets at this scale: one is left.
        stages = [
            trend.shrink(stage, budget=budget, layers=table.layers, root=root) for stage in [*stages[:pretrained], stages[-1]]
        ]
        exams = trend.exams(stages[-1])
    else:
        stages = [_rooted(stage, root, pretraining=pretrained and i == 0) for i, stage in enumerate(stages)]
    return Cell(
        label=row.label,
        scale=scale,
        pretrained=pretrained,
        stages=tuple(replace(stage, seed=seed) for stage in stages),
        exams=exams,
    )


def run(cell: Cell, folder: Path, device: str = "auto") -> dict[str, Any]:
    """Run a cell in ``folder``, or read what an earlier run of it found there; a half finished one continues.

    Returns what :data:`RESULT` holds: ``scores`` (metric -> per cent), ``answers`` (metric -> a string of 0 and 1, one per test
    image), ``sources`` (which test images belong together; None = each is its own), ``seconds`` by stage, ``cpu_seconds`` of
    the process, and the circumstances. Metrics: ``top1`` of the fine-tuned network, and at scale trend ``linear`` and ``knn``
    of the frozen one.

    Raises:
        UserError: for whatever a user can mend.
    """
    file = folder / RESULT
    if file.exists():
        return json.loads(file.read_text())
    seconds: dict[str, float] = {}
    computed = time.process_time()
    answers: dict[str, Tensor] = {}
    before: Path | None = None
    for name, planned in zip(cell.stage_names(), cell.stages, strict=True):
        began = time.perf_counter()
        stage = planned if before is None else replace(planned, init_from=str(before))
        if name != "pretrain":
            stage = _with_classes(stage)
        if name != "pretrain" and not answers:
            answers |= _frozen_answers(cell.exams, stage, device)
            seconds["exams"], began = time.perf_counter() - began, time.perf_counter()
        plain = replace(stage, exams={})  # examined below, answer by answer
        train(plain, folder / name, loader=Loader, device=device, environment={"kernels": show_config()})
        seconds[name], before = time.perf_counter() - began, folder / name
    assert before is not None
    recipe, weights = load_run(before)
    learner: Any = recipe.learner.build()
    learner.load_state_dict(weights)
    test: Any = exam_of(cell.stages[-1]).test
    chosen = _device(device)
    logits, labels = learner.to(chosen).predict(test, chosen)
    answers["top1"] = logits.argmax(1) == labels
    facts = json.loads((before / "environment.json").read_text())
    result = {
        "label": cell.label,
        "key": cell.key,
        "scale": cell.scale,
        "seed": cell.seed,
        "scores": {name: round(100.0 * correct.double().mean().item(), 4) for name, correct in answers.items()},
        "answers": {name: "".join(map(str, correct.int().tolist())) for name, correct in answers.items()},
        "sources": labels.tolist() if isinstance(test, BundledPhotos.Config) else None,
        "seconds": {name: round(value, 2) for name, value in seconds.items()},
        "cpu_seconds": round(time.process_time() - computed, 2),
        **{name: facts[name] for name in ("commit", "device", "platform", "threads", "versions")},
    }
    replace_file(file, json.dumps(result, sort_keys=True) + "\n")
    return result


def exam_of(recipe: Recipe) -> Any:
    """The exam of a fine-tuning recipe: the only one that it has."""
    (exam,) = recipe.exams.values()
    return exam


def _frozen_answers(exams: tuple[Config, ...], stage: Recipe, device: str) -> dict[str, Tensor]:
    """What exams say about the network as ``stage`` finds it, before its first step: right or wrong, per test image."""
    if not exams:
        return {}
    chosen = _device(device)
    network = build_learner(stage, fresh=True).to(chosen)
    features: dict[Config, Any] = {}
    found: dict[str, Tensor] = {}
    for exam in exams:
        assert isinstance(exam, KNN.Config | LinearProbe.Config)
        for data in (exam.train, exam.test):
            if data not in features:
                features[data] = extract(network, data, device=chosen)
        pair = features[exam.train], features[exam.test]
        if isinstance(exam, KNN.Config):
            found["knn"] = exam.build().answers(*pair, device=chosen)[_NEIGHBOURS]
        else:
            found["linear"] = exam.build().answers(*pair, device=chosen).correct
    return found


def _with_classes(stage: Recipe) -> Recipe:
    """The recipe for the classes that its data has."""
    names: Any = stage.data.build().labelled()
    return override(stage, {"learner.num_classes": len(names), "learner.class_names": names})


def _smoke(stage: Recipe) -> Recipe:
    small = scale_down(stage)
    return override(trend.same_share(stage, small), {"train.checkpoint_every": small.train.steps})


def _rooted(stage: Recipe, root: str, *, pretraining: bool) -> Recipe:
    """The recipe on the images below ``root``; pretraining sees its training part alone."""
    part = {"data.split": "train"} if pretraining else {}
    return recipes.share_data(override(stage, {"data.root": root} | part))


def _device(name: str) -> torch.device:
    from hybridmap.train.distributed import choose_device

    return choose_device(name)


__all__ = ["PAPER", "RESULT", "SCRATCH", "Cell", "Row", "Scale", "Table", "exam_of", "resolve", "run"]
