"""Made shapes: the same everywhere, uniform over their surfaces, every point in its part; and clips of them that move."""

from __future__ import annotations

import numpy as np
import pytest

from hybridmap.data.clouds import Cloud, Procedural, moving_clip, normalise_cloud
from hybridmap.data.clouds.families import FAMILIES
from hybridmap.data.clouds.procedural import ACTIONS
from hybridmap.data.clouds.solids import cuboid, cylinder, extruded, hexahedron, revolved, superquadric, tube
from hybridmap.data.clouds.surfaces import Solid, areas, generator_of, sample_surface, sample_union
from hybridmap.errors import UserError


def test_normalised_clouds_have_their_mean_at_zero_and_touch_the_unit_sphere() -> None:
    points = normalise_cloud(np.random.default_rng(0).normal(size=(100, 3)).astype(np.float32) * 5 + 40)
    assert points.dtype == np.float32
    assert np.abs(points.mean(0)).max() < 1e-6
    assert np.linalg.norm(points, axis=1).max() == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("value", [0.0, 0.1, 1e30, -7.3])
@pytest.mark.parametrize("count", [1, 3, 1000])
def test_a_cloud_without_extent_is_all_zeros_and_not_nan(value: float, count: int) -> None:
    assert (normalise_cloud(np.full((count, 3), value, dtype=np.float32)) == 0).all()


def test_normalising_neither_overflows_nor_loses_small_shapes() -> None:
    shape = np.random.default_rng(0).normal(size=(50, 3)).astype(np.float32)
    usual = normalise_cloud(shape)
    assert normalise_cloud(shape * np.float32(1e30)) == pytest.approx(usual, abs=1e-6)
    assert normalise_cloud(shape * np.float32(1e-30)) == pytest.approx(usual, abs=1e-6)


def test_a_shape_is_a_function_of_seed_and_index_alone() -> None:
    one, again = Procedural(28, points=64, seed=3), Procedural(1000, points=64, seed=3)
    for index in (0, 9, 27, 13):
        assert one.read(index).points.tobytes() == again.read(index).points.tobytes()
    assert not np.array_equal(one.read(0).points, one.read(14).points), "two of one family"
    assert not np.array_equal(one.read(0).points, Procedural(28, points=64, seed=4).read(0).points)


def test_global_random_state_is_neither_read_nor_changed() -> None:
    source = Procedural(14, points=64)
    np.random.seed(1)
    before, first = np.random.get_state()[1].copy(), source.read(9).points
    assert (np.random.get_state()[1] == before).all()
    np.random.seed(2)
    assert (source.read(9).points == first).all()


def test_every_family_has_all_its_parts_and_only_those() -> None:
    source = Procedural(14 * 5, points=1024)
    assert source.classes == tuple(FAMILIES)
    assert source.parts[-1] == (19, 20, 21)
    assert source.part_names[19:] == ("aircraft body", "aircraft wings", "aircraft tail")
    for index in range(len(source)):
        cloud = source.read(index)
        assert cloud.points.shape == (1024, 3)
        assert cloud.points.dtype == np.float32
        assert 0.1 < np.abs(cloud.points).max() < 3
        assert cloud.label == index % 14 == source.label(index)
        assert set(np.unique(cloud.parts)) == set(source.parts[cloud.label]), source.name(index)


def test_chosen_families_number_their_own_parts_and_keep_their_names() -> None:
    source = Procedural(4, points=256, families=("mug", "chair"))
    assert source.parts == ((0, 1), (2, 3, 4))
    assert set(np.unique(source.read(1).parts)) == {2, 3, 4}
    assert source.name(1) == "chair:0:1"


def test_parts_lie_where_they_belong() -> None:
    chairs = Procedural(6, points=2048, families=("chair",))
    for index in range(6):
        cloud = chairs.read(index)
        seat, back, legs = (cloud.points[cloud.parts == part] for part in range(3))
        assert legs[:, 1].mean() < seat[:, 1].mean() < back[:, 1].mean()
        assert back[:, 2].mean() < seat[:, 2].mean()
    mugs = Procedural(6, points=2048, families=("mug",))
    for index in range(6):
        cloud = mugs.read(index)
        body, handle = (cloud.points[cloud.parts == part] for part in range(2))
        assert handle[:, 0].min() > 0.5 * body[:, 0].max()
        assert handle[:, 0].max() > body[:, 0].max()


def test_points_are_uniform_over_area() -> None:
    box = cuboid(1.0, 2.0, 4.0)
    points, index = sample_surface(box.triangles, 40_000, generator_of(1))
    share = np.bincount(index, minlength=12) / 40_000
    assert share == pytest.approx(areas(box.triangles) / areas(box.triangles).sum(), abs=0.01)
    on_top = points[np.isclose(points[:, 1], 1.0)]
    counts = np.histogram2d(on_top[:, 0], on_top[:, 2], bins=4, range=[[-0.5, 0.5], [-2, 2]])[0]
    assert counts / counts.mean() == pytest.approx(np.ones((4, 4)), abs=0.15)


def test_triangles_without_area_get_no_points() -> None:
    flat = np.zeros((1, 3, 3))
    good = np.array([[[0.0, 0, 0], [1, 0, 0], [0, 1, 0]]])
    _, index = sample_surface(np.concatenate([flat, good, flat]), 1000, generator_of(0))
    assert (index == 1).all()


