"""``hybridmap doctor``: what is installed, which kernel runs for each operator and why, and whether each one is right."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version

import torch
from rich.table import Table

from hybridmap import ops
from hybridmap.cli.flags import Common, parse
from hybridmap.cli.output import console
from hybridmap.cli.runs import device_named

_PACKAGES = (
    *("hybridmap", "torch", "torchvision", "triton", "timm", "numpy", "pillow", "safetensors", "jaxtyping", "tyro", "rich"),
    *("tensorboard", "wandb", "scikit-image", "scikit-learn"),
)


@dataclass(frozen=True, kw_only=True)
class Options(Common):
    """Exit code 1 if a kernel deviates from the float64 reference by more than its bound."""


def main(arguments: Sequence[str]) -> int:
    """Print the environment, the kernels in use and the outcome of checking each of them."""
    options = parse(Options, arguments, "doctor", "The environment, which kernels run and why, and each kernel checked.")
    device = device_named(options.device)
    out = console()

    table = Table("environment", "", box=None, pad_edge=False)
    for name, value in environment(device).items():
        table.add_row(name, value)
    out.print(table)

    out.print()
    table = Table("operator", "device", "what runs, and why", box=None, pad_edge=False)
    for operator, kernels in ops.show_config().items():
        for kind, kernel in kernels.items():
            table.add_row(operator, kind, kernel)
    out.print(table)

    out.print(f"\nEach kernel against the float64 reference on {device}:")
    table = Table("operator", "dtype", "direction", "error", "bound", "", box=None, pad_edge=False)
    checks = ops.check_kernels(device)
    for name, dtype, direction, error, bound, good in checks:
        verdict = "ok" if good else "[bold red]WRONG[/]"
        table.add_row(str(name), str(dtype), str(direction), f"{error:.1e}", f"{bound:.0e}", verdict)
    out.print(table)
    wrong = sum(not check[-1] for check in checks)
    out.print(f"{len(checks)} checks, {wrong} wrong" if wrong else f"{len(checks)} checks, all fine")
    return int(wrong > 0)


def environment(device: torch.device) -> dict[str, str]:
    """Versions and machine, as words."""
    found = {"Python": f"{platform.python_version()} on {platform.platform()}"}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    found["processor"] = f"{os.cpu_count()} cores, {torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()}"
    found["CUDA"] = (
        f"{torch.version.cuda}, {torch.cuda.device_count()} x {torch.cuda.get_device_name(0)}"
        if torch.cuda.is_available()
        else "no device"
    )
    found["MPS"] = "available" if torch.backends.mps.is_available() else "no device"
    found["device in use"] = str(device)
    return found
