"""Same weights, same input: do we equal the official code? Every pair in the folder, in float32 and in float64.

HYBRIDMAP_GOLDEN=some/folder pytest tests/parity          # recordings of other sizes and seeds
pytest tests/parity -m gpu                                # on a CUDA device, in float32 by its kernels
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from parity_harness import FAMILIES, FOLDER, TO_COME, family, recordings
from parity_harness.recording import Recording


def test_the_folder_has_recordings() -> None:
    assert recordings(), f"no *.safetensors in {FOLDER}"


def test_no_family_is_both_supported_and_still_to_come() -> None:
    assert not FAMILIES.keys() & set(TO_COME)


on_cuda = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")]


@pytest.fixture
def _float32_means_float32() -> Iterator[None]:
    """On CUDA, convolutions round to ten bits by default."""
    before, torch.backends.cudnn.allow_tf32 = torch.backends.cudnn.allow_tf32, False
    yield
    torch.backends.cudnn.allow_tf32 = before


@pytest.mark.usefixtures("_float32_means_float32")
@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=on_cuda)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("path", recordings(), ids=lambda path: path.stem)
def test_we_equal_the_recording(path: Path, dtype: torch.dtype, device: str) -> None:
    assert path.is_file(), f"{path.stem}.safetensors has no JSON beside it"
    assert path.with_suffix(".safetensors").is_file(), f"{path.name} has no tensors beside it"
    name = family(path)
    if name in TO_COME:
        pytest.skip(f"still to come: {name}")
    assert name in FAMILIES, f"family {name!r} of {path.name} is neither supported nor listed as still to come"
    recording = Recording(path, dtype, device)
    with torch.device(device):
        FAMILIES[name](recording)
        recording.conclude()
