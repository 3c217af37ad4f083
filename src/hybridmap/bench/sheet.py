"""A table that is printed rounded and written as CSV in full."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.markup import escape
from rich.table import Table

from hybridmap.bench.models import Measured as Model
from hybridmap.bench.models import Phase
from hybridmap.bench.operators import Direction, Row
from hybridmap.bench.step import Measured


class Sheet:
    """Lines of values, None where there is none; a column is its title and the format of its values."""

    def __init__(self, columns: Mapping[str, str]) -> None:
        self.columns = columns
        self.lines: list[Sequence[Any]] = []

    def add(self, *values: Any) -> None:
        self.lines.append(values)

    def table(self) -> Table:
        table = Table(box=None, pad_edge=False)
        for title, form in self.columns.items():
            table.add_column(title, justify="left" if form == "{}" else "right", no_wrap=title in ("what", "model"))
        for line in self.lines:
            shown = zip(self.columns.values(), line, strict=True)
            table.add_row(*("" if value is None else escape(form.format(value)) for form, value in shown))
        return table

    def write(self, path: Path, facts: Mapping[str, Any]) -> None:
        """As CSV; ``facts``, what the lines have in common, is repeated on each."""
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow([*self.columns, *facts])
            writer.writerows([*line, *facts.values()] for line in self.lines)


def operators_sheet(rows: Sequence[Row], directions: Sequence[Direction]) -> Sheet:
    """Milliseconds, and ratios to the first contestant of the same operator."""
    pairs = [column for d in directions for column in ((f"{d} ms", "{:.3f}"), (f"{d} / ours", "{:.2f} x"))]
    sheet = Sheet({"operator": "{}", "what": "{}"} | dict(pairs) | {"note": "{}"})
    ours: dict[str, Row] = {}
    for row in rows:
        first = ours.setdefault(row.operator, row)
        cells: list[float | None] = []
        for d in directions:
            took = row.seconds.get(d)
            cells += [None, None] if took is None else [1e3 * took, took / first.seconds[d]]
        sheet.add(row.operator, row.name, *cells, row.note)
    return sheet


def step_sheet(measured: Measured) -> Sheet:
    """Times and peaks with their ratios to the step's own, then the shares of its operators."""
    columns = {"what": "{}", "s": "{:.3f}", "/ step": "{:.2f} x", "images/s": "{:.1f}", "peak MB": "{:.0f}"}
    sheet = Sheet(columns | {"peak / step": "{:.2f} x", "share": "{:.1%}"})
    step, *_ = measured.seconds.values()
    least, *_ = (*measured.memory.values(), None)
    for name, took in measured.seconds.items():
        peak = measured.memory.get(name)
        cells = (None, None) if peak is None or least is None else (peak / 1e6, peak / least)
        sheet.add(name, took, took / step, measured.images / took, *cells, None)
    for kind, share in measured.shares.items():
        sheet.add(f"operators: {kind}", *[None] * 5, share)
    return sheet


def models_sheet(measured: Mapping[str, Model], phases: Sequence[Phase]) -> Sheet:
    """A line per model: size, then images per second, the same over the first model's, and peak memory of each phase."""
    columns = {"model": "{}", "parameters M": "{:.1f}", "GMACs": "{:.2f}", "size": "{}"}
    for phase in phases:
        columns |= {f"{phase} images/s": "{:.4g}", f"{phase} / first": "{:.2f} x", f"{phase} peak MB": "{:.0f}"}
    sheet = Sheet(columns)
    first = next(iter(measured.values()))
    for name, model in measured.items():
        cells: list[float | None] = []
        for phase in phases:
            rate, peak = model.images_per_s[phase], model.memory.get(phase)
            cells += [rate, rate / first.images_per_s[phase], None if peak is None else peak / 1e6]
        sheet.add(name, model.parameters / 1e6, model.gmacs, "x".join(map(str, model.size)), *cells)
    return sheet
