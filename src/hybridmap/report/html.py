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
import re
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hybridmap.files import is_locked, replace_file

RESULTS = "results.json"
"""What a command found out, beside the run that it belongs to: ``{"tables": [...], "command": "...", "notes": [...]}``."""

_CAPTIONS = {
    "reconstructions": "Reconstructions of held-out images. Tinted: what the encoder did not see, and what is not predicted. "
    "Brightness and contrast of predicted patches are those of the true patch where the target is normalised pixels (default).",
    "own_choices": "What this run chose, on one image: what is hidden; the regions in their order of prediction (dark first); "
    "the order in which patches stand in the sequence; the decoder mask, where row i has the colours of those patches that "
    "may be looked at while patch i is predicted; and the same for one patch, on the image. MAP has mask tokens where it hid.",
    "features": "Patch features: their first three principal components as red, green and blue, with the share of the variance "
    "that each explains. Like colours mean like features. Directions are found over all images shown, anew at each depth: "
    "colours can be compared within a column only.",
    "all_masks": "Every masking, on the same image (its hidden patches tinted) and on 4 x 4 patches (hidden ones dark).",
    "all_regions": "Every partition into regions, numbered and coloured in the order of prediction, dark first.",
    "all_decoder_masks": "Every decoder mask, on rows: where the framed patch may look (no veil); below, on 4 x 4 patches.",
    "all_scans": "Every scan order: the line goes through the patches as they stand in the sequence, from dark to light.",
}
"""Name of a picture -> what it shows, in the order of the page."""
_STEP = re.compile(r"step-(\d+)-(.+)")
"""Names of pictures that belong to a step."""
_SHOWN_OVER_TIME = 4
_ASIDE = "all_"
"""Pictures of what a run might have chosen are folded away."""

