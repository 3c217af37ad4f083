"""Taking over weights, and what an optimiser asks an objective."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from hybridmap.backbones.base import Backbone
from hybridmap.errors import UserError
from hybridmap.layers.pos_embed import resample
from hybridmap.objectives.decoder import MAEDecoder, MAPDecoder
from hybridmap.objectives.map import MAP
from hybridmap.types import Batch, Learner


def test_an_objective_is_a_learner(build: Callable[..., MAP]) -> None:
    assert isinstance(build(), Learner)


def test_weights_of_the_same_objective_are_taken_over_whole(
    build: Callable[..., MAP], any_network: Backbone.Config, batch: Batch
) -> None:
    source, target = build(any_network), build(any_network)
    report = target.initialise(source.state_dict())
    assert set(report.loaded) == set(source.state_dict())
    assert report.dropped == report.fresh == {}
    assert torch.equal(source(batch).total, target(batch).total)


def test_weights_of_a_bare_backbone_leave_the_decoder_fresh(build: Callable[..., MAP], any_network: Backbone.Config) -> None:
    bare, target = any_network.build(), build(any_network)
    decoder = {name: value.clone() for name, value in target.decoder.state_dict().items()}
    report = target.initialise(bare.state_dict())
    for name, value in target.backbone.state_dict().items():
        assert torch.equal(value, bare.state_dict()[name]), name
    assert all(torch.equal(value, decoder[name]) for name, value in target.decoder.state_dict().items())
    assert set(report.fresh) == {f"decoder.{name}" for name in decoder}
    assert all(name.startswith(("head.", "registers.")) for name in report.dropped)
    assert "head.fc.weight" in report.dropped


def test_every_name_is_accounted_for(build: Callable[..., MAP], network: Backbone.Config) -> None:
    fine_tuned = {f"backbone.{name}": value for name, value in network.build().state_dict().items()} | {
        "ema.step": torch.zeros(())
    }
    target = build(network)
    report = target.initialise(fine_tuned)
    assert set(report.loaded) | set(report.dropped) == set(fine_tuned)
    assert set(report.loaded) | set(report.fresh) == set(target.state_dict())
    assert not set(report.loaded) & (set(report.dropped) | set(report.fresh))
    assert report.dropped["backbone.registers.token"] == "pretraining builds the network without it"


def test_learned_positions_are_resampled_for_another_grid(build: Callable[..., MAP], network: Backbone.Config) -> None:
    source = build(replace(network, img_size=(16, 16)))
    target = build(network)
    report = target.initialise(source.state_dict())
    assert report.fresh == {}
    for part in (lambda objective: objective.backbone, lambda objective: objective.decoder):
        torch.testing.assert_close(part(target).pos_embed, resample(part(source).pos_embed, (4, 4), (3, 5)))


def test_positions_of_a_rectangle_are_resampled_for_one_of_its_shape(
    build: Callable[..., MAP], network: Backbone.Config
) -> None:
    source, target = build(network), build(replace(network, img_size=(24, 40)))
    target.initialise(source.state_dict())
    torch.testing.assert_close(target.backbone.pos_embed, resample(source.backbone.pos_embed, (3, 5), (6, 10)))
    with pytest.raises(UserError, match="cannot tell the grid of 15 stored positions"):
        build(replace(network, img_size=(24, 24))).initialise(source.state_dict())


def test_fixed_positions_of_another_grid_are_computed_anew(
    build: Callable[..., MAP], any_network: Backbone.Config, mae_decoder: MAEDecoder.Config
) -> None:
    source = build(replace(any_network, img_size=(16, 16)), decoder=mae_decoder)
    target = build(any_network, decoder=mae_decoder)
    own = target.decoder.pos_embed.clone()
    report = target.initialise(source.state_dict())
    assert report.fresh["decoder.pos_embed"] == "fixed positions are computed for the grid"
    assert torch.equal(target.decoder.pos_embed, own)
    assert "decoder.embed.weight" in report.loaded


def test_a_decoder_of_another_kind_starts_fresh_as_a_whole(build: Callable[..., MAP], network: Backbone.Config) -> None:
    source = build(network, decoder=MAPDecoder.Config(width=16, depth=1, num_heads=4))
    target = build(network, decoder=MAPDecoder.Config(width=16, depth=2, num_heads=4))
    report = target.initialise(source.state_dict())
    assert all(name.startswith("backbone.") for name in report.loaded)
    assert {name for name in target.state_dict() if name.startswith("decoder.")} == set(report.fresh)
    assert {name for name in source.state_dict() if name.startswith("decoder.")} == set(report.dropped)


@pytest.mark.parametrize("change", [{"embed_dim": 32}, {"layout": "MMT"}, {"layout": "M"}, {"d_state": 8}], ids=str)
def test_weights_of_another_backbone_are_refused(
    build: Callable[..., MAP], network: Backbone.Config, change: dict[str, object]
) -> None:
    source = build(replace(network, **change))
    target = build(network)
    before = {name: value.clone() for name, value in target.state_dict().items()}
    with pytest.raises(UserError, match=r"of another backbone .*choose a recipe of the same family, layout and size"):
        target.initialise(source.state_dict())
    assert all(torch.equal(value, before[name]) for name, value in target.state_dict().items())


def test_no_weights_at_all_are_refused(build: Callable[..., MAP]) -> None:
    with pytest.raises(UserError, match="hold no such part"):
        build().initialise({})


def test_layer_ids_cover_all_parameters_and_the_decoder_comes_last(
    build: Callable[..., MAP], any_network: Backbone.Config
) -> None:
    objective = build(any_network)
    ids = objective.layer_ids()
    assert ids.keys() == dict(objective.named_parameters()).keys()
    assert ids["backbone.pos_embed"] == 0
    assert ids["backbone.layers.1.attn.qkv.weight"] == 2
    assert {ids[name] for name in ids if name.startswith("decoder.")} == {3} == {ids["backbone.norm.weight"]}
