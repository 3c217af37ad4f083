"""The demo's question: real, without a download, and not to be answered by looking at the pixels."""

from __future__ import annotations

import importlib.util
import re
import socket
import sys

import pytest
import torch
import torch.nn.functional as F

from hybridmap.data.bundled import SOURCES, BundledPhotos, bundled_files
from hybridmap.data.loader import each
from hybridmap.errors import UserError


def test_all_pictures_ship_with_the_installed_packages() -> None:
    files = bundled_files()
    assert len(files) == len(SOURCES) == 18
    assert all(path.stat().st_size > 10_000 for path in files)


def test_reading_them_imports_neither_package_and_opens_no_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object) -> None:
        raise AssertionError("a connection was opened")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    before = {name for name in ("skimage", "sklearn") if name in sys.modules}
    BundledPhotos.Config(per_source=1).build().sample(0, 0)
    assert {name for name in ("skimage", "sklearn") if name in sys.modules} == before


def test_a_missing_package_names_the_install_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"skimage, which is missing; pip install hybridmap\[demo\]"):
        bundled_files()


def test_crops_have_one_channel_and_are_normalised_one_by_one() -> None:
    batch = BundledPhotos.Config().build().samples(range(0, 4608, 256), range(18))
    assert batch.images.shape == (18, 1, 64, 64)
    assert batch.images.dtype == torch.float32
    assert batch.images.mean((1, 2, 3)).abs().max() < 1e-4
    assert batch.images.std((1, 2, 3)).max() < 0.2525
    assert batch.labels.tolist() == list(range(18))


def test_networks_for_colour_get_three_equal_channels() -> None:
    colour = BundledPhotos.Config(mean=(0.5, 0.5, 0.5), std=(1.0, 1.0, 1.0)).build().samples([5], [1]).images
    assert torch.equal(colour, BundledPhotos.Config().build().samples([5], [1]).images.expand(-1, 3, -1, -1))


def test_views_are_cut_out_of_the_crop_and_not_out_of_the_whole_picture() -> None:
    data = BundledPhotos.Config(flip=True).build()
    indices, keys = list(range(0, 4608, 64)), list(range(72))

    def boxes(paths: tuple[str, ...]) -> torch.Tensor:
        return torch.tensor(
            [[int(n) for n in re.fullmatch(r".*\] (\d+)x(\d+)\+(\d+)\+(\d+)", path).groups()] for path in paths]
        )

    height, width, top, left = boxes(data.samples(indices, keys).paths).T
    seen = []
    for view in (0, 1):
        batch = data.samples(indices, keys, view=view)
        h, w, down, across = boxes(batch.paths).T
        assert ((down >= top) & (down + h <= top + height) & (across >= left) & (across + w <= left + width)).all()
        part = h * w / (height * width)
        assert part.min() > 0.19
        assert part.max() <= 1
        assert part.std() > 0.1, "they are of many sizes"
        assert batch.keys.tolist() == keys
        assert batch.images.mean((1, 2, 3)).abs().max() < 1e-4
        assert torch.equal(batch.images, data.samples(indices, keys, view=view).images)
        seen.append(batch.images)
    assert (seen[0] != seen[1]).flatten(1).any(1).all()


def test_a_crop_depends_on_its_index_and_key_and_not_on_its_batch() -> None:
    data = BundledPhotos.Config().build()
    batch = data.samples([5, 300, 4000], [11, 12, 13])
    assert torch.equal(batch.images[1], data.sample(300, 12).image)
    assert not torch.equal(batch.images[1], data.sample(300, 14).image)
    assert batch.paths[1] == data.sample(300, 12).path


def test_training_and_test_crops_come_from_different_halves(monkeypatch: pytest.MonkeyPatch) -> None:
    ramp = torch.arange(200.0).expand(100, 200)
    monkeypatch.setattr("hybridmap.data.bundled._grey_pictures", lambda: {"ramp": ramp})
    halves = {split: BundledPhotos.Config(split=split).build()._halves["ramp"] for split in ("train", "test")}
    assert halves["train"].max() < halves["test"].min()


def test_windows_keep_their_scale_and_stay_within_the_half() -> None:
    data = BundledPhotos.Config(scale=(64.0, 96.0), split="test").build()
    seen = set()
    for path in data.samples(range(0, 4608, 16), range(288)).paths:
        h, w = map(int, path.split()[1].split("+")[0].split("x"))
        assert h == w
        assert 64 <= h <= 96
        seen.add(h)
    assert len(seen) > 20


def test_a_crop_can_be_larger_than_its_source_or_oblong() -> None:
    data = BundledPhotos.Config(size=(32, 48), scale=(500.0, 500.0), flip=True).build()
    assert data.samples(range(0, 4608, 256), range(18)).images.shape == (18, 1, 32, 48)


def test_raw_pixels_do_not_answer_the_question() -> None:
    def flat(split: str, per_source: int) -> tuple[torch.Tensor, torch.Tensor]:
        data = BundledPhotos.Config(split=split, per_source=per_source, size=32).build()
        parts = [(images[:, 0].flatten(1), labels) for images, labels, _ in each(data, 256)]
        return F.normalize(torch.cat([p[0] for p in parts])), torch.cat([p[1] for p in parts])

    train, train_labels = flat("train", 64)
    test, test_labels = flat("test", 16)
    nearest = train_labels[(test @ train.T).argmax(1)]
    accuracy = (nearest == test_labels).float().mean().item()
    # Guessing is right one time in eighteen.
    assert 0.06 < accuracy < 0.35


@pytest.mark.parametrize("fields", [{"per_source": 0}, {"scale": (0.0, 10.0)}, {"scale": (90.0, 60.0)}])
def test_impossible_settings_are_refused(fields: dict) -> None:
    with pytest.raises(UserError, match=r"data\."):
        BundledPhotos.Config(**fields)
