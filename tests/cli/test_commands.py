"""The commands do what their synopsis says, on one tiny run."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file

from hybridmap import recipes
from hybridmap.backbones.names import ALIASES, MODELS
from hybridmap.cli import main
from hybridmap.cli.runs import open_run
from hybridmap.config import from_yaml
from hybridmap.tasks.classification import Classification
from hybridmap.tasks.features import describe

PICTURES = {"reconstructions", "own_choices", "features", "all_masks", "all_regions", "all_decoder_masks", "all_scans"}
"""Of a run whose objective predicts patches."""


def test_pretraining_leaves_a_complete_run_directory(pretrained: Path) -> None:
    for name in (
        "recipe.yaml",
        "environment.json",
        "metrics.jsonl",
        "final.safetensors",
        "report.html",
        "log.txt",
        "results.json",
    ):
        assert (pretrained / name).is_file(), name
    assert {path.stem for path in (pretrained / "pictures").iterdir()} == PICTURES
    lines = [json.loads(line) for line in (pretrained / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2]
    assert all(np.isfinite(line["loss"]) for line in lines)
    environment = json.loads((pretrained / "environment.json").read_text())
    assert environment["kernels"]["selective_scan"]["cpu"]
    page = (pretrained / "report.html").read_text()
    assert "hybridmap pretrain map-smoke --data.root" in page
    assert page.count("data:image/png;base64,") == len(PICTURES)
    assert from_yaml((pretrained / "recipe.yaml").read_text()).train.steps == 2


def test_the_same_command_again_changes_nothing(pretrained: Path, photo_folder: Path, quick: list[str]) -> None:
    before = (pretrained / "final.safetensors").read_bytes()
    assert main(["pretrain", "map-smoke", "--data.root", str(photo_folder), "--out", str(pretrained), *quick]) == 0
    assert (pretrained / "final.safetensors").read_bytes() == before


def test_reconstruct_draws_a_row_per_image(pretrained: Path, photo_folder: Path, tmp_path: Path) -> None:
    images = [str(photo_folder / "rows" / "00.jpg"), str(photo_folder / "columns" / "03.jpg")]
    for count in (1, 2):
        assert main(["reconstruct", str(pretrained), *images[:count], "-o", str(tmp_path / "out.png")]) == 0
        with Image.open(tmp_path / "out.png") as picture:
            assert picture.size == (4 * (128 + 6) + 6, count * (128 + 6) + 6 + 17)


def test_embed_writes_features_with_their_paths(pretrained: Path, photo_folder: Path, tmp_path: Path) -> None:
    for name in ("a.npz", "a.safetensors"):
        assert main(["embed", str(pretrained), str(photo_folder), "-o", str(tmp_path / name), "--device", "cpu"]) == 0
    with np.load(tmp_path / "a.npz") as arrays:
        features, paths, labels = arrays["features"], arrays["paths"].tolist(), arrays["labels"]
    assert features.shape == (24, 32)
    assert paths == sorted(f"{kind}/{i:02}.jpg" for kind in ("rows", "columns") for i in range(12))
    assert labels.tolist() == [0] * 12 + [1] * 12
    tensors = load_file(tmp_path / "a.safetensors")
    np.testing.assert_array_equal(tensors["features"].numpy(), features)
    with safe_open(tmp_path / "a.safetensors", "pt") as file:
        about = json.loads(file.metadata()["hybridmap"])
    assert about == {"classes": ["columns", "rows"], "paths": paths}

    run = open_run(str(pretrained))
    from hybridmap.cli.runs import read_images

    images = read_images([str(photo_folder / paths[0])], run.data)
    with torch.no_grad():
        expected = describe(run.backbone, images)[0]
    torch.testing.assert_close(torch.from_numpy(features[0]), expected, atol=1e-4, rtol=1e-4)


def test_embed_takes_an_untrained_model_by_name_and_unlabelled_images(photo_folder: Path, tmp_path: Path) -> None:
    flags = ["-o", str(tmp_path / "b.npz"), "--device", "cpu", "--batch-size", "12"]
    assert main(["embed", "mambar_tiny_patch16_224", str(photo_folder / "rows"), *flags]) == 0
    with np.load(tmp_path / "b.npz") as arrays:
        assert arrays["features"].shape == (12, 192)
        assert set(arrays) == {"features", "paths"}


@pytest.mark.parametrize(
    ("command", "flags"), [("knn", ["--k", "3", "5"]), ("probe", ["--epochs", "2", "--warmup-epochs", "1"])]
)
def test_probes_print_accuracies(
    command: str, flags: list[str], pretrained: Path, photo_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([command, str(pretrained), "--data.root", str(photo_folder), "--device", "cpu", *flags]) == 0
    shown = capsys.readouterr().out
    names = ("k3", "k5") if command == "knn" else ("top1", "top5")
    for name in names:
        found = re.search(rf"^{name} +([\d.]+)$", shown, re.MULTILINE)
        assert found, shown
        assert 0 <= float(found[1]) <= 100


def test_finetuning_takes_the_weights_and_the_classes_of_the_data(classifier: Path, pretrained: Path) -> None:
    run = open_run(str(classifier))
    assert isinstance(run.learner, Classification)
    assert run.learner.config.num_classes == 2
    assert run.recipe.init_from == str(pretrained)
    assert "loaded 67 tensors" in (classifier / "log.txt").read_text()
    assert "val/top1" in (classifier / "report.html").read_text()
    assert {path.stem for path in (classifier / "pictures").iterdir()} == {"features"}


def test_evaluate_prints_the_accuracy(classifier: Path, photo_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", str(classifier), "--data.root", str(photo_folder), "--device", "cpu"]) == 0
    assert re.search(r"^top1 +[\d.]+$", capsys.readouterr().out, re.MULTILINE)


def test_report_can_be_written_again(pretrained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (pretrained / "report.html").unlink()
    assert main(["report", str(pretrained), "--images", "2", "--device", "cpu"]) == 0
    assert capsys.readouterr().out.strip() == str(pretrained / "report.html")
    assert (pretrained / "report.html").is_file()


def test_models_and_recipes_are_all_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "*tiny*"]) == 0
    shown = capsys.readouterr().out
    assert all(name in shown for name in (*MODELS, *ALIASES) if "tiny" in name)
    assert re.search(r"mambar_tiny_patch16_224 +9\.\d M +1\.\d\d +192 +24 +Mamba-R", shown)
    assert main(["recipes"]) == 0
    shown = capsys.readouterr().out
    assert all(entry.name in shown for entry in recipes.listing())
    assert main(["recipes", "map-smoke"]) == 0
    assert recipes.entry("map-smoke").command in capsys.readouterr().out


def test_doctor_shows_the_kernels_and_checks_them(capsys: pytest.CaptureFixture[str]) -> None:
    from hybridmap.ops import active

    assert main(["doctor", "--device", "cpu"]) == 0
    shown = capsys.readouterr().out
    assert re.search(rf"^selective_scan +cpu +{active('selective_scan', 'cpu')}: ", shown, re.MULTILINE)
    assert re.search(r"^torch +\d+\.\d+", shown, re.MULTILINE)
    assert re.search(r"^\d+ checks, all fine$", shown, re.MULTILINE)


def test_doctor_fails_when_a_kernel_is_wrong(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    from hybridmap import ops

    monkeypatch.setattr(ops, "check_kernels", lambda device: [("add_norm", "float32", "forward", 0.5, 1e-6, False)])
    assert main(["doctor", "--device", "cpu"]) == 1
    assert "1 checks, 1 wrong" in capsys.readouterr().out


def test_convert_writes_weights_that_load(pretrained: Path, tmp_path: Path, photo_folder: Path) -> None:
    converted = tmp_path / "c.safetensors"
    assert main(["convert", str(pretrained / "final.safetensors"), "-o", str(converted)]) == 0
    assert main(["embed", str(converted), str(photo_folder), "-o", str(tmp_path / "c.npz"), "--device", "cpu"]) == 0
    assert main(["embed", str(pretrained), str(photo_folder), "-o", str(tmp_path / "r.npz"), "--device", "cpu"]) == 0
    with np.load(tmp_path / "c.npz") as ours, np.load(tmp_path / "r.npz") as theirs:
        np.testing.assert_array_equal(ours["features"], theirs["features"])


def test_the_demo_runs_through_for_two_seeds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HYBRIDMAP_SMOKE", "1")
    results = tmp_path / "demo.json"
    words = ["--out", str(tmp_path / "demo"), "--seeds", "2", "--results", str(results), "--device", "cpu"]
    assert main(["demo", "images", *words]) == 0
    shown = capsys.readouterr().out
    assert shown.count("Did pretraining help?") == 2
    found = json.loads(results.read_text())
    assert set(found["seeds"]) == {"0", "1"}
    for seed, scores in found["seeds"].items():
        assert [score["exam"] for score in scores["scores"]] == ["kNN, k = 20", "linear probe", "fine-tuned / from scratch"]
        for score in scores["scores"]:
            value, low, high = score["difference"]
            assert low <= value <= high
            assert value == pytest.approx(score["pretrained"][0] - score["untrained"][0], abs=0.02)
        page = (tmp_path / "demo" / f"seed-{seed}" / "report.html").read_text()
        assert "Did pretraining help?" in page
        assert "hybridmap demo images --out" in page
        assert page.count("data:image/png;base64,") == len(PICTURES)
    pretrained, finetuned = (open_run(str(tmp_path / "demo" / "seed-0" / part)) for part in (".", "finetune"))
    assert finetuned.recipe.init_from == str(tmp_path / "demo" / "seed-0")
    assert open_run(str(tmp_path / "demo" / "seed-0" / "scratch")).recipe.init_from is None
    assert pretrained.recipe.seed == 0
