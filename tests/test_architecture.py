"""Who may import whom, and what `import hybridmap` costs: the picture in CONTRIBUTING.md, checked."""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "hybridmap"
FILES = sorted(SOURCE.rglob("*.py"))

BASE = {"errors", "hashing", "files", "types", "config"}
MODEL = BASE | {"ops", "layers", "tokens", "backbones"}
ALLOWED: dict[str, set[str]] = {
    "errors": set(),
    "hashing": set(),
    "files": {"errors"},
    "types": {"errors"},
    "config": {"errors"},
    "ops": BASE,
    "layers": BASE | {"ops"},
    "tokens": BASE | {"ops"},
    "backbones": BASE | {"ops", "layers", "tokens"},
    "convert": MODEL,
    "export": MODEL,
    "objectives": MODEL,
    "data": BASE,
    "train": BASE,
    "tasks": MODEL | {"data"},  # an exam names the images that it asks about
    "report": MODEL | {"objectives", "data"},
    "recipes": MODEL | {"objectives", "tasks", "data", "train", "convert"},
    "bench": MODEL | {"train"},
    "cli": MODEL | {"objectives", "tasks", "data", "train", "convert", "recipes", "report", "bench", "export", "__init__"},
    "__init__": MODEL | {"objectives", "train", "recipes"},  # those beyond MODEL when they are first used
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
import json, sys, time
import numpy, torch, timm
before, models = set(sys.modules), {name: timm.model_entrypoint(name) for name in timm.list_models()}
start = time.process_time()
import hybridmap
seconds = time.process_time() - start
print(json.dumps({
    "seconds": seconds,
    "brought": sorted(set(sys.modules) - before),
    "device": torch.cuda.is_initialized(),
    "replaced": [name for name, made in models.items() if timm.model_entrypoint(name) is not made],
    "added": sorted(set(timm.list_models()) - set(models)),
}))
"""


@pytest.fixture(scope="module")
def importing() -> dict[str, Any]:
    """What ``import hybridmap`` does in a process that has imported torch, numpy and timm."""
    environment = os.environ | {"HYBRIDMAP_NO_SHAPE_CHECKS": "1"}
    finished = subprocess.run([sys.executable, "-c", PROBE], capture_output=True, text=True, timeout=300, env=environment)
    assert finished.returncode == 0, finished.stderr
    return json.loads(finished.stdout.splitlines()[-1])


def test_import_needs_torch_numpy_and_timm_only(importing: dict[str, Any]) -> None:
    packages = {name.partition(".")[0] for name in importing["brought"]}
    installed = {name for name in packages if name not in sys.stdlib_module_names and not name.startswith("_")}
    assert installed <= {"hybridmap", "torch", "numpy", "timm", "jaxtyping", "wadler_lindig"}  # jaxtyping: annotations only


def test_import_touches_no_device_and_only_the_rooms_of_the_models(importing: dict[str, Any]) -> None:
    assert not importing["device"]
    rooms = {name.split(".")[1] for name in importing["brought"] if name.startswith("hybridmap.")}
    assert rooms <= MODEL


def test_importing_takes_under_three_seconds_beyond_torch_and_timm(importing: dict[str, Any]) -> None:
    assert importing["seconds"] < 3.0  # of processor time, so that a busy machine does not matter


def test_importing_adds_models_to_timm_and_replaces_none(importing: dict[str, Any]) -> None:
    assert importing["replaced"] == []
    assert {"hybridnet_base_patch16_224", "map_base_patch16_224", "mambar_base_patch16_224"} <= set(importing["added"])
