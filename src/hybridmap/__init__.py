"""Masked autoregressive pretraining (MAP) of hybrid Mamba-Transformer vision backbones, on any machine.

    import timm, hybridmap
    model = timm.create_model("hybridnet_base_patch16_224", num_classes=10)
    objective = hybridmap.MAP.Config(backbone=hybridmap.HybridNet.Config(embed_dim=192)).build()
    hybridmap.train.train(hybridmap.recipes.find("map-tiny"), "runs/mine")

Importing registers the backbones with timm and does nothing else: no device is touched and nothing is downloaded. ``MAP``,
``recipes`` and ``train`` are imported when they are first used. Rooms, from the bottom up: ``ops`` (scan, convolution, fused
norm), ``layers``, ``tokens`` (partition, regions, masking), ``backbones``, ``objectives`` (MAP; MAE and local MAE are settings
of it), ``tasks``, ``data``, ``train``, ``recipes``, ``report``, ``cli``.
"""

from __future__ import annotations

import os
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

# Read when torch loads its OpenMP, so it acts where hybridmap comes first, as on the command line: threads that wait for one
# another spin for some 20 microseconds, then sleep. The default of a millisecond makes many small operations crawl as soon as
# anything else runs on the machine; not to spin at all halves the speed on an idle one.
os.environ.setdefault("GOMP_SPINCOUNT", "20000")

from hybridmap.backbones import Backbone, HybridNet, ViT, create_backbone
from hybridmap.errors import UserError
from hybridmap.ops import show_config
from hybridmap.types import Batch, Features, Loss, Mask, Patches

if TYPE_CHECKING:
    from hybridmap import recipes, train
    from hybridmap.objectives.map import MAP

try:
    __version__ = version("hybridmap")
except PackageNotFoundError:  # run from a source tree that was never installed
    __version__ = "unknown"


def __getattr__(name: str) -> Any:
    if name == "MAP":
        return import_module("hybridmap.objectives.map").MAP
    if name in ("recipes", "train"):
        return import_module(f"hybridmap.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


__all__ = [
    "MAP",
    "Backbone",
    "Batch",
    "Features",
    "HybridNet",
    "Loss",
    "Mask",
    "Patches",
    "UserError",
    "ViT",
    "__version__",
    "create_backbone",
    "recipes",
    "show_config",
    "train",
]
