"""Inputs for the tests of the selective scan, and the ways to run it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from hybridmap.ops import selective_scan, use_backend

DEVICES = [
    "cpu",
    pytest.param(
        "cuda", marks=[pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")]
    ),
]
OPTIONAL = ("D", "z", "bias", "h0")


def problem(
    batch: int = 2,
    length: int = 19,
    channels: int = 12,
    states: int = 4,
    *,
    dtype: torch.dtype = torch.float64,
    without: tuple[str, ...] = (),
    dt_offset: float = -2.0,
    dt_scale: float = 1.0,
    device: str = "cpu",
) -> dict[str, Tensor]:
    """Every tensor argument of ``selective_scan`` by name, but those in ``without``; step sizes like a trained network's.

    With a dtype below float64, x, dt, B, C and z have it and the rest is float32.
    """
    wide = torch.promote_types(dtype, torch.float32)
    tokens, projected = (batch, length, channels), (batch, length, states)
    values = {
        "x": torch.randn(tokens),
        "dt": torch.randn(tokens) * dt_scale + dt_offset,
        "A": -torch.arange(1.0, states + 1).repeat(channels, 1) * (1 + 0.1 * torch.rand(channels, states)),
        "B": torch.randn(projected),
        "C": torch.randn(projected),
        "D": torch.randn(channels),
        "z": torch.randn(tokens),
        "bias": 0.5 * torch.randn(channels),
        "h0": torch.randn(batch, channels, states),
    }
    narrow = ("x", "dt", "B", "C", "z")
    return {
        name: value.to(device=device, dtype=dtype if name in narrow else wide).requires_grad_()
        for name, value in values.items()
        if name not in without
    }


def in_float64(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same numbers as float64 leaves on the CPU."""
    return {name: t.detach().double().cpu().requires_grad_() for name, t in tensors.items()}


def run_with_gradients(
    tensors: dict[str, Tensor],
    *,
    scan: Callable[..., tuple[Tensor, Tensor]] | None = None,
    backend: str | None = None,
    cotangent_dtype: torch.dtype | None = None,
    **flags,
) -> dict[str, Tensor]:
    """Output, last state and the gradients of fixed random projections of both, by name."""
    with use_backend(backend):
        run = scan or (lambda **arguments: selective_scan(**arguments, return_last_state=True))
        out, last = run(**tensors, **flags)
        generator = torch.Generator().manual_seed(7)
        cotangent = torch.randn(out.shape, generator=generator).to(cotangent_dtype or out.dtype).to(out)
        ends = [(out, cotangent), (last, torch.randn(last.shape, generator=generator).to(last))]
        ends = [(end, g) for end, g in ends if end.requires_grad]  # a state that no token touched is a constant
        gradients = torch.autograd.grad(
            [end for end, _ in ends], list(tensors.values()), [g for _, g in ends], materialize_grads=True
        )
    return {"out": out.detach(), "last_state": last.detach()} | {
        f"d{name}": g for name, g in zip(tensors, gradients, strict=True)
    }


def truth_of(tensors: dict[str, Tensor], **flags) -> dict[str, Tensor]:
    """What ``run_with_gradients`` should return: the same numbers through the float64 reference."""
    return run_with_gradients(in_float64(tensors), cotangent_dtype=tensors["x"].dtype, **flags)


def relative(value: Tensor, truth: Tensor) -> float:
    """Relative L2 distance; 0 for two empty tensors and for two zeros."""
    truth, value = truth.cpu().double(), value.cpu().double()
    distance = (value - truth).norm()
    return 0.0 if distance == 0 else (distance / truth.norm()).item()
