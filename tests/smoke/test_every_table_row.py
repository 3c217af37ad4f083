"""``hybridmap table all`` and ``claims`` at scale smoke, as a user runs them: every row that can be run is run, from weights
that are those of its pretraining, and the whole stays cheap."""

from __future__ import annotations

import json
import math
import resource
import statistics
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch

from hybridmap.config import from_yaml
from hybridmap.recipes import claims, paper
from hybridmap.recipes.table import Cell, resolve
from hybridmap.train.loop import build_learner
from hybridmap.train.weights import load_run

pytestmark = pytest.mark.slow

TABLES = paper.tables() | claims.GRIDS
CELLS = {
    cell.key: cell
    for table in TABLES.values()
    for row in table.rows
    if not table.missing(row)
    for cell in [resolve(table, row, "smoke")]
}


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory, unchecked_environment: dict[str, str]) -> dict[str, Any]:
    """The directory of both commands, and their processor seconds."""
    out = tmp_path_factory.mktemp("tables")
    seconds = {}
    for name in ("all", "claims"):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        words = [sys.executable, "-m", "hybridmap", "table", name, "--scale", "smoke", "--out", str(out), "--device", "cpu"]
        finished = subprocess.run(
            [*words, "--jobs", "2"], capture_output=True, text=True, env=unchecked_environment, timeout=600
        )
        assert finished.returncode == 0, finished.stdout + finished.stderr
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        seconds[name] = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"out": out, "seconds": seconds}


@pytest.mark.parametrize("cell", CELLS.values(), ids=lambda cell: cell.label)
def test_a_cell_is_a_real_run(cell: Cell, ran: dict[str, Any]) -> None:
    folder: Path = ran["out"] / "cells" / cell.key
    result = json.loads((folder / "result.json").read_text())
    assert 0 <= result["scores"]["top1"] <= 100
    assert len(result["answers"]["top1"]) == 16
    names = cell.stage_names()
    for name in names:
        losses = [json.loads(line)["loss"] for line in (folder / name / "metrics.jsonl").read_text().splitlines()]
        assert len(losses) == 2
        assert all(map(math.isfinite, losses))
    for before, after in pairwise(names):
        _, weights = load_run(folder / before)
        start = build_learner(from_yaml((folder / after / "recipe.yaml").read_text()), fresh=True).state_dict()
        shared = {
            name for name in weights if name.startswith(("backbone.layers.", "backbone.patch_embed.", "backbone.stages."))
        }
        assert shared
        assert all(torch.equal(start[name], weights[name]) for name in shared)
        _, end = load_run(folder / after)
        assert any(not torch.equal(start[name], end[name]) for name in shared), "fine-tuning trains the network"


def test_every_row_is_shown_run_or_not(ran: dict[str, Any]) -> None:
    tree = json.loads((ran["out"] / "all-smoke.json").read_text())
    for name, table in paper.tables().items():
        for row, shown in zip(table.rows, tree["tables"][name], strict=True):
            assert shown["row"] == row.label
            assert bool(shown["measured"]) == (not table.missing(row))
            assert bool(shown["measured"]) or "there is no recipe" in shown["remark"]
        for ending in ("md", "html"):
            text = (ran["out"] / f"{name}-smoke.{ending}").read_text()
            assert all(f"{paper.reported()[id].value:g}" in text for row in table.rows for id in row.paper)
        assert (ran["out"] / f"{name}-smoke-measured.png").is_file()


def test_every_claim_has_a_verdict(ran: dict[str, Any]) -> None:
    tree = json.loads((ran["out"] / "claims-smoke.json").read_text())
    assert [told["claim"] for told in tree["claims"]] == [claim.says for claim in claims.CLAIMS]
    assert {verdict for told in tree["claims"] for verdict in told["verdict"].values()} <= {
        "supports",
        "contradicts",
        "cannot tell",
    }
    assert tree["seeds"] == [0]
    assert {"command", "commit", "hardware", "versions"} <= tree.keys()


def test_it_stays_cheap(ran: dict[str, Any]) -> None:
    """Processor time, since a busy machine does not change it: half a second a cell, 90 s on two cores for all tables."""
    spent = [json.loads((ran["out"] / "cells" / key / "result.json").read_text())["cpu_seconds"] for key in CELLS]
    assert statistics.median(spent) <= 0.5
    assert ran["seconds"]["all"] <= 2 * 90
