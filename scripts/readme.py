"""Writes what pages show but nobody should type: numbers of the demo, times, verdicts, the list of commands, figures.

python scripts/readme.py            rewrites the pages between their marks, docs/regions.png, docs/all_*.png
python scripts/readme.py --check    exit code 1 if one of the pages would change
python scripts/readme.py RUN        also takes the reconstructions of this run directory as docs/reconstructions.png
"""

from __future__ import annotations

import csv
import json
import re
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PAGES = ("README.md", "docs/claims.md", "docs/reliability.md")
PICTURE = "docs/reconstructions.png"
COLUMNS = ("pretrained", "untrained", "difference")
FACTS = ("shape", "dtype", "recipe", "batch", "precision", "compiled", "device", "threads", "rounds", "torch")
"""Columns of a bench table that are the same in each of its lines."""
MARK = re.compile(r"(<!-- (\w+): written by [^>]*-->\n).*?(<!-- \2: end -->)", re.DOTALL)


def demo_table(results: dict[str, Any]) -> str:
    """One row per seed and exam, and what it was measured with."""
    lines = ["| " + " | ".join(["seed", "exam", *COLUMNS]) + " |", "|---" * (2 + len(COLUMNS)) + "|"]
    for seed, run in sorted(results["seeds"].items(), key=lambda item: int(item[0])):
        for score in run["scores"]:
            cells = (f"{value:.1f} [{low:.1f}, {high:.1f}]" for value, low, high in (score[name] for name in COLUMNS))
            lines.append("| " + " | ".join([seed, score["exam"], *cells]) + " |")
    seconds = max(run["seconds"] for run in results["seeds"].values())
    return "\n".join(
        [
            f"Accuracies in per cent over {results['classes']} classes, with 95 % bootstrap intervals that resample",
            "pictures, then crops:",
            "",
            *lines,
            "",
            f"Measured by `{results['command']}` on {results['hardware']}, in at most {seconds:.0f} s per seed;",
            "the raw numbers are in `results/demo.json`.",
            "",
        ]
    )


def speed_tables() -> str:
    """What ``hybridmap bench`` wrote into results/, rounded; a table that is not there is named with its command."""
    commands = {"ops": "hybridmap bench ops --compiled", "step": "hybridmap bench step --precision fp32 --rounds 3"}
    parts = []
    for what, command in commands.items():
        path = ROOT / "results" / f"bench_{what}.csv"
        command = f"{command} --csv results/{path.name}"
        if not path.exists():
            parts.append(f"Not measured yet: `{command}`\n")
            continue
        with path.open(newline="") as file:
            lines = list(csv.DictReader(file))
        facts = [name for name in lines[0] if name in FACTS]
        shown = ", ".join(f"{name} {lines[0][name]}" for name in facts)
        columns = [name for name in lines[0] if name not in facts and any(line[name] for line in lines)]
        parts.append(f"`{command}`: {shown}\n")
        parts.append("| " + " | ".join(columns) + " |")
        parts.append("|---" * len(columns) + "|")
        parts += ["| " + " | ".join(rounded(name, line[name]) for name in columns) + " |" for line in lines]
        parts.append("")
    return "\n".join(parts)


def rounded(column: str, value: str) -> str:
    """A number of a table, with its unit where its column does not name it; words stay as they are."""
    try:
        number = float(value)
    except ValueError:
        return value
    if column == "share":
        return f"{number:.1%}"
    return f"{number:.2f} x" if "/ " in column else f"{number:.4g}"


def verdicts(results: dict[str, Any]) -> str:
    """Every claim of the paper, and what this run says of it."""
    metrics = _metrics(results)
    lines = [_row("claim", *metrics.values()), "|---" * (1 + len(metrics)) + "|"]
    lines += [_row(claim["claim"], *(claim["verdict"][metric] for metric in metrics)) for claim in results["claims"]]
    return "\n".join([*lines, ""])


