"""Writes what README.md shows but nobody should type: the demo's numbers, times, the list of commands, figures of the choices.

python scripts/readme.py            rewrites README.md between its marks, docs/regions.png and docs/all_*.png
python scripts/readme.py --check    exit code 1 if README.md would change
python scripts/readme.py RUN        also takes the reconstructions of this run directory as docs/reconstructions.png
"""

from __future__ import annotations

import csv
import json
import re
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
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


def command_list() -> str:
    """One synopsis line per command."""
    from hybridmap.cli import COMMANDS

    usage = {name: f"hybridmap {name} {arguments}".rstrip() for name, (arguments, _) in COMMANDS.items()}
    width = max(map(len, usage.values())) + 2
    return "\n".join(["```text", *(f"{usage[name]:{width}}{purpose}" for name, (_, purpose) in COMMANDS.items()), "```", ""])


def readme(text: str) -> str:
    """README.md with its marked places filled in."""
    measured = ROOT / "results" / "demo.json"
    demo = demo_table(json.loads(measured.read_text())) if measured.exists() else "Not measured yet: make demo\n"
    if (ROOT / PICTURE).exists():
        demo += f"\n![Original, what the encoder saw, prediction, prediction pasted with the visible patches]({PICTURE})\n"
    blocks = {"commands": command_list(), "demo": demo, "speed": speed_tables()}
    return MARK.sub(lambda found: found[1] + blocks[found[2]] + found[3], text)


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
    path = ROOT / "README.md"
    old = path.read_text()
    if "--check" in sys.argv:
        return int(readme(old) != old)
    for run in sys.argv[1:]:
        (ROOT / PICTURE).write_bytes((Path(run) / "pictures" / "reconstructions.png").read_bytes())
    path.write_text(readme(old))
    regions_figure(ROOT / "docs" / "regions.png")
    choice_figures(ROOT / "docs")
    return 0


if __name__ == "__main__":
    sys.exit(main())
