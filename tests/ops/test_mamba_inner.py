"""The inside of a Mamba mixer: the lean backward pass against the composition, on every backend."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scan_problems import DEVICES, relative
from torch import Tensor

from hybridmap.errors import UserError
from hybridmap.ops import Parameters, mamba_inner, use_backend
from hybridmap.ops.check import ACTIVATION_GRADIENT, OUTPUT, PARAMETER_GRADIENT

FIELDS = Parameters._fields


def problem(
    batch: int = 2,
    length: int = 21,
    channels: int = 20,
    states: int = 5,
    rank: int = 3,
    width: int = 4,
    *,
    directions: int = 2,
    dtype: torch.dtype = torch.float32,
    bias: bool = True,
    device: str = "cpu",
) -> list[Tensor | None]:
    """xz and the parameters of each direction, flat; xz is a slice of a larger tensor's channels, matrices have its dtype."""

    def parameters() -> list[Tensor | None]:
        return [
            torch.randn(channels, width) / width**0.5,
            torch.randn(channels) * 0.3 if bias else None,
            (torch.randn(rank + 2 * states, channels) / channels**0.5).to(dtype),
            (torch.randn(channels, rank) / rank**0.5).to(dtype),
            -torch.arange(1.0, states + 1).repeat(channels, 1) * (1 + 0.1 * torch.rand(channels, states)),
            torch.randn(channels),
            torch.randn(channels) * 0.5 - 2,
        ]

    flat = [torch.randn(batch, length, 2 * channels).to(dtype)]
    for _ in range(directions):
        flat += parameters()
    return [None if t is None else t.to(device).requires_grad_() for t in flat]


def run(tensors: list[Tensor | None], backend: str | None, scale: float = 0.5) -> dict[str, Tensor]:
    """Output and gradients by name."""
    xz, *rest = tensors
    names = ["xz", *(f"{name}{i}" for i in range(len(rest) // len(FIELDS)) for name in FIELDS)]
    with use_backend(backend):
        size = len(FIELDS)
        directions = [Parameters(*rest[i : i + size]) for i in range(0, len(rest), size)]
        out = mamba_inner(xz, *directions, scale=scale)
        cotangent = torch.randn(out.shape, generator=torch.Generator().manual_seed(3)).to(out)
        given = {name: t for name, t in zip(names, tensors, strict=True) if t is not None}
        gradients = torch.autograd.grad(out, list(given.values()), cotangent, materialize_grads=True)
    return {"out": out.detach()} | dict(zip(given, gradients, strict=True))


def in_float64(tensors: list[Tensor | None]) -> list[Tensor | None]:
    return [None if t is None else t.detach().cpu().double().requires_grad_() for t in tensors]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("directions", [1, 2])
@pytest.mark.parametrize("backend", ["reference", "torch", "cpu"])
def test_every_backend_meets_the_float64_reference(backend: str, directions: int, device: str) -> None:
    tensors = problem(3, 37, 24, 16, 4, directions=directions, device=device)
    values = run(tensors, None if device != "cpu" and backend == "cpu" else backend)
    for name, truth in run(in_float64(tensors), None).items():
        bound = OUTPUT[torch.float32] if name == "out" else ACTIVATION_GRADIENT[torch.float32]
        assert relative(values[name], truth) <= bound, name


@pytest.mark.parametrize("backend", ["torch", "cpu"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_is_as_right_as_the_composition(dtype: torch.dtype, backend: str) -> None:
    tensors = problem(3, 37, 24, 16, 4, dtype=dtype)
    truth, composed, lean = run(in_float64(tensors), None), run(tensors, "reference"), run(tensors, backend)
    for name in truth:
        # products are rounded between the parts: the composition's own error is the measure
        assert relative(lean[name], truth[name]) <= 1.5 * relative(composed[name], truth[name]) + PARAMETER_GRADIENT[dtype], (
            name
        )


@settings(max_examples=25, deadline=None)
@given(
    batch=st.integers(0, 3),
    length=st.integers(0, 35),
    channels=st.integers(1, 20),
    states=st.integers(1, 6),
    rank=st.integers(1, 4),
    width=st.integers(1, 5),
    directions=st.integers(1, 2),
    bias=st.booleans(),
    backend=st.sampled_from(["torch", "cpu"]),
    seed=st.integers(0, 2**31 - 1),
)
def test_any_shape_and_option_is_computed_right(backend: str, seed: int, **shape) -> None:
    torch.manual_seed(seed)
    tensors = problem(**shape)
    truth, composed = run(in_float64(tensors), None), run(tensors, "reference")
    for name, value in run(tensors, backend).items():
        assert value.shape == truth[name].shape
        # a gradient of one number may be a sum whose parts cancel: how far float32 gets there, the composition tells
        cancelled = 10 * relative(composed[name], truth[name])
        assert relative(value, truth[name]) <= 2 * ACTIVATION_GRADIENT[torch.float32] + cancelled, name


def test_the_triton_kernels_write_into_the_halves_and_add() -> None:
    """Interpreted where there is no GPU, hence tiny."""
    tensors = problem(1, 5, 3, 2, 2)
    values = run(tensors, "gpu")
    for name, truth in run(in_float64(tensors), None).items():
        assert relative(values[name], truth) <= ACTIVATION_GRADIENT[torch.float32], name


def test_less_is_kept_for_the_backward_pass_than_by_the_composition() -> None:
    def kept(backend: str) -> int:
        sizes: dict[int, int] = {}

        def pack(t: Tensor) -> Tensor:
            sizes[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
            return t

        xz, *rest = problem(2, 64, 256, 16, 4)
        with use_backend(backend), torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            mamba_inner(xz, Parameters(*rest[:7]), Parameters(*rest[7:]))
        return sum(sizes.values())

    token = 2 * 64 * 256 * 4  # bytes of one (batch, L, E) tensor
    assert kept("cpu") < 5.5 * token  # 2 for xz, 1 for the states of each direction, and what is narrow
    assert kept("reference") > 3 * kept("cpu")


def test_results_do_not_depend_on_how_xz_lies_in_memory() -> None:
    xz, *rest = problem()
    wide = torch.zeros(2, 21, 100)
    wide[..., 7:47] = xz.detach()
    expected = run([xz, *rest], "cpu")
    for name, value in run([wide[..., 7:47].requires_grad_(), *rest], "cpu").items():
        assert torch.equal(value, expected[name]), name


def test_two_runs_are_equal_to_the_bit() -> None:
    tensors = problem(3, 50, 40, 16)
    first, second = run(tensors, "cpu"), run(tensors, "cpu")
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_wrong_shapes_are_named() -> None:
    xz, *rest = problem()
    fwd = Parameters(*rest[:7])
    with pytest.raises(UserError, match=r"expects xz of shape \(2, 21, 40\), but \(2, 21, 39\)"):
        mamba_inner(xz[..., :-1], fwd)
    with pytest.raises(UserError, match=r"expects x_proj of shape \(13, 20\), but \(12, 20\)"):
        mamba_inner(xz, fwd._replace(x_proj=fwd.x_proj[:-1]))
