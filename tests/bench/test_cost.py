"""Estimated hours are in proportion to what is computed."""

from __future__ import annotations

import pytest
import torch

from hybridmap import recipes
from hybridmap.backbones.flops import flops
from hybridmap.bench.cost import IMAGES, MEASURED_IMAGES_PER_S, estimate_hours, operations, told
from hybridmap.config import override
from hybridmap.data.base import ImageDataset


def test_the_recipe_that_was_measured_takes_what_was_measured():
    measured = recipes.find("map-base")
    hours = estimate_hours(measured, measured, devices=1)
    assert hours == pytest.approx(300 * IMAGES / MEASURED_IMAGES_PER_S / 3600)
    longer = override(measured, {"train.epochs": 1600})
    assert estimate_hours(longer, measured, devices=8) == pytest.approx(hours * 1600 / 300 / 8)


def test_operations_follow_the_network_and_what_it_sees():
    base, small = (operations(recipes.find(name)) for name in ("map-base", "map-small"))
    seen_more = operations(override(recipes.find("map-base"), {"learner.masking.ratio": 0.25}))
    assert small < base < seen_more
    probe, tuned = (operations(recipes.find(name)) for name in ("lin-base", "ft-100-base"))
    assert tuned > 2 * probe


def test_moco_learns_from_one_crop_and_looks_at_the_other():
    moco = recipes.find("moco-base")
    with torch.device("meta"):
        backbone = moco.learner.build().backbone
    assert operations(moco) == 4 * flops(backbone)


@pytest.mark.parametrize(
    "name", ["map-tiny", "map-large-paper", "moco-tiny", "lin-small", "ft-mambavision-tiny2", "ft-384-vim-small"]
)
def test_the_docstrings_say_what_is_estimated(name: str):
    """All of them: python scripts/costs.py --check, a minute."""
    assert recipes.entry(name).cost == told(recipes.find(name), recipes.find("map-base"))


def test_every_cost_of_images_is_told():
    about_images = [e for e in recipes.listing() if e.kind == "exam" or isinstance(e.make().data, ImageDataset.Config)]
    untold = [entry.name for entry in about_images if "not measured" in entry.cost]
    assert not untold


def test_a_recipe_that_counts_steps_has_no_hours():
    assert told(recipes.find("map-smoke"), recipes.find("map-base")) == "not measured."
