"""Compilation and export of every model, which do not go through shape checks and therefore run in processes of their own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from hybridmap.backbones.names import MODELS

LONG = pytest.mark.skipif(not os.environ.get("HYBRIDMAP_LONG"), reason="minutes for all models: make test-long")
"""What the smallest models of some families do in every test run, for all of them."""
ALWAYS = ("hybridnet", "mae", "mambavision")
"""Families that are always compared elsewhere: between them they have every kind of layer but a few of Vim, ARM and VMamba."""
FAMILIES = sorted({name.partition("_")[0] for name in MODELS})


def passes(file: str, words: str, environment: dict[str, str]) -> None:
    """Run the tests of a file that have these words in their names; there must be some."""
    path = Path(__file__).with_name(file)
    outcome = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", words, str(path)],
        capture_output=True,
        text=True,
        env=environment,
        cwd=Path(__file__).parents[2],
    )
    assert outcome.returncode == 0, outcome.stdout + outcome.stderr


def test_operators_compute_the_same_in_onnx(unchecked_environment: dict[str, str]) -> None:
    passes("onnx_operators.py", "test", unchecked_environment)


@LONG
@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_every_model_of_a_family_exports(family: str, unchecked_environment: dict[str, str]) -> None:
    passes("exported_models.py", f"exports and {family}_", unchecked_environment)


@LONG
@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_every_model_of_a_family_compiles(family: str, unchecked_environment: dict[str, str]) -> None:
    passes("exported_models.py", f"compiles and {family}_", unchecked_environment)


@pytest.mark.slow
@pytest.mark.parametrize("family", [family if family in ALWAYS else pytest.param(family, marks=LONG) for family in FAMILIES])
def test_the_smallest_model_of_a_family_computes_the_same_elsewhere(family: str, unchecked_environment: dict[str, str]) -> None:
    passes("exported_models.py", f"elsewhere and {family}_", unchecked_environment)


@LONG
@pytest.mark.slow
def test_every_option_computes_the_same_elsewhere(unchecked_environment: dict[str, str]) -> None:
    passes("exported_models.py", "every_option", unchecked_environment)


@LONG
@pytest.mark.slow
def test_code_of_the_default_compiler_computes_the_same(unchecked_environment: dict[str, str], tmp_path: Path) -> None:
    cache = {"TORCHINDUCTOR_CACHE_DIR": str(tmp_path)}
    passes("exported_models.py", "default_backend", unchecked_environment | cache)
