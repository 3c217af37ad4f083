"""Masks, regions, permissions and scans are drawn where they belong, and none is forgotten."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from PIL import Image, ImageChops

from hybridmap.backbones.arm import ARM
from hybridmap.backbones.hybrid import HybridNet
from hybridmap.objectives.arm import ARMDecoder, ClusterAR
from hybridmap.objectives.decoder import MAPDecoder
from hybridmap.objectives.map import MAP
from hybridmap.report.canvas import HIDDEN, INK, PAPER, QUIET, along, box_of
from hybridmap.report.choices import (
    MASKINGS,
    REGIONS,
    RELATIONS,
    SCANS,
    all_choices,
    decoder_masks,
    masked_picture,
    own_choices,
    permission_picture,
    reach_picture,
    region_picture,
    relation,
    scan_picture,
)
from hybridmap.report.pictures import drawn
from hybridmap.tokens.masking import Masking
from hybridmap.tokens.regions import Clusters, Columns, Given, Regions, Rows, Runs, VisibleFirst
from hybridmap.tokens.scan import order

PHOTO = Image.new("RGB", (60, 40), (200, 120, 40))
GRID = (4, 6)


def middle(position: int, picture: Image.Image, grid: tuple[int, int] = GRID) -> Any:
    left, top, right, bottom = box_of(divmod(position, grid[1]), grid, picture.size)
    return picture.getpixel(((left + right) // 2, (top + bottom) // 2))


def corner(position: int, picture: Image.Image, grid: tuple[int, int] = GRID) -> Any:
    left, top, *_ = box_of(divmod(position, grid[1]), grid, picture.size)
    return picture.getpixel((left + 2, top + 2))


def subclasses(cls: type) -> Iterator[type]:
    for child in cls.__subclasses__():
        if child.__module__.startswith("hybridmap."):
            yield child
            yield from subclasses(child)


def test_exactly_the_masked_patches_are_covered() -> None:
    masked = torch.rand(24) < 0.5
    over, matrix = masked_picture(masked, GRID, PHOTO), masked_picture(masked, GRID, side=60)
    assert over.size == PHOTO.size
    for position, hidden in enumerate(masked.tolist()):
        for place in (middle, corner):
            assert place(position, over) == (HIDDEN if hidden else (200, 120, 40))
            assert place(position, matrix) == (QUIET if hidden else PAPER)
    assert PHOTO.getpixel((0, 0)) == (200, 120, 40)


def test_patches_have_the_colour_of_their_rank_dark_first() -> None:
    ranks = torch.tensor([5, 5, 9, 7]).repeat_interleave(6)  # gaps do not count
    matrix = region_picture(ranks, GRID, side=240)
    for position in range(24):
        assert corner(position, matrix) == along((0, 0, 2, 1)[position // 6] / 2)
    lightness = [sum(along(place / 2)) for place in range(3)]
    assert lightness == sorted(lightness)
    hatched = region_picture(ranks, GRID, PHOTO, torch.arange(24) == 8)
    plain = region_picture(ranks, GRID, PHOTO)
    different = ImageChops.difference(hatched, plain).getbbox()
    left, top, right, bottom = box_of((1, 2), GRID, PHOTO.size)
    assert different is not None
    assert (left, top) <= different[:2]
    assert different[2:] <= (right + 1, bottom + 1)


def test_a_permission_picture_shows_exactly_what_is_allowed() -> None:
    allowed = torch.rand(5, 5) < 0.5
    ranks = torch.tensor([0, 0, 1, 2, 2])
    picture = permission_picture(allowed, ranks, side=50)
    assert picture.size == (50, 50)
    for i in range(5):
        for j in range(5):
            expected = along(int(ranks[j]) / 2) if allowed[i, j] else (238, 238, 238)
            assert picture.getpixel((10 * j + 5, 10 * i + 5)) == expected
    assert permission_picture(torch.ones(100, 100, dtype=torch.bool), torch.zeros(100, dtype=torch.int64), 40).size == (40, 40)


def test_the_reach_of_a_patch_is_what_it_may_look_at() -> None:
    allowed = torch.arange(24) <= 13
    picture = reach_picture(allowed, 13, GRID, PHOTO)
    for position in range(24):
        assert (middle(position, picture) == (200, 120, 40)) == (position <= 13)
    left, top, right, bottom = box_of((2, 1), GRID, PHOTO.size)
    assert picture.getpixel((left, top)) == picture.getpixel((right, bottom)) == (0, 230, 255)


def test_a_scan_is_a_line_from_dark_to_light_through_all_patches() -> None:
    sequence = order("column", GRID)
    picture = scan_picture(sequence, GRID, PHOTO)
    for place, position in enumerate(sequence.tolist()):
        assert middle(position, picture) == along(place / 23)
    with_prefix = scan_picture(torch.tensor([0, 1, -1, 2, 3]), (2, 2), side=80)
    assert with_prefix.size == (80, 80)
    assert any(colour == (220, 20, 60) for _, colour in with_prefix.getcolors(6400))  # type: ignore[union-attr]


def test_no_masking_and_no_partition_is_forgotten() -> None:
    shown: set[type] = {type(masking).owner for masking, _ in MASKINGS.values()}
    assert {cls for cls in subclasses(Masking) if not getattr(cls, "__abstractmethods__", ())} <= shown | {Masking}
    parted: set[type] = {type(regions).owner for regions in REGIONS.values()}
    concrete = {cls for cls in subclasses(Regions) if not cls.__subclasses__()}
    assert concrete - {Given, Runs, VisibleFirst} <= parted  # the last two are for clouds, which are not drawn


def test_the_relations_are_those_of_the_paper_and_the_strict_one() -> None:
    ranks = torch.arange(4).repeat_interleave(4)
    share = {title.split("\n")[0]: float(how(ranks).float().mean()) for title, how in RELATIONS.items()}
    assert share == {"mae": 1.0, "local_mae": 1 / 4, "map": 10 / 16, "ar": 136 / 256, "strict": 6 / 16}
    assert not RELATIONS["strict\nearlier regions alone"](ranks)[:4].any()


def test_all_choices_fit_beside_one_another() -> None:
    found = all_choices(PHOTO, GRID)
    assert set(found) == {"all_masks", "all_regions", "all_decoder_masks", "all_scans"}
    assert all(picture.width <= 930 for picture in found.values())
    assert len(SCANS) == 4


def test_the_four_relations_differ_as_the_paper_says() -> None:
    masks = {title: mask for title, (_, mask) in decoder_masks((4, 4), side=160).items()}
    background = (238, 238, 238)
    share = {
        title.split(":")[0]: sum(p != background for p in picture.get_flattened_data()) for title, picture in masks.items()
    }
    assert share == {"MAE": 25600, "local MAE": 6400, "MAP": 16000, "AR": 13600}


def hybrid(**changes: Any) -> MAP:
    backbone = HybridNet.Config(layout="MT", embed_dim=16, num_heads=2, img_size=(16, 24), patch_size=4, scan="column")
    return MAP.Config(backbone=backbone, decoder=MAPDecoder.Config(width=16, depth=1, num_heads=2), **changes).build().eval()


def clusters() -> ClusterAR:
    backbone = ARM.Config(
        img_size=(16, 24),
        patch_size=4,
        embed_dim=16,
        depth=2,
        directions=1,
        scan="cluster(2)",
        cls_token=False,
        positions="sincos",
    )
    decoder = ARMDecoder.Config(width=16, depth=2, num_heads=2)
    return ClusterAR.Config(backbone=backbone, regions=Clusters.Config(size=2), decoder=decoder).build().eval()


@pytest.mark.parametrize("kind", ["ar", "mae", "local_mae", "map"])
def test_the_relation_of_a_run_is_what_its_decoder_is_given(kind: str) -> None:
    objective = hybrid(decoder_mask=kind, regions=Columns.Config())
    patches, mask = drawn(objective, torch.randn(1, 3, 16, 24))
    found, columns = relation(objective, patches, mask), patches.source[0] % 6
    expected = {
        "mae": torch.ones(24, 24, dtype=torch.bool),
        "local_mae": columns[None] == columns[:, None],
        "map": columns[None] <= columns[:, None],
        "ar": torch.ones(24, 24, dtype=torch.bool).tril(),  # scanned by columns, as predicted
    }
    assert torch.equal(found, expected[kind])


def test_the_relation_of_clusters_is_strict_and_leaves_the_first_and_the_last_out() -> None:
    objective = clusters()
    patches, mask = drawn(objective, torch.randn(1, 3, 16, 24))
    found, ranks = relation(objective, patches, mask), objective.regions(patches, mask)[0]
    assert torch.equal(found, ranks[None] < ranks[:, None])
    assert not found[:4].any()
    assert not found[:, -4:].any()


@pytest.mark.parametrize("build", [hybrid, clusters])
def test_the_choices_of_a_run_stand_beside_one_another(build: Any) -> None:
    picture = own_choices(build(regions=Rows.Config()) if build is hybrid else build(), torch.randn(1, 3, 16, 24), PHOTO)
    assert picture.width == 5 * (176 + 6) + 6
    assert any(colour == INK for _, colour in picture.getcolors(1 << 20))  # type: ignore[union-attr]
