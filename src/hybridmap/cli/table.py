"""``hybridmap table NAME|all|claims --scale smoke|trend|full``: the paper's tables, run here and shown beside what it prints.

    rows x seeds ─> cells (equal ones are one) ─> processes ─> OUT/cells/KEY/result.json ─> NAME-SCALE.md, .html, .png, .json

Cells that are there are not run again, so the same command continues. ``claims`` runs two grids of our own and says of each of
the paper's claims whether this run supports it, contradicts it, or cannot tell.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import shlex
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro

from hybridmap.cli.flags import Common, closest, parse
from hybridmap.cli.output import console
from hybridmap.cli.parallel import Failure, jobs_that_fit, run_all, usable_cores
from hybridmap.cli.runs import device_named, first_word, smoke
from hybridmap.errors import UserError
from hybridmap.files import replace_file
from hybridmap.recipes import claims, paper, trend
from hybridmap.recipes.table import Cell, Row, Scale, Table, resolve, run
from hybridmap.report import tables as report
from hybridmap.report.html import Table as Sheet
from hybridmap.tasks.bootstrap import Interval, interval

ALL, CLAIMS = "all", "claims"
_MEMORY_GB = {"smoke": 1.0, "trend": 1.5}
"""What a process needs at each scale; at scale full one runs at a time, with all cores or the whole GPU."""


@dataclass(frozen=True, kw_only=True)
class Images:
    root: str = ""
    """Labelled images, one folder per class, with train and val above them or one in ten held out. Scale trend takes the
    bundled photographs where this is empty; scale full needs it (ImageNet)."""


@dataclass(frozen=True, kw_only=True)
class Options(Common):
    name: tyro.conf.Positional[str]
    """A table, ``all`` tables, or ``claims``."""
    scale: Scale = "smoke"
    """smoke: two steps on made-up images; trend: small and real; full: the paper's settings."""
    out: str = "runs/tables"
    """Where cells and tables go. Cells that are there are not run again."""
    seed: int = 0
    """The first seed."""
    seeds: int = 1
    """Repeat every cell with so many seeds, counted from --seed."""
    jobs: int | None = None
    """Cells at a time (default: as many as cores and memory allow; one on a GPU and at scale full)."""
    results: str | None = None
    """Also write the numbers to this JSON file."""
    data: Images = field(default_factory=Images)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A table with its cells; None where a recipe is missing."""

    name: str
    table: Table
    cells: Mapping[str, tuple[Cell, ...] | None]
    """Label of a row -> one cell per seed."""


def main(arguments: Sequence[str]) -> int:
    """Run what is missing of the tables, and show them. Exit code 1 if a cell failed."""
    listing = ", ".join([*paper.tables(), ALL, CLAIMS])
    first_word(arguments, "table", f"the name of a table ({listing})")
    options = parse(Options, arguments, "table", f"Tables of the paper, run here: {listing}.")
    if options.seeds < 1:
        raise UserError(f"--seeds must be at least 1, got {options.seeds}")
    if options.jobs is not None and options.jobs < 1:
        raise UserError(f"--jobs must be at least 1, got {options.jobs}")
    device, out = device_named(options.device), Path(options.out).expanduser()
    plans = [_plan(name, table, options, device) for name, table in _chosen(options.name).items()]
    cells = {cell.key: cell for plan in plans for row in plan.cells.values() for cell in row or ()}
    _check_images(cells.values())
    outcomes = _run(cells, out, options, device)
    command = shlex.join(["hybridmap", "table", *arguments])
    facts = _facts(options, device, command, outcomes)
    found = {plan.name: _lines(plan, outcomes) for plan in plans}
    if options.name == CLAIMS:
        tree = facts | _write_claims(plans, found, outcomes, out, options, command)
    else:
        tables = {plan.name: _write_table(plan, found[plan.name], outcomes, out, options, command) for plan in plans}
        tree = facts | {"tables": tables}
    name = f"{options.name}-{_scale(options)}"
    for file in filter(None, (str(out / f"{name}.json"), options.results)):
        replace_file(file, json.dumps(tree, indent=1) + "\n")
    failed = {key: outcome for key, outcome in outcomes.items() if isinstance(outcome, Failure)}
    for key, failure in failed.items():
        console().print(f"failed: {_called(cells[key])}: {failure.reason}", style="red", markup=False, highlight=False)
    return 1 if failed else 0


def _chosen(name: str) -> dict[str, Table]:
    known = paper.tables()
    if name == CLAIMS:
        return {f"{CLAIMS}-{grid}": table for grid, table in claims.GRIDS.items()}
    if name == ALL:
        return known
    if name not in known:
        words = [*known, ALL, CLAIMS]
        raise UserError(f"there is no table {name!r}; {closest(name, words, 'hybridmap table --help')}")
    return {name: known[name]}


def _scale(options: Options) -> Scale:
    return "smoke" if smoke() else options.scale


def _plan(name: str, table: Table, options: Options, device: torch.device) -> Plan:
    budget = trend.GPU_HOUR if device.type == "cuda" else trend.CPU_HOUR
    seeds = range(options.seed, options.seed + options.seeds)

    def cells(row: Row) -> tuple[Cell, ...] | None:
        if table.missing(row):
            return None
        each = partial(resolve, table, row, _scale(options), root=options.data.root, budget=budget)
        return tuple(each(seed=seed) for seed in seeds)

    return Plan(name=name, table=table, cells={row.label: cells(row) for row in table.rows})


def _check_images(cells: Iterable[Cell]) -> None:
    """Open the images of one cell, so that a mistake about them is told once and at once."""
    for cell in cells:
        data: Any = cell.stages[-1].data
        data.build().labelled()
        return


def _run(cells: Mapping[str, Cell], out: Path, options: Options, device: torch.device) -> dict[str, dict[str, Any] | Failure]:
    """Key -> result or failure of every cell, telling progress."""
    scale, cores, screen = _scale(options), usable_cores(), console()
    alone = scale == "full" or device.type != "cpu"
    jobs = options.jobs or (1 if alone else jobs_that_fit(_MEMORY_GB[scale]))
    jobs = min(jobs, len(cells))
    work = partial(run_quietly, out=out, device=str(device))
    outcomes: dict[str, dict[str, Any] | Failure] = {}
    began = time.monotonic()
    screen.print(f"{len(cells)} cells, {jobs} at a time, in {out / 'cells'}", highlight=False)
    for key, outcome in run_all(cells, work, jobs=jobs, threads=max(1, cores // max(jobs, 1))):
        outcomes[key] = outcome
        told = outcome.reason if isinstance(outcome, Failure) else _scores(outcome["scores"])
        spent = time.monotonic() - began
        left = spent / len(outcomes) * (len(cells) - len(outcomes))
        text = f"{len(outcomes)}/{len(cells)}  {_called(cells[key])}: {told}  (ETA {_minutes(left)})"
        screen.print(text, markup=False, highlight=False, soft_wrap=True)
        if isinstance(outcome, Failure):
            replace_file(out / "cells" / key / "failure.txt", f"{outcome.reason}\n\n{outcome.details}")
    return outcomes


def run_quietly(cell: Cell, out: Path, device: str) -> dict[str, Any]:
    """Run a cell below ``out``; what it says goes into console.txt beside its run directories."""
    folder = out / "cells" / cell.key
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "console.txt").open("a") as file, contextlib.redirect_stdout(file), contextlib.redirect_stderr(file):
        result = run(cell, folder, device)
    (folder / "failure.txt").unlink(missing_ok=True)
    return result


def _called(cell: Cell) -> str:
    return f"{cell.label}, seed {cell.seed}"


def _scores(scores: Mapping[str, float]) -> str:
    return ", ".join(f"{report.METRICS[name]} {scores[name]:.1f}" for name in report.METRICS if name in scores)


def _minutes(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"


def _answers(cells: Sequence[Cell] | None, outcomes: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Metric -> right or wrong (seeds, n); empty unless every seed has a result."""
    results = [outcomes[cell.key] for cell in cells or ()]
    if not results or any(isinstance(result, Failure) for result in results):
        return {}
    return {
        metric: np.array([[char == "1" for char in result["answers"][metric]] for result in results], dtype=np.float64)
        for metric in results[0]["answers"]
    }


