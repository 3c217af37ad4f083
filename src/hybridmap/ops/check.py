"""Is every implementation of every operator right on this machine? Each is judged by the float64 reference.

Errors are relative L2 norms. Inputs are rounded to the dtype first, so that only the operator is judged.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from hybridmap.ops.add_norm import add_norm
from hybridmap.ops.causal_conv1d import causal_conv1d
from hybridmap.ops.selective_scan import bidirectional_scan, selective_scan

OUTPUT = {torch.float32: 2e-6, torch.bfloat16: 4e-3, torch.float16: 5e-4}
"""Largest relative error of an output."""
ACTIVATION_GRADIENT = {torch.float32: 1e-5, torch.bfloat16: 4e-3, torch.float16: 5e-4}
"""Largest relative error of the gradient of a tensor that has the dtype of x."""
PARAMETER_GRADIENT = {torch.float32: 1e-5, torch.bfloat16: 1e-4, torch.float16: 1e-4}
"""Largest relative error of the gradient of a tensor that stays float32."""


class Check(NamedTuple):
    """One line of the comparison."""

    op: str
    dtype: str
    direction: str
    """"forward": the outputs; "backward": the gradients. The worst tensor, relative to its bound, is reported."""
    error: float
    bound: float
    ok: bool


class Case(NamedTuple):
    """An operator as a function of activations, which take the dtype under test, and parameters, which stay float32."""

    op: str
    run: Callable[..., Tensor | tuple[Tensor, ...]]
    activations: tuple[Tensor, ...]
    parameters: tuple[Tensor, ...]


def relative_error(value: Tensor, truth: Tensor) -> float:
    """Relative L2 distance, in float64; NaN where one of the two is not finite."""
    truth = truth.cpu().double()
    distance = (value.cpu().double() - truth).norm() / truth.norm().clamp_min(torch.finfo(torch.float64).tiny)
    return distance.item()


def cases(*, batch: int = 2, length: int = 37, channels: int = 40, states: int = 16) -> list[Case]:
    """Small problems for every operator, with all options on, from a fixed seed."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    tokens, projected = (batch, length, channels), (batch, length, states)
    A = -torch.arange(1.0, states + 1).repeat(channels, 1) * (1 + 0.1 * normal(channels, 1))

    def direction() -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        activations = (normal(*tokens), normal(*tokens) - 3, normal(*projected), normal(*projected))
        return activations, (A.clone(), normal(channels), 0.5 * normal(channels))

    (one, one_parameters), (two, two_parameters), z = direction(), direction(), normal(*tokens)

    def scan(reverse: bool) -> Callable[..., Tensor]:
        def run(x, dt, B, C, z, A, D, bias):
            return selective_scan(x, dt, A, B, C, D=D, z=z, bias=bias, reverse=reverse)

        return run

    def pair(x, dt, B, C, x_b, dt_b, B_b, C_b, z, A, D, bias, A_b, D_b, bias_b):
        return bidirectional_scan((x, dt, A, B, C, D, bias), (x_b, dt_b, A_b, B_b, C_b, D_b, bias_b), z)

    def conv(reverse: bool) -> Callable[..., Tensor]:
        return lambda x, w, b: causal_conv1d(x, w, b, reverse=reverse)

    def norm(kind: Literal["rms", "layer"]) -> Callable[..., Tensor]:
        return lambda x, residual, weight, bias: add_norm(x, residual, weight, bias, kind=kind)[0]

    vector, taps, stream = (normal(channels), normal(channels)), normal(channels, 4), (normal(*tokens), normal(*tokens))
    return [
        Case("selective_scan", scan(False), (*one, z), one_parameters),
        Case("selective_scan reverse", scan(True), (*one, z), one_parameters),
        Case("bidirectional_scan", pair, (*one, *two, z), (*one_parameters, *two_parameters)),
        Case("causal_conv1d", conv(False), (z,), (taps, vector[0])),
        Case("causal_conv1d reverse", conv(True), (z,), (taps, vector[0])),
        Case("add_norm rms", norm("rms"), stream, vector),
        Case("add_norm layer", norm("layer"), stream, vector),
    ]


def compare(case: Case, dtype: torch.dtype, device: torch.device | str) -> tuple[Check, Check]:
    """Run one case in ``dtype`` on ``device`` and in float64 on the CPU, forward and backward."""
    rounded = [a.to(dtype) for a in case.activations]
    cotangent: Tensor | None = None
    results = []
    for wide in (True, False):
        leaves = [
            t.to(device="cpu" if wide else device, dtype=torch.float64 if wide else t.dtype, copy=True).requires_grad_()
            for t in (*rounded, *case.parameters)
        ]
        out = case.run(*leaves)
        assert isinstance(out, Tensor)
        if cotangent is None:
            cotangent = torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).to(dtype)
        gradients = torch.autograd.grad(out, leaves, cotangent.to(out))
        results.append((out.detach(), gradients))
    (truth, true_gradients), (out, gradients) = results
    bounds = [ACTIVATION_GRADIENT[dtype]] * len(rounded) + [PARAMETER_GRADIENT[dtype]] * len(case.parameters)
    pairs = [(relative_error(g, t), bound) for g, t, bound in zip(gradients, true_gradients, bounds, strict=True)]
    # NaN sorts nowhere: count it as the worst
    error, bound = max(pairs, key=lambda p: p[0] / p[1] if p[0] == p[0] else float("inf"))
    name = str(dtype).removeprefix("torch.")
    forward_error = relative_error(out, truth)
    return (
        Check(case.op, name, "forward", forward_error, OUTPUT[dtype], forward_error <= OUTPUT[dtype]),
        Check(case.op, name, "backward", error, bound, error <= bound),
    )


def check_kernels(device: torch.device | str = "cpu") -> list[Check]:
    """Compare every operator on ``device``, in every dtype, with the float64 reference on the CPU."""
    return [check for case in cases() for dtype in OUTPUT for check in compare(case, dtype, device)]
