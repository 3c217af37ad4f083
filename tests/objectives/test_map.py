"""What defines MAP and its relatives, as properties: perturb what must not matter, and nothing moves."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hybridmap.backbones.base import Backbone
from hybridmap.backbones.hybrid import HybridNet
from hybridmap.errors import UserError
from hybridmap.layers.mixing import Mixing
from hybridmap.objectives.decoder import MAEDecoder, MAPDecoder
from hybridmap.objectives.map import MAP
from hybridmap.tokens.masking import Diagonal, Masking, Random, Sequential
from hybridmap.tokens.regions import Clusters, Columns, Given, Regions, Rows, Single, Whole
from hybridmap.types import Batch, Mask

SETTINGS: dict[str, dict[str, Any]] = {
    "map": {},
    "local mae": {"decoder_mask": "local_mae"},
    "mae": {"decoder_mask": "mae", "masking": Random.Config(ratio=0.75, rounding="keep_floor")},
    "ar": {"decoder_mask": "ar"},
    "tail": {"decoder_mask": "ar", "masking": Sequential.Config(count=4)},
    "columns": {"regions": Columns.Config(reverse=True), "masking": Diagonal.Config()},
    "clusters": {"regions": Clusters.Config(size=2), "masking": Random.Config(scope="region")},
    "drawn ratio": {"masking": Random.Config(ratio_range=(0.3, 0.7))},
    "given": {"regions": Given.Config(ranks=tuple(5 * i % 7 for i in range(15)))},
}


@pytest.fixture(params=SETTINGS.values(), ids=SETTINGS)
def setting(request: pytest.FixtureRequest) -> dict[str, Any]:
    return request.param


def test_visible_content_reaches_predictions(build: Callable[..., MAP], batch: Batch, setting: dict[str, Any]) -> None:
    objective = build(**setting)
    patches = objective.backbone.partition(batch.inputs)
    mask = objective.draw(patches, batch)
    inverted = Mask.from_masked(~mask.masked) if mask.masked.float().mean() == 0.5 else None
    with torch.no_grad():
        before = objective.predict(patches, mask)
        content = patches.content + torch.randn_like(patches.content)
        assert not torch.equal(before, objective.predict(replace(patches, content=content), mask))
        if inverted is not None:
            assert not torch.equal(before, objective.predict(patches, inverted))


def test_every_parameter_gets_a_gradient(
    build: Callable[..., MAP], any_network: Backbone.Config, batch: Batch, setting: dict[str, Any]
) -> None:
    objective = build(any_network, **setting).train()
    objective(batch).total.backward()
    assert [
        name for name, p in objective.named_parameters() if p.requires_grad and (p.grad is None or not p.grad.isfinite().all())
    ] == []
    assert not [name for name, _ in objective.named_parameters() if "register" in name or "head" in name]


def test_the_same_batch_gives_the_same_loss_and_another_key_another(
    build: Callable[..., MAP], batch: Batch, setting: dict[str, Any]
) -> None:
    objective = build(**setting)
    first = objective(batch).total
    torch.manual_seed(99)
    assert torch.equal(objective(batch).total, first)
    assert first.isfinite()
    assert first.ndim == 0
    if isinstance(objective.masking, Random):
        assert not torch.equal(objective(replace(batch, key=batch.key + 1)).total, first)


def test_a_mask_made_by_hand_goes_into_step(build: Callable[..., MAP], batch: Batch) -> None:
    objective = build()
    patches = objective.backbone.partition(batch.inputs)
    drawn = objective.draw(patches, batch)
    recorded = Mask.from_masked(drawn.masked.clone())
    assert torch.equal(objective.step(patches, recorded).total, objective(batch).total)


def test_the_loss_is_the_mean_over_masked_patches_of_what_predict_says(build: Callable[..., MAP], batch: Batch) -> None:
    objective = build()
    patches = objective.backbone.partition(batch.inputs)
    mask = objective.draw(patches, batch)
    error = (objective.predict(patches, mask) - objective.target.values(patches)).square().mean(-1)  # pyright: ignore
    torch.testing.assert_close(objective.step(patches, mask).total, error[mask.masked].mean())


def test_images_may_be_mixed_before_they_are_masked_in_training_alone(build: Callable[..., MAP], batch: Batch) -> None:
    mixed = build(mixing=Mixing.Config(mixup=0.8, cutmix=0.0))
    plain = build()
    plain.load_state_dict(mixed.state_dict())
    torch.manual_seed(3)
    blended, _ = mixed.mixing(batch.inputs)
    expected = plain(replace(batch, inputs=blended)).total
    torch.manual_seed(3)
    torch.testing.assert_close(mixed.train()(batch).total, expected)
    assert not torch.equal(expected, plain(batch).total)
    assert torch.equal(mixed.eval()(batch).total, plain.eval()(batch).total)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"regions": Whole.Config()}, {"decoder_mask": "mae"}),
        ({"regions": Clusters.Config(size=5)}, {"decoder_mask": "mae"}),
        ({"regions": Whole.Config(), "decoder_mask": "local_mae"}, {"decoder_mask": "mae"}),
        ({"regions": Clusters.Config(size=1)}, {"decoder_mask": "ar"}),
        ({"regions": Single.Config()}, {"decoder_mask": "ar"}),
        ({"regions": Clusters.Config(size=(1, 5))}, {"regions": Rows.Config()}),
        ({"regions": Given.Config(ranks=(1,) * 5 + (3,) * 5 + (9,) * 5)}, {"regions": Rows.Config()}),
    ],
    ids=str,
)
def test_the_objectives_are_settings_of_one_another(
    build: Callable[..., MAP], batch: Batch, one: dict[str, Any], other: dict[str, Any]
) -> None:
    first, second = build(**one), build(**other)
    second.load_state_dict(first.state_dict())
    torch.testing.assert_close(first(batch).total, second(batch).total)


def test_the_four_decoder_masks_differ(build: Callable[..., MAP], batch: Batch) -> None:
    weights = build().state_dict()
    losses = []
    for kind in ("ar", "mae", "local_mae", "map"):
        objective = build(decoder_mask=kind)
        objective.load_state_dict(weights)
        losses.append(objective(batch).total.item())
    assert len(set(losses)) == 4


def test_the_encoder_scans_by_columns_while_rows_are_predicted(build: Callable[..., MAP], batch: Batch) -> None:
    by_row = build()
    network = replace(by_row.config.backbone, scan="column")  # pyright: ignore[reportCallIssue]
    by_column = build(network)
    by_column.load_state_dict(by_row.state_dict())
    patches = by_column.backbone.partition(batch.inputs)
    assert by_column.regions(patches, None)[0].tolist() == [0, 1, 2] * 5
    assert by_column.draw(patches, batch).visible.shape == (3, 7)
    assert not torch.equal(by_column(batch).total, by_row(batch).total)


def test_a_ratio_of_zero_is_autoencoding_with_the_loss_on_all(build: Callable[..., MAP], batch: Batch) -> None:
    objective = build(masking=Random.Config(ratio=0.0), loss_on="all")
    patches = objective.backbone.partition(batch.inputs)
    mask = objective.draw(patches, batch)
    assert mask.visible.shape == (3, 15)
    loss = objective(batch).total
    error = (objective.predict(patches, mask) - objective.target.values(patches)).square().mean()  # pyright: ignore
    torch.testing.assert_close(loss, error)


def test_the_loss_can_be_on_all_patches_under_any_mask(build: Callable[..., MAP], batch: Batch) -> None:
    objective = build(loss_on="all")
    patches = objective.backbone.partition(batch.inputs)
    mask = objective.draw(patches, batch)
    error = (objective.predict(patches, mask) - objective.target.values(patches)).square().mean()  # pyright: ignore
    torch.testing.assert_close(objective(batch).total, error)


def test_maes_decoder_serves_every_backbone(
    build: Callable[..., MAP], any_network: Backbone.Config, batch: Batch, mae_decoder: MAEDecoder.Config
) -> None:
    for kind in ("mae", "map"):
        objective = build(any_network, decoder=mae_decoder, decoder_mask=kind)
        loss = objective(batch).total
        loss.backward()
        assert loss.isfinite()
        assert [name for name, p in objective.named_parameters() if p.requires_grad and p.grad is None] == []


@settings(max_examples=25, deadline=None)
@given(
    grid=st.tuples(st.integers(1, 4), st.integers(1, 5)).filter(lambda grid: grid != (1, 1)),
    regions=st.sampled_from(
        [
            Rows.Config(),
            Columns.Config(reverse=True),
            Clusters.Config(size=2),
            Clusters.Config(size=(3, 2), order="column"),
            Single.Config(),
        ]
    ),
    masking=st.sampled_from([Random.Config(), Sequential.Config(ratio=0.3), Diagonal.Config(ratio=0.7)]),
    kind=st.sampled_from(["ar", "mae", "local_mae", "map"]),
    scan=st.sampled_from(["row", "column"]),
)
def test_any_rectangle_any_partition_any_masking(
    grid: tuple[int, int], regions: Regions.Config, masking: Masking.Config, kind: Any, scan: Any
) -> None:
    network = HybridNet.Config(img_size=(12, 20), patch_size=4, embed_dim=8, layout="MT", num_heads=2, scan=scan)
    objective = MAP.Config(
        backbone=network,
        regions=regions,
        masking=masking,
        decoder_mask=kind,
        decoder=MAPDecoder.Config(width=8, depth=1, num_heads=2),
    ).build()
    images = torch.randn(2, 3, grid[0] * 4, grid[1] * 4)
    loss = objective(Batch(inputs=images, key=torch.tensor([1, 2]))).total
    loss.backward()
    assert loss.isfinite()


def test_bfloat16_autocast_stays_close_and_the_loss_is_float32(build: Callable[..., MAP], batch: Batch) -> None:
    objective = build()
    exact = objective(batch).total
    with torch.autocast("cpu", torch.bfloat16):
        rough = objective(batch).total
    assert rough.dtype == torch.float32
    torch.testing.assert_close(rough, exact, rtol=0.05, atol=0.05)


def test_checkpointed_activations_change_no_gradient(build: Callable[..., MAP], batch: Batch) -> None:
    objective = build().train()
    objective(batch).total.backward()
    plain = {name: p.grad.clone() for name, p in objective.named_parameters() if p.grad is not None}
    objective.zero_grad()
    objective.set_grad_checkpointing()
    objective(batch).total.backward()
    for name, p in objective.named_parameters():
        torch.testing.assert_close(p.grad, plain[name])


def test_a_loss_on_masked_patches_with_nothing_masked_is_refused(build: Callable[..., MAP]) -> None:
    for masking in (Random.Config(ratio=0.0), Sequential.Config(count=0)):
        with pytest.raises(UserError, match='set loss_on to "all"'):
            build(masking=masking)


def test_a_single_patch_cannot_be_pretrained_on(build: Callable[..., MAP]) -> None:
    with pytest.raises(UserError, match="the input has 1; use larger inputs"):
        build()(Batch(inputs=torch.randn(2, 3, 4, 4), key=torch.tensor([1, 2])))


def test_images_of_one_pixel_are_refused(build: Callable[..., MAP]) -> None:
    with pytest.raises(UserError, match="multiple"):
        build()(Batch(inputs=torch.randn(2, 3, 1, 1), key=torch.tensor([1, 2])))


@pytest.mark.parametrize(("field", "value"), [("decoder_mask", "causal"), ("loss_on", "visible"), ("encoder_causal", "token")])
def test_unknown_words_are_refused(network: Backbone.Config, field: str, value: str) -> None:
    config = MAP.Config(backbone=network)
    object.__setattr__(config, field, value)  # past the type checks of the tests, which users do not have
    with pytest.raises(UserError, match=f"{field} must be .* got '{value}'"):
        config.build()


COMPILED = """
import torch
from hybridmap.backbones.hybrid import HybridNet
from hybridmap.objectives.decoder import MAPDecoder
from hybridmap.layers.mixing import Mixing
from hybridmap.objectives.map import MAP
from hybridmap.types import Batch

torch.manual_seed(0)
network = HybridNet.Config(img_size=(12, 20), patch_size=4, embed_dim=16, layout="MT", num_heads=2)
objective = MAP.Config(backbone=network, decoder=MAPDecoder.Config(width=16, depth=1, num_heads=2)).build()
batch = Batch(inputs=torch.randn(2, 3, 12, 20), key=torch.tensor([1, 2]))
patches = objective.backbone.partition(batch.inputs)
mask = objective.draw(patches, batch)
plain = objective.step(patches, mask, batch.key).total
compiled = torch.compile(objective.step, backend="aot_eager", fullgraph=True)(patches, mask, batch.key).total
torch.testing.assert_close(compiled, plain)
compiled.backward()
assert objective.backbone.pos_embed.grad.abs().sum() > 0
"""


@pytest.mark.slow
def test_a_step_compiles_as_one_graph(unchecked_environment: dict[str, str]) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", COMPILED], capture_output=True, text=True, env=unchecked_environment, timeout=300
    )
    assert done.returncode == 0, done.stderr[-3000:]
