"""Contestants compute the same, or are refused; whoever cannot take part says why."""

from __future__ import annotations

import math

import pytest
import torch

from hybridmap import ops
from hybridmap.bench import operators, peers
from hybridmap.bench.operators import Contestant, Direction, Problem, Shape, contestants, problems, race
from hybridmap.bench.sheet import operators_sheet
from hybridmap.errors import UserError

CPU = torch.device("cpu")
SMALL = Shape(2, 5, 12, 3)
DIRECTIONS: tuple[Direction, ...] = ("forward", "training forward", "backward", "forward + backward")


def the_scan(dtype: torch.dtype = torch.float32) -> Problem:
    return problems(SMALL, dtype, CPU)[0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_everybody_takes_part_in_every_direction(dtype: torch.dtype) -> None:
    for problem in problems(SMALL, dtype, CPU):
        rows = race(problem, contestants(problem, CPU), DIRECTIONS, rounds=1)
        timed = [row for row in rows if row.seconds]
        assert timed[0].name == f"ours ({ops.active(problem.operator, CPU, dtype)})"
        assert {"floor: copy of its bytes", problem.formula} <= {row.name for row in timed}
        for row in timed:
            assert all(0 < took < math.inf for took in row.seconds.values())
            assert row.seconds.keys() == set(DIRECTIONS)
        assert all(row.note for row in rows if not row.seconds)


def test_the_scan_races_against_the_published_form_and_pytorchs_own() -> None:
    rows = {row.name: row for row in race(the_scan(), contestants(the_scan(), CPU), DIRECTIONS[:1], rounds=1)}
    assert {"published form (slices)", "PyTorch associative_scan", "floor: its arithmetic in a product"} <= rows.keys()
    assert rows["loop over unbind, compiled"].note == "left out: --compiled (takes a minute more)"
    assert "mamba_ssm" not in rows


def test_a_wrong_contestant_is_refused() -> None:
    problem = the_scan()
    ours = contestants(problem, CPU)[0]
    shifted = Contestant("shifted", lambda *inputs: problem.call(*inputs) + 0.01)  # type: ignore[operator]
    with pytest.raises(UserError, match=r"^shifted does not compute selective_scan: an output or gradient is off by "):
        race(problem, [ours, shifted], ["forward"], rounds=1)
    no_gradient = Contestant("detached", lambda x, *rest: problem.call(x.detach(), *rest) + 0 * x)  # type: ignore[operator]
    with pytest.raises(UserError, match=r"^detached does not compute selective_scan"):
        race(problem, [ours, no_gradient], ["forward"], rounds=1)


def test_what_fails_is_not_available_unless_it_is_ours() -> None:
    problem = the_scan()
    ours = contestants(problem, CPU)[0]

    def without_compiler(*inputs: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("\nno C++ compiler was found\nand much more")

    broken = Contestant("broken", without_compiler)
    rows = race(problem, [ours, broken], ["forward"], rounds=1)
    assert [row.note for row in rows if row.name == "broken"] == ["not available: RuntimeError, no C++ compiler was found"]
    with pytest.raises(RuntimeError, match="no C\\+\\+ compiler"):
        race(problem, [broken], ["forward"], rounds=1)


def test_a_package_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers, "find_spec", lambda package: None)
    with pytest.raises(peers.Absent, match=r"^mambapy is not installed$"):
        peers.mambapy()
    absent = operators.problems(SMALL, torch.float32, CPU)[0].absent
    assert absent["mambapy, parallel"] == "not available: mambapy is not installed"


def test_mambapy_is_called_with_batch_tokens_channels_states(monkeypatch: pytest.MonkeyPatch) -> None:
    def pscan(decay: torch.Tensor, driven: torch.Tensor) -> torch.Tensor:
        assert decay.shape == driven.shape == SMALL
        states = [torch.zeros_like(driven[:, 0])]
        for a, b in zip(decay.unbind(1), driven.unbind(1), strict=True):
            states.append(a * states[-1] + b)
        return torch.stack(states[1:], 1)

    imported = peers._imported
    stand_in = {"pscan": pscan}
    monkeypatch.setattr(peers, "_imported", lambda module, name: stand_in.get(name) or imported(module, name))
    problem = the_scan()
    rows = {row.name: row for row in race(problem, contestants(problem, CPU), ["forward"], rounds=1)}
    assert rows["mambapy, parallel"].seconds["forward"] > 0


def test_the_extension_is_called_in_its_own_layout() -> None:
    def like_the_extension(u, delta, A, B, C, D=None, z=None, delta_bias=None, delta_softplus=False) -> torch.Tensor:
        assert u.is_contiguous()
        assert u.shape == (SMALL.batch, SMALL.width, SMALL.length)
        assert B.shape == (SMALL.batch, SMALL.state, SMALL.length)
        out = ops.selective_scan_fn(u, delta, A, B, C, D, z, delta_bias, delta_softplus)
        assert isinstance(out, torch.Tensor)
        return out

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(peers, "_imported", lambda module, name: like_the_extension)
        extension = Contestant("mamba_ssm", peers.mamba_ssm(), channels_first=True)
    problem = the_scan()
    rows = race(problem, [contestants(problem, CPU)[0], extension], ["backward"], rounds=1)
    assert rows[1].name == "mamba_ssm"


def test_ratios_are_to_ours_and_positive() -> None:
    problem = the_scan()
    rows = race(problem, contestants(problem, CPU), ["forward"], rounds=3)
    sheet = operators_sheet(rows, ["forward"])
    lines = [dict(zip(sheet.columns, line, strict=True)) for line in sheet.lines]
    assert lines[0]["forward / ours"] == 1
    for line, row in zip(lines, rows, strict=True):
        if row.seconds:
            assert line["forward / ours"] == pytest.approx(row.seconds["forward"] / rows[0].seconds["forward"])
        else:
            assert line["forward ms"] is None
