"""FPS orders on disk: computed once, right, and whole whatever happens to the files."""

from __future__ import annotations

import multiprocessing
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from hybridmap.data.clouds import Cloud, FpsCache, Ordered, Procedural
from hybridmap.errors import UserError


def fps(points: Tensor, count: int) -> Tensor:
    """The operator's contract as a plain loop: greedy, from point 0, ties to the lowest index."""
    cloud, chosen = points[0].double(), [0]
    for _ in range(count - 1):
        chosen.append(int(torch.cdist(cloud, cloud[chosen]).amin(1).argmax()))
    return torch.tensor([chosen])


class Counted:
    """The operator, and how often it was asked."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, points: Tensor, count: int) -> Tensor:
        self.calls += 1
        return fps(points, count)


def cloud_of(count: int, seed: int = 0) -> Cloud:
    points = np.random.default_rng(seed).normal(size=(count, 3)).astype(np.float32)
    return Cloud(points=points, label=3, parts=np.arange(count))


def test_points_come_in_fps_order_with_their_parts_and_are_computed_once(tmp_path: Path) -> None:
    order, cloud = Counted(), cloud_of(200)
    expected = fps(torch.from_numpy(cloud.points)[None], 50)[0].numpy()
    for _ in range(3):
        found = FpsCache(tmp_path, 50, order)(cloud)
        assert (found.parts == expected).all()
        assert (found.points == cloud.points[expected]).all()
        assert found.parts[0] == 0
        assert found.label == 3
    assert order.calls == 1


def test_the_order_of_fewer_points_is_the_beginning_of_that_of_more(tmp_path: Path) -> None:
    few, many = (FpsCache(tmp_path, count, fps)(cloud_of(100)) for count in (20, 1000))
    assert len(many.points) == 100
    assert (many.points[:20] == few.points).all()


def test_files_are_named_by_content(tmp_path: Path) -> None:
    cache, cloud = FpsCache(tmp_path, 10, fps), cloud_of(20)
    changed = cloud.points.copy()
    changed[7, 1] = np.nextafter(changed[7, 1], np.float32(9))
    names = {
        cache.path_of(cloud),
        cache.path_of(Cloud(points=changed, label=3)),
        cache.path_of(Cloud(points=cloud.points[:15], label=3)),
        FpsCache(tmp_path, 11, fps).path_of(cloud),
    }
    assert len(names) == 4
    assert cache.path_of(Cloud(points=cloud.points.copy(), label=0)) == cache.path_of(cloud)
    # More than there are is all of them.
    assert FpsCache(tmp_path, 20, fps).path_of(cloud) == FpsCache(tmp_path, 99, fps).path_of(cloud)


def test_copies_of_points_come_last_and_none_is_lost(tmp_path: Path) -> None:
    points = np.repeat(np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32), 4, axis=0)
    found = FpsCache(tmp_path, 20, fps)(Cloud(points=points, label=0, parts=np.arange(20)))
    assert sorted(found.parts.tolist()) == list(range(20))
    assert len(np.unique(found.points[:5], axis=0)) == 5
    same = FpsCache(tmp_path, 3, fps)(Cloud(points=np.ones((4, 3), np.float32), label=0, parts=np.arange(4)))
    assert same.parts.tolist() == [0, 1, 2]


@pytest.mark.parametrize("damage", ["empty", "half", "garbage", "other", "pickled"])
def test_a_damaged_file_is_made_again(tmp_path: Path, damage: str) -> None:
    order, cloud = Counted(), cloud_of(60)
    cache = FpsCache(tmp_path, 30, order)
    whole, path = cache(cloud), cache.path_of(cloud)
    data = path.read_bytes()
    if damage == "other":
        np.savez(path, points=cloud.points[:30], index=np.arange(30)[::-1])
    elif damage == "pickled":
        np.savez(path, points=cloud.points[:30], index=np.array([None] * 30), allow_pickle=True)
    else:
        path.write_bytes({"empty": b"", "half": data[: len(data) // 2], "garbage": b"PK\x03\x04" + b"x" * 500}[damage])
    assert (cache(cloud).points == whole.points).all()
    assert order.calls == 2
    assert path.read_bytes() == data
    assert [one.name for one in path.parent.iterdir()] == [path.name], "nothing is left beside it"


def _fill(folder: Path) -> list[bytes]:
    torch.set_num_threads(1)
    cache = FpsCache(folder, 16, fps)
    return [cache(cloud_of(64, seed)).points.tobytes() for seed in range(8)]


def test_processes_may_share_a_folder(tmp_path: Path) -> None:
    with multiprocessing.get_context("fork").Pool(3) as pool:
        found = pool.map(_fill, [tmp_path] * 3, chunksize=1)
    assert found[0] == found[1] == found[2]
    assert len(list(tmp_path.rglob("*.npz"))) == 8
    assert not list(tmp_path.rglob("*.tmp"))


def test_a_source_can_be_put_in_order(tmp_path: Path) -> None:
    source = Procedural(3, points=64, families=("chair", "mug"))
    ordered = Ordered(source, FpsCache(tmp_path, 16, fps))
    assert len(ordered) == 3
    assert (ordered.classes, ordered.parts, ordered.normalised) == (source.classes, source.parts, True)
    assert ordered.name(2) == source.name(2)
    assert ordered.label(1) == ordered.read(1).label == 1
    assert len(ordered.read(0).points) == len(ordered.read(0).parts) == 16


def test_no_room_or_no_permission_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="a file stands where a directory is needed"):
        FpsCache(tmp_path / "file", 4, fps)(cloud_of(10))
    with pytest.raises(UserError, match="one point or more"):
        FpsCache(tmp_path, 0, fps)
