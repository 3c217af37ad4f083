"""``hybridmap compare RUN RUN... -o FILE``: scores, settings, curves and reconstructions of several runs on one page."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from rich.markup import escape
from rich.table import Table

from hybridmap.cli.flags import Common, parse
from hybridmap.cli.output import console
from hybridmap.cli.runs import device_named, evaluation_data, open_run, sample_images
from hybridmap.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Options(Common):
    runs: tyro.conf.Positional[tuple[str, ...]]
    """Two or more run directories, finished or not; the images are those of the first."""
    output: Annotated[str, tyro.conf.arg(name="output", aliases=["-o"])] = "compare.html"
    """The page to write; it opens offline."""
    images: int = 6
    """Images that are shown."""
    measured: int = 32
    """Images over which errors are averaged, those that are shown among them."""
    seed: int = 0
    """Chooses the masks."""


def main(arguments: Sequence[str]) -> int:
    """Write the page and say where it is."""
    options = parse(Options, arguments, "compare", "Scores, settings, curves and reconstructions of several runs on one page.")
    if len(options.runs) < 2:
        raise UserError(f"expected at least two runs, got {len(options.runs)}; hybridmap compare RUN RUN... -o out.html")
    if Path(options.output).suffix.lower() not in (".html", ".htm"):
        raise UserError(f"-o must name a page, such as out.html, got {options.output}")
    if options.images < 1:
        raise UserError(f"--images must be at least 1, got {options.images}")
    name, times = Counter(str(Path(run).expanduser().resolve()) for run in options.runs).most_common(1)[0]
    if times > 1:
        raise UserError(f"the run {name} is given {times} times; name each run once")
    device = device_named(options.device)
    runs = [open_run(name) for name in options.runs]
    # Here, because it brings matplotlib, for which a mistake in the arguments need not wait.
    from hybridmap.report.compare import Entry, environments_that_differ, settings_that_differ, write_comparison

    entries = []
    for run, label in zip(runs, labels(options.runs), strict=True):
        learner = run.learner.to(device).eval()
        data = evaluation_data(run, split="all" if getattr(run.data, "split", "all") == "all" else "test")
        entry = Entry(label=label, path=run.path, learner=learner, backbone=run.image_backbone, data=data, recipe=run.recipe)
        entries.append(entry)
    images = sample_images(entries[0].data, max(options.images, options.measured)).to(device)
    print(write_comparison(options.output, entries, images, shown=options.images, seed=options.seed))
    differing = settings_that_differ([entry.recipe for entry in entries])
    _tell(differing | environments_that_differ([entry.path for entry in entries]), [entry.label for entry in entries])
    return 0


def _tell(differing: Mapping[str, Sequence[str]], labels: Sequence[str]) -> None:
    """What differs, on the console."""
    table = Table("what differs", *labels, box=None, pad_edge=False)
    for name, values in differing.items():
        table.add_row(name, *map(escape, values))
    console().print(table if differing else "the same settings and environments")


def labels(names: Sequence[str]) -> list[str]:
    """Short names of directories: their last part, or as much from the end as tells them apart."""
    parts = [Path(name).expanduser().resolve().parts for name in names]
    depth = 1
    while len({part[-depth:] for part in parts}) < len(parts):
        depth += 1
    return ["/".join(part[-depth:]) for part in parts]
