from __future__ import annotations

import pytest
import torch
from torch import nn

from hybridmap.layers.running import measured_anew, running_norms


def network() -> nn.Module:
    return nn.Sequential(
        nn.BatchNorm1d(3, momentum=0.3), nn.Dropout(0.5), nn.LayerNorm(3), nn.BatchNorm1d(3, track_running_stats=False)
    ).double()


def test_only_norms_with_statistics_are_found() -> None:
    net = network()
    assert running_norms(net) == [net[0]]


def test_statistics_are_the_mean_over_the_batches_whatever_they_were() -> None:
    net, batches = network().eval(), [torch.randn(8, 3, dtype=torch.float64) for _ in range(3)]
    net(batches[0])
    with torch.no_grad():
        net[0].running_mean.fill_(7.0)
    with measured_anew(running_norms(net)):
        for batch in batches:
            net(batch)
    torch.testing.assert_close(net[0].running_mean, torch.stack([b.mean(0) for b in batches]).mean(0))
    torch.testing.assert_close(net[0].running_var, torch.stack([b.var(0) for b in batches]).mean(0))  # unbiased


@pytest.mark.parametrize("training", [False, True])
def test_everything_else_is_left_as_it_was(training: bool) -> None:
    net = network().train(training)
    with measured_anew(running_norms(net)):
        assert (net[0].training, net[1].training) == (True, training)
    assert net[0].momentum == 0.3
    assert all(module.training == training for module in net.modules())
