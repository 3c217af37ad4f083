"""Choosing an implementation: the choice is said, a demand is obeyed or refused with a reason."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from hybridmap.errors import UserError
from hybridmap.ops import active, backend, check_kernels, native, selective_scan, show_config, use_backend
from hybridmap.ops.selective_scan import cpu


def scan(dtype: torch.dtype = torch.float32) -> torch.Tensor:
    x = torch.ones(1, 3, 2, dtype=dtype)
    return selective_scan(x, x, -torch.ones(2, 1), x[..., :1], x[..., :1])


@pytest.fixture
def without_a_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(demand: str | None = None) -> native.Library:
        raise native.Absent("no C++ compiler was found")

    monkeypatch.setattr(native, "library", absent)


def test_every_operator_says_what_runs_and_why(without_a_kernel: None) -> None:
    for op, kernels in show_config().items():
        reason = "the compiled kernel does not have this operator" if op == "add_norm" else "no C++ compiler was found"
        assert kernels["cpu"] == f"torch: plain PyTorch, since {reason}"
    with use_backend("torch"):
        assert all("demanded by use_backend" in kernels["cpu"] for kernels in show_config().values())
    with use_backend("reference"):
        assert all(kernels["cpu"].startswith("reference: demanded") for kernels in show_config().values())


def test_a_demanded_backend_runs_and_the_choice_returns_afterwards(
    monkeypatch: pytest.MonkeyPatch, without_a_kernel: None
) -> None:
    calls: list[int] = []
    forward = cpu.forward
    monkeypatch.setattr(cpu, "forward", lambda *a, **k: calls.append(1) or forward(*a, **k))
    with use_backend("reference"):
        scan()
        with use_backend("cpu"):
            assert active("selective_scan", "cpu") == "torch"
        assert active("selective_scan", "cpu") == "reference"
        assert not calls
    scan()
    assert len(calls) == 1


def test_a_backend_can_be_set_for_good(without_a_kernel: None) -> None:
    use_backend("reference")
    assert active("causal_conv1d", "cpu") == "reference"
    use_backend(None)
    assert active("causal_conv1d", "cpu") == "torch"


def test_float64_always_takes_the_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu, "forward", None)
    assert active("selective_scan", "cpu", torch.float64) == "reference"
    with use_backend("cpu"):
        assert scan(torch.float64).dtype == torch.float64


def test_the_gpu_backend_is_refused_without_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend, "_triton", lambda: "")
    with pytest.raises(UserError, match="triton is not installed; install it with `pip install triton`"):
        use_backend("gpu")
    assert active("selective_scan", "cuda") == "torch"
    assert active("selective_scan", "cpu") != "reference"


def test_the_gpu_backend_is_refused_on_other_devices_unless_interpreted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend, "_triton", lambda: "3.6.0")
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with use_backend("gpu"):
        with pytest.raises(UserError, match='expects tensors on a CUDA device, but one is on "cpu"; try'):
            scan()
        assert active("selective_scan", "cuda") == "triton"
        assert active("selective_scan", "cuda", torch.float64) == "reference"
        monkeypatch.setenv("TRITON_INTERPRET", "1")
        kernels = show_config()
    said = "triton: kernel interpreted by triton 3.6.0, since TRITON_INTERPRET=1"
    assert [kernels[op]["cpu"] for op in backend.OPERATORS] == [said] * 4


def test_cuda_devices_take_triton_where_it_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend, "_triton", lambda: "3.6.0")
    assert {active(op, "cuda") for op in backend.OPERATORS} == {"triton"}
    assert active("selective_scan", "mps") == "torch"
    with use_backend("torch"):
        assert active("selective_scan", "cuda") == "torch"
    monkeypatch.setattr(backend, "_triton", lambda: "")
    assert backend._choose("add_norm", "cuda", torch.float32) == ("torch", "plain PyTorch, since triton is not installed")


def test_triton_is_not_needed_until_a_gpu_is(unchecked_environment: dict[str, str]) -> None:
    """Other packages may import it; this one never does before a kernel is wanted."""
    code = (
        "import hybridmap.ops as ops, sys, torch; x = torch.ones(1, 3, 2, requires_grad=True);"
        "ops.selective_scan(x, x, -torch.ones(2, 1), x[..., :1], x[..., :1]).sum().backward();"
        "print([name for name in sys.modules if name.startswith('hybridmap') and name.endswith('.gpu')])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=unchecked_environment, check=True)
    assert result.stdout.strip() == "[]"


def test_the_cpu_backend_is_refused_on_other_devices() -> None:
    with use_backend("cpu"), pytest.raises(UserError, match="expects tensors on the CPU"):
        active("selective_scan", "cuda")


@pytest.mark.parametrize(
    ("demanded", "outcome"),
    [
        ("torch", "demanded by HYBRIDMAP_CPU_KERNEL"),
        ("prebuilt", "HYBRIDMAP_CPU_KERNEL=prebuilt was demanded, but no C.. compiler was found; unset it or try"),
        ("jit", "HYBRIDMAP_CPU_KERNEL=jit was demanded, but no C.. compiler was found; unset it or try"),
        ("fortran", "expects one of prebuilt, jit, torch"),
    ],
)
def test_a_demanded_cpu_kernel_is_obeyed_or_refused(
    demanded: str, outcome: str, monkeypatch: pytest.MonkeyPatch, without_a_kernel: None
) -> None:
    monkeypatch.setattr(backend, "_demanded_cpu_kernel", demanded)
    if demanded == "torch":
        scan()
        assert outcome in show_config()["selective_scan"]["cpu"]
    else:
        with pytest.raises(UserError, match=outcome):
            scan()


def test_the_environment_variable_demands_a_cpu_kernel(unchecked_environment: dict[str, str]) -> None:
    environment = unchecked_environment | {"HYBRIDMAP_CPU_KERNEL": "torch"}
    code = "from hybridmap.ops import show_config; print(show_config()['add_norm']['cpu'])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
    assert "demanded by HYBRIDMAP_CPU_KERNEL" in result.stdout


def test_every_kernel_passes_its_check_on_this_machine() -> None:
    checks = check_kernels("cpu")
    assert {check.op.split()[0] for check in checks} == set(show_config())
    assert {check.direction for check in checks} == {"forward", "backward"}
    for check in checks:
        assert check.ok, check
        assert 0 <= check.error <= check.bound


def test_the_check_notices_a_wrong_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    forward = cpu.forward

    def slightly_wrong(*arguments, **options):
        out, last, kept = forward(*arguments, **options)
        return out * (1 + 1e-2), last, kept

    monkeypatch.setattr(cpu, "forward", slightly_wrong)
    with use_backend("torch"):
        checks = check_kernels("cpu")
    assert {check.op.split()[0] for check in checks if not check.ok} == {"selective_scan", "bidirectional_scan"}
