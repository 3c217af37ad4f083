"""The error bars keep their promise."""

import numpy as np
import pytest

from hybridmap.errors import UserError
from hybridmap.tasks.bootstrap import difference, interval


def test_a_constant_has_an_interval_of_no_width():
    found = interval(np.ones(30), np.repeat(np.arange(3), 10))
    assert (found.value, found.low, found.high) == (1.0, 1.0, 1.0)


def test_independent_samples_give_the_normal_interval():
    values = np.random.default_rng(0).normal(5.0, 2.0, size=400)
    found = interval(values, np.arange(400), resamples=4000)  # every sample its own source: the ordinary bootstrap
    half = 1.96 * values.std() / np.sqrt(400)
    assert found.value == pytest.approx(values.mean())
    assert found.high - found.low == pytest.approx(2 * half, rel=0.06)


def test_samples_of_one_source_do_not_count_as_independent():
    sources = np.repeat(np.arange(10), 40)
    values = np.random.default_rng(1).normal(size=10)[sources]  # all crops of a source answer alike
    clustered, naive = interval(values, sources), interval(values, np.arange(400))
    assert clustered.high - clustered.low > 4 * (naive.high - naive.low)


def test_sources_of_unequal_size_weigh_by_their_samples():
    values, sources = np.array([1.0, 0.0, 0.0, 0.0]), np.array([7, 3, 3, 3])
    found = interval(values, sources)
    assert found.value == 0.25
    assert (found.low, found.high) == (0.0, 1.0)  # both draws may hit the same source


def test_pairing_cancels_what_both_models_share():
    generator = np.random.default_rng(2)
    difficulty, sources = generator.random(600), np.repeat(np.arange(20), 30)
    theirs = (difficulty < 0.5).astype(float)
    ours = (difficulty < 0.56).astype(float)
    paired = difference(ours, theirs, sources)
    assert paired.excludes_zero
    assert paired.value == pytest.approx(ours.mean() - theirs.mean())
    apart = interval(ours, sources)
    assert paired.high - paired.low < apart.high - apart.low


def test_the_result_is_reproducible_and_depends_on_the_seed_only(monkeypatch: pytest.MonkeyPatch):
    values, sources = np.random.default_rng(3).random(50), np.arange(50) % 7
    first = interval(values, sources, seed=4)
    np.random.default_rng(99).random(10)
    assert interval(values, sources, seed=4) == first
    assert interval(values, sources, seed=5) != first
    monkeypatch.setattr("hybridmap.tasks.bootstrap._BLOCK", 1000)
    assert interval(values, sources, seed=4) == first  # drawn in small blocks


def test_mismatched_answers_are_refused_in_a_sentence():
    with pytest.raises(UserError, match="same test samples"):
        difference(np.ones(3), np.ones(4), np.arange(3))
    with pytest.raises(UserError, match="one source per value"):
        interval(np.ones(3), np.arange(2))
    with pytest.raises(UserError, match="one source per value"):
        interval(np.ones(0), np.arange(0))


def test_repetitions_are_resampled_too():
    generator = np.random.default_rng(6)
    sources = np.arange(400)
    seeds = np.array([-10.0, 0.0, 10.0])[:, None] + generator.normal(size=(3, 400))  # seeds differ far more than samples
    found = interval(seeds, sources)
    assert found.value == pytest.approx(seeds.mean())
    spread = 1.96 * np.sqrt(200 / 3) / np.sqrt(3)  # of the mean of three drawn from {-10, 0, 10}
    assert found.high - found.low == pytest.approx(2 * spread, rel=0.2)
    alone = interval(seeds.mean(0), sources)
    assert alone.high - alone.low < 0.1 * (found.high - found.low)


def test_one_repetition_is_the_plain_interval():
    values, sources = np.random.default_rng(7).random(60), np.arange(60) % 6
    assert interval(values[None], sources) == interval(values, sources)
    equal = interval(np.stack([values, values]), sources)
    assert (equal.low, equal.high) == pytest.approx((interval(values, sources).low, interval(values, sources).high))
