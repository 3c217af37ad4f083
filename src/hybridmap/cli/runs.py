"""What commands do with runs: open one (or a weight file, or a model by name), find its images, and run a recipe."""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torchvision.transforms.v2.functional import rgb_to_grayscale

from hybridmap.backbones.base import Backbone, ImageBackbone
from hybridmap.backbones.names import ALIASES, MODELS
from hybridmap.cli.flags import RunOptions, closest
from hybridmap.data.augment import Unchanged
from hybridmap.data.base import Dataset, ImageDataset
from hybridmap.data.bundled import BundledPhotos
from hybridmap.data.folder import ImageFolder
from hybridmap.data.image_transforms import CentreCrop, normalise
from hybridmap.data.point_augment import Unmoved
from hybridmap.data.point_clouds import MadeShapes, PointClouds
from hybridmap.errors import UserError
from hybridmap.ops.backend import show_config
from hybridmap.train.recipe import Recipe

_WATCHED = 50
"""Training images of each class that watching by neighbours looks at."""


@dataclass(frozen=True, kw_only=True)
class Source:
    """A backbone with weights, and the images that it is used to."""

    name: str
    """As the user called it."""
    backbone: Backbone
    data: Any = None
    """The Dataset.Config that it was trained on; None where that is not known."""

    @property
    def image_backbone(self) -> ImageBackbone:
        """The backbone, for what is about images.

        Raises:
            UserError: if it takes something else.
        """
        if not isinstance(self.backbone, ImageBackbone):
            raise UserError(
                f"this is about images, but the network of {self.name} ({type(self.backbone).__name__}) takes clouds of points"
            )
        return self.backbone


@dataclass(frozen=True, kw_only=True)
class Run(Source):
    """A run directory, opened."""

    path: Path
    recipe: Recipe
    learner: nn.Module
    """The whole of what was trained, with its newest weights."""


def smoke() -> bool:
    """Whether HYBRIDMAP_SMOKE=1 asks for everything in seconds: the same steps, far too small to learn anything."""
    return os.environ.get("HYBRIDMAP_SMOKE", "") not in ("", "0")


def device_named(name: str) -> torch.device:
    """``auto`` is the first of cuda, mps, cpu that is there.

    Raises:
        UserError: for a device that does not exist here.
    """
    from hybridmap.train.distributed import choose_device

    return choose_device(name)


def first_word(arguments: Sequence[str], command: str, expected: str) -> str:
    """The first argument, which decides about the defaults of all others; it may be ``--help``."""
    if not arguments:
        raise UserError(f"expected {expected}; try hybridmap {command} --help")
    if arguments[0].startswith("-") and arguments[0] not in ("-h", "--help"):
        raise UserError(f"expected {expected} first, got {arguments[0]}; try hybridmap {command} --help")
    return arguments[0]


def open_source(name: str) -> Source:
    """A run directory, a weight file (ours or official), or the name of a model with its initial weights.

    Raises:
        UserError: if it is none of them, or cannot be read.
    """
    path = Path(name).expanduser()
    if path.is_dir():
        return open_run(name)
    if path.is_file():
        from hybridmap.convert import load_checkpoint

        loaded = load_checkpoint(path)
        if loaded.config is None:
            raise UserError(f"{name} does not say which network it belongs to; give the run directory that it came from")
        return Source(name=name, backbone=loaded.build().eval())
    if name in MODELS or name in ALIASES:
        torch.manual_seed(0)
        return Source(name=name, backbone=replace(MODELS[ALIASES.get(name, name)], num_classes=0).build().eval())
    hint = closest(name, (*MODELS, *ALIASES), "hybridmap models")
    raise UserError(f"{name} is no run directory, no weight file and no model; {hint}")


def open_run(name: str) -> Run:
    """A run directory with its weights: final ones, else those of the newest checkpoint.

    Raises:
        UserError: if it is no run directory, or has no weights yet.
    """
    from hybridmap.tasks.features import network_of
    from hybridmap.train.weights import load_run

    recipe, weights = load_run(name)
    learner = recipe.learner.build()
    learner.load_state_dict(weights)
    path = Path(name).expanduser()
    return Run(name=name, backbone=network_of(learner), data=recipe.data, path=path, recipe=recipe, learner=learner.eval())


def evaluation_data(source: Source, *, root: str | None = None, split: str = "all", workers: int | None = None) -> Any:
    """The images that a source is used to, without randomness in the crops; those below ``root`` if given.

    Bundled photographs have no part that is all of them; there it is the held-out halves.
    """
    data = source.data
    if data is None or (root is not None and not hasattr(data, "root")):
        known = {} if data is None else {"size": data.size, "mean": data.mean, "std": data.std}
        data = ImageFolder.Config(**({"size": source.image_backbone.config.img_size} | known))
    if root is not None:
        data = replace(data, root=root)
    data = _still(data, split)
    return data if workers is None else replace(data, workers=workers)


def _still(data: Any, split: str) -> Any:
    """A part of some images without anything random about them."""
    if isinstance(data, ImageFolder.Config):
        plain = {"crop": CentreCrop.Config(), "augment": Unchanged.Config(), "erasing": 0.0, "repeats": 1, "views": 1}
        return replace(data, split=split, **plain)
    if isinstance(data, PointClouds.Config):
        part: dict[str, Any] = {"split": split} if hasattr(data, "split") else {}
        if isinstance(data, MadeShapes.Config) and split == "test":
            part = {"seed": data.seed + 1}  # others of the same families
        return replace(data, sampling="first", augment=Unmoved.Config(), repeats=1, views=1, **part)
    if isinstance(data, BundledPhotos.Config):
        return replace(data, split="train" if split == "train" else "test", flip=False)
    return data


