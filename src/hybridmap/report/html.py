"""One page that tells a run: report.html, self-contained, readable offline, also while the run is still going.

    RUN/{recipe.yaml, environment.json, metrics.jsonl, summary.json, results.json, pictures/*.png}  ──▶  RUN/report.html

Everything is read from the run directory, so the page can be written again at any time (``hybridmap report RUN``). Curves are
inline SVG, pictures are embedded, and every text that came from outside (paths, names, messages) is escaped.
"""

from __future__ import annotations

import base64
import html
import io
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hybridmap.files import replace_file

RESULTS = "results.json"
"""What a command found out, beside the run that it belongs to: ``{"tables": [...], "command": "...", "notes": [...]}``."""

_CAPTIONS = {
    "reconstructions": "Original, what the encoder saw, the prediction, and the prediction with the visible patches pasted in.",
    "regions": "The order of prediction: each patch with the rank of its region. Hatched patches are masked.",
    "decoder_mask": "The decoder mask: in row i, the patches that the decoder may look at while it predicts patch i, "
    "each in the colour of its region.",
}

_STYLE = """
:root { color-scheme: light dark; --line: #8884; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; }
h1 { margin-bottom: 0 } .status { opacity: .75; margin-top: .2rem }
pre, code { font: 13px/1.45 ui-monospace, monospace } pre { border: 1px solid var(--line); padding: .7rem; overflow-x: auto }
table { border-collapse: collapse; margin: .6rem 0 } th, td { border-bottom: 1px solid var(--line); padding: .25rem .8rem }
th { text-align: left } td.number { text-align: right; font-variant-numeric: tabular-nums }
figure { margin: 1rem 0 } figure img { max-width: 100%; image-rendering: pixelated; background: #fff }
figcaption { opacity: .8 } .curves { display: flex; flex-wrap: wrap; gap: 1rem; background: #fff }
.curves svg { max-width: 30rem }
.warning { border-left: 4px solid #d80; padding-left: .8rem }
"""


@dataclass(frozen=True, kw_only=True)
class Table:
    """A titled table; numbers are shown as given, so the caller decides about digits."""

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""

    def as_tree(self) -> dict[str, Any]:
        """Plain lists and texts for JSON."""
        return {"title": self.title, "header": list(self.header), "rows": [list(row) for row in self.rows], "note": self.note}

    @classmethod
    def from_tree(cls, tree: Mapping[str, Any]) -> Table:
        """The inverse of :meth:`as_tree`."""
        rows = tuple(tuple(map(str, row)) for row in tree["rows"])
        return cls(title=str(tree["title"]), header=tuple(map(str, tree["header"])), rows=rows, note=str(tree.get("note", "")))


def write_report(run: str | Path, *, title: str | None = None) -> Path:
    """Write ``report.html`` from whatever the run directory holds by now; returns its path."""
    run = Path(run)
    results = _json(run / RESULTS)
    environment = _json(run / "environment.json")
    metrics = read_metrics(run)
    recipe = _text(run / "recipe.yaml")
    sections = [
        f"<h1>{_escape(title or run.resolve().name)}</h1>",
        f'<p class="status">{_escape(_status(run, metrics))}</p>',
        *(f'<p class="warning">{_escape(note)}</p>' for note in results.get("notes", ())),
        *map(_table, map(Table.from_tree, results.get("tables", ()))),
        _exams(run),
        _section("Curves", _curves(metrics)),
        _section("Pictures", "".join(map(_figure, sorted((run / "pictures").glob("*.png"), key=_picture_order)))),
        _section("Images that could not be read", _skipped(run)),
        _section("To repeat this", _pre(str(results.get("command") or environment.get("command") or ""))),
        _section("Environment", _pre(json.dumps(environment, indent=2, sort_keys=True) if environment else "")),
        _section("Recipe", f"<details><summary>recipe.yaml</summary>{_pre(recipe)}</details>" if recipe else ""),
    ]
    page = _page(title or run.resolve().name, sections)
    return replace_file(run / "report.html", page)


def page_of_tables(title: str, tables: Sequence[Table], figures: Mapping[str, bytes], command: str) -> str:
    """A page of tables, and figures (PNG by caption) below them."""
    drawn = "".join(_image(data, name.replace("_", " ")) for name, data in figures.items())
    head = f"<h1>{_escape(title)}</h1>"
    return _page(title, [head, *map(_table, tables), _section("Figures", drawn), _section("To repeat this", _pre(command))])


def _page(title: str, sections: Iterable[str]) -> str:
    """Sections as one self-contained page; empty ones are left out."""
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{_escape(title)}</title><style>{_STYLE}</style></head>\n<body>\n"
        + "\n".join(filter(None, sections))
        + "\n</body></html>\n"
    )


