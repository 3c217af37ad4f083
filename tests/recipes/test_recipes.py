"""Recipes are found, say what they are, and fit together. That they run is tested in tests/smoke."""

import re
from dataclasses import replace
from functools import cache

import pytest
import torch
from torch import nn

from hybridmap import recipes
from hybridmap.config import Config, differences, from_yaml, override, to_yaml
from hybridmap.data.base import ImageDataset
from hybridmap.data.folder import ImageFolder
from hybridmap.errors import UserError
from hybridmap.recipes.smoke import SIZE, scale_down
from hybridmap.tasks.classification import Classification
from hybridmap.tokens.masking import Sequential
from hybridmap.tokens.regions import Rows
from hybridmap.train.recipe import Recipe

NAMES = [entry.name for entry in recipes.listing()]
RUNS = [entry.name for entry in recipes.listing() if entry.kind != "exam"]
SIZES = ("tiny", "small", "base", "large")
PROMISED = [
    *(f"map-{size}{variant}" for size in SIZES for variant in ("", "-paper", "-released")),
    *(f"{kind}-{size}" for size in SIZES for kind in ("mae", "local-mae", "map-mambar", "ft-3stage", "ft-400", "ft-100")),
    *(f"mae-vit-{size}" for size in ("small", "base", "large", "huge")),
    *(f"ft-vit-{size}" for size in ("base", "large", "huge")),
    *(f"{kind}-vim-{size}" for size in ("tiny", "small", "base") for kind in ("map", "mae", "ft")),
    *(f"{kind}arm-{size}" for size in ("base", "large", "huge") for kind in ("", "ft-")),
    *(f"{kind}-mambavision-{size}" for size in ("tiny2", "small", "base", "large2") for kind in ("map", "ft")),
    *(f"{kind}-vmamba-{size}" for size in ("tiny", "small", "base") for kind in ("map", "ft")),
    *(f"ft-layout-{layout}" for layout in ("t", "m", "mt", "tm", "tmmm", "mmmt")),
    *("ft-384-base", "ft-384-large", "ft-vim-tiny-plus", "ft-vim-small-plus", "local-mae-vim-base"),
    *("moco-tiny", "moco-small", "moco-base", "moco-large", "moco-vit-base", "moco-vim-base", "moco-mambar-base"),
    *(f"ar-{of}" for of in ("tiny", "small", "base", "large", "vit-base", "vim-base", "mambar-base")),
    *(f"ar-shift-{of}" for of in ("base", "vit-base", "vim-base")),
    *(f"ar-{of}-base" for of in ("column-vim", "vim-column", "column-vim-column")),
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


STARTED = [entry for entry in recipes.listing("ft-*") if "--init" in entry.command]
"""Recipes whose command starts from weights."""


@pytest.mark.parametrize("entry", STARTED, ids=lambda entry: entry.name)
def test_the_weights_that_a_command_starts_from_fit(entry: recipes.Entry):
    found = re.search(r"--init runs/(\S+)", entry.command)
    assert found is not None
    start, model = on_meta(found[1]), on_meta(entry.name)
    assert isinstance(model, Classification)
    own = {f"backbone.{name}": value for name, value in model.backbone.state_dict().items()}
    tables = {name: own[name] for name in own if name.endswith("pos_embed")}  # nothing can be resampled without memory
    given = {name: value for name, value in start.state_dict().items() if not name.endswith("pos_embed")}
    report = model.initialise(given | tables)
    never_needed = ("decoder.", "backbone.norm.", *(f"backbone.{part}" for part in model.backbone.pretraining_parts))
    assert {name for name in report.dropped if not name.startswith(never_needed)} == set()
    inside = {name for name in own if name.startswith(("backbone.layers.", "backbone.stages."))}
    assert inside
    assert inside <= set(report.loaded)


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
        ("arm-base", 1.2e-3, 1600, 2048),
        ("arm-large", 6e-4, 1600, 1024),
        ("ft-arm-base", 2e-3, 100, 1024),
        ("ft-arm-large", 2e-3, 100, 1024),
        ("ft-vim-tiny", 1e-3, 300, 1024),
        ("ft-vim-small", 1e-3, 300, 512),
        ("ft-vim-tiny-plus", 1e-5, 30, 1024),
        ("ft-384-base", 1e-5, 30, 512),
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


def test_pilot_ar_hides_a_fifth_at_the_end_of_its_order():
    for name in ("base", "vit-base", "vim-base", "mambar-base"):
        learner = recipes.find(f"ar-{name}").learner
        assert (type(learner.masking), learner.masking.count) == (Sequential.Config, 40)
        assert (learner.decoder_mask, learner.regions) == ("ar", Rows.Config())
    for name in ("base", "vit-base", "vim-base"):
        shifted, tail = recipes.find(f"ar-shift-{name}"), recipes.find(f"ar-{name}")
        assert (shifted.learner.count, shifted.learner.regions) == (40, Rows.Config())
        assert replace(shifted, learner=tail.learner) == tail
        assert shifted.learner.backbone == tail.learner.backbone


def test_table_2_crosses_the_order_of_the_scan_with_that_of_prediction():
    found = {}
    for name in ("ar-vim-base", "ar-column-vim-base", "ar-vim-column-base", "ar-column-vim-column-base"):
        learner = recipes.find(name).learner
        found[name] = (learner.backbone.scan, type(learner.regions).__qualname__.partition(".")[0])
        plain = {"learner.backbone.scan": "row", "learner.regions.type": "Rows"}
        assert override(recipes.find(name), plain) == recipes.find("ar-vim-base")
    assert sorted(found.values()) == [("column", "Columns"), ("column", "Rows"), ("row", "Columns"), ("row", "Rows")]
    assert found["ar-column-vim-base"] == ("row", "Columns")
    assert found["ar-vim-column-base"] == ("column", "Rows")


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
        if isinstance(small.data, ImageDataset.Config):
            assert small.learner.backbone.img_size == small.data.size <= 2 * SIZE
        if hasattr(recipe.learner, "masking"):
            assert small.learner.masking == recipe.learner.masking.small()
        for kept in ("regions", "decoder_mask", "keep_masked_features", "loss_on", "smoothing", "mixing"):
            assert getattr(small.learner, kept, None) == getattr(recipe.learner, kept, None)


def test_layer_decay_and_drop_path_of_arm_are_those_of_the_source():
    tuned = [recipes.find(f"ft-arm-{size}") for size in ("base", "large")]
    assert [(r.optim.layer_decay, r.learner.backbone.drop_path, r.train.ema) for r in tuned] == [
        (0.65, 0.1, 0.99992),
        (0.75, 0.3, 0.99992),
    ]
    assert all(r.learner.backbone.directions == 4 and r.learner.backbone.cls_token for r in tuned)
    pretrained = recipes.find("arm-base")
    assert (pretrained.data.size, pretrained.train.clip, pretrained.learner.backbone.directions) == (192, 3.0, 1)


def test_mambavision_is_trained_by_the_table_of_its_source():
    sizes = ("tiny2", "small", "base", "large2")
    tuned = [recipes.find(f"ft-mambavision-{size}") for size in sizes]
    assert [r.optim.weight_decay for r in tuned] == [0.05, 0.05, 0.075, 0.12]
    assert [r.schedule.warmup_epochs for r in tuned] == [20, 20, 35, 20]
    assert [r.exams["val"].test.crop.crop_ratio for r in tuned] == [0.98, 0.93, 1.0, 1.0]
    assert [r.learner.backbone.drop_path for r in tuned] == [0.2, 0.2, 0.3, 0.3]
    assert {r.learner.backbone.drop_path for r in (recipes.find(f"map-mambavision-{size}") for size in sizes)} == {0.0}


def test_at_384_pixels_only_what_the_recipe_names_differs_from_224():
    small, large = recipes.find("ft-400-base"), recipes.find("ft-384-base")
    changed = {name.partition(".")[0] for name in differences(small, large)}
    assert changed == {"learner", "data", "exams", "optim", "schedule", "train"}
    assert override(large.learner, {"backbone.img_size": 224, "smoothing": 0.0}) == small.learner
    assert large.learner.backbone.drop_path == 0.4
    assert large.data.size == large.exams["val"].test.size == 384


def test_layouts_of_table_4_differ_in_the_layout_alone():
    layouts = {entry.name: entry.make() for entry in recipes.listing("ft-layout-*")}
    assert len(layouts) == 6
    assert {len(r.learner.backbone.layout) for r in layouts.values()} == {32}
    assert all(override(r, {"learner.backbone.layout": "MMMT" * 8}) == recipes.find("ft-3stage-base") for r in layouts.values())