def watched(recipe: Recipe, names: Sequence[str]) -> Recipe:
    """The recipe with exams that tell how pretraining goes on: ``knn`` and ``probe`` by a part of the images, ``pictures``.

    Raises:
        UserError: if labels are needed and there are none.
    """
    from hybridmap.report.reconstruction import Reconstruction
    from hybridmap.tasks.knn import KNN
    from hybridmap.tasks.linear_probe import LinearProbe

    train, test = _still(recipe.data, "train"), _still(recipe.data, "test")
    if {"knn", "probe"} & set(names):
        recipe.data.build().labelled()  # pyright: ignore[reportAttributeAccessIssue]
    exams: dict[str, Any] = {
        "knn": KNN.Config(train=train, test=test, k=(20,), per_class=_WATCHED),
        "probe": LinearProbe.Config(train=train, test=test, base_lrs=(0.1, 1.0, 10.0), epochs=30),
        "pictures": Reconstruction.Config(test=test),
    }
    return replace(recipe, exams=recipe.exams | {name: exams[name] for name in names})


def split_data(source: Source) -> tuple[Any, Any]:
    """(training images, test images) for a probe."""
    return evaluation_data(source, split="train"), evaluation_data(source, split="test")


def spread_data_flags(arguments: Sequence[str]) -> list[str]:
    """``--data.X VALUE`` as ``--train.X VALUE --test.X VALUE``: what training and test images have in common is said once."""
    words, spread = list(arguments), []
    while words:
        flag, equals, value = words.pop(0).partition("=")
        if not flag.startswith("--data."):
            spread.append(flag + equals + value)
            continue
        values = [value] if equals else []
        while not equals and words and not words[0].startswith("--"):
            values.append(words.pop(0))
        for part in ("train", "test"):
            spread += [f"--{part}.{flag.removeprefix('--data.')}", *values]
    return spread


def sample_images(data: ImageDataset.Config, count: int) -> Float[Tensor, "B C H W"]:
    """A few normalised images, evenly spread over the data set, the same ones each time."""
    dataset = data.build()
    count = min(count, len(dataset))
    indices = [i * len(dataset) // count for i in range(count)]
    return normalise(dataset.samples(indices, indices).images, data.mean, data.std)


def read_images(paths: Sequence[str], data: ImageDataset.Config) -> Float[Tensor, "B C H W"]:
    """Image files of any size and format, cropped in the middle to the size of ``data``, normalised; grey if ``data`` is.

    Raises:
        UserError: for a file that cannot be read.
    """
    from hybridmap.data.base import UnreadableImage
    from hybridmap.data.decode import decode, read_file

    crop, size = CentreCrop.Config().build(), data.image_size
    images = []
    for path in paths:
        try:
            found = decode(path, read_file(path), lambda full: min(side / out for side, out in zip(full, size, strict=True)))
        except UnreadableImage as error:
            raise UserError(f"{error.path} cannot be read ({error.reason}); expected an image file") from None
        images.append(crop(found.image, size, 0, found.full))
    stacked = torch.stack(images)
    return normalise(rgb_to_grayscale(stacked) if len(data.mean) == 1 else stacked, data.mean, data.std)


def shrink(recipe: Recipe) -> Recipe:
    """The recipe at the smallest size, on its own images: what HYBRIDMAP_SMOKE=1 makes of any command."""
    from hybridmap.recipes.smoke import scale_down

    little: Any = scale_down(recipe)
    learner: Any = recipe.learner
    size = getattr(little.learner.backbone, "img_size", 0)  # clouds have none
    exams = {name: shrink_exam(exam, size) for name, exam in recipe.exams.items()}
    classes = {"num_classes": learner.num_classes} if hasattr(learner, "num_classes") else {}
    return replace(little, learner=replace(little.learner, **classes), data=_small(recipe.data, size), exams=exams)


def shrink_exam(exam: Any, size: int = 32) -> Any:
    """An exam at the smallest size, on its own images in ``size`` pixels."""
    from hybridmap.recipes.smoke import small_exam

    kept = {f.name: getattr(exam, f.name) for f in fields(exam) if isinstance(getattr(exam, f.name), Dataset.Config)}
    return replace(small_exam(exam), **{name: _small(data, size) for name, data in kept.items()})


def _small(data: Any, size: int) -> Any:
    if isinstance(data, PointClouds.Config):
        return replace(data, points=64, workers=0)
    few = {"per_source": 4} if isinstance(data, BundledPhotos.Config) else {}
    return replace(data, size=size, workers=0, **few)


def run_recipe(name: str, recipe: Recipe, options: RunOptions, command: str, arguments: Sequence[str]) -> Path:
    """Train, then draw pictures and write the report; returns the run directory."""
    from hybridmap.cli import report
    from hybridmap.data.loader import Loader
    from hybridmap.files import replace_file
    from hybridmap.recipes import share_data
    from hybridmap.report.html import RESULTS, tables_as_json
    from hybridmap.train.loop import train

    recipe = share_data(watched(recipe, options.watch) if options.watch else recipe)
    if smoke():
        recipe = shrink(recipe)
    out = Path(options.out or f"runs/{name}").expanduser()
    environment = {"kernels": show_config()}
    train(recipe, out, loader=Loader, device=options.device, overwrite=options.overwrite, environment=environment)
    if int(os.environ.get("RANK", "0")) == 0:
        replace_file(out / RESULTS, tables_as_json([], command=shlex.join(["hybridmap", command, *arguments])))
        page = report.write(open_run(str(out)), device=options.device)
        print(f"done: {page}")
    return out
