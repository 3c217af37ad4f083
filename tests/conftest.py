"""What every test relies on: shape types checked, one thread, a fixed seed, no network.

Shape annotations are checked by beartype in tests only. Compilation, export and opcheck do not go through such checks, so those
tests run in a process with HYBRIDMAP_NO_SHAPE_CHECKS=1.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TORCH_COMPILE_DISABLE_PROGRESS", "1")

SHAPE_CHECKS = "HYBRIDMAP_NO_SHAPE_CHECKS" not in os.environ

if SHAPE_CHECKS:
    from jaxtyping import install_import_hook

    assert "hybridmap" not in sys.modules, "hybridmap was imported before the shape checks were switched on"
    # As in all of Python's typing, an int will do where a float is asked for.
    install_import_hook("hybridmap", "beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))")

import torch  # noqa: E402 (the variables above must be set first)

torch.set_num_threads(1)
if not torch.cuda.is_available():
    # Read when a kernel is defined: then Triton's interpreter runs it, on tensors on the CPU.
    os.environ.setdefault("TRITON_INTERPRET", "1")


@pytest.fixture(autouse=True)
def _fixed_seed() -> Iterator[None]:
    """Every test starts from the same global generator, and leaves default dtype and determinism as it found them."""
    torch.manual_seed(0)
    dtype, deterministic = torch.get_default_dtype(), torch.are_deterministic_algorithms_enabled()
    yield
    torch.set_default_dtype(dtype)
    torch.use_deterministic_algorithms(deterministic)


@pytest.fixture(scope="session")
def unchecked_environment() -> dict[str, str]:
    """The environment for a subprocess: no shape checks, one thread."""
    return os.environ | {"HYBRIDMAP_NO_SHAPE_CHECKS": "1", "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="session")
def photo_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small folder of pictures: two classes of twelve 48x40 JPEGs with different stripes, made from formulas."""
    from PIL import Image

    root = tmp_path_factory.mktemp("photos")
    y, x = torch.meshgrid(torch.arange(48.0), torch.arange(40.0), indexing="ij")
    for name, wave in {"rows": y, "columns": x}.items():
        (root / name).mkdir()
        for i in range(12):
            stripes = (torch.sin(wave * (0.3 + 0.05 * i)) * 0.5 + 0.5) * 255
            picture = torch.stack([stripes, stripes.flip(0), stripes * 0.5], -1).to(torch.uint8)
            Image.fromarray(picture.numpy()).save(root / name / f"{i:02}.jpg", quality=92)
    return root
