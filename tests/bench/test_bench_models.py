"""Backbones side by side: each is measured by the same protocol, and mistakes are told before anything is measured."""

from __future__ import annotations

import math
import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from hybridmap.backbones import HybridNet, MambaVision, ViT
from hybridmap.backbones.base import Backbone
from hybridmap.bench.clock import in_fresh_process
from hybridmap.bench.models import TIMED, Protocol, growth_of, measure, prepare
from hybridmap.bench.step import Step
from hybridmap.errors import UserError

CPU = torch.device("cpu")
HYBRID = HybridNet.Config(layout="MMMT", embed_dim=32, num_heads=2, img_size=32, patch_size=8, num_registers=2, num_classes=5)
VIT = ViT.Config(depth=2, embed_dim=32, num_heads=2, img_size=32, patch_size=8, num_classes=3)
QUICK = Protocol(batch=2, dtype="fp32", rounds=1, memory=False)


@pytest.mark.parametrize("dtype", ["fp32", "bf16", "fp16"])
def test_all_models_are_measured_in_both_phases(dtype: str) -> None:
    found = measure({"hybrid": HYBRID, "vit": VIT}, CPU, replace(QUICK, dtype=dtype))
    assert list(found) == ["hybrid", "vit"]
    for model in found.values():
        assert list(model.images_per_s) == list(TIMED)
        assert all(0 < rate < math.inf for rate in model.images_per_s.values())
        assert model.size == (32, 32)
        assert model.memory == {}
    assert found["vit"].parameters == sum(p.numel() for p in VIT.build().parameters())


def test_without_training_only_inference_is_measured() -> None:
    found = measure({"vit": replace(VIT, img_size=(32, 64))}, CPU, replace(QUICK, phases=("inference",)))["vit"]
    assert list(found.images_per_s) == ["inference"]
    assert found.size == (32, 64)


def test_inference_keeps_no_gradient_and_is_in_evaluation_mode(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[bool, bool, bool]] = []
    forward = ViT.forward

    def watched(self: ViT, x: torch.Tensor) -> torch.Tensor:
        out = forward(self, x)
        seen.append((self.training, out.requires_grad, torch.is_autocast_enabled("cpu")))
        return out

    monkeypatch.setattr(ViT, "forward", watched)
    for phase in TIMED:
        prepare(VIT, phase, replace(QUICK, dtype="bf16"), CPU)()
    assert seen == [(False, False, True), (True, True, True)]


def test_a_training_step_reaches_every_parameter_and_leaves_the_weights() -> None:
    step = prepare(HYBRID, "training", QUICK, CPU)
    assert isinstance(step, Step)
    before = {name: value.clone() for name, value in step.learner.named_parameters()}
    step()
    for name, value in step.learner.named_parameters():
        assert value.grad is not None, name
        assert torch.equal(value, before[name]), name  # the learning rate is zero


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (replace(VIT, img_size=100), "bad: the image size must be a multiple of the patch size 8, got 100x100; try 96x96"),
        (replace(VIT, num_heads=5), "bad: the width 32 must be divisible by the number of heads, got num_heads=5"),
        (replace(VIT, num_classes=0), "bad: a training step needs a classifier, got num_classes=0"),
    ],
)
def test_a_network_that_cannot_be_built_is_named_before_anything_is_measured(
    config: ViT.Config, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: object) -> None:
        raise AssertionError("something was measured")

    monkeypatch.setattr("hybridmap.bench.models.in_turns", never)
    monkeypatch.setattr("hybridmap.bench.models.peak_of", never)
    with pytest.raises(UserError) as error:
        measure({"good": VIT, "bad": config}, CPU, QUICK)
    assert str(error.value).startswith(message)


@pytest.mark.parametrize(
    ("config", "protocol", "reason"),
    [
        (MambaVision.Config(img_size=32, num_classes=3), replace(QUICK, batch=1), r"1 images of 32x32 .*more than 1 value per"),
        (replace(VIT, img_size=8_000_000_000), QUICK, r"2 images of 8000000000x8000000000 .*[Oo]verflow"),
        (VIT, replace(QUICK, batch=10**20), r"100000000000000000000 images of 32x32 .*[Oo]verflow"),
    ],
)
def test_sizes_that_torch_cannot_take_are_told_before_anything_is_measured(
    config: Backbone.Config, protocol: Protocol, reason: str
) -> None:
    with pytest.raises(UserError, match=rf"^bad: {reason}.*; try another --img-size or --batch$"):
        measure({"bad": config}, CPU, protocol)


def test_a_batch_norm_of_one_value_is_no_obstacle_to_inference() -> None:
    config = MambaVision.Config(depths=(1, 1, 1, 1), embed_dim=16, stem_dim=8, num_heads=(2, 4), img_size=32, num_classes=3)
    found = measure({"one": config}, CPU, replace(QUICK, batch=1, phases=("inference",)))["one"]
    assert found.images_per_s["inference"] > 0


def test_measuring_leaves_the_generator_as_it_was() -> None:
    before = torch.get_rng_state()
    measure({"vit": VIT}, CPU, QUICK)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.skipif(not os.environ.get("HYBRIDMAP_LONG"), reason="half a minute: make test-long")
@pytest.mark.slow
def test_peaks_are_taken_in_fresh_processes_and_grow_with_the_batch() -> None:
    if not Path("/proc/self/clear_refs").exists():
        pytest.skip("this system does not say how large a process was")
    protocols = (replace(QUICK, batch=2), replace(QUICK, batch=1024))
    small, large = (in_fresh_process(growth_of, HYBRID, "training", protocol, 1) for protocol in protocols)
    assert 0 < small < large
    found = measure({"vit": VIT}, CPU, Protocol(batch=2, dtype="fp32", rounds=1))["vit"]
    assert found.memory["inference"] > 0
    assert found.memory.keys() == set(TIMED)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no card")
def test_peaks_on_a_card_are_those_of_one_model() -> None:
    device = torch.device("cuda")
    alone = measure({"vit": VIT}, device, Protocol(batch=2, dtype="bf16", rounds=1))["vit"]
    beside = measure({"hybrid": HYBRID, "vit": VIT}, device, Protocol(batch=2, dtype="bf16", rounds=1))["vit"]
    assert alone.memory == beside.memory
    assert 0 < alone.memory["inference"] < alone.memory["training"]
