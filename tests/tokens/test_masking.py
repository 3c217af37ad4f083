from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from hybridmap.errors import UserError
from hybridmap.hashing import hash_ints
from hybridmap.tokens.images import partition
from hybridmap.tokens.masking import Diagonal, Masking, Random, Sequential, truncated_normal
from hybridmap.tokens.regions import Clusters, Columns, Regions, Rows, Single, Whole
from hybridmap.types import Mask, Patches

TABLES = Path(__file__).parents[1] / "parity" / "fixtures" / "tables-a.safetensors"
STRATEGIES = [Random.Config, Sequential.Config, Diagonal.Config]
GRIDS = [(1, 7), (7, 1), (3, 5), (4, 4), (14, 14)]


def keys(batch: int, seed: int = 0) -> torch.Tensor:
    return torch.tensor([hash_ints(seed, i) for i in range(batch)])


def patches_of(grid: tuple[int, int], scan: str = "row", batch: int = 2) -> Patches:
    return partition(torch.zeros(batch, 1, *grid), 1, scan)


def draw(
    config: Masking.Config,
    grid: tuple[int, int],
    *,
    regions: Regions.Config | None = None,
    scan: str = "row",
    batch: int = 2,
    seed: int = 0,
    step_key: int = 0,
) -> Mask:
    patches = patches_of(grid, scan, batch)
    partitioned = (regions or Rows.Config()).build()
    ranks, sizes = partitioned(patches, None), partitioned.sizes(patches)
    return config.build()(patches, ranks, sizes, keys(batch, seed), step_key)


def picture(mask: Mask, grid: tuple[int, int]) -> list[str]:
    return ["".join(".#"[int(hidden)] for hidden in row) for row in mask.masked[0].view(grid).tolist()]


@pytest.mark.parametrize("ratio", [0.01, 0.25, 0.43, 0.5, 0.75, 0.99])
@pytest.mark.parametrize("grid", GRIDS, ids=str)
@pytest.mark.parametrize("strategy", STRATEGIES, ids=lambda config: config.__qualname__)
def test_the_masked_are_ceil_of_the_ratio_in_every_sample_and_the_visible_ascend(
    strategy: type[Masking.Config], grid: tuple[int, int], ratio: float
) -> None:
    mask = draw(strategy(ratio=ratio), grid, batch=3)
    patch_count = grid[0] * grid[1]
    expected = min(math.ceil(patch_count * ratio), patch_count - 1)
    assert mask.masked.sum(1).tolist() == [expected] * 3
    assert mask.visible.shape == (3, patch_count - expected)
    assert bool((mask.visible.diff(dim=1) > 0).all())
    assert torch.equal(mask.visible, Mask.from_masked(mask.masked).visible)


def test_counts_are_those_of_the_released_codes() -> None:
    def masked(config: Masking.Config, size: int) -> int:
        return size - config.build().kept((size,))[0]

    assert masked(Random.Config(ratio=0.5), 196) == 98
    assert masked(Random.Config(ratio=0.75, rounding="keep_floor"), 196) == 147
    for size in (4, 25, 49, 144, 196, 255, 256, 576):
        for percent in range(1, 100):
            ratio = percent / 100
            assert masked(Random.Config(ratio=ratio), size) == min(math.ceil(size * ratio), size - 1)
            keep = min(max(int(size * (1 - ratio)), 1), size - 1)
            assert masked(Random.Config(ratio=ratio, rounding="keep_floor"), size) == size - keep


@settings(max_examples=80, deadline=None)
@given(
    rows=st.integers(1, 6),
    columns=st.integers(1, 6),
    ratio=st.floats(0.001, 0.999),
    rounding=st.sampled_from(["ceil", "keep_floor"]),
    strategy=st.sampled_from(STRATEGIES),
    seed=st.integers(0, 2**40),
)
def test_at_least_one_patch_is_visible_and_one_masked(
    rows: int, columns: int, ratio: float, rounding: str, strategy: type[Masking.Config], seed: int
) -> None:
    config = strategy(ratio=ratio, rounding=rounding)  # pyright: ignore[reportArgumentType]
    if rows * columns == 1:
        with pytest.raises(UserError, match="one patch must be masked and another visible, but the input has 1"):
            draw(config, (rows, columns), seed=seed)
        return
    mask = draw(config, (rows, columns), seed=seed)
    assert 0 < int(mask.masked[0].sum()) < rows * columns


