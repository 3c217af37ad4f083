"""Every kind of learner that a recipe trains, and every family of backbones below MAP, ends with a report."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from hybridmap import recipes
from hybridmap.backbones.arm import ARM
from hybridmap.backbones.base import ImageBackbone
from hybridmap.backbones.mambavision import MambaVision
from hybridmap.backbones.vim import Vim
from hybridmap.backbones.vmamba import VMamba
from hybridmap.cli import report
from hybridmap.cli.runs import Run
from hybridmap.config import to_yaml
from hybridmap.data.base import ImageDataset
from hybridmap.objectives.arm import ARMDecoder, ClusterAR
from hybridmap.recipes.smoke import scale_down
from hybridmap.report.pictures import Predicts
from hybridmap.tokens.regions import Clusters, Columns
from hybridmap.train.recipe import Recipe

MAPS = scale_down(recipes.find("map-tiny"))
SEQUENCE: dict[str, Any] = {"img_size": 32, "patch_size": 8, "embed_dim": 16}


def one_of_each() -> dict[str, Recipe]:
    """The first recipe of each kind of learner, backbone and target, at the smallest size."""
    found: dict[str, Recipe] = {}
    for entry in recipes.listing():
        if entry.kind != "exam":
            recipe: Any = entry.make()
            parts = [recipe.learner, *(getattr(recipe.learner, name, None) for name in ("backbone", "target"))]
            kinds = "/".join(type(part).__qualname__.partition(".")[0] for part in parts if part is not None)
            if kinds not in found:
                found[kinds] = scale_down(recipe)
    return found


def with_learner(**changes: Any) -> Recipe:
    return replace(MAPS, learner=replace(MAPS.learner, **changes))


RECIPES = one_of_each() | {
    "ar": with_learner(decoder_mask="ar", regions=Columns.Config()),
    "mae": with_learner(decoder_mask="mae"),
    "local_mae": with_learner(decoder_mask="local_mae", regions=Clusters.Config(size=3)),
    "MAP on Vim": with_learner(backbone=Vim.Config(depth=2, **SEQUENCE)),
    "MAP on MambaVision": with_learner(
        backbone=MambaVision.Config(img_size=64, embed_dim=8, depths=(1, 1, 2, 2), num_heads=(2, 2))
    ),
    "MAP on VMamba": with_learner(backbone=VMamba.Config(img_size=64, embed_dim=8, depths=(1, 1, 1, 1))),
    "ClusterAR": replace(
        MAPS,
        learner=ClusterAR.Config(
            backbone=ARM.Config(depth=2, directions=1, scan="cluster(2)", cls_token=False, positions="sincos", **SEQUENCE),
            regions=Clusters.Config(size=2),
            decoder=ARMDecoder.Config(width=16, depth=2, num_heads=2),
        ),
    ),
}


@pytest.mark.parametrize("name", RECIPES)
def test_a_report_with_pictures(name: str, tmp_path: Path) -> None:
    recipe: Any = RECIPES[name]
    if isinstance(recipe.data, ImageDataset.Config):
        recipe = replace(recipe, data=replace(recipe.data, size=recipe.learner.backbone.img_size))
    learner = recipe.learner.build().eval()
    (tmp_path / "recipe.yaml").write_text(to_yaml(recipe))
    run = Run(name=name, backbone=learner.backbone, data=recipe.data, path=tmp_path, recipe=recipe, learner=learner)
    page = report.write(run, device="cpu", images=2)
    assert page == tmp_path / "report.html"
    if not isinstance(learner.backbone, ImageBackbone):  # no pictures of clouds yet
        assert not (tmp_path / "pictures").exists()
        return
    pictures = {path.stem: path for path in (tmp_path / "pictures").iterdir()}
    assert page.read_text().count("data:image/png;base64,") == len(pictures)
    expected = {"features"}
    if isinstance(learner, Predicts):
        expected |= {"reconstructions", "own_choices", "all_masks", "all_regions", "all_decoder_masks", "all_scans"}
    assert pictures.keys() == expected
    for path in pictures.values():
        with Image.open(path) as picture:
            assert picture.width <= 930


def test_objectives_that_mask_are_known_to_predict() -> None:
    assert isinstance(RECIPES["MAP/HybridNet/Pixels"].learner.build(), Predicts)
    assert isinstance(RECIPES["ClusterAR"].learner.build(), Predicts)
    assert not isinstance(RECIPES["Classification/HybridNet"].learner.build(), Predicts)
