"""Our own weight files: safetensors whose one metadata key, ``hybridmap``, says in JSON what they hold."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from hybridmap.backbones.base import Backbone
from hybridmap.config import from_tree, to_tree
from hybridmap.convert.origin import Loaded
from hybridmap.convert.read import METADATA_KEY
from hybridmap.errors import UserError
from hybridmap.types import InitReport

FAMILY = "hybridmap"
"""Family of files that training wrote."""

BACKBONE, DECODER = "backbone.", "decoder."


def read_ours(tensors: Mapping[str, Tensor], metadata: str, path: Path) -> Loaded:
    """What a file of ours holds, whether training or :func:`write_ours` wrote it.

    Raises:
        UserError: if the metadata is damaged, or there is no backbone in the file.
    """
    try:
        about: dict[str, Any] = json.loads(metadata)
    except json.JSONDecodeError:
        about = {}
    if not isinstance(about, dict) or not about:
        raise UserError(f"{path} has a damaged '{METADATA_KEY}' entry; expected a file written by hybridmap, so write it again")
    wrapped = any(name.startswith(BACKBONE) for name in tensors)
    weights: dict[str, Tensor] = {}
    dropped: dict[str, str] = {}
    for name, value in tensors.items():
        if name.startswith((BACKBONE, DECODER)) or not wrapped:
            weights[name.removeprefix(BACKBONE)] = value
        else:
            dropped[name] = "neither of the backbone nor of the decoder"
    if all(name.startswith(DECODER) for name in weights):
        raise UserError(f"{path} holds no backbone; expected the weights of a pretraining or classification run")
    config = _backbone_config(about)
    if config is not None and "head.fc.weight" not in weights:
        config = replace(config, num_classes=0) if _has_prefix(weights) else config.encoder()
    return Loaded(
        family=about.get("family", FAMILY),
        weights=weights,
        config=config,
        report=InitReport(loaded=tuple(weights), dropped=dropped, fresh={}),
        decoder=about.get("decoder", {}),
    )


def write_ours(loaded: Loaded, path: str | Path) -> None:
    """Write converted weights as a file of ours; equal weights give equal bytes, and a failure leaves no file behind.

    Raises:
        UserError: if the file cannot be written.
    """
    path = Path(path)
    about = {"family": loaded.family, "decoder": loaded.decoder}
    if loaded.config is not None:
        about["backbone"] = to_tree(loaded.config)
    named = {name if name.startswith(DECODER) else BACKBONE + name: value for name, value in loaded.weights.items()}
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        contents = {name: named[name].contiguous() for name in sorted(named)}
        save_file(contents, temporary, metadata={METADATA_KEY: json.dumps(about, sort_keys=True)})
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path} cannot be written ({error}); choose another place with enough room") from None
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def _has_prefix(weights: Mapping[str, Tensor]) -> bool:
    return any(name.startswith(("registers.", "head.reduce.")) for name in weights)


def _backbone_config(about: Mapping[str, Any]) -> Backbone.Config | None:
    """The backbone named in the metadata: by itself, or inside the recipe of a run."""
    tree = about.get("backbone") or about.get("recipe", {}).get("learner", {}).get("backbone")
    config = from_tree(tree) if tree else None
    return config if isinstance(config, Backbone.Config) else None
