"""A table of ours beside the paper's: as Markdown, as a page that opens offline, and as a figure.

Nothing is hidden: a row that could not be run is there with the reason, and what the paper quotes from others stands below.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from hybridmap.files import replace_file, replacing
from hybridmap.report import html

METRICS = {"top1": "fine-tuned", "linear": "linear probe", "knn": "kNN"}
"""Metric -> what it is called in tables."""


@dataclass(frozen=True, kw_only=True)
class Range:
    """A value with the interval around it, in per cent or points."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.1f} [{self.low:.1f}, {self.high:.1f}]"

    def signed(self) -> str:
        """As a difference."""
        return f"{self.value:+.1f} [{self.low:+.1f}, {self.high:+.1f}]"


@dataclass(frozen=True, kw_only=True)
class Line:
    """One row: what the paper prints, and what was measured."""

    label: str
    paper: tuple[float, ...] = ()
    measured: Mapping[str, Range] = field(default_factory=dict)
    """Metric -> mean over seeds and test images."""
    seeds: int = 0
    """Runs behind it."""
    note: str = ""
    """A remark, or why nothing was measured."""


def sheet(title: str, lines: Sequence[Line], note: str = "") -> html.Table:
    """The table in words."""
    metrics = [name for name in METRICS if any(name in line.measured for line in lines)]
    header = ("", "paper", *(METRICS[name] for name in metrics), "seeds", "remark")
    rows = tuple(
        (
            line.label,
            ", ".join(f"{value:g}" for value in dict.fromkeys(line.paper)),
            *(str(line.measured[name]) if name in line.measured else "-" for name in metrics),
            str(line.seeds) if line.seeds else "-",
            line.note,
        )
        for line in lines
    )
    return html.Table(title=title, header=header, rows=rows, note=note)


def markdown(table: html.Table) -> str:
    """A table as GitHub shows it."""

    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"

    ruler = "|---" + "|---:" * (len(table.header) - 1) + "|"
    parts = [f"## {table.title}", "", line(table.header), ruler, *map(line, table.rows), ""]
    return "\n".join([*parts, table.note, ""] if table.note else parts)


def write(
    folder: Path, name: str, title: str, tables: Sequence[html.Table], figures: Mapping[str, bytes], command: str
) -> tuple[Path, Path]:
    """Write ``NAME.md`` and ``NAME.html`` (and each figure as ``NAME-FIGURE.png``); returns the first two."""
    for figure, data in figures.items():
        with replacing(folder / f"{name}-{figure}.png") as temporary:
            temporary.write_bytes(data)
    pictures = [f"![{figure}]({name}-{figure}.png)\n" for figure in figures]
    text = "\n".join([f"# {title}\n", *map(markdown, tables), *pictures, f"Command: `{command}`\n"])
    return (
        replace_file(folder / f"{name}.md", text),
        replace_file(folder / f"{name}.html", html.page_of_tables(title, tables, figures, command)),
    )


def dots(lines: Sequence[Line], metric: str = "top1") -> bytes:
    """PNG: measured values with their intervals on the left, the paper's on the right, each on its own scale."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 1.2 + 0.32 * len(lines)), layout="constrained")
    ours, theirs = figure.subplots(1, 2, sharey=True)
    for place, line in enumerate(lines):
        if (found := line.measured.get(metric)) is not None:
            ours.plot([found.low, found.high], [place, place], color="tab:blue", linewidth=2, alpha=0.5)
            ours.plot(found.value, place, "o", color="tab:blue")
        for value in line.paper:
            theirs.plot(value, place, "s", color="black")
    ours.set_yticks(range(len(lines)), [line.label.replace("$", r"\$") for line in lines])
    ours.invert_yaxis()
    ours.set_title(f"measured: {METRICS[metric]}, %", fontsize=10)
    theirs.set_title("paper: ImageNet top-1, %", fontsize=10)
    return _png(figure)


def differences(found: Mapping[str, Mapping[str, Range]]) -> bytes:
    """PNG: comparisons (by name) with their intervals in points, a colour per metric, against a line at 0."""
    from matplotlib.figure import Figure

    metrics = [name for name in METRICS if any(name in ranges for ranges in found.values())]
    figure = Figure(figsize=(8, 1.2 + 0.36 * len(found)), layout="constrained")
    axes = figure.add_subplot()
    for i, metric in enumerate(metrics):
        colour, shift = f"C{i}", 0.22 * (i - (len(metrics) - 1) / 2)
        places = [(place + shift, ranges[metric]) for place, ranges in enumerate(found.values()) if metric in ranges]
        for place, value in places:
            axes.plot([value.low, value.high], [place, place], color=colour, linewidth=2, alpha=0.5)
        axes.plot([v.value for _, v in places], [p for p, _ in places], "o", color=colour, label=METRICS[metric], markersize=4)
    axes.axvline(0, color="black", linewidth=0.8)
    axes.set_yticks(range(len(found)), list(found))
    axes.set_xlabel("points; the claim says: right of the line")
    axes.invert_yaxis()
    if metrics:
        axes.legend(fontsize=8)
    return _png(figure)


def _png(figure: object) -> bytes:
    data = io.BytesIO()
    figure.savefig(data, format="png", dpi=120, metadata={"Software": None})  # type: ignore[attr-defined]
    return data.getvalue()


__all__ = ["METRICS", "Line", "Range", "differences", "dots", "markdown", "sheet", "write"]
