from __future__ import annotations

import pytest
import torch

from hybridmap.errors import UserError
from hybridmap.objectives.targets import Pixels
from hybridmap.tokens.images import partition
from hybridmap.types import Mask, Patches


@pytest.fixture
def patches() -> Patches:
    return partition(torch.randn(2, 3, 8, 12), 4)


@pytest.fixture
def mask() -> Mask:
    return Mask.from_masked(torch.tensor([[True, False, True, False, False, True], [False, True, True, True, False, False]]))


def test_the_variance_is_unbiased() -> None:
    two_values = partition(torch.tensor([[[[1.0, 3.0], [0.0, 4.0]]]]), 1)
    pairs = Patches(
        content=two_values.content.view(1, 2, 2), coords=two_values.coords[:, :2], source=two_values.source[:, :2], grid=(1, 2)
    )
    expected = (
        torch.tensor([[[-1.0, 1.0], [-2.0, 2.0]]]) / (torch.tensor([[[2.0], [8.0]]]) + 1e-6).sqrt()
    )  # n would give 1 and 4
    torch.testing.assert_close(Pixels.Config().build().values(pairs), expected)


def test_the_loss_is_that_of_a_loop_over_tokens(patches: Patches, mask: Mask) -> None:
    pred = torch.randn_like(patches.content)
    errors = []
    for b in range(2):
        for n in range(6):
            if mask.masked[b, n]:
                x = patches.content[b, n].double()
                mean = x.sum() / len(x)
                variance = ((x - mean) ** 2).sum() / (len(x) - 1)
                target = (x - mean) / (variance + 1e-6) ** 0.5
                errors.append(((pred[b, n].double() - target) ** 2).sum() / len(x))
    loss = Pixels.Config().build().loss(pred, patches, mask)
    assert loss.item() == pytest.approx((sum(errors) / len(errors)).item(), rel=1e-6)  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.parametrize("normalise", [True, False])
def test_the_loss_vanishes_where_the_prediction_is_the_target(patches: Patches, mask: Mask, normalise: bool) -> None:
    target = Pixels.Config(normalise=normalise).build()
    assert target.loss(target.values(patches), patches, mask) == 0
    assert target.loss(target.values(patches), patches, None) == 0


def test_visible_patches_get_no_gradient(patches: Patches, mask: Mask) -> None:
    pred = torch.randn_like(patches.content).requires_grad_()
    Pixels.Config().build().loss(pred, patches, mask).backward()
    assert pred.grad is not None
    assert torch.equal(pred.grad.ne(0).any(-1), mask.masked)


def test_without_a_mask_every_patch_counts(patches: Patches) -> None:
    pred = torch.randn_like(patches.content).requires_grad_()
    target = Pixels.Config().build()
    loss = target.loss(pred, patches, None)
    torch.testing.assert_close(loss, (pred - target.values(patches)).square().mean())


def test_every_masked_patch_has_the_same_weight_in_any_split_of_the_batch(patches: Patches, mask: Mask) -> None:
    pred, target = torch.randn_like(patches.content), Pixels.Config().build()
    whole = target.loss(pred, patches, mask)
    halves = [
        target.loss(
            pred[b : b + 1],
            Patches(content=patches.content[b : b + 1], coords=patches.coords[b : b + 1], source=patches.source[b : b + 1]),
            Mask(masked=mask.masked[b : b + 1], visible=mask.visible[b : b + 1]),
        )
        for b in range(2)
    ]
    torch.testing.assert_close((halves[0] + halves[1]) / 2, whole)


def test_target_and_loss_are_at_least_float32(patches: Patches, mask: Mask) -> None:
    target = Pixels.Config().build()
    pred = torch.randn_like(patches.content)
    assert target.loss(pred.bfloat16(), patches, mask).dtype == torch.float32
    with torch.autocast("cpu", torch.bfloat16):
        assert target.values(patches).dtype == torch.float32
        assert torch.equal(target.loss(pred, patches, mask), target.loss(pred.clone(), patches, mask))
    double = Patches(content=patches.content.double(), coords=patches.coords, source=patches.source, grid=patches.grid)
    assert target.loss(pred.double(), double, mask).dtype == torch.float64


@pytest.mark.parametrize("normalise", [True, False])
def test_unnormalising_the_target_gives_the_pixels_back(patches: Patches, normalise: bool) -> None:
    target = Pixels.Config(normalise=normalise).build()
    torch.testing.assert_close(target.unnormalise(target.values(patches), patches), patches.content)


def test_a_uniform_patch_has_a_finite_target() -> None:
    patches = partition(torch.full((1, 3, 8, 8), 0.7), 4)
    assert Pixels.Config().build().values(patches).abs().max() < 1e-2


def test_a_loss_over_no_masked_patch_is_refused(patches: Patches) -> None:
    nothing = Mask.from_masked(torch.zeros(2, 6, dtype=torch.bool))
    with pytest.raises(UserError, match="no patch is masked"):
        Pixels.Config().build().loss(patches.content, patches, nothing)


def test_patches_of_one_value_cannot_be_normalised() -> None:
    patches = partition(torch.randn(1, 1, 3, 3), 1)
    with pytest.raises(UserError, match="single value"):
        Pixels.Config().build().values(patches)
    assert torch.equal(Pixels.Config(normalise=False).build().values(patches), patches.content)
