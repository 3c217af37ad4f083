"""Recipes are found, say what they are, and fit together. That they run is tested in tests/smoke."""

import re
from functools import cache

import pytest
import torch
from torch import nn

from hybridmap import recipes
from hybridmap.config import Config, from_yaml, override, to_yaml
from hybridmap.data.folder import ImageFolder
from hybridmap.errors import UserError
from hybridmap.recipes.smoke import SIZE, scale_down
from hybridmap.tasks.classification import Classification
from hybridmap.train.recipe import Recipe

NAMES = [entry.name for entry in recipes.listing()]
RUNS = [entry.name for entry in recipes.listing() if entry.kind != "exam"]
SIZES = ("tiny", "small", "base", "large")
PROMISED = [
    *(f"map-{size}{variant}" for size in SIZES for variant in ("", "-paper", "-released")),
    *(f"{kind}-{size}" for size in SIZES for kind in ("mae", "local-mae", "map-mambar", "ft-3stage", "ft-400", "ft-100")),
    *(f"mae-vit-{size}" for size in ("small", "base", "large", "huge")),
    *(f"ft-vit-{size}" for size in ("base", "large", "huge")),
    *("map-huge", "map-huge-released", "map-vit-base", "ar-mask-base", "map-smoke", "knn", "probe-linear"),
]
"""Names that scripts may rely on."""


@cache
def built(learner: Config) -> nn.Module:
    with torch.device("meta"):
        return learner.build()


def on_meta(name: str) -> nn.Module:
    """The learner of a recipe without memory."""
    return built(recipes.find(name).learner)


def test_the_promised_names_exist():
    assert set(PROMISED) <= set(NAMES)


def test_names_are_unique_and_underscores_are_understood():
    assert len(set(NAMES)) == len(NAMES)
    assert recipes.find("map_base_paper") == recipes.find("map-base-paper")


def test_an_unknown_name_is_answered_with_the_nearest():
    with pytest.raises(UserError, match="did you mean map-base"):
        recipes.find("map-bsae")
    with pytest.raises(UserError, match="hybridmap recipes lists them all"):
        recipes.find("zzz")


def test_the_list_can_be_filtered():
    assert {entry.name for entry in recipes.listing("ft-vit-*")} == {"ft-vit-base", "ft-vit-large", "ft-vit-huge"}


@pytest.mark.parametrize("entry", recipes.listing(), ids=lambda entry: entry.name)
def test_a_recipe_says_what_it_costs_and_what_to_expect(entry: recipes.Entry):
    command = {"pretrain": "pretrain", "finetune": "finetune", "exam": r"knn|probe|demo"}[entry.kind]
    assert re.match(rf"hybridmap ({command}|demo)\b", entry.command)
    assert entry.kind == "exam" or entry.name in entry.command or entry.command == "hybridmap demo"
    assert entry.summary.endswith((".", "?"))
    for told in (entry.cost, entry.expected, entry.source):
        assert told.endswith(".")
    assert "printed" not in entry.expected or "ours not measured" in entry.expected


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_survives_being_written_down(name: str):
    made = recipes.find(name)
    assert from_yaml(to_yaml(made)) == made


@pytest.mark.parametrize("name", RUNS)
def test_a_recipe_builds_at_its_real_size(name: str):
    assert all(p.is_meta for p in on_meta(name).parameters())


@pytest.mark.parametrize("entry", recipes.listing("ft-*"), ids=lambda entry: entry.name)
def test_the_weights_that_a_command_starts_from_fit(entry: recipes.Entry):
    found = re.search(r"--init runs/(\S+)", entry.command)
    assert found is not None
    start, model = on_meta(found[1]), on_meta(entry.name)
    assert isinstance(model, Classification)
    given = {name: value for name, value in start.state_dict().items() if not name.endswith("pos_embed")}
    report = model.initialise(given | {"backbone.pos_embed": model.backbone.get_parameter("pos_embed")})
    assert {name for name in report.dropped if not name.startswith(("decoder.", "backbone.norm."))} == set()
    assert any(name.startswith("backbone.layers.") for name in report.loaded)


