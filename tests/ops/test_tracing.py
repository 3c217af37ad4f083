"""opcheck, compilation and export, which do not go through shape checks and therefore run in a process of their own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path


def test_operators_can_be_checked_compiled_and_exported(unchecked_environment: dict[str, str]) -> None:
    result = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(Path(__file__).with_name("traced_operators.py"))],
        capture_output=True,
        text=True,
        env=unchecked_environment,
        cwd=Path(__file__).parents[2],
    )
    assert result.returncode == 0, result.stdout + result.stderr
