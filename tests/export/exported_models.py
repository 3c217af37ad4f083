"""What compilers and exporters need of the backbones; run by test_export.py in processes without shape checks."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from torch import nn
from torch.export import ExportedProgram
from torch.fx import Node

from hybridmap.backbones import ARM, HybridNet, MambaVision, Vim, VMamba
from hybridmap.backbones.base import Backbone
from hybridmap.backbones.names import MODELS
from hybridmap.backbones.sequence import sides
from hybridmap.errors import UserError
from hybridmap.export import TOLERANCE, difference, save_onnx, save_program, to_onnx, trace

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
CONVERTED: set[tuple[object, ...]] = set()
"""Kinds of nodes that this process has seen converted to ONNX."""

SMALL: dict[str, Any] = {"img_size": (32, 48), "patch_size": 8, "embed_dim": 32, "num_classes": 5}
VIM: dict[str, Any] = SMALL | {"depth": 2, "d_state": 4}
OPTIONS: dict[str, Backbone.Config] = {
    "vim, class token first, column scan, LayerNorm": Vim.Config(**VIM, class_token="first", scan="column", norm_kind="layer"),
    "vim, two class tokens, v1, layer scale": Vim.Config(**VIM, class_token="double", mixer="v1", layer_scale=0.5),
    "vim, last patch, sum not halved, overlap": Vim.Config(**VIM, class_token="none", pool="none", divide=False, stride=4),
    "vim, pairs, rotary positions, largest logit": Vim.Config(
        **VIM,
        class_token="none",
        pool="max",
        positions="none",
        mixer="uni",
        bidirectional_pairs=True,
        rope=True,
        rope_residual=True,
    ),
    "arm, one way, clusters cut off at the border": ARM.Config(
        **SMALL, depth=2, directions=1, scan="cluster(3)", cls_token=False, positions="sincos"
    ),
    "hybridnet, runs of T, reduced registers, LayerNorm": HybridNet.Config(
        **SMALL, layout="TMTTM", num_heads=2, num_registers=3, cls_reduce=2, d_state=4, scan="column", norm_kind="layer"
    ),
    "mambavision, padded windows, norms of q and k, layer scales": MambaVision.Config(
        img_size=(96, 112),
        embed_dim=16,
        stem_dim=8,
        depths=(1, 1, 2, 2),
        num_heads=(2, 4),
        window_size=(4, 3),
        num_classes=5,
        qk_norm=True,
        layer_scale=0.5,
        conv_layer_scale=0.7,
    ),
    "vmamba, several states": VMamba.Config(
        img_size=(45, 70), embed_dim=16, depths=(1, 1), patch_size=8, d_state=4, num_classes=5
    ),
}
"""Options of architecture that no smallest model has, on images that are not square."""


def with_weights(name: str) -> tuple[Backbone, tuple[int, int]]:
    """The model with values everywhere, and its size."""
    size = on_meta(name)[1]
    return with_values(replace(MODELS[name], img_size=size[0])), size


def with_values(config: Backbone.Config, spread: float = 0.02) -> Backbone:
    """The network with values in every parameter and statistic that its initialisation leaves at 0 or 1."""
    backbone = config.build().eval()
    with torch.no_grad():
        for parameter in backbone.parameters():
            parameter.add_(spread * torch.randn_like(parameter))
        for module in backbone.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_(0, 0.1)  # pyright: ignore[reportOptionalMemberAccess]
                module.running_var.uniform_(0.5, 1.5)  # pyright: ignore[reportOptionalMemberAccess]
    return backbone


def outputs(backbone: Backbone) -> int:
    """Numbers per image: logits, or what a classifier would have been given."""
    return backbone.num_classes or backbone.head_hidden_size


def is_for_any_batch(program: ExportedProgram, outputs: int) -> bool:
    """Whether the graph gives one row of ``outputs`` per image for any number of them."""
    (end,) = (node for node in program.graph.nodes if node.op == "output")
    (logits,) = (node.meta["val"] for node in end.all_input_nodes)
    return isinstance(logits.shape[0], torch.SymInt) and logits.shape[1:] == (outputs,)


def standard_onnx(program: ExportedProgram, size: tuple[int, int], outputs: int) -> None:
    """The program becomes ONNX, with standard operators alone and for any number of images."""
    model = to_onnx(program, "logits").model
    assert {node.domain for node in model.graph.all_nodes()} == set(model.opset_imports) == {""}
    assert not model.functions
    (images,), (logits,) = model.graph.inputs, model.graph.outputs
    assert (images.name, logits.name) == ("images", "logits")
    assert images.shape is not None
    assert logits.shape is not None
    batch, *rest = images.shape
    assert not isinstance(batch, int)
    assert rest == [3, *size]
    assert list(logits.shape) == [batch, outputs]


def kind(node: Node) -> tuple[object, ...]:
    """What decides how a node is translated to ONNX: the operator and what its arguments are, not their sizes."""

    def of(argument: object) -> object:
        if isinstance(argument, list | tuple):
            return [of(part) for part in argument]
        value = argument.meta["val"] if isinstance(argument, Node) else argument
        return (value.dtype, value.ndim) if isinstance(value, torch.Tensor) else type(value).__name__

    return str(node.target), str(of(node.args)), str({name: of(value) for name, value in node.kwargs.items()})


@pytest.mark.parametrize("name", OTHERS)
def test_it_exports_for_any_batch(name: str) -> None:
    """At its depth and width, as a program of torch.export; as ONNX if it has nodes of a kind that no model before had."""
    backbone, size = on_meta(name)
    program = trace(backbone, size)
    assert is_for_any_batch(program, outputs(backbone))
    kinds = {kind(node) for node in program.graph.nodes if node.op == "call_function"}
    if not kinds <= CONVERTED:
        standard_onnx(program, size, outputs(backbone))
        CONVERTED.update(kinds)


@pytest.mark.parametrize("name", OTHERS)
def test_it_compiles_into_one_graph(name: str) -> None:
    backbone, size = on_meta(name)
    torch.compiler.reset()  # all models of a class share one forward, of which only so many compiled forms are kept
    with torch.no_grad():
        out = torch.compile(backbone, fullgraph=True, backend="eager")(torch.empty(2, 3, *size, device="meta"))
    assert out.shape == (2, outputs(backbone))


@pytest.mark.parametrize("name", SMALLEST)
def test_it_computes_the_same_elsewhere(name: str, tmp_path: Path) -> None:
    """Compiled into one graph, as a program of torch.export, and as ONNX."""
    backbone, size = with_weights(name)
    images = torch.randn(2, 3, *size)
    with torch.no_grad():
        expected = backbone(images)
        compiled = torch.compile(backbone, fullgraph=True, backend="aot_eager")(images)
    assert (compiled - expected).abs().max() <= TOLERANCE
    files_compute_the_same(backbone, size, tmp_path)


@pytest.mark.parametrize("option", OPTIONS)
def test_with_every_option_files_compute_the_same(option: str, tmp_path: Path) -> None:
    config = OPTIONS[option]
    files_compute_the_same(with_values(config, spread=0.1), sides(config.img_size), tmp_path)


def files_compute_the_same(backbone: Backbone, size: tuple[int, int], folder: Path) -> None:
    """A program of torch.export and ONNX give what the network gives, with batches of 1 and 3 images."""
    with torch.no_grad():
        assert backbone(torch.randn(2, 3, *size)).abs().max() > 0.1
    program = trace(backbone, size)
    assert is_for_any_batch(program, outputs(backbone))
    save_program(program, folder / "a.pt2")
    save_onnx(program, folder / "a.onnx", "logits")
    assert difference(folder / "a.pt2", "pt2", backbone, size, [1, 3]) <= TOLERANCE
    assert difference(folder / "a.onnx", "onnx", backbone, size, [1, 3]) <= TOLERANCE
    assert sorted(file.name for file in folder.iterdir()) == ["a.onnx", "a.pt2"]  # no weights beside
    model = onnx.load(folder / "a.onnx")
    onnx.checker.check_model(model)
    assert {opset.domain for opset in model.opset_import} == {""}
    assert not model.functions
    assert [value.name for value in (*model.graph.input, *model.graph.output)] == ["images", "logits"]
    assert all(value.type.tensor_type.shape.dim[0].dim_param for value in (*model.graph.input, *model.graph.output))


@pytest.mark.skipif(not any(map(shutil.which, ("g++", "clang++"))), reason="inductor needs a C++ compiler")
def test_compiled_code_of_the_default_backend_computes_the_same() -> None:
    """Real code from inductor for the smallest HybridNet: layers of both kinds, our operators called from it."""
    backbone, size = with_weights("hybridnet_tiny_patch16_224")
    images = torch.randn(2, 3, *size)
    with torch.no_grad():
        expected = backbone(images)
        compiled = torch.compile(backbone, fullgraph=True)(images)
    assert (compiled - expected).abs().max() <= TOLERANCE
