"""Faults inside a run, for ``hybridmap pretrain ... --import soak_faults``; the variable SOAK_FAULTS says which.

{"clock": 7}                                        the clocks jump, differently for every number
{"slow_sync": 0.05}                                 every fsync takes so many seconds more
{"slow_batch": 0.02}                                so does every batch, where it is used
{"slow_image": 0.01}                                so does every image, where it is prepared
{"no_report": true}                                 pictures and report are left out, which take most of the time
{"poison": ["gradient", "once", 9]}                 NaN in the gradient of the step after 9 steps
{"poison": ["activation", "for a while", 9]}        NaN in an activation of four steps in a row, then never again
{"poison": ["batch", "always", 9], "rank": 1}       NaN in every batch after 9 steps, in the second process alone
"""

from __future__ import annotations

import json
import os
import time
from random import Random
from typing import Any

import torch

from hybridmap.cli import report
from hybridmap.data.folder import ImageFolder
from hybridmap.data.loader import Loader
from hybridmap.hashing import hash_ints
from hybridmap.objectives.map import MAP

_A_WHILE = 4
"""Bad steps that a fault for a while makes: as many as it takes for the run to go back, and one that is under way by then."""


def let_clocks_jump(seed: int) -> None:
    """Back and forth by up to a day, at about one look in four. (A real monotonic clock does less than that.)"""
    random = Random(seed)

    def jumping(now: Any) -> Any:
        offset = 0.0

        def read() -> float:
            nonlocal offset
            if random.random() < 0.25:
                offset = random.uniform(-86400, 86400)
            return now() + offset

        return read

    for name in ("time", "monotonic", "perf_counter"):
        setattr(time, name, jumping(getattr(time, name)))


def delay(owner: Any, name: str, seconds: float) -> None:
    """Let a function take longer."""
    original = getattr(owner, name)

    def slow(*arguments: Any) -> Any:
        time.sleep(seconds)
        return original(*arguments)

    setattr(owner, name, slow)


def poison(place: str, how_long: str, step: int) -> None:
    """Put NaN into what the objective sees or makes, from the step with that number (counted from 0) on.

    "once" and "always" know the step by the batch, so that a run that goes back or continues meets the fault again where it
    was; "for a while" counts, as a fault of the machine would.
    """
    healthy, load = MAP.forward, Loader._batch
    keys = [hash_ints(0, s) for s in range(1000)]
    met = 0

    def bad(step_key: int) -> bool:
        nonlocal met
        now = keys.index(step_key)
        met += now >= step
        return {"once": now == step, "for a while": now >= step and met <= _A_WHILE, "always": now >= step}[how_long]

    def spoilt(self: Any, views: Any, step_key: int) -> Any:
        batch = load(self, views, step_key)
        if bad(step_key):
            batch.inputs[0] = torch.nan
        return batch

    def forward(self: Any, batch: Any) -> Any:
        if not bad(batch.step_key):
            return healthy(self, batch)
        layer = self.backbone.layers[1]
        if place == "activation":
            right = layer.forward
            layer.forward = lambda *inputs, **named: tuple(value * torch.nan for value in right(*inputs, **named))
            try:
                return healthy(self, batch)
            finally:
                del layer.forward
        weight = next(layer.parameters())
        handles: list[Any] = []

        def spoil(gradient: Any) -> Any:
            handles.pop().remove()
            return gradient * torch.nan

        handles.append(weight.register_hook(spoil))
        return healthy(self, batch)

    if place == "batch":
        Loader._batch = spoilt
    else:
        MAP.forward = forward


faults = json.loads(os.environ.get("SOAK_FAULTS", "{}"))
if "clock" in faults:
    let_clocks_jump(faults["clock"])
if "slow_sync" in faults:
    delay(os, "fsync", faults["slow_sync"])
if "slow_batch" in faults:
    delay(Loader, "_batch", faults["slow_batch"])
if "slow_image" in faults:
    delay(ImageFolder, "sample", faults["slow_image"])
if "no_report" in faults:
    report.write = lambda run, device: run.path
if "poison" in faults and int(os.environ.get("RANK", "0")) == faults.get("rank", int(os.environ.get("RANK", "0"))):
    poison(*faults["poison"])