def _sources(cells: Sequence[Cell], outcomes: Mapping[str, Any], count: int) -> np.ndarray:
    given = outcomes[cells[0].key]["sources"]
    return np.arange(count) if given is None else np.array(given)


def _range(found: Interval) -> report.Range:
    return report.Range(value=found.value, low=found.low, high=found.high)


def _lines(plan: Plan, outcomes: Mapping[str, Any]) -> list[report.Line]:
    """The rows of a table, then what the paper quotes from others."""
    lines = []
    for row in plan.table.rows:
        cells = plan.cells[row.label]
        answers = _answers(cells, outcomes)
        measured = {
            metric: _range(interval(100.0 * correct, _sources(cells or (), outcomes, correct.shape[1])))
            for metric, correct in answers.items()
        }
        lines.append(
            report.Line(
                label=row.label,
                paper=tuple(paper.reported()[id].value for id in row.paper),
                measured=measured,
                seeds=len(cells or ()) if measured else 0,
                note="; ".join(filter(None, (_why_not(plan.table, row, cells, outcomes), row.note))),
            )
        )
    if not plan.table.number:
        return lines
    told = "printed by the paper, not run here"
    return lines + [report.Line(label=n.label, paper=(n.value,), note=told) for n in paper.quoted(plan.table)]


