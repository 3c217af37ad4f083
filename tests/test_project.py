"""The files around the code: pins, targets, and nothing that belongs to one machine."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TEXTS = [
    *(
        ROOT / name
        for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "Makefile", "pyproject.toml", "constraints.txt")
    ),
    ROOT / ".ci" / "run",
    *sorted((ROOT / "src").rglob("*.py")),
]


def test_every_package_is_pinned_exactly_and_by_name_only() -> None:
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    assert lines
    for line in lines:
        assert re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9._+!-]+", line), line
    assert not [line for line in lines if line.lower().startswith("hybridmap")]
    names = [line.partition("==")[0].lower() for line in lines]
    assert len(names) == len(set(names))


def test_every_direct_dependency_is_pinned() -> None:
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [*project["dependencies"], *project["optional-dependencies"]["demo"], *project["optional-dependencies"]["dev"]]
    pinned = {line.partition("==")[0].lower() for line in (ROOT / "constraints.txt").read_text().splitlines()}
    for requirement in wanted:
        name = re.split(r"[\[<>=~! ]", requirement)[0].lower()
        assert name in pinned or name == "hybridmap", f"{name} is not in constraints.txt"


@pytest.mark.parametrize("path", TEXTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_file_names_a_registry_or_a_place_of_one_machine(path: Path) -> None:
    found = re.search(r"https?://[^\s\")]+/(simple|packages)/|[\" =(]/(work|root|home|tmp)/[a-z]", path.read_text())
    assert found is None, found


def test_the_makefile_explains_its_targets() -> None:
    listing = subprocess.run(["make", "-s"], cwd=ROOT, capture_output=True, text=True, check=True, timeout=60).stdout
    for target in ("setup", "check", "test", "test-gpu", "bench", "soak", "wheel", "demo"):
        assert f"make {target}\t" in listing


def test_a_python_that_is_too_old_or_missing_is_told_in_one_sentence(tmp_path: Path) -> None:
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        (tmp_path / name).write_bytes((ROOT / name).read_bytes())
    outcome = subprocess.run(
        ["make", "-s", "setup", "PYTHON=python-that-is-not-there"], cwd=tmp_path, capture_output=True, text=True, timeout=60
    )
    assert outcome.returncode == 2
    assert "hybridmap needs Python >= 3.11, but 'python-that-is-not-there' is missing or older" in outcome.stderr
    assert not (tmp_path / ".venv").exists()


def test_continuous_integration_runs_the_tests_and_stops_at_the_first_failure() -> None:
    text = (ROOT / ".ci" / "run").read_text()
    assert "set -euo pipefail" in text
    assert "make test" in text


def test_the_licence_is_apache_2() -> None:
    text = (ROOT / "LICENSE").read_text()
    assert "Apache License" in text
    assert "Version 2.0, January 2004" in text
