"""Runs are compared on the same images, under the same masks where they let one choose."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from hybridmap.backbones.arm import ARM
from hybridmap.backbones.hybrid import HybridNet
from hybridmap.backbones.vmamba import VMamba
from hybridmap.config import Config
from hybridmap.data.image_transforms import denormalise, normalise
from hybridmap.data.synthetic import Synthetic
from hybridmap.objectives.arm import ARMDecoder, ClusterAR
from hybridmap.objectives.base import Objective
from hybridmap.objectives.decoder import MAPDecoder
from hybridmap.objectives.map import MAP
from hybridmap.report.compare import (
    Entry,
    environments_that_differ,
    images_for,
    reconstruct,
    settings_that_differ,
    write_comparison,
)
from hybridmap.tasks.classification import Classification
from hybridmap.tokens.masking import Random, Sequential
from hybridmap.tokens.regions import Clusters
from hybridmap.types import Batch

DATA = Synthetic.Config(size=32, length=8, num_classes=2)
DECODER = MAPDecoder.Config(width=16, depth=1, num_heads=2)
SMALL = HybridNet.Config(layout="MT", embed_dim=16, num_heads=2, img_size=32, patch_size=8, num_registers=0, num_classes=2)
CLUSTERS = ClusterAR.Config(
    backbone=ARM.Config(
        img_size=32, patch_size=8, embed_dim=16, depth=2, directions=1, scan="cluster(2)", cls_token=False, positions="sincos"
    ),
    regions=Clusters.Config(size=2),
    decoder=ARMDecoder.Config(width=16, depth=2, num_heads=2),
)


@dataclass(frozen=True, kw_only=True)
class Settings(Config):
    """What a recipe is for a comparison: configurations in a tree."""

    learner: Config
    exams: dict[str, Config] = field(default_factory=dict)
    seed: int = 0


def entry(label: str, learner: Config, folder: Path, data: Any = DATA, **more: Any) -> Entry:
    path = folder / label
    path.mkdir(parents=True)
    lines = [{"step": i, "loss": 1.0 + 1.0 / i, "lr": 0.1 * i} for i in range(1, 41)]
    (path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    torch.manual_seed(len(label))
    built = learner.build().eval()
    return Entry(
        label=label, path=path, learner=built, backbone=built.backbone, data=data, recipe=Settings(learner=learner, **more)
    )


def shown_images(count: int = 4) -> torch.Tensor:
    return normalise(DATA.build().samples(range(count), range(count)).images, DATA.mean, DATA.std)


def test_runs_are_given_the_same_masks_and_keep_their_own_where_their_order_says_so(tmp_path: Path) -> None:
    first = MAP.Config(backbone=SMALL, decoder=DECODER, masking=Random.Config(ratio=0.75))
    entries = [
        entry("random", first, tmp_path),
        entry("columns", replace(first, backbone=replace(SMALL, scan="column"), decoder_mask="mae"), tmp_path),
        entry("tail", replace(first, masking=Sequential.Config(count=3), decoder_mask="ar"), tmp_path),
        entry("clusters", CLUSTERS, tmp_path),
        entry(
            "units",
            MAP.Config(backbone=VMamba.Config(img_size=64, embed_dim=8, depths=(1, 1, 1, 1)), decoder=DECODER),
            tmp_path,
        ),
        entry("classes", Classification.Config(backbone=SMALL, num_classes=2), tmp_path),
    ]
    images = shown_images()
    inputs = {one.label: images if one.label != "units" else images.repeat(1, 1, 2, 2) for one in entries}
    found = reconstruct(entries, inputs, seed=3)
    assert list(found) == ["random", "columns", "tail", "clusters", "units"]
    assert [made.shared for made in found.values()] == [True, True, True, False, False]
    for other in ("columns", "tail"):
        assert torch.equal(found[other].hidden, found["random"].hidden)
        torch.testing.assert_close(found[other].flat, found["random"].flat)
        assert not torch.equal(found[other].shown, found["random"].shown)
    assert not torch.equal(found["clusters"].hidden, found["random"].hidden)
    assert found["units"].hidden.shape[-2:] == (64, 64)
    again = reconstruct(entries[:1], inputs, seed=4)
    assert not torch.equal(again["random"].hidden, found["random"].hidden)


def test_the_error_is_in_units_of_each_patch(tmp_path: Path) -> None:
    one = entry("map", MAP.Config(backbone=SMALL, decoder=DECODER), tmp_path)
    objective, images = one.learner, shown_images()
    assert isinstance(objective, MAP)
    patches = objective.backbone.partition(images)
    objective.predict = lambda patches, mask: torch.zeros_like(patches.content)  # type: ignore[method-assign]
    values = patches.content.shape[-1]
    # Mean squares have the divisor P, the variance P - 1.
    assert reconstruct([one], {"map": images})["map"].error == pytest.approx((values - 1) / values, abs=1e-4)
    objective.predict = lambda patches, mask: objective.target.values(patches)  # type: ignore[method-assign]
    made = reconstruct([one], {"map": images})["map"]
    assert made.error == pytest.approx(0, abs=1e-6)


def test_the_error_of_normalised_pixels_is_the_loss(tmp_path: Path) -> None:
    one = entry("map", MAP.Config(backbone=SMALL, decoder=DECODER, masking=Sequential.Config(ratio=0.5)), tmp_path)
    images = shown_images()
    assert isinstance(one.learner, Objective)
    patches = one.learner.backbone.partition(images)
    keys = torch.arange(len(images))
    loss = one.learner.step(patches, one.learner.draw(patches, Batch(inputs=images, key=keys)), keys).total
    assert reconstruct([one], {"map": images})["map"].error == pytest.approx(float(loss.detach()), rel=1e-4)


def test_images_are_converted_to_what_a_run_is_used_to() -> None:
    images, first = shown_images(), DATA
    pictures = denormalise(images, first.mean, first.std)
    assert images_for(pictures, first, images, first) is images
    grey = replace(first, size=16, mean=(0.5,), std=(0.5,))
    made = images_for(pictures, grey, images, first)
    assert made.shape == (4, 1, 16, 16)
    back = images_for(made * 0.5 + 0.5, first, made, grey)
    assert back.shape == images.shape
    grey_again = denormalise(back, first.mean, first.std)
    torch.testing.assert_close(grey_again[:, 0], grey_again[:, 2], atol=1e-5, rtol=0)
    # Interpolation there and back keeps means up to the border.
    luminance = (pictures * torch.tensor([0.299, 0.587, 0.114])[:, None, None]).sum(1)
    torch.testing.assert_close(grey_again[:, 0].mean((1, 2)), luminance.mean((1, 2)), atol=0.01, rtol=0)


def test_settings_are_told_where_they_differ() -> None:
    one = Settings(learner=MAP.Config(backbone=SMALL, decoder=DECODER, masking=Random.Config(ratio=0.75)), exams={"a": DECODER})
    same = replace(one)
    assert settings_that_differ([one, same]) == {}
    other = replace(one, learner=replace(one.learner, masking=Random.Config(ratio=0.5)), exams={}, seed=1)  # type: ignore[call-arg]
    assert settings_that_differ([one, same, other]) == {
        "learner.masking.ratio": ["0.75", "0.75", "0.5"],
        "exams.a": ["MAPDecoder(width=16, depth=1, num_heads=2)"] * 2 + ["–"],
        "seed": ["0", "0", "1"],
    }
    found = settings_that_differ([one, Settings(learner=CLUSTERS)])
    assert found["learner"] == ["MAP(masking=Random(ratio=0.75))", "ClusterAR"]
    assert found["learner.backbone"][0].startswith("HybridNet(layout=MT")
    assert found["learner.backbone.scan"] == ["row", "cluster(2)"]
    assert "learner.backbone.embed_dim" not in found


def test_environments_are_told_where_they_differ(tmp_path: Path) -> None:
    facts = {"commit": "abc", "device": "cpu", "versions": {"torch": "2.15.0"}, "command": ["one"], "kernels": {"scan": "C++"}}
    other = facts | {"versions": {"torch": "2.14.0"}, "command": ["two"], "threads": 4}
    for name, told in (("a", facts), ("b", other)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "environment.json").write_text(json.dumps(told))
    assert environments_that_differ([tmp_path / "a", tmp_path / "b"]) == {
        "threads": ["-", "4"],
        "versions.torch": ["2.15.0", "2.14.0"],
    }
    assert environments_that_differ([tmp_path / "a", tmp_path / "a"]) == {}
    assert environments_that_differ([tmp_path / "a", tmp_path / "none"])["device"] == ["cpu", "-"]


def test_the_page_holds_everything_and_fetches_nothing(tmp_path: Path) -> None:
    first = MAP.Config(backbone=SMALL, decoder=DECODER)
    entries = [entry("one", first, tmp_path), entry("<two>", replace(first, decoder_mask="mae"), tmp_path, seed=7)]
    entries.append(entry("classes", Classification.Config(backbone=SMALL, num_classes=2), tmp_path))
    (tmp_path / "one" / "summary.json").write_text(json.dumps({"exams": {"knn/k100": 1.5, "knn/k20": 49.125}}))
    (tmp_path / "one" / "final.safetensors").write_bytes(b"")
    page = write_comparison(tmp_path / "c.html", entries, shown_images(), shown=2).read_text()
    assert page.count("data:image/png;base64,") == 2
    assert "<two>" not in page
    assert "&lt;two&gt;" in page
    assert page.index("knn/k20") < page.index("knn/k100")
    for expected in (
        "49.12",
        "40, unfinished",
        "1.0253",
        "decoder_mask",
        "Patch features behind the last layer",
        "<td>seed</td>",
    ):
        assert expected in page, expected
    assert not re.search(r'(src|href)="(?!data:|#)', page)
    assert page.count("<svg") == 2


def test_runs_that_predict_nothing_are_compared_too(tmp_path: Path) -> None:
    entries = [entry(label, Classification.Config(backbone=SMALL, num_classes=2), tmp_path) for label in ("a", "b")]
    page = write_comparison(tmp_path / "c.html", entries, shown_images(2)).read_text()
    assert "Reconstructions" not in page
    assert "None." in page
    assert page.count("data:image/png;base64,") == 1
