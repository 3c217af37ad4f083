"""A step is the loop's step, and what is measured about it is consistent."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from hybridmap import recipes
from hybridmap.bench.clock import in_fresh_process, in_turns
from hybridmap.bench.step import FLOOR, KINDS, PLAIN, STEP, Step, hours, measure, peak_growth_of
from hybridmap.config import override
from hybridmap.recipes.smoke import scale_down
from hybridmap.train.recipe import Recipe

CPU = torch.device("cpu")


def recipe(name: str = "map-smoke", **train: object) -> Recipe:
    found = recipes.find(name)
    small = found if name == "map-smoke" else scale_down(found)
    return replace(small, train=replace(small.train, batch_size=2, **train))  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["map-smoke", "mae-vit-base", "moco-vit-base", "ft-100-tiny", "demo-pretrain"])
def test_any_recipe_that_trains_can_be_measured(name: str) -> None:
    found = measure(recipe(name), CPU, rounds=1, memory=False)
    assert list(found.seconds) == [STEP, PLAIN, FLOOR]
    assert all(0 < took < math.inf for took in found.seconds.values())
    assert found.shares.keys() <= {*KINDS, "rest"}
    assert sum(found.shares.values()) == pytest.approx(1)
    assert found.images == 2
    assert found.images_per_s == pytest.approx(2 / found.seconds[STEP])
    assert found.rate == pytest.approx(found.operations / found.seconds[STEP])
    assert found.memory == {}


def test_operations_grow_with_the_batch_and_not_with_the_dtype() -> None:
    counts = [measure(recipe(), CPU, rounds=1, plain=False, memory=False).operations]
    counts.append(measure(recipe(precision="bf16"), CPU, rounds=1, plain=False, memory=False).operations)
    larger = override(recipe(), {"train.batch_size": 4})
    counts.append(measure(larger, CPU, rounds=1, plain=False, memory=False).operations)
    assert counts[0] == counts[1]
    assert counts[2] == 2 * counts[0]


def test_a_step_computes_gradients_and_leaves_the_weights() -> None:
    step = Step.of(recipe(), CPU)
    before = {name: value.clone() for name, value in step.learner.named_parameters()}
    step()
    for name, value in step.learner.named_parameters():
        assert torch.equal(value, before[name])
        assert not value.requires_grad or value.grad is not None


def test_measuring_leaves_the_backend_and_the_generator_as_they_were() -> None:
    from hybridmap import ops

    before, kernel = torch.get_rng_state(), ops.active("selective_scan", "cpu")
    measure(recipe(), CPU, rounds=1, memory=False)
    assert ops.active("selective_scan", "cpu") == kernel
    assert torch.equal(torch.get_rng_state(), before)


def test_contestants_take_turns_and_the_very_slow_ones_few() -> None:
    order: list[str] = []

    def slow() -> None:
        order.append("slow")
        sum(range(300_000))

    in_turns({"fast": lambda: order.append("fast"), "slow": slow}, 6, CPU)
    round_that_does_not_count, turns = order[:2], order[2:]
    assert round_that_does_not_count == ["fast", "slow"]
    assert turns == ["fast", "fast", "slow", "slow"] * 3 + ["fast", "fast"] * 3  # a short call and, before it, one to warm up


@pytest.mark.slow
def test_the_peak_of_memory_is_taken_in_a_fresh_process() -> None:
    if not Path("/proc/self/clear_refs").exists():
        pytest.skip("this system does not say how large a process was")
    small, large = (in_fresh_process(peak_growth_of, override(recipe(), {"train.batch_size": n}), None, 1) for n in (2, 1024))
    assert 0 < small < large


def test_the_hours_of_a_whole_run_are_its_images_over_the_rate():
    assert hours(1000.0, 1600, 1_281_167) == pytest.approx(1600 * 1_281_167 / 1000 / 3600)
    assert hours(1000.0, 1600, 1_281_167, devices=8) == pytest.approx(hours(8000.0, 1600, 1_281_167))