@pytest.mark.parametrize(
    ("solid", "area"),
    [
        (cuboid(1.0, 2.0, 3.0), 22.0),
        (superquadric(1.0, 1.0), 4 * np.pi),
        (cylinder(0.5, 2.0), np.pi * 2.5),
        (cylinder(0.5, 2.0, top=0.0), np.pi * 0.5 * (0.5 + np.hypot(0.5, 2.0))),
    ],
)
def test_solids_have_the_areas_of_the_books(solid: Solid, area: float) -> None:
    assert areas(solid.triangles).sum() == pytest.approx(area, rel=3e-3)


SOLIDS = {
    "cuboid": cuboid(1.0, 0.5, 0.8),
    "skew": hexahedron(
        np.array([[0.0, -0.5, -0.5], [0.0, -0.5, 0.5], [0.0, 0.5, 0.5], [0.0, 0.5, -0.5]]),
        np.array([[1.0, -0.2, -0.5], [1.0, -0.2, 0.1], [1.0, 0.2, 0.1], [1.0, 0.2, -0.5]]),
    ),
    "superquadric": superquadric(0.6, 1.4),
    "ring": revolved(np.array([[0.4, -0.1], [0.6, -0.1], [0.6, 0.1], [0.4, 0.1]])),
    "cone": cylinder(0.5, 1.0, top=0.1),
    "twisted": extruded(np.array([[0.5, 0.0], [0.0, 0.5], [-0.5, 0.0], [0.0, -0.5]]), 1.0, twist=0.7, taper=0.8),
    "tube": tube(np.stack([np.linspace(0, 1, 9), np.zeros(9), np.zeros(9)], axis=1), 0.2, np.array([0.0, 1.0, 0.0])),
}


@pytest.mark.parametrize("name", SOLIDS)
def test_the_surface_of_a_solid_divides_inside_from_outside(name: str) -> None:
    solid = SOLIDS[name].turned(2, 0.4).scaled(1.0, 2.0, 0.5).moved(1.0, -2.0, 0.5)
    corners = solid.triangles
    normal = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    length = np.linalg.norm(normal, axis=1)
    large = length > np.quantile(length, 0.3)
    centre, normal = corners.mean(1)[large], normal[large] / length[large][:, None]
    # A tube's inside is that of round pieces; its ends bulge by its radius.
    step = 0.02
    one, other = solid.inside(centre + step * normal), solid.inside(centre - step * normal)
    assert (one != other).mean() > (0.6 if name == "tube" else 0.97)


def test_what_lies_inside_another_solid_is_no_surface() -> None:
    big, small = cuboid(2.0, 2.0, 2.0), cuboid(1.0, 1.0, 1.0).moved(1.0, 0.0, 0.0).as_part(1)
    points, parts = sample_union([big, small], 5000, generator_of(5))
    assert len(points) == 5000
    assert not small.inside(points[parts == 0]).any()
    assert not big.inside(points[parts == 1]).any()
    # Of the small box half is outside, without one face: 1 + 4 / 2 of 24 - 1 + 3.
    assert (parts == 1).mean() == pytest.approx(3 / 26, abs=0.02)


@pytest.mark.parametrize(
    "fields",
    [{"count": 0}, {"points": 0}, {"families": ()}, {"families": ("chair", "sofa")}, {"families": ("mug", "mug")}],
)
def test_impossible_shapes_are_refused(fields: dict) -> None:
    with pytest.raises(UserError, match=r"expected different families|need one shape"):
        Procedural(**{"count": 1} | fields)


def test_a_clip_is_continuous_and_its_labels_say_how_it_moves() -> None:
    seen = set()
    for index in range(60):
        clip, labels = moving_clip(7, index, 24, 48)
        assert clip.shape == (24, 48, 3)
        assert clip.dtype == np.float32
        changes = np.flatnonzero(np.diff(labels))
        assert 1 <= len(changes) <= 2
        assert np.diff([-1, *changes, 23]).min() >= 4
        centre = clip.mean(1)
        spread = np.linalg.norm(clip - centre[:, None], axis=2).mean(1)
        steps = np.linalg.norm(np.diff(clip, axis=0), axis=2).max(1)
        assert steps.max() < 1.5, "nothing jumps"
        for frame in range(1, 24):
            moved = np.linalg.norm(centre[frame] - centre[frame - 1])
            grown = abs(spread[frame] / spread[frame - 1] - 1)
            action = ACTIONS[labels[frame]]
            seen.add(action)
            if action == "still":
                assert steps[frame - 1] == 0
            elif action == "grow":
                assert grown > 0.005
            else:
                assert grown < 1e-4
                if action == "rotate":
                    assert moved < 1e-4
                    assert steps[frame - 1] > 0.005
                if action == "translate":
                    assert moved > 0.005
                if action == "bounce":
                    assert np.abs(centre[frame] - centre[frame - 1])[[0, 2]].max() < 1e-5
    assert seen == set(ACTIONS)


def test_clips_of_any_length_are_functions_of_seed_and_index() -> None:
    for frames in (1, 2, 3, 5, 150):
        clip, labels = moving_clip(1, 2, frames, 16)
        again, same = moving_clip(1, 2, frames, 16)
        assert clip.tobytes() == again.tobytes()
        assert (labels == same).all()
        assert np.isfinite(clip).all()
        assert len(set(labels.tolist())) >= min(frames, 2)
    with pytest.raises(UserError, match="one frame"):
        moving_clip(0, 0, 0, 5)


def test_a_cloud_is_checked_for_its_shape() -> None:
    with pytest.raises(Exception, match=r"points|shape|Float"):
        Cloud(points=np.zeros((5, 2), dtype=np.float32), label=0)
