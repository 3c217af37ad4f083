"""Every recipe, discovered and never listed, takes two steps at the smallest size and holds its exams."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from hybridmap import recipes
from hybridmap.config import override, to_yaml
from hybridmap.data.loader import Loader
from hybridmap.recipes.smoke import scale_down, small_exam
from hybridmap.train.loop import train
from hybridmap.train.weights import load_run

RUNS = {to_yaml(scale_down(entry.make())): entry.name for entry in reversed(recipes.listing()) if entry.kind != "exam"}
"""The different runs that recipes become at the smallest size (many differ in size alone), by their first recipe."""
EXAMS = [entry for entry in recipes.listing() if entry.kind == "exam"]


@pytest.mark.parametrize("name", RUNS.values())
def test_it_takes_two_steps(name: str, tmp_path: Path):
    recipe = scale_down(recipes.find(name))
    train(recipe, tmp_path / "run", device="cpu", loader=Loader)
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines if "loss" in line]
    assert len(losses) == 2
    assert all(math.isfinite(loss) for loss in losses)
    assert (tmp_path / "run" / "final.safetensors").is_file()
    assert all(any(key.startswith(f"{exam}/") for line in lines for key in line) for exam in recipe.exams)


@pytest.mark.parametrize("entry", EXAMS, ids=lambda entry: entry.name)
def test_it_examines_a_network(entry: recipes.Entry):
    exam: Any = small_exam(entry.make())
    of_its_channels = {"learner.backbone.in_chans": len(exam.train.mean)}
    learner = override(scale_down(recipes.find("map-tiny")), of_its_channels).learner.build()
    found = exam.build()(learner, torch.device("cpu"))
    assert found
    assert all(math.isfinite(value) for value in found.values())


@pytest.mark.parametrize(
    ("before", "after", "changes"),
    [
        ("map-base", "ft-3stage-base", {}),
        ("mae-vit-base", "ft-vit-base", {}),
        ("ar-shift-base", "ft-3stage-base", {}),
        ("moco-base", "ft-3stage-base", {}),
        ("map-mambar-base", "ft-3stage-base", {"learner.backbone.layout": "M" * 24}),
        ("map-vim-base", "ft-vim-base", {}),
        ("map-mambavision-base", "ft-mambavision-base", {}),
        ("map-vmamba-tiny", "ft-vmamba-tiny", {}),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_one_run_learned_is_what_the_next_starts_from(before: str, after: str, changes: dict[str, str], tmp_path: Path):
    train(scale_down(recipes.find(before)), tmp_path / "pretrain", device="cpu", loader=Loader)
    _, weights = load_run(tmp_path / "pretrain")
    finetune = scale_down(override(recipes.find(after), changes))
    learner = finetune.learner.build()
    report = learner.initialise(weights)
    state = learner.state_dict()
    assert {name for name in weights if name.startswith(("backbone.layers.", "backbone.stages."))} <= set(report.loaded)
    assert all(torch.equal(state[name], weights[name]) for name in report.loaded)
    train(replace(finetune, init_from=str(tmp_path / "pretrain")), tmp_path / "finetune", device="cpu", loader=Loader)
    learner.load_state_dict(load_run(tmp_path / "finetune")[1])
    assert 0 <= learner.evaluate(finetune.exams["val"].test, "cpu")["top1"] <= 100
