"""Mixup and CutMix as timm has them, drawn from torch."""

import numpy as np
import pytest
import torch
from timm.data import mixup as timm_mixup

from hybridmap.errors import UserError
from hybridmap.layers.mixing import Mixing, blend, cut


def images(batch: int = 4, height: int = 12, width: int = 10) -> torch.Tensor:
    return torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(0))


def test_mixup_equals_timm_for_the_same_share(monkeypatch: pytest.MonkeyPatch):
    reference = timm_mixup.Mixup(mixup_alpha=0.8, num_classes=3)
    monkeypatch.setattr(reference, "_params_per_batch", lambda: (0.3, False))
    expected, _ = reference(images(), torch.arange(4) % 3)
    mixed, kept = blend(images(), 0.3)
    assert kept == 0.3
    torch.testing.assert_close(mixed, expected)


@pytest.mark.parametrize(("lam", "y", "x"), [(0.4, 0.5, 0.5), (0.7, 0.0, 0.95), (0.01, 0.3, 0.99), (0.99, 0.6, 0.2)])
def test_cutmix_equals_timm_for_the_same_box(monkeypatch: pytest.MonkeyPatch, lam: float, y: float, x: float):
    draws = iter([int(12 * y), int(10 * x)])
    monkeypatch.setattr(np.random, "randint", lambda *args, **kwargs: next(draws))
    reference = timm_mixup.Mixup(cutmix_alpha=1.0, num_classes=3)
    monkeypatch.setattr(reference, "_params_per_batch", lambda: (lam, True))
    original = images()
    expected, _ = reference(original.clone(), torch.arange(4) % 3)
    mixed, kept = cut(original, lam, y, x)
    torch.testing.assert_close(mixed, expected)
    changed = (mixed != original).any(1).float().mean((1, 2))
    torch.testing.assert_close(changed, torch.full((4,), 1 - kept))


def test_draws_follow_torch_and_leave_numpy_alone():
    mixing = Mixing.Config().build()
    before = np.random.get_state()[2]
    torch.manual_seed(5)
    first = [mixing(images()) for _ in range(6)]
    torch.manual_seed(5)
    second = [mixing(images()) for _ in range(6)]
    assert np.random.get_state()[2] == before
    assert [kept for _, kept in first] == [kept for _, kept in second]
    for (one, _), (other, _) in zip(first, second, strict=True):
        torch.testing.assert_close(one, other)
    assert len({kept for _, kept in first}) == 6


def test_both_kinds_occur_and_shares_have_mean_one_half():
    torch.manual_seed(0)
    mixing, source = Mixing.Config().build(), images(2, 16, 16)
    shares, cuts = [], 0
    for _ in range(400):
        mixed, kept = mixing(source)
        shares.append(kept)
        cuts += bool(torch.isin(mixed, source).all())
    assert 0.4 < np.mean(shares) < 0.7  # a clipped box leaves more than its share
    assert 140 < cuts < 260


def test_nothing_happens_where_it_is_off():
    source = images()
    for config in (Mixing.Config(mixup=0.0, cutmix=0.0), Mixing.Config(probability=0.0)):
        mixed, kept = config.build()(source)
        assert kept == 1.0
        assert mixed is source


def test_one_kind_alone_is_always_taken():
    torch.manual_seed(0)
    source = images()
    for _ in range(20):
        mixed, _ = Mixing.Config(mixup=0.0, switch=0.0).build()(source)
        assert torch.isin(mixed, source).all()


def test_the_given_images_are_not_written_to():
    source = images()
    copy = source.clone()
    cut(source, 0.4, 0.5, 0.5)
    blend(source, 0.4)
    assert torch.equal(source, copy)


def test_impossible_settings_are_refused():
    with pytest.raises(UserError, match="must be 0"):
        Mixing.Config(mixup=-1.0).build()
    with pytest.raises(UserError, match="between 0 and 1"):
        Mixing.Config(switch=1.5).build()
