"""The matrix objective x backbone in docs/objectives.md: every cell is built at the smallest size and takes a step, or is
refused by a sentence. Whoever adds an objective, a target or a family adds a row or a column here, and its line there.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import jaxtyping
import pytest
import torch

from hybridmap import objectives
from hybridmap.backbones import ARM, HybridNet, MambaVision, Vim, ViT, VMamba
from hybridmap.backbones.base import Backbone
from hybridmap.backbones.hierarchical import HierarchicalBackbone
from hybridmap.errors import UserError
from hybridmap.hashing import hash_ints
from hybridmap.objectives.arm import ClusterAR
from hybridmap.objectives.base import Objective
from hybridmap.objectives.chamfer import Chamfer
from hybridmap.objectives.decoder import MAEDecoder
from hybridmap.objectives.fourd_map import FourDMAP
from hybridmap.objectives.map import MAP
from hybridmap.objectives.moco import MoCo
from hybridmap.objectives.shift import NextRegion, Shift
from hybridmap.objectives.targets import Diffusion, Target
from hybridmap.tokens.masking import Random, Sequential
from hybridmap.train import AdamW
from hybridmap.types import Batch, Features, Mask

DOCUMENT = Path(__file__).parents[2] / "docs" / "objectives.md"

FAMILIES: dict[str, Backbone.Config] = {
    "HybridNet": HybridNet.Config(),
    "Mamba-R": HybridNet.Config(layout="M" * 24),
    "ViT": ViT.Config(),
    "Vim": Vim.Config(),
    "ARM, one way": ARM.Config(directions=1),
    "ARM, four ways": ARM.Config(),
    "MambaVision": MambaVision.Config(),
    "VMamba": VMamba.Config(),
}


def clusters(backbone: Any) -> ClusterAR.Config:
    """A one-way ARM reads cluster by cluster, whatever else it is asked to do."""
    one_way = isinstance(backbone, ARM.Config) and backbone.directions == 1
    return ClusterAR.Config(backbone=replace(backbone, scan="cluster(4)") if one_way else backbone)


MAE_MASK = Random.Config(ratio=0.75)
OBJECTIVES: dict[str, Callable[[Any], Objective.Config]] = {
    "MAP": lambda backbone: MAP.Config(backbone=backbone),
    "MAP, masked features kept": lambda backbone: MAP.Config(backbone=backbone, keep_masked_features=True),
    "MAP, encoder reads one way": lambda backbone: MAP.Config(backbone=backbone, encoder_causal="region"),
    "MAP, diffusion loss": lambda backbone: MAP.Config(backbone=backbone, target=Diffusion.Config()),
    "MAE": lambda backbone: MAP.Config(backbone=backbone, decoder_mask="mae", masking=MAE_MASK),
    "MAE, its own decoder": lambda backbone: MAP.Config(
        backbone=backbone, decoder_mask="mae", masking=MAE_MASK, decoder=MAEDecoder.Config()
    ),
    "local MAE": lambda backbone: MAP.Config(backbone=backbone, decoder_mask="local_mae"),
    "AR decoder mask": lambda backbone: MAP.Config(backbone=backbone, decoder_mask="ar"),
    "pilot AR, tail": lambda backbone: MAP.Config(backbone=backbone, decoder_mask="ar", masking=Sequential.Config(count=20)),
    "pilot AR, shift": lambda backbone: Shift.Config(backbone=backbone, count=40),
    "next region, strict": lambda backbone: NextRegion.Config(backbone=backbone),
    "cluster AR": clusters,
    "MoCo v2": lambda backbone: MoCo.Config(backbone=backbone),
}


def learner(objective: str, family: str) -> Any:
    torch.manual_seed(0)
    return OBJECTIVES[objective](FAMILIES[family]).small().build()


def images_for(built: Any) -> Batch:
    side = built.config.backbone.img_size
    first, second = torch.randn(2, 4, 3, side, side)
    key = torch.tensor([hash_ints(0, i) for i in range(4)])
    return Batch(inputs=first, key=key, step_key=1, views=(first, second) if isinstance(built, MoCo) else None)


def step(built: Any) -> str:
    """Take one step of an optimiser, and say what the encoder was given on the way."""
    seen: list[tuple[Mask | None, bool, Features]] = []
    plain = built.backbone.encode_visible

    def watched(patches: Any, mask: Mask | None, **asked: Any) -> Features:
        features = plain(patches, mask, **asked)
        seen.append((mask, asked.get("causal", False), features))
        return features

    built.backbone.encode_visible = watched
    optimiser = AdamW.Config(lr=1e-3).build()
    torch_optimiser = optimiser.optimizer(built.named_parameters(), optimiser.rules(built))
    for group in torch_optimiser.param_groups:
        group["lr"] = 1e-3
    trained = {name: p.detach().clone() for name, p in built.named_parameters() if p.requires_grad}
    loss = built(images_for(built)).total
    assert loss.isfinite()
    loss.backward()
    assert {name for name, p in built.named_parameters() if name in trained and p.grad is None} == set()
    torch_optimiser.step()
    moved = {name for name, p in built.named_parameters() if name in trained and not torch.equal(p, trained[name])}
    assert any(name.startswith("backbone.") for name in moved)
    return scheme(built, *(seen[0] if seen else (None, False, None)))


def scheme(built: Any, mask: Mask | None, causal: bool, features: Features | None) -> str:
    """The words of the document."""
    dense = isinstance(built.backbone, HierarchicalBackbone)
    if isinstance(built, MoCo):
        words = "whole crops"
    elif dense:
        words = "blank units"
    else:
        assert mask is not None
        assert features is not None
        assert features.patches.shape[1] == mask.visible.shape[1] < mask.masked.shape[1]
        words = "one way" if causal else "visible patches"
    prefix = features.prefix.shape[1] if features is not None else built.backbone.num_prefix_tokens
    return words + (" + class token" if prefix else "")


def refusal(objective: str, family: str) -> str | None:
    """The sentence by which a cell is refused, or None. Without the tests' checks of types, which users do not have."""
    jaxtyping.config.update("jaxtyping_disable", True)
    try:
        built = learner(objective, family)
        built(images_for(built))
    except UserError as error:
        return str(error)
    finally:
        jaxtyping.config.update("jaxtyping_disable", False)
    return None


