"""The scan as others compute it, for comparison: the published form, mambapy, PyTorch's associative scan, the CUDA extension.

All are functions of (x, dt, A, B, C, D, bias, z), the published form and the extension with channels first; those in PyTorch
compute in float32, as their sources do. What is not installed here raises :class:`Absent` with the reason.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


class Absent(Exception):
    """Why a peer cannot take part."""


def published(x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, bias: Tensor, z: Tensor) -> Tensor:
    """The recurrence as it is usually published: channels first, and every step slices its tensors out of the whole.

    Autograd answers each slice with a full-size zero tensor, so that the backward pass is quadratic in the length.
    """
    dtype = x.dtype
    x, dt, B, C, z = (t.float() for t in (x, dt, B, C, z))
    delta = F.softplus(dt + bias[:, None])
    decay = torch.exp(torch.einsum("bel,es->bels", delta, A))
    driven = torch.einsum("bel,bsl,bel->bels", delta, B, x)
    h = x.new_zeros(x.shape[0], *A.shape)
    outputs = []
    for t in range(x.shape[2]):
        h = decay[:, :, t] * h + driven[:, :, t]
        outputs.append(torch.einsum("bes,bs->be", h, C[:, :, t]))
    y = torch.stack(outputs, 2) + D[:, None] * x
    return (y * F.silu(z)).to(dtype)


def over_all_states(recurrence: Callable[[Tensor, Tensor], Tensor]) -> Callable[..., Tensor]:
    """The scan by a parallel recurrence h_t = decay_t h_{t-1} + driven_t over (batch, L, E, S); it keeps all states."""

    def scan(x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, bias: Tensor, z: Tensor) -> Tensor:
        dtype = x.dtype
        x, dt, B, C, z = (t.float() for t in (x, dt, B, C, z))
        delta = F.softplus(dt + bias)
        decay = torch.exp(delta.unsqueeze(-1) * A)
        driven = (delta * x).unsqueeze(-1) * B.unsqueeze(2)
        y = (recurrence(decay, driven) @ C.unsqueeze(-1)).squeeze(-1) + D * x
        return (y * F.silu(z)).to(dtype)

    return scan


def mambapy() -> Callable[..., Tensor]:
    """mambapy's parallel scan in PyTorch."""
    return over_all_states(_imported("mambapy.pscan", "pscan"))


def associative() -> Callable[..., Tensor]:
    """PyTorch's own associative scan, in the mode that runs on every device."""
    scan: Any = _imported("torch._higher_order_ops.associative_scan", "associative_scan")

    def combine(earlier: tuple[Tensor, Tensor], later: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        return earlier[0] * later[0], earlier[1] * later[0] + later[1]

    return over_all_states(lambda decay, driven: scan(combine, (decay, driven), dim=1, combine_mode="generic")[1])


def mamba_ssm() -> Callable[..., Tensor]:
    """The usual CUDA extension, in its own layout: channels first."""
    scan: Any = _imported("mamba_ssm.ops.selective_scan_interface", "selective_scan_fn")

    def run(x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, bias: Tensor, z: Tensor) -> Tensor:
        return scan(x, dt, A, B, C, D=D, z=z, delta_bias=bias, delta_softplus=True)

    return run


def _imported(module: str, name: str) -> Any:
    """Something of a package that need not be there.

    Raises:
        Absent: if it is not there, or does not work.
    """
    package = module.partition(".")[0]
    if find_spec(package) is None:
        raise Absent(f"{package} is not installed")
    try:
        return getattr(import_module(module), name)
    except (ImportError, AttributeError, OSError) as error:
        raise Absent(f"{module} does not load: {error}") from None