WIDE, SMALL = (9.6, 3.6), (4.6, 2.4)
"""Width and height of plots in inches."""
_HUES = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Okabe and Ito's colours, which are told apart with any colour vision."""
_DASHES = ("solid", "dashed", "dotted")
_STYLE = """
:root { color-scheme: light dark; --line: #8884; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; }
h1 { margin-bottom: 0 } .status { opacity: .75; margin-top: .2rem }
pre, code { font: 13px/1.45 ui-monospace, monospace } pre { border: 1px solid var(--line); padding: .7rem; overflow-x: auto }
.table { overflow-x: auto } table { border-collapse: collapse; margin: .6rem 0 }
th, td { border-bottom: 1px solid var(--line); padding: .25rem .8rem }
th { text-align: left } td { overflow-wrap: break-word; vertical-align: top }
td.number { text-align: right; font-variant-numeric: tabular-nums }
figure { margin: 1rem 0 } figure img { max-width: 100%; background: #fff }
figcaption { opacity: .8 } .curves { display: flex; flex-wrap: wrap; gap: 1rem; background: #fff }
.curves svg { max-width: 100%; height: auto }
summary { cursor: pointer; margin: .6rem 0 }
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
    environment = read_environment(run)
    metrics = read_metrics(run)
    recipe = _text(run / "recipe.yaml")
    sections = [
        f'<p class="status">{escape(_status(run, metrics))}</p>',
        *(f'<p class="warning">{escape(note)}</p>' for note in results.get("notes", ())),
        *map(table_as_html, tables_of(run)),
        _exams(run),
        section("Curves", _own_curves(metrics)),
        section("Pictures", _pictures(run)),
        section("While it trained", _over_time(run)),
        section("Images that could not be read", _skipped(run)),
        section("To repeat this", _pre(str(results.get("command") or environment.get("command") or ""))),
        section("Environment", _pre(json.dumps(environment, indent=2, sort_keys=True) if environment else "")),
        section("Recipe", f"<details><summary>recipe.yaml</summary>{_pre(recipe)}</details>" if recipe else ""),
    ]
    return replace_file(run / "report.html", page(title or run.resolve().name, sections))


def page_of_tables(title: str, tables: Sequence[Table], figures: Mapping[str, bytes], command: str) -> str:
    """A page of tables, and figures (PNG by caption) below them."""
    drawn = "".join(figure(data, name.replace("_", " ")) for name, data in figures.items())
    return page(title, [*map(table_as_html, tables), section("Figures", drawn), section("To repeat this", _pre(command))])


def page(title: str, sections: Iterable[str]) -> str:
    """Pieces of HTML, empty ones left out, below a title as one self-contained page."""
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head>\n<body>\n<h1>{escape(title)}</h1>\n"
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


def read_environment(run: str | Path) -> dict[str, Any]:
    """What ``environment.json`` says; empty where there is none."""
    return _json(Path(run) / "environment.json")


def is_finished(run: Path) -> bool:
    """Whether the final weights are there."""
    return (run / "final.safetensors").exists()


def _status(run: Path, metrics: Sequence[Mapping[str, Any]]) -> str:
    steps = [int(line["step"]) for line in metrics if "step" in line]
    progress = f"{max(steps)} optimiser steps" if steps else "no step logged yet"
    if is_finished(run):
        return f"finished after {progress}"
    age = f", the last {time.time() - (run / 'metrics.jsonl').stat().st_mtime:.0f} s ago" if steps else ""
    return f"{'in progress' if is_locked(run / '.lock') else 'interrupted'}: {progress}{age}"


def _own_curves(metrics: Sequence[Mapping[str, Any]]) -> str:
    """The loss as wide as the page, then every other quantity that was logged with more than one value, exams first, small."""
    told = {name: points for name, points in series(metrics).items() if len({value for _, value in points}) > 1}
    names = sorted(told, key=lambda name: (name != "loss", "/" not in name, name))
    plots = [plot(name, {"": told[name]}, size=WIDE if name == "loss" else SMALL) for name in names]
    return curves(plots)


def curves(plots: Sequence[str]) -> str:
    """Plots side by side where there is room."""
    return f'<div class="curves">{"".join(plots)}</div>' if plots else ""


def series(metrics: Sequence[Mapping[str, Any]]) -> dict[str, list[tuple[float, float]]]:
    """Quantity -> (step, value) wherever a finite number was logged."""
    found: dict[str, list[tuple[float, float]]] = {}
    for line in metrics:
        for name, value in line.items():
            if name not in ("step", "epoch", "time") and isinstance(value, int | float) and math.isfinite(value):
                found.setdefault(name, []).append((float(line.get("step", 0)), float(value)))
    return found


def plot(name: str, curves: Mapping[str, Sequence[tuple[float, float]]], *, size: tuple[float, float]) -> str:
    """Curves of (step, value) on one axis as SVG of ``size`` (width, height) in inches; label -> points, perhaps none.

    A few first values far above all others, as every loss has them, would leave the rest no room: the axis then ends at what
    comes after the first tenth, and a note says how high the curve was. Noisy curves get a running mean over a 25th of them.
    Only a plot of the size :data:`WIDE` has room for a legend; colours are the same in all.
    """
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": name, "font.family": "sans-serif", "font.size": 8}):
        figure = Figure(figsize=size, layout="constrained")
        axes = figure.add_subplot()
        for number, (label, points) in enumerate(curves.items()):
            if not points:
                continue
            steps, values = (list(axis) for axis in zip(*points, strict=True))
            colour, dash = _HUES[number % len(_HUES)], _DASHES[number // len(_HUES) % len(_DASHES)]
            window = len(values) // 25
            if window > 1:
                axes.plot(steps, values, linewidth=0.7, alpha=0.35, color=colour)
                steps, values = _running_mean(steps, window), _running_mean(values, window)
            few = {"marker": "o", "markersize": 3} if len(values) < 12 else {}
            axes.plot(steps, values, linewidth=1.4, color=colour, linestyle=dash, label=label.replace("$", r"\$"), **few)
        limits = _limits([[value for _, value in points] for points in curves.values() if points])
        if limits is not None:
            low, high, peak = limits
            axes.set_ylim(low, high)
            note = {"transform": axes.transAxes, "ha": "right", "va": "top", "color": "#555555"}
            axes.text(0.99, 0.97, f"begins at up to {peak:.3g}", **note)
        if len(curves) > 1 and size == WIDE:
            axes.legend(frameon=False, loc="lower left")
        axes.set_xlabel("optimiser step")
        axes.set_title(name.replace("$", r"\$"))
        axes.grid(alpha=0.3)
        text = io.StringIO()
        figure.savefig(text, format="svg", metadata={"Date": None})
    return text.getvalue().partition("<svg")[1] + text.getvalue().partition("<svg")[2]


def _running_mean(values: Sequence[float], window: int) -> list[float]:
    return [sum(values[i : i + window]) / window for i in range(len(values) - window + 1)]


def _limits(curves: Sequence[Sequence[float]]) -> tuple[float, float, float] | None:
    """(low, high, peak) of an axis that leaves out a high beginning; None where everything has room anyway."""
    rest = [value for values in curves for value in values[len(values) // 10 :]]
    low, high, peak = min(rest), max(rest), max(max(values) for values in curves)
    low = min(low, *(min(values) for values in curves))
    room = max(high - low, 1e-12)
    if peak - low < 2 * room:
        return None
    return low - 0.05 * room, high + 0.15 * room, peak


def table_as_html(table: Table) -> str:
    """Heading, table and note; numbers stand at the right, but in the first column, which names the rows."""
    head = "".join(f"<th>{escape(cell)}</th>" for cell in table.header)
    body = "".join("<tr>" + _text_cell(row[0]) + "".join(map(_cell, row[1:])) + "</tr>" for row in table.rows)
    note = f"<p>{escape(table.note)}</p>" if table.note else ""
    shown = f'<div class="table"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'
    return f"<h2>{escape(table.title)}</h2>{shown}{note}"


def _cell(text: str) -> str:
    return f'<td class="number">{escape(text)}</td>' if re.match(r"[+-]?\d", text) else _text_cell(text)


def _text_cell(text: str) -> str:
    """Long values may be broken behind brackets and signs of equality."""
    breakable = re.sub(r"[(=]", r"\g<0><wbr>", escape(text))
    return f"<td>{breakable}</td>"


def _pictures(run: Path) -> str:
    """What the run did; folded below it, what it might have chosen."""
    found = sorted((path for path in (run / "pictures").glob("*.png") if not _STEP.match(path.stem)), key=_picture_order)
    shown = {path: figure(path.read_bytes(), _CAPTIONS.get(path.stem, path.stem.replace("_", " "))) for path in found}
    aside = "".join(text for path, text in shown.items() if path.stem.startswith(_ASIDE))
    folded = f"<details><summary>Every mask, region, decoder mask and scan on this image</summary>{aside}</details>"
    return "".join(text for path, text in shown.items() if not path.stem.startswith(_ASIDE)) + (folded if aside else "")


def _over_time(run: Path) -> str:
    """Pictures that exams drew while the run went on: of each name the first, the last, and a few between."""
    drawn: dict[str, list[tuple[int, Path]]] = {}
    for path in sorted((run / "pictures").glob("step-*.png")):
        if (named := _STEP.match(path.stem)) is not None:
            drawn.setdefault(named[2], []).append((int(named[1]), path))
    shown = []
    for name, pictures in sorted(drawn.items()):
        count = min(len(pictures), _SHOWN_OVER_TIME)
        chosen = {round(k * (len(pictures) - 1) / max(count - 1, 1)) for k in range(count)}
        for step, path in (pictures[k] for k in sorted(chosen)):
            shown.append(figure(path.read_bytes(), f"{name.replace('-', ' ')}, step {step}"))
    return "".join(shown)


def figure(png: bytes, caption: str) -> str:
    """An embedded picture with its caption."""
    data, caption = base64.b64encode(png).decode(), escape(caption)
    return f'<figure><img alt="{caption}" src="data:image/png;base64,{data}"><figcaption>{caption}</figcaption></figure>'


def exams(run: Path) -> dict[str, float]:
    """What the run's exams gave at its end."""
    return dict(sorted((_json(run / "summary.json").get("exams") or {}).items()))


