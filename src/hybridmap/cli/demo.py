"""``hybridmap demo``: pretrain on real photographs that are already there, look at it, and see whether it helped.

    pretrain ─> kNN and linear probe, against the same network untrained ─> fine-tuning, against training from scratch

Every accuracy is on the right halves of pictures whose left halves were trained on, with a bootstrap interval that resamples
pictures and then crops. The result is a table, report.html and PNG pictures; ``--results`` writes the numbers for README.
"""

from __future__ import annotations

import json
import os
import platform
import shlex
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import tyro
from rich.table import Table as ConsoleTable

from hybridmap.cli import report
from hybridmap.cli.flags import Common, parse
from hybridmap.cli.output import console
from hybridmap.cli.runs import device_named, open_run, shrink, shrink_exam, smoke
from hybridmap.data.loader import Loader
from hybridmap.errors import UserError
from hybridmap.files import replace_file
from hybridmap.ops.backend import show_config
from hybridmap.recipes import demo as recipes
from hybridmap.report.html import RESULTS, Table, tables_as_json
from hybridmap.tasks.bootstrap import Interval, difference, interval
from hybridmap.tasks.features import extract, raw_pixels
from hybridmap.train.loop import train
from hybridmap.train.recipe import Recipe

NEIGHBOURS = 20
"""The k that is reported, fixed beforehand; DINO's protocol finds it usually best."""


