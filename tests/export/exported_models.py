"""What compilers and exporters need of the backbones; run by test_export.py in processes without shape checks."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import onnx
import pytest
import torch
from torch import nn
from torch.export import ExportedProgram

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


def smallest_of_each_family() -> list[str]:
    families: dict[str, str] = {}
    for name in sorted(MODELS, key=lambda name: MODELS[name].embed_dim):
        families.setdefault(name.partition("_")[0], name)
    return list(families.values())


SMALLEST = smallest_of_each_family()
OTHERS = [name for name in MODELS if name not in SMALLEST]


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


def outputs(backbone: Backbone) -> int:
    """Numbers per image: logits, or what a classifier would have been given."""
    return backbone.num_classes or backbone.head_hidden_size


def is_for_any_batch(program: ExportedProgram, outputs: int) -> bool:
    """Whether the graph gives one row of ``outputs`` per image for any number of them."""
    (end,) = (node for node in program.graph.nodes if node.op == "output")
    (logits,) = (node.meta["val"] for node in end.all_input_nodes)
    return isinstance(logits.shape[0], torch.SymInt) and logits.shape[1:] == (outputs,)


@pytest.mark.parametrize("name", OTHERS)
def test_it_exports_for_any_batch(name: str) -> None:
    backbone, size = on_meta(name)
    assert is_for_any_batch(trace(backbone, size), outputs(backbone))


@pytest.mark.parametrize("name", OTHERS)
def test_it_compiles_into_one_graph(name: str) -> None:
    backbone, size = on_meta(name)
    torch.compiler.reset()  # all models of a class share one forward, of which only so many compiled forms are kept
    with torch.no_grad():
        out = torch.compile(backbone, fullgraph=True, backend="eager")(torch.empty(2, 3, *size, device="meta"))
    assert out.shape == (2, outputs(backbone))


@pytest.mark.parametrize("name", SMALLEST)
def test_it_computes_the_same_elsewhere(name: str, tmp_path: Path) -> None:
    """Compiled into one graph, as a program of torch.export, and as ONNX; the latter two with batches of 1 and 3 images."""
    backbone, size = with_weights(name)
    images = torch.randn(2, 3, *size)
    with torch.no_grad():
        expected = backbone(images)
        compiled = torch.compile(backbone, fullgraph=True, backend="aot_eager")(images)
    assert expected.abs().max() > 0.1
    assert (compiled - expected).abs().max() <= TOLERANCE
    program = trace(backbone, size)
    assert is_for_any_batch(program, outputs(backbone))
    save_program(program, tmp_path / "a.pt2")
    save_onnx(program, tmp_path / "a.onnx", "logits")
    assert difference(tmp_path / "a.pt2", "pt2", backbone, size, [1, 3]) <= TOLERANCE
    assert difference(tmp_path / "a.onnx", "onnx", backbone, size, [1, 3]) <= TOLERANCE
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a.onnx", "a.pt2"]  # no weights beside
    model = onnx.load(tmp_path / "a.onnx")
    onnx.checker.check_model(model)
    assert {opset.domain for opset in model.opset_import} == {""}
    assert not model.functions
    assert [value.name for value in (*model.graph.input, *model.graph.output)] == ["images", "logits"]
    assert all(value.type.tensor_type.shape.dim[0].dim_param for value in (*model.graph.input, *model.graph.output))