def comparisons(results: dict[str, Any]) -> str:
    """Every comparison that a claim stands or falls with, in points, beside the paper's."""
    metrics = _metrics(results)
    lines = [_row("comparison", "paper", *metrics.values()), "|---" * (2 + len(metrics)) + "|"]
    for claim in results["claims"]:
        for each in claim["comparisons"]:
            found = ("{:+.1f} [{:+.1f}, {:+.1f}]".format(*each["measured"][metric]) for metric in metrics)
            lines.append(_row(each["says"], f"{each['paper']:+g}", *found))
    return "\n".join([*lines, ""])


def grids(results: dict[str, Any]) -> str:
    """Every row of the claims' grids: mean and interval in per cent, and the seconds of a core that one of its cells took."""
    metrics, parts = _metrics(results), []
    for name, rows in results["grids"].items():
        parts += [f"`{name}`:", "", _row("row", *metrics.values(), "s"), "|---" * (2 + len(metrics)) + "|"]
        for row in rows:
            found = ("{:.1f} [{:.1f}, {:.1f}]".format(*row["measured"][metric]) for metric in metrics)
            parts.append(_row(row["row"], *found, f"{row['seconds'] / len(row['seeds']):.0f}"))
        parts.append("")
    return "\n".join(parts)


def measured_with(results: dict[str, Any]) -> str:
    """What it takes to repeat the claims' numbers."""
    (commit,) = results["commits_of_cells"]
    versions = ", ".join(f"{name} {results['versions'][name]}" for name in ("torch", "timm", "numpy"))
    seeds = ", ".join(map(str, results["seeds"]))
    where = f"{results['hardware']} ({results['cpu_capability']})"
    return f"`{results['command']}`, commit `{commit[:12]}`, seeds {seeds}, on {where}, {versions}.\n"


def _metrics(results: dict[str, Any]) -> dict[str, str]:
    from hybridmap.report.tables import METRICS

    return {metric: METRICS[metric] for metric in METRICS if metric in results["claims"][0]["verdict"]}


def _row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def command_list() -> str:
    """One synopsis line per command."""
    from hybridmap.cli import COMMANDS

    usage = {name: f"hybridmap {name} {arguments}".rstrip() for name, (arguments, _) in COMMANDS.items()}
    width = max(map(len, usage.values())) + 2
    return "\n".join(["```text", *(f"{usage[name]:{width}}{purpose}" for name, (_, purpose) in COMMANDS.items()), "```", ""])


def demo() -> str:
    """The demo's numbers and its picture."""
    measured = ROOT / "results" / "demo.json"
    text = demo_table(json.loads(measured.read_text())) if measured.exists() else "Not measured yet: make demo\n"
    if (ROOT / PICTURE).exists():
        text += f"\n![Original, what the encoder saw, prediction, prediction pasted with the visible patches]({PICTURE})\n"
    return text


def of_claims(show: Callable[[dict[str, Any]], str]) -> str:
    """Something of what ``hybridmap table claims`` wrote into results/."""
    return show(json.loads((ROOT / "results" / "claims.json").read_text()))


def reliability() -> str:
    """What was done to runs, what they promise, and how often they kept it."""
    path = ROOT / "results" / "reliability.json"
    if not path.exists():
        return "Not measured yet: `make soak SOAK_ROUNDS=20`\n"
    results = json.loads(path.read_text())
    head = ("what is done", "what is promised", "kept", "same bytes", "launches", "first exit code")
    lines = [_row(*head), "|---" * len(head) + "|"]
    for name, found in results["scenarios"].items():
        done = f"**{name.replace('_', ' ')}**: {found['done']}"
        kept = f"{found['kept']} of {found['rounds']}" if found["rounds"] else f"not tried: {found['not_here']}"
        same = f"{found['same']} of {found['comparable']}" if found["comparable"] else "not comparable"
        codes = ", ".join(f"{code} ({count})" for code, count in found["first_codes"].items())
        lines.append(_row(done, found["promised"], kept, same, str(found["launches"]), codes))
    versions = ", ".join(f"{name} {version}" for name, version in results["versions"].items())
    broken = len(results["failures"])
    return "\n".join(
        [
            f"`{results['command']}`: {results['rounds']} rounds of each in {results['seconds'] / 60:.0f} minutes, commit",
            f"`{results['commit'][:12]}`, on {results['hardware']} ({results['system']}), {versions}.",
            f"Promises that were broken: {broken}.",
            *(f"- {failure['scenario']}, round {failure['round']}: `{failure['repeat']}`" for failure in results["failures"]),
            *([results["note"]] if "note" in results else []),
            "",
            *lines,
            "",
        ]
    )


