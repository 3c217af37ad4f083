"""Every setting of a recipe is a flag, and every mistake in one is a sentence."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from hybridmap import config
from hybridmap.cli.flags import parse_recipe
from hybridmap.cli.runs import spread_data_flags
from hybridmap.data.synthetic import Synthetic
from hybridmap.errors import UserError
from hybridmap.objectives.map import MAP
from hybridmap.recipes import find
from hybridmap.tokens.masking import Sequential
from hybridmap.tokens.regions import Clusters, Columns


def parsed(*words: str):
    _, recipe, options = parse_recipe(["map-smoke", *words], "pretrain", "")
    return recipe, options


def test_without_flags_the_recipe_is_unchanged() -> None:
    recipe, options = parsed()
    assert recipe == find("map-smoke")
    assert options.out is None
    assert options.device == "auto"


def test_the_names_that_scripts_rely_on_exist() -> None:
    recipe, options = parsed(
        *("--data.root", "photos", "--data.workers", "2", "--data.on-error", "fail", "--out", "runs/x", "--seed", "1"),
        *("--train.steps", "5", "--train.batch-size", "8", "--train.checkpoint-every", "2", "--train.deterministic"),
        *("--device", "cpu", "--overwrite", "--debug"),
    )
    assert (recipe.data.root, recipe.data.workers, recipe.data.on_error) == ("photos", 2, "fail")
    assert (recipe.train.steps, recipe.train.batch_size, recipe.train.checkpoint_every) == (5, 8, 2)
    assert recipe.train.deterministic
    assert recipe.seed == 1
    assert (options.out, options.device, options.overwrite, options.debug) == ("runs/x", "cpu", True, True)


def test_nested_fields_are_flags_in_either_spelling() -> None:
    for words in (
        ["--learner.masking.ratio", "0.75"],
        ["--learner.masking.ratio=0.75"],
        ["--mask-ratio", "0.75"],
        ["--mask_ratio=0.75"],
    ):
        assert parsed(*words)[0].learner.masking.ratio == 0.75
    assert parsed("--learner.backbone.img-size", "32", "48")[0].learner.backbone.img_size == (32, 48)
    assert parsed("--learner.decoder_mask", "local_mae")[0].learner.decoder_mask == "local_mae"


def test_booleans_can_be_written_as_in_yaml() -> None:
    assert not parsed("--data.crop.flip", "false")[0].data.crop.flip
    assert not parsed("--data.crop.no-flip")[0].data.crop.flip
    assert parsed("--train.deterministic", "true")[0].train.deterministic


def test_a_type_can_be_chosen_before_its_fields() -> None:
    recipe, _ = parsed("--learner.masking.count", "3", "--learner.masking.type", "Sequential", "--region", "Columns")
    assert recipe.learner.masking == Sequential.Config(count=3)
    assert recipe.learner.regions == Columns.Config()
    recipe, _ = parsed("--learner.regions.type=Clusters", "--learner.regions.size", "2", "1", "--order", "column")
    assert recipe.learner.regions == Clusters.Config(size=(2, 1), order="column")
    recipe, _ = parsed("--data.type", "hybridmap.data.synthetic:Synthetic", "--data.length", "7")
    assert isinstance(recipe.data, Synthetic.Config)
    assert recipe.data.length == 7


def test_a_yaml_file_is_laid_over_the_recipe_and_flags_over_the_file(tmp_path: Path) -> None:
    file = tmp_path / "some.yaml"
    file.write_text("train: {steps: 7, batch_size: 4}\nlearner: {masking: {type: Sequential, ratio: 0.25}}\n")
    recipe, _ = parsed("--config", str(file), "--train.batch-size", "2")
    assert (recipe.train.steps, recipe.train.batch_size) == (7, 2)
    assert recipe.learner.masking == Sequential.Config(ratio=0.25)


def test_the_record_of_a_run_is_a_config_file(tmp_path: Path) -> None:
    wanted, _ = parsed("--mask-ratio", "0.6", "--learner.regions.type", "Columns", "--train.steps", "3")
    (tmp_path / "recipe.yaml").write_text(config.to_yaml(wanted))
    assert parsed("--config", str(tmp_path / "recipe.yaml"))[0] == wanted


def test_a_class_of_ones_own_is_accepted_when_it_is_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_own_masking.py").write_text(
        "from dataclasses import dataclass\n"
        "from hybridmap.tokens.masking import Masking\n"
        "class Spiral(Masking):\n"
        "    @dataclass(frozen=True, kw_only=True)\n"
        "    class Config(Masking.Config):\n"
        "        turns: int = 3\n"
        "    def scores(self, patches, ranks, key):\n"
        "        return patches.coords.norm(dim=-1)\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(config, "trusted_modules", {"hybridmap"})
    flags = ["--learner.masking.type", "my_own_masking:Spiral", "--learner.masking.turns", "5"]
    with pytest.raises(UserError, match="--import my_own_masking"):
        parsed(*flags)
    recipe, options = parsed(*flags, "--import", "my_own_masking")
    assert recipe.learner.masking.turns == 5
    assert options.import_ == ("my_own_masking",)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["--learner.maskin.ratio", "0.5"],
            r"--learner.maskin.ratio.*did you mean --learner.masking.ratio",
        ),
        (["--learner.masking.ratio", "much"], r"--learner.masking.ratio.*could not convert.*'much'"),
        (["--learner.decoder-mask", "wide"], r"invalid choice 'wide'.*'local_mae'"),
        (["--train.steps", "0"], r"train.steps must be at least 1, got 0"),
        (["--learner.masking.type"], r"--learner.masking.type needs the name of a class"),
        (["--learner.masking.type", "Randm"], r"there is no type 'hybridmap.tokens.masking:Randm'"),
        (["--learner.masking.type", "os:Path"], r"'os:Path' is not of hybridmap"),
        (["--learner.maskng.type", "Random"], r"unknown field 'learner.maskng'; did you mean 'masking'"),
        (["--config", "missing.yaml"], r"cannot read missing.yaml: No such file"),
        (["--import", "no.such.module"], r"there is no module 'no'"),
    ],
)
def test_a_wrong_flag_is_told_in_one_sentence(words: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        parsed(*words)
    assert "\n" not in str(caught.value)


def test_unknown_keys_in_a_file_are_errors(tmp_path: Path) -> None:
    file = tmp_path / "typo.yaml"
    file.write_text("train: {stepz: 3}\n")
    with pytest.raises(UserError, match=r"unknown field 'train.stepz'; did you mean 'steps'"):
        parsed("--config", str(file))
    file.write_text("- a list\n")
    with pytest.raises(UserError, match="must hold a mapping"):
        parsed("--config", str(file))


def test_an_unknown_recipe_is_told_with_its_neighbours() -> None:
    with pytest.raises(UserError, match="there is no recipe 'map-smoky'; did you mean map-smoke"):
        parse_recipe(["map-smoky"], "pretrain", "")
    with pytest.raises(UserError, match="expected the name of a recipe first, got --out"):
        parse_recipe(["--out", "x", "map-smoke"], "pretrain", "")
    with pytest.raises(UserError, match="knn is not a recipe for pretrain; use hybridmap knn RUN"):
        parse_recipe(["knn"], "pretrain", "")
    with pytest.raises(UserError, match="map-smoke is not a recipe for finetune; use hybridmap pretrain map-smoke"):
        parse_recipe(["map-smoke"], "finetune", "")


def test_help_lists_every_setting(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        parse_recipe(["map-smoke", "--help"], "pretrain", "What it does.")
    assert left.value.code == 0
    shown = capsys.readouterr().out
    for flag in (
        "--learner.masking.ratio",
        "--data.root",
        "--out",
        "--import",
        "--train.batch-size",
        "--learner.backbone.layout",
    ):
        assert flag in shown
    with pytest.raises(SystemExit) as left:
        parse_recipe(["--help"], "pretrain", "What it does.")
    assert left.value.code == 0
    assert "--mask-ratio" in capsys.readouterr().out


def test_every_alias_leads_to_a_setting() -> None:
    from hybridmap.cli.flags import ALIASES

    recipe = find("map-smoke")
    assert isinstance(recipe.learner, MAP.Config)
    recipe = config.override(recipe, {"learner.regions.type": "Clusters"})
    for path in ALIASES.values():
        node = recipe
        *parents, leaf = path.removeprefix("--").replace("-", "_").split(".")
        for part in parents:
            node = getattr(node, part)
        assert leaf == "type" or hasattr(node, leaf), path


def test_data_flags_of_a_probe_reach_both_splits() -> None:
    words = ["runs/mine", "--data.root", "photos", "--k", "5", "--data.size=32", "--data.mean", "0", "0", "0"]
    assert spread_data_flags(words) == [
        *(
            "runs/mine",
            "--train.root",
            "photos",
            "--test.root",
            "photos",
            "--k",
            "5",
            "--train.size",
            "32",
            "--test.size",
            "32",
        ),
        *("--train.mean", "0", "0", "0", "--test.mean", "0", "0", "0"),
    ]