def _why_not(table: Table, row: Row, cells: Sequence[Cell] | None, outcomes: Mapping[str, Any]) -> str:
    """Why a row has no measurement; empty where it has."""
    if cells is None:
        return f"not run: there is no recipe {' or '.join(table.missing(row))} yet"
    reasons = [f"seed {cell.seed} failed: {o.reason}" for cell in cells if isinstance(o := outcomes[cell.key], Failure)]
    return "; ".join(reasons)


def _tree_of(plan: Plan, lines: Sequence[report.Line], outcomes: Mapping[str, Any]) -> list[dict[str, Any]]:
    rows = []
    for row, line in zip(plan.table.rows, lines, strict=False):
        cells = plan.cells[row.label] or ()
        rows.append(
            {
                "row": row.label,
                "paper": {id: paper.reported()[id].value for id in row.paper},
                "measured": {name: _numbers(found) for name, found in line.measured.items()},
                "cells": [cell.key for cell in cells],
                "remark": line.note,
            }
        )
        if line.measured:
            rows[-1]["seeds"] = {str(cell.seed): outcomes[cell.key]["scores"] for cell in cells}
            rows[-1]["seconds"] = round(sum(sum(outcomes[cell.key]["seconds"].values()) for cell in cells), 1)
    return rows


def _numbers(found: report.Range) -> list[float]:
    return [round(x, 2) for x in (found.value, found.low, found.high)]


def _note(options: Options) -> str:
    data = (
        options.data.root
        or {"smoke": "made-up images: the numbers mean nothing", "trend": "crops of the bundled photographs"}[_scale(options)]
    )
    return (
        f"Scale {_scale(options)}, {data}. Per cent of the test images, with 95 % bootstrap intervals over seeds "
        f"({options.seeds}), sources and images."
    )


def _write_table(
    plan: Plan, lines: Sequence[report.Line], outcomes: Mapping[str, Any], out: Path, options: Options, command: str
) -> list[dict[str, Any]]:
    sheet = report.sheet(f"Table {plan.table.number.removeprefix('T')}: {plan.table.title}", lines, _note(options))
    figures = {"measured": report.dots(lines)}
    _show(sheet, report.write(out, f"{plan.name}-{_scale(options)}", sheet.title, [sheet], figures, command))
    return _tree_of(plan, lines, outcomes)


