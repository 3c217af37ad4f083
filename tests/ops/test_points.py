"""Operators on point clouds: their formulas against naive loops, every implementation against the formulas to the bit, laws."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from scan_problems import DEVICES
from torch import Tensor

from hybridmap.errors import UserError
from hybridmap.ops import native, use_backend
from hybridmap.ops import points as ops
from hybridmap.ops.points import cpu, reference

BACKENDS = ["torch", "cpu"]
COMPILER = next((found for name in native.COMPILERS if (found := shutil.which(name))), None)
needs_compiler = pytest.mark.skipif(COMPILER is None, reason="no C++ compiler here")


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> Iterator[str]:
    with use_backend(request.param):
        yield request.param


def cloud(batch: int = 3, size: int = 70, *, grid: int | None = None, seed: int = 0) -> Tensor:
    """Normally distributed points, or such on a coarse grid, where many coincide and nearly all distances tie."""
    generator = torch.Generator().manual_seed(seed)
    if grid is None:
        return torch.randn(batch, size, 3, generator=generator)
    return torch.randint(-grid, grid + 1, (batch, size, 3), generator=generator) / 4


CLOUDS = {
    "random": cloud(),
    "ties": cloud(grid=2),
    "duplicates": cloud(grid=1),
    "all the same": torch.ones(2, 40, 3),
    "near the origin": cloud() * 0.02,
    "at the origin": torch.zeros(2, 33, 3),
    "one point": cloud(2, 1),
    "no cloud": cloud(0, 5),
    "far": cloud() * 1e18,  # squares beyond float32
    "sorted": cloud(2, 333).sort(1).values,
    "large": cloud(1, 700),
    "not contiguous": cloud(3, 140)[:, ::2].mT.contiguous().mT,
}
clouds = pytest.mark.parametrize("points", CLOUDS.values(), ids=CLOUDS.keys())


# ------------------------------------------------------------------------------------------- the formulas, by naive loops


def squared(p: list[float], q: list[float]) -> float:
    return sum((x - y) ** 2 for x, y in zip(p, q, strict=True))


@pytest.mark.parametrize("skip_origin", [False, True])
def test_the_formula_of_fps_is_the_greedy_loop(skip_origin: bool) -> None:
    points = torch.cat([cloud(2, 30, grid=2), cloud(2, 10) * 0.01], 1).double()
    chosen = ops.fps(points, 30, skip_origin=skip_origin).tolist()
    for p, indices in zip(points.tolist(), chosen, strict=True):
        expected = [0]
        while len(expected) < 30:
            best, where = -1.0, 0
            for i in range(len(p)):
                far = min(squared(p[i], p[j]) for j in expected)
                if far > best and not (skip_origin and squared(p[i], [0, 0, 0]) <= 1e-3):
                    best, where = far, i
            expected.append(where)
        assert indices == expected


def test_the_formula_of_knn_sorts_by_distance_and_index() -> None:
    points, query = cloud(2, 30, grid=1).double(), cloud(2, 7, grid=1, seed=1).double()
    distance, index = ops.knn(points, query, 12)
    for b in range(2):
        for m, q in enumerate(query[b].tolist()):
            pairs = sorted((squared(p, q), i) for i, p in enumerate(points[b].tolist()))[:12]
            assert index[b, m].tolist() == [i for _, i in pairs]
            assert distance[b, m].tolist() == [d for d, _ in pairs]


def test_the_formula_of_ball_query_takes_the_first_inside() -> None:
    points, centres = cloud(2, 30, grid=2).double(), cloud(2, 9, grid=4, seed=1).double()
    index = ops.ball_query(points, centres, 0.6, 5)
    seen = set()
    for b in range(2):
        for m, c in enumerate(centres[b].tolist()):
            inside = [i for i, p in enumerate(points[b].tolist()) if squared(p, c) < 0.36]
            seen.add(min(len(inside), 5))
            assert index[b, m].tolist() == (inside + 5 * inside[:1] if inside else [0] * 5)[:5]
    assert {0, 1, 5} <= seen


def test_the_formula_of_chamfer_is_the_double_loop() -> None:
    a, b = cloud(2, 6).double(), cloud(2, 9, seed=1).double()
    to_b, to_a = ops.chamfer(a, b)
    for n in range(2):
        assert to_b[n].tolist() == pytest.approx([min(squared(p, q) for q in b[n].tolist()) for p in a[n].tolist()])
        assert to_a[n].tolist() == pytest.approx([min(squared(p, q) for p in a[n].tolist()) for q in b[n].tolist()])
    assert ops.chamfer_l2(a, b).item() == pytest.approx((to_b.mean() + to_a.mean()).item())
    assert ops.chamfer_l1(a, b).item() == pytest.approx((to_b.sqrt().mean() + to_a.sqrt().mean()).item() / 2)


def test_the_formula_of_chamfer_agrees_with_finite_differences() -> None:
    a, b = cloud(2, 5).double().requires_grad_(), cloud(2, 7, seed=1).double().requires_grad_()
    assert torch.autograd.gradcheck(ops.chamfer, (a, b))
    assert torch.autograd.gradcheck(ops.chamfer_l1, (a, b))
    assert torch.autograd.gradcheck(ops.chamfer_l2, (a, b))


# --------------------------------------------------------------------------------- every implementation, by the formulas


@clouds
@pytest.mark.parametrize("skip_origin", [False, True])
def test_fps_has_the_indices_of_the_formula(backend: str, points: Tensor, skip_origin: bool) -> None:
    for count in {1, 2, points.shape[1] // 2, points.shape[1]} & set(range(1, points.shape[1] + 1)):
        expected = reference.fps(points, count, skip_origin=skip_origin)
        assert torch.equal(ops.fps(points, count, skip_origin=skip_origin), expected)


@clouds
def test_knn_has_the_indices_and_distances_of_the_formula(backend: str, points: Tensor) -> None:
    size = points.shape[1]
    others = cloud(len(points), 21, grid=3, seed=1) * points.abs().amax().clamp_min(1e-3) if len(points) else points
    for query in (points, others):
        for k in {1, 3, 32, size // 2, size} & set(range(1, size + 1)):
            for value, expected in zip(ops.knn(points, query, k), reference.knn(points, query, k), strict=True):
                assert torch.equal(value, expected)


@clouds
@pytest.mark.parametrize("radius", [0.02, 0.5, 1e3])
def test_ball_query_has_the_indices_of_the_formula(backend: str, points: Tensor, radius: float) -> None:
    for count in (1, 6, 90):
        assert torch.equal(ops.ball_query(points, points, radius, count), reference.ball_query(points, points, radius, count))


@clouds
@pytest.mark.parametrize("size", [1, 16, 45])
def test_chamfer_has_the_pairs_of_the_formula(backend: str, points: Tensor, size: int) -> None:
    given = (points, cloud(len(points), size, grid=2, seed=1) * points.abs().amax() if len(points) else points)
    results = []
    for run in (ops.chamfer, reference.chamfer):
        a, b = (tensor.clone().requires_grad_() for tensor in given)
        to_b, to_a = run(a, b)
        loss = (to_b * torch.arange(to_b.shape[1])).sum() + (to_a * torch.arange(to_a.shape[1])).cos().sum()
        results.append((to_b, to_a, *torch.autograd.grad(loss, (a, b))))
    (to_b, to_a, da, db), (expected_b, expected_a, true_da, true_db) = results
    assert torch.equal(to_b, expected_b)
    assert torch.equal(to_a, expected_a)
    for value, truth in ((da, true_da), (db, true_db)):
        torch.testing.assert_close(
            value, truth, rtol=1e-5, atol=1e-5 * float(truth.abs().nan_to_num().amax()) if len(truth) else 0
        )


def test_strips_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Plain PyTorch takes the queries a few at a time."""
    a, b = cloud(2, 50, grid=2), cloud(2, 37, grid=2, seed=1)
    whole = [*cpu.knn(a, b, 5), cpu.ball_query(a, b, 0.4, 5), *cpu.chamfer(a, b)]
    for strip in (1, 333, 1000):
        monkeypatch.setattr(cpu, "STRIP", strip)
        for value, expected in zip([*cpu.knn(a, b, 5), cpu.ball_query(a, b, 0.4, 5), *cpu.chamfer(a, b)], whole, strict=True):
            assert torch.equal(value, expected)


