"""The page of a run that has only begun."""

from __future__ import annotations

from pathlib import Path

import pytest

from hybridmap.cli import main
from hybridmap.config import to_yaml
from hybridmap.recipes import find


def test_a_run_without_a_checkpoint_has_a_page_without_pictures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "recipe.yaml").write_text(to_yaml(find("map-smoke")))
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss": 1.0}\n')
    assert main(["report", str(tmp_path)]) == 0
    assert "no pictures: there is no checkpoint yet" in capsys.readouterr().out
    assert "1 optimiser steps" in (tmp_path / "report.html").read_text()
