"""``hybridmap explain``: one page for a run or a model by name, and a sentence for each mistake."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image, ImageStat

from hybridmap.cli import main


@pytest.fixture
def photo(photo_folder: Path) -> str:
    return str(photo_folder / "rows" / "00.jpg")


@pytest.mark.parametrize("source", ["run", "file", "classifier"])
def test_a_page_for_a_run_and_for_a_file(
    source: str, pretrained: Path, classifier: Path, photo: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name = {"run": pretrained, "file": pretrained / "final.safetensors", "classifier": classifier}[source]
    out = tmp_path / "page.png"
    assert main(["explain", str(name), photo, "-o", str(out), "--device", "cpu"]) == 0
    assert capsys.readouterr().out.strip() == str(out)
    with Image.open(out) as page:
        assert min(page.size) > 500
        assert min(ImageStat.Stat(page.convert("L")).stddev) > 20


def test_some_layers_of_a_model_by_name_for_one_patch(photo: str, tmp_path: Path) -> None:
    flags = ["--layers", "0, 3", "--query", "6,7", "--device", "cpu"]
    assert main(["explain", "hybridnet_tiny_patch16_224", photo, "-o", str(tmp_path / "some.png"), *flags]) == 0
    assert main(["explain", "hybridnet_tiny_patch16_224", photo, "-o", str(tmp_path / "parts.jpg"), *flags, "--parts"]) == 0
    with Image.open(tmp_path / "some.png") as some, Image.open(tmp_path / "parts.jpg") as parts:
        assert parts.height > some.height


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--layers", "0,99"], "layers have the numbers 0 to 3 in this network, got 99"),
        (["--layers", "all"], "--layers expects numbers with commas, such as 0,3,7, got 'all'"),
        (["--query", "0,100"], "a query is a row from 0 to 3 and a column from 0 to 3, got 0,100"),
        (["--query", "3"], "--query expects the row and the column of a patch, such as 6,7, got '3'"),
        (["--query", "1.5,2"], "--query expects the row and the column of a patch, such as 6,7, got '1.5,2'"),
    ],
    ids=["layer out of range", "no layer", "outside the grid", "one number", "no integers"],
)
def test_wrong_flags(
    flags: list[str], sentence: str, pretrained: Path, photo: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "page.png"
    assert main(["explain", str(pretrained), photo, "-o", str(out), "--device", "cpu", *flags]) == 2
    said = capsys.readouterr().err
    assert said.startswith("hybridmap explain: ")
    assert sentence in said
    assert said.count("\n") == 1
    assert not out.exists()


def test_wrong_images(pretrained: Path, photo: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "text.jpg").write_text("this is text")
    Image.new("RGB", (40, 2)).save(tmp_path / "flat.png")
    out = ["-o", str(tmp_path / "page.png"), "--device", "cpu"]
    for words, sentence in (
        ([str(pretrained), *out], "expected an image; hybridmap explain RUN|FILE|MODEL IMAGE"),
        ([str(pretrained), str(tmp_path / "none.jpg"), *out], "none.jpg cannot be read"),
        ([str(pretrained), str(tmp_path / "text.jpg"), *out], "text.jpg cannot be read"),
        ([str(pretrained), str(tmp_path / "flat.png"), *out], "has a side of 2 pixels, less than one patch (8)"),
        ([str(tmp_path / "nowhere"), photo, *out], "is no run directory, no weight file and no model"),
        ([str(pretrained), photo, "-o", str(tmp_path / "page.docx")], "-o must name a picture, such as out.png, got"),
    ):
        assert main(["explain", *words]) == 2
        said = capsys.readouterr().err
        assert sentence in said
        assert said.count("\n") == 1
    assert not (tmp_path / "page.png").exists()


def test_features_instead_of_maps(pretrained: Path, photo: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "features.png"
    words = ["explain", str(pretrained), photo, "-o", str(out), "--device", "cpu", "--features"]
    assert main(words) == 0
    with Image.open(out) as page:
        assert page.width == 5 * (128 + 6) + 6  # the image and four layers
    assert main([*words, "--layers", "3"]) == 0
    with Image.open(out) as page:
        assert page.width == 2 * (128 + 6) + 6
    capsys.readouterr()
    for more, sentence in (
        (["--layers", "9"], "layers have the numbers 0 to 3 in this network, got 9"),
        (["--query", "1,1"], "--features shows all patches and has no maps; leave --query and --parts out"),
        (["--parts"], "leave --query and --parts out"),
    ):
        assert main([*words, *more]) == 2
        said = capsys.readouterr().err
        assert sentence in said
        assert said.count("\n") == 1
