"""The Triton kernels: every option and every gradient against the float64 reference.

Where there is a CUDA device, they run on it. Elsewhere Triton's interpreter runs them on the CPU, a second for a small call,
so shapes are tiny here; what a compiler makes of them is looked at in the last test.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from scan_problems import problem, relative, run_with_gradients, truth_of
from test_add_norm import outcome as norm_outcome
from test_add_norm import problem as norm_problem
from test_causal_conv1d import outcome as conv_outcome
from test_causal_conv1d import problem as conv_problem
from test_causal_conv1d import truth_of as conv_truth
from test_selective_scan import NARROW, inside_a_larger_tensor, two_directions

from hybridmap.backbones import HybridNet
from hybridmap.ops import active, bidirectional_scan, causal_conv1d, selective_scan, use_backend
from hybridmap.ops.check import ACTIVATION_GRADIENT, OUTPUT, PARAMETER_GRADIENT
from hybridmap.ops.selective_scan import cpu
from hybridmap.ops.selective_scan.reference import Direction

pytest.importorskip("triton", reason="triton is not installed")

CUDA = torch.cuda.is_available()
DEVICE = "cuda" if CUDA else "cpu"
pytestmark = [pytest.mark.gpu] if CUDA else []
on_cuda_only = pytest.mark.skipif(not CUDA, reason="no CUDA device here")

TRUNCATED = 1 if CUDA else 2
"""The interpreter truncates where it should round to bfloat16, which doubles the error."""


@pytest.fixture(autouse=True)
def _kernels() -> Iterator[None]:
    """Every operator takes its Triton kernel."""
    with use_backend("gpu"):
        yield


def bound(name: str, dtype: torch.dtype) -> float:
    if name == "last_state":
        return OUTPUT[torch.float32]
    bounds = OUTPUT if name == "out" else ACTIVATION_GRADIENT if name in NARROW else PARAMETER_GRADIENT
    rounded = dtype == torch.bfloat16 and (name == "out" or name in NARROW)
    return bounds[dtype] * (TRUNCATED if rounded else 1)


@pytest.mark.parametrize(
    ("batch", "length", "channels", "states", "dtype", "without", "flags", "strided"),
    [
        (2, 0, 4, 3, torch.float32, (), {}, False),
        (2, 1, 5, 1, torch.float32, ("D", "z", "bias", "h0"), {"softplus": False}, False),
        (1, 7, 33, 3, torch.float16, ("h0",), {"reverse": True}, False),
        (2, 8, 8, 16, torch.float32, ("z",), {"out_scale": 0.5}, True),
        (1, 9, 16, 5, torch.bfloat16, ("D",), {"out_scale": 0.5}, True),
        (1, 19, 7, 6, torch.float32, (), {"reverse": True, "out_scale": 2.0}, True),
        (1, 2, 17, 33, torch.float32, ("bias",), {}, False),
        (2, 6, 64, 16, torch.float32, (), {"reverse": True}, False),  # whole blocks of channels and states: no masks
    ],
    ids=lambda value: str(value).removeprefix("torch."),
)
def test_the_scan_meets_the_float64_reference(batch, length, channels, states, dtype, without, flags, strided) -> None:
    tensors = problem(batch, length, channels, states, dtype=dtype, without=without, device=DEVICE)
    if not flags.get("softplus", True):
        tensors["dt"] = tensors["dt"].detach().abs().requires_grad_()
    if strided:
        tensors = {name: inside_a_larger_tensor(value) for name, value in tensors.items()}
    values, truth = run_with_gradients(tensors, backend="gpu", **flags), truth_of(tensors, **flags)
    assert values["out"].dtype == values["dB"].dtype == dtype
    assert values["last_state"].dtype == values["dA"].dtype == torch.float32
    for name, value in values.items():
        assert relative(value, truth[name]) <= bound(name, dtype), (name, relative(value, truth[name]))


def test_extreme_step_sizes_meet_the_reference() -> None:
    tensors = problem(1, 9, 4, 2, dtype=torch.float32, dt_scale=8.0, device=DEVICE)
    with torch.no_grad():
        tensors["dt"][0, :4, 0] = torch.tensor([-1e4, -80.0, 80.0, 1e4])
    values, truth = run_with_gradients(tensors, backend="gpu"), truth_of(tensors)
    for name, value in values.items():
        assert value.isfinite().all()
        assert relative(value, truth[name]) <= bound(name, torch.float32), name


@pytest.mark.parametrize("gated", [True, False])
def test_both_directions_in_one_launch_equal_two_scans(gated: bool) -> None:
    fwd, bwd, z = two_directions(batch=1, length=9, channels=5, states=3)
    leaves = [t.detach().to(DEVICE).requires_grad_() for t in (*fwd, *bwd, z)]
    fwd, bwd, gate = leaves[:7], leaves[7:14], leaves[14] if gated else None
    leaves = leaves if gated else leaves[:14]
    out = bidirectional_scan(fwd, bwd, gate)
    separate = torch.zeros_like(out)
    for (x, dt, A, B, C, D, bias), reverse in ((fwd, False), (bwd, True)):
        separate = separate + selective_scan(x, dt, A, B, C, D=D, z=gate, bias=bias, reverse=reverse, out_scale=0.5)
    assert relative(out, separate) <= 1e-6
    cotangent = torch.randn_like(out)
    for g, e in zip(*(torch.autograd.grad(o, leaves, cotangent) for o in (out, separate)), strict=True):
        assert relative(g, e) <= 2e-6


def test_a_nan_poisons_the_later_tokens_of_its_channel_and_nothing_else() -> None:
    for reverse in (False, True):
        tensors = {k: v.detach() for k, v in problem(2, 11, 5, 3, dtype=torch.float32, device=DEVICE).items()}
        tensors["x"][1, 4, 2] = torch.nan
        expected = torch.zeros_like(tensors["x"], dtype=torch.bool)
        expected[1, slice(None, 5) if reverse else slice(4, None), 2] = True
        assert torch.equal(selective_scan(**tensors, reverse=reverse).isnan(), expected)


def test_two_runs_give_the_same_bits_whatever_fresh_memory_holds() -> None:
    tensors = problem(1, 5, 35, 3, dtype=torch.float32, device=DEVICE)
    once = run_with_gradients(tensors, backend="gpu")
    torch.use_deterministic_algorithms(True)  # also fills every fresh tensor with NaN
    for name, value in run_with_gradients(tensors, backend="gpu").items():
        assert torch.equal(value, once[name]), name


def test_nothing_is_kept_and_what_others_kept_changes_nothing() -> None:
    """Either may run the backward pass of the other's forward pass."""
    from hybridmap.ops.selective_scan import gpu

    t = {name: v.detach() for name, v in problem(1, 9, 5, 3, dtype=torch.float32, device=DEVICE).items()}
    d = Direction(*(t[name] for name in Direction._fields))
    arguments = ([d, d], [False, True], t["z"], None)
    flags = {"softplus": True, "scale": 0.5}
    nothing, kept = (p.forward(*arguments, **flags, keep=True)[2] for p in (gpu, cpu))
    assert nothing.numel() == 0 < kept.numel()
    with_kept, without = (gpu.backward(t["x"], None, k, *arguments, **flags) for k in (kept, None))
    plain = cpu.backward(t["x"], None, None, *arguments, **flags)
    for a, b, c in zip(with_kept[0][1], without[0][1], plain[0][1], strict=True):
        assert torch.equal(a, b)
        assert relative(a, c) <= 1e-5