@settings(max_examples=60, deadline=None)
@given(
    grid=st.tuples(st.integers(2, 6), st.integers(2, 6)),
    ratio=st.floats(0.05, 0.95),
    regions=st.sampled_from([Rows.Config(), Columns.Config(reverse=True), Clusters.Config(size=2), Whole.Config()]),
    scan=st.sampled_from(["row", "column"]),
    strategy=st.sampled_from(STRATEGIES),
    seed=st.integers(0, 2**40),
)
def test_in_region_scope_each_region_masks_ceil_of_its_own_share(
    grid: tuple[int, int], ratio: float, regions: Regions.Config, scan: str, strategy: type[Masking.Config], seed: int
) -> None:
    config = strategy(ratio=ratio, scope="region")
    ranks = regions.build()(patches_of(grid, scan), None)
    sizes = regions.build().sizes(patches_of(grid, scan))
    counts = [math.ceil(size * ratio) for size in sizes]
    if sum(counts) == sum(sizes) and len(sizes) > 1:
        with pytest.raises(UserError, match=r"would leave 0 of \d+ patches visible"):
            draw(config, grid, regions=regions, scan=scan, seed=seed)
        return
    mask = draw(config, grid, regions=regions, scan=scan, seed=seed)
    if len(sizes) > 1:
        for sample in range(2):
            found = [int(mask.masked[sample][ranks[sample] == rank].sum()) for rank in range(len(sizes))]
            assert found == counts
    assert bool((mask.visible.diff(dim=1) > 0).all())


def test_half_of_every_row_is_seven_of_fourteen() -> None:
    mask = draw(Random.Config(scope="region"), (14, 14))
    assert (mask.masked.view(2, 14, 14).sum(2) == 7).all()


def test_sequential_masks_the_last_of_the_order_of_prediction() -> None:
    assert picture(draw(Sequential.Config(), (4, 4)), (4, 4)) == ["....", "....", "####", "####"]
    columns = draw(Sequential.Config(count=5), (3, 4), regions=Columns.Config())
    assert picture(columns, (3, 4)) == ["...#", "..##", "..##"]
    upwards = draw(Sequential.Config(count=4), (2, 4), regions=Rows.Config(reverse=True))
    assert picture(upwards, (2, 4)) == ["####", "...."]
    within = draw(Sequential.Config(scope="region"), (4, 4))
    assert picture(within, (4, 4)) == ["..##"] * 4


def test_diagonal_masks_one_side() -> None:
    assert picture(draw(Diagonal.Config(), (4, 4)), (4, 4)) == ["....", "...#", ".###", "####"]
    assert picture(draw(Diagonal.Config(kind="main", count=6), (4, 4)), (4, 4)) == [".###", "..##", "...#", "...."]
    assert picture(draw(Diagonal.Config(kind="main", count=6), (3, 5)), (3, 5)) == [".####", "...##", "....."]
    assert picture(draw(Diagonal.Config(kind="main", count=2), (1, 5)), (1, 5)) == ["...##"]


def test_diagonal_is_the_same_region_of_the_image_under_either_scan() -> None:
    by_row, by_column = (draw(Diagonal.Config(count=4), (3, 5), scan=scan) for scan in ("row", "column"))
    source = patches_of((3, 5), "column").source
    assert torch.equal(by_row.masked.gather(1, source), by_column.masked)


def test_a_mask_depends_on_the_key_of_its_sample_alone() -> None:
    together = draw(Random.Config(), (14, 14), batch=8)
    patches = patches_of((14, 14), batch=1)
    for i in range(8):
        ranks = Rows.Config().build()(patches, None)
        alone = Random.Config().build()(patches, ranks, (14,) * 14, keys(8)[i : i + 1], 99)
        assert torch.equal(alone.masked[0], together.masked[i])
    assert len({tuple(row) for row in together.visible.tolist()}) == 8
    assert not torch.equal(together.masked, draw(Random.Config(), (14, 14), batch=8, seed=1).masked)


