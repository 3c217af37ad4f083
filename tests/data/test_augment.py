"""What is done to crops: a function of the key, equal to timm's, Pillow's and torchvision's where they compute the same."""

from __future__ import annotations

from collections import Counter
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision.transforms.v2.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageEnhance, ImageFilter, ImageOps
from timm.data.auto_augment import AugmentOp

from hybridmap.data import image_operations as op
from hybridmap.data import loader
from hybridmap.data.augment import OPERATIONS, Augment, RandAugment, ThreeAugment, Unchanged
from hybridmap.data.folder import ImageFolder
from hybridmap.data.loader import Loader, each
from hybridmap.errors import UserError
from hybridmap.hashing import hash_ints

MEAN = (0.485, 0.456, 0.406)
OUTSIDE = (124, 116, 104)
BOTH = [ThreeAugment.Config(), RandAugment.Config()]
PLACED = {"Rotate", "ShearX", "ShearY", "TranslateXRel", "TranslateYRel"}


@pytest.fixture(scope="module")
def picture() -> torch.Tensor:
    """Smooth shapes in colour, uint8."""
    y, x = torch.meshgrid(torch.arange(40) / 40, torch.arange(48) / 48, indexing="ij")
    return (torch.stack([x, y, (x * 7 + y).sin() ** 2]) * 255).to(torch.uint8)


def keys(seed: int, count: int) -> list[int]:
    return [hash_ints(seed, k) for k in range(count)]


def amount(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


@pytest.mark.parametrize("config", BOTH, ids=lambda config: type(config).__qualname__)
def test_the_key_decides_and_nothing_else_moves(config: Augment.Config, picture: torch.Tensor) -> None:
    augment, named = config.build(), keys(7, 30)
    batch = picture.repeat(30, 1, 1, 1)
    before = batch.clone()
    state = np.random.get_state()[1].tolist(), torch.get_rng_state()
    found = augment(batch, named, MEAN)
    again = torch.cat([augment(batch[:5], named[i : i + 5], MEAN) for i in range(0, 30, 5)])
    assert torch.equal(found, again), "an image depends on what stands beside it"
    pixel_by_pixel = batch.to(memory_format=torch.channels_last)
    assert torch.equal(augment(pixel_by_pixel, named, MEAN), found)
    assert len({image.numpy().tobytes() for image in found}) > 15
    assert found.shape == batch.shape
    assert found.dtype == torch.uint8
    assert torch.equal(batch, before)
    assert state[0] == np.random.get_state()[1].tolist()
    assert torch.equal(state[1], torch.get_rng_state())


@pytest.mark.parametrize("config", BOTH, ids=lambda config: type(config).__qualname__)
@given(height=st.integers(1, 9), width=st.integers(1, 9), seed=st.integers(0, 2**31))
@settings(max_examples=30, deadline=None)
def test_images_of_any_size_are_changed(config: Augment.Config, height: int, width: int, seed: int) -> None:
    images = torch.randint(256, (12, 3, height, width), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))
    assert config.build()(images, keys(seed, 12), MEAN).shape == images.shape


def test_a_third_each_is_grey_solarised_and_blurred(picture: torch.Tensor) -> None:
    found = ThreeAugment.Config(jitter=0.0).build()(picture.repeat(600, 1, 1, 1), keys(3, 600), MEAN)
    grey = sum(torch.equal(image[0], image[1]) and torch.equal(image[1], image[2]) for image in found)
    solarised = torch.where(picture < 128, picture, 255 - picture)
    negative = sum(torch.equal(image, solarised) for image in found)
    assert 160 < grey < 240
    assert 160 < negative < 240


def test_jitter_is_uniform_around_one() -> None:
    flat = torch.full((600, 3, 8, 8), 100, dtype=torch.uint8)  # whatever else is done to it, only brightness shows
    rates = ThreeAugment.Config().build()(flat, keys(5, 600), MEAN).float().mean((1, 2, 3)) / 100
    # three changes round down, so that the range is shifted by a few of 100 levels
    assert 0.66 <= rates.min() < 0.72
    assert 1.26 < rates.max() <= 1.31
    low, middle, high = rates.quantile(torch.tensor([0.25, 0.5, 0.75]))
    assert abs((high - low) - 0.3) < 0.04
    assert 0.93 < middle < 1.01


