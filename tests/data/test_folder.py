"""Any folder of images: what is found, what it is called, and what is said when there is nothing to be had."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from hybridmap.data.base import UnreadableImage
from hybridmap.data.files import EXTENSIONS, list_images
from hybridmap.data.folder import ImageFolder
from hybridmap.data.image_transforms import CentreCrop
from hybridmap.errors import UserError


def picture(path: Path, value: int = 128, size: tuple[int, int] = (20, 16)) -> None:
    """Write a plain grey picture."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (value, value, value)).save(path)


def folder(root: Path, **fields) -> ImageFolder:
    return ImageFolder.Config(root=str(root), size=8, workers=0, **fields).build()


def names(data: ImageFolder) -> list[str]:
    """Paths below the root, in order."""
    return [data.source.stable_name(i) for i in range(len(data))]


def test_first_level_directories_are_the_classes_however_deep_the_images_lie(tmp_path: Path) -> None:
    for name in ("dog/b.png", "cat/deep/er/a.JPG", "cat/0.webp"):
        picture(tmp_path / name)
    data = folder(tmp_path)
    assert data.classes == ("cat", "dog")
    assert names(data) == ["cat/0.webp", "cat/deep/er/a.JPG", "dog/b.png"]
    assert [data.sample(i, 0).label for i in range(3)] == [0, 0, 1]
    assert data.labelled() == ("cat", "dog")


def test_one_loose_image_makes_the_folder_unlabelled(tmp_path: Path) -> None:
    picture(tmp_path / "cat/a.png")
    picture(tmp_path / "loose.png")
    data = folder(tmp_path)
    assert data.classes is None
    assert data.sample(0, 0).label == -1
    with pytest.raises(UserError, match=r"labelled images were expected.*loose\.png has none"):
        data.labelled()


