"""Cluster autoregression: what is predicted from what, the decoder, and the official numbers of parameters."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from hybridmap.backbones import ARM, find
from hybridmap.errors import UserError
from hybridmap.hashing import hash_ints
from hybridmap.layers import sincos_2d
from hybridmap.objectives.arm import ARMDecoder, ClusterAR, read_layers
from hybridmap.tokens.regions import Clusters, Columns, Rows, Single, Whole
from hybridmap.types import Batch, Mask, Patches

NETWORK = ARM.Config(
    img_size=(16, 24),
    patch_size=4,
    embed_dim=16,
    depth=4,
    num_classes=7,
    directions=1,
    scan="cluster(2)",
    cls_token=False,
    positions="sincos",
)
DECODER = ARMDecoder.Config(width=16, depth=3, num_heads=2)


@pytest.fixture
def make() -> Callable[..., ClusterAR]:
    """A tiny objective over 2 x 3 clusters of 2 x 2 patches, with random weights everywhere, in float64."""

    def build(backbone: ARM.Config = NETWORK, **fields: Any) -> ClusterAR:
        given = {"regions": Clusters.Config(size=2), "decoder": DECODER} | fields
        objective: ClusterAR = ClusterAR.Config(backbone=backbone, **given).build()
        with torch.no_grad():
            for parameter in objective.parameters():
                parameter.add_(0.2 * torch.randn_like(parameter))
        return objective.double().eval()

    return build


@pytest.fixture
def batch() -> Batch:
    keys = torch.tensor([hash_ints(0, i) for i in range(2)])
    return Batch(inputs=torch.randn(2, 3, 16, 24, dtype=torch.float64), key=keys, step_key=1)


def drawn(objective: ClusterAR, batch: Batch) -> tuple[Patches, Mask]:
    patches = objective.backbone.partition(batch.inputs)
    return patches, objective.draw(patches, batch)


def changed_from(patches: Patches, first: int) -> Patches:
    """Other content from position ``first`` on."""
    content = patches.content.clone()
    content[:, first:] = torch.randn_like(content[:, first:])
    return replace(patches, content=content)


@pytest.mark.parametrize(("size", "decoder"), [("base", 99_427_328), ("large", 303_942_880), ("huge", 659_422_976)])
def test_parameter_counts_are_those_of_the_official_pretraining(size: str, decoder: int) -> None:
    with torch.device("meta"):
        objective = ClusterAR.Config(backbone=find(f"arm_{size}_pretrain_patch16_192")).build()
    assert sum(p.numel() for p in objective.parameters()) == decoder


def test_the_outputs_that_are_read_lie_evenly_in_the_second_half() -> None:
    assert read_layers(12, 4) == (5, 7, 9, 11)
    assert read_layers(24, 4) == (11, 15, 19, 23)
    assert read_layers(4, 4) == (1, 1, 2, 3)
    assert read_layers(1, 4) == (0, 0, 0, 0)
    assert read_layers(12, 1) == (11,)


@pytest.mark.parametrize("cluster", range(1, 6))
def test_changing_a_cluster_moves_no_prediction_of_it_or_of_earlier_ones(
    cluster: int, make: Callable[..., ClusterAR], batch: Batch
) -> None:
    objective = make()
    patches, mask = drawn(objective, batch)
    first = 4 * cluster
    before, after = objective.predict(patches, mask), objective.predict(changed_from(patches, first), mask)
    assert torch.equal(before[:, : first + 4], after[:, : first + 4])
    if cluster < 5:
        assert not torch.isclose(before[:, first + 4 :], after[:, first + 4 :]).all(-1).any()


def test_every_cluster_is_predicted_from_all_earlier_ones_and_the_first_not_at_all(
    make: Callable[..., ClusterAR], batch: Batch
) -> None:
    objective = make()
    patches, mask = drawn(objective, batch)
    allowed = objective.allowed(patches, mask)
    assert allowed.shape == (1, 1, 20, 20)  # one relation for the whole batch
    cluster = torch.arange(20) // 4
    assert torch.equal(allowed[0, 0], cluster[:, None] >= cluster)
    assert torch.equal(objective.predict(patches, mask)[:, :4], torch.zeros(2, 4, 48, dtype=torch.float64))
    assert torch.equal(mask.masked[0], torch.arange(24) >= 20)


@pytest.mark.parametrize("order", ["row", "column"])
@pytest.mark.parametrize("k", [1, 2, 3, 4, 6])
def test_the_relation_is_block_lower_triangular_for_any_size_of_cluster(
    k: int, order: Any, make: Callable[..., ClusterAR]
) -> None:
    """On 12 x 12 patches, S = G - 1 blocks of k x k: the encoder sees all clusters but the last, the first is not predicted."""
    scan = f"cluster({k})" if order == "row" else f"cluster({k}, column)"
    network = replace(NETWORK, img_size=24, patch_size=2, depth=2, scan=scan)
    objective = make(network, regions=Clusters.Config(size=k, order=order))
    patches, mask = drawn(objective, Batch(inputs=torch.randn(2, 3, 24, 24, dtype=torch.float64), key=torch.tensor([1, 2])))
    blocks = (12 // k) ** 2 - 1
    block = torch.arange(blocks * k * k) // k**2
    assert torch.equal(objective.allowed(patches, mask)[0, 0], block[:, None] >= block)
    assert torch.equal(mask.visible[0], torch.arange(blocks * k * k))
    assert torch.equal(objective.predicted(patches)[0], k * k + torch.arange(blocks * k * k))
    first_clusters = patches.source[0, : 2 * k * k] if blocks > 1 else patches.source[0]
    rows, columns = first_clusters // 12, first_clusters % 12
    assert (int(rows.max()) < k) == (order == "row" or k == 12)
    assert (int(columns.max()) < k) == (order == "column")


def test_the_loss_is_the_mean_over_all_patches_but_those_of_the_first_cluster(
    make: Callable[..., ClusterAR], batch: Batch
) -> None:
    objective = make()
    patches, mask = drawn(objective, batch)
    pred = objective.predict(patches, mask)
    errors = []
    for b in range(2):
        for t in range(4, 24):
            x = patches.content[b, t]
            target = (x - x.mean()) / (x.var() + 1e-6).sqrt()
            errors.append((pred[b, t] - target).square().mean())
    torch.testing.assert_close(objective(batch).total, torch.stack(errors).mean())


def test_the_decoder_is_cross_attention_written_out(make: Callable[..., ClusterAR], batch: Batch) -> None:
    objective = make()
    decoder, (patches, mask) = objective.decoder, drawn(objective, batch)
    features = objective.backbone.encode_visible(patches, mask, taps=range(4))
    outputs = [decoder.norms[j](features.taps[s].branch) for j, s in enumerate(decoder.reads)] + [features.patches]
    channels = decoder.embed(torch.cat(outputs, -1))
    table = sincos_2d(16, (4, 6)).double() * 0 + decoder.pos_embed
    x = decoder.mask_token + table[0, patches.source[:, 4:]]
    for j, block in enumerate(decoder.layers):
        x = block(x, channels[..., j :: len(decoder.layers)], objective.allowed(patches, mask))
    torch.testing.assert_close(objective.predict(patches, mask)[:, 4:], decoder.pred(decoder.norm(x)))


def test_every_parameter_that_is_trained_gets_a_gradient_and_a_layer_id(make: Callable[..., ClusterAR], batch: Batch) -> None:
    objective = make()
    objective(batch).total.backward()
    fixed = {name for name, p in objective.named_parameters() if p.grad is None}
    assert fixed == {"backbone.pos_embed", "decoder.pos_embed"}
    assert objective.layer_ids().keys() == dict(objective.named_parameters()).keys()
    assert not {name for name in objective.state_dict() if "head" in name or "cls" in name}


@pytest.mark.parametrize(
    ("scan", "regions"),
    [
        ("row", Rows.Config()),
        ("row", Single.Config()),
        ("column", Columns.Config()),
        ("cluster(2)", Clusters.Config(size=2)),
        ("cluster(3)", Clusters.Config(size=3)),
        ("cluster(2, column)", Clusters.Config(size=2, order="column")),
    ],
)
def test_regions_that_the_scan_follows_can_be_predicted(
    scan: str, regions: Any, make: Callable[..., ClusterAR], batch: Batch
) -> None:
    objective = make(replace(NETWORK, scan=scan), regions=regions)
    patches, mask = drawn(objective, batch)
    sizes = objective.regions.sizes(patches)
    before = objective.predict(patches, mask)
    after = objective.predict(changed_from(patches, sizes[0]), mask)
    assert torch.equal(before[:, : sum(sizes[:2])], after[:, : sum(sizes[:2])])
    assert objective(batch).total.isfinite()


@pytest.mark.parametrize(
    ("scan", "regions"),
    [
        ("cluster(2)", Rows.Config()),
        ("row", Columns.Config()),
        ("row", Clusters.Config(size=2)),
        ("row", Rows.Config(reverse=True)),
        ("cluster(2)", Clusters.Config(size=2, order="column")),
        ("cluster(2, column)", Clusters.Config(size=2)),
    ],
)
def test_a_scan_that_would_give_away_later_regions_is_refused(scan: str, regions: Any, make: Callable[..., ClusterAR]) -> None:
    with pytest.raises(UserError, match="does not follow the regions"):
        make(replace(NETWORK, scan=scan), regions=regions)


def test_other_grids_resample_the_positions(make: Callable[..., ClusterAR]) -> None:
    objective = make()
    for height, width in ((16, 16), (24, 16), (8, 32), (12, 20)):
        images = torch.randn(2, 3, height, width, dtype=torch.float64)
        assert objective(Batch(inputs=images, key=torch.tensor([1, 2]))).total.isfinite()


def test_a_given_mask_may_hide_more_than_the_last_cluster(make: Callable[..., ClusterAR], batch: Batch) -> None:
    objective = make()
    patches, _ = drawn(objective, batch)
    masked = torch.rand(2, 24).argsort(1) < 8
    masked[:, :4], masked[:, 20:] = False, True
    masked[1, 4:20] = masked[0, 4:20].flip(0)
    mask = Mask.from_masked(masked)
    assert objective.allowed(patches, mask).shape == (2, 1, 20, mask.visible.shape[1])
    other = replace(patches, content=torch.where(masked[..., None], patches.content + 1, patches.content))
    assert torch.equal(objective.predict(patches, mask), objective.predict(other, mask))
    assert objective.step(patches, mask).total.isfinite()


def test_the_objective_continues_from_its_own_weights_and_gives_the_encoder_away(
    make: Callable[..., ClusterAR], batch: Batch
) -> None:
    first, second = make(), make()
    report = second.initialise(first.state_dict())
    assert not report.fresh
    assert not report.dropped
    assert torch.equal(first(batch).total, second(batch).total)
    third = make()
    report = third.initialise(first.backbone.state_dict())
    assert {name.partition(".")[0] for name in report.fresh} == {"decoder"}
    with pytest.raises(UserError, match="of another backbone"):
        third.initialise(replace(NETWORK, directions=4, scan="row").build().state_dict())


def test_checkpointed_activations_change_no_gradient(make: Callable[..., ClusterAR], batch: Batch) -> None:
    objective = make().train()
    gradients = []
    for enable in (False, True):
        objective.set_grad_checkpointing(enable)
        objective.zero_grad()
        objective(batch).total.backward()
        gradients.append({name: p.grad.clone() for name, p in objective.named_parameters() if p.grad is not None})
    torch.testing.assert_close(*gradients)


def test_an_encoder_of_four_directions_is_refused(make: Callable[..., ClusterAR]) -> None:
    with pytest.raises(UserError, match=r"one direction, got 4; .* as in arm_base_pretrain_patch16_192"):
        make(replace(NETWORK, directions=4))


def test_one_region_cannot_be_predicted_from_anything(make: Callable[..., ClusterAR]) -> None:
    with pytest.raises(UserError, match="24 patches has one region"):
        make(regions=Whole.Config())
    with pytest.raises(UserError, match="24 patches has one region"):
        make(replace(NETWORK, scan="cluster(6)"), regions=Clusters.Config(size=6))
    with pytest.raises(UserError, match="4 patches has one region"):
        make()(Batch(inputs=torch.randn(1, 3, 8, 8, dtype=torch.float64), key=torch.tensor([1])))


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"width": 18}, "multiple of 4"),
        ({"num_heads": 3}, "16 must be divisible"),
        ({"depth": 0}, "depth of the decoder must be at least 1"),
    ],
)
def test_impossible_decoders_end_with_a_sentence(
    changes: dict[str, int], sentence: str, make: Callable[..., ClusterAR]
) -> None:
    with pytest.raises(UserError, match=sentence):
        make(decoder=replace(DECODER, **changes))


COMPILED = """
import torch
from hybridmap.backbones.arm import ARM
from hybridmap.backbones.vim import Vim
from hybridmap.objectives.arm import ARMDecoder, ClusterAR
from hybridmap.objectives.decoder import MAPQueryDecoder
from hybridmap.objectives.shift import Shift
from hybridmap.tokens.regions import Clusters, Columns
from hybridmap.types import Batch

