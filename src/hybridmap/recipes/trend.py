"""Scale ``trend``: small enough for two CPU cores, real enough that objectives differ. What the task is, and why.

    64 px grey crops of 18 photographs and textures, 8 x 8 patches of 8 px; which picture is a crop from? Left halves are for
    training, right halves for the test. Or any folder of labelled images (``--data.root``), in colour.

Why this task. It has to tell objectives apart in minutes. Handwritten digits cannot: nearest neighbours on their raw pixels are
97.5 % right. On these crops raw pixels reach one in four, and a pilot (one seed, 500 steps of 64, width 128; kNN / linear)
found 39.5 to 43.8 / 50.7 to 53.1 for untrained networks and 43.3 to 58.4 / 49.4 to 62.9 for pretrained ones, with objectives
several points apart. Pretraining sees windows of half to twice the size, so that a crop shows parts of things and not only
textures.

What it is not. It is a question of texture more than of things: a good part of the answer is local, and untrained features
already separate half of the crops linearly. Eighteen pictures are few, so intervals, which resample pictures, are wide. Whoever
has labelled images of their own asks a better question with ``--data.root``.

Fine-tuning is short, and Muon has made the weights of pretrained networks large, which slows its first steps (docs/diary.md): a
gain or a loss there is one of the optimiser, too. The probes of the frozen network are free of that, so both are measured.

All objectives get the same network, number of steps, batch, optimiser and decoder; only what a row varies differs. The
optimiser is the demo's, whose settings were chosen for MAP with 75 % masked on a layout of MMTT; that favours no row by
intention, but it was not chosen for each row either.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any

from hybridmap.backbones.base import ImageBackbone
from hybridmap.backbones.hierarchical import HierarchicalBackbone
from hybridmap.config import Config
from hybridmap.data.bundled import BundledPhotos
from hybridmap.data.folder import ImageFolder
from hybridmap.data.image_transforms import CentreCrop, RandomResizedCrop
from hybridmap.layers.mixing import Mixing
from hybridmap.recipes import demo
from hybridmap.tasks.classification import Accuracy, Classification
from hybridmap.tasks.knn import KNN
from hybridmap.train.recipe import Recipe

SIZE = 64
"""Pixels per side."""
PATCH = 8
"""Pixels per side of a patch."""
HIERARCHICAL_SIZE = 128
"""Pixels per side for networks whose units are 32 pixels: 4 x 4 of them."""


@dataclass(frozen=True, kw_only=True)
class Budget:
    """How much a cell may cost."""

    width: int
    """Of the network."""
    steps: int
    """Of pretraining."""
    finetune_steps: int
    batch_size: int = 64


CPU_HOUR = Budget(width=128, steps=400, finetune_steps=100)
"""For two CPU cores: docs/tables.md says how long a cell takes."""
GPU_HOUR = Budget(width=192, steps=4000, finetune_steps=600)
"""For one GPU; not measured."""


def shrink(recipe: Recipe, *, budget: Budget, layers: int, root: str = "") -> Recipe:
    """The recipe at this scale. What is under study stays (objective, masks, order, layout); sizes, data and length change."""
    learner: Any = recipe.learner
    tuning = isinstance(learner, Classification.Config)
    backbone = _network(learner.backbone, budget.width, layers, channels=3 if root else 1)
    like = demo.demo_finetune() if tuning else demo.demo_pretrain()
    changes: dict[str, Any] = {"backbone": backbone}
    if tuning:
        changes |= {"smoothing": 0.1, "mixing": Mixing.Config(mixup=0.0, cutmix=0.0), "head_std": None}
    elif hasattr(learner, "decoder"):
        decoder: Any = like.learner.decoder  # type: ignore[attr-defined]
        changes["decoder"] = replace(learner.decoder, width=decoder.width, depth=decoder.depth, num_heads=decoder.num_heads)
    if hasattr(target := getattr(learner, "target", None), "width"):
        changes["target"] = replace(target, width=budget.width)  # type: ignore[type-var]
    if "queue_size" in {f.name for f in fields(learner)}:
        # A queue that is filled in the first tenth of the run, and a key network that follows within it: at the usual 0.999
        # most of what it is after 400 steps would still be its initial weights.
        changes |= {"queue_size": max(1, budget.steps // 10) * budget.batch_size, "momentum": 0.99}
    small = replace(
        recipe,
        learner=replace(learner, **changes),
        data=_images(recipe.data, "train", backbone, root, augment=not tuning),
        exams={"test": Accuracy.Config(test=_images(recipe.data, "test", backbone, root))} if tuning else {},  # type: ignore[arg-type]
        optim=like.optim,
        schedule=like.schedule,
        train=replace(
            like.train,
            steps=budget.finetune_steps if tuning else budget.steps,
            batch_size=budget.batch_size,
            tensorboard=False,
        ),
    )
    return same_share(recipe, small)


def exams(finetune: Recipe) -> tuple[Config, ...]:
    """Nearest neighbours and a linear probe on the images of a fine-tuning recipe of this scale."""
    test: Any = finetune.exams["test"]
    train: Any = replace(demo.TRAIN, size=test.test.size) if isinstance(test.test, BundledPhotos.Config) else None
    if train is None:
        train = replace(test.test, split="train")
    return KNN.Config(train=train, test=test.test), replace(demo.demo_probe(), train=train, test=test.test)


def same_share(before: Recipe, after: Recipe) -> Recipe:
    """``after`` with the number of masked patches, where ``before`` gives it as a number, as the same share of its patches."""
    given: Any = before.learner
    small: Any = after.learner
    counting = given if hasattr(given, "count") else getattr(given, "masking", None)  # by the objective, or by its masking
    count = getattr(counting, "count", None)
    if count is None:
        return after
    scaled = max(1, round(count / _patches(given.backbone) * _patches(small.backbone)))
    if counting is given:
        return replace(after, learner=replace(small, count=scaled))
    return replace(after, learner=replace(small, masking=replace(small.masking, count=scaled)))


def _patches(backbone: ImageBackbone.Config) -> int:
    size = backbone.img_size
    height, width = (size, size) if isinstance(size, int) else size
    return (height // backbone.patch_size) * (width // backbone.patch_size)


def _network(backbone: ImageBackbone.Config, width: int, layers: int, channels: int) -> ImageBackbone.Config:
    """The same kind of network, small."""
    small: dict[str, Any] = {"in_chans": channels, "drop_path": 0.0}
    if isinstance(backbone, HierarchicalBackbone.Config):
        small |= {"img_size": HIERARCHICAL_SIZE, "embed_dim": width // 4, "depths": (1, 1, 2, 1)}
    else:
        small |= {"img_size": SIZE, "patch_size": PATCH, "embed_dim": width, "num_heads": 4, "d_state": 4, "depth": layers}
        small |= {"num_registers": 0, "cls_reduce": 1, "layout": _layout(getattr(backbone, "layout", ""), layers)}
    known = {f.name for f in fields(backbone)}
    return replace(backbone, **{name: value for name, value in small.items() if name in known})


def _layout(layout: str, layers: int) -> str:
    """``layers`` layers like those of a layout: its beginning where it repeats every four layers, else taken evenly from it."""
    if layout == (layout[:4] * len(layout))[: len(layout)]:
        return (layout[:4] * layers)[:layers]
    return "".join(layout[i * len(layout) // layers] for i in range(layers))


def _images(given: Config, split: str, backbone: ImageBackbone.Config, root: str, *, augment: bool = False) -> Config:
    """The images of this scale. ``augment``: windows of many sizes, mirrored, for pretraining."""
    size: Any = backbone.img_size
    extra: dict[str, Any] = {"views": views} if augment and (views := getattr(given, "views", None)) is not None else {}
    flip = getattr(getattr(given, "crop", None), "flip", True)
    if root:
        crop = RandomResizedCrop.Config(scale=(0.2, 1.0), flip=flip) if split == "train" else CentreCrop.Config()
        return ImageFolder.Config(root=root, split=split, size=size, crop=crop, **extra)  # type: ignore[arg-type]
    if augment:
        return replace(demo.demo_pretrain().data, size=size, flip=flip, **extra)  # type: ignore[call-arg]
    photos: Any = demo.TRAIN if split == "train" else demo.TEST
    assert isinstance(photos, BundledPhotos.Config)
    return replace(photos, size=size)


__all__ = ["CPU_HOUR", "GPU_HOUR", "Budget", "exams", "same_share", "shrink"]
