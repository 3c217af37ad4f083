"""Random erasing: which box, that it is noise, and that nothing but the key decides."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from timm.data.random_erasing import RandomErasing

from hybridmap.data.erasing import box, erase
from hybridmap.data.folder import ImageFolder
from hybridmap.errors import UserError


def images(count: int = 6) -> torch.Tensor:
    return torch.full((count, 3, 40, 48), 100.0)


@given(key=st.integers(-(2**63), 2**63 - 1), height=st.integers(1, 300), width=st.integers(1, 300))
@settings(max_examples=200, deadline=None)
def test_a_box_lies_inside(key: int, height: int, width: int) -> None:
    found = box(key, (height, width), 1.0)
    if found is not None:
        top, left, tall, wide = found
        assert 0 <= top <= top + tall <= height
        assert 0 <= left <= left + wide <= width


def test_nothing_outside_of_the_box_changes_and_inside_is_noise() -> None:
    keys = list(range(200))
    erased = erase(images(200), keys, 0.25)
    changed = erased != 100.0
    chosen = [key for key in keys if box(key, (40, 48), 0.25)]
    assert 30 < len(chosen) < 70
    for key in keys:
        inside = torch.zeros(40, 48, dtype=torch.bool)
        if (found := box(key, (40, 48), 0.25)) is not None:
            inside[found[0] : found[0] + found[2], found[1] : found[1] + found[3]] = True
        assert torch.equal(changed[key], inside.expand(3, -1, -1))
    noise = erased[changed]
    assert abs(noise.mean()) < 0.02
    assert abs(noise.std() - 1) < 0.02


def test_the_boxes_are_as_large_as_timms() -> None:
    torch.manual_seed(0)
    theirs = RandomErasing(probability=1.0, mode="pixel", device="cpu")
    area_theirs = torch.tensor([float((theirs(torch.full((3, 64, 64), 9.0)) != 9.0)[0].sum()) for _ in range(1500)])
    found = [box(key, (64, 64), 1.0) for key in range(1500)]
    area_ours = torch.tensor([float(b[2] * b[3]) if b else 0.0 for b in found])
    for q in (0.1, 0.25, 0.5, 0.75, 0.9):
        assert area_ours.quantile(q).item() == pytest.approx(area_theirs.quantile(q).item(), rel=0.12)


def test_an_image_is_erased_alike_whatever_stands_beside_it() -> None:
    keys = list(range(6))
    whole = erase(images(), keys, 1.0)
    parts = torch.cat([erase(images(2), keys[i : i + 2], 1.0) for i in (0, 2, 4)])
    assert torch.equal(whole, parts)
    pixel_by_pixel = images().to(memory_format=torch.channels_last)
    assert torch.equal(erase(pixel_by_pixel, keys, 1.0), whole)


def test_a_probability_of_none_changes_nothing_and_an_impossible_one_is_refused() -> None:
    given = images()
    assert erase(given, range(6), 0.0) is given
    with pytest.raises(UserError, match=r"data\.erasing must be a part between 0 and 1, got 1.5"):
        ImageFolder.Config(erasing=1.5)
