"""The linear probe by MAE's protocol, many learning rates at a time."""

import pytest
import torch
import torch.nn.functional as F
from timm.optim import Lars
from torch import Tensor, nn

from hybridmap.backbones import HybridNet
from hybridmap.data.synthetic import Synthetic
from hybridmap.errors import UserError
from hybridmap.tasks.features import Table
from hybridmap.tasks.linear_probe import LinearProbe, cosine, held_out

DATA = Synthetic.Config()


def probe(**settings) -> LinearProbe:
    return LinearProbe.Config(train=DATA, test=DATA, **settings).build()


def clusters(n: int, seed: int, noise: float = 1.0) -> Table:
    means = torch.randn(3, 8, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(n) % 3
    features = means[labels] + noise * torch.randn(n, 8, generator=torch.Generator().manual_seed(seed))
    return Table(features=features, labels=labels, paths=("",) * n, classes=("a", "b", "c"))


def trained_by_autograd(x: Tensor, y: Tensor, base_lr: float, epochs: int, warmup: float, batch: int, seed: int) -> nn.Module:
    """The protocol written with torch modules, autograd and timm's LARS."""
    generator = torch.Generator().manual_seed(seed)
    linear = nn.Linear(x.shape[1], 3)
    initial = torch.empty(x.shape[1], 3)
    nn.init.trunc_normal_(initial, std=0.01, generator=generator)
    linear.weight.data, linear.bias.data = initial.T.clone(), torch.zeros(3)
    model = nn.Sequential(nn.BatchNorm1d(x.shape[1], affine=False, eps=1e-6), linear)
    weights = Lars([linear.weight], lr=0.1, momentum=0.9, trust_coeff=0.001, eps=0.0, always_adapt=True)
    biases = Lars([linear.bias], lr=0.1, momentum=0.9)
    steps = len(x) // batch
    for epoch in range(epochs):
        order = torch.randperm(len(x), generator=generator)
        for step in range(steps):
            lr = base_lr * batch / 256 * cosine(epoch + step / steps, warmup, epochs)
            chosen = order[step * batch : (step + 1) * batch]
            model.zero_grad()
            F.cross_entropy(model(x[chosen]), y[chosen]).backward()
            for optimiser in (weights, biases):
                optimiser.param_groups[0]["lr"] = lr
                optimiser.step()
    return model.eval()


def test_every_rate_of_a_sweep_equals_its_own_run_with_lars_and_autograd():
    table, rates = clusters(50, 1), (0.5, 20.0)
    assert table.labels is not None
    heads = probe(epochs=4, warmup_epochs=1.0, batch_size=16, seed=3).fit(table.features, table.labels, 3, rates)
    for found, rate in zip(heads.logits(table.features), rates, strict=True):
        model = trained_by_autograd(table.features, table.labels, rate, 4, 1.0, 16, seed=3)
        torch.testing.assert_close(found, model(table.features).detach(), rtol=1e-4, atol=1e-5)


def test_the_schedule_warms_up_and_ends_at_zero():
    assert [cosine(e, 10.0, 90) for e in (0.0, 5.0, 10.0, 50.0, 90.0)] == pytest.approx([0.0, 0.5, 1.0, 0.5, 0.0])


@pytest.mark.parametrize("protocol", ["mae", "sgd"])
def test_separable_classes_are_separated_and_the_rate_is_chosen_by_validation(protocol: str):
    found = probe(protocol=protocol, epochs=90, warmup_epochs=10.0, batch_size=32).answers(
        clusters(90, 1, 0.3), clusters(60, 2, 0.3)
    )
    assert found.correct.float().mean() > 0.97
    assert found.within_5.all()
    assert found.validation[found.base_lr] == max(found.validation.values())
    assert len(found.validation) == 8


def test_test_labels_choose_nothing():
    train, test = clusters(60, 1), clusters(40, 2)
    assert test.labels is not None
    lies = Table(features=test.features, labels=(test.labels + 1) % 3, paths=test.paths, classes=test.classes)
    one, other = (probe(epochs=5, warmup_epochs=1.0).answers(train, table) for table in (test, lies))
    assert one.base_lr == other.base_lr
    assert one.validation == other.validation


def test_held_out_features_are_not_trained_on():
    held = held_out(torch.tensor([0] * 10 + [1] + [2] * 3), 0.1, seed=0)
    assert held[:10].sum() == 1
    assert not held[10]  # the only one of its class
    assert held[11:].sum() == 1
    assert not torch.equal(held, held_out(torch.tensor([0] * 10 + [1] + [2] * 3), 0.1, seed=1))


def test_a_single_rate_is_taken_without_a_choice():
    found = probe(base_lrs=(0.1,), epochs=3, warmup_epochs=1.0).answers(clusters(30, 1), clusters(30, 2))
    assert found.base_lr == 0.1
    assert found.validation == {}


def test_a_rate_that_diverges_is_not_chosen():
    found = probe(base_lrs=(1.0, 1e30), protocol="sgd", epochs=5, warmup_epochs=1.0).answers(
        clusters(60, 1, 0.3), clusters(30, 2)
    )
    assert found.base_lr == 1.0


def test_the_exam_reports_per_cent_and_repeats_itself(hybrid: HybridNet.Config, gratings: Synthetic.Config):
    config = LinearProbe.Config(train=gratings, test=gratings, epochs=3, warmup_epochs=1.0)
    network = hybrid.build()
    found = config.build()(network, "cpu")
    assert set(found) == {"top1", "top5", "base_lr", "validation"}
    assert found["top5"] == 100.0
    assert found == config.build()(network, "cpu")


def test_impossible_settings_are_refused():
    with pytest.raises(UserError, match="warm-up must be shorter"):
        probe(epochs=5, warmup_epochs=5.0)
    with pytest.raises(UserError, match="must be positive"):
        probe(base_lrs=(0.1, 0.0))
    with pytest.raises(UserError, match="at least two training images"):
        probe(base_lrs=(0.1,)).answers(clusters(1, 1), clusters(3, 2))
