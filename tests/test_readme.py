"""README tells the truth: its Python runs, its commands run, and its generated places are up to date."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shlex
import shutil
from pathlib import Path
from types import ModuleType

import pytest

from hybridmap.cli import COMMANDS, main

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
PYTHON = [text for language, text in BLOCKS if language == "python"]
SHELL = [line.partition("  #")[0].strip() for language, text in BLOCKS if language == "" for line in text.splitlines()]


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("readme", ROOT / "scripts" / "readme.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("code", PYTHON, ids=range(len(PYTHON)))
def test_python_blocks_run(code: str, capsys: pytest.CaptureFixture[str]) -> None:
    exec(compile(code, "README.md", "exec"), {})
    if "print" in code:
        assert re.fullmatch(r"loss \d+\.\d{3}\n", capsys.readouterr().out)


def test_the_first_block_is_short() -> None:
    statements = [line for line in PYTHON[0].splitlines() if line and not line.startswith(("import", "from"))]
    assert len(statements) <= 10


def test_commands_run(photo_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every ``hybridmap`` line, in order, in one directory, with HYBRIDMAP_SMOKE=1; ~/photos is a folder made for it."""
    home = tmp_path / "home"
    shutil.copytree(photo_folder / "rows", home / "photos")
    shutil.copy(photo_folder / "columns" / "00.jpg", home / "photos" / "cat.jpg")
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("HYBRIDMAP_SMOKE", "1")
    monkeypatch.chdir(tmp_path)
    ran = 0
    for line in SHELL:
        words = [os.path.expanduser(word) for word in shlex.split(line)]
        if words and words[0] == "hybridmap":
            assert main([*words[1:]]) == 0, line
            ran += 1
    assert ran >= 2
    assert (tmp_path / "runs" / "mine" / "report.html").is_file()
    assert (tmp_path / "cat.png").is_file()


def test_make_targets_exist() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = {line.split()[1] for line in SHELL if line.startswith("make ")} | set(re.findall(r"`make ([a-z-]+)`", README))
    assert named
    assert named <= targets


def test_every_command_has_a_synopsis_line() -> None:
    for name, (arguments, purpose) in COMMANDS.items():
        assert re.search(rf"^hybridmap {re.escape(f'{name} {arguments}'.strip())} +{re.escape(purpose)}$", README, re.MULTILINE)


def test_the_generated_places_are_up_to_date(script: ModuleType) -> None:
    for name in script.PAGES:
        text = (ROOT / name).read_text()
        assert "<!-- " in text
        assert script.page(text) == text, "run: python scripts/readme.py"


def test_the_numbers_come_from_the_results(script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    score = {"exam": "kNN, k = 20", "pretrained": [50.04, 45.0, 55.0], "untrained": [42.0, 40, 44], "difference": [8.04, 5, 11]}
    results = {"command": "hybridmap demo --seeds 1", "hardware": "2 cores", "classes": 18}
    results |= {"seeds": {"7": {"seconds": 123.4, "scores": [score]}}}
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "demo.json").write_text(json.dumps(results))
    monkeypatch.setattr(script, "ROOT", tmp_path)
    text = script.page(README)
    assert "| 7 | kNN, k = 20 | 50.0 [45.0, 55.0] | 42.0 [40.0, 44.0] | 8.0 [5.0, 11.0] |" in text
    assert "`hybridmap demo --seeds 1` on 2 cores, in at most 123 s per seed" in text
    assert script.page(text) == text


def test_verdicts_come_from_the_results(script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    measured = {"top1": [-1.26, -3.0, 0.5], "knn": [2.0, 1.0, 3.0]}
    said = [{"says": "a over b", "paper": 1.3, "measured": measured}]
    row = {"row": "ViT MAE", "measured": {"top1": [50.04, 45.0, 55.0], "knn": [40.0, 39.0, 41.0]}, "seeds": {"0": {}, "1": {}}}
    results = {
        "claims": [{"claim": "a wins", "verdict": {"top1": "cannot tell", "knn": "supports"}, "comparisons": said}],
        "grids": {"objectives": [row | {"seconds": 241.0}]},
    }
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "claims.json").write_text(json.dumps(results))
    monkeypatch.setattr(script, "ROOT", tmp_path)
    marks = "".join(f"<!-- {name}: written by us -->\n<!-- {name}: end -->\n" for name in ("verdicts", "comparisons", "grids"))
    text = script.page(marks)
    assert "| claim | fine-tuned | kNN |\n|---|---|---|\n| a wins | cannot tell | supports |\n" in text
    assert "| a over b | +1.3 | -1.3 [-3.0, +0.5] | +2.0 [+1.0, +3.0] |\n" in text
    assert "| ViT MAE | 50.0 [45.0, 55.0] | 40.0 [39.0, 41.0] | 120 |\n" in text


def test_the_table_of_reliability_comes_from_the_results(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = {
        "rounds": 3,
        "kept": 2,
        "not_here": None,
        "launches": 6,
        "first_codes": {"-9": 2, "0": 1},
        "same": 2,
        "comparable": 2,
    }
    untried = {"rounds": 0, "kept": 0, "not_here": "no rights", "launches": 0, "first_codes": {}, "same": 0, "comparable": 0}
    results = {
        "command": "make soak SOAK_ROUNDS=3 SEED=7",
        "commit": "0123456789abcdef",
        "hardware": "2 cores",
        "system": "Linux",
        "versions": {"torch": "2.15.0"},
        "rounds": 3,
        "seconds": 119,
        "scenarios": {
            "killed_rank": kept | {"done": "kill -9.", "promised": "The same bytes.", "said": "stopped"},
            "disk_full": untried | {"done": "No room.", "promised": "A sentence.", "said": ""},
        },
        "failures": [
            {"scenario": "killed_rank", "round": 2, "repeat": "python scripts/soak.py --round 2", "what": "other bytes"}
        ],
    }
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "reliability.json").write_text(json.dumps(results))
    monkeypatch.setattr(script, "ROOT", tmp_path)
    text = script.page("".join(f"<!-- {n}: written by us -->\n<!-- {n}: end -->\n" for n in ("reliability", "sentences")))
    assert "`make soak SOAK_ROUNDS=3 SEED=7`: 3 rounds of each in 2 minutes, commit\n" in text
    assert "`0123456789ab`, on 2 cores (Linux), torch 2.15.0.\n" in text
    assert "Promises that were broken: 1.\n- killed_rank, round 2: `python scripts/soak.py --round 2`" in text
    assert "**killed rank**: kill -9. | The same bytes. | 2 of 3 | 2 of 2 | 6 | -9 (2), 0 (1) |" in text
    assert "**disk full**: No room. | A sentence. | not tried: no rights | not comparable | 0 |  |" in text
    assert '- killed rank: "stopped"' in text
    assert "disk full: " not in text


def test_files_that_readme_names_exist() -> None:
    for target in re.findall(r"\]\((?!http)([^)#]+)\)", README):
        assert (ROOT / target).is_file(), target
