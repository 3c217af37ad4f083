from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hybridmap.errors import UserError
from hybridmap.tokens.images import partition
from hybridmap.tokens.regions import Clusters, Columns, Given, Regions, Rows, Single, Whole, permission, prediction_order
from hybridmap.types import Patches

GRIDS = [(1, 1), (1, 7), (7, 1), (3, 5), (14, 14)]
PARTITIONS: list[Regions.Config] = [
    Rows.Config(),
    Rows.Config(reverse=True),
    Columns.Config(),
    Columns.Config(reverse=True),
    Clusters.Config(size=2),
    Clusters.Config(size=4, order="column"),
    Clusters.Config(size=(2, 3), reverse=True),
    Clusters.Config(size=100),
    Single.Config(),
    Single.Config(order="column", reverse=True),
    Whole.Config(),
]


def patches_of(grid: tuple[int, int], scan: str = "row", batch: int = 1) -> Patches:
    return partition(torch.zeros(batch, 1, *grid), 1, scan)


def ranks_of(config: Regions.Config, grid: tuple[int, int], scan: str = "row") -> Tensor:
    return config.build()(patches_of(grid, scan), None)


def rank_by_definition(config: Regions.Config, r: int, c: int, H: int, W: int) -> int:
    """g(r, c) of objectives 4.2, written as the table there."""
    match config:
        case Rows.Config(reverse=False):
            return r
        case Rows.Config(reverse=True):
            return H - 1 - r
        case Columns.Config(reverse=False):
            return c
        case Columns.Config(reverse=True):
            return W - 1 - c
        case Clusters.Config(size=size, order=order, reverse=reverse):
            kh, kw = (size, size) if isinstance(size, int) else size
            across, down = math.ceil(W / kw), math.ceil(H / kh)
            rank = (r // kh) * across + c // kw if order == "row" else (c // kw) * down + r // kh
            return across * down - 1 - rank if reverse else rank
        case Single.Config(order=order, reverse=reverse):
            rank = r * W + c if order == "row" else c * H + r
            return H * W - 1 - rank if reverse else rank
    assert isinstance(config, Whole.Config)
    return 0


@pytest.mark.parametrize("scan", ["row", "column"])
@pytest.mark.parametrize("grid", GRIDS, ids=str)
@pytest.mark.parametrize("config", PARTITIONS, ids=str)
def test_ranks_are_those_of_the_definition_wherever_a_patch_stands_in_the_scan(
    config: Regions.Config, grid: tuple[int, int], scan: str
) -> None:
    patches = patches_of(grid, scan, batch=2)
    expected = [rank_by_definition(config, s // grid[1], s % grid[1], *grid) for s in patches.source[0].tolist()]
    assert config.build()(patches, None).tolist() == [expected, expected]


@pytest.mark.parametrize("grid", GRIDS, ids=str)
@pytest.mark.parametrize("config", PARTITIONS, ids=str)
def test_sizes_count_the_patches_of_each_region_by_ascending_rank(config: Regions.Config, grid: tuple[int, int]) -> None:
    ranks = ranks_of(config, grid)[0].tolist()
    sizes = config.build().sizes(patches_of(grid))
    assert sizes == tuple(ranks.count(rank) for rank in sorted(set(ranks)))
    assert all(isinstance(size, int) for size in sizes)


def test_ragged_clusters_make_smaller_regions_at_the_border() -> None:
    assert ranks_of(Clusters.Config(size=2), (3, 5)).view(3, 5).tolist() == [[0, 0, 1, 1, 2], [0, 0, 1, 1, 2], [3, 3, 4, 4, 5]]
    assert Clusters.Config(size=2).build().sizes(patches_of((3, 5))) == (4, 4, 2, 2, 2, 1)
    by_column = ranks_of(Clusters.Config(size=2, order="column"), (3, 5)).view(3, 5).tolist()
    assert by_column == [[0, 0, 2, 2, 4], [0, 0, 2, 2, 4], [1, 1, 3, 3, 5]]


def test_the_partition_can_be_drawn_without_patches() -> None:
    assert Rows.Config(reverse=True).build().raster_ranks((2, 3)).tolist() == [1, 1, 1, 0, 0, 0]


def test_a_given_vector_is_read_in_raster_order_and_need_not_be_dense() -> None:
    regions = Given.Config(ranks=(7, 7, -3, 7, 0, 0)).build()
    assert regions(patches_of((2, 3)), None).tolist() == [[7, 7, -3, 7, 0, 0]]
    assert regions(patches_of((2, 3), "column"), None).tolist() == [[7, 7, 7, 0, -3, 0]]
    assert regions.sizes(patches_of((2, 3))) == (1, 2, 3)


def permission_by_definition(rank: Tensor, kind: str) -> Tensor:
    """A[q, k] of objectives 4.1, one entry at a time."""
    n = len(rank)
    g = rank.tolist()
    order = sorted(range(n), key=lambda t: (g[t], t))
    o = [order.index(t) for t in range(n)]
    rule = {
        "mae": lambda q, k: True,
        "local_mae": lambda q, k: g[k] == g[q],
        "map": lambda q, k: g[k] <= g[q],
        "ar": lambda q, k: o[k] <= o[q],
    }[kind]
    return torch.tensor([[rule(q, k) for k in range(n)] for q in range(n)])


@pytest.mark.parametrize("kind", ["mae", "local_mae", "map", "ar"])
@pytest.mark.parametrize("grid", [(1, 1), (1, 7), (7, 1), (3, 5), (6, 6)], ids=str)
@pytest.mark.parametrize("config", PARTITIONS, ids=str)
def test_permissions_are_those_of_the_definition(config: Regions.Config, grid: tuple[int, int], kind: str) -> None:
    ranks = ranks_of(config, grid)
    allowed = permission(ranks, kind)  # pyright: ignore[reportArgumentType]
    assert allowed.dtype == torch.bool
    assert torch.equal(allowed[0, 0], permission_by_definition(ranks[0], kind))


def test_permitted_keys_at_14_by_14_are_those_of_the_released_masks() -> None:
    ranks = ranks_of(Rows.Config(), (14, 14))
    t = torch.arange(196)
    for kind, keys in {"ar": t + 1, "mae": t * 0 + 196, "local_mae": t * 0 + 14, "map": 14 * (t // 14 + 1)}.items():
        assert torch.equal(permission(ranks, kind)[0, 0].sum(1), keys), kind  # pyright: ignore[reportArgumentType]


any_ranks = st.lists(st.integers(-3, 6), min_size=1, max_size=12)


@settings(max_examples=60, deadline=None)
@given(ranks=any_ranks)
def test_the_permissions_contain_one_another_and_themselves(ranks: list[int]) -> None:
    rank = torch.tensor([ranks])
    ar, mae, local, map_ = (permission(rank, kind) for kind in ("ar", "mae", "local_mae", "map"))
    assert bool((~local | map_).all())
    assert bool((~map_ | mae).all())
    assert bool((~ar | map_).all())
    assert all(bool(allowed.diagonal(dim1=-2, dim2=-1).all()) for allowed in (ar, mae, local, map_))


@settings(max_examples=60, deadline=None)
@given(ranks=any_ranks)
def test_the_order_of_prediction_is_by_rank_then_by_scan(ranks: list[int]) -> None:
    order = prediction_order(torch.tensor([ranks]))[0].tolist()
    assert sorted(range(len(ranks)), key=order.__getitem__) == sorted(range(len(ranks)), key=lambda t: (ranks[t], t))


@pytest.mark.parametrize("grid", GRIDS, ids=str)
@pytest.mark.parametrize("scan", ["row", "column"])
def test_one_region_is_mae_and_single_patches_are_autoregression(grid: tuple[int, int], scan: str) -> None:
    whole, single, rows = (ranks_of(config, grid, scan) for config in (Whole.Config(), Single.Config(), Rows.Config()))
    assert torch.equal(permission(whole, "map"), permission(whole, "mae"))
    assert torch.equal(permission(whole, "local_mae"), permission(whole, "mae"))
    assert torch.equal(permission(single, "map"), permission(single, "ar"))
    assert torch.equal(ranks_of(Clusters.Config(size=1), grid, scan), single)
    assert torch.equal(ranks_of(Clusters.Config(size=max(grid)), grid, scan), whole)
    if scan == "row":
        assert torch.equal(permission(single, "map"), permission(rows, "ar"))


@pytest.mark.parametrize("regions", [Rows, Columns, Clusters, Single], ids=lambda regions: regions.__name__)
def test_patches_without_a_grid_are_refused_by_name(regions: type[Regions]) -> None:
    cloud = Patches(content=torch.zeros(1, 63, 4), coords=torch.zeros(1, 63, 3), source=torch.arange(63)[None])
    with pytest.raises(UserError, match=rf"63 patches are not a grid; {regions.__name__}\(\) needs an image"):
        regions.Config().build()(cloud, None)
    assert Whole.Config().build()(cloud, None).unique().tolist() == [0]


@pytest.mark.parametrize("size", [0, -1, (2, 0)])
def test_clusters_without_extent_are_refused(size: int | tuple[int, int]) -> None:
    with pytest.raises(UserError, match="at least one row and one column"):
        Clusters.Config(size=size).build()


@pytest.mark.parametrize("config", [Clusters.Config(), Single.Config()], ids=str)
def test_an_unknown_order_is_refused(config: Regions.Config) -> None:
    object.__setattr__(config, "order", "snake")  # past the type checks of the tests, which users do not have
    with pytest.raises(UserError, match="row or column, got 'snake'"):
        config.build()


def test_a_given_vector_of_another_length_is_refused() -> None:
    regions = Given.Config(ranks=(0, 1)).build()
    for ask in (lambda: regions(patches_of((2, 3)), None), lambda: regions.sizes(patches_of((2, 3)))):
        with pytest.raises(UserError, match="have 2 ranks, but there are 6 patches"):
            ask()


@pytest.mark.parametrize("kind", ["mae", "local_mae", "map", "ar"])
def test_one_relation_serves_a_batch_that_shares_its_order(kind: str) -> None:
    shared = Rows.Config().build()(partition(torch.zeros(3, 1, 4, 6), 1))
    assert permission(shared, kind).shape == (1, 1, 24, 24)  # pyright: ignore[reportArgumentType]
    own = permission(shared.contiguous(), kind)  # pyright: ignore[reportArgumentType]
    assert torch.equal(own, permission(shared, kind).expand_as(own))  # pyright: ignore[reportArgumentType]
