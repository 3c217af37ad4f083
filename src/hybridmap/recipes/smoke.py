"""Recipes in seconds: the smallest run on any folder, and any recipe scaled down to two steps on made-up images."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

from hybridmap.backbones.base import Backbone
from hybridmap.backbones.hybrid import HybridNet
from hybridmap.backbones.vit import ViT
from hybridmap.config import Config
from hybridmap.data.base import Dataset
from hybridmap.data.folder import ImageFolder
from hybridmap.data.image_transforms import RandomResizedCrop
from hybridmap.data.synthetic import Synthetic
from hybridmap.objectives.decoder import MAPDecoder
from hybridmap.objectives.map import MAP
from hybridmap.objectives.targets import Diffusion
from hybridmap.tasks.classification import Classification
from hybridmap.tasks.linear_probe import LinearProbe
from hybridmap.train.optim import AdamW
from hybridmap.train.recipe import Recipe, TrainConfig
from hybridmap.train.schedule import Cosine

SIZE = 32
"""Pixels per side."""
CLASSES = 4


def map_smoke() -> Recipe:
    """MAP with four layers of width 32 on 32-pixel crops of any folder of images, 12 steps: does everything work here?

    Command: hybridmap pretrain map-smoke --data.root DIR --out runs/map-smoke
    Cost: seconds on a laptop.
    Expected: a falling loss, no more.
    Source: none; nothing can be learned at this size.
    """
    return Recipe(
        learner=MAP.Config(
            backbone=HybridNet.Config(
                layout="MMMT", embed_dim=32, num_heads=2, img_size=SIZE, patch_size=8, num_registers=2, num_classes=CLASSES
            ),
            decoder=MAPDecoder.Config(width=32, depth=1, num_heads=2),
        ),
        data=ImageFolder.Config(size=SIZE, crop=RandomResizedCrop.Config(scale=(0.2, 1.0)), workers=0),
        exams={},
        optim=AdamW.Config(lr=1e-3),
        schedule=Cosine.Config(warmup_epochs=0.0),
        train=TrainConfig(steps=12, batch_size=8, precision="fp32"),
    )


def scale_down(recipe: Recipe) -> Recipe:
    """The same recipe at the smallest size: 4 layers, width 32, 32-pixel synthetic images, two steps of four.

    What is under study stays (objective, masks, optimiser, schedule, exams); only sizes, data and duration change.
    """
    learner: Any = recipe.learner
    changes: dict[str, Any] = {"backbone": small_backbone(learner.backbone)}
    if isinstance(learner, Classification.Config):
        changes["num_classes"] = CLASSES
    if isinstance(learner, MAP.Config):
        changes["decoder"] = replace(learner.decoder, width=32, depth=1, num_heads=2)  # type: ignore[call-arg]
        if isinstance(learner.target, Diffusion.Config):
            changes["target"] = replace(learner.target, width=32, depth=1)
    return replace(
        recipe,
        learner=replace(learner, **changes),
        data=_small_data(recipe.data),
        exams={name: small_exam(exam) for name, exam in recipe.exams.items()},
        train=replace(
            recipe.train,
            steps=2,
            epochs=None,
            batch_size=4,
            accumulate=1,
            precision="fp32",
            compile=False,
            log_every=1,
            tensorboard=False,
        ),
    )


def small_exam(exam: Config) -> Config:
    """An exam on a few synthetic images."""
    data = {
        f.name: _small_data(getattr(exam, f.name)) for f in fields(exam) if isinstance(getattr(exam, f.name), Dataset.Config)
    }
    quick = {"epochs": 2, "warmup_epochs": 1.0} if isinstance(exam, LinearProbe.Config) else {}
    return replace(exam, **data, **quick)


def _small_data(data: Any) -> Config:
    return Synthetic.Config(size=SIZE, length=16, num_classes=CLASSES, mean=data.mean, std=data.std)


def small_backbone(backbone: Backbone.Config) -> Backbone.Config:
    small: dict[str, Any] = {"img_size": SIZE, "patch_size": 8, "embed_dim": 32, "num_heads": 2}
    if isinstance(backbone, ViT.Config):
        return replace(backbone, **small, depth=4)
    if isinstance(backbone, HybridNet.Config):
        registers = min(backbone.num_registers, 2)
        return replace(backbone, **small, layout=_four_of(backbone.layout), num_registers=registers)
    return replace(backbone, img_size=SIZE)


def _four_of(layout: str) -> str:
    """Four layers that resemble a layout: its first four where they hold all its kinds, else four taken evenly from it."""
    if set(layout[:4]) == set(layout):
        return layout[:4].ljust(4, layout[0])
    return "".join(layout[i * len(layout) // 4] for i in range(4))
