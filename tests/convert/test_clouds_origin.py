"""Official files of networks for points: wrapped as trainers wrap them, told what shapes do not tell, refused when foreign."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from hybridmap.backbones.hybrid3d import HybridNet3D
from hybridmap.backbones.point_mamba import PointMamba
from hybridmap.convert import convert, load_checkpoint
from hybridmap.errors import UserError

FIXTURES = Path(__file__).parents[1] / "parity" / "fixtures"


def official(name: str) -> dict[str, torch.Tensor]:
    recorded = load_file(FIXTURES / f"{name}.safetensors")
    state = {key.removeprefix("state."): value for key, value in recorded.items() if key.startswith("state.")}
    return {key: value.float() if value.is_floating_point() else value for key, value in state.items()}


def test_a_trainers_file_is_read(tmp_path: Path) -> None:
    state = {f"module.{key}": value for key, value in official("mamba3d-cls-a").items()}
    torch.save({"base_model": state, "epoch": 3, "metrics": {"acc": torch.tensor(0.5)}}, tmp_path / "ckpt-best.pth")
    loaded = load_checkpoint(tmp_path / "ckpt-best.pth", told={"num_patches": 16, "patch_points": 8})
    network = loaded.build().eval()
    assert isinstance(network, HybridNet3D)
    assert network.config.layout == "MMM"
    assert network(torch.randn(2, 64, 3)).shape == (2, 10)


def test_pretraining_tells_the_size_of_its_patches_and_leaves_the_untrained_token_out() -> None:
    loaded = convert(official("pointmap-pretrain-a"))
    assert loaded.config is not None
    assert loaded.config.patch_points == 8  # type: ignore[attr-defined]
    assert set(loaded.report.dropped) == {"MAE_encoder.cls_token", "MAE_encoder.cls_pos"}
    assert loaded.decoder["depth"] == 4


def test_both_curves_of_pointmamba_are_converted() -> None:
    loaded = convert(official("pointmamba-cls-a"))
    assert isinstance(loaded.config, PointMamba.Config)
    assert {"order_scale.0", "order_scale.1", "order_shift.0", "order_shift.1"} <= loaded.weights.keys()


def test_a_tensor_without_a_place_is_named() -> None:
    with pytest.raises(UserError, match=r"1 tensors have no place in it: blocks\.blocks\.0\.extra"):
        convert(official("mamba3d-cls-a") | {"blocks.blocks.0.extra": torch.zeros(1)})