def test_random_masks_each_patch_equally_often() -> None:
    mask = draw(Random.Config(ratio=0.25), (4, 4), batch=4000)
    frequency = mask.masked.float().mean(0)
    assert bool(((frequency - 0.25).abs() < 5 * (0.25 * 0.75 / 4000) ** 0.5).all())


def test_random_masks_any_two_patches_together_as_often_as_chance() -> None:
    masked = draw(Random.Config(ratio=0.5), (4, 4), batch=4000).masked.float()
    together = masked.T @ masked / 4000
    expected = 8 / 16 * 7 / 15
    off_diagonal = together[~torch.eye(16, dtype=torch.bool)]
    assert bool(((off_diagonal - expected).abs() < 5.5 * (expected * (1 - expected) / 4000) ** 0.5).all())


@pytest.mark.parametrize("scope", ["image", "region"])
@pytest.mark.parametrize("strategy", STRATEGIES, ids=lambda config: config.__qualname__)
def test_a_mask_is_drawn_without_looking_at_any_value_of_the_device(strategy: type[Masking.Config], scope: str) -> None:
    patches = partition(torch.zeros(3, 3, 32, 48, device="meta"), 8)  # reading a value of this device is an error
    regions = Rows.Config().build()
    key = torch.zeros(3, dtype=torch.int64, device="meta")
    config = strategy(ratio_range=(0.3, 0.7), scope=scope)  # pyright: ignore[reportArgumentType]
    mask = config.build()(patches, regions(patches, None), regions.sizes(patches), key, 5)
    assert mask.masked.shape == (3, 24)


@pytest.mark.gpu
@pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype")
@pytest.mark.parametrize("scope", ["image", "region"])
@pytest.mark.parametrize("strategy", STRATEGIES, ids=lambda config: config.__qualname__)
def test_a_mask_on_the_gpu_is_that_of_the_cpu_and_does_not_wait_for_it(strategy: type[Masking.Config], scope: str) -> None:
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    config = strategy(ratio_range=(0.3, 0.7), scope=scope)  # pyright: ignore[reportArgumentType]
    images = torch.zeros(4, 3, 32, 48, device="cuda")
    key, regions, masking = keys(4).cuda(), Rows.Config().build(), config.build()
    try:
        torch.cuda.set_sync_debug_mode("error")
        patches = partition(images, 8)
        mask = masking(patches, regions(patches, None), regions.sizes(patches), key, 5)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    expected = draw(config, (4, 6), batch=4, step_key=5)
    assert torch.equal(mask.masked.cpu(), expected.masked)
    assert torch.equal(mask.visible.cpu(), expected.visible)


def test_the_quantiles_of_the_truncated_normal_are_those_of_the_released_code() -> None:
    tables = load_file(TABLES)
    for quantile, expected in zip(tables["input.quantiles"].tolist(), tables["output.mask_ratio"].tolist(), strict=True):
        assert truncated_normal(quantile, 0.5, 0.25, 0.3, 0.7) == pytest.approx(expected, abs=1e-12)


def test_ratios_drawn_per_step_have_the_moments_of_the_truncated_normal() -> None:
    masking = Random.Config(ratio_range=(0.3, 0.7)).build()
    ratios = torch.tensor([masking.draw_ratio(hash_ints(7, step)) for step in range(100_000)], dtype=torch.float64)
    assert ratios.min() >= 0.3
    assert ratios.max() <= 0.7
    assert abs(ratios.mean() - 0.5) < 0.005
    assert abs(ratios.std() - 0.1106) < 0.005
    counts = {196 - masking.kept((196,), hash_ints(7, step))[0] for step in range(20_000)}
    assert counts == set(range(59, 139))


