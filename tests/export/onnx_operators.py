"""Our operators in ONNX against their formulas; run by test_export.py in a process without shape checks."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import onnxruntime
import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim

from hybridmap.export import save_onnx
from hybridmap.ops import Parameters, bidirectional_scan, causal_conv1d, mamba_inner, selective_scan, use_backend

Function = Callable[..., Tensor | tuple[Tensor, ...]]


class Called(nn.Module):
    """A function as a module, with (batch, L, ...) inputs."""

    def __init__(self, function: Function) -> None:
        super().__init__()
        self.function = function

    def forward(self, *tensors: Tensor) -> Tensor | tuple[Tensor, ...]:
        return self.function(*tensors)


def agrees(function: Function, inputs: list[Tensor], file: Path, others: list[Tensor] | None = None) -> None:
    """Export with free batch and length, and compare with the formula on ``inputs`` and on ``others``."""
    free = {0: Dim("batch"), 1: Dim("length", min=2)}
    with torch.no_grad():
        program = torch.export.export(Called(function), tuple(inputs), dynamic_shapes=(tuple(free for _ in inputs),))
    save_onnx(program, file)
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    for tensors in filter(None, (inputs, others)):
        feed = {place.name: tensor.numpy() for place, tensor in zip(session.get_inputs(), tensors, strict=True)}
        with torch.no_grad(), use_backend("reference"):
            expected = function(*tensors)
        expected = expected if isinstance(expected, tuple) else (expected,)
        for value, wanted in zip(session.run(None, feed), expected, strict=True):
            assert torch.isfinite(wanted).all()
            assert (torch.from_numpy(value) - wanted).abs().max() <= 1e-5 * max(1.0, wanted.abs().max().item())


def tokens(*widths: int, batch: int = 2, length: int = 18) -> list[Tensor]:
    return [torch.randn(batch, length, width) for width in widths]


A = -torch.rand(6, 4) * 4
D = torch.randn(6)
BIAS = torch.randn(6)


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("length", [5, 3000])
def test_the_scan_with_everything(reverse: bool, length: int, tmp_path: Path) -> None:
    def scan(x: Tensor, dt: Tensor, B: Tensor, C: Tensor, z: Tensor) -> Tensor:
        return selective_scan(x, dt, A, B, C, D=D, z=z, bias=BIAS, reverse=reverse, out_scale=0.5)

    widths = (6, 6, 4, 4, 6)
    agrees(scan, tokens(*widths), tmp_path / "a.onnx", tokens(*widths, batch=3, length=length))


def test_the_scan_with_nothing_but_a_state_before_and_after(tmp_path: Path) -> None:
    start = torch.randn(2, 6, 4)

    def scan(x: Tensor, dt: Tensor, B: Tensor, C: Tensor) -> tuple[Tensor, ...]:
        state = start[:1].expand(x.shape[0], -1, -1).clone()
        return selective_scan(x, dt.abs(), A, B, C, h0=state, softplus=False, return_last_state=True)

    agrees(scan, tokens(6, 6, 4, 4), tmp_path / "a.onnx")


def test_long_sequences_with_strong_and_with_no_decay_neither_overflow_nor_vanish(tmp_path: Path) -> None:
    extremes = torch.tensor([[-1e4, -30.0, -1e-6, 0.0]]).repeat(6, 1)

    def scan(x: Tensor, dt: Tensor, B: Tensor, C: Tensor) -> Tensor:
        return selective_scan(x, dt, extremes, B, C)

    agrees(scan, tokens(6, 6, 4, 4), tmp_path / "a.onnx", tokens(6, 6, 4, 4, batch=1, length=2000))


@pytest.mark.parametrize("gated", [False, True])
def test_the_scan_in_both_directions(gated: bool, tmp_path: Path) -> None:
    def scan(x: Tensor, dt: Tensor, B: Tensor, C: Tensor, z: Tensor) -> Tensor:
        fwd, bwd = (x, dt, A, B, C, D, BIAS), (x * 2, dt, A * 0.5, C, B, None, None)
        return bidirectional_scan(fwd, bwd, z if gated else None) + z

    agrees(scan, tokens(6, 6, 4, 4, 6), tmp_path / "a.onnx", tokens(6, 6, 4, 4, 6, batch=1, length=40))


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_the_convolution(reverse: bool, bias: bool, tmp_path: Path) -> None:
    taps = torch.randn(6, 4)

    def convolve(x: Tensor) -> Tensor:
        return causal_conv1d(x, taps, BIAS if bias else None, silu=bias, reverse=reverse)

    agrees(convolve, tokens(6), tmp_path / "a.onnx", tokens(6, batch=3, length=2))


@pytest.mark.parametrize("directions", [1, 2])
def test_the_inside_of_a_mixer(directions: int, tmp_path: Path) -> None:
    def parameters() -> Parameters:
        taps, x_proj, dt_proj = torch.randn(6, 4), torch.randn(11, 6), torch.randn(6, 3)
        return Parameters(taps, torch.randn(6), x_proj, dt_proj, -torch.rand(6, 4), torch.randn(6), torch.randn(6))

    fwd, *bwd = (parameters() for _ in range(directions))
    agrees(lambda xz: mamba_inner(xz, fwd, *bwd, scale=0.5), tokens(12), tmp_path / "a.onnx", tokens(12, batch=1, length=33))