@pytest.mark.parametrize("sigma", [0.1, 0.7, 1.5, 2.0])
def test_blurs_are_torchvisions_and_close_to_pillows(sigma: float, picture: torch.Tensor) -> None:
    found = op.blur(picture[None], amount(sigma), 2.0)[0].int()
    expected = F.gaussian_blur(picture, [13, 13], [sigma, sigma]).int()
    inside = (slice(None), slice(6, -6), slice(6, -6))  # torchvision mirrors what lies beyond the border
    assert (found - expected)[inside].abs().max() <= 1
    assert (found != expected)[inside].float().mean() < 0.001
    pillow = F.pil_to_tensor(F.to_pil_image(picture).filter(ImageFilter.GaussianBlur(sigma))).int()
    assert (found - pillow).abs().float().mean() < 1.0


def test_each_image_has_its_own_amount(picture: torch.Tensor) -> None:
    pair, outside = picture.repeat(2, 1, 1, 1), torch.tensor(OUTSIDE, dtype=torch.uint8)
    for operation in OPERATIONS.values():
        both = operation(pair, amount(0.3, -0.9), outside)
        alone = [operation(picture[None], amount(value), outside)[0] for value in (0.3, -0.9)]
        assert all(map(torch.equal, both, alone))
    assert torch.equal(op.blur(pair, amount(0.5, 2.0), 2.0)[1], op.blur(picture[None], amount(2.0), 2.0)[0])


def test_three_augments_changes_are_pillows(picture: torch.Tensor) -> None:
    image, batch = F.to_pil_image(picture), picture[None]
    assert torch.equal(op.grey(batch)[0], F.pil_to_tensor(image.convert("L").convert("RGB")))
    assert torch.equal(op.solarise(batch, amount(128))[0], F.pil_to_tensor(ImageOps.solarize(image, 128)))
    for ours, theirs in (
        (op.brightness, ImageEnhance.Brightness),
        (op.contrast, ImageEnhance.Contrast),
        (op.colour, ImageEnhance.Color),
    ):
        for factor in (0.7, 1.0, 1.3):
            assert torch.equal(ours(batch, amount(factor))[0], F.pil_to_tensor(theirs(image).enhance(factor)))


