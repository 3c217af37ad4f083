"""Has anything moved? Losses of the first ten steps of every objective; parameters and tensors of every named network.

If a number moved on purpose: ``python tests/golden/golden_record.py``, and say in the commit which and why.
"""

from __future__ import annotations

import json

import pytest
from golden_record import LOSSES, NETWORKS, cells, losses, network

from hybridmap.backbones.names import MODELS

RTOL = 1e-3
"""Processors differ in the order of summation, and ten steps of training amplify that."""


@pytest.mark.parametrize(("encoder", "decoder_mask"), cells())
def test_the_first_ten_losses_are_the_recorded_ones(encoder: str, decoder_mask: str) -> None:
    recorded = json.loads(LOSSES.read_text())[f"{encoder} {decoder_mask}"]
    assert losses(encoder, decoder_mask) == pytest.approx(recorded, rel=RTOL)


def test_every_recorded_objective_is_still_there() -> None:
    assert json.loads(LOSSES.read_text()).keys() == {f"{encoder} {mask}" for encoder, mask in cells()}


@pytest.mark.parametrize("name", MODELS)
def test_a_named_network_has_the_recorded_parameters_and_tensors(name: str) -> None:
    assert network(name) == json.loads(NETWORKS.read_text())[name]


def test_every_recorded_network_is_still_there() -> None:
    assert json.loads(NETWORKS.read_text()).keys() == MODELS.keys()
