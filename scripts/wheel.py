"""Builds dist/hybridmap-*.whl with the compiled kernels inside, one library per instruction set of this kind of processor.

python scripts/wheel.py [FOLDER]        FOLDER: where the wheel goes, dist by default

The libraries are compiled in a copy of the source tree, so that no stale one is ever found beside the source itself. They need
nothing but the C library, hence the manylinux2014 tag; other systems get their own platform's tag.
"""

from __future__ import annotations

import platform
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

from hybridmap.ops import native

ROOT = Path(__file__).resolve().parents[1]
NEEDED = ("pyproject.toml", "README.md", "LICENSE")


def compile_all(folder: Path) -> list[str]:
    """Build every variant for this kind of processor into the folder -> their names."""
    compiler = next((found for name in native.COMPILERS if (found := shutil.which(name))), None)
    if compiler is None:
        raise SystemExit(f"a wheel with kernels needs a C++ compiler ({', '.join(native.COMPILERS)}), and none was found")
    x86 = platform.machine().lower() in ("x86_64", "amd64")
    variants = list(native.VARIANTS.values()) if x86 else [native.VARIANTS["DEFAULT"]]
    for variant in variants:
        try:
            native.compile_library(compiler, variant, folder / f"hybridmap-{variant.name}.so")
        except native.Absent as reason:
            raise SystemExit(f"no kernel for {variant.name}: {reason}") from None
    return [variant.name for variant in variants]


def main(into: Path) -> int:
    tag = f"manylinux2014_{platform.machine()}" if sys.platform == "linux" else sysconfig.get_platform()
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder) / "hybridmap"
        shutil.copytree(ROOT / "src", tree / "src", ignore=shutil.ignore_patterns("*.egg-info", "__pycache__"))
        for name in NEEDED:
            shutil.copy(ROOT / name, tree)
        names = compile_all(tree / "src" / "hybridmap" / "ops" / "native")
        command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--disable-pip-version-check", "--no-deps", "--no-index"]
        command += ["--no-build-isolation", f"--config-settings=--build-option=--plat-name={tag}", "-w", str(into), str(tree)]
        subprocess.run(command, check=True)
    print(f"{', '.join(path.name for path in into.glob('*.whl'))}: kernels for {', '.join(names)}")
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "dist"))