torch.manual_seed(0)
network = ARM.Config(img_size=16, patch_size=4, embed_dim=16, depth=2, directions=1, scan="cluster(2)", cls_token=False)
decoder = ARMDecoder.Config(width=16, depth=2, num_heads=2)
clusters = ClusterAR.Config(backbone=network, decoder=decoder, regions=Clusters.Config(size=2)).build()
network = Vim.Config(img_size=16, patch_size=4, embed_dim=16, depth=2)
decoder = MAPQueryDecoder.Config(width=16, depth=1, num_heads=2)
shifted = Shift.Config(backbone=network, decoder=decoder, count=4, regions=Columns.Config()).build()
batch = Batch(inputs=torch.randn(2, 3, 16, 16), key=torch.tensor([1, 2]))
for objective in (clusters, shifted):
    patches = objective.backbone.partition(batch.inputs)
    mask = objective.draw(patches, batch)
    plain = objective.step(patches, mask, batch.key).total
    compiled = torch.compile(objective.step, backend="aot_eager", fullgraph=True)(patches, mask, batch.key).total
    torch.testing.assert_close(compiled, plain)
    compiled.backward()

network = ARM.Config(img_size=16, patch_size=4, embed_dim=16, depth=2, num_classes=3).build().eval()
compiled = torch.compile(network, backend="aot_eager", fullgraph=True)
torch.testing.assert_close(compiled(batch.inputs), network(batch.inputs))
"""


@pytest.mark.slow
def test_a_step_and_a_classifier_compile_as_one_graph(unchecked_environment: dict[str, str]) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", COMPILED], capture_output=True, text=True, env=unchecked_environment, timeout=300
    )
    assert done.returncode == 0, done.stderr[-3000:]
