"""Crops: functions of a key, equal to torchvision's where both compute the same, and within the image always."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.transforms import InterpolationMode
from torchvision.transforms import v2 as T

from hybridmap.data.image_transforms import CentreCrop, RandomResizedCrop, denormalise, normalise, resize
from hybridmap.errors import UserError
from hybridmap.hashing import hash_ints

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def picture(height: int, width: int) -> torch.Tensor:
    """A smooth picture (3, height, width), uint8, unlike its mirror image."""
    y, x = torch.meshgrid(torch.arange(height) / height, torch.arange(width) / width, indexing="ij")
    return (torch.stack([x, y, (x * 7).sin() ** 2]) * 255).to(torch.uint8)


@given(st.integers(1, 400), st.integers(1, 400), st.integers(-(2**63), 2**63 - 1))
@settings(max_examples=200, deadline=None)
def test_every_box_lies_in_the_image(height: int, width: int, key: int) -> None:
    top, left, h, w = RandomResizedCrop.Config().build().box((height, width), key)
    assert 0 <= top <= top + h <= height
    assert 0 <= left <= left + w <= width
    assert h >= 1
    assert w >= 1


def test_boxes_have_the_distribution_of_torchvision() -> None:
    ours = RandomResizedCrop.Config().build()
    theirs = T.RandomResizedCrop(224, scale=(0.2, 1.0))
    image = torch.empty(3, 120, 160, dtype=torch.uint8)
    n = 3000
    a = torch.tensor([ours.box((120, 160), hash_ints(1, i)) for i in range(n)], dtype=torch.float64)
    drawn = [theirs.make_params([image]) for _ in range(n)]
    b = torch.tensor([[p["top"], p["left"], p["height"], p["width"]] for p in drawn], dtype=torch.float64)
    # Means agree within four standard errors, spreads within a tenth.
    error = (a.var(0) / n + b.var(0) / n).sqrt()
    assert ((a.mean(0) - b.mean(0)).abs() < 4 * error).all()
    assert ((a.std(0) / b.std(0) - 1).abs() < 0.1).all()


def test_a_box_is_resized_as_torchvision_does() -> None:
    image = picture(97, 131)
    crop = RandomResizedCrop.Config(flip=False).build()
    for key in range(5):
        top, left, h, w = crop.box((97, 131), key)
        expected = T.functional.resized_crop(
            image, top, left, h, w, [64, 64], interpolation=InterpolationMode.BICUBIC, antialias=True
        )
        assert (crop(image, (64, 64), key).int() - expected.int()).abs().max() <= 1


def test_an_image_too_narrow_for_any_box_is_cropped_at_its_centre() -> None:
    crop = RandomResizedCrop.Config(scale=(1.0, 1.0)).build()
    assert crop.box((10, 1000), 3) == (0, (1000 - 13) // 2, 10, 13)
    assert crop.box((1000, 9), 3) == ((1000 - 12) // 2, 0, 12, 9)


def test_half_of_the_crops_are_mirrored_and_none_without_flip() -> None:
    image = picture(32, 32)
    with_flip = RandomResizedCrop.Config(scale=(1.0, 1.0), ratio=(1.0, 1.0)).build()
    without = RandomResizedCrop.Config(scale=(1.0, 1.0), ratio=(1.0, 1.0), flip=False).build()
    keys = [hash_ints(i) for i in range(400)]
    mirrored = sum(torch.equal(with_flip(image, (32, 32), key), image.flip(-1)) for key in keys)
    assert 150 < mirrored < 250
    assert all(torch.equal(without(image, (32, 32), key), image) for key in keys[:20])


def test_a_random_filter_is_bilinear_for_half_of_the_keys() -> None:
    image = torch.randint(0, 256, (3, 60, 80), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    plain, random = (RandomResizedCrop.Config(filter=name, flip=False).build() for name in ("bicubic", "random"))
    same = 0
    for key in range(60):
        top, left, h, w = plain.box((60, 80), key)
        bilinear = resize(image[:, top : top + h, left : left + w], (24, 24), "bilinear")
        found = random(image, (24, 24), key)
        same += torch.equal(found, plain(image, (24, 24), key))
        assert torch.equal(found, bilinear) or torch.equal(found, plain(image, (24, 24), key))
    assert 15 < same < 45


def test_a_crop_of_a_smaller_decode_shows_the_same_part() -> None:
    large = picture(480, 640)
    small = torch.nn.functional.interpolate(large[None].float(), (120, 160), mode="area")[0].round().to(torch.uint8)
    for crop in (RandomResizedCrop.Config().build(), CentreCrop.Config().build()):
        for key in range(6):
            a, b = crop(large, (32, 32), key), crop(small, (32, 32), key, (480, 640))
            assert (a.int() - b.int()).abs().float().mean() < 2


@pytest.mark.parametrize("full", [(375, 500), (500, 375), (256, 256), (300, 301), (61, 47)])
def test_centre_crop_is_the_usual_evaluation(full: tuple[int, int]) -> None:
    image = picture(*full)
    usual = T.Compose([T.Resize(64, interpolation=InterpolationMode.BICUBIC, antialias=True), T.CenterCrop(56)])
    ours = CentreCrop.Config().build()(image, (56, 56), 0)
    assert (ours.int() - usual(image).int()).abs().max() <= 1


@pytest.mark.parametrize("size", [(32, 32), (24, 40), (40, 24)])
@pytest.mark.parametrize("full", [(1, 1), (7, 300), (300, 7), (64, 48)])
def test_any_image_becomes_the_size_asked_for(size: tuple[int, int], full: tuple[int, int]) -> None:
    for crop in (RandomResizedCrop.Config().build(), CentreCrop.Config().build()):
        assert crop(picture(*full), size, 5).shape == (3, *size)
        assert min(crop.window(full, size, 5)) >= 0


def test_normalise_is_the_usual_formula_and_denormalise_its_inverse() -> None:
    images = torch.randint(0, 256, (2, 3, 8, 8), dtype=torch.uint8)
    out = normalise(images, MEAN, STD)
    expected = T.functional.normalize(images.double() / 255, list(MEAN), list(STD))
    assert out.dtype == torch.float32
    assert torch.allclose(out.double(), expected, atol=1e-6)
    assert torch.allclose(denormalise(out, MEAN, STD), images / 255, atol=1e-6)


def test_normalised_images_are_returned_as_they_are() -> None:
    images = torch.randn(1, 3, 4, 4)
    assert normalise(images, MEAN, STD) is images


@pytest.mark.parametrize("config", [RandomResizedCrop.Config, CentreCrop.Config])
def test_impossible_crops_are_refused(config: type) -> None:
    bad = {"scale": (0.0, 1.0)} if config is RandomResizedCrop.Config else {"crop_ratio": 1.5}
    with pytest.raises(UserError, match="crop"):
        config(**bad)