@pytest.mark.parametrize("name", OPERATIONS)
@pytest.mark.parametrize("strength", [0.0, 4.3, 9.0, 10.0])
@pytest.mark.parametrize("kind", ["smooth", "noise", "one colour", "two rows"])
def test_operations_are_timms(name: str, strength: float, kind: str, picture: torch.Tensor) -> None:
    noise = torch.randint(256, picture.shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    image = {"smooth": picture, "noise": noise, "one colour": picture[:, :1, :1].expand_as(picture), "two rows": noise[:, :2]}[
        kind
    ]
    ours = [OPERATIONS[name](image[None], amount(sign * strength / 10), torch.tensor(OUTSIDE).byte())[0] for sign in (-1, 1)]
    if name == "PosterizeIncreasing" and strength == 10:  # no bit is left, for which newer Pillows have no answer
        assert not any(found.any() for found in ours)
        return
    hints = {"img_mean": OUTSIDE, "interpolation": Image.Resampling.BICUBIC, "translate_pct": 0.45}
    theirs = AugmentOp(name, prob=1.0, magnitude=strength, hparams=hints)
    expected = [F.pil_to_tensor(theirs(F.to_pil_image(image))) for _ in range(40)]  # of either sign
    for found in ours:
        differing = min(((found.int() - one.int()).abs() for one in expected), key=lambda difference: int(difference.sum()))
        assert differing.max() <= (name in PLACED)
        # Moved by a fifth of a pixel, every other exact result is a whole number, and either rounding error decides.
        assert (differing > 0).float().mean() <= 0.01 * (name in PLACED)


def test_operations_are_drawn_equally_often_and_half_of_them_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    found: Counter[str] = Counter()
    levels = []

    def counted(name: str, images: torch.Tensor, signed: torch.Tensor, outside: torch.Tensor) -> torch.Tensor:
        found[name] += len(images)
        levels.extend(signed.tolist())
        return images

    for name in OPERATIONS:
        monkeypatch.setitem(OPERATIONS, name, partial(counted, name))
    RandAugment.Config().build()(torch.zeros(3000, 3, 2, 2, dtype=torch.uint8), keys(2, 3000), MEAN)
    assert 2850 < found.total() < 3150
    assert len(found) == 15
    assert 140 < min(found.values()) < max(found.values()) < 260
    assert max(levels) == 1.0
    assert abs(sum(map(abs, levels)) / len(levels) - 0.9) < 0.01
    assert abs(sum(levels) / len(levels)) < 0.06


def test_without_a_spread_the_strength_is_the_given_one(monkeypatch: pytest.MonkeyPatch) -> None:
    levels = set()
    for name in OPERATIONS:
        monkeypatch.setitem(OPERATIONS, name, lambda images, signed, outside: levels.update(signed.abs().tolist()) or images)
    config = RandAugment.Config(spread=0.0, strength=7.0, probability=1.0)
    config.build()(torch.zeros(50, 3, 2, 2, dtype=torch.uint8), keys(2, 50), MEAN)
    assert levels == {0.7}


@pytest.mark.parametrize(
    ("config", "fields", "message"),
    [
        (ThreeAugment.Config, {"jitter": 1.5}, r"augment\.jitter must lie in \[0, 1\], got 1.5"),
        (ThreeAugment.Config, {"blur": (2.0, 1.0)}, "0 < low <= high"),
        (RandAugment.Config, {"operations": 0}, r"augment\.operations must be at least 1, got 0"),
        (RandAugment.Config, {"probability": 1.1}, r"augment\.probability must lie in \[0, 1\], got 1.1"),
        (RandAugment.Config, {"strength": 11.0}, r"augment\.strength must lie in \[0, 10\], got 11.0"),
        (RandAugment.Config, {"spread": -1.0}, r"augment\.spread must be 0 or more, got -1.0"),
    ],
)
def test_impossible_settings_are_refused(config: type, fields: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        config(**fields).build()


@pytest.fixture
def folder(tmp_path: Path, picture: torch.Tensor) -> ImageFolder.Config:
    for k in range(5):
        F.to_pil_image(picture.roll(k, 2)).save(tmp_path / f"{k}.png")
    return ImageFolder.Config(root=str(tmp_path), size=16, workers=0, augment=RandAugment.Config())


def test_a_folder_augments_what_it_has_cropped(folder: ImageFolder.Config) -> None:
    dataset = folder.build()
    crops = dataset.samples(range(5), keys(4, 5)).images
    assert torch.equal(dataset.change(crops, keys(4, 5)), RandAugment.Config().build()(crops, keys(4, 5), MEAN))


@pytest.mark.parametrize("views", [1, 2])
def test_the_device_changes_images_as_the_workers_do(
    views: int, folder: ImageFolder.Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, config = (
        ImageFolder.Config(**vars(folder) | {"views": views} | more) for more in ({"augment": Unchanged.Config()}, {})
    )

    def batches(config: ImageFolder.Config) -> list[torch.Tensor]:
        steps = [batch for step in Loader(config, batch_size=4, steps=3, seed=1) for batch in step]
        return [image for batch in steps for image in (batch.views or (batch.inputs,))] + [
            x for x, _, _ in each(config.build(), 2)
        ]

    in_workers = batches(config)
    monkeypatch.setattr(loader, "_changes_here", lambda device: True)
    assert all(map(torch.equal, batches(config), in_workers))
    assert not all(map(torch.equal, batches(plain), in_workers))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
@pytest.mark.parametrize("config", BOTH, ids=lambda config: type(config).__qualname__)
def test_a_card_computes_the_same(config: Augment.Config, picture: torch.Tensor) -> None:
    augment, batch, named = config.build(), picture.repeat(64, 1, 1, 1), keys(8, 64)
    here, there = augment(batch, named, MEAN).int(), augment(batch.cuda(), named, MEAN).cpu().int()
    assert (here - there).abs().max() <= 8  # a neighbouring value, and what later operations make of it
    assert (here != there).float().mean() < 0.01
    assert torch.equal(augment(batch.cuda(), named, MEAN), augment(batch.cuda(), named, MEAN))
