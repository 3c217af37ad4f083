"""What is done to crops: a function of the key, equal to timm's and torchvision's where they compute the same."""

from __future__ import annotations

from collections import Counter
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data.auto_augment import AugmentOp
from torchvision.transforms import v2 as T

from hybridmap.data.augment import OPERATIONS, Augment, RandAugment, ThreeAugment, Unchanged
from hybridmap.data.folder import ImageFolder
from hybridmap.errors import UserError
from hybridmap.hashing import hash_ints

MEAN = (0.485, 0.456, 0.406)
BOTH = [ThreeAugment.Config(), RandAugment.Config()]


@pytest.fixture(scope="module")
def picture() -> torch.Tensor:
    """Smooth shapes in colour, uint8."""
    y, x = torch.meshgrid(torch.arange(40) / 40, torch.arange(48) / 48, indexing="ij")
    return (torch.stack([x, y, (x * 7 + y).sin() ** 2]) * 255).to(torch.uint8)


@pytest.mark.parametrize("config", BOTH, ids=lambda config: type(config).__qualname__)
def test_the_key_decides_and_nothing_else_moves(config: Augment.Config, picture: torch.Tensor) -> None:
    augment, before = config.build(), picture.clone()
    state = np.random.get_state()[1].tolist(), torch.get_rng_state()
    found = [augment(picture, hash_ints(7, k), MEAN) for k in range(30)]
    again = [augment(picture, hash_ints(7, k), MEAN) for k in reversed(range(30))]
    assert all(map(torch.equal, found, reversed(again)))
    assert len({image.numpy().tobytes() for image in found}) > 15
    assert all(image.shape == picture.shape and image.dtype == torch.uint8 for image in found)
    assert torch.equal(picture, before)
    assert state[0] == np.random.get_state()[1].tolist()
    assert torch.equal(state[1], torch.get_rng_state())


def test_a_third_each_is_grey_solarised_and_blurred(picture: torch.Tensor) -> None:
    augment = ThreeAugment.Config(jitter=0.0).build()
    found = [augment(picture, hash_ints(3, k), MEAN) for k in range(600)]
    grey = sum(torch.equal(image[0], image[1]) and torch.equal(image[1], image[2]) for image in found)
    solarised = torch.where(picture < 128, picture, 255 - picture)
    negative = sum(torch.equal(image, solarised) for image in found)
    assert 160 < grey < 240
    assert 160 < negative < 240


def test_jitter_is_uniform_around_one() -> None:
    flat = torch.full((3, 8, 8), 100, dtype=torch.uint8)  # whatever else is done to it, only brightness shows
    augment = ThreeAugment.Config().build()
    rates = torch.tensor([augment(flat, hash_ints(5, k), MEAN).float().mean() / 100 for k in range(600)])
    # grey values and three changes round down, so that the range is shifted by a few of 100 levels
    assert 0.66 <= rates.min() < 0.72
    assert 1.26 < rates.max() <= 1.31
    low, middle, high = rates.quantile(torch.tensor([0.25, 0.5, 0.75]))
    assert abs((high - low) - 0.3) < 0.04
    assert 0.93 < middle < 1.01


def test_blurs_are_torchvisions(picture: torch.Tensor) -> None:
    augment = ThreeAugment.Config(jitter=0.0, blur=(1.5, 1.5)).build()
    expected = T.functional.gaussian_blur(picture, [11, 11], [1.5, 1.5])
    assert any(torch.equal(augment(picture, hash_ints(9, k), MEAN), expected) for k in range(20))


@pytest.mark.parametrize("name", OPERATIONS)
@pytest.mark.parametrize("strength", [0.0, 4.3, 9.0, 10.0])
def test_operations_are_timms(name: str, strength: float, picture: torch.Tensor) -> None:
    image = T.functional.to_pil_image(picture)
    outside = {"fillcolor": (124, 116, 104), "resample": Image.Resampling.BICUBIC}
    hints = {"img_mean": outside["fillcolor"], "interpolation": outside["resample"], "translate_pct": 0.45}
    if name == "PosterizeIncreasing" and strength == 10:  # no bit is left, for which newer Pillows have no answer
        assert not any(OPERATIONS[name](image, 1.0, 1.0, outside).tobytes())
        return
    theirs = AugmentOp(name, prob=1.0, magnitude=strength, hparams=hints)
    expected = {theirs(image).tobytes() for _ in range(40)}  # of either sign
    ours = {OPERATIONS[name](image, strength / 10, sign * strength / 10, outside).tobytes() for sign in (-1, 1)}
    assert ours == expected


def test_operations_are_drawn_equally_often_and_half_of_them_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    found: Counter[str] = Counter()
    levels = []

    def counted(name: str, image: Image.Image, level: float, signed: float, outside: object) -> Image.Image:
        found[name] += 1
        levels.append(level)
        assert abs(signed) == level
        return image

    for name in OPERATIONS:
        monkeypatch.setitem(OPERATIONS, name, partial(counted, name))
    augment = RandAugment.Config().build()
    for k in range(3000):
        augment(torch.zeros(3, 2, 2, dtype=torch.uint8), hash_ints(2, k), MEAN)
    assert 2850 < found.total() < 3150
    assert len(found) == 15
    assert 140 < min(found.values()) < max(found.values()) < 260
    assert max(levels) == 1.0
    assert abs(sum(levels) / len(levels) - 0.9) < 0.01


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


def test_a_folder_augments_what_it_has_cropped(tmp_path: Path, picture: torch.Tensor) -> None:
    T.functional.to_pil_image(picture).save(tmp_path / "a.png")
    plain, changed = (
        ImageFolder.Config(root=str(tmp_path), size=16, workers=0, augment=augment).build()
        for augment in (Unchanged.Config(), RandAugment.Config())
    )
    for key in range(5):
        crop = plain.sample(0, key).image
        assert torch.equal(changed.sample(0, key).image, RandAugment.Config().build()(crop, key, MEAN))