def test_hidden_names_and_other_files_are_passed_over(tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    picture(tmp_path / ".cache/b.png")
    picture(tmp_path / "._a.png")
    (tmp_path / "notes.txt").write_text("no image")
    assert list_images(str(tmp_path)) == ["a.png"]


def test_links_in_a_circle_are_followed_once(tmp_path: Path) -> None:
    picture(tmp_path / "a/one.png")
    (tmp_path / "a" / "back").symlink_to(tmp_path)
    assert len(list_images(str(tmp_path))) == 1


def test_an_image_that_is_a_link_to_itself_is_listed_and_named_when_it_is_read(tmp_path: Path) -> None:
    picture(tmp_path / "cat/a.png")
    (tmp_path / "cat/b.png").symlink_to("b.png")
    data = folder(tmp_path)
    assert names(data) == ["cat/a.png", "cat/b.png"]
    with pytest.raises(UnreadableImage, match=r"b\.png: Too many levels of symbolic links"):
        data.sample(1, 0)


def test_missing_path_says_what_to_name(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nowhere does not exist; expected --data\.root"):
        folder(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"none was named; use --data\.root DIR"):
        ImageFolder.Config().build()


def test_a_file_in_place_of_a_folder_is_told(tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    with pytest.raises(UserError, match=r"a\.png is a file"):
        folder(tmp_path / "a.png")


def test_an_empty_folder_is_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no images in .*, which is empty; expected files ending in"):
        folder(tmp_path)


def test_a_folder_without_images_says_which_endings_are_looked_for(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("no image")
    with pytest.raises(UserError, match=r"no images in .* or below it") as error:
        folder(tmp_path)
    assert all(ending in str(error.value) for ending in EXTENSIONS)


def test_a_directory_that_cannot_be_listed_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    picture(tmp_path / "a.png")

    def refuse(path: str) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("hybridmap.data.files.os.scandir", refuse)
    with pytest.raises(UserError, match=r"cannot be listed \(Permission denied\)"):
        list_images(str(tmp_path))


def test_held_out_images_are_the_same_each_time_and_of_every_class(tmp_path: Path) -> None:
    for name in ("cat", "dog"):
        for i in range(20):
            picture(tmp_path / name / f"{i}.png")
    train, test = folder(tmp_path, split="train"), folder(tmp_path, split="test")
    assert len(train) == 36
    assert sorted(names(train) + names(test)) == names(folder(tmp_path))
    assert [path.split("/")[0] for path in names(test)] == ["cat", "cat", "dog", "dog"]
    assert names(folder(tmp_path, split="test")) == names(test)


def test_directories_train_and_val_are_the_splits_and_share_their_class_numbers(tmp_path: Path) -> None:
    for name in ("train/ant/1.png", "train/bee/1.png", "train/cow/1.png", "val/bee/2.png"):
        picture(tmp_path / name)
    train, test = folder(tmp_path, split="train"), folder(tmp_path, split="test")
    assert (len(train), len(test)) == (3, 1)
    assert train.classes == test.classes == ("ant", "bee", "cow")
    assert test.sample(0, 0).label == 1


def test_one_image_cannot_be_divided(tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    with pytest.raises(UserError, match="too few images"):
        folder(tmp_path, split="train")


def test_a_sample_depends_on_its_index_and_key_alone(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (60, 80, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "noise.png")
    first, second = folder(tmp_path), folder(tmp_path)
    assert torch.equal(first.sample(0, 7).image, second.sample(0, 7).image)
    assert not torch.equal(first.sample(0, 7).image, first.sample(0, 8).image)


@pytest.mark.parametrize("fields", [{"size": 0}, {"held_out": 1.0}, {"workers": -1}, {"std": (0.1, 0.0, 0.1)}])
def test_impossible_settings_are_refused_at_once(fields: dict) -> None:
    with pytest.raises(UserError):
        ImageFolder.Config(**fields)


def test_the_crop_is_a_choice_by_type(tmp_path: Path) -> None:
    picture(tmp_path / "a.png", value=99)
    sample = folder(tmp_path, crop=CentreCrop.Config()).sample(0, 0)
    assert sample.image.shape == (3, 8, 8)
    assert sample.image.dtype == torch.uint8
    assert (sample.image == 99).all()


def test_substitutes_are_the_next_readable_images_and_are_named(tmp_path: Path) -> None:
    for i in range(4):
        picture(tmp_path / f"{i}.png", value=40 * i)
    (tmp_path / "1.png").write_bytes(b"")
    (tmp_path / "2.png").write_text("this is text")
    data = folder(tmp_path)
    batch = data.samples([0, 1, 2], [0, 0, 0])
    assert [Path(path).name for path in batch.paths] == ["0.png", "3.png", "3.png"]
    assert {Path(path).name: reason for path, reason in batch.skipped.items()} == {
        "1.png": "the file is empty",
        "2.png": "it is not an image of a known format",
    }


def test_evaluation_leaves_out_what_cannot_be_read(tmp_path: Path) -> None:
    for i in range(3):
        picture(tmp_path / f"{i}.png")
    (tmp_path / "1.png").write_bytes(b"")
    batch = folder(tmp_path).samples([0, 1, 2], [5, 6, 7], substitute=False)
    assert [Path(path).name for path in batch.paths] == ["0.png", "2.png"]
    assert batch.keys.tolist() == [5, 7]
    assert len(batch.skipped) == 1


def test_on_error_fail_names_the_file(tmp_path: Path) -> None:
    picture(tmp_path / "0.png")
    (tmp_path / "1.png").write_bytes(b"")
    with pytest.raises(UserError, match=r"1\.png cannot be read \(the file is empty\); mend it"):
        folder(tmp_path, on_error="fail").samples([0, 1], [0, 0])


def test_a_folder_of_nothing_readable_is_told(tmp_path: Path) -> None:
    for i in range(3):
        (tmp_path / f"{i}.jpg").write_text("text")
    with pytest.raises(UserError, match=r"none of the 3 images can be read; the first of them is .*0\.jpg"):
        folder(tmp_path).samples([0], [0])


def test_storage_that_fails_once_is_asked_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    picture(tmp_path / "0.png", value=77)
    data = folder(tmp_path)
    opened = []

    def unsteady(path: str, mode: str):
        opened.append(path)
        if len(opened) == 1:
            raise OSError(5, "Input/output error")
        return open(path, mode)

    monkeypatch.setattr("hybridmap.data.decode.open", unsteady, raising=False)
    batch = data.samples([0], [0])
    assert len(opened) == 2
    assert not batch.skipped
    assert (batch.images == 77).all()
