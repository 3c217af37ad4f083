"""Set abstraction: the formula written out point by point, and what must not change it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from hybridmap.errors import UserError
from hybridmap.layers.set_abstraction import SetAbstraction
from hybridmap.ops.points import fps


def cloud(seed: int = 0, count: int = 40) -> Tensor:
    return torch.rand(2, count, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 2 - 1


def layer(channels: int = 0, **changes: Any) -> SetAbstraction:
    """A small stage whose norms are not the identity."""
    sizes: dict[str, Any] = {"count": 6, "radius": 0.8, "neighbours": 5, "channels": channels, "widths": (4, 7)} | changes
    module = SetAbstraction(**sizes).double().eval()
    for norm in module.mlp:
        if isinstance(norm, torch.nn.BatchNorm2d):
            assert norm.running_mean is not None
            assert norm.running_var is not None
            norm.running_mean.uniform_(-0.5, 0.5)
            norm.running_var.uniform_(0.5, 1.5)
            torch.nn.init.uniform_(norm.weight, 0.5, 1.5)
            torch.nn.init.uniform_(norm.bias, -0.5, 0.5)
    return module


def by_hand(module: SetAbstraction, points: Tensor, features: Tensor | None) -> Tensor:
    """One centre and one neighbour at a time."""
    out = []
    for b, chosen in enumerate(fps(points, module.count, skip_origin=module.skip_origin).tolist()):
        for c in chosen:
            near = [i for i, p in enumerate(points[b]) if (p - points[b, c]).square().sum() < module.radius**2]
            rows = []
            for i in near[: module.neighbours]:
                given = [points[b, i] - points[b, c]] + ([] if features is None else [features[b, i]])
                rows.append(module.mlp(torch.cat(given)[None, :, None, None]).flatten())
            out.append(torch.stack(rows).amax(0))
    return torch.stack(out).unflatten(0, (len(points), -1))


@pytest.mark.parametrize("channels", [0, 3])
def test_it_is_the_largest_response_among_the_first_neighbours(channels: int) -> None:
    module, points = layer(channels), cloud()
    features = torch.randn(2, 40, channels, dtype=torch.float64) if channels else None
    with torch.no_grad():
        centres, out = module(points, features)
        torch.testing.assert_close(out, by_hand(module, points, features))
    chosen = fps(points, 6, skip_origin=True)
    assert torch.equal(centres, points[torch.arange(2)[:, None], chosen])


def test_names_and_shapes_are_those_of_official_files() -> None:
    state = {name: tuple(value.shape) for name, value in layer(3).state_dict().items()}
    assert {name for name in state if "num_batches" not in name} == {
        *(f"mlp.{i}.weight" for i in (0, 1, 3, 4)),
        *(f"mlp.{i}.{leaf}" for i in (1, 4) for leaf in ("bias", "running_mean", "running_var")),
    }
    assert state["mlp.0.weight"] == (4, 6, 1, 1)
    assert state["mlp.3.weight"] == (7, 4, 1, 1)


def test_moving_a_cloud_moves_centres_and_changes_no_feature() -> None:
    module, points = layer(skip_origin=False), cloud()
    shift = torch.tensor([5.0, -3.0, 2.0], dtype=torch.float64)
    centres, out = module(points)
    moved, again = module(points + shift)
    torch.testing.assert_close(moved, centres + shift)
    torch.testing.assert_close(again, out)


def test_no_cloud_knows_of_another() -> None:
    module, points = layer(), cloud()
    changed = torch.stack([points[0], cloud(1)[0]])
    assert torch.equal(module(points)[1][0], module(changed)[1][0])


def test_points_near_the_origin_are_no_centres_unless_asked_for() -> None:
    points = cloud(count=12)
    points[:, 5:] *= 1e-3
    centres, _ = layer(count=5)(points)
    assert (centres.norm(dim=-1) > 0.04).all()
    near, _ = layer(count=12, skip_origin=False)(points)
    assert (near.norm(dim=-1) < 0.04).any()


def test_a_centre_without_neighbours_sees_itself() -> None:
    module, points = layer(radius=1e-6), cloud()
    alone = module.mlp(torch.zeros(1, 3, 1, 1, dtype=torch.float64)).flatten()
    torch.testing.assert_close(module(points)[1], alone.expand(2, 6, 7))


def test_gradients_reach_points_features_and_every_weight() -> None:
    module, points = layer(2).train(), cloud().requires_grad_()
    features = torch.randn(2, 40, 2, dtype=torch.float64, requires_grad=True)
    out = module(points, features)[1]
    (out * torch.randn_like(out)).sum().backward()
    for tensor in (points, features, *module.parameters()):
        assert tensor.grad is not None
        assert tensor.grad.abs().sum() > 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"count": 0}, "positive count, got 0"),
        ({"radius": -1.0}, r"positive radius, got -1"),
        ({"neighbours": 0}, "positive neighbours, got 0"),
        ({"widths": ()}, "positive number of widths, got 0"),
        ({"widths": (4, 0)}, "positive width 1, got 0"),
    ],
)
def test_impossible_sizes_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        layer(**changes)


def test_too_few_points_and_broken_ones_are_refused() -> None:
    with pytest.raises(UserError, match="5 of 5 points, but 6 came"):
        layer()(cloud(count=5))
    points = cloud()
    points[1, 3, 0] = torch.nan
    with pytest.raises(UserError, match="finite"):
        layer()(points)
