"""The official full-size models, by names and shapes: every tensor converts, and finds its place in a network of ours."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from parity_harness import TO_COME, descriptions, family
from torch import Tensor

from hybridmap.convert import convert, origin_of
from hybridmap.objectives.arm import ARMDecoder, ClusterAR
from hybridmap.objectives.chamfer import Chamfer
from hybridmap.objectives.decoder import MAEDecoder, MAPDecoder
from hybridmap.objectives.map import MAP
from hybridmap.objectives.point_decoder import PointDecoder

SUPPORTED = ("map", "reg", "mae", "mambavision", "vim", "arm-pretrain", "arm-finetune", "mamba3d", "pointmap", "point-mae")

OBJECTIVES: dict[str, tuple[Any, Any]] = {
    "map": (MAPDecoder, MAP),
    "mae": (MAEDecoder, MAP),
    "arm-pretrain": (ARMDecoder, ClusterAR),
    "pointmap": (PointDecoder, MAP),
    "point-mae": (PointDecoder, MAP),
}
"""Family -> the decoder and the objective of its pretraining."""


def models() -> list[Any]:
    """(family, name, description) of every model in every manifest, or of the family alone where it is still to come."""
    found: list[Any] = []
    for path in descriptions("manifest"):
        described: dict[str, Any] = json.loads(path.read_text())["models"]
        found += [pytest.param(path, name, about, id=f"{path.stem}:{name}") for name, about in described.items()]
    return found


def shapes(state: dict[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in state.items()}


@pytest.mark.parametrize(("path", "name", "about"), models())
def test_every_official_tensor_converts_and_finds_its_place(path: Path, name: str, about: dict[str, Any]) -> None:
    kind = family(path)
    if kind in TO_COME:
        pytest.skip(f"still to come: {kind}")
    assert kind in SUPPORTED, f"family {kind!r} of {path.name} is neither supported nor listed as still to come"
    official = {key: tuple(shape) for key, (shape, _) in about["state"].items()}
    trained = {key for key, (_, role) in about["state"].items() if role == "param"}
    state = {key: torch.empty(shape, device="meta") for key, shape in official.items()}
    loaded = convert(state, keep_untrained=True)
    assert set(loaded.report.dropped) <= {key for key, (_, role) in about["state"].items() if role == "buffer"}
    assert set(loaded.report.fresh) <= {"head.fc.weight", "head.fc.bias"}

    with torch.device("meta"):
        backbone = loaded.config.build()
    assert shapes(backbone.state_dict()) == shapes(loaded.backbone)
    if loaded.decoder:
        options = {name: loaded.decoder[name] for name in ("width", "depth", "num_heads", "mlp_ratio")}
        decoder_kind, objective_kind = OBJECTIVES[kind]
        target = {"target": Chamfer.Config()} if decoder_kind is PointDecoder else {}
        with torch.device("meta"):
            objective = objective_kind.Config(backbone=loaded.config, decoder=decoder_kind.Config(**options), **target).build()
        wanted = {key: value for key, value in loaded.weights.items() if key.startswith("decoder.")}
        ours = {key: value for key, value in objective.state_dict().items() if key.startswith("decoder.")}
        assert shapes(ours) == shapes(wanted)
    restored = origin_of(state).restore(loaded.weights, official)
    assert shapes(restored) == {key: shape for key, shape in official.items() if key not in loaded.report.dropped}
    assert sum(restored[key].numel() for key in trained) == about["num_params"]