@cache
def told() -> tuple[dict[tuple[str, str], str], list[str]]:
    """(objective, family) -> cell of the document's table, and its numbered refusals in order."""
    lines = DOCUMENT.read_text().splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("| ")]
    families = rows[0][1:]
    cells = {(row[0], family): cell for row in rows[1:] for family, cell in zip(families, row[1:], strict=True)}
    return cells, [line.partition(". ")[2].strip("`") for line in lines if line[:1].isdigit()]


def concrete(base: type) -> set[type]:
    """All classes below ``base`` in ``hybridmap.objectives`` that leave nothing abstract."""
    for info in pkgutil.iter_modules(objectives.__path__):
        importlib.import_module(f"{objectives.__name__}.{info.name}")
    found, below = set(), list(base.__subclasses__())
    while below:
        cls = below.pop()
        below += cls.__subclasses__()
        abstract = any(getattr(member, "__isabstractmethod__", False) for _, member in inspect.getmembers(cls))
        if cls.__module__.startswith(objectives.__name__) and not abstract:
            found.add(cls)
    return found


def test_every_objective_and_target_has_a_row() -> None:
    rows = [make(ARM.Config(directions=1)) for make in OBJECTIVES.values()]
    of_clouds = {FourDMAP, Chamfer}  # docs/points.md
    assert concrete(Objective) - of_clouds == {type(row).owner for row in rows}
    targets = {type(row.target).owner for row in rows if hasattr(row, "target")}  # type: ignore[attr-defined]
    assert concrete(Target) - of_clouds == targets


def test_the_document_has_these_rows_and_columns() -> None:
    assert list(told()[0]) == [(objective, family) for objective in OBJECTIVES for family in FAMILIES]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_a_cell_is_what_the_document_says(objective: str, family: str) -> None:
    cells, sentences = told()
    cell = cells[objective, family]
    if cell.startswith("no"):
        expected = sentences[int(cell.removeprefix("no (").removesuffix(")")) - 1]
        start, _, end = expected.partition("...")
        sentence = refusal(objective, family)
        assert sentence is not None
        assert sentence.startswith(start)
        assert sentence.endswith(end)
        assert "\n" not in sentence
    else:
        assert step(learner(objective, family)) == cell