@pytest.mark.parametrize("device", DEVICES)
def test_every_device_has_the_same_indices(device: str) -> None:
    a, b = cloud(2, 300), cloud(2, 70, seed=1)
    there = (a.to(device), b.to(device))
    assert torch.equal(ops.fps(there[0], 50).cpu(), ops.fps(a, 50))
    for value, expected in zip(ops.knn(*there, 9), ops.knn(a, b, 9), strict=True):
        assert torch.equal(value.cpu(), expected)
    assert torch.equal(ops.ball_query(*there, 0.5, 9).cpu(), ops.ball_query(a, b, 0.5, 9))
    for value, expected in zip(ops.chamfer(*there), ops.chamfer(a, b), strict=True):
        assert torch.equal(value.cpu(), expected)
    cells = ((a + 8) * 100).long()
    assert torch.equal(ops.hilbert_code(cells.to(device), 12).cpu(), ops.hilbert_code(cells, 12))


# ------------------------------------------------------------------------------------------------------ who computes, and how


def everything(points: Tensor, query: Tensor) -> list[Tensor]:
    """What all operators return, gradients included."""
    leaves = [points.clone().requires_grad_(), query.clone().requires_grad_()]
    gradients = torch.autograd.grad(ops.chamfer_l1(*leaves), leaves)
    half = points.shape[1] // 2 + 1
    sampled = [ops.fps(points, half), ops.fps(points, half, skip_origin=True), ops.ball_query(points, query, 0.3, half)]
    return [*sampled, *ops.knn(points, query, half), *ops.knn(points, query, 1), *ops.chamfer(points, query), *gradients]


