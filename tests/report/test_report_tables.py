"""Tables beside the paper's: nothing is hidden, nothing breaks the page, and it opens offline."""

from __future__ import annotations

import io
from pathlib import Path

from PIL import Image

from hybridmap.report.tables import Line, Range, differences, dots, markdown, sheet, write

LINES = [
    Line(label="random, 50 %", paper=(84.9, 84.9), measured={"top1": Range(value=55.5, low=50.0, high=61.04)}, seeds=3),
    Line(label="<b>|diagonal", paper=(83.8,), note="not run: there is no recipe x yet"),
]


def test_reported_and_measured_stand_side_by_side() -> None:
    table = sheet("Table 5", LINES, "a note")
    assert table.header == ("", "paper", "fine-tuned", "seeds", "remark")
    assert table.rows[0] == ("random, 50 %", "84.9", "55.5 [50.0, 61.0]", "3", "")
    assert table.rows[1] == ("<b>|diagonal", "83.8", "-", "-", "not run: there is no recipe x yet")


def test_metrics_are_columns_only_where_something_was_measured() -> None:
    both = [Line(label="a", measured={"knn": Range(value=1, low=0, high=2), "top1": Range(value=3, low=2, high=4)}, seeds=1)]
    assert sheet("t", both).header == ("", "paper", "fine-tuned", "kNN", "seeds", "remark")
    assert sheet("t", [Line(label="a")]).header == ("", "paper", "seeds", "remark")


def test_markdown_keeps_its_columns() -> None:
    lines = markdown(sheet("Table 5", LINES, "a note")).splitlines()
    assert lines[0] == "## Table 5"
    rows = [line for line in lines if line.startswith("|")]
    assert len(rows) == 2 + len(LINES)
    assert len({line.replace("\\|", "").count("|") for line in rows}) == 1
    assert "a note" in lines


def test_files_are_complete_and_harmless(tmp_path: Path) -> None:
    table = sheet("Table <5>", LINES)
    text, page = write(tmp_path, "masking-smoke", "Table <5>", [table], {"measured": dots(LINES)}, "hybridmap table masking")
    html = page.read_text()
    assert "<b>|diagonal" not in html
    assert "&lt;b&gt;|diagonal" in html
    assert "Table &lt;5&gt;" in html
    assert "data:image/png;base64," in html
    assert "http" not in html.replace("http-equiv", "")
    assert "![measured](masking-smoke-measured.png)" in text.read_text()
    assert "`hybridmap table masking`" in text.read_text()
    with Image.open(tmp_path / "masking-smoke-measured.png") as picture:
        assert picture.format == "PNG"
        assert min(picture.size) > 100


def test_differences_are_drawn_for_all_metrics_and_for_none() -> None:
    found = {"a over b": {"top1": Range(value=1, low=-1, high=3), "knn": Range(value=2, low=1, high=3)}, "c over d": {}}
    for some in (found, {"c over d": {}}):
        with Image.open(io.BytesIO(differences(some))) as picture:
            assert min(picture.size) > 100
    assert Range(value=1.25, low=-1, high=3).signed() == "+1.2 [-1.0, +3.0]"
