from __future__ import annotations

import pytest
from train_toy import ToyLearner, toy_recipe

from hybridmap.config import from_yaml, override, to_yaml
from hybridmap.errors import UserError
from hybridmap.train.recipe import TrainConfig


def test_a_recipe_survives_yaml() -> None:
    recipe = toy_recipe(learner=ToyLearner.Config(bad_steps=(1, 2)), seed=5, ema=0.5)
    assert from_yaml(to_yaml(recipe)) == recipe
    assert override(recipe, {"train.steps": "7"}).train.steps == 7


def test_the_length_follows_from_epochs_or_from_steps() -> None:
    assert TrainConfig(epochs=3, batch_size=10).length(100) == (30, 3)
    assert TrainConfig(steps=5, batch_size=10).length(100) == (5, 0.5)
    assert TrainConfig(epochs=0.01, batch_size=10).length(100) == (1, 0.01)


def test_steps_compress_the_schedule_of_the_epochs() -> None:
    steps, epochs = TrainConfig(epochs=300, steps=200, batch_size=10).length(100)
    assert (steps, epochs) == (200, 300)


def test_the_batch_says_how_it_is_divided() -> None:
    config = TrainConfig(batch_size=4096, accumulate=4)
    assert config.tell_batch(8) == "global batch 4096 = 8 processes x 4 micro-steps x 128"
    assert TrainConfig(batch_size=64).tell_batch(1) == "global batch 64 = 1 process x 1 micro-step x 64"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"batch_size": 0}, r"train\.batch_size must be at least 1, got 0"),
        ({"steps": 0}, r"train\.steps must be at least 1, got 0"),
        ({"epochs": -1.0}, r"train\.epochs must be more than 0"),
        ({"patience": 0.0}, r"train\.patience must be more than 0"),
        ({"ema": 1.0}, r"train\.ema must lie between 0 and 1"),
    ],
)
def test_impossible_settings_are_refused(fields: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        TrainConfig(**fields)


def test_a_recipe_without_a_length_is_refused() -> None:
    with pytest.raises(UserError, match=r"set train\.epochs or train\.steps"):
        TrainConfig().length(10)


def test_an_empty_data_set_is_refused() -> None:
    with pytest.raises(UserError, match="nothing to train on"):
        TrainConfig(steps=1).length(0)


def test_exams_are_due_by_steps_or_by_epochs() -> None:
    assert TrainConfig(epochs=10.0).exam_interval(100, 10.0) is None
    assert TrainConfig(eval_every=7, eval_epochs=2.0).exam_interval(100, 10.0) == 7
    assert TrainConfig(eval_epochs=2.0).exam_interval(100, 10.0) == 20
    assert TrainConfig(eval_epochs=0.001).exam_interval(100, 10.0) == 1
    with pytest.raises(UserError, match=r"train\.eval_epochs must be more than 0"):
        TrainConfig(eval_epochs=0.0)