def tables_of(run: Path) -> list[Table]:
    """What a command left in :data:`RESULTS`."""
    return [Table.from_tree(tree) for tree in _json(run / RESULTS).get("tables", ())]


def _exams(run: Path) -> str:
    rows = tuple((name, f"{value:.4g}") for name, value in exams(run).items())
    return table_as_html(Table(title="Exams", header=("exam", "result"), rows=rows)) if rows else ""


def _skipped(run: Path) -> str:
    skipped = _json(run / "skipped.json")
    if not skipped:
        return ""
    rows = tuple((str(path), str(reason)) for path, reason in skipped.items())
    return table_as_html(Table(title=f"{len(rows)} in all", header=("file", "reason"), rows=rows))


def _picture_order(path: Path) -> tuple[int, str]:
    known = list(_CAPTIONS)
    return (known.index(path.stem) if path.stem in known else len(known), path.stem)


def section(title: str, body: str) -> str:
    """A heading and what belongs to it; nothing where that is empty."""
    return f"<h2>{title}</h2>{body}" if body else ""


def _pre(text: str) -> str:
    return f"<pre>{escape(text)}</pre>" if text else ""


def escape(text: str) -> str:
    """Text from outside, harmless in HTML."""
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


__all__ = [
    "RESULTS",
    "SMALL",
    "WIDE",
    "Table",
    "curves",
    "escape",
    "exams",
    "figure",
    "is_finished",
    "page",
    "page_of_tables",
    "plot",
    "read_metrics",
    "section",
    "series",
    "table_as_html",
    "tables_as_json",
    "tables_of",
    "write_report",
]
