"""A wheel brings its kernels along: installed where there is no compiler, the fast one runs."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from hybridmap.ops import native

ROOT = Path(__file__).parents[1]
PROGRAM = """
import json
import hybridmap
from hybridmap.ops import active, check_kernels
print(json.dumps({
    "file": hybridmap.__file__,
    "active": active("selective_scan", "cpu"),
    "wrong": [str(check) for check in check_kernels("cpu") if not check.ok],
}))
"""


@pytest.mark.slow
@pytest.mark.skipif(not any(map(shutil.which, native.COMPILERS)), reason="no C++ compiler here")
def test_the_kernel_of_a_wheel_runs_without_a_compiler(tmp_path: Path, unchecked_environment: dict[str, str]) -> None:
    subprocess.run([sys.executable, str(ROOT / "scripts" / "wheel.py"), str(tmp_path)], check=True, cwd=tmp_path)
    (wheel,) = tmp_path.glob("*.whl")
    installed = tmp_path / "installed"
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps", "--no-index"]
    subprocess.run([*pip, "--target", str(installed), str(wheel)], check=True)
    environment = unchecked_environment | {"PATH": "", "PYTHONPATH": str(installed), "XDG_CACHE_HOME": str(tmp_path / "cache")}
    result = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, env=environment, check=True, cwd=tmp_path
    )
    found = json.loads(result.stdout)
    assert Path(found["file"]).is_relative_to(installed)
    assert found["active"] == "prebuilt"
    assert not found["wrong"]
    assert not (tmp_path / "cache").exists()