@pytest.mark.parametrize(
    ("name", "lr", "epochs", "batch"),
    [
        ("map-base-paper", 2.4e-3, 1600, 4096),
        ("map-base-released", 8e-3, 1600, 8192),
        ("mae-vit-base", 2.4e-3, 800, 4096),
        ("ft-3stage-base", 1e-3, 300, 1024),
        ("ft-3stage-base-stage2", 4e-4, 100, 1024),
        ("ft-3stage-base-stage3", 1e-5, 20, 512),
        ("ft-400-base", 4e-4, 400, 1024),
        ("ft-vit-base", 2e-3, 100, 1024),
        ("ft-vit-large", 4e-3, 50, 1024),
    ],
)
def test_rates_and_lengths_are_those_of_the_sources(name: str, lr: float, epochs: float, batch: int):
    recipe = recipes.find(name)
    assert recipe.optim.build().lr(recipe.train.batch_size) == pytest.approx(lr)
    assert (recipe.train.epochs, recipe.train.batch_size) == (epochs, batch)


def test_the_variants_of_map_differ_where_paper_and_released_code_do():
    plain, paper, released = (recipes.find(f"map-base{variant}") for variant in ("", "-paper", "-released"))
    assert [r.learner.backbone.transformer_mlp_ratio for r in (plain, paper, released)] == [2.0, 1.0, 2.0]
    assert [r.learner.masking.ratio_range for r in (plain, paper, released)] == [None, None, (0.3, 0.7)]
    assert [r.learner.backbone.init for r in (plain, paper, released)] == ["keep_dt", "keep_dt", "released"]
    assert [r.learner.backbone.drop_path for r in (plain, paper, released)] == [0.0, 0.0, 0.1]
    assert [r.optim.decay_ssm_state for r in (plain, paper, released)] == [False, False, True]
    assert [r.schedule.form for r in (plain, paper, released)] == ["iter", "iter", "epoch"]


def test_objectives_of_table_6_differ_in_one_field():
    base = recipes.find("map-base")
    for name, mask in (("ar-mask-base", "ar"), ("mae-mask-base", "mae"), ("local-mae-base", "local_mae")):
        assert override(recipes.find(name), {"learner.decoder_mask": "map"}) == base
        assert recipes.find(name).learner.decoder_mask == mask
    assert recipes.find("mae-base").learner.masking.ratio == 0.75


def test_stages_change_size_and_drop_path():
    stages = [recipes.find(f"ft-3stage-base{suffix}") for suffix in ("", "-stage2", "-stage3")]
    assert [r.data.size for r in stages] == [r.learner.backbone.img_size for r in stages] == [128, 224, 224]
    assert [r.learner.backbone.drop_path for r in stages] == [0.1, 0.4, 0.4]
    assert [r.learner.smoothing for r in stages] == [0.0, 0.0, 0.1]
    assert [r.optim.weight_decay for r in stages] == [0.05, 0.05, 0.1]


def test_the_directory_is_said_once():
    recipe = override(recipes.find("ft-100-tiny"), {"data.root": "photos"})
    shared = recipes.share_data(recipe)
    assert shared.exams["val"].test.root == "photos"
    assert shared.exams["val"].test.split == "test"
    own = override(recipe, {"exams.val.test.root": "others"})
    assert recipes.share_data(own) == own


def test_map_smoke_takes_any_folder_of_images():
    recipe = recipes.find("map-smoke")
    backbone = recipe.learner.backbone
    assert isinstance(recipe.data, ImageFolder.Config)
    assert (recipe.data.size, recipe.train.steps, backbone.embed_dim, len(backbone.layout)) == (32, 12, 32, 4)


@pytest.mark.parametrize(
    ("layout", "small"), [("MMMT" * 8, "MMMT"), ("M" * 24, "MMMM"), ("T" * 8 + "M" * 24, "TMMM"), ("TMMM" * 8, "TMMM")]
)
def test_a_scaled_down_layout_resembles_the_whole(layout: str, small: str):
    recipe = override(recipes.find("map-base"), {"learner.backbone.layout": layout})
    assert scale_down(recipe).learner.backbone.layout == small


def test_scaling_down_keeps_what_is_under_study():
    for name in RUNS:
        recipe, small = recipes.find(name), scale_down(recipes.find(name))
        assert isinstance(small, Recipe)
        assert (small.optim, small.schedule, small.seed) == (recipe.optim, recipe.schedule, recipe.seed)
        assert type(small.learner) is type(recipe.learner)
        assert small.learner.backbone.img_size == SIZE
        for kept in ("masking", "decoder_mask", "loss_on", "smoothing", "mixing"):
            assert getattr(small.learner, kept, None) == getattr(recipe.learner, kept, None)
