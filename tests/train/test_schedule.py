from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from timm.scheduler.cosine_lr import CosineLRScheduler

from hybridmap.errors import UserError
from hybridmap.train.schedule import Cosine

FIXTURES = Path(__file__).parents[1] / "parity" / "fixtures"


def test_the_iteration_form_is_that_of_mae() -> None:
    tables = load_file(FIXTURES / "tables-a.safetensors")
    settings = json.loads((FIXTURES / "tables-a.json").read_text())["config"]["schedule"]
    schedule = Cosine.Config(warmup_epochs=settings["warmup_epochs"], min_lr=settings["min_lr"]).build()
    rates = [schedule(epoch, settings["epochs"], settings["lr"]) for epoch in tables["input.epochs"].tolist()]
    torch.testing.assert_close(torch.tensor(rates, dtype=torch.float64), tables["output.lr"], rtol=1e-9, atol=1e-12)


def test_the_epoch_form_is_that_of_timm_stepped_with_the_epoch_that_ended() -> None:
    epochs, lr = 30, 4e-3
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=lr)
    theirs = CosineLRScheduler(optimizer, t_initial=epochs, lr_min=1e-5, warmup_t=5, warmup_lr_init=1e-6)
    ours = Cosine.Config(form="epoch", warmup_epochs=5, warmup_lr=1e-6, min_lr=1e-5).build()
    for epoch in range(epochs):
        for fraction in (0.0, 0.4, 0.99):
            assert ours(epoch + fraction, epochs, lr) == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-12)
        theirs.step(epoch)


def test_the_two_forms_differ_by_the_lag_and_by_the_warm_up() -> None:
    ours = Cosine.Config(form="epoch", warmup_epochs=0).build()
    assert ours(0, 10, 1.0) == ours(1, 10, 1.0) == 1.0
    assert ours(2, 10, 1.0) < 1.0
    assert Cosine.Config(warmup_epochs=0).build()(1, 10, 1.0) < 1.0


def test_the_ends_are_where_they_should_be() -> None:
    schedule = Cosine.Config(warmup_epochs=2, warmup_lr=0.1, min_lr=0.25).build()
    assert schedule(0, 10, 1.0) == pytest.approx(0.1)
    assert schedule(2, 10, 1.0) == pytest.approx(1.0)
    assert schedule(10, 10, 1.0) == pytest.approx(0.25)
    assert schedule(1, 1, 1.0) == pytest.approx(0.55), "a run that is shorter than its warm-up never leaves it"


def test_a_cooldown_goes_on_at_the_last_rate_as_timms_does() -> None:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=5e-3)
    theirs = CosineLRScheduler(optimizer, t_initial=20, lr_min=5e-6, warmup_t=5, warmup_lr_init=1e-6)
    settings = {"warmup_epochs": 5.0, "warmup_lr": 1e-6, "min_lr": 5e-6}
    ours = Cosine.Config(form="epoch", cooldown_epochs=4.0, **settings).build()
    for epoch in range(24):
        assert ours(epoch, 24, 5e-3) == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-12)
        theirs.step(epoch)
    by_step, without = (Cosine.Config(cooldown_epochs=cool, **settings).build() for cool in (4.0, 0.0))
    assert [by_step(e / 3, 24, 5e-3) for e in range(60)] == [without(e / 3, 20, 5e-3) for e in range(60)]
    assert {by_step(20 + e / 3, 24, 5e-3) for e in range(13)} == {5e-6}


def test_a_run_too_short_for_all_has_its_warm_up_then_its_cooldown() -> None:
    schedule = Cosine.Config(warmup_epochs=2.0, min_lr=0.25, cooldown_epochs=10.0).build()
    assert [schedule(epoch, 4.0, 1.0) for epoch in (0.0, 1.0, 2.0, 3.0)] == [0.0, 0.5, 0.25, 0.25]
    assert Cosine.Config(warmup_epochs=0.0, min_lr=0.25, cooldown_epochs=10.0).build()(0.0, 4.0, 1.0) == 0.25


def test_a_negative_warm_up_is_refused() -> None:
    with pytest.raises(UserError, match=r"schedule\.warmup_epochs must be 0 or more, got -1"):
        Cosine.Config(warmup_epochs=-1)
