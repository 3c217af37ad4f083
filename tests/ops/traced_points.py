"""opcheck, compilation and export of the operators on point clouds; run by test_points.py without shape checks."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from hybridmap.ops import points as ops


def groups(points: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """What a model does with a cloud, and a loss."""
    centres = points.gather(1, ops.fps(points, 8, skip_origin=True)[..., None].expand(-1, -1, 3))
    distance, index = ops.knn(points, centres, 5)
    index = torch.cat([index, ops.ball_query(points, centres, 0.5, 3)], -1)
    moved = points * 1.1
    code = ops.hilbert_code(((centres + 8) * 4).long(), 6)
    loss = ops.chamfer_l1(moved, centres) + ops.chamfer_l2(centres, moved) + ops.interpolate(distance, centres, points).mean()
    return loss, index, code


def leaf(size: int = 40) -> Tensor:
    return torch.randn(3, size, 3, generator=torch.Generator().manual_seed(size)).requires_grad_()


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")  # opcheck looks at it
def test_operators_keep_their_promises() -> None:
    a, b = torch.randn(2, 9, 3), torch.randn(2, 7, 3)
    torch.library.opcheck(torch.ops.hybridmap.fps.default, (a, 4, True))
    torch.library.opcheck(torch.ops.hybridmap.knn.default, (a, b, 3))
    torch.library.opcheck(torch.ops.hybridmap.ball_query.default, (a, b, 0.5, 3))
    torch.library.opcheck(torch.ops.hybridmap.chamfer.default, (a.requires_grad_(), b.requires_grad_()))


@pytest.mark.parametrize("dynamic", [False, True])
def test_a_compiled_graph_is_whole_and_equal(dynamic: bool) -> None:
    torch.compiler.reset()
    compiled = torch.compile(groups, fullgraph=True, backend="aot_eager", dynamic=dynamic)
    for size in (40, 50):
        one, other = leaf(size), leaf(size)
        expected, values = groups(one), compiled(other)
        torch.testing.assert_close(values, expected)
        (da,), (db,) = torch.autograd.grad(expected[0], one), torch.autograd.grad(values[0], other)
        torch.testing.assert_close(da, db)


def test_it_can_be_exported() -> None:
    class Groups(torch.nn.Module):
        def forward(self, points: Tensor) -> tuple[Tensor, ...]:
            return groups(points)

    points = leaf().detach()
    program = torch.export.export(Groups(), (points,))
    assert "hybridmap.fps.default" in str(program.graph)
    torch.testing.assert_close(program.module()(points), groups(points))
