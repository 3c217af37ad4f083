"""opcheck, compilation and export, which do not go through shape checks and therefore run in a process of their own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from scan_problems import DEVICES


@pytest.mark.parametrize("device", DEVICES)
def test_operators_can_be_checked_compiled_and_exported(device: str, unchecked_environment: dict[str, str]) -> None:
    file = Path(__file__).with_name("traced_operators.py")
    marked = "gpu" if device == "cuda" else "not gpu"
    result = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", "-m", marked, str(file)],
        capture_output=True,
        text=True,
        env=unchecked_environment,
        cwd=Path(__file__).parents[2],
    )
    assert result.returncode == 0, result.stdout + result.stderr
