"""Every mistake that a user can mend ends with one sentence, exit code 2 and no traceback; what was there before stays."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import pytest
import torch
from PIL import Image

from hybridmap.cli import main
from hybridmap.train import read_weights


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]):
    """Run a command that must be refused; returns the sentence."""

    def run(*words: str | Path) -> str:
        assert main([str(word) for word in words]) == 2
        shown = capsys.readouterr().err
        assert "Traceback" not in shown
        last = shown.strip().splitlines()[-1]
        assert last.startswith(f"hybridmap {words[0]}: ")
        return last

    return run


def pretrain(root: Path, out: Path, *more: str) -> list[str]:
    flags = ["--data.root", str(root), "--out", str(out), "--train.steps", "2", "--train.batch-size", "4", "--device", "cpu"]
    return ["pretrain", "map-smoke", *flags, "--train.no-tensorboard", *more]


def test_a_missing_folder(refused, tmp_path: Path) -> None:
    assert "does not exist; expected --data.root to name a folder" in refused(*pretrain(tmp_path / "nowhere", tmp_path / "run"))
    assert "use --data.root DIR" in refused("pretrain", "map-smoke", "--out", tmp_path / "run2")


def test_an_empty_folder_and_one_without_images(refused, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.txt").write_text("no image")
    assert "which is empty" in refused(*pretrain(tmp_path / "empty", tmp_path / "run"))
    assert "no images in" in refused(*pretrain(tmp_path / "texts", tmp_path / "run2"))
    assert "is a file; expected --data.root to name a folder" in refused(
        *pretrain(tmp_path / "texts" / "a.txt", tmp_path / "r3")
    )


def test_a_mended_command_may_use_the_same_directory(refused, photo_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    refused(*pretrain(tmp_path / "nowhere", out))
    refused(*pretrain(photo_folder, out, "--data.size", "30"))
    assert main(pretrain(photo_folder, out)) == 0
    assert "learner.masking.ratio was 0.5, now 0.7" in refused(*pretrain(photo_folder, out, "--mask-ratio", "0.7"))


def test_a_folder_of_one_image_of_one_pixel(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    Image.new("RGB", (1, 1), (200, 3, 4)).save(tmp_path / "photos" / "a.png")
    assert main(pretrain(tmp_path / "photos", tmp_path / "run")) == 0
    assert all(value.isfinite().all() for value in read_weights(tmp_path / "run")[0].values())


def test_a_folder_in_which_no_image_can_be_read(refused, tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    for name in ("a.jpg", "b.jpg"):
        (folder / name).write_text("this is text")
    (folder / "c.png").write_bytes(b"")
    assert "none of the 3 images can be read" in refused(*pretrain(folder, tmp_path / "run"))


@pytest.fixture
def mixed_folder(photo_folder: Path, tmp_path: Path) -> Path:
    """Good images, and one of each kind of bad one."""
    folder = tmp_path / "mixed"
    folder.mkdir()
    good = sorted(photo_folder.rglob("*.jpg"))
    for i, path in enumerate(good[:6]):
        (folder / f"good-{i}.jpg").write_bytes(path.read_bytes())
    (folder / "text.jpg").write_text("this is text")
    (folder / "cut.jpg").write_bytes(good[0].read_bytes()[:120])
    (folder / "empty.jpg").write_bytes(b"")
    (folder / "bomb.ppm").write_bytes(b"P6 30000 30000 255\n" + bytes(99))
    Image.new("RGB", (1, 1), (9, 9, 9)).save(folder / "single.png")
    return folder


def test_bad_images_are_named_and_replaced(mixed_folder: Path, tmp_path: Path) -> None:
    assert main(pretrain(mixed_folder, tmp_path / "run", "--train.steps", "5")) == 0
    log, page = ((tmp_path / "run" / name).read_text() for name in ("log.txt", "report.html"))
    for name in ("text.jpg", "cut.jpg", "empty.jpg", "bomb.ppm"):
        assert name in log
        assert name in page
    assert "single.png" not in log


def test_bad_images_stop_the_run_where_that_is_asked_for(refused, mixed_folder: Path, tmp_path: Path) -> None:
    sentence = refused(*pretrain(mixed_folder, tmp_path / "run", "--train.steps", "5", "--data.on-error", "fail"))
    assert any(name in sentence for name in ("text.jpg", "cut.jpg", "empty.jpg", "bomb.ppm"))
    assert "--data.on-error substitute" in sentence
    assert not (tmp_path / "run" / "final.safetensors").exists()


@pytest.mark.parametrize("ratio", ["-0.1", "1", "1.5", "nan"])
def test_a_mask_ratio_out_of_range(ratio: str, refused, photo_folder: Path, tmp_path: Path) -> None:
    assert "ratio" in refused(*pretrain(photo_folder, tmp_path / "run", f"--mask-ratio={ratio}"))


def test_a_mask_ratio_of_zero_says_what_to_set(refused, photo_folder: Path, tmp_path: Path) -> None:
    assert 'loss_on to "all"' in refused(*pretrain(photo_folder, tmp_path / "run", "--mask-ratio", "0"))


@pytest.mark.parametrize("heads", ["3", "0"])
def test_heads_that_do_not_divide_the_width(heads: str, refused, photo_folder: Path, tmp_path: Path) -> None:
    assert "heads" in refused(*pretrain(photo_folder, tmp_path / "run", "--learner.backbone.num-heads", heads))


def test_a_size_that_is_no_multiple_of_the_patch(refused, photo_folder: Path, tmp_path: Path) -> None:
    assert "multiple" in refused(*pretrain(photo_folder, tmp_path / "run", "--learner.backbone.img-size", "33"))
    assert "multiple" in refused(*pretrain(photo_folder, tmp_path / "run2", "--data.size", "30"))


def test_a_device_that_is_not_there(refused, photo_folder: Path, tmp_path: Path) -> None:
    assert "expected auto, cpu, cuda" in refused(*pretrain(photo_folder, tmp_path / "run", "--device", "gpu"))


def test_two_recipes_in_one_directory(refused, pretrained: Path, photo_folder: Path) -> None:
    before = (pretrained / "final.safetensors").read_bytes()
    sentence = refused(*pretrain(photo_folder, pretrained, "--mask-ratio", "0.7"))
    assert "learner.masking.ratio was 0.5, now 0.7" in sentence
    assert "--overwrite" in sentence
    assert (pretrained / "final.safetensors").read_bytes() == before


def test_overwrite_starts_anew(photo_folder: Path, tmp_path: Path) -> None:
    assert main(pretrain(photo_folder, tmp_path / "run")) == 0
    before = (tmp_path / "run" / "final.safetensors").read_bytes()
    assert main(pretrain(photo_folder, tmp_path / "run", "--mask-ratio", "0.7", "--overwrite")) == 0
    assert (tmp_path / "run" / "final.safetensors").read_bytes() != before


def test_two_launches_in_one_directory(refused, photo_folder: Path, tmp_path: Path) -> None:
    fcntl = pytest.importorskip("fcntl", reason="locks need a POSIX system")
    assert main(pretrain(photo_folder, tmp_path / "run", "--train.steps", "1")) == 0
    with (tmp_path / "run" / ".lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert "another process is training in" in refused(*pretrain(photo_folder, tmp_path / "run", "--train.steps", "1"))


def test_an_out_that_is_no_run_directory(refused, photo_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("years of work")
    assert "not empty and not the directory of a run" in refused(*pretrain(photo_folder, tmp_path / "mine"))
    assert "not empty and not the directory of a run" in refused(*pretrain(photo_folder, tmp_path / "mine", "--overwrite"))
    assert (tmp_path / "mine" / "thesis.tex").read_text() == "years of work"
    assert "cannot write" in refused(*pretrain(photo_folder, tmp_path / "mine" / "thesis.tex"))


def test_an_out_that_cannot_be_written(refused, photo_folder: Path) -> None:
    assert "/proc/" in refused(*pretrain(photo_folder, Path("/proc/hybridmap-run")))


def test_an_out_below_a_file(refused, photo_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    for out in (tmp_path / "file", tmp_path / "file" / "run"):
        assert f"cannot write {out} (a file stands where a directory is needed)" in refused(*pretrain(photo_folder, out))
    assert (tmp_path / "file").read_text() == "mine"


def test_a_picture_that_cannot_be_written(refused, pretrained: Path, photo_folder: Path, tmp_path: Path) -> None:
    image = photo_folder / "rows" / "00.jpg"
    assert "cannot write" in refused("reconstruct", pretrained, image, "-o", "/proc/nowhere/out.png")
    assert "-o must name a picture, such as out.png, got" in refused(
        "reconstruct", pretrained, image, "-o", tmp_path / "out.docx"
    )
    assert "--output" in refused("reconstruct", pretrained, image)


def test_images_that_cannot_be_read(refused, pretrained: Path, tmp_path: Path) -> None:
    (tmp_path / "text.jpg").write_text("this is text")
    out = tmp_path / "out.png"
    assert "text.jpg cannot be read" in refused("reconstruct", pretrained, tmp_path / "text.jpg", "-o", out)
    assert "missing.jpg cannot be read" in refused("reconstruct", pretrained, tmp_path / "missing.jpg", "-o", out)
    assert not out.exists()


def test_a_run_without_weights_and_what_is_no_run(refused, pretrained: Path, photo_folder: Path, tmp_path: Path) -> None:
    image, out = photo_folder / "rows" / "00.jpg", tmp_path / "o.png"
    assert "no recipe.yaml" in refused("reconstruct", tmp_path, image, "-o", out)
    assert "is no run directory, no weight file and no model" in refused("knn", "runs/that-is-not-there")
    assert "did you mean mambar_tiny_patch16_224" in refused("knn", "mambar_tiny_patch16")
    (tmp_path / "begun").mkdir()
    (tmp_path / "begun" / "recipe.yaml").write_text((pretrained / "recipe.yaml").read_text())
    words = "reconstruct", tmp_path / "begun", image, "-o", out
    assert "holds neither final.safetensors nor a whole checkpoint" in refused(*words)
    (tmp_path / "begun" / "recipe.yaml").write_text("type: os:system\n")
    assert "is not of hybridmap" in refused(*words)


def test_a_run_of_the_other_kind(refused, pretrained: Path, classifier: Path, photo_folder: Path, tmp_path: Path) -> None:
    image = photo_folder / "rows" / "00.jpg"
    assert "predicts no patches" in refused("reconstruct", classifier, image, "-o", tmp_path / "o.png")
    assert "is no classifier; fine-tune it first" in refused("evaluate", pretrained, "--data.root", photo_folder)


def test_a_checkpoint_of_another_model(
    refused, pretrained: Path, photo_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flags = ["--data.root", photo_folder, "--init", pretrained, "--out", tmp_path / "ft", "--device", "cpu"]
    assert "the weights are of another network" in refused("finetune", "ft-100-tiny", *flags)
    monkeypatch.setenv("HYBRIDMAP_SMOKE", "1")
    assert "the weights are of another network: they lack cls_token" in refused("finetune", "ft-vit-base", *flags)


def test_unlabelled_images_where_labels_are_needed(refused, pretrained: Path, photo_folder: Path, tmp_path: Path) -> None:
    unlabelled = photo_folder / "rows"
    assert "labelled images were expected" in refused(
        "finetune", "ft-100-tiny", "--data.root", unlabelled, "--out", tmp_path / "f"
    )
    assert "has no class" in refused("knn", pretrained, "--data.root", unlabelled, "--device", "cpu")


def test_a_pickle_that_would_run_code_is_not_run(refused, photo_folder: Path, tmp_path: Path) -> None:
    marker = tmp_path / "it-ran"

    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(marker),)

    torch.save({"model": Evil()}, tmp_path / "evil.pth")
    with (tmp_path / "raw.pkl").open("wb") as file:
        pickle.dump(Evil(), file)
    for name in ("evil.pth", "raw.pkl"):
        for words in (
            ("convert", tmp_path / name, "-o", tmp_path / "o.safetensors"),
            ("embed", tmp_path / name, photo_folder, "-o", tmp_path / "o.npz"),
            ("finetune", "ft-100-tiny", "--init", tmp_path / name, "--data.root", photo_folder, "--out", tmp_path / "ft"),
        ):
            refused(*words)
            assert not marker.exists()
    assert not (tmp_path / "o.safetensors").exists()


def test_outputs_with_an_unknown_ending(refused, pretrained: Path, photo_folder: Path, tmp_path: Path) -> None:
    assert "-o must end in .safetensors or .npz" in refused("embed", pretrained, photo_folder, "-o", tmp_path / "x.csv")
    assert "-o must end in .safetensors" in refused("convert", tmp_path / "x.pth", "-o", tmp_path / "x.bin")


def test_names_that_match_nothing(refused) -> None:
    assert "no model matches 'resnet*'" in refused("models", "resnet*")
    assert "no recipe matches 'map-tinny'; did you mean map-tiny" in refused("recipes", "map-tinny")
    assert "invalid choice 'points'" in refused("demo", "points")
    assert "--seeds must be at least 1" in refused("demo", "--seeds", "0")


def test_a_file_that_is_cut_off(refused, pretrained: Path, photo_folder: Path, tmp_path: Path) -> None:
    whole = (pretrained / "final.safetensors").read_bytes()
    (tmp_path / "cut.safetensors").write_bytes(whole[: len(whole) // 2])
    refused("embed", tmp_path / "cut.safetensors", photo_folder, "-o", tmp_path / "o.npz")
