"""Pictures show what the model really saw and predicted."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image

from hybridmap.backbones.hybrid import HybridNet
from hybridmap.objectives.decoder import MAPDecoder
from hybridmap.objectives.map import MAP
from hybridmap.report.pictures import (
    COLUMNS,
    decoder_masks,
    objective_pictures,
    permission_picture,
    reconstructions,
    region_picture,
    save,
    sheet,
)
from hybridmap.tokens.masking import Random
from hybridmap.types import Batch

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.3, 0.25)


def small_map(scan: str = "row", size: tuple[int, int] = (16, 24)) -> MAP:
    backbone = HybridNet.Config(layout="MT", embed_dim=16, num_heads=2, img_size=size, patch_size=4, scan=scan)
    decoder = MAPDecoder.Config(width=16, depth=1, num_heads=2)
    return MAP.Config(backbone=backbone, decoder=decoder, masking=Random.Config(ratio=0.5)).build().eval()


@pytest.mark.parametrize("scan", ["row", "column"])
def test_the_four_columns_agree_with_the_mask(scan: str) -> None:
    objective = small_map(scan)
    original = torch.rand(3, 3, 16, 24) * 0.9 + 0.05
    mean, std = (torch.tensor(values)[:, None, None] for values in (MEAN, STD))
    images = (original - mean) / std
    columns = reconstructions(objective, images, MEAN, STD, seed=5)
    assert columns.shape == (3, len(COLUMNS), 3, 16, 24)
    shown, seen, predicted, pasted = columns.unbind(1)
    torch.testing.assert_close(shown, original, atol=1e-5, rtol=0)

    patches = objective.backbone.partition(images)
    key = torch.arange(3) + 1_000_003 * 5
    mask = objective.draw(patches, Batch(inputs=images, key=key, step_key=5))
    hidden = torch.zeros(3, 24, dtype=torch.bool).scatter(1, patches.source, mask.masked)  # raster order
    hidden = hidden.view(3, 1, 4, 6).repeat_interleave(4, 2).repeat_interleave(4, 3).expand(-1, 3, -1, -1)
    assert hidden.float().mean() == 0.5
    torch.testing.assert_close(seen[~hidden], original[~hidden], atol=1e-5, rtol=0)
    torch.testing.assert_close(seen[hidden], torch.full_like(seen[hidden], 0.75), atol=1e-5, rtol=0)
    torch.testing.assert_close(pasted[~hidden], original[~hidden], atol=1e-5, rtol=0)
    torch.testing.assert_close(pasted[hidden], predicted[hidden])


def test_predictions_are_brought_back_to_pixels() -> None:
    """A decoder that predicts the target exactly must reproduce the image."""
    objective = small_map()
    images = torch.randn(2, 3, 16, 24) * 0.5

    def perfect(patches, mask):
        return objective.target.values(patches)

    objective.predict = perfect  # type: ignore[method-assign]
    shown, _, predicted, _ = reconstructions(objective, images, MEAN, STD).unbind(1)
    torch.testing.assert_close(predicted, shown, atol=1e-3, rtol=0)


def test_masks_follow_from_the_seed() -> None:
    objective, images = small_map(), torch.randn(2, 3, 16, 24)
    first, again, other = (reconstructions(objective, images, MEAN, STD, seed=seed)[:, 1] for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_a_sheet_has_a_row_per_image_and_a_title_per_column() -> None:
    columns = torch.rand(2, 4, 3, 16, 24)
    picture = sheet(columns, min_size=32)
    assert picture.size == (4 * (48 + 6) + 6, 2 * (32 + 6) + 6 + 22)
    assert picture.getpixel((6 + 1, 22 + 6 + 1)) == tuple((columns[0, 0, :, 0, 0] * 255).round().int().tolist())
    assert sheet(torch.rand(1, 4, 1, 8, 8)).size[0] == 4 * (128 + 6) + 6


def test_a_region_picture_colours_patches_by_rank() -> None:
    ranks = torch.tensor([0, 0, 1, 1])
    picture = region_picture(ranks, torch.arange(4), (2, 2))
    cell = (picture.width - 1) // 2
    colours = [picture.getpixel((x * cell + 3, y * cell + 3)) for y in (0, 1) for x in (0, 1)]
    assert colours[0] == colours[1] != colours[2] == colours[3]
    hatched = region_picture(ranks, torch.arange(4), (2, 2), torch.tensor([True, False, False, False]))
    assert hatched.tobytes() != picture.tobytes()


def test_a_permission_picture_shows_exactly_what_is_allowed() -> None:
    allowed = torch.tensor([[True, False], [True, True]])
    picture = permission_picture(allowed, torch.tensor([0, 1]))
    side = picture.width // 2
    hidden = picture.getpixel((side + 1, 1))
    assert hidden == (238, 238, 238)
    assert picture.getpixel((1, 1)) == picture.getpixel((1, side + 1)) != hidden
    assert picture.getpixel((side + 1, side + 1)) not in (hidden, picture.getpixel((1, 1)))


def test_the_pictures_of_an_objective_have_its_grid() -> None:
    pictures = objective_pictures(small_map(), torch.randn(2, 3, 16, 24))
    assert set(pictures) == {"regions", "decoder_mask"}
    assert pictures["regions"].width > pictures["regions"].height
    assert pictures["decoder_mask"].width == pictures["decoder_mask"].height


def test_the_four_relations_differ_as_the_paper_says() -> None:
    masks = {title: mask for title, (_, mask) in decoder_masks((4, 4)).items()}
    background = (238, 238, 238)
    share = {
        title.split(":")[0]: sum(p != background for p in picture.get_flattened_data()) for title, picture in masks.items()
    }
    pixels = next(iter(masks.values())).width ** 2
    assert share["MAE"] == pixels
    assert share["local MAE"] == pixels // 4
    assert share["MAP"] == pixels * 10 // 16
    assert share["AR"] == pixels * 136 // 256


def test_pictures_are_saved_whole(tmp_path: Path) -> None:
    picture = Image.new("RGB", (4, 4), (1, 2, 3))
    path = save(picture, tmp_path / "deep" / "a.png")
    assert Image.open(path).getpixel((0, 0)) == (1, 2, 3)
    assert list(path.parent.iterdir()) == [path]
