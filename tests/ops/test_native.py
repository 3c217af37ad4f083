"""The compiled kernel: built once, found again, never trusted when damaged, and the same bits from any number of threads."""

from __future__ import annotations

import shutil
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from scan_problems import problem, run_with_gradients
from torch import Tensor

from hybridmap.errors import UserError
from hybridmap.ops import active, backend, native, selective_scan
from hybridmap.ops.selective_scan import cpu

COMPILER = next((found for name in native.COMPILERS if (found := shutil.which(name))), None)
needs_compiler = pytest.mark.skipif(COMPILER is None, reason="no C++ compiler here")


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty cache directory, and nothing loaded before or after."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    native.search.cache_clear()
    yield tmp_path / "hybridmap"
    native.search.cache_clear()


def libraries(cache: Path) -> list[Path]:
    return sorted(cache.glob("*.so"))


@needs_compiler
def test_it_is_compiled_once_and_found_again(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "compiled into the user's cache" in native.library("jit").said
    assert len(libraries(cache)) == 1
    monkeypatch.setattr(native, "compile_library", None)  # a second time would fail
    native.search.cache_clear()
    assert "found in the user's cache" in native.library("jit").said
    assert [path.name for path in cache.iterdir()] == [path.name for path in libraries(cache)], "nothing else is left behind"


@needs_compiler
@pytest.mark.parametrize(
    "damage", [lambda b: b[: len(b) // 2], lambda b: b"", lambda b: b[:-64] + bytes(64)], ids=["half", "empty", "end"]
)
def test_a_damaged_library_is_noticed_and_built_again(cache: Path, damage) -> None:
    native.library("jit")
    (path,) = libraries(cache)
    whole = path.read_bytes()
    path.unlink()  # this process still has the old file mapped
    path.write_bytes(damage(whole))
    native.search.cache_clear()
    assert "compiled" in native.library("jit").said
    assert whole in [other.read_bytes() for other in libraries(cache)]


@needs_compiler
def test_a_cache_that_cannot_be_written_to_costs_a_build_per_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "hybridmap").write_text("a file where the folder should be")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    native.search.cache_clear()
    assert "cannot be written to" in native.library("jit").said
    native.search.cache_clear()


def test_without_a_compiler_plain_pytorch_runs_and_says_so(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr(native, "SOURCE", cache / "hybridmap.cpp")
    cache.mkdir()
    (cache / "hybridmap.cpp").write_text("a source without a library beside it")
    assert active("selective_scan", "cpu") == "torch"
    assert "no C++ compiler" in backend.show_config()["selective_scan"]["cpu"]
    x = torch.ones(1, 3, 2)
    assert selective_scan(x, x, -torch.ones(2, 1), x[..., :1], x[..., :1]).shape == x.shape


def test_a_compiler_that_fails_is_quoted(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = tmp_path / "c++"
    fake.write_text("#!/bin/sh\necho asked >> \"$0.log\"\necho 'x.cpp:1: error: this compiler is out of order' >&2\nexit 1\n")
    fake.chmod(fake.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    monkeypatch.setattr(backend, "_demanded_cpu_kernel", "jit")
    with pytest.raises(
        UserError, match=r"was demanded, but the compiler .* failed: x.cpp:1: error: this compiler is out of order"
    ):
        active("selective_scan", "cpu")
    monkeypatch.setattr(backend, "_demanded_cpu_kernel", None)
    assert [active("selective_scan", "cpu") for _ in range(3)] == ["torch"] * 3
    assert (tmp_path / "c++.log").read_text().split() == ["asked"] * 2, "once for each demand, not at every call"


def test_a_library_for_other_registers_is_refused(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ours = native.variant()
    if COMPILER is None:
        pytest.skip("no C++ compiler here")
    cache.mkdir()
    native.compile_library(COMPILER, ours, cache / "a.so")
    with pytest.raises(native.Absent, match="floats per register"):
        native._open(cache / "a.so", ours._replace(lanes=2 * ours.lanes))
    (cache / "b.so").write_text("text")
    with pytest.raises(native.Absent, match="could not be loaded"):
        native._open(cache / "b.so", ours)


@needs_compiler
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", [(1, 37, 700, 16), (5, 20, 72, 3), (40, 17, 9, 4)], ids=str)
def test_any_number_of_threads_gives_the_same_bits(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    tensors = problem(*shape, dtype=dtype)
    before = torch.get_num_threads()
    results: list[dict[str, Tensor]] = []
    try:
        for threads in (1, 2, 3, 3):
            torch.set_num_threads(threads)
            results.append(run_with_gradients(tensors, backend="cpu"))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(value, results[0][name]) for name, value in other.items())


@needs_compiler
def test_states_are_kept_as_plain_pytorch_keeps_them() -> None:
    """So either may run the backward pass of the other's forward pass."""
    from hybridmap.ops.selective_scan import native as compiled
    from hybridmap.ops.selective_scan.reference import Direction

    t = {name: value.detach() for name, value in problem(2, 37, 11, 5, dtype=torch.float32).items()}
    d = Direction(*(t[name] for name in Direction._fields))
    arguments = ([d, d], [False, True], t["z"], None)
    for performer in (cpu, compiled):
        assert performer.forward(*arguments, softplus=True, scale=0.5, keep=True)[2].shape == (3, 2, 2, 1, 5, 16)
    kept, expected = (p.forward(*arguments, softplus=True, scale=0.5, keep=True)[2] for p in (compiled, cpu))
    torch.testing.assert_close(kept, expected, rtol=1e-5, atol=1e-6)


@needs_compiler
def test_float16_and_bfloat16_are_rounded_as_torch_rounds() -> None:
    """Every half precision number survives, and what lies between two of them goes to the even one."""
    one = torch.ones(1, 1)
    for dtype in (torch.float16, torch.bfloat16):
        every = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(dtype)[None, :, None]
        same = native_convolution(every, one)
        assert torch.equal(same.isnan(), every.isnan())
        assert torch.equal(same.nan_to_num(), every.nan_to_num())
        between = (1 + torch.finfo(dtype).eps * torch.linspace(0.1, 1.9, 61))[:, None]
        for value in between:
            for number in (1.0, 3.7e-5, 1.3e-7, 60000.0):
                x = torch.full((1, 1, 1), number, dtype=dtype)
                expected = (x.float() * value).to(dtype)
                assert torch.equal(native_convolution(x, value[None]), expected), (number, value)


def native_convolution(x: Tensor, w: Tensor) -> Tensor:
    """One tap and no SiLU: x times w, rounded once."""
    from hybridmap.ops.causal_conv1d import native as compiled

    return compiled.forward(x, w, None, False, False)


@needs_compiler
def test_addresses_are_sound(tmp_path: Path) -> None:
    """AddressSanitizer finds no access outside the tensors, at shapes that fill no vector, chunk or strip."""
    assert COMPILER is not None
    program = tmp_path / "driver"
    command = [COMPILER, "-x", "c++", "-std=c++17", "-g", "-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
    command += ["-w", f"-DW={native.variant().lanes}", *native.variant().flags]
    driver = Path(__file__).with_name("native_driver.cpp")
    built = subprocess.run(
        [*command, f"-I{native.SOURCE.parent}", str(driver), "-o", str(program)], capture_output=True, text=True
    )
    if built.returncode and ("asan" in built.stderr or "sanitize" in built.stderr):
        pytest.skip("this compiler has no AddressSanitizer")
    assert built.returncode == 0, built.stderr
    run = subprocess.run([str(program)], capture_output=True, text=True, timeout=120, env={"ASAN_OPTIONS": "detect_leaks=0"})
    assert run.returncode == 0, run.stderr[:2000]
    assert run.stdout.split() == ["48", "scans,", "36", "convolutions"]


def test_importing_loads_no_kernel(unchecked_environment: dict[str, str]) -> None:
    code = "import hybridmap.ops; from hybridmap.ops import native; print(native.search.cache_info().currsize)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=unchecked_environment, check=True)
    assert result.stdout.strip() == "0"
