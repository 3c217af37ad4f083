"""``hybridmap report RUN``: pictures and report.html of a run, finished or still going."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import tyro

from hybridmap.backbones.base import ImageBackbone
from hybridmap.cli.flags import Common, parse
from hybridmap.cli.runs import Run, device_named, evaluation_data, open_run, sample_images
from hybridmap.data.image_transforms import denormalise
from hybridmap.report.canvas import image_of
from hybridmap.report.choices import all_choices, own_choices
from hybridmap.report.features import feature_picture
from hybridmap.report.html import write_report
from hybridmap.report.pictures import Predicts, reconstructions, save, sheet
from hybridmap.train.weights import has_weights


@dataclass(frozen=True, kw_only=True)
class Options(Common):
    run: tyro.conf.Positional[str]
    """The run directory."""
    images: int = 8
    """Reconstructed images."""


def main(arguments: Sequence[str]) -> int:
    """Write the report and say where it is."""
    options = parse(Options, arguments, "report", "report.html and pictures of a run, finished or not.")
    path = Path(options.run).expanduser()
    if (path / "recipe.yaml").exists() and not has_weights(path):
        print(f"{write_report(path)} (no pictures: there is no checkpoint yet)")
    else:
        print(write(open_run(options.run), device=options.device, images=options.images))
    return 0


def write(run: Run, *, device: str = "auto", images: int = 8, title: str | None = None) -> Path:
    """Draw the run's features, and what its objective sees and predicts if it does, then write the page. Of runs on clouds of
    points there are no pictures yet."""
    if not isinstance(run.backbone, ImageBackbone):
        return write_report(run.path, title=title)
    chosen = device_named(device)
    learner = run.learner.to(chosen).eval()
    # Held-out images where there are any: a run on all images has none, and a part of a small folder may be unreadable.
    data = evaluation_data(run, split="all" if getattr(run.data, "split", "all") == "all" else "test")
    inputs = sample_images(data, images).to(chosen)
    shown = denormalise(inputs, data.mean, data.std).expand(-1, 3, -1, -1)
    pictures = {"features": feature_picture(run.image_backbone, inputs, shown)}
    if isinstance(learner, Predicts):
        photo = image_of(shown[0])
        pictures["reconstructions"] = sheet(reconstructions(learner, inputs, data.mean, data.std))
        pictures["own_choices"] = own_choices(learner, inputs[:1], photo)
        pictures |= all_choices(photo, run.image_backbone.grid)
    for name, picture in pictures.items():
        save(picture, run.path / "pictures" / f"{name}.png")
    return write_report(run.path, title=title)
