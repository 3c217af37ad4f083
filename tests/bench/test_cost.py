"""Estimated hours are in proportion to what is computed."""

from __future__ import annotations

import pytest

from hybridmap import recipes
from hybridmap.bench.cost import IMAGES, MEASURED_IMAGES_PER_S, estimate_hours, operations
from hybridmap.config import override


def test_the_recipe_that_was_measured_takes_what_was_measured():
    measured = recipes.find("map-base")
    hours = estimate_hours(measured, measured, devices=1)
    assert hours == pytest.approx(300 * IMAGES / MEASURED_IMAGES_PER_S / 3600)
    longer = override(measured, {"train.epochs": 1600})
    assert estimate_hours(longer, measured, devices=8) == pytest.approx(hours * 1600 / 300 / 8)


def test_operations_follow_the_network_and_what_it_sees():
    base, small = (operations(recipes.find(name)) for name in ("map-base", "map-small"))
    seen_more = operations(override(recipes.find("map-base"), {"learner.masking.ratio": 0.25}))
    assert base is not None
    assert small is not None
    assert seen_more is not None
    assert small < base < seen_more
    probe, tuned = (operations(recipes.find(name)) for name in ("lin-base", "ft-100-base"))
    assert probe is not None
    assert tuned is not None
    assert tuned > 2 * probe


def test_what_cannot_run_without_data_has_no_estimate():
    assert operations(recipes.find("moco-base")) is None
