"""Our own weight files: safetensors whose one metadata key, ``hybridmap``, says in JSON what they hold."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from hybridmap.backbones.base import Backbone
from hybridmap.config import from_tree, to_tree
from hybridmap.convert.origin import Loaded, check_fit
from hybridmap.convert.read import METADATA_KEY
from hybridmap.errors import UserError
from hybridmap.files import replacing
from hybridmap.types import InitReport

FAMILY = "hybridmap"
"""Family of files that training wrote."""

BACKBONE, DECODER = "backbone.", "decoder."
"""Parts of a learner."""

LEARNER, AVERAGE = "learner.", "ema."
"""Parts of a checkpoint."""


def read_ours(tensors: Mapping[str, Tensor], metadata: str, path: Path, ema: bool = False) -> Loaded:
    """What a file of ours holds: weights of a finished run, a checkpoint of a running one, or what :func:`write_ours` wrote.

    ``ema`` takes the moving average that a checkpoint holds.

    Raises:
        UserError: if the metadata is damaged, or there is no backbone in the file.
    """
    try:
        about: Any = json.loads(metadata)
    except json.JSONDecodeError:
        about = None
    if not isinstance(about, dict):
        raise UserError(f"{path} has a damaged '{METADATA_KEY}' entry; expected a file written by hybridmap, so write it again")
    named, dropped = _of_learner(tensors, path, ema)
    wrapped = any(name.startswith(BACKBONE) for name in named)
    weights: dict[str, Tensor] = {}
    for name, value in named.items():
        if name.startswith((BACKBONE, DECODER)) or not wrapped:
            weights[name.removeprefix(BACKBONE)] = value
        else:
            dropped[name] = "neither of the backbone nor of the decoder"
    if all(name.startswith(DECODER) for name in weights):
        raise UserError(f"{path} holds no backbone; expected the weights of a pretraining or classification run")
    loaded = Loaded(
        family=about.get("family", FAMILY),
        weights=weights,
        config=_backbone_config(about, weights),
        report=InitReport(loaded=tuple(weights), dropped=dropped, fresh=about.get("fresh", {})),
        decoder=about.get("decoder", {}),
    )
    if loaded.config is not None:
        check_fit(loaded)
    return loaded


def _of_learner(tensors: Mapping[str, Tensor], path: Path, ema: bool) -> tuple[dict[str, Tensor], dict[str, str]]:
    """(the learner's tensors by its own names, what else a checkpoint holds -> why it is dropped)."""
    learner = {name.removeprefix(LEARNER): value for name, value in tensors.items() if name.startswith(LEARNER)}
    average = {name.removeprefix(AVERAGE): value for name, value in tensors.items() if name.startswith(AVERAGE)}
    if ema and not average:
        raise UserError(f"{path} holds no moving average; leave out the EMA option to load its weights")
    if not learner:
        return dict(tensors), {}
    dropped = {name: "state of the training" for name in tensors if not name.startswith(LEARNER)}
    return learner | (average if ema else {}), dropped


def write_ours(loaded: Loaded, path: str | Path, source: str | Path | None = None) -> None:
    """Write converted weights as a file of ours; equal weights give equal bytes, and a failure leaves no file behind.

    The metadata say what the weights came from: the SHA-256 of the ``source`` file, if given, and the account of its tensors.

    Raises:
        UserError: if the file cannot be written.
    """
    about: dict[str, Any] = {
        "family": loaded.family,
        "decoder": loaded.decoder,
        "dropped": loaded.report.dropped,
        "fresh": loaded.report.fresh,
    }
    if source is not None:
        with open(source, "rb") as file:
            about["source_sha256"] = hashlib.file_digest(file, "sha256").hexdigest()
    if loaded.config is not None:
        about["backbone"] = to_tree(loaded.config)
    named = {name if name.startswith(DECODER) else BACKBONE + name: value for name, value in loaded.weights.items()}
    contents = {name: named[name].contiguous() for name in sorted(named)}
    with replacing(path) as temporary:
        save_file(contents, temporary, metadata={METADATA_KEY: json.dumps(about, sort_keys=True)})


def _backbone_config(about: Mapping[str, Any], weights: Mapping[str, Tensor]) -> Backbone.Config | None:
    """The backbone as :func:`write_ours` described it, or as the learner of a finished run built it."""
    tree = about.get("backbone") or about.get("learner", {}).get("backbone")
    config = from_tree(tree) if tree else None
    if not isinstance(config, Backbone.Config) or "backbone" in about:
        return config if isinstance(config, Backbone.Config) else None
    classes = weights.get("head.fc.bias")  # pretraining builds the encoder alone, classification a head of its own size
    if classes is not None:
        return replace(config, num_classes=len(classes))
    return config.image_encoder() if any(name.startswith("cls_") for name in weights) else config.encoder()
