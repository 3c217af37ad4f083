"""Does the harness notice? A wrong number, a tensor that nothing compares, a family that nobody knows."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from parity_harness import FAMILIES
from parity_harness.recording import Recording
from safetensors.torch import load_file, save_file
from test_parity import test_we_equal_the_recording as we_equal_the_recording
from torch import Tensor

from hybridmap.errors import UserError

FIXTURES = Path(__file__).parent / "fixtures"


def changed(name: str, folder: Path, change: Callable[[dict[str, Tensor], dict[str, Any]], Any]) -> Path:
    """A copy of a public recording with something changed in it."""
    tensors, meta = load_file(FIXTURES / f"{name}.safetensors"), json.loads((FIXTURES / f"{name}.json").read_text())
    change(tensors, meta)
    save_file(tensors, folder / f"{name}.safetensors")
    (folder / f"{name}.json").write_text(json.dumps(meta))
    return folder / f"{name}.json"


def compare(path: Path, dtype: torch.dtype = torch.float32) -> None:
    recording = Recording(path, dtype)
    FAMILIES[recording.meta["family"]](recording)
    recording.conclude()


def test_an_unchanged_recording_passes(tmp_path: Path) -> None:
    compare(changed("mamba-module-b", tmp_path, lambda tensors, meta: None))


@pytest.mark.parametrize("name", ["output.logits", "feature.layer0_residual", "grad.head.bias", "extra.token_idx"])
def test_a_wrong_tensor_is_noticed(name: str, tmp_path: Path) -> None:
    def change(tensors: dict[str, Tensor], meta: dict[str, Any]) -> None:
        tensors[name] = tensors[name] * 1.01 + 0.001 if tensors[name].is_floating_point() else tensors[name].flip(0)

    with pytest.raises(AssertionError, match=name.replace(".", r"\.")):
        compare(changed("mamba-reg-4tok", tmp_path, change))


def test_a_difference_of_a_millionth_is_noticed_in_float64(tmp_path: Path) -> None:
    path = changed("mamba-reg-4tok", tmp_path, lambda tensors, meta: tensors["output64.logits"].mul_(1 + 1e-6))
    compare(path)
    with pytest.raises(AssertionError, match=r"output64\.logits"):
        compare(path, torch.float64)


@pytest.mark.parametrize("kind", ["grad_norms", "grad_probes"])
def test_a_wrong_number_of_a_gradient_is_noticed(kind: str, tmp_path: Path) -> None:
    def change(tensors: dict[str, Tensor], meta: dict[str, Any]) -> None:
        meta[kind]["default"]["layers.2.mixer.x_proj_b.weight"] += (
            0.01 * meta["grad_norms"]["default"]["layers.2.mixer.x_proj_b.weight"]
        )

    with pytest.raises(AssertionError, match=r"of layers\.2\.mixer\.x_proj_b\.weight"):
        compare(changed("mamba-reg-4tok", tmp_path, change))


def test_a_parameter_that_should_have_no_gradient_is_noticed(tmp_path: Path) -> None:
    path = changed("mamba-reg-4tok", tmp_path, lambda tensors, meta: meta["params_without_grad"]["default"].append("head.bias"))
    with pytest.raises(AssertionError, match=r"we also have \['head\.bias'\]"):
        compare(path)


@pytest.mark.parametrize("name", ["output.other", "feature.other", "extra.other", "input.other", "grad.other", "state.other"])
def test_nothing_recorded_passes_without_being_compared(name: str, tmp_path: Path) -> None:
    def change(tensors: dict[str, Tensor], meta: dict[str, Any]) -> None:
        tensors[name] = torch.ones(3)

    with pytest.raises((AssertionError, UserError), match="other"):
        compare(changed("mamba-reg-4tok", tmp_path, change))


def test_a_tensor_that_is_described_but_missing_is_noticed(tmp_path: Path) -> None:
    path = changed("mamba-reg-4tok", tmp_path, lambda tensors, meta: tensors.pop("output.logits"))
    with pytest.raises(AssertionError, match=r"output\.logits: described"):
        compare(path)


def test_numbers_of_an_unknown_kind_are_noticed(tmp_path: Path) -> None:
    path = changed("mamba-reg-4tok", tmp_path, lambda tensors, meta: meta.update(entropies={"layer0": 1.0}))
    with pytest.raises(AssertionError, match=r"entropies\.layer0: recorded, but compared with nothing"):
        compare(path)


@pytest.mark.parametrize(
    ("kind", "outcome", "message"),
    [
        ("unheard-of", AssertionError, "neither supported nor listed"),
        ("promised", pytest.skip.Exception, "still to come: promised"),
    ],
)
def test_a_family_that_cannot_be_compared_is_failed_or_named(
    kind: str, outcome: type[BaseException], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("test_parity.TO_COME", ("promised",))
    path = changed("mamba-module-b", tmp_path, lambda tensors, meta: meta.update(family=kind))
    with pytest.raises(outcome, match=message):
        we_equal_the_recording(path, torch.float32, "cpu")


@pytest.mark.parametrize("suffix", [".json", ".safetensors"])
def test_half_a_pair_is_a_failure(suffix: str, tmp_path: Path) -> None:
    path = changed("mamba-module-b", tmp_path, lambda tensors, meta: None)
    path.with_suffix(suffix).unlink()
    with pytest.raises(AssertionError, match="beside it"):
        we_equal_the_recording(path, torch.float32, "cpu")