def sentences() -> str:
    """What the command said in one round of each scenario where it had something to say."""
    path = ROOT / "results" / "reliability.json"
    found = json.loads(path.read_text())["scenarios"] if path.exists() else {}
    return "".join(f'- {name.replace("_", " ")}: "{each["said"]}"\n' for name, each in found.items() if each["said"])


BLOCKS: dict[str, Callable[[], str]] = {
    "commands": command_list,
    "demo": demo,
    "speed": speed_tables,
    "reliability": reliability,
    "sentences": sentences,
    **{show.__name__: partial(of_claims, show) for show in (verdicts, comparisons, grids, measured_with)},
}
"""Name of a marked place -> what stands there."""


def page(text: str) -> str:
    """A page with its marked places filled in."""
    return MARK.sub(lambda found: found[1] + BLOCKS[found[2]]() + found[3], text)


def regions_figure(path: Path) -> None:
    """Order of prediction and decoder mask of the four relations, side by side."""
    from PIL import Image, ImageDraw, ImageFont

    from hybridmap.report.choices import decoder_masks
    from hybridmap.report.pictures import save

    font = ImageFont.load_default(20)
    columns = decoder_masks(grid=(6, 6))
    width, height = next(iter(columns.values()))[0].size
    sheet = Image.new("RGB", (len(columns) * (width + 24) + 24, 2 * height + 110), (255, 255, 255))
    draw = ImageDraw.Draw(sheet)
    for k, (title, (order, mask)) in enumerate(columns.items()):
        left = 24 + k * (width + 24)
        draw.text((left, 10), title, fill=(30, 30, 30), font=font)
        sheet.paste(order, (left, 44))
        sheet.paste(mask.resize((width, height), Image.Resampling.NEAREST), (left, height + 88))
    draw.text(
        (24, height + 56), "row i: which patches may be looked at while patch i is predicted", fill=(30, 30, 30), font=font
    )
    save(sheet, path)


def choice_figures(folder: Path) -> None:
    """Every masking, partition, decoder mask and scan on 8 x 8 patches of a photograph that ships inside scikit-image."""
    from PIL import Image

    from hybridmap.data.bundled import bundled_files
    from hybridmap.report.choices import all_choices
    from hybridmap.report.pictures import save

    (file,) = (path for path in bundled_files() if path.stem == "chelsea")
    with Image.open(file) as photo:
        side = min(photo.size)
        square = photo.convert("RGB").crop((70, 0, 70 + side, side))
    for name, picture in all_choices(square, (8, 8)).items():
        save(picture.quantize(256, dither=Image.Dither.NONE), folder / f"{name}.png")


def main() -> int:
    """Rewrite, or check."""
    pages = {ROOT / name: (ROOT / name).read_text() for name in PAGES}
    if "--check" in sys.argv:
        return int(any(page(text) != text for text in pages.values()))
    for run in sys.argv[1:]:
        (ROOT / PICTURE).write_bytes((Path(run) / "pictures" / "reconstructions.png").read_bytes())
    for path, text in pages.items():
        path.write_text(page(text))
    regions_figure(ROOT / "docs" / "regions.png")
    choice_figures(ROOT / "docs")
    return 0


if __name__ == "__main__":
    sys.exit(main())
