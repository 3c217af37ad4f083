"""Pretraining of backbones that cannot leave patches out: masked units are blank, and nothing of them comes through."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from hybridmap.backbones.hierarchical import HierarchicalBackbone
from hybridmap.backbones.hybrid import HybridNet
from hybridmap.backbones.mambavision import MambaVision
from hybridmap.backbones.vmamba import VMamba
from hybridmap.config import override
from hybridmap.data.loader import Loader
from hybridmap.data.synthetic import Synthetic
from hybridmap.errors import UserError
from hybridmap.hashing import hash_ints
from hybridmap.objectives.map import MAP
from hybridmap.recipes.smoke import scale_down
from hybridmap.tokens.masking import Random
from hybridmap.train import AdamW, Cosine, Recipe, TrainConfig, read_weights, train
from hybridmap.types import Batch, Mask, Patches

NETWORKS = {"mambavision": MambaVision.Config(), "vmamba": VMamba.Config()}


def build(family: str, **fields: Any) -> MAP:
    """A small objective with random weights everywhere, ready to be asked."""
    torch.manual_seed(0)
    objective: MAP = MAP.Config(backbone=NETWORKS[family], **fields).small().build()
    with torch.no_grad():
        for parameter in objective.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return objective.eval()


def batch(height: int = 96, width: int = 64, seed: int = 0) -> Batch:
    images = torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(seed))
    return Batch(inputs=images, key=torch.tensor([hash_ints(0, i) for i in range(2)]), step_key=1)


def with_other_pixels(patches: Patches, where: Tensor) -> Patches:
    """Other pixels in the units that ``where`` (B, N) names."""
    return replace(patches, content=torch.where(where[..., None], torch.randn_like(patches.content), patches.content))


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("keep", [False, True])
@pytest.mark.parametrize("decoder_mask", ["map", "mae"])
@pytest.mark.parametrize("family", NETWORKS)
def test_pixels_of_masked_units_change_no_prediction(family: str, decoder_mask: str, keep: bool, training: bool) -> None:
    objective = build(family, decoder_mask=decoder_mask, keep_masked_features=keep).train(training)
    given = batch()
    patches = objective.backbone.partition(given.inputs)
    mask = objective.draw(patches, given)
    before = objective.predict(patches, mask)
    assert torch.equal(objective.predict(with_other_pixels(patches, mask.masked), mask), before)
    assert not torch.equal(objective.predict(with_other_pixels(patches, ~mask.masked), mask), before)


@pytest.mark.parametrize("family", NETWORKS)
def test_the_learned_vector_stands_in_the_output_of_the_stem_where_units_are_masked(family: str) -> None:
    objective = build(family)
    backbone: HierarchicalBackbone = objective.backbone
    entered: list[Tensor] = []
    left: list[Tensor] = []
    backbone.stages[0].register_forward_pre_hook(lambda module, inputs: entered.append(inputs[0]))
    backbone.stem.register_forward_hook(lambda module, inputs, output: left.append(output))
    given = batch()
    mask = Mask.from_masked(torch.tensor([[True, False, False, True, True, False], [False, True, True, False, False, True]]))
    backbone.encode_visible(backbone.partition(given.inputs), mask)
    for b in range(2):
        for unit, masked in enumerate(mask.masked[b].tolist()):
            i, j = divmod(unit, 2)
            there = (b, slice(None), slice(8 * i, 8 * (i + 1)), slice(8 * j, 8 * (j + 1)))  # 32 pixels are 8 positions
            assert backbone.mask_token is not None
            wanted = backbone.mask_token[0].expand(-1, 8, 8) if masked else left[0][there]
            assert torch.equal(entered[0][there], wanted)


@pytest.mark.parametrize("keep", [False, True])
@pytest.mark.parametrize("family", NETWORKS)
def test_every_parameter_gets_a_gradient_the_learned_vector_included(family: str, keep: bool) -> None:
    objective = build(family, keep_masked_features=keep)
    objective(batch()).total.backward()
    assert {name for name, p in objective.named_parameters() if p.requires_grad and p.grad is None} == set()
    assert objective.backbone.mask_token.grad.abs().min() > 0
    assert (objective.decoder.mask_token.grad.abs().max() > 0) == (not keep)


@pytest.mark.parametrize("family", NETWORKS)
def test_the_decoder_reads_masked_units_only_where_it_is_asked_to(family: str) -> None:
    seen: dict[bool, int] = {}
    for keep in (False, True):
        objective = build(family, keep_masked_features=keep)
        objective.decoder.embed.register_forward_hook(lambda m, i, out, keep=keep: seen.__setitem__(keep, out.shape[1]))
        objective(batch())
    assert seen == {False: 3, True: 6}


@pytest.mark.parametrize("family", NETWORKS)
def test_kept_features_stand_at_their_own_unit(family: str) -> None:
    """With the loss on all and nothing masked, keeping masked features changes nothing."""
    plain, keeping = (
        build(family, keep_masked_features=keep, masking=Random.Config(ratio=0.0), loss_on="all") for keep in (False, True)
    )
    assert torch.equal(plain(batch()).total, keeping(batch()).total)


def test_features_of_masked_units_can_be_kept_only_where_there_are_any() -> None:
    with pytest.raises(UserError, match=r"keep_masked_features needs a backbone that encodes whole images.*leave it False"):
        MAP.Config(backbone=HybridNet.Config(), keep_masked_features=True).small().build()


@pytest.mark.parametrize("family", NETWORKS)
def test_pretraining_continues_from_a_classifier_and_the_learned_vector_starts_fresh(family: str) -> None:
    network = NETWORKS[family].small().build()
    objective = build(family)
    own = objective.backbone.mask_token.detach().clone()
    report = objective.initialise({name: value.clone() for name, value in network.state_dict().items()})
    assert {name for name in report.fresh if name.startswith("backbone.")} == {"backbone.mask_token"}
    assert torch.equal(objective.backbone.mask_token, own)
    assert torch.equal(objective.backbone.stages[0].blocks[0].norm1.weight, network.stages[0].blocks[0].norm1.weight)


@pytest.mark.parametrize("family", NETWORKS)
def test_the_vector_has_a_depth_and_only_objectives_have_it(family: str) -> None:
    assert build(family).layer_ids()["backbone.mask_token"] == 0
    assert "mask_token" not in dict(NETWORKS[family].small().build().named_parameters())
    assert "mask_token" not in dict(NETWORKS[family].small().encoder().build().named_parameters())


# Running statistics


def batches(count: int) -> list[Batch]:
    return [replace(batch(64, 64, seed), inputs=2 * batch(64, 64, seed).inputs + 1) for seed in range(count)]


def test_statistics_settle_on_whole_images_and_depend_on_nothing_else() -> None:
    objective = build("mambavision")
    objective.train()
    objective(batch(64, 64))  # statistics of images with blank parts
    settled: list[dict[str, Tensor]] = []
    for training in (False, True):
        objective.train(training)
        objective.settle(batches(3))
        assert objective.training == training
        settled.append({name: value.clone() for name, value in objective.backbone.named_buffers()})
    assert all(torch.equal(settled[0][name], settled[1][name]) for name in settled[0])
    stem = objective.backbone.stem
    before_norm = [stem[0](b.inputs) for b in batches(3)]
    mean = torch.stack([x.mean((0, 2, 3)) for x in before_norm]).mean(0)
    torch.testing.assert_close(settled[0]["stem.1.running_mean"], mean)
    last = objective.backbone.norm
    assert last.num_batches_tracked == 3


def test_whole_images_look_alike_in_training_and_in_use_once_statistics_have_settled() -> None:
    """Normalised by its running statistics, the batch that they are of has mean 0 and deviation 1 behind the first norm."""
    objective = build("mambavision")
    given = batches(1)
    objective.settle(given)
    stem = objective.backbone.stem
    normed = (stem[1](stem[0](given[0].inputs)) - stem[1].bias[:, None, None]) / stem[1].weight[:, None, None]
    torch.testing.assert_close(normed.mean((0, 2, 3)), torch.zeros(8), rtol=0, atol=1e-5)
    torch.testing.assert_close(normed.std((0, 2, 3)), torch.ones(8), rtol=0, atol=1e-2)  # eps 1e-4 beside a small variance


def test_a_network_without_statistics_asks_for_no_batch() -> None:
    def none() -> Iterator[Batch]:
        raise AssertionError("nobody needs a batch")
        yield

    build("vmamba").settle(none())


@pytest.mark.parametrize("ema", [None, 0.5])
def test_a_run_ends_with_settled_statistics_by_the_same_bytes_if_it_is_killed(tmp_path: Path, ema: float | None) -> None:
    recipe = scale_down(
        Recipe(
            learner=MAP.Config(backbone=NETWORKS["mambavision"]),
            data=Synthetic.Config(),
            optim=AdamW.Config(lr=1e-2),
            schedule=Cosine.Config(warmup_epochs=0.0),
            train=TrainConfig(steps=2),
        )
    )
    recipe = override(recipe, {"train.steps": 4, "train.accumulate": 2, "train.checkpoint_every": 1, "train.ema": ema})
    train(recipe, tmp_path / "whole", device="cpu", loader=Loader)
    train(recipe, tmp_path / "killed", device="cpu", loader=Loader)
    (tmp_path / "killed" / "final.safetensors").unlink()
    for last in (tmp_path / "killed" / "checkpoints").glob("*4*"):
        last.unlink()
    train(recipe, tmp_path / "killed", device="cpu", loader=Loader)
    assert (tmp_path / "killed" / "final.safetensors").read_bytes() == (tmp_path / "whole" / "final.safetensors").read_bytes()

    final, _ = read_weights(tmp_path / "whole")
    (tmp_path / "whole" / "final.safetensors").unlink()
    trained, _ = read_weights(tmp_path / "whole")  # of the last checkpoint: averaged, if so wished, and not settled
    objective = recipe.learner.build()
    objective.load_state_dict(trained)
    loader = Loader(recipe.data, batch_size=4, accumulate=2, steps=4, seed=recipe.seed)
    objective.settle(b for portions in loader for b in portions)
    settled = objective.state_dict()
    assert final.keys() == settled.keys()
    assert all(torch.equal(final[name], settled[name]) for name in final)
    moved = {name for name in final if not torch.equal(final[name], trained[name])}
    assert moved == {name for name, _ in objective.named_buffers() if "running" in name}
