"""Recipes in seconds: the smallest run on any folder, and any recipe scaled down to two steps on made-up images."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

from hybridmap.backbones.hybrid import HybridNet
from hybridmap.config import Config
from hybridmap.data.base import Dataset
from hybridmap.data.folder import ImageFolder
from hybridmap.data.image_transforms import RandomResizedCrop
from hybridmap.data.point_clouds import MadeShapes, PointClouds
from hybridmap.data.synthetic import Synthetic
from hybridmap.objectives.decoder import MAPDecoder
from hybridmap.objectives.map import MAP
from hybridmap.tasks.classifier import Classifier
from hybridmap.tasks.linear_probe import LinearProbe
from hybridmap.train.optim import AdamW
from hybridmap.train.recipe import Recipe, TrainConfig
from hybridmap.train.schedule import Cosine

SIZE = 32
"""Pixels per side."""
CLASSES = 4
FOUR = ("box", "torus", "chair", "mug")
"""Families of shapes, for clouds of so many classes."""


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
    """The same recipe at the smallest size: a small learner (:meth:`Config.small`), made-up inputs, two steps of four.

    What is under study stays (objective, masks, optimiser, schedule, exams); only sizes, data and duration change.
    """
    learner: Any = recipe.learner.small()
    if isinstance(learner, Classifier.Config):
        learner = replace(learner, num_classes=CLASSES)
    size = getattr(learner.backbone, "img_size", SIZE)
    return replace(
        recipe,
        learner=learner,
        data=_small_data(recipe.data, size),
        exams={name: small_exam(exam, size) for name, exam in recipe.exams.items()},
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


def small_exam(exam: Config, size: int = SIZE) -> Config:
    """An exam on a few synthetic images of ``size`` pixels."""
    data = {
        f.name: _small_data(getattr(exam, f.name), size)
        for f in fields(exam)
        if isinstance(getattr(exam, f.name), Dataset.Config)
    }
    quick = {"epochs": 2, "warmup_epochs": 1.0} if isinstance(exam, LinearProbe.Config) else {}
    return replace(exam, **data, **quick)


def _small_data(data: Any, size: int) -> Config:
    if isinstance(data, PointClouds.Config):
        return MadeShapes.Config(points=64, count=16, families=FOUR, augment=data.augment, sampling=data.sampling)
    kept = {name: getattr(data, name) for name in ("mean", "std", "views", "repeats")}
    return Synthetic.Config(size=size, length=16, num_classes=CLASSES, **kept)
