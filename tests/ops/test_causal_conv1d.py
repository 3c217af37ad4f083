"""The causal convolution: its formula, its implementation against it, its laws, and the drop-in."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from scan_problems import DEVICES, relative
from torch import Tensor

from hybridmap.ops import causal_conv1d, causal_conv1d_fn, use_backend
from hybridmap.ops.causal_conv1d import cpu
from hybridmap.ops.check import ACTIVATION_GRADIENT, OUTPUT, PARAMETER_GRADIENT

BACKENDS = ["reference", "torch", "cpu"]


def problem(batch=2, length=9, channels=6, width=4, *, bias=True, dtype=torch.float64, device="cpu") -> list[Tensor | None]:
    wide = torch.promote_types(dtype, torch.float32)
    x = torch.randn(batch, length, channels).to(device, dtype).requires_grad_()
    w = torch.randn(channels, width).to(device, wide).requires_grad_()
    return [x, w, torch.randn(channels).to(device, wide).requires_grad_() if bias else None]


def outcome(tensors: list[Tensor | None], *, cotangent_dtype: torch.dtype | None = None, **flags) -> list[Tensor]:
    """Output and the gradients of a fixed projection of it."""
    out = causal_conv1d(*tensors, **flags)
    cotangent = torch.randn(out.shape, generator=torch.Generator().manual_seed(7)).to(cotangent_dtype or out.dtype).to(out)
    present = [t for t in tensors if t is not None]
    return [out.detach(), *torch.autograd.grad(out, present, cotangent, materialize_grads=True)]


def truth_of(tensors: list[Tensor | None], **flags) -> list[Tensor]:
    doubled = [None if t is None else t.detach().double().cpu().requires_grad_() for t in tensors]
    return outcome(doubled, cotangent_dtype=tensors[0].dtype, **flags)


@pytest.mark.parametrize("silu", [True, False])
@pytest.mark.parametrize("reverse", [True, False])
@pytest.mark.parametrize("bias", [True, False])
def test_reference_agrees_with_finite_differences(silu: bool, reverse: bool, bias: bool) -> None:
    tensors = problem(1, 4, 2, 3, bias=bias)
    assert torch.autograd.gradcheck(lambda *t: causal_conv1d(*t, silu=silu, reverse=reverse), tensors)


@pytest.mark.parametrize("backend", BACKENDS)
def test_it_equals_a_padded_depthwise_convolution(backend: str) -> None:
    x, w, b = problem(dtype=torch.float32)
    expected = F.silu(F.conv1d(x.mT, w[:, None], b, padding=3, groups=6)[..., :9]).mT
    with use_backend(backend):
        torch.testing.assert_close(causal_conv1d(x, w, b), expected)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("reverse", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_it_meets_the_float64_reference(dtype: torch.dtype, reverse: bool, device: str) -> None:
    tensors = problem(3, 33, 20, dtype=dtype, device=device)
    out, dx, dw, db = outcome(tensors, reverse=reverse)
    truth, true_dx, true_dw, true_db = truth_of(tensors, reverse=reverse)
    assert out.dtype == dx.dtype == dtype
    assert relative(out, truth) <= OUTPUT[dtype]
    assert relative(dx, true_dx) <= ACTIVATION_GRADIENT[dtype]
    assert relative(dw, true_dw) <= PARAMETER_GRADIENT[dtype]
    assert relative(db, true_db) <= PARAMETER_GRADIENT[dtype]


@given(
    batch=st.integers(0, 3),
    length=st.integers(0, 12),
    channels=st.integers(1, 7),
    width=st.integers(1, 8),
    bias=st.booleans(),
    silu=st.booleans(),
    reverse=st.booleans(),
    cached=st.sampled_from([1, 1 << 18]),
)
@settings(max_examples=40, deadline=None, derandomize=True)
def test_any_shape_and_option_is_convolved_right(batch, length, channels, width, bias, silu, reverse, cached) -> None:
    tensors = problem(batch, length, channels, width, bias=bias, dtype=torch.float32)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cpu, "_CACHED", cached)
        values = outcome(tensors, silu=silu, reverse=reverse)
    for value, truth in zip(values, truth_of(tensors, silu=silu, reverse=reverse), strict=True):
        torch.testing.assert_close(value.double(), truth, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("backend", BACKENDS)
def test_reverse_is_flip_convolve_flip(backend: str) -> None:
    x, w, b = problem(dtype=torch.float32)
    with use_backend(backend):
        torch.testing.assert_close(causal_conv1d(x, w, b, reverse=True), causal_conv1d(x.flip(1), w, b).flip(1))


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_nan_reaches_the_next_tokens_of_its_channel_and_nothing_else(backend: str) -> None:
    x, w, b = (t.detach() for t in problem(2, 12, 5, dtype=torch.float32))
    x[1, 4, 3] = torch.nan
    expected = torch.zeros(x.shape, dtype=torch.bool)
    expected[1, 4:8, 3] = True
    with use_backend(backend):
        assert torch.equal(causal_conv1d(x, w, b).isnan(), expected)


def test_halves_of_a_larger_tensor_are_welcome() -> None:
    _, w, b = problem(dtype=torch.float32)
    both = torch.randn(2, 9, 12)
    assert torch.equal(causal_conv1d(both[..., 6:], w, b), causal_conv1d(both[..., 6:].contiguous(), w, b))


def test_nothing_is_written_to_inputs_or_read_from_fresh_memory() -> None:
    tensors = problem(3, 11, 5, dtype=torch.float32)
    before = [t.detach().clone() for t in tensors]
    expected = outcome(tensors)
    torch.use_deterministic_algorithms(True)  # also fills every fresh tensor with NaN
    for value, other in zip([*outcome(tensors), *tensors], [*expected, *before], strict=True):
        assert torch.equal(value, other)


@pytest.mark.parametrize("activation", [None, "silu", "swish"])
def test_the_drop_in_is_channels_first(activation: str | None) -> None:
    x, w, b = problem(dtype=torch.float32)
    out = causal_conv1d_fn(x.mT, w, b, activation)
    assert out.is_contiguous()
    assert torch.equal(out, causal_conv1d(x, w, b, silu=activation is not None).mT)