def _write_claims(
    plans: Sequence[Plan],
    found: Mapping[str, Sequence[report.Line]],
    outcomes: Mapping[str, Any],
    out: Path,
    options: Options,
    command: str,
) -> dict[str, Any]:
    """Judge every claim by every metric, and write it down."""
    answers: dict[str, dict[str, np.ndarray]] = {}  # metric -> label -> (seeds, n)
    sources = np.zeros(0, dtype=np.int64)
    for plan in plans:
        for label, cells in plan.cells.items():
            for metric, correct in _answers(cells, outcomes).items():
                answers.setdefault(metric, {})[label] = correct
                sources = _sources(cells or (), outcomes, correct.shape[1])
    metrics = [name for name in report.METRICS if name in answers]
    measured: dict[str, dict[str, report.Range]] = {}
    rows, verdicts, tree = [], [], []
    for claim in claims.CLAIMS:
        ranges = {metric: [contrast.measured(answers[metric], sources) for contrast in claim.contrasts] for metric in metrics}
        verdict = {metric: claims.verdict(each) for metric, each in ranges.items()}
        verdicts.append((claim.says, *(verdict[metric] for metric in metrics)))
        tree.append({"claim": claim.says, "verdict": verdict, "comparisons": []})
        for i, contrast in enumerate(claim.contrasts):
            given = {metric: _range(r) for metric in metrics if (r := ranges[metric][i]) is not None}
            measured[contrast.says] = given
            printed = contrast.printed()
            rows.append(
                (
                    contrast.says,
                    "-" if printed is None else f"{printed:+g}",
                    *(given[metric].signed() if metric in given else "not run" for metric in metrics),
                )
            )
            numbers = {metric: _numbers(r) for metric, r in given.items()}
            tree[-1]["comparisons"].append({"says": contrast.says, "paper": printed, "measured": numbers})
    named = tuple(report.METRICS[metric] for metric in metrics)
    note = (
        f"{_note(options)} A claim is supported if all its comparisons are above zero with their intervals, contradicted if "
        "one is below, and undecided otherwise, without a correction for the number of comparisons. The paper's numbers are of "
        "fine-tuning."
    )
    sheets = [
        Sheet(title="Verdicts", header=("claim", *named), rows=tuple(verdicts), note=note),
        Sheet(title="Comparisons, in points", header=("comparison", "paper", *named), rows=tuple(rows)),
        *(report.sheet(plan.table.title, found[plan.name]) for plan in plans),
    ]
    files = report.write(
        out, f"claims-{_scale(options)}", "The paper's claims", sheets, {"comparisons": report.differences(measured)}, command
    )
    _show(sheets[0], files)
    grids = {plan.name: _tree_of(plan, found[plan.name], outcomes) for plan in plans}
    return {"claims": tree, "grids": grids}


def _show(sheet: Sheet, files: Sequence[Path]) -> None:
    from rich.table import Table as ConsoleTable

    shown = ConsoleTable(*sheet.header, title=sheet.title)
    for row in sheet.rows:
        shown.add_row(*row)
    screen = console()
    screen.print(shown, markup=False)
    screen.print(" ".join(map(str, files)), highlight=False, soft_wrap=True)


def _facts(options: Options, device: torch.device, command: str, outcomes: Mapping[str, Any]) -> dict[str, Any]:
    """What it takes to repeat the numbers, and what explains a difference."""
    from hybridmap.train.run_dir import environment

    facts = environment(device, 1)
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{os.cpu_count()} cores, {platform.machine()}"
    results = [outcome for outcome in outcomes.values() if not isinstance(outcome, Failure)]
    return {
        "command": command,
        "scale": _scale(options),
        "seeds": list(range(options.seed, options.seed + options.seeds)),
        "data": options.data.root or None,
        "hardware": where,
        **{name: facts[name] for name in ("commit", "cpu_capability", "platform", "python", "versions")},
        "commits_of_cells": sorted({str(result["commit"]) for result in results}),
        "cell_seconds": round(sum(sum(result["seconds"].values()) for result in results), 1),
    }