@pytest.mark.parametrize(("batch", "length"), [(0, 5), (2, 0)])
def test_nothing_to_do_gives_empty_outputs_and_zero_gradients(batch: int, length: int) -> None:
    x, w, b = conv_problem(batch, length, 4, 3, dtype=torch.float32, device=DEVICE)
    out = causal_conv1d(x, w, b)
    assert out.shape == x.shape
    assert not any(g.any() for g in torch.autograd.grad(out.sum(), (x, w, b)))
    tensors = problem(batch, length, 4, 3, dtype=torch.float32, device=DEVICE)
    values = run_with_gradients(tensors, backend="gpu")
    assert torch.equal(values["last_state"], tensors["h0"])
    assert not any(values[f"d{name}"].any() for name in tensors if name != "h0")


@pytest.mark.parametrize(
    ("length", "channels", "width", "dtype", "bias", "silu", "reverse"),
    [
        (1, 3, 4, torch.float32, True, True, False),
        (19, 5, 1, torch.float32, False, False, True),
        (17, 300, 4, torch.float32, True, True, True),
        (18, 6, 8, torch.float16, True, True, False),
        (9, 6, 2, torch.bfloat16, False, True, False),
    ],
    ids=lambda value: str(value).removeprefix("torch."),
)
def test_the_convolution_meets_the_float64_reference(length, channels, width, dtype, bias, silu, reverse) -> None:
    tensors = conv_problem(2, length, channels, width, bias=bias, dtype=dtype, device=DEVICE)
    tensors[0] = inside_a_larger_tensor(tensors[0])
    flags = {"silu": silu, "reverse": reverse}
    values, truth = conv_outcome(tensors, **flags), conv_truth(tensors, **flags)
    assert values[0].dtype == values[1].dtype == dtype
    names = ("out", "dx", "dw", "db")[: len(values)]
    for name, value, t in zip(names, values, truth, strict=True):
        assert relative(value, t) <= bound(name, dtype), name


