"""Several runs on one page: numbers, settings that differ, curves on one axis, the same images under the same masks.

    runs ──▶ compare.html     runs and their scores | settings | curves | reconstructions | features

Masks are those of the first run that draws masks at will (MAP and what it covers); every such run with the same grid of patches
reconstructs under them. Objectives whose order says what is predicted (ARM's, for one) keep their own.
"""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, Field, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float
from PIL import Image
from torch import Tensor, nn
from torchvision.transforms.v2.functional import resize, rgb_to_grayscale

from hybridmap.backbones.base import ImageBackbone
from hybridmap.config import Config
from hybridmap.data.image_transforms import denormalise, normalise
from hybridmap.files import replace_file
from hybridmap.objectives.map import MAP
from hybridmap.report.canvas import Tile, image_of, sized, tiles
from hybridmap.report.features import depths_of, feature_components
from hybridmap.report.html import (
    SMALL,
    WIDE,
    Table,
    curves,
    exams,
    figure,
    is_finished,
    page,
    plot,
    read_environment,
    read_metrics,
    section,
    series,
    table_as_html,
    tables_of,
)
from hybridmap.report.pictures import Predicts, View, asked, drawn, means, predictions
from hybridmap.types import Mask, Patches

_QUIET = ("data_wait", "images_per_s")
"""Quantities that are about the machine and not about the run."""


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One run."""

    label: str
    path: Path
    learner: nn.Module
    backbone: ImageBackbone
    data: Any
    """The Dataset.Config of its evaluation images: their size, mean and deviation."""
    recipe: Config
    """Everything that was set."""


@dataclass(frozen=True, kw_only=True)
class Reconstruction:
    """What one run makes of the images, and how well."""

    shown: Float[Tensor, "B 3 H W"]
    """Predicted patches among the true ones, as values in [0, 1]."""
    hidden: Float[Tensor, "B 3 H W"]
    """What the encoder saw."""
    flat: Float[Tensor, "B 3 H W"]
    """Every predicted patch in its true mean: what a prediction of zero looks like."""
    error: float
    """Squared error over the predicted patches, each in units of its own variance."""
    shared: bool
    """Whether the mask is the one that runs have in common."""


def write_comparison(
    path: str | Path,
    entries: Sequence[Entry],
    images: Float[Tensor, "B C H W"],
    *,
    shown: int = 6,
    seed: int = 0,
) -> Path:
    """Write the page.

    ``images`` are those of the first run, as its loader normalises them; errors are over all of them, ``shown`` of them are
    drawn. Masks follow from ``seed``.
    """
    first = entries[0].data
    pictures = denormalise(images, first.mean, first.std)
    inputs = {entry.label: images_for(pictures, entry.data, images, first) for entry in entries}
    found = reconstruct(entries, inputs, seed)
    picked = [i * len(images) // shown for i in range(shown)] if shown < len(images) else list(range(len(images)))
    visible = pictures.expand(-1, 3, -1, -1)[picked]
    measured = {entry.label: read_metrics(entry.path) for entry in entries}
    sections = [
        table_as_html(_scores(entries, found, measured, len(images))),
        _settings(entries),
        _environments(entries),
        section("Curves", _curves(measured)),
        section(
            "Reconstructions",
            figure(_png(_sheet(visible, found, picked)), _caption(found)) if found else "",
        ),
        section(
            "Features",
            figure(
                _png(_features(visible, entries, inputs, picked)),
                "Patch features behind the last layer: three principal components as red, green and blue, with their shares of "
                "the variance; found for each run by itself, so likeness can be compared between runs, colours cannot.",
            ),
        ),
        *(
            table_as_html(Table(title=f"{entry.label}: {table.title}", header=table.header, rows=table.rows, note=table.note))
            for entry in entries
            for table in tables_of(entry.path)
        ),
    ]
    return replace_file(path, page(" / ".join(entry.label for entry in entries), sections))


def images_for(
    pictures: Float[Tensor, "B C H W"], data: Any, images: Float[Tensor, "B C H W"], first: Any
) -> Float[Tensor, "B _ h w"]:
    """The same pictures (values in [0, 1]) as another run wants them: its size, its channels, its normalisation.

    ``images`` are the pictures as normalised for a run with data ``first``: what it normalises alike is taken as it is.
    """
    if (data.image_size, data.mean, data.std) == (first.image_size, first.mean, first.std):
        return images
    if len(data.mean) != pictures.shape[1]:
        pictures = rgb_to_grayscale(pictures) if len(data.mean) == 1 else pictures.expand(-1, len(data.mean), -1, -1)
    if tuple(pictures.shape[2:]) != tuple(data.image_size):
        pictures = resize(pictures, list(data.image_size), antialias=True)
    return normalise(
        (pictures * 255).round().byte(), data.mean, data.std
    )  # as decoded files are: floats would stay as they are


def reconstruct(
    entries: Sequence[Entry], inputs: Mapping[str, Float[Tensor, "B C H W"]], seed: int = 0
) -> dict[str, Reconstruction]:
    """Label -> reconstruction, for all runs that predict patches."""
    common: tuple[tuple[int, ...] | None, Bool[Tensor, "B N"]] | None = None
    found = {}
    for entry in entries:
        objective = entry.learner
        if not isinstance(objective, Predicts):
            continue
        patches, mask = drawn(objective, inputs[entry.label], seed)
        shared = isinstance(objective, MAP)
        if shared:
            if common is None:
                common = patches.grid, _by_raster(mask, patches)
            shared = common[0] == patches.grid
            mask = Mask.from_masked(common[1].gather(1, patches.source)) if shared else mask
        found[entry.label] = _reconstruction(entry, objective, inputs[entry.label], patches, mask, shared)
    return found


def _by_raster(mask: Mask, patches: Patches) -> Bool[Tensor, "B N"]:
    return torch.empty_like(mask.masked).scatter_(1, patches.source, mask.masked)


@torch.no_grad()
def _reconstruction(
    entry: Entry, objective: Predicts, images: Tensor, patches: Patches, mask: Mask, shared: bool
) -> Reconstruction:
    wanted = mask.masked if isinstance(objective, MAP) else asked(objective, patches, mask)
    predicted, content = predictions(objective, patches, mask), patches.content
    view = View(objective, images, entry.data.mean, entry.data.std)
    variance = content.float().var(-1) + 1e-6
    error = ((predicted - content).float().square().mean(-1) / variance)[wanted].mean()
    return Reconstruction(
        shown=view.picture(torch.where(wanted[..., None], predicted, content), patches),
        hidden=view.covered(content, mask.masked, patches),
        flat=view.picture(torch.where(wanted[..., None], means(objective, patches), content), patches),
        error=float(error),
        shared=shared,
    )


def _scores(
    entries: Sequence[Entry], found: Mapping[str, Reconstruction], measured: Mapping[str, list[dict[str, Any]]], count: int
) -> Table:
    scores = {entry.label: exams(entry.path) for entry in entries}
    names = sorted(
        {name for of_run in scores.values() for name in of_run}, key=lambda name: (re.sub(r"\d+", "", name), len(name), name)
    )
    rows = []
    for entry in entries:
        losses = [value for _, value in series(measured[entry.label]).get("loss", [])]
        last = losses[-max(1, len(losses) // 20) :]
        made = found.get(entry.label)
        rows.append(
            (
                entry.label,
                type(entry.learner).__name__,
                type(entry.backbone).__name__,
                _length(entry.path, measured[entry.label]),
                f"{sum(last) / len(last):.4f}" if last else "",
                f"{made.error:.3f}{'' if made.shared else ' (own mask)'}" if made else "",
                *(f"{scores[entry.label][name]:.4g}" if name in scores[entry.label] else "" for name in names),
            )
        )
    return Table(
        title="Runs",
        header=("run", "objective", "backbone", "steps", "loss", "error", *names),
        rows=tuple(rows),
        note="The loss is the mean of the last twentieth; losses can be compared where masks and targets are the same. Errors "
        f"can where the mask is: the mean squared error of predicted patches over {count} images, each patch in units of its "
        "own variance, so that patches in their true mean would have about 1.",
    )


def _length(run: Path, metrics: Sequence[Mapping[str, Any]]) -> str:
    steps = max((int(line["step"]) for line in metrics if "step" in line), default=0)
    return f"{steps}" if is_finished(run) else f"{steps}, unfinished"


def _settings(entries: Sequence[Entry]) -> str:
    differing = settings_that_differ([entry.recipe for entry in entries])
    if not differing:
        return section("Settings that differ", "<p>None.</p>")
    rows = tuple((name, *values) for name, values in differing.items())
    note = "Of a class, only what is not its default; a dash stands where there is nothing of that name."
    header = ("setting", *(entry.label for entry in entries))
    return table_as_html(Table(title="Settings that differ", header=header, rows=rows, note=note))


def _environments(entries: Sequence[Entry]) -> str:
    differing = environments_that_differ([entry.path for entry in entries])
    if not differing:
        return section("Environments", "<p>The same.</p>")
    rows = tuple((name, *values) for name, values in differing.items())
    header = ("what differs", *(entry.label for entry in entries))
    return table_as_html(Table(title="Environments", header=header, rows=rows))


def environments_that_differ(runs: Sequence[Path]) -> dict[str, list[str]]:
    """Dotted fact of ``environment.json`` (versions, device, commit, kernels, ...) -> its value in every run, if they differ.
    The command is left out: what it changes is among the settings."""
    told = [_flat(read_environment(run)) for run in runs]
    names = sorted({name for facts in told for name in facts if name != "command"})
    values = {name: [facts.get(name, "-") for facts in told] for name in names}
    return {name: found for name, found in values.items() if len(set(found)) > 1}


def _flat(facts: Any, path: str = "") -> dict[str, str]:
    if not isinstance(facts, Mapping):
        return {path: str(facts)}
    return {key: value for name, inside in facts.items() for key, value in _flat(inside, f"{path}.{name}".lstrip(".")).items()}


def settings_that_differ(configs: Sequence[Any], path: str = "") -> dict[str, list[str]]:
    """Dotted setting -> its value in every configuration, for those in which they differ.

    Where they hold different classes, the classes are told, each with the settings that not all of them have.
    """
    if all(config == configs[0] for config in configs):
        return {}
    found: dict[str, list[str]] = {}
    if all(isinstance(config, Config) for config in configs):
        names = [f.name for f in fields(configs[0]) if all(hasattr(config, f.name) for config in configs)]
        children = {name: [getattr(config, name) for config in configs] for name in names}
        if any(type(config) is not type(configs[0]) for config in configs):
            found[path] = [_brief(config, names) for config in configs]
    elif all(isinstance(config, Mapping) for config in configs):
        names = sorted({name for config in configs for name in config})
        children = {name: [config.get(name) for config in configs] for name in names}
    else:
        return {path: [_brief(config) for config in configs]}
    for name, values in children.items():
        found |= settings_that_differ(values, f"{path}.{name}".lstrip("."))
    return found


def _brief(value: Any, without: Sequence[str] = ()) -> str:
    """A value in a cell of a table; of a configuration the class and what is not its default."""
    if not isinstance(value, Config):
        return "–" if value is None else str(value)
    own = [f for f in fields(value) if f.name not in without and getattr(value, f.name) != _default(f)]
    inside = ", ".join(f"{f.name}={_brief(getattr(value, f.name))}" for f in own)
    return type(value).__qualname__.removesuffix(".Config") + (f"({inside})" if inside else "")


def _default(f: Field[Any]) -> Any:
    return f.default_factory() if f.default_factory is not MISSING else f.default


def _curves(measured: Mapping[str, list[dict[str, Any]]]) -> str:
    all_series = {label: series(metrics) for label, metrics in measured.items()}
    moving = {
        name for found in all_series.values() for name, points in found.items() if len({value for _, value in points}) > 1
    }
    names = sorted(moving - set(_QUIET), key=lambda name: (name != "loss", "/" not in name, name))
    return curves(
        [
            plot(name, {label: found.get(name, []) for label, found in all_series.items()}, size=SMALL if number else WIDE)
            for number, name in enumerate(names)
        ]
    )


def _sheet(visible: Float[Tensor, "B 3 H W"], found: Mapping[str, Reconstruction], picked: Sequence[int]) -> Image.Image:
    """Original | what the encoder sees | patches in their means | a column per run."""
    common = next((made for made in found.values() if made.shared), next(iter(found.values())))
    columns = [
        ("original\n ", visible),
        ("seen\n ", common.hidden[picked]),
        ("only true means\nerror about 1", common.flat[picked]),
        *(
            (f"{label}\nerror {made.error:.3f}{'' if made.shared else ', own mask'}", made.shown[picked])
            for label, made in found.items()
        ),
    ]
    return _columns([(title, [image_of(values) for values in tile]) for title, tile in columns])


def _features(
    visible: Float[Tensor, "B 3 H W"], entries: Sequence[Entry], inputs: Mapping[str, Tensor], picked: Sequence[int]
) -> Image.Image:
    columns = [("original\n ", [image_of(values) for values in visible])]
    for entry in entries:
        last = depths_of(entry.backbone)[-1]
        found = feature_components(entry.backbone, inputs[entry.label][picked], [last])[last]
        maps = [image_of(values.permute(2, 0, 1)) for values in found.colours]
        columns.append((f"{entry.label}\n{' + '.join(f'{share:.0%}' for share in found.shares)}", maps))
    return _columns(columns)


def _columns(columns: Sequence[tuple[str, list[Image.Image]]]) -> Image.Image:
    """Pictures of one column below its title, all as large as the first one of their row at its size for the page."""
    rows = []
    for b, first in enumerate(columns[0][1]):
        size = sized(first, 128, 160).size
        rows.append(
            [Tile(image=images[b].resize(size, _exact(images[b], size)), title="" if b else title) for title, images in columns]
        )
    return tiles(rows)


def _exact(image: Image.Image, size: tuple[int, int]) -> Image.Resampling:
    """Pixels as squares where they get larger."""
    return Image.Resampling.NEAREST if image.width <= size[0] else Image.Resampling.LANCZOS


def _caption(found: Mapping[str, Reconstruction]) -> str:
    own = [label for label, made in found.items() if not made.shared]
    alike = "The same images under the same masks, predicted patches among the true ones. "
    other = f"{', '.join(own)}: under their own masks, since their order or grid says what is hidden. " if own else ""
    return (
        alike
        + other
        + "Brightness and contrast of predicted patches are those of the true patch where the target is normalised pixels: the "
        "third column shows how much that alone gives."
    )


def _png(image: Image.Image) -> bytes:
    content = io.BytesIO()
    image.save(content, format="PNG")
    return content.getvalue()


__all__ = ["Entry", "Reconstruction", "images_for", "reconstruct", "write_comparison"]