@dataclass(frozen=True, kw_only=True)
class Options(Common):
    what: tyro.conf.Positional[Literal["images"]] = "images"
    """What to try it on."""
    seed: int = 0
    """Initial weights, order and crops."""
    seeds: int = 1
    """Repeat with so many seeds, counted from --seed, each in a directory of its own."""
    out: str = "runs/demo"
    """Where everything goes. The same command again continues where it stopped."""
    overwrite: bool = False
    """Start anew in a directory that holds another run."""
    results: str | None = None
    """Also write the numbers of all seeds to this JSON file."""


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """One exam: per cent correct of two networks on the same crops, and the paired difference."""

    exam: str
    pretrained: Interval
    untrained: Interval
    difference: Interval

    @classmethod
    def of(cls, exam: str, pretrained: Any, untrained: Any, sources: Any) -> Comparison:
        """From answers right or wrong (n,) and the picture (n,) that each crop is from."""
        ours, theirs = (100.0 * np.asarray(answers, dtype=np.float64) for answers in (pretrained, untrained))
        return cls(
            exam=exam,
            pretrained=interval(ours, sources),
            untrained=interval(theirs, sources),
            difference=difference(ours, theirs, sources),
        )

    def row(self) -> tuple[str, str, str, str]:
        """As words for a table."""
        sign = "+" if self.difference.value >= 0 else ""
        return self.exam, str(self.pretrained), str(self.untrained), f"{sign}{self.difference}"

    def as_tree(self) -> dict[str, Any]:
        """As numbers for JSON: [value, low, high] in per cent."""
        parts = {"pretrained": self.pretrained, "untrained": self.untrained, "difference": self.difference}
        return {"exam": self.exam} | {name: [round(x, 2) for x in (i.value, i.low, i.high)] for name, i in parts.items()}


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What one seed gave."""

    comparisons: tuple[Comparison, ...]
    pixels: Interval
    """kNN on the pixels themselves, per cent."""
    seconds: dict[str, float]
    """Stage -> wall-clock seconds."""
    page: Path


def main(arguments: Sequence[str]) -> int:
    """Run the demo for each seed; print, draw and write what came out."""
    options = parse(Options, arguments, "demo", "The first minutes: pretrain on bundled photographs, look, compare.")
    if options.seeds < 1:
        raise UserError(f"--seeds must be at least 1, got {options.seeds}")
    device = device_named(options.device)
    command = shlex.join(["hybridmap", "demo", *arguments])
    outcomes: dict[int, Outcome] = {}
    for seed in range(options.seed, options.seed + options.seeds):
        out = Path(options.out) / f"seed-{seed}" if options.seeds > 1 else Path(options.out)
        outcomes[seed] = run(seed, out.expanduser(), device, overwrite=options.overwrite, command=command)
    if options.results:
        replace_file(options.results, json.dumps(as_results(outcomes, command, device), indent=2) + "\n")
    return 0


def run(seed: int, out: Path, device: torch.device, *, overwrite: bool, command: str) -> Outcome:
    """The whole demo for one seed, in ``out``."""
    facts = {"kernels": show_config()}
    screen, seconds, began = console(), {}, time.perf_counter()

    def lap(stage: str) -> None:
        nonlocal began
        now = time.perf_counter()
        seconds[stage], began = now - began, now

    pretraining = _sized(recipes.demo_pretrain(seed))
    screen.print(f"[bold]Pretraining by MAP[/] on {pretraining.data.build().describe()}: no labels, {device}")
    train(pretraining, out, loader=Loader, device=str(device), overwrite=overwrite, environment=facts)
    pretrained = open_run(str(out))
    torch.manual_seed(seed)
    untrained = pretraining.learner.build()
    lap("pretraining")

    screen.print("[bold]Nearest neighbours and linear probe[/] on frozen features, against the same network untrained")
    knn, probe = (shrink_exam(exam) if smoke() else exam for exam in (recipes.demo_knn(), recipes.demo_probe()))
    networks = {"pretrained": pretrained.learner.to(device), "untrained": untrained.to(device), "pixels": raw_pixels}
    tables = {
        name: [extract(network, data, device=device) for data in (knn.train, knn.test)] for name, network in networks.items()
    }
    sources = tables["pretrained"][1].labelled()[0].numpy()
    votes = {name: knn.build().answers(*pair, device=device)[NEIGHBOURS] for name, pair in tables.items()}
    heads = {name: probe.build().answers(*tables[name], device=device).correct for name in ("pretrained", "untrained")}
    lap("kNN and linear probe")

    screen.print("[bold]Fine-tuning[/] the pretrained network, and the same network from scratch")
    finetuning = replace(_sized(recipes.demo_finetune(seed)), exams={})  # examined below, crop by crop
    answers = {}
    for name, init in (("finetune", str(out)), ("scratch", None)):
        train(
            replace(finetuning, init_from=init),
            out / name,
            loader=Loader,
            device=str(device),
            overwrite=overwrite,
            environment=facts,
        )
        learner: Any = open_run(str(out / name)).learner
        logits, labels = learner.to(device).predict(knn.test, device)
        answers[name] = logits.argmax(1) == labels
    lap("fine-tuning")

    comparisons = (
        Comparison.of(f"kNN, k = {NEIGHBOURS}", votes["pretrained"], votes["untrained"], sources),
        Comparison.of("linear probe", heads["pretrained"], heads["untrained"], sources),
        Comparison.of("fine-tuned / from scratch", answers["finetune"], answers["scratch"], sources),
    )
    pixels = interval(100.0 * votes["pixels"].double().numpy(), sources)
    table = Table(
        title="Did pretraining help?",
        header=("exam", "pretrained", "untrained", "difference"),
        rows=tuple(comparison.row() for comparison in comparisons),
        note=(
            f"Per cent correct of {len(sources)} crops from the right halves of {len(set(sources.tolist()))} pictures,"
            f" 95 % intervals from resampling pictures, then crops. kNN on raw pixels: {pixels}."
        ),
    )
    replace_file(out / RESULTS, tables_as_json([table], command=command))
    page = report.write(pretrained, device=str(device), title="hybridmap demo")
    lap("report")
    screen.print(_for_console(table))
    screen.print(table.note)
    spent = ", ".join(f"{stage} {value:.0f} s" for stage, value in seconds.items())
    screen.print(f"{sum(seconds.values()):.0f} s in all ({spent})", highlight=False)
    screen.print(f"report: {page}\npictures: {out / 'pictures'}", highlight=False)
    return Outcome(comparisons=comparisons, pixels=pixels, seconds=seconds, page=page)


def as_results(outcomes: dict[int, Outcome], command: str, device: torch.device) -> dict[str, Any]:
    """The numbers of all seeds with what they were measured on, for README."""
    from hybridmap.train.run_dir import environment

    facts = environment(device, 1)
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{os.cpu_count()} cores, {platform.machine()}"
    return {
        "command": command,
        "hardware": where,
        **{name: facts[name] for name in ("commit", "cpu_capability", "platform", "python", "threads", "versions")},
        "kernels": show_config(),
        "classes": recipes.SOURCES,
        "seeds": {
            str(seed): {
                "seconds": round(sum(outcome.seconds.values()), 1),
                "stages": {stage: round(value, 1) for stage, value in outcome.seconds.items()},
                "pixels": [round(x, 2) for x in (outcome.pixels.value, outcome.pixels.low, outcome.pixels.high)],
                "scores": [comparison.as_tree() for comparison in outcome.comparisons],
            }
            for seed, outcome in outcomes.items()
        },
    }


def _sized(recipe: Recipe) -> Recipe:
    """The recipe, or what HYBRIDMAP_SMOKE=1 makes of it."""
    return shrink(recipe) if smoke() else recipe


def _for_console(table: Table) -> ConsoleTable:
    shown = ConsoleTable(*table.header, title=table.title)
    for column in shown.columns[1:]:
        column.justify = "right"
    for row in table.rows:
        shown.add_row(*row)
    return shown