def read_metrics(run: str | Path) -> list[dict[str, Any]]:
    """The lines of ``metrics.jsonl``; a last line that is still being written is left out."""
    lines = []
    for line in _text(Path(run) / "metrics.jsonl").splitlines():
        try:
            lines.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return lines


def _status(run: Path, metrics: Sequence[Mapping[str, Any]]) -> str:
    steps = [int(line["step"]) for line in metrics if "step" in line]
    progress = f"{max(steps)} optimiser steps" if steps else "no step logged yet"
    return f"finished after {progress}" if (run / "final.safetensors").exists() else f"in progress or interrupted: {progress}"


def _curves(metrics: Sequence[Mapping[str, Any]]) -> str:
    """Every quantity that was logged with more than one value, as a small plot each: the loss, then exams, then the rest."""
    series: dict[str, list[tuple[float, float]]] = {}
    for line in metrics:
        for name, value in line.items():
            if name not in ("step", "epoch", "time") and isinstance(value, int | float) and math.isfinite(value):
                series.setdefault(name, []).append((float(line.get("step", 0)), float(value)))
    told = {name: points for name, points in series.items() if len({value for _, value in points}) > 1}
    plots = [_plot(name, told[name]) for name in sorted(told, key=lambda name: (name != "loss", "/" not in name, name))]
    return f'<div class="curves">{"".join(plots)}</div>' if plots else ""


def _plot(name: str, points: Sequence[tuple[float, float]]) -> str:
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": name, "font.family": "sans-serif", "font.size": 8}):
        figure = Figure(figsize=(4, 2.2), layout="constrained")
        axes = figure.add_subplot()
        axes.plot(*zip(*points, strict=True), linewidth=1)
        axes.set_xlabel("optimiser step")
        axes.set_title(name.replace("$", r"\$"))
        axes.grid(alpha=0.3)
        text = io.StringIO()
        figure.savefig(text, format="svg", metadata={"Date": None})
    return text.getvalue().partition("<svg")[1] + text.getvalue().partition("<svg")[2]


def _table(table: Table) -> str:
    head = "".join(f"<th>{_escape(cell)}</th>" for cell in table.header)
    body = "".join(
        f"<tr><td>{_escape(row[0])}</td>" + "".join(f'<td class="number">{_escape(cell)}</td>' for cell in row[1:]) + "</tr>"
        for row in table.rows
    )
    note = f"<p>{_escape(table.note)}</p>" if table.note else ""
    return f"<h2>{_escape(table.title)}</h2><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>{note}"


def _figure(path: Path) -> str:
    return _image(path.read_bytes(), _CAPTIONS.get(path.stem, path.stem.replace("_", " ")))


def _image(png: bytes, caption: str) -> str:
    data = base64.b64encode(png).decode()
    return (
        f'<figure><img alt="{_escape(caption)}" src="data:image/png;base64,{data}">'
        f"<figcaption>{_escape(caption)}</figcaption></figure>"
    )


def _exams(run: Path) -> str:
    """What the run's exams gave at its end."""
    scores = _json(run / "summary.json").get("exams") or {}
    rows = tuple((str(name), f"{value:.4g}") for name, value in sorted(scores.items()))
    return _table(Table(title="Exams", header=("exam", "result"), rows=rows)) if rows else ""


def _skipped(run: Path) -> str:
    skipped = _json(run / "skipped.json")
    if not skipped:
        return ""
    rows = tuple((str(path), str(reason)) for path, reason in skipped.items())
    return _table(Table(title=f"{len(rows)} in all", header=("file", "reason"), rows=rows))


def _picture_order(path: Path) -> tuple[int, str]:
    known = list(_CAPTIONS)
    return (known.index(path.stem) if path.stem in known else len(known), path.stem)


def _section(title: str, body: str) -> str:
    return f"<h2>{title}</h2>{body}" if body else ""


def _pre(text: str) -> str:
    return f"<pre>{_escape(text)}</pre>" if text else ""


def _escape(text: str) -> str:
    return html.escape(str(text), quote=True)


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""


def _json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(_text(path) or "{}")
    except json.JSONDecodeError:
        return {}
    return found if isinstance(found, dict) else {}


def tables_as_json(tables: Iterable[Table], *, command: str, notes: Sequence[str] = (), **more: Any) -> str:
    """The text of :data:`RESULTS`: tables, the command to repeat them, remarks, and whatever else belongs to them."""
    tree = {"command": command, "notes": list(notes), "tables": [table.as_tree() for table in tables], **more}
    return json.dumps(tree, indent=2) + "\n"


__all__ = ["RESULTS", "Table", "page_of_tables", "read_metrics", "tables_as_json", "write_report"]
