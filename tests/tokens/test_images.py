from __future__ import annotations

import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hybridmap.errors import UserError
from hybridmap.tokens.images import assemble, partition
from hybridmap.tokens.regions import Clusters
from hybridmap.tokens.scan import down_columns, order
from hybridmap.tokens.select import take


@settings(max_examples=30, deadline=None)
@given(
    batch=st.integers(1, 3),
    channels=st.integers(1, 4),
    rows=st.integers(1, 5),
    columns=st.integers(1, 5),
    patch=st.integers(1, 4),
    scan=st.sampled_from(["row", "column", "cluster(1)", "cluster(2)", "cluster(3)", "cluster(2, column)"]),
)
def test_assembling_undoes_partitioning(batch: int, channels: int, rows: int, columns: int, patch: int, scan: str) -> None:
    images = (
        torch.arange(batch * channels * rows * columns * patch**2).float().view(batch, channels, rows * patch, columns * patch)
    )
    patches = partition(images, patch, scan)
    assert patches.grid == (rows, columns)
    assert patches.content.shape == (batch, rows * columns, patch * patch * channels)
    assert torch.equal(assemble(patches.content, patches.source, patches.grid, patch, channels), images)


def test_the_channel_is_fastest_inside_a_patch() -> None:
    images = torch.randn(1, 3, 4, 6)
    patches = partition(images, 2)
    for row in range(2):
        for column in range(3):
            for i in range(2):
                for j in range(2):
                    for channel in range(3):
                        value = patches.content[0, row * 3 + column, (i * 2 + j) * 3 + channel]
                        assert value == images[0, channel, row * 2 + i, column * 2 + j]


@pytest.mark.parametrize("scan", ["row", "column", "cluster(2)"])
def test_source_and_coords_say_where_each_patch_came_from(scan: str) -> None:
    raster = torch.arange(6.0).view(1, 1, 2, 3)
    patches = partition(raster, 1, scan)
    assert torch.equal(patches.content[0, :, 0], patches.source[0].float())
    assert torch.equal(patches.coords[0, :, 0] * 3 + patches.coords[0, :, 1], patches.source[0].float())


def test_column_scan_runs_down_the_columns() -> None:
    assert order("column", (2, 3)).tolist() == [0, 3, 1, 4, 2, 5]
    assert partition(torch.zeros(2, 3, 4, 6), 2, "column").source.tolist() == [[0, 3, 1, 4, 2, 5]] * 2


def test_cluster_scan_runs_through_squares_row_by_row() -> None:
    assert order("cluster(2)", (2, 4)).tolist() == [0, 1, 4, 5, 2, 3, 6, 7]
    assert order("cluster(2)", (3, 3)).tolist() == [0, 1, 3, 4, 2, 5, 6, 7, 8]
    assert torch.equal(order("cluster(1)", (3, 5)), order("row", (3, 5)))
    assert torch.equal(order("cluster(9)", (3, 5)), order("row", (3, 5)))


def test_cluster_scan_may_run_through_the_squares_column_by_column() -> None:
    assert order("cluster(2, column)", (4, 4)).tolist() == [0, 1, 4, 5, 8, 9, 12, 13, 2, 3, 6, 7, 10, 11, 14, 15]
    assert torch.equal(order("cluster(2,column)", (3, 5)), order("cluster(2, column)", (3, 5)))
    assert torch.equal(order("cluster(1, column)", (3, 5)), order("column", (3, 5)))


@pytest.mark.parametrize("grid", [(12, 12), (4, 6), (5, 7), (1, 3)])
def test_cluster_scan_and_cluster_regions_agree(grid: tuple[int, int]) -> None:
    for scan, regions in (
        ("cluster(4)", Clusters.Config(size=4)),
        ("cluster(4, column)", Clusters.Config(size=4, order="column")),
    ):
        ranks = regions.build().raster_ranks(grid)[order(scan, grid)]
        assert torch.equal(ranks, ranks.sort().values)


def test_the_walk_down_the_columns_is_found_from_the_places_of_the_patches() -> None:
    for scan in ("row", "column", "cluster(2)"):
        patches = partition(torch.randn(2, 1, 3, 4), 1, scan)
        walk = down_columns(patches.coords, 3)
        assert walk.shape == (1, 12)
        assert torch.equal(patches.source[0, walk[0]], order("column", (3, 4)))
    kept = torch.tensor([[0, 1, 3, 4, 7], [2, 5, 6, 8, 11]])
    walk = down_columns(take(partition(torch.randn(2, 1, 3, 4), 1).coords, kept), 3)
    assert take(kept, walk).tolist() == [[0, 4, 1, 3, 7], [8, 5, 2, 6, 11]]


def test_images_that_are_not_contiguous_are_cut_alike() -> None:
    images = torch.randn(2, 3, 8, 8).contiguous(memory_format=torch.channels_last)
    assert torch.equal(partition(images, 4).content, partition(images.contiguous(), 4).content)


@pytest.mark.parametrize(("height", "width"), [(30, 32), (32, 30), (8, 16), (0, 16)])
def test_a_size_that_is_no_multiple_of_the_patch_is_named(height: int, width: int) -> None:
    with pytest.raises(UserError, match=rf"multiples of the patch size 16, got {height} x {width}; try \d+ x \d+"):
        partition(torch.zeros(1, 3, height, width), 16)


@pytest.mark.parametrize("scan", ["snake", "cluster", "cluster(0)", "cluster(2x2)"])
def test_an_unknown_scan_is_named(scan: str) -> None:
    with pytest.raises(UserError, match=rf"cluster\(k\), .*row or column, got '{re.escape(scan)}'"):
        partition(torch.zeros(1, 3, 16, 16), 16, scan)


@pytest.mark.parametrize("scan", ["row", "column"])
def test_overlapping_patches_are_the_windows_of_the_image(scan):
    images = torch.randn(2, 3, 12, 20)
    patches = partition(images, 8, scan, stride=4)
    assert patches.grid == (2, 4)
    for n, (row, column) in enumerate(patches.coords[0].long().tolist()):
        assert int(patches.source[0, n]) == row * 4 + column
        window = images[:, :, 4 * row : 4 * row + 8, 4 * column : 4 * column + 8]
        assert torch.equal(patches.content[:, n], window.permute(0, 2, 3, 1).flatten(1))


@pytest.mark.parametrize("stride", [0, -1])
def test_windows_must_advance(stride):
    with pytest.raises(UserError, match="above the patch size 8"):
        partition(torch.zeros(1, 3, 16, 16), 8, stride=stride)


def test_windows_must_cover_the_image():
    with pytest.raises(UserError, match="multiples of 4 above the patch size 8, got 16 x 18; try 16 x 16"):
        partition(torch.zeros(1, 3, 16, 18), 8, stride=4)