@pytest.mark.parametrize("reverse", [False, True])
def test_a_nan_reaches_the_next_tokens_of_its_channel_in_the_convolution(reverse: bool) -> None:
    x, w, b = (t.detach() for t in conv_problem(2, 20, 5, dtype=torch.float32, device=DEVICE))
    x[1, 14, 3] = torch.nan
    expected = torch.zeros_like(x, dtype=torch.bool)
    expected[1, slice(11, 15) if reverse else slice(14, 18), 3] = True
    assert torch.equal(causal_conv1d(x, w, b, reverse=reverse).isnan(), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("kind", ["rms", "layer"])
@pytest.mark.parametrize(("residual", "bias", "in_fp32"), [(True, True, True), (True, False, False), (False, False, True)])
def test_the_norm_meets_the_float64_reference(kind, dtype, residual, bias, in_fp32) -> None:
    tensors = norm_problem(residual=residual, bias=bias, dtype=dtype, device=DEVICE)
    tensors[0] = inside_a_larger_tensor(tensors[0])
    options = {"kind": kind, "residual_in_fp32": in_fp32}
    normed, summed, *gradients = norm_outcome(tensors, dtype, **options)
    doubled = [None if t is None else t.detach().double().cpu().requires_grad_() for t in tensors]
    truth = norm_outcome(doubled, dtype, **options)
    assert normed.dtype == dtype
    assert relative(normed, truth[0]) <= bound("out", dtype)
    assert relative(summed, truth[1]) <= OUTPUT[torch.float32]
    for leaf, g, t in zip([t for t in tensors if t is not None], gradients, truth[2:], strict=True):
        assert g.dtype == leaf.dtype
        assert relative(g, t) <= bound("dx" if leaf.dtype == dtype else "dw", dtype)


@on_cuda_only
def test_a_hybrid_network_learns_under_autocast() -> None:
    config = HybridNet.Config(img_size=32, embed_dim=48, layout="MMMT", num_heads=4, num_classes=5, d_state=4, num_registers=2)
    net = config.build().to(DEVICE)
    optimiser = torch.optim.AdamW(net.parameters(), lr=1e-3)
    images, labels = torch.randn(8, 3, 32, 32, device=DEVICE), torch.arange(8, device=DEVICE) % 5
    losses = []
    for _ in range(20):
        with torch.autocast(DEVICE, torch.bfloat16):
            loss = torch.nn.functional.cross_entropy(net(images).float(), labels)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert active("selective_scan", DEVICE) == "triton"
    assert losses[-1] < 0.8 * losses[0]


@pytest.mark.slow
def test_every_kernel_compiles_for_a_gpu_without_one(unchecked_environment: dict[str, str]) -> None:
    """The interpreter accepts more than the compiler, which needs no device to say so."""
    environment = {name: value for name, value in unchecked_environment.items() if name != "TRITON_INTERPRET"}
    script = Path(__file__).with_name("compiled_kernels.py")
    result = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, env=environment)
    assert result.returncode == 0, result.stdout + result.stderr
    assert set(result.stdout.split()) == {
        *("selective_scan_fwd_kernel", "selective_scan_bwd_kernel", "causal_conv1d_fwd_kernel", "causal_conv1d_bwd_kernel"),
        *("add_norm_fwd_kernel", "add_norm_bwd_kernel"),
    }


def test_the_interpreter_is_on_exactly_where_there_is_no_device() -> None:
    assert (os.environ.get("TRITON_INTERPRET") == "1") != CUDA