def test_one_ratio_is_drawn_per_step_whatever_the_samples() -> None:
    config = Random.Config(ratio_range=(0.3, 0.7))
    first, second = (draw(config, (14, 14), batch=batch, seed=batch, step_key=3) for batch in (2, 5))
    assert first.visible.shape[1] == second.visible.shape[1]
    assert len({draw(config, (14, 14), step_key=step).visible.shape[1] for step in range(20)}) > 5


def test_ratio_zero_hides_nothing() -> None:
    for config in (Random.Config(ratio=0.0), Random.Config(count=0), Random.Config(ratio=0.0, scope="region")):
        mask = draw(config, (3, 5))
        assert not mask.masked.any()
        assert mask.visible.tolist() == [list(range(15))] * 2
    assert draw(Random.Config(ratio=0.0), (1, 1)).visible.tolist() == [[0], [0]]


@pytest.mark.parametrize("ratio", [-0.1, 1.0, 1.5, math.nan, math.inf])
def test_ratios_outside_zero_to_one_are_refused(ratio: float) -> None:
    with pytest.raises(UserError, match=r"mask ratio must lie in \[0, 1\), got"):
        Random.Config(ratio=ratio).build()


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (Random.Config(ratio_range=(0.7, 0.3)), "ratio_range must lie inside"),
        (Random.Config(ratio_range=(0.6, 0.9)), "around the ratio 0.5"),
        (Random.Config(ratio_range=(0.3, 1.0)), "ratio_range must lie inside"),
        (Random.Config(ratio_range=(0.3, 0.7), ratio_std=0.0), "ratio_std must be positive"),
        (Random.Config(count=-1), "cannot be negative, got -1"),
    ],
)
def test_impossible_amounts_are_refused(config: Masking.Config, message: str) -> None:
    with pytest.raises(UserError, match=message):
        config.build()


@pytest.mark.parametrize(
    ("config", "field"),
    [(Random.Config(), "scope"), (Sequential.Config(), "rounding"), (Diagonal.Config(), "kind")],
    ids=lambda value: str(value),
)
def test_unknown_words_are_refused(config: Masking.Config, field: str) -> None:
    object.__setattr__(config, field, "other")  # past the type checks of the tests, which users do not have
    with pytest.raises(UserError, match=r"must be .* or .*, got 'other'"):
        config.build()


@pytest.mark.parametrize("count", [16, 17, 1000])
def test_a_count_that_leaves_nothing_visible_is_refused(count: int) -> None:
    with pytest.raises(UserError, match=f"count={count} patches cannot be masked where there are only 16 patches"):
        draw(Random.Config(count=count), (4, 4))


def test_a_count_per_region_must_fit_the_smallest_region() -> None:
    with pytest.raises(UserError, match="only 1 patches in the smallest region"):
        draw(Random.Config(count=2, scope="region"), (3, 5), regions=Clusters.Config(size=2))
    mask = draw(Random.Config(count=2, scope="region"), (3, 5))
    assert mask.masked.view(2, 3, 5).sum(2).tolist() == [[2, 2, 2]] * 2


def test_masking_inside_single_patches_is_refused() -> None:
    with pytest.raises(UserError, match=r"leave 0 of 16 patches visible; use larger regions or scope \"image\""):
        draw(Random.Config(scope="region"), (4, 4), regions=Single.Config())


def test_a_diagonal_needs_an_image() -> None:
    cloud = Patches(content=torch.zeros(1, 63, 4), coords=torch.zeros(1, 63, 3), source=torch.arange(63)[None])
    with pytest.raises(UserError, match=r"Diagonal\(\) needs an image"):
        Diagonal.Config().build()(cloud, torch.zeros(1, 63, dtype=torch.int64), (63,), torch.zeros(1, dtype=torch.int64))


def test_a_strategy_of_ones_own_needs_scores_only() -> None:
    class Border(Masking):
        """Hide the left-most patches."""

        def scores(self, patches: Patches, ranks: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
            return -patches.coords[..., 1]

    patches, regions = patches_of((2, 4)), Rows.Config().build()
    mask = Border(Random.Config())(patches, regions(patches, None), regions.sizes(patches), keys(2))
    assert picture(mask, (2, 4)) == ["##..", "##.."]
