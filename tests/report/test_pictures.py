"""Reconstructions show what the model really saw and predicted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from hybridmap.backbones.arm import ARM
from hybridmap.backbones.hybrid import HybridNet
from hybridmap.objectives.arm import ARMDecoder, ClusterAR
from hybridmap.objectives.decoder import MAPDecoder
from hybridmap.objectives.map import MAP
from hybridmap.report.canvas import HIDDEN
from hybridmap.report.pictures import COLUMNS, Predicts, drawn, reconstructions, save, sheet
from hybridmap.tokens.masking import Random
from hybridmap.tokens.regions import Clusters

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.3, 0.25)
TINT = torch.tensor(HIDDEN)[:, None, None] / 255


def small_map(scan: str = "row", size: tuple[int, int] = (16, 24), **changes: Any) -> MAP:
    backbone = HybridNet.Config(layout="MT", embed_dim=16, num_heads=2, img_size=size, patch_size=4, scan=scan)
    decoder = MAPDecoder.Config(width=16, depth=1, num_heads=2)
    return MAP.Config(**({"masking": Random.Config(ratio=0.5)} | changes), backbone=backbone, decoder=decoder).build().eval()


def small_clusters() -> ClusterAR:
    backbone = ARM.Config(
        img_size=16, patch_size=4, embed_dim=16, depth=2, directions=1, scan="cluster(2)", cls_token=False, positions="sincos"
    )
    decoder = ARMDecoder.Config(width=16, depth=2, num_heads=2)
    return ClusterAR.Config(backbone=backbone, regions=Clusters.Config(size=2), decoder=decoder).build().eval()


def normalised(original: Tensor) -> Tensor:
    mean, std = (torch.tensor(values)[:, None, None] for values in (MEAN, STD))
    return (original - mean) / std


def pixels(flags: Tensor, source: Tensor, grid: tuple[int, int]) -> Tensor:
    """Flags by position in the scan -> one per pixel of the three channels, patches of 4 pixels."""
    raster = torch.zeros_like(flags).scatter(1, source, flags).view(-1, 1, *grid)
    return raster.repeat_interleave(4, 2).repeat_interleave(4, 3).expand(-1, 3, -1, -1)


@pytest.mark.parametrize("scan", ["row", "column"])
def test_the_four_columns_agree_with_the_mask(scan: str) -> None:
    objective = small_map(scan)
    original = torch.rand(3, 3, 16, 24) * 0.9 + 0.05
    images = normalised(original)
    columns = reconstructions(objective, images, MEAN, STD, seed=5)
    assert columns.shape == (3, len(COLUMNS), 3, 16, 24)
    shown, seen, predicted, pasted = columns.unbind(1)
    torch.testing.assert_close(shown, original, atol=1e-5, rtol=0)

    patches, mask = drawn(objective, images, 5)
    hidden = pixels(mask.masked, patches.source, (4, 6))
    assert hidden.float().mean() == 0.5
    torch.testing.assert_close(seen, torch.where(hidden, TINT, original), atol=1e-5, rtol=0)
    assert torch.equal(predicted[~hidden], TINT.expand_as(predicted)[~hidden])
    torch.testing.assert_close(pasted, torch.where(hidden, predicted, original), atol=1e-5, rtol=0)
    assert (predicted[hidden] != TINT.expand_as(predicted)[hidden]).all()


@pytest.mark.parametrize("build", [small_map, small_clusters])
def test_predictions_are_brought_back_to_pixels(build: Any) -> None:
    """A decoder that predicts the target exactly must reproduce what it is asked for."""
    objective = build()
    images = torch.randn(2, 3, *objective.config.backbone.img_size if build is small_map else (16, 16)) * 0.5
    objective.predict = lambda patches, mask: objective.target.values(patches)  # type: ignore[method-assign]
    shown, _, predicted, pasted = reconstructions(objective, images, MEAN, STD).unbind(1)
    asked_for = (predicted != TINT).any(1, keepdim=True).expand_as(predicted)
    torch.testing.assert_close(predicted[asked_for], shown[asked_for], atol=1e-3, rtol=0)
    torch.testing.assert_close(pasted, shown, atol=1e-3, rtol=0)


def test_clusters_are_predicted_but_for_the_first_and_seen_but_for_the_last() -> None:
    objective = small_clusters()
    original = torch.rand(2, 3, 16, 16) * 0.9 + 0.05
    _, seen, predicted, pasted = reconstructions(objective, normalised(original), MEAN, STD).unbind(1)
    corner, end = (slice(0, 8), slice(0, 8)), (slice(8, 16), slice(8, 16))
    tinted = [(column == TINT).all(1) for column in (seen, predicted)]
    for flags, (rows, columns) in zip(tinted, (end, corner), strict=True):
        assert flags[:, rows, columns].all()
        assert flags.sum() == 2 * 64
    torch.testing.assert_close(pasted[:, :, :8, :8], original[:, :, :8, :8], atol=1e-5, rtol=0)
    assert torch.equal(pasted[:, :, 8:], predicted[:, :, 8:])


def test_with_a_loss_on_all_patches_all_are_predicted() -> None:
    objective = small_map(loss_on="all", masking=Random.Config(ratio=0.0))
    _, seen, predicted, pasted = reconstructions(objective, torch.randn(2, 3, 16, 24), MEAN, STD).unbind(1)
    assert not (seen == TINT).all(1).any()
    assert torch.equal(predicted, pasted)


def test_grey_images_are_shown_with_tinted_patches() -> None:
    backbone = HybridNet.Config(layout="M", embed_dim=16, img_size=16, patch_size=4, in_chans=1)
    objective = MAP.Config(backbone=backbone, decoder=MAPDecoder.Config(width=16, depth=1, num_heads=2)).build().eval()
    columns = reconstructions(objective, torch.randn(2, 1, 16, 16), (0.5,), (1.0,))
    assert columns.shape == (2, 4, 3, 16, 16)
    assert (columns[:, 1] == TINT).all(1).sum() == 2 * 8 * 16
    assert torch.equal(columns[:, 0, 0], columns[:, 0, 2])


def test_masks_follow_from_the_seed() -> None:
    objective, images = small_map(), torch.randn(2, 3, 16, 24)
    first, again, other = (reconstructions(objective, images, MEAN, STD, seed=seed)[:, 1] for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_who_predicts_patches_can_be_told() -> None:
    assert isinstance(small_map(), Predicts)
    assert isinstance(small_clusters(), Predicts)
    assert not isinstance(small_map().backbone, Predicts)


def test_a_sheet_has_a_row_per_image_and_a_title_per_column() -> None:
    columns = torch.rand(2, 4, 3, 16, 24)
    picture = sheet(columns, min_size=32)
    assert picture.size == (4 * (48 + 6) + 6, 2 * (32 + 6) + 6 + 17)
    for k in (0, 3):
        corner = (6 + k * 54 + 1, 6 + 17 + 1)
        assert picture.getpixel(corner) == tuple((columns[0, k, :, 0, 0] * 255).round().int().tolist())


def test_pictures_are_saved_whole(tmp_path: Path) -> None:
    picture = Image.new("RGB", (4, 4), (1, 2, 3))
    path = save(picture, tmp_path / "deep" / "a.png")
    assert Image.open(path).getpixel((0, 0)) == (1, 2, 3)
    assert list(path.parent.iterdir()) == [path]
