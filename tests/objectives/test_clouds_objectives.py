"""Masked pretraining on clouds of points: the same objective with regions of a scan, places in space and Chamfer distances."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from hybridmap.backbones.hybrid3d import HybridNet3D
from hybridmap.backbones.point_mamba import PointMamba
from hybridmap.backbones.point_transformer import PointTransformer
from hybridmap.errors import UserError
from hybridmap.objectives.chamfer import Chamfer
from hybridmap.objectives.map import MAP
from hybridmap.objectives.point_decoder import CurveDecoder, PointDecoder
from hybridmap.tasks.classification import Classification
from hybridmap.tokens.masking import Random
from hybridmap.tokens.regions import Runs, VisibleFirst, Whole, permission
from hybridmap.types import Batch, Mask, Patches


def clouds(count: int = 2, points: int = 64) -> Tensor:
    return torch.randn(count, points, 3, generator=torch.Generator().manual_seed(0))


def batch(count: int = 2) -> Batch:
    return Batch(inputs=clouds(count), key=torch.arange(count), step_key=1)


def objective(backbone: object = None, **choices: object) -> MAP:
    fields = {
        "backbone": (backbone or HybridNet3D.Config(num_patches=16)).small(),  # type: ignore[attr-defined]
        "masking": Random.Config(ratio=0.5, rounding="floor"),
        "regions": VisibleFirst.Config(),
        "decoder": PointDecoder.Config(width=32, depth=2, num_heads=2, drop_path=0.0),
        "target": Chamfer.Config(),
    }
    torch.manual_seed(0)
    return MAP.Config(**fields | choices).build()  # type: ignore[arg-type]


def places(count: int) -> Patches:
    empty = torch.zeros(1, count, 3)
    return Patches(content=empty, coords=empty, source=torch.arange(count).expand(1, -1))


def test_released_regions_are_blocks_of_visible_then_masked() -> None:
    masked = torch.tensor([[True, False] * 8])
    patches, mask = places(16), Mask.from_masked(masked)
    rank = VisibleFirst.Config().build()(patches, mask)
    listed = torch.cat([mask.visible[0], masked[0].nonzero()[:, 0]])
    assert rank[0, listed].tolist() == [i // 4 for i in range(16)]
    allowed = permission(rank, "map")[0, 0][listed][:, listed]
    assert torch.equal(allowed, torch.block_diag(*[torch.ones(4, 4)] * 4).bool() | torch.ones(16, 16).tril().bool())
    assert VisibleFirst.Config(length=5).build().sizes(patches) == (5, 5, 5, 1)


def test_runs_are_stretches_of_the_scan() -> None:
    assert Runs.Config(length=3).build()(places(8))[0].tolist() == [0, 0, 0, 1, 1, 1, 2, 2]
    assert Runs.Config(length=3).build().sizes(places(8)) == (3, 3, 2)


def test_a_number_of_patches_that_is_no_square_needs_a_length() -> None:
    with pytest.raises(UserError, match="20 patches are no square number"):
        VisibleFirst.Config().build()(places(20), None)
    with pytest.raises(UserError, match="at least one patch"):
        Runs.Config(length=0).build()


@pytest.mark.parametrize("rounding", ["ceil", "floor", "keep_floor"])
def test_the_released_codes_round_in_three_ways(rounding: str) -> None:
    kept = Random.Config(ratio=0.6, rounding=rounding).build().kept((64,))  # type: ignore[arg-type]
    assert kept == {"ceil": (25,), "floor": (26,), "keep_floor": (25,)}[rounding]


def test_a_block_knows_of_later_blocks_nothing_and_of_every_visible_patch() -> None:
    learner = objective().eval()
    patches = learner.backbone.partition(clouds(1))
    mask = learner.draw(patches, Batch(inputs=clouds(1), key=torch.arange(1), step_key=1))
    coords = patches.coords.clone().requires_grad_()
    rank = learner.regions(patches, mask)
    seen = learner.backbone.encode_visible(patches, mask)
    features = replace(seen, patches=seen.patches.detach().requires_grad_())
    pred = learner.decoder(features, mask, replace(patches, coords=coords), learner.allowed(patches, mask))
    for block in rank[mask.masked].unique().tolist():
        chosen = mask.masked & (rank == block)
        to_coords, to_features = torch.autograd.grad(pred[chosen].square().sum(), (coords, features.patches), retain_graph=True)
        reached = to_coords[0].abs().sum(-1) > 0
        assert torch.equal(reached[mask.masked[0]], (rank <= block)[mask.masked])
        assert bool((to_features.abs().sum(-1) > 0).all())


@pytest.mark.parametrize("kind", ["l1", "l2"])
def test_the_loss_is_the_chamfer_distance_of_the_masked_patches(kind: str) -> None:
    learner = objective(target=Chamfer.Config(kind=kind)).eval()  # type: ignore[arg-type]
    given = batch()
    patches = learner.backbone.partition(given.inputs, given.step_key)
    mask = learner.draw(patches, given)
    pred = learner.predict(patches, mask)
    total = []
    for b in range(2):
        for n in mask.masked[b].nonzero()[:, 0].tolist():
            distance = torch.cdist(
                pred[b, n].view(8, 3), patches.content[b, n].view(8, 3), compute_mode="donot_use_mm_for_euclid_dist"
            )
            there, back = distance.amin(1), distance.amin(0)
            total.append(there.square().mean() + back.square().mean() if kind == "l2" else (there.mean() + back.mean()) / 2)
    assert torch.allclose(learner(given).total, torch.stack(total).mean(), rtol=1e-4)


def test_masked_points_do_not_reach_the_prediction() -> None:
    learner = objective().eval()
    patches = learner.backbone.partition(clouds())
    mask = learner.draw(patches, batch())
    changed = replace(patches, content=torch.where(mask.masked[..., None], torch.tensor(9.0), patches.content))
    assert torch.equal(learner.predict(changed, mask), learner.predict(patches, mask))


NETWORKS = {
    "hybrid": (HybridNet3D.Config(num_patches=16), PointDecoder.Config(width=32, depth=1, num_heads=2)),
    "transformer": (PointTransformer.Config(num_patches=16), PointDecoder.Config(width=32, depth=1, num_heads=2)),
    "pointmamba": (PointMamba.Config(num_patches=16), CurveDecoder.Config(width=32, depth=1)),
    "another width": (PointTransformer.Config(num_patches=16), PointDecoder.Config(width=16, depth=1, num_heads=2)),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_every_parameter_is_trained_and_the_loss_falls(name: str) -> None:
    backbone, decoder = NETWORKS[name]
    plain = {"regions": Whole.Config(), "decoder_mask": "mae"} if name == "pointmamba" else {}
    learner = objective(backbone, decoder=decoder, **plain).train()
    optimizer = torch.optim.AdamW(learner.parameters(), 3e-3)
    losses = []
    for step in range(30):
        optimizer.zero_grad()
        loss = learner(replace(batch(4), step_key=step)).total
        loss.backward()
        losses.append(loss.item())
        optimizer.step()
    untrained = [n for n, p in learner.named_parameters() if p.grad is None]
    assert not untrained
    assert losses[-1] < 0.7 * losses[0]


def test_a_classifier_takes_over_what_was_pretrained() -> None:
    learner = objective()
    tuned = Classification.Config(backbone=HybridNet3D.Config(num_patches=16).small(), num_classes=5).build()
    report = tuned.initialise(learner.state_dict())
    assert {name.removeprefix("backbone.").partition(".")[0] for name in report.fresh} == {"cls_token", "cls_pos", "head"}
    own = learner.state_dict()
    assert all(torch.equal(tuned.state_dict()[name], own[name]) for name in report.loaded)
    assert tuned(Batch(inputs=clouds(), key=torch.arange(2), labels=torch.tensor([0, 4]))).total.isfinite()


def test_a_decoder_that_scans_takes_no_other_permission() -> None:
    learner = objective(PointMamba.Config(num_patches=16), decoder=CurveDecoder.Config(width=32, depth=1))
    with pytest.raises(UserError, match='set decoder_mask to "mae"'):
        learner(batch())
