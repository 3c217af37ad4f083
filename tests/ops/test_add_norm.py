"""Residual addition and normalisation: formula, implementation, and which dtype lives where."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F
from scan_problems import DEVICES, relative
from torch import Tensor

from hybridmap.ops import add_norm, use_backend
from hybridmap.ops.check import ACTIVATION_GRADIENT, OUTPUT, PARAMETER_GRADIENT

KINDS = ["rms", "layer"]
BACKENDS = ["reference", "torch"]


def problem(*, residual=True, bias=True, dtype=torch.float64, stream=None, device="cpu", width=24) -> list[Tensor | None]:
    wide = torch.promote_types(dtype, torch.float32)
    tensors = [
        torch.randn(3, 7, width).to(device, dtype),
        torch.randn(3, 7, width).to(device, stream or wide) if residual else None,
        torch.randn(width).to(device, wide),
        torch.randn(width).to(device, wide) if bias else None,
    ]
    return [None if t is None else t.requires_grad_() for t in tensors]


def outcome(tensors: list[Tensor | None], dtype: torch.dtype, **options) -> list[Tensor]:
    """Both outputs and the gradients of fixed projections of both, rounded to ``dtype``."""
    outputs = add_norm(*tensors, **options)
    generator = torch.Generator().manual_seed(7)
    cotangents = [torch.randn(o.shape, generator=generator).to(dtype).to(o) for o in outputs]
    return [*(o.detach() for o in outputs), *torch.autograd.grad(outputs, [t for t in tensors if t is not None], cotangents)]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("residual", [True, False])
@pytest.mark.parametrize("bias", [True, False])
def test_reference_agrees_with_finite_differences(kind: str, residual: bool, bias: bool) -> None:
    tensors = [None if t is None else t[..., :4].detach()[:1].requires_grad_() for t in problem(residual=residual, bias=bias)]
    tensors[2:] = [None if t is None else t.detach()[:4].requires_grad_() for t in problem(bias=bias)[2:]]
    assert torch.autograd.gradcheck(lambda *t: add_norm(*t, kind=kind), tensors)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_every_backend_meets_the_float64_reference(backend: str, kind: str, dtype: torch.dtype, device: str) -> None:
    for residual, bias, width in itertools.product((True, False), (True, False), (1, 24, 37)):
        tensors = problem(residual=residual, bias=bias, dtype=dtype, device=device, width=width)
        if kind == "layer" and width == 1:
            continue  # a single number has no deviation
        with use_backend(backend):
            values = outcome(tensors, dtype, kind=kind)
        truth = outcome([None if t is None else t.detach().double().cpu().requires_grad_() for t in tensors], dtype, kind=kind)
        normed, summed, *gradients = values
        assert normed.dtype == dtype
        assert summed.dtype == torch.float32
        assert relative(normed, truth[0]) <= OUTPUT[dtype]
        assert relative(summed, truth[1]) <= OUTPUT[torch.float32]
        for leaf, g, t in zip([t for t in tensors if t is not None], gradients, truth[2:], strict=True):
            assert g.dtype == leaf.dtype
            assert relative(g, t) <= (ACTIVATION_GRADIENT if leaf.dtype == dtype else PARAMETER_GRADIENT)[dtype]


@pytest.mark.parametrize("backend", BACKENDS)
def test_it_equals_the_norms_of_torch(backend: str) -> None:
    x, residual, weight, bias = problem(dtype=torch.float32)
    with use_backend(backend):
        rms, summed = add_norm(x, residual, weight, eps=1e-5, kind="rms")
        layer, _ = add_norm(x, residual, weight, bias, eps=1e-6, kind="layer")
    assert torch.equal(summed, x + residual)
    torch.testing.assert_close(rms, F.rms_norm(x + residual, (24,), weight, 1e-5))
    torch.testing.assert_close(layer, F.layer_norm(x + residual, (24,), weight, bias, 1e-6))


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_stream_stays_wide_unless_told_otherwise(backend: str) -> None:
    x, residual, weight, _ = problem(dtype=torch.bfloat16, stream=torch.bfloat16)
    with use_backend(backend):
        wide = add_norm(x, residual, weight)
        narrow = add_norm(x, residual, weight, residual_in_fp32=False)
    assert wide[1].dtype == torch.float32
    assert torch.equal(wide[1], x.float() + residual.float())
    assert narrow[1].dtype == torch.bfloat16
    assert torch.equal(wide[0], narrow[0])  # the norm sees the unrounded sum either way


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("used", [0, 1])
def test_either_output_may_go_unused(kind: str, used: int) -> None:
    tensors = problem(dtype=torch.float32)
    with use_backend("reference"):
        expected = torch.autograd.grad(add_norm(*tensors, kind=kind)[used].square().sum(), tensors, materialize_grads=True)
    with use_backend("torch"):
        values = torch.autograd.grad(add_norm(*tensors, kind=kind)[used].square().sum(), tensors, materialize_grads=True)
    for value, truth in zip(values, expected, strict=True):
        torch.testing.assert_close(value, truth, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_inputs_are_not_written_to_and_no_output_is_an_input(kind: str) -> None:
    tensors = problem(dtype=torch.float32, residual=False)
    before = [None if t is None else t.detach().clone() for t in tensors]
    normed, summed = add_norm(*tensors, kind=kind)
    assert summed.data_ptr() != tensors[0].data_ptr()
    cotangents = torch.randn_like(normed), torch.randn_like(summed)
    kept = [c.clone() for c in cotangents]
    torch.autograd.grad((normed, summed), [t for t in tensors if t is not None], cotangents)
    for t, b in zip([*tensors, *cotangents], [*before, *kept], strict=True):
        assert t is b or torch.equal(t, b)


def test_an_empty_batch_passes_through() -> None:
    normed, summed = add_norm(torch.zeros(0, 5, 8), None, torch.ones(8))
    assert normed.shape == summed.shape == (0, 5, 8)


def test_a_narrow_stream_is_added_to_in_float32() -> None:
    """float16 inputs on a bfloat16 stream, kept in its dtype."""
    tensors = problem(dtype=torch.float16, stream=torch.bfloat16, width=37)
    with use_backend("cpu"):
        values = outcome(tensors, torch.bfloat16, residual_in_fp32=False)
    with use_backend("reference"):
        truth = outcome(tensors, torch.bfloat16, residual_in_fp32=False)
    for value, expected in zip(values, truth, strict=True):
        assert value.dtype == expected.dtype
        assert relative(value, expected) <= 5e-3


def test_a_row_with_nan_stays_alone() -> None:
    x = torch.randn(4, 37)
    x[2, 5] = torch.nan
    with use_backend("cpu"):
        normed, _ = add_norm(x, None, torch.ones(37), kind="layer")
    assert normed.isnan().all(1).tolist() == [False, False, True, False]
