"""Do our networks start where the official ones do? Statistics over seeds, with ``init="released"``.

Constants must be equal; random tensors must have the mean and spread of the official ones within sampling error, and extremes
that tell a uniform from a normal distribution.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from parity_harness import STARTS_TO_COME, descriptions, family
from parity_harness.arm import finetune_config, pretrain_config
from parity_harness.hybrid import hybrid_config
from parity_harness.mambavision import mambavision_config
from parity_harness.vim import vim_config
from parity_harness.vit import backbone_config
from torch import Tensor, nn

from hybridmap.convert import ORIGINS, Origin
from hybridmap.objectives.arm import ClusterAR
from hybridmap.objectives.base import Objective
from hybridmap.objectives.decoder import MAEDecoder, MAPDecoder
from hybridmap.objectives.map import MAP

SEEDS = 3

Weights = dict[str, Tensor]


def parameters(*modules: nn.Module) -> Weights:
    """Parameters of a backbone by their own names, and of objectives only the decoder's."""
    found: Weights = {}
    for module in modules:
        own = dict(module.named_parameters())
        found |= {n: p for n, p in own.items() if n.startswith("decoder.")} if isinstance(module, Objective) else own
    return found


def map_model(args: dict[str, Any]) -> Weights:
    layout = "".join("MT" if i % 3 == 2 else "M" for i in range(args["depth"]))
    config = replace(hybrid_config(args, layout), init="released")
    decoder = MAPDecoder.Config(
        width=args.get("decoder_embed_dim", 192),
        num_heads=args.get("decoder_num_heads", 16),
        mlp_ratio=float(args.get("mlp_ratio", 4.0)),
    )
    return parameters(config.build(), MAP.Config(backbone=config, decoder=decoder).build())


def mamba_reg_model(args: dict[str, Any]) -> Weights:
    return parameters(replace(hybrid_config(args, "M" * args["depth"]), init="released").build())


def vim_model(args: dict[str, Any]) -> Weights:
    return parameters(replace(vim_config(args), init="released").build())


def mae_model(args: dict[str, Any]) -> Weights:
    args = {"mlp_ratio": 4.0} | args
    if "decoder_embed_dim" not in args:
        return parameters(backbone_config(args, num_classes=args.get("num_classes", 1000)).build())
    decoder = MAEDecoder.Config(
        width=args["decoder_embed_dim"],
        depth=args["decoder_depth"],
        num_heads=args["decoder_num_heads"],
        mlp_ratio=float(args["mlp_ratio"]),
    )
    objective: MAP = MAP.Config(backbone=backbone_config(args), decoder=decoder, decoder_mask="mae").build()
    return parameters(objective.backbone, objective)


def arm_pretrain_model(args: dict[str, Any]) -> Weights:
    objective: ClusterAR = pretrain_config(args, init="released").build()
    return parameters(objective.backbone, objective)


def arm_finetune_model(args: dict[str, Any]) -> Weights:
    return parameters(finetune_config(args, init="released").build())


def mambavision_model(args: dict[str, Any]) -> Weights:
    return parameters(replace(mambavision_config(args), init="released").build())


MODELS: dict[str, Callable[[dict[str, Any]], Weights]] = {
    "map": map_model,
    "reg": mamba_reg_model,
    "mae": mae_model,
    "arm-pretrain": arm_pretrain_model,
    "arm-finetune": arm_finetune_model,
    "mambavision": mambavision_model,
    "vim": vim_model,
}


def models() -> list[Any]:
    found: list[Any] = []
    for path in descriptions("init"):
        described: dict[str, Any] = json.loads(path.read_text())["models"]
        found += [pytest.param(path, about, id=f"{path.stem}:{name}") for name, about in described.items()]
    return found


def origin(shapes: dict[str, tuple[int, ...]]) -> Origin:
    return next(o for o in ORIGINS if o.recognises(shapes))


def differences(name: str, draws: list[Tensor], official: dict[str, Any]) -> list[str]:
    """How the statistics of one parameter differ beyond what chance explains."""
    values = torch.stack([d.detach().double().flatten() for d in draws])
    n = values.shape[1]
    std = float(values.std(1, correction=0 if n == 1 else 1).mean())
    mean, low, high = float(values.mean()), float(values.min()), float(values.max())
    spread = official["std"]
    same = len({tuple(v.tolist()) for v in values}) == 1  # a fixed table: only the rounding of the record remains
    slack = 1e-3 * max(abs(official["min"]), abs(official["max"]), 1e-6)
    chance = 0.0 if same else spread
    bounds = {
        "mean": (mean, official["mean"], slack + 6 * chance * math.sqrt(2 / (SEEDS * n))),
        "std": (std, spread, slack + chance * (0.05 + 4 / math.sqrt(SEEDS * n))),
        "min": (low, official["min"], slack + (0.0 if same else extreme(official["min"], official, n))),
        "max": (high, official["max"], slack + (0.0 if same else extreme(official["max"], official, n))),
    }
    return [
        f"{name}: {kind} {ours:.4g}, official {theirs:.4g}, bound {bound:.2g}"
        for kind, (ours, theirs, bound) in bounds.items()
        if not abs(ours - theirs) <= bound
    ]


def extreme(value: float, official: dict[str, Any], n: int) -> float:
    """How far two draws' extremes may lie apart: little where the distribution ends there, else by a normal's tail."""
    spread = official["std"]
    ends_there = abs(value - official["mean"]) < 1.8 * spread
    return spread * (0.05 + 60 / (SEEDS * n) if ends_there else 1.6 + 10 / math.sqrt(n))


@pytest.mark.parametrize(("path", "about"), models())
def test_fresh_parameters_are_distributed_like_the_official_ones(path: Path, about: dict[str, Any]) -> None:
    kind = family(path)
    if kind in STARTS_TO_COME:
        pytest.skip(f"still to come: {kind}")
    assert kind in MODELS, f"family {kind!r} of {path.name} is neither supported nor listed as still to come"
    official: dict[str, dict[str, Any]] = about["params"]
    shapes = {name: tuple(params["shape"]) for name, params in official.items()}
    draws: list[Weights] = []
    for seed in range(SEEDS):
        torch.manual_seed(seed)
        weights = MODELS[kind](about["args"])
        draws.append(origin(shapes).restore(weights, shapes))
    frozen = {name.removeprefix("backbone.") for name, p in weights.items() if not p.requires_grad}
    trained = origin(shapes).restore({name: p for name, p in weights.items() if name not in frozen}, shapes)
    assert draws[0].keys() == official.keys()
    assert trained.keys() == {name for name, params in official.items() if params["requires_grad"]}
    faults: list[str] = []
    for name, params in official.items():
        assert tuple(draws[0][name].shape) == shapes[name]
        faults += differences(name, [draw[name] for draw in draws], params)
    assert not faults, "\n  ".join(["statistics differ:", *faults])