def runs_here(variant: native.Variant) -> bool:
    """Whether this CPU has the instructions of the variant."""
    return variant.name == "baseline" or variant.lanes <= native.variant().lanes


@needs_compiler
@pytest.mark.parametrize("variant", native.VARIANTS.values(), ids=lambda variant: variant.name)
def test_every_instruction_set_gives_the_same_bits(
    variant: native.Variant, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fused multiply-add, where a CPU has it, would round otherwise."""
    if not runs_here(variant):
        pytest.skip(f"this CPU does not have {variant.name}")
    assert COMPILER is not None
    given = [(cloud(2, 150) * 0.1, cloud(2, 77, seed=1)), (cloud(2, 130, grid=3), cloud(2, 40, grid=2, seed=1))]
    with use_backend("torch"):
        expected = [everything(*clouds) for clouds in given]
    native.compile_library(COMPILER, variant, tmp_path / "hybridmap.so")
    library = native.Library(native._open(tmp_path / "hybridmap.so", variant), "jit", "")
    monkeypatch.setattr(native, "library", lambda demand=None: library)
    monkeypatch.setattr(native, "variant", lambda: variant)
    for clouds, values in zip(given, expected, strict=True):
        *exact, da, db = everything(*clouds)
        assert all(torch.equal(value, other) for value, other in zip(exact, values, strict=False))
        torch.testing.assert_close([da, db], values[-2:])


@needs_compiler
def test_any_number_of_threads_gives_the_same_bits() -> None:
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append(everything(cloud(5, 200), cloud(5, 150, seed=1)))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(value, first) for value, first in zip(other, results[0], strict=True))


def test_the_compiled_kernel_runs_on_cpus_where_it_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    points = cloud()
    assert ops.performer(points).__name__.endswith("points.native" if COMPILER else "points.cpu")
    with use_backend("torch"):
        assert ops.performer(points) is cpu

    def absent(demand: str | None = None) -> native.Library:
        raise native.Absent("no C++ compiler was found")

    monkeypatch.setattr(native, "library", absent)
    assert ops.performer(points) is cpu
    assert torch.equal(ops.fps(points, 9), reference.fps(points, 9))


def test_the_formula_runs_on_demand_and_in_float64(monkeypatch: pytest.MonkeyPatch) -> None:
    points, query = cloud(2, 40), cloud(2, 30, seed=1)
    expected = everything(points, query)
    monkeypatch.setattr(ops, "performer", None)
    with use_backend("reference"):
        for value, other in zip(everything(points, query), expected, strict=True):
            torch.testing.assert_close(value, other)
    assert ops.knn(points.double(), query, 3)[0].dtype == torch.float64
    assert ops.chamfer_l2(points.double(), query.double()).dtype == torch.float64


@needs_compiler
def test_addresses_are_sound(tmp_path: Path) -> None:
    """AddressSanitizer finds no access outside the tensors at sizes that fill no vector, and no index leaves the cloud."""
    assert COMPILER is not None
    program, driver = tmp_path / "driver", Path(__file__).with_name("points_driver.cpp")
    command = [COMPILER, "-x", "c++", "-std=c++17", "-g", "-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
    command += ["-w", f"-DW={native.variant().lanes}", *native.variant().flags, f"-I{native.SOURCE.parent}"]
    built = subprocess.run([*command, str(driver), "-o", str(program)], capture_output=True, text=True)
    if built.returncode and ("asan" in built.stderr or "sanitize" in built.stderr):
        pytest.skip("this compiler has no AddressSanitizer")
    assert built.returncode == 0, built.stderr
    run = subprocess.run([str(program)], capture_output=True, text=True, timeout=120, env={"ASAN_OPTIONS": "detect_leaks=0"})
    assert run.returncode == 0, run.stderr[:2000]
    assert run.stdout == "200 runs\n"


def test_operators_can_be_checked_compiled_and_exported(unchecked_environment: dict[str, str]) -> None:
    file = Path(__file__).with_name("traced_points.py")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", str(file)]
    run = subprocess.run(
        command, capture_output=True, text=True, env=unchecked_environment, cwd=Path(__file__).parents[2], timeout=300
    )
    assert run.returncode == 0, run.stdout + run.stderr


# ------------------------------------------------------------------------------------------------------------------- laws


def test_ties_go_to_the_lowest_index(backend: str) -> None:
    corners = torch.tensor([[0.0, 0, 0], [1, 0, 0], [-1, 0, 0], [0, 1, 0], [1, 0, 0]])[None]
    assert ops.fps(corners, 3).tolist() == [[0, 1, 2]]
    assert ops.knn(corners, corners[:, :1], 5)[1].tolist() == [[[0, 1, 2, 3, 4]]]
    assert ops.knn(corners, corners[:, 4:], 2)[1].tolist() == [[[1, 4]]]
    a = corners[:, 1:].clone().requires_grad_()
    (gradient,) = torch.autograd.grad(ops.chamfer(corners[:, :1], a)[0].sum(), a)
    assert gradient[0].tolist() == [[2, 0, 0], [0, 0, 0], [0, 0, 0], [0, 0, 0]]


def test_points_near_the_origin_are_passed_over(backend: str) -> None:
    points = torch.tensor([[0.0, 0, 0], [0.03, 0, 0], [0.5, 0, 0], [0, 0.001, 0], [0, 0.4, 0]])[None]
    assert ops.fps(points, 3, skip_origin=True).tolist() == [[0, 2, 4]]
    assert ops.fps(points, 5, skip_origin=True).tolist() == [[0, 2, 4, 2, 2]], "the first eligible one repeats"
    assert ops.fps(points * 1e-3, 4, skip_origin=True).tolist() == [[0, 0, 0, 0]], "none is eligible"
    assert sorted(ops.fps(points, 5)[0].tolist()) == [0, 1, 2, 3, 4]


def test_points_in_the_order_of_fps_stay_in_it(backend: str) -> None:
    points = cloud(3, 200)
    order = ops.fps(points, 64)
    sampled = points.gather(1, order[..., None].expand(-1, -1, 3))
    assert torch.equal(ops.fps(sampled, 20), torch.arange(20).expand(3, -1))
    assert torch.equal(ops.fps(points, 20), order[:, :20]), "fewer are the first of more"


def test_clouds_do_not_see_each_other(backend: str) -> None:
    points = cloud(5, 90)
    for b in range(5):
        assert torch.equal(ops.fps(points[b : b + 1], 30), ops.fps(points, 30)[b : b + 1])
        assert torch.equal(ops.knn(points[b : b + 1], points[b : b + 1], 7)[1], ops.knn(points, points, 7)[1][b : b + 1])


def test_half_precision_is_widened_and_autocast_changes_nothing(backend: str) -> None:
    points = cloud(2, 60).bfloat16()
    assert torch.equal(ops.fps(points, 20), ops.fps(points.float(), 20))
    distance, index = ops.knn(points, points.float(), 4)
    assert distance.dtype == torch.float32
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(ops.knn(points.float(), points.float(), 4)[0], distance)
        assert torch.equal(ops.knn(points, points, 4)[1], index)
        assert torch.equal(ops.chamfer(points, points[:, :9])[0], ops.chamfer(points.float(), points[:, :9].float())[0])


def test_nothing_is_written_to_inputs_or_read_from_fresh_memory(backend: str) -> None:
    points, query = cloud(2, 45), cloud(2, 33, seed=1)
    before = [tensor.clone() for tensor in (*everything(points, query), points, query)]
    torch.use_deterministic_algorithms(True)  # also fills every fresh tensor with NaN
    for value, expected in zip((*everything(points, query), points, query), before, strict=True):
        assert torch.equal(value, expected)


# --------------------------------------------------------------------------------------------------- losses, interpolation


def test_the_slope_of_chamfer_l1_is_finite_where_points_meet(backend: str) -> None:
    a = cloud(2, 8).requires_grad_()
    (gradient,) = torch.autograd.grad(ops.chamfer_l1(a, a.detach()), a)
    assert torch.equal(gradient, torch.zeros_like(gradient))
    b = torch.cat([a.detach()[:, :4], cloud(2, 4, seed=1)], 1)
    (gradient,) = torch.autograd.grad(ops.chamfer_l1(a, b), a)
    assert gradient.isfinite().all()
    assert gradient.abs().sum() > 0


def test_a_prediction_that_is_not_finite_gives_a_loss_that_is_not_finite(backend: str) -> None:
    a, b = cloud(2, 40), cloud(2, 30, seed=1)
    a[1, 3, 2] = torch.nan
    to_b, to_a = ops.chamfer(a, b)
    assert to_b.isnan().nonzero().tolist() == [[1, 3]]
    assert not to_a[0].isnan().any()
    for loss in (ops.chamfer_l1(a, b), ops.chamfer_l2(b, a)):
        assert loss.isnan()


def test_interpolation_weighs_the_three_nearest(backend: str) -> None:
    points, query, features = cloud(2, 20), cloud(2, 5, seed=1), torch.randn(2, 20, 4)
    value = ops.interpolate(features, points, query)
    for b in range(2):
        for m in range(5):
            near = sorted((squared(p, query[b, m].tolist()), i) for i, p in enumerate(points[b].tolist()))[:3]
            weights = torch.tensor([1 / (d + 1e-8) for d, _ in near])
            expected = (features[b, [i for _, i in near]] * weights[:, None] / weights.sum()).sum(0)
            torch.testing.assert_close(value[b, m], expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(ops.interpolate(features, points, points), features, rtol=1e-4, atol=1e-4)
    one = ops.interpolate(features[:, :1], points[:, :1], query)
    torch.testing.assert_close(one, features[:, :1].expand(-1, 5, -1))


def test_gradients_of_interpolation_reach_the_features() -> None:
    points, query = cloud(1, 6).double(), cloud(1, 4, seed=1).double()
    features = torch.randn(1, 6, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda f: ops.interpolate(f, points, query), features)


# ------------------------------------------------------------------------------------------------------------------ codes

CUBE = torch.cartesian_prod(*[torch.arange(2)] * 3)


@pytest.mark.parametrize(
    ("bits", "expected"),
    [
        (1, [0, 1, 3, 2, 7, 6, 4, 5]),
        (4, [0, 1, 3, 2, 7, 6, 4, 5]),
        (2, [0, 7, 1, 6, 3, 4, 2, 5]),
        (5, [0, 7, 1, 6, 3, 4, 2, 5]),
        (3, [0, 3, 7, 4, 1, 2, 6, 5]),
        (6, [0, 3, 7, 4, 1, 2, 6, 5]),
    ],
)
def test_hilbert_codes_of_the_first_cube(bits: int, expected: list[int]) -> None:
    assert ops.hilbert_code(CUBE, bits).tolist() == expected


@pytest.mark.parametrize("bits", [1, 2, 3, 4])
def test_hilberts_curve_visits_every_cell_once_in_single_steps(bits: int) -> None:
    cells = torch.cartesian_prod(*[torch.arange(1 << bits)] * 3)
    code = ops.hilbert_code(cells, bits)
    assert torch.equal(code.sort().values, torch.arange(len(cells)))
    assert (cells[code.argsort()].diff(dim=0).abs().sum(1) == 1).all()


def test_a_depth_per_cloud_is_that_depth() -> None:
    cells = torch.randint(0, 2, (5, 9, 3)) * torch.tensor([0, 1, 3, 100, 65535])[:, None, None]
    bits = torch.tensor([0, 1, 2, 7, 16])
    together = ops.hilbert_code(cells.int(), bits[:, None])
    assert together.dtype == torch.int64
    for b in range(5):
        assert torch.equal(together[b], ops.hilbert_code(cells[b], int(bits[b])))
    assert torch.equal(ops.z_order_code(cells, bits[:, None]), ops.z_order_code(cells, 16))


def test_z_order_interleaves_bits() -> None:
    assert ops.z_order_code(CUBE, 1).tolist() == list(range(8))
    cells = torch.randint(0, 1 << 16, (200, 3))
    for cell, code in zip(cells.tolist(), ops.z_order_code(cells, 16).tolist(), strict=True):
        assert code == int("".join("".join(bits) for bits in zip(*(f"{c:016b}" for c in cell), strict=True)), 2)
    assert ops.hilbert_code(cells, 16).unique().numel() == cells.unique(dim=0).shape[0]


# ----------------------------------------------------------------------------------------------------------------- errors


def test_mistakes_are_sentences(backend: str) -> None:
    points, bad = cloud(2, 5), cloud(2, 5)
    bad[1, 2, 0] = torch.nan
    with pytest.raises(UserError, match="fps expects to choose 1 to 5 of 5 points, but 6 came; ask for fewer"):
        ops.fps(points, 6)
    with pytest.raises(UserError, match="but 0 came"):
        ops.fps(points, 0)
    for k in (0, 6):
        with pytest.raises(UserError, match=f"knn expects k from 1 to the number of reference points, 5, but k={k} came"):
            ops.knn(points, points, k)
    with pytest.raises(UserError, match="ball_query expects a radius above 0, but -1"):
        ops.ball_query(points, points, -1, 3)
    with pytest.raises(UserError, match="ball_query expects a count of at least 1 among 1 point or more, but 3 of 0 came"):
        ops.ball_query(points[:, :0], points, 1, 3)
    with pytest.raises(UserError, match="chamfer expects points in both clouds, but 5 and 0 came"):
        ops.chamfer(points, points[:, :0])
    for run in (lambda: ops.fps(bad, 2), lambda: ops.knn(points, bad, 2), lambda: ops.ball_query(bad / 0, points, 1, 2)):
        with pytest.raises(UserError, match="expects finite coordinates, but NaN or infinity came; leave such points out"):
            run()
    with pytest.raises(UserError, match="0 to 16 bits per axis, but 17 came"):
        ops.hilbert_code(CUBE, 17)
    with pytest.raises(UserError, match=r"0 to 16 bits per axis, but \[-1, 3\] came"):
        ops.z_order_code(CUBE.expand(2, -1, -1), torch.tensor([-1, 3])[:, None].squeeze(1))
    with pytest.raises(UserError, match=r"coordinates from 0 to 2\^bits - 1, but -1 to 1 came with bits=1; subtract"):
        ops.hilbert_code(torch.tensor([[-1, 0, 1]]), 1)


def test_wrong_shapes_are_sentences() -> None:
    """As without the shape checks of the tests."""
    points = cloud(2, 5)
    with pytest.raises(UserError, match=r"fps expects points as \(batch, points, 3\), but \(5, 3\) came; x, y, z go last"):
        ops._clouds("fps", points=points[0])
    with pytest.raises(UserError, match=r"knn expects points and query of one batch, but \(2, 5, 3\) and \(1, 5, 3\) came"):
        ops._clouds("knn", points=points, query=points[:1])
