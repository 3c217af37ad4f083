"""Prediction from earlier features: what is predicted from what, with every way to cross scan and prediction."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from hybridmap.backbones import ARM, HybridNet, Vim, ViT
from hybridmap.backbones.sequence import SequenceBackbone
from hybridmap.errors import UserError
from hybridmap.objectives.arm import ARMDecoder, ClusterAR
from hybridmap.objectives.decoder import MAPQueryDecoder
from hybridmap.objectives.shift import FromEarlier, NextRegion, Shift
from hybridmap.tokens.regions import Clusters, Columns, Given, Regions, Rows, Single, Whole, earlier
from hybridmap.types import Batch, Mask, Patches

SIZE: dict[str, Any] = {"img_size": (12, 20), "patch_size": 4, "embed_dim": 16}
NETWORKS: dict[str, SequenceBackbone.Config] = {
    "hybrid": HybridNet.Config(**SIZE, layout="MTM", num_heads=2, num_registers=2),
    "mamba-r": HybridNet.Config(**SIZE, layout="MM", num_registers=2),
    "vim": Vim.Config(**SIZE, depth=2),
    "vim v1": Vim.Config(**SIZE, depth=2, mixer="v1", rope=True),
    "vit": ViT.Config(**SIZE, depth=2, num_heads=2),
}
DECODER = MAPQueryDecoder.Config(width=16, depth=2, num_heads=4)
CROSSINGS = [(scan, regions) for scan in ("row", "column") for regions in (Rows.Config(), Columns.Config())]


def made(config: FromEarlier.Config) -> FromEarlier:
    """With random weights everywhere."""
    objective: FromEarlier = config.build()
    with torch.no_grad():
        for parameter in objective.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return objective.eval()


def shift(network: str = "hybrid", scan: Any = "row", **fields: Any) -> Shift:
    backbone = replace(NETWORKS[network], scan=scan)  # type: ignore[call-arg]
    return made(Shift.Config(**{"backbone": backbone, "decoder": DECODER, "count": 3} | fields))  # type: ignore[return-value]


def batch_of(height: int = 12, width: int = 20) -> Batch:
    return Batch(inputs=torch.randn(2, 3, height, width), key=torch.tensor([1, 2]))


def drawn(objective: FromEarlier, batch: Batch) -> tuple[Patches, Mask]:
    patches = objective.backbone.partition(batch.inputs)
    return patches, objective.draw(patches, batch)


def order_of(regions: Regions.Config, patches: Patches) -> torch.Tensor:
    """Place of every patch in the order of prediction, written out: o = r W + c, or c H + r."""
    row, column = patches.source[0] // 5, patches.source[0] % 5
    return row * 5 + column if isinstance(regions, Rows.Config) else column * 3 + row


@pytest.mark.parametrize("count", [1, 4, 14])
@pytest.mark.parametrize(("scan", "regions"), CROSSINGS, ids=str)
def test_inputs_and_outputs_are_the_first_and_the_last_of_the_order_and_equally_many(
    scan: str, regions: Regions.Config, count: int
) -> None:
    objective = shift(scan=scan, regions=regions, count=count)
    patches, mask = drawn(objective, batch_of())
    order = order_of(regions, patches)
    assert torch.equal(order[mask.visible[0]].sort().values, torch.arange(15 - count))
    predicted = objective.predicted(patches)
    assert torch.equal(order[predicted[0]].sort().values, torch.arange(count, 15))
    for positions in (mask.visible, predicted):
        assert positions.shape == (2, 15 - count)
        assert bool((positions.diff(dim=1) > 0).all())
    zero = objective.predict(patches, mask).eq(0).all(-1)
    assert torch.equal(zero[0], order < count)


@pytest.mark.parametrize("count", [1, 4, 14])
@pytest.mark.parametrize(("scan", "regions"), CROSSINGS, ids=str)
def test_a_query_looks_at_all_features_that_have_met_nothing_too_late(scan: str, regions: Regions.Config, count: int) -> None:
    objective = shift(scan=scan, regions=regions, count=count)
    patches, mask = drawn(objective, batch_of())
    order, allowed = order_of(regions, patches), objective.allowed(patches, mask)
    assert allowed.shape == (1, 1, 15 - count, 15 - count)  # one relation for the whole batch
    for q, position in enumerate(objective.predicted(patches)[0].tolist()):
        for k, seen in enumerate(mask.visible[0].tolist()):
            met = [int(order[v]) for v in mask.visible[0].tolist() if v <= seen]
            assert bool(allowed[0, 0, q, k]) == (max(met) <= int(order[position]) - count)
            if (scan == "row") == isinstance(regions, Rows.Config):
                assert max(met) == int(order[seen])  # where both orders are one, this is the spec's "ranks up to j - n"
    assert bool(allowed.any(-1).all())


@pytest.mark.parametrize("count", [1, 4, 9])
@pytest.mark.parametrize(("scan", "regions"), CROSSINGS, ids=str)
@pytest.mark.parametrize("network", NETWORKS)
def test_changing_a_patch_moves_no_prediction_closer_than_n_ranks_behind_it(
    network: str, scan: str, regions: Regions.Config, count: int
) -> None:
    objective = shift(network, scan, regions=regions, count=count)
    patches, mask = drawn(objective, batch_of())
    order = order_of(regions, patches)
    with torch.no_grad():
        before = objective.predict(patches, mask)
        for changed in range(0, 15 - count, 2):
            content = torch.where((order == changed)[None, :, None], torch.randn_like(patches.content), patches.content)
            after = objective.predict(replace(patches, content=content), mask)
            near = order < changed + count
            assert torch.equal(before[:, near], after[:, near])
            if (scan == "row") == isinstance(regions, Rows.Config):
                assert not torch.isclose(before[:, order == changed + count], after[:, order == changed + count]).all()
        hidden = torch.where(mask.masked[..., None], torch.randn_like(patches.content), patches.content)
        assert torch.equal(before, objective.predict(replace(patches, content=hidden), mask))


@pytest.mark.parametrize("network", NETWORKS)
def test_what_is_trained_gets_a_gradient_and_backward_scans_are_frozen(network: str) -> None:
    objective = shift(network).train()
    objective(batch_of()).total.backward()
    named = dict(objective.named_parameters())
    fixed = {name for name, p in named.items() if not p.requires_grad}
    assert {name for name, p in named.items() if p.grad is None} == fixed
    backwards = {name for name in named if ".dirs." in name and ".fwd." not in name}
    sincos = {"backbone.pos_embed", "backbone.cls_pos"} if network == "vit" else set()
    assert fixed == backwards | sincos
    assert bool(backwards) == (network != "vit")


def test_one_step_ahead_is_next_patch_prediction_and_equals_single_regions() -> None:
    by_patch = shift(count=1)
    by_region = made(NextRegion.Config(backbone=NETWORKS["hybrid"], decoder=DECODER, regions=Single.Config()))
    by_region.load_state_dict(by_patch.state_dict())
    batch = batch_of()
    assert torch.equal(by_patch(batch).total, by_region(batch).total)


@pytest.mark.parametrize("regions", [Rows.Config(), Given.Config(ranks=(0,) * 2 + (4,) * 7 + (9,) * 6)], ids=str)
@pytest.mark.parametrize("network", NETWORKS)
def test_changing_a_region_moves_no_prediction_of_it_or_of_earlier_ones(network: str, regions: Regions.Config) -> None:
    objective = made(NextRegion.Config(backbone=NETWORKS[network], decoder=DECODER, regions=regions))
    patches, mask = drawn(objective, batch_of())
    rank = objective.regions(patches, None)[0]
    with torch.no_grad():
        before = objective.predict(patches, mask)
        for changed in rank.unique().tolist():
            content = torch.where((rank == changed)[None, :, None], torch.randn_like(patches.content), patches.content)
            after = objective.predict(replace(patches, content=content), mask)
            assert torch.equal(before[:, rank <= changed], after[:, rank <= changed])
            assert not torch.isclose(before[:, rank > changed], after[:, rank > changed]).all(-1).any()


def test_next_region_prediction_with_arms_sizes_is_arms_relation() -> None:
    backbone = ARM.Config(**SIZE, depth=2, directions=1, scan="cluster(2)", cls_token=False)
    ours = made(NextRegion.Config(backbone=backbone, decoder=DECODER, regions=Clusters.Config(size=2)))
    arms = made(
        ClusterAR.Config(backbone=backbone, decoder=ARMDecoder.Config(width=16, num_heads=2), regions=Clusters.Config(size=2))
    )
    patches, mask = drawn(ours, batch_of())
    assert torch.equal(mask.visible, arms.draw(patches, batch_of()).visible)
    assert torch.equal(ours.allowed(patches, mask), arms.allowed(patches, mask))


@pytest.mark.parametrize(("scan", "regions"), CROSSINGS, ids=str)
def test_the_loss_is_the_mean_over_all_patches_but_the_first_n(scan: str, regions: Regions.Config) -> None:
    objective = shift(scan=scan, regions=regions)
    batch = batch_of()
    patches, mask = drawn(objective, batch)
    pred, order = objective.predict(patches, mask), order_of(regions, patches)
    errors = []
    for b in range(2):
        for t in range(15):
            if order[t] >= 3:
                x = patches.content[b, t]
                target = (x - x.mean()) / (x.var() + 1e-6).sqrt()
                errors.append((pred[b, t] - target).square().mean())
    torch.testing.assert_close(objective(batch).total, torch.stack(errors).mean())


def test_the_decoder_is_cross_attention_written_out() -> None:
    objective = shift(scan="column", regions=Rows.Config())
    decoder, (patches, mask) = objective.decoder, drawn(objective, batch_of())
    features = objective.backbone.encode_visible(patches, mask, causal=True)
    memory, predicted = decoder.embed(features.patches), objective.predicted(patches)[0]
    x = decoder.mask_token + decoder.pos_embed[:, patches.source[0, predicted]].expand(2, -1, -1)
    for block in decoder.layers:
        x = block(x, memory, objective.allowed(patches, mask))
    torch.testing.assert_close(objective.predict(patches, mask)[:, predicted], decoder.pred(decoder.norm(x)))


def test_the_query_decoder_has_the_sizes_of_maps() -> None:
    from hybridmap.objectives.decoder import MAPDecoder

    def shapes(decoder: nn.Module) -> dict[str, tuple[int, ...]]:
        return {name: tuple(p.shape) for name, p in decoder.named_parameters()}

    size: dict[str, Any] = {"embed_dim": 24, "grid": (3, 5), "patch_values": 48}
    assert shapes(MAPQueryDecoder.Config().build(**size)) == shapes(MAPDecoder.Config().build(**size))


def test_reach_counts_what_the_scan_has_met() -> None:
    rank = torch.tensor([[0, 2, 1, 3]])
    visible, predicted = torch.tensor([[0, 1, 2]]), torch.tensor([[1, 2, 3]])
    found = earlier(rank, visible, predicted)[0, 0]
    assert found.tolist() == [[True, False, False], [True, False, False], [True, True, True]]
    assert earlier(rank, visible, predicted, by=2)[0, 0].tolist() == [[True, False, False], [False] * 3, [True, False, False]]


@pytest.mark.parametrize("size", [(12, 20), (8, 12), (24, 8), (4, 28)], ids=str)
def test_any_rectangle_is_predicted(size: tuple[int, int]) -> None:
    for scan, regions in CROSSINGS:
        assert shift(scan=scan, regions=regions)(batch_of(*size)).total.isfinite()


def test_weights_are_continued_and_the_encoder_is_given_away() -> None:
    first, second = shift(), shift()
    report = second.initialise(first.state_dict())
    assert not report.fresh
    assert not report.dropped
    batch = batch_of()
    assert torch.equal(first(batch).total, second(batch).total)


@pytest.mark.parametrize("count", [0, -1, 15, 40])
def test_a_shift_that_leaves_nothing_is_refused(count: int) -> None:
    with pytest.raises(UserError, match=f"count must be from 1 to 14 where an input has 15 patches, got {count}"):
        shift(count=count)


def test_a_smaller_input_may_be_too_small() -> None:
    with pytest.raises(UserError, match="count must be from 1 to 1 where an input has 2 patches, got 3"):
        shift()(batch_of(4, 8))


@pytest.mark.parametrize("regions", [Rows.Config(reverse=True), Columns.Config(reverse=True)], ids=str)
def test_an_order_that_ends_where_the_scan_starts_is_refused(regions: Regions.Config) -> None:
    with pytest.raises(UserError, match=r"does not start where the prediction by .* does"):
        shift(regions=regions)


def test_regions_need_a_scan_that_follows_them_and_another_region() -> None:
    with pytest.raises(UserError, match="does not follow the regions"):
        made(NextRegion.Config(backbone=NETWORKS["hybrid"], decoder=DECODER, regions=Columns.Config()))
    with pytest.raises(UserError, match="15 patches has one region"):
        made(NextRegion.Config(backbone=NETWORKS["hybrid"], decoder=DECODER, regions=Whole.Config()))


def test_layers_that_read_both_ways_in_pairs_are_refused() -> None:
    paired = Vim.Config(**SIZE, depth=2, mixer="uni", bidirectional_pairs=True)
    with pytest.raises(UserError, match="layers in pairs read the tokens in both directions"):
        shift(backbone=paired)(batch_of())
