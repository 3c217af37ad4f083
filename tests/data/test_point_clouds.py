"""Clouds as training data: which points, that the key decides, augmentation, and what cannot be had."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from hybridmap.data.loader import Loader, each
from hybridmap.data.point_augment import PointAugment, Rotate, RotateAndScale, ScaleAndTranslate
from hybridmap.data.point_clouds import CloudFolder, MadeShapes
from hybridmap.errors import UserError
from hybridmap.hashing import hash_ints

AUGMENTS = [Rotate.Config(), ScaleAndTranslate.Config(), RotateAndScale.Config()]


def keys(count: int, seed: int = 1) -> list[int]:
    return [hash_ints(seed, k) for k in range(count)]


def made(**choices: object) -> MadeShapes.Config:
    return MadeShapes.Config(**{"count": 14, "points": 32, "dense": 64} | choices)  # type: ignore[arg-type]


def test_some_points_of_each_cloud_in_the_unit_sphere_are_drawn_by_the_key() -> None:
    data = made().build()
    one, again, other = (data.sample(3, key).image for key in (5, 5, 6))
    assert one.shape == (32, 3)
    assert torch.equal(one, again)
    assert not torch.equal(one, other)
    assert len({tuple(point) for point in one.tolist()}) == 32, "a point came twice"
    whole = made(points=64, sampling="first").build().sample(3, 0).image
    assert whole.norm(dim=1).max() == pytest.approx(1.0, abs=1e-5)
    assert {tuple(point) for point in one.tolist()} <= {tuple(point) for point in whole.tolist()}


def test_without_chance_the_first_points_come() -> None:
    data = made(sampling="first").build()
    assert torch.equal(data.sample(0, 1).image, data.sample(0, 2).image)


def test_batches_are_the_same_with_any_number_of_workers_and_continue_anywhere() -> None:
    config = made(augment=RotateAndScale.Config())

    def batches(start: int = 0, workers: int = 0) -> list[torch.Tensor]:
        loader = Loader(config, batch_size=4, steps=5, seed=2, start_step=start, workers=workers)
        return [batch.inputs for step in loader for batch in step]

    whole = batches()
    assert [tuple(batch.shape) for batch in whole] == [(4, 32, 3)] * 5
    assert all(map(torch.equal, batches(workers=2), whole))
    assert all(map(torch.equal, batches(start=3), whole[3:]))


def test_evaluation_sees_every_cloud_once_with_its_class() -> None:
    config = made()
    found = list(each(config.build(), 4))
    assert torch.cat([labels for _, labels, _ in found]).tolist() == list(range(14))
    assert config.build().labelled()[0] == "box"


@pytest.mark.parametrize("config", AUGMENTS, ids=lambda config: type(config).__qualname__)
def test_the_key_decides_what_is_done_to_a_cloud(config: PointAugment.Config) -> None:
    augment, clouds, named = config.build(), torch.randn(6, 20, 3), keys(6)
    found = augment(clouds, named)
    assert torch.equal(found, torch.cat([augment(clouds[i : i + 2], named[i : i + 2]) for i in (0, 2, 4)]))
    assert not torch.equal(augment(clouds, keys(6, seed=2)), found)


def test_a_rotation_keeps_heights_and_distances() -> None:
    clouds = torch.randn(200, 5, 3)
    found = Rotate.Config().build()(clouds, keys(200))
    assert torch.allclose(found[..., 1], clouds[..., 1], atol=1e-6)
    assert torch.allclose(found.norm(dim=-1), clouds.norm(dim=-1), atol=1e-5)
    point = torch.tensor([[[1.0, 0.0, 0.0]]]).expand(2000, 1, 3)
    turned = Rotate.Config().build()(point, keys(2000))[:, 0]
    angle = torch.atan2(turned[:, 2], turned[:, 0])
    assert angle.min() < -0.98 * math.pi
    assert angle.max() > 0.98 * math.pi
    assert abs(angle.mean()) < 0.15


def test_scales_and_shifts_have_their_range() -> None:
    ends = torch.tensor([[[0.0, 0.0, 0.0], [1.0, 1.0, 1.0]]]).expand(2000, 2, 3)
    found = ScaleAndTranslate.Config().build()(ends, keys(2000))
    shift, scale = found[:, 0], found[:, 1] - found[:, 0]
    assert -0.2 <= shift.min() < -0.19
    assert 0.19 < shift.max() <= 0.2
    assert 2 / 3 - 1e-6 <= scale.min() < 0.68
    assert 1.49 < scale.max() <= 1.5 + 1e-6
    assert abs(torch.corrcoef(torch.cat([shift, scale], dim=1).T).fill_diagonal_(0)).max() < 0.1


def test_a_cloud_with_too_few_points_gives_some_twice_or_is_passed_over(tmp_path: Path) -> None:
    for name, count in (("a", 10), ("b", 50)):
        np.save(tmp_path / f"{name}.npy", np.random.default_rng(0).normal(size=(count, 3)).astype(np.float32))
    drawn = CloudFolder.Config(root=str(tmp_path), points=32).build()
    assert drawn.sample(0, 1).image.shape == (32, 3)
    first = CloudFolder.Config(root=str(tmp_path), points=32, sampling="first").build()
    samples = first.samples([0, 1], [1, 2])
    assert list(samples.skipped.values()) == ["it has 10 points where 32 are wanted"]
    assert samples.images.shape == (2, 32, 3)
    with pytest.raises(UserError, match="none of the 2 clouds can be read"):
        CloudFolder.Config(root=str(tmp_path), points=99, sampling="first").build().samples([0], [0])


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: made(points=0), "data.points must be at least 1"),
        (lambda: CloudFolder.Config().build(), "a folder of meshes or clouds was expected"),
        (lambda: ScaleAndTranslate.Config(scale=(2.0, 1.0)), "0 < low <= high"),
        (lambda: ScaleAndTranslate.Config(shift=-1.0), "augment.shift must be 0 or more"),
    ],
)
def test_impossible_settings_are_refused(build: object, message: str) -> None:
    with pytest.raises(UserError, match=message):
        build()  # type: ignore[operator]
