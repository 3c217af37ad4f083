"""Who may import whom, and what `import hybridmap` costs: the picture in CONTRIBUTING.md, checked."""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "hybridmap"
FILES = sorted(SOURCE.rglob("*.py"))

BASE = {"errors", "hashing", "types", "config"}
MODEL = BASE | {"ops", "layers", "tokens", "backbones"}
ALLOWED: dict[str, set[str]] = {
    "errors": set(),
    "hashing": set(),
    "types": {"errors"},
    "config": {"errors"},
    "ops": BASE,
    "layers": BASE | {"ops"},
    "tokens": BASE | {"ops"},
    "backbones": BASE | {"ops", "layers", "tokens"},
    "convert": MODEL,
    "objectives": MODEL,
    "data": BASE,
    "train": BASE,
    "tasks": MODEL | {"data"},  # an exam names the images that it asks about
    "report": MODEL | {"objectives", "data"},
    "recipes": MODEL | {"objectives", "tasks", "data", "train", "convert"},
    "cli": MODEL | {"objectives", "tasks", "data", "train", "convert", "recipes", "report", "__init__"},
    "__init__": MODEL,
    "__main__": {"cli"},
}
"""Room -> the other rooms that its files may import."""


def room_of(path: Path) -> str:
    return path.relative_to(SOURCE).parts[0].removesuffix(".py")


def imports_of(path: Path) -> set[str]:
    """The rooms that a file imports anywhere, functions and type-checking blocks included."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative imports hide who imports whom"
            module = node.module or ""
            names = [f"hybridmap.{alias.name}" for alias in node.names] if module == "hybridmap" else [module]
        for name in names:
            parts = name.split(".")
            if parts[0] == "hybridmap":
                inside = len(parts) > 1 and ((SOURCE / parts[1]).is_dir() or (SOURCE / f"{parts[1]}.py").exists())
                found.add(parts[1] if inside else "__init__")
    return found


def test_every_room_has_its_place_in_the_picture() -> None:
    assert {room_of(path) for path in FILES} <= ALLOWED.keys()


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_imports_go_down_the_picture_only(path: Path) -> None:
    room = room_of(path)
    forbidden = imports_of(path) - ALLOWED[room] - {room}
    assert not forbidden, f"{path.relative_to(SOURCE)} may not import {', '.join(sorted(forbidden))}"


def test_the_picture_has_no_circle() -> None:
    seen: dict[str, int] = {}

    def height(room: str, path: tuple[str, ...] = ()) -> int:
        assert room not in path, f"circle: {' -> '.join((*path, room))}"
        if room not in seen:
            seen[room] = 1 + max((height(below, (*path, room)) for below in ALLOWED[room]), default=0)
        return seen[room]

    assert max(map(height, ALLOWED)) >= 5


def test_there_is_no_drawer_for_everything() -> None:
    assert not [path for path in FILES if path.stem in {"utils", "util", "common", "helpers", "misc"}]


def test_training_knows_no_model_and_no_data_set_by_name() -> None:
    words = re.compile(r"hybridnet|mambar|\bvit\b|\bMAP\b|\bMAE\b|imagenet|imagefolder", re.IGNORECASE)
    for path in (SOURCE / "train").rglob("*.py"):
        names = {node.id for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Name)}
        assert not [name for name in names if words.search(name)], path


def test_no_global_random_state_is_touched() -> None:
    forbidden = re.compile(
        r"\b(np|numpy)\.random\.(seed|rand|randn|randint|choice|shuffle|permutation)\b|^import random\b", re.M
    )
    for path in FILES:
        assert not forbidden.search(path.read_text()), f"{path} uses global random state"


PROBE = """
import json, sys
import hybridmap, torch
heavy = ["torchvision", "matplotlib", "PIL", "rich", "tyro", "skimage", "sklearn", "scipy", "pandas", "tensorboard", "beartype"]
ours = sorted(name for name in sys.modules if name.startswith("hybridmap"))
print(json.dumps({
    "heavy": [name for name in heavy if name in sys.modules],
    "device": torch.cuda.is_initialized(),
    "ours": ours,
}))
"""
TIMM_ALONE = "import json, sys, torch, timm; print(json.dumps(sorted(sys.modules)))"


def _python(code: str, **environment: str) -> str:
    finished = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=300,
        env=os.environ | {"HYBRIDMAP_NO_SHAPE_CHECKS": "1"} | environment,
    )
    assert finished.returncode == 0, finished.stderr
    return finished.stdout.splitlines()[-1]


def test_import_needs_torch_numpy_and_timm_only_and_touches_no_device() -> None:
    found = json.loads(_python(PROBE))
    timm_brings = set(json.loads(_python(TIMM_ALONE)))
    assert [name for name in found["heavy"] if name not in timm_brings] == []
    assert not found["device"]
    rooms = {name.split(".")[1] for name in found["ours"] if "." in name}
    assert not rooms & {"cli", "train", "data", "recipes", "report", "tasks", "objectives", "convert"}


def test_importing_takes_under_three_seconds_beyond_torch_and_timm() -> None:
    code = "import time, torch, timm; start = time.perf_counter(); import hybridmap; print(time.perf_counter() - start)"
    assert min(float(_python(code)) for _ in range(3)) < 3.0


def test_importing_overwrites_no_model_of_timm() -> None:
    code = (
        "import json, timm; before = {name: timm.model_entrypoint(name) for name in timm.list_models()}; import hybridmap;"
        "print(json.dumps([name for name, made in before.items() if timm.model_entrypoint(name) is not made]))"
    )
    assert json.loads(_python(code)) == []
