"""``hybridmap report RUN``: pictures and report.html of a run, finished or still going."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import tyro

from hybridmap.cli.flags import Common, parse
from hybridmap.cli.runs import Run, device_named, evaluation_data, open_run, sample_images
from hybridmap.objectives.map import MAP
from hybridmap.report.html import write_report
from hybridmap.report.pictures import objective_pictures, reconstructions, save, sheet


@dataclass(frozen=True, kw_only=True)
class Options(Common):
    run: tyro.conf.Positional[str]
    """The run directory."""
    images: int = 8
    """Reconstructed images."""


def main(arguments: Sequence[str]) -> int:
    """Write the report and say where it is."""
    options = parse(Options, arguments, "report", "report.html and pictures of a run, finished or not.")
    print(write(open_run(options.run), device=options.device, images=options.images))
    return 0


def write(run: Run, *, device: str = "auto", images: int = 8, title: str | None = None) -> Path:
    """Draw what the run's objective sees and predicts, then write the page. A learner that predicts nothing has no pictures."""
    if isinstance(run.learner, MAP):
        chosen = device_named(device)
        objective = run.learner.to(chosen).eval()
        # Held-out images where there are any: a run on all images has none, and a part of a small folder may be unreadable.
        data = evaluation_data(run, split="all" if getattr(run.data, "split", "all") == "all" else "test")
        shown = sample_images(data, images).to(chosen)
        columns = reconstructions(objective, shown, data.mean, data.std)
        save(sheet(columns), run.path / "pictures" / "reconstructions.png")
        for name, picture in objective_pictures(objective, shown).items():
            save(picture, run.path / "pictures" / f"{name}.png")
    return write_report(run.path, title=title)
