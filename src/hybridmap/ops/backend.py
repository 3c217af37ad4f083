"""Which implementation of an operator runs, and how to demand another one.

``reference`` is the defining formula, differentiated by autograd; ``torch`` is plain PyTorch with a hand-written backward
pass, which runs on every device and needs no compiler; ``prebuilt`` and ``jit`` are the compiled kernel for CPUs
(``hybridmap.ops.native``), as shipped or as built here; ``triton`` is the kernel for CUDA devices (each operator's ``gpu.py``).
Nothing falls back silently: a backend that was asked for and cannot run is an error that names what is missing.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import os
from importlib.metadata import packages_distributions, version
from types import ModuleType, TracebackType
from typing import Literal

import torch
from torch import Tensor

from hybridmap.errors import UserError
from hybridmap.ops import native

Backend = Literal["reference", "torch", "cpu", "gpu"]
BACKENDS = ("reference", "torch", "cpu", "gpu")
CPU_KERNELS = ("prebuilt", "jit", "torch")
"""What HYBRIDMAP_CPU_KERNEL may demand."""
NATIVE = ("selective_scan", "bidirectional_scan", "causal_conv1d")
"""The operators that the compiled kernel for CPUs has; Triton kernels there are for all."""
OPERATORS = (*NATIVE, "add_norm")

_demanded_cpu_kernel: str | None = os.environ.get("HYBRIDMAP_CPU_KERNEL")
_forced: str | None = None


class use_backend:
    """Let every operator take one backend from here on, or inside a ``with`` block.

    "reference" is the formula; "torch" plain PyTorch on any device; "cpu" insists on tensors on the CPU and takes the compiled
    kernel where there is one; "gpu" insists on the Triton kernel and so on tensors on a CUDA device, or with TRITON_INTERPRET=1
    on any. None returns to the ordinary choice, which follows the device of the tensors.
    """

    def __init__(self, name: Backend | None) -> None:
        global _forced
        if name is not None and name not in BACKENDS:
            raise UserError(f'A backend is one of {", ".join(BACKENDS)} or None, but "{name}" came; try "reference".')
        if name == "gpu" and not _triton():
            raise UserError(
                'The "gpu" backend was demanded, but triton is not installed; install it with `pip install triton`, or try '
                "use_backend(None), which runs plain PyTorch."
            )
        self._before = _forced
        _forced = name

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        global _forced
        _forced = self._before


def active(op: str, device: torch.device | str, dtype: torch.dtype = torch.float32) -> str:
    """What ``op`` runs on tensors of this device and dtype: "reference", "torch", "prebuilt", "jit" or "triton"."""
    return _choose(op, torch.device(device).type, dtype)[0]


def show_config() -> dict[str, dict[str, str]]:
    """Say for every operator which implementation runs on each device of this machine, and why."""
    devices = ["cpu"]
    if torch.cuda.is_available():
        devices.append("cuda")
    if torch.backends.mps.is_available():
        devices.append("mps")
    return {op: {device: ": ".join(_choose(op, device, torch.float32)) for device in devices} for op in OPERATORS}


def by_reference(device: torch.device | str, dtype: torch.dtype) -> bool:
    """Whether the formula itself runs, differentiated by autograd. Cheap, and safe to trace: no kernel is looked for."""
    return _why_reference(torch.device(device).type, dtype) is not None


def for_gpu(tensor: Tensor) -> bool:
    """Whether this tensor is one for the kernels of CUDA devices, wherever they run. Safe to trace."""
    return tensor.is_cuda or _forced == "gpu"


def _why_reference(device_type: str, dtype: torch.dtype) -> str | None:
    if _forced == "reference":
        return 'demanded by use_backend("reference")'
    if dtype == torch.float64:
        return "float64 always takes the reference"
    if _forced == "cpu" and device_type != "cpu":
        raise UserError(f'use_backend("cpu") expects tensors on the CPU, but one is on "{device_type}"; try use_backend(None).')
    return None


def _choose(op: str, device_type: str, dtype: torch.dtype) -> tuple[str, str]:
    if op not in OPERATORS:
        raise UserError(f'An operator is one of {", ".join(OPERATORS)}, but "{op}" came; check the spelling.')
    why = _why_reference(device_type, dtype)
    if why is not None:
        return "reference", why
    if _forced == "torch":
        return "torch", 'plain PyTorch, demanded by use_backend("torch")'
    if _forced == "gpu" or device_type == "cuda":
        return _choose_for_cuda(device_type)
    if device_type == "cpu":
        return _choose_for_cpu(op)
    return "torch", "plain PyTorch, since there is no kernel for this device"


def _choose_for_cuda(device_type: str) -> tuple[str, str]:
    interpreted = os.environ.get("TRITON_INTERPRET") == "1"
    if device_type != "cuda" and not interpreted:
        raise UserError(
            f'use_backend("gpu") expects tensors on a CUDA device, but one is on "{device_type}"; try use_backend(None), or '
            "set TRITON_INTERPRET=1 to run the kernels through Triton's interpreter."
        )
    if not _triton():
        return "torch", "plain PyTorch, since triton is not installed"
    if interpreted:
        return "triton", f"kernel interpreted by triton {_triton()}, since TRITON_INTERPRET=1"
    return "triton", f"kernel compiled by triton {_triton()}"


def _choose_for_cpu(op: str) -> tuple[str, str]:
    demanded = _demanded_cpu_kernel
    if demanded is not None and demanded not in CPU_KERNELS:
        raise UserError(
            f"HYBRIDMAP_CPU_KERNEL expects one of {', '.join(CPU_KERNELS)}, but is set to "
            f'"{demanded}"; unset it or try "torch".'
        )
    if demanded == "torch":
        return "torch", "plain PyTorch, demanded by HYBRIDMAP_CPU_KERNEL"
    if op not in NATIVE:
        return "torch", "plain PyTorch, since the compiled kernel does not have this operator"
    try:
        found = native.library(demanded)
    except native.Absent as reason:
        if demanded is None:
            return "torch", f"plain PyTorch, since {reason}"
        raise UserError(f'HYBRIDMAP_CPU_KERNEL={demanded} was demanded, but {reason}; unset it or try "torch".') from None
    return found.origin, found.said


@functools.cache
def _triton() -> str:
    """Its version, empty where it is not installed; it is not imported."""
    return version(packages_distributions()["triton"][0]) if importlib.util.find_spec("triton") else ""


def performer(op: str, device: torch.device, dtype: torch.dtype) -> ModuleType:
    """The module of ``op`` whose ``forward`` and ``backward`` compute: its ``cpu``, ``native`` or ``gpu``.

    All take the same arguments and return the same results. ``gpu`` is imported here, when it is first wanted, since it needs
    triton.
    """
    chosen = active(op, device, dtype)
    file = {"prebuilt": "native", "jit": "native", "triton": "gpu"}.get(chosen, "cpu")
    return importlib.import_module(f"hybridmap.ops.{op}.{file}")
