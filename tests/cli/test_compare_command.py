"""``hybridmap compare``: one page for several runs, and a sentence for each mistake."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from hybridmap.cli import main
from hybridmap.cli.compare import labels


@pytest.fixture(scope="module")
def other(photo_folder: Path, quick: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "mae"
    flags = ["--learner.decoder-mask", "mae", "--seed", "3"]
    assert main(["pretrain", "map-smoke", "--data.root", str(photo_folder), "--out", str(out), *quick, *flags]) == 0
    return out


def test_one_page_for_three_runs(
    pretrained: Path, other: Path, classifier: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "page.html"
    runs = [str(pretrained), str(other), str(classifier)]
    assert main(["compare", *runs, "-o", str(out), "--images", "2", "--measured", "4", "--device", "cpu"]) == 0
    told = capsys.readouterr().out
    assert told.splitlines()[0] == str(out)
    assert "decoder_mask" in told.replace("\n", "")
    page = out.read_text()
    assert "<td>learner</td><td>MAP(" in page
    assert "decoder_mask=<wbr>mae" in page
    assert "<td>seed</td>" in page
    assert "val/top1" in page
    assert page.count("data:image/png;base64,") == 2


def test_names_are_as_short_as_they_can_be() -> None:
    assert labels(["a/map", "a/mae"]) == ["map", "mae"]
    assert labels(["a/map", "b/map"]) == ["a/map", "b/map"]


def test_wrong_arguments(pretrained: Path, other: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(other, tmp_path / "broken")
    (tmp_path / "broken" / "recipe.yaml").write_text("type: os:system\n")
    one, two, out = str(pretrained), str(other), ["-o", str(tmp_path / "page.html")]
    for words, sentence in (
        (out, "expected at least two runs, got 0"),
        ([one, *out], "expected at least two runs, got 1"),
        ([one, two, "-o", str(tmp_path / "page.png")], "-o must name a page, such as out.html"),
        ([one, two, one, *out], "is given 2 times; name each run once"),
        ([one, str(tmp_path / "nowhere"), *out], "is not the directory of a run"),
        ([one, str(tmp_path / "broken"), *out], "is not of hybridmap"),
        ([one, two, "--images", "0", *out], "--images must be at least 1, got 0"),
    ):
        assert main(["compare", *words]) == 2
        said = capsys.readouterr().err
        assert said.startswith("hybridmap compare: ")
        assert sentence in said
        assert said.count("\n") == 1
    assert not (tmp_path / "page.html").exists()
