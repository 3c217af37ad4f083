"""What compilers and exporters need of the backbones; run by test_export.py in processes without shape checks."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import onnx
import pytest
import torch
from torch import nn

from hybridmap.backbones.base import Backbone
from hybridmap.backbones.names import MODELS
from hybridmap.errors import UserError
from hybridmap.export import TOLERANCE, difference, save_onnx, save_program, trace

SIDES = (64, 70, 96)
"""Sides of images in pixels, tried in this order: 64 if the patches divide it and there are enough for the registers."""


def on_meta(name: str) -> tuple[Backbone, tuple[int, int]]:
    """The model at its depth and width without memory for its weights, and the first size that it takes."""
    for side in SIDES:
        try:
            with torch.device("meta"):
                return replace(MODELS[name], img_size=side).build().eval(), (side, side)
        except UserError:
            continue
    raise AssertionError(f"{name} takes none of {SIDES}")


def weight(name: str) -> int:
    return sum(parameter.numel() for parameter in on_meta(name)[0].parameters())


def smallest_of_each_family() -> list[str]:
    families: dict[str, str] = {}
    for name in sorted(MODELS, key=weight):
        families.setdefault(name.partition("_")[0], name)
    return list(families.values())


def with_weights(name: str) -> tuple[Backbone, tuple[int, int]]:
    """The model with values in every parameter and statistic that its initialisation leaves at 0 or 1."""
    size = on_meta(name)[1]
    backbone = replace(MODELS[name], img_size=size[0]).build().eval()
    with torch.no_grad():
        for parameter in backbone.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
        for module in backbone.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_(0, 0.1)  # pyright: ignore[reportOptionalMemberAccess]
                module.running_var.uniform_(0.5, 1.5)  # pyright: ignore[reportOptionalMemberAccess]
    return backbone, size


@pytest.mark.parametrize("name", MODELS)
def test_it_exports_for_any_batch(name: str) -> None:
    backbone, size = on_meta(name)
    program = trace(backbone, size)
    (found,) = [node for node in program.graph.nodes if node.op == "output"]
    (shape,) = [value.meta["val"].shape for value in found.all_input_nodes]
    assert isinstance(shape[0], torch.SymInt)
    assert shape[1:] == (1000,)
    assert list(program.range_constraints.values())[0].lower <= 2
    assert not [node for node in program.graph.nodes if "random" in str(node.target) or "bernoulli" in str(node.target)]


@pytest.mark.parametrize("name", MODELS)
def test_it_compiles_into_one_graph(name: str) -> None:
    backbone, size = on_meta(name)
    with torch.no_grad():
        out = torch.compile(backbone, fullgraph=True, backend="eager")(torch.empty(2, 3, *size, device="meta"))
    assert out.shape == (2, 1000)


@pytest.mark.parametrize("name", smallest_of_each_family())
def test_it_computes_the_same_elsewhere(name: str, tmp_path: Path) -> None:
    backbone, size = with_weights(name)
    images = torch.randn(2, 3, *size)
    with torch.no_grad():
        expected = backbone(images)
        compiled = torch.compile(backbone, fullgraph=True, backend="aot_eager")(images)
    assert expected.abs().max() > 0.1
    assert (compiled - expected).abs().max() <= TOLERANCE
    program = trace(backbone, size)
    save_program(program, tmp_path / "a.pt2")
    save_onnx(program, tmp_path / "a.onnx", "logits")
    assert difference(tmp_path / "a.pt2", "pt2", backbone, size, [1, 3]) <= TOLERANCE
    assert difference(tmp_path / "a.onnx", "onnx", backbone, size, [1, 3]) <= TOLERANCE
    model = onnx.load(tmp_path / "a.onnx")
    onnx.checker.check_model(model)
    assert [file.name for file in sorted(tmp_path.iterdir())] == ["a.onnx", "a.pt2"]
    assert {opset.domain for opset in model.opset_import} == {""}
    assert not model.functions
    assert [value.name for value in (*model.graph.input, *model.graph.output)] == ["images", "logits"]
    assert model.graph.input[0].type.tensor_type.shape.dim[0].dim_param
