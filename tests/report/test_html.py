"""report.html: one file, complete, harmless, and readable while the run is still going."""

from __future__ import annotations

import fcntl
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from PIL import Image

from hybridmap.report.html import SMALL, WIDE, Table, plot, read_metrics, tables_as_json, write_report


class Links(HTMLParser):
    """Collects every address that a browser would fetch, every script, and whether all tags are closed."""

    def __init__(self) -> None:
        super().__init__()
        self.fetched: list[str] = []
        self.scripts = 0
        self.open: list[str] = []
        self.pictures = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.scripts += tag == "script"
        for name, value in attrs:
            if name in ("src", "href", "xlink:href") and value is not None:
                self.pictures += value.startswith("data:image/png;base64,")
                if not value.startswith(("data:", "#")):
                    self.fetched.append(value)
            assert not name.startswith("on"), f"a handler: {name}"
        if tag not in ("meta", "img", "br", "path", "use", "link", "wbr"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag in self.open:
            while self.open.pop() != tag:
                pass


@pytest.fixture
def run(tmp_path: Path) -> Path:
    run = tmp_path / "run"
    (run / "pictures").mkdir(parents=True)
    lines = [{"step": i, "loss": 1.0 / i, "lr": 1e-3 * i} for i in range(1, 9)]
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (run / "recipe.yaml").write_text("seed: 0\n")
    (run / "environment.json").write_text(json.dumps({"torch": "2.15"}))
    Image.new("RGB", (8, 8), (200, 30, 30)).save(run / "pictures" / "reconstructions.png")
    return run


def page(run: Path) -> tuple[str, Links]:
    text = write_report(run).read_text()
    links = Links()
    links.feed(text)
    return text, links


def test_the_page_is_one_file_that_fetches_nothing(run: Path) -> None:
    text, links = page(run)
    assert links.fetched == []
    assert links.scripts == 0
    assert links.pictures == 1
    assert not re.search(r"@import|url\((?!#)", text)
    assert links.open == []


def test_the_page_shows_curves_table_environment_and_the_command(run: Path) -> None:
    table = Table(title="Scores", header=("network", "kNN"), rows=(("pretrained", "49.1 [45.0, 53.2]"),), note="per cent")
    (run / "results.json").write_text(tables_as_json([table], command="hybridmap demo --seed 1", notes=["two images skipped"]))
    text, _ = page(run)
    assert text.count("<svg") == 2  # loss and lr
    for expected in ("49.1 [45.0, 53.2]", "hybridmap demo --seed 1", "two images skipped", "&quot;torch&quot;", "seed: 0"):
        assert expected in text


def test_text_from_outside_is_escaped(run: Path) -> None:
    evil = "<script>alert(1)</script>"
    table = Table(title=evil, header=(evil,), rows=((evil, evil),), note=evil)
    (run / "results.json").write_text(tables_as_json([table], command=evil, notes=[evil]))
    (run / "recipe.yaml").write_text(f"root: {evil}\n")
    (run / "environment.json").write_text(json.dumps({evil: evil}))
    (run / "skipped.json").write_text(json.dumps({f"{evil}.jpg": evil}))
    (run / "metrics.jsonl").write_text("".join(json.dumps({"step": i, "loss": i, evil: i}) + "\n" for i in range(3)))
    (run / "pictures" / "<b>&.png").write_bytes((run / "pictures" / "reconstructions.png").read_bytes())
    text, links = page(run)
    assert links.scripts == 0
    assert evil not in text
    assert "<b>&" not in text


def test_a_run_in_progress_can_be_read(run: Path) -> None:
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 9, "lo')  # the line that is being written
    text, _ = page(run)
    assert "interrupted: 8 optimiser steps" in text
    (run / "final.safetensors").write_bytes(b"")
    assert "finished after 8 optimiser steps" in page(run)[0]


def test_an_empty_directory_gives_a_page(tmp_path: Path) -> None:
    text, links = page(tmp_path)
    assert "no step logged yet" in text
    assert links.open == []


def test_numbers_that_are_not_finite_do_not_break_the_curves(run: Path) -> None:
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 9, "loss": NaN}\n{"step": 10, "loss": Infinity}\n{"step": 11, "loss": 0.01}\n')
    assert len(read_metrics(run)) == 11
    assert page(run)[0].count("<svg") == 2


def axis(svg: str) -> list[float]:
    """Numbers at the ticks of the vertical axis."""
    ticks = re.findall(r'id="text_\d+">\s*(?:<!--.*?-->)?\s*<text[^>]*text-anchor: end[^>]*>([^<]+)</text>', svg)
    return [float(tick.replace("\u2212", "-")) for tick in ticks if not tick[0].isalpha()]


def test_a_high_beginning_leaves_room_for_the_rest() -> None:
    values = [20.0, 6.0, 2.0, *(1.0 - 0.001 * i for i in range(97))]
    svg = plot("loss", {"": [(float(i), value) for i, value in enumerate(values)]}, size=WIDE)
    assert "begins at up to 20" in svg
    assert axis(svg)
    assert max(axis(svg)) < 1.2
    assert min(axis(svg)) > 0.8
    even = plot("lr", {"": [(float(i), float(i)) for i in range(100)]}, size=WIDE)
    assert "begins at" not in even
    assert max(axis(even)) >= 80


def test_curves_of_several_runs_share_an_axis_and_say_whose_they_are() -> None:
    curves = {"one $": [(1.0, 1.0), (2.0, 0.5)], "missing": [], "<two>": [(1.0, 2.0), (4.0, 0.25)]}
    svg = plot("loss", curves, size=WIDE)
    assert "one $" in svg
    assert "&lt;two&gt;" in svg
    assert "missing" not in svg
    assert {colour.lower() for colour in re.findall(r"stroke: (#\w{6})", svg)} >= {"#0072b2", "#009e73"}
    assert "one $" not in plot("loss", curves, size=SMALL)


def test_what_might_have_been_chosen_is_folded_away(run: Path) -> None:
    (run / "pictures" / "all_masks.png").write_bytes((run / "pictures" / "reconstructions.png").read_bytes())
    text, links = page(run)
    folded = text[text.index("<details>") : text.index("</details>")]
    assert "Every masking" in folded
    assert "Reconstructions of held-out images" not in folded
    assert links.pictures == 2
    assert links.open == []


def test_a_table_survives_json() -> None:
    table = Table(title="t", header=("a", "b"), rows=(("1", "2"), ("3", "4")), note="n")
    assert Table.from_tree(json.loads(json.dumps(table.as_tree()))) == table


def test_pictures_of_steps_stand_by_themselves_first_and_last_among_them(tmp_path: Path) -> None:
    (tmp_path / "pictures").mkdir()
    for step in range(0, 100, 10):
        Image.new("RGB", (4, 4), (step, 0, 0)).save(tmp_path / "pictures" / f"step-{step:08d}-pictures-reconstructions.png")
    page = write_report(tmp_path).read_text()
    told = re.findall(r"<figcaption>pictures reconstructions, step (\d+)</figcaption>", page)
    assert told == ["0", "30", "60", "90"]
    assert "While it trained" in page
    assert "<h2>Pictures</h2>" not in page


def test_a_run_whose_lock_is_held_is_in_progress(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step": 7, "loss": 1.0}\n')
    assert re.search(r"interrupted: 7 optimiser steps, the last \d+ s ago", write_report(tmp_path).read_text())
    with (tmp_path / ".lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert re.search(r"in progress: 7 optimiser steps, the last \d+ s ago", write_report(tmp_path).read_text())
    assert "interrupted" in write_report(tmp_path).read_text()
