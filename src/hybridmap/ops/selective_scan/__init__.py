"""The selective scan: a linear recurrence whose step size and projections depend on the input.

    delta_t = softplus(dt_t + bias)
    h_t     = exp(delta_t A) * h_{t-1} + delta_t x_t B_t          one (E, S) state per sample
    out_t   = out_scale * (C_t . h_t + D x_t) * silu(z_t)

Letters: L tokens, E channels, S states per channel. Everything is channels-last, (batch, L, E): what linear layers
produce and consume, so nothing is transposed; only the last stride should be 1, halves and slices of larger tensors are
welcome. x, dt, z, B and C share one dtype, in which ``out`` returns; A, D, bias, the state, all exponentials, sums and
parameters' gradients are float32. ``dt`` comes raw, before bias and softplus. Source: Mamba (arXiv:2312.00752).

``reference.py`` is the meaning, ``cpu.py`` the plain-PyTorch implementation behind the operators registered here,
``README.md`` the derivation of the backward pass. The operators are functional and have no optional results: where
there is nothing to return (no z, no checkpoint), a tensor of no elements comes back.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, overload

import torch
from jaxtyping import Float
from torch import Tensor

from hybridmap.errors import UserError
from hybridmap.ops import backend
from hybridmap.ops.selective_scan import cpu, reference
from hybridmap.ops.selective_scan.cpu import Direction

_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@overload
def selective_scan(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    *,
    D: Tensor | None = ...,
    z: Tensor | None = ...,
    bias: Tensor | None = ...,
    h0: Tensor | None = ...,
    softplus: bool = ...,
    reverse: bool = ...,
    out_scale: float = ...,
    return_last_state: Literal[False] = ...,
) -> Tensor: ...
@overload
def selective_scan(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    *,
    D: Tensor | None = ...,
    z: Tensor | None = ...,
    bias: Tensor | None = ...,
    h0: Tensor | None = ...,
    softplus: bool = ...,
    reverse: bool = ...,
    out_scale: float = ...,
    return_last_state: Literal[True],
) -> tuple[Tensor, Tensor]: ...
def selective_scan(
    x: Float[Tensor, "batch L E"],
    dt: Float[Tensor, "batch L E"],
    A: Float[Tensor, "E S"],
    B: Float[Tensor, "batch L S"],
    C: Float[Tensor, "batch L S"],
    *,
    D: Float[Tensor, "E"] | None = None,
    z: Float[Tensor, "batch L E"] | None = None,
    bias: Float[Tensor, "E"] | None = None,
    h0: Float[Tensor, "batch E S"] | None = None,
    softplus: bool = True,
    reverse: bool = False,
    out_scale: float = 1.0,
    return_last_state: bool = False,
) -> Float[Tensor, "batch L E"] | tuple[Float[Tensor, "batch L E"], Float[Tensor, "batch E S"]]:
    """Scan the tokens in order and return ``out``, or (out, last_state) with ``return_last_state``.

    ``reverse`` scans from the last token to the first (the same memory read backwards, no flip of the results needed), and
    ``last_state`` is then the state after the first token. ``h0``, (batch, E, S), is the state before the scan, zero by
    default. Gradients flow to every tensor, ``h0`` included, and from ``last_state``, which is at least float32.
    """
    direction = _parameters_wide(Direction(x, dt, A, B, C, D, bias))
    _check(direction, z, h0)
    if backend.active("selective_scan", x.device, x.dtype) == "reference":
        x, dt, A, B, C, D, bias = direction
        out, last = reference.selective_scan(
            x, dt, A, B, C, D=D, z=z, bias=bias, h0=h0, softplus=softplus, reverse=reverse, out_scale=out_scale
        )
    else:
        x, dt, A, B, C, D, bias = direction
        h0 = None if h0 is None else h0.to(torch.float32)
        keep = _wants_gradient(*direction, z, h0)
        out, last, _ = _selective_scan(x, dt, A, B, C, D, z, bias, h0, softplus, reverse, out_scale, keep)
    return (out, last) if return_last_state else out


def bidirectional_scan(
    fwd: Sequence[Tensor | None],
    bwd: Sequence[Tensor | None],
    z: Float[Tensor, "batch L E"] | None = None,
    *,
    softplus: bool = True,
    scale: float = 0.5,
) -> Float[Tensor, "batch L E"]:
    """Scan with ``fwd`` from the first token on and with ``bwd`` from the last, add, and gate once:

        out = scale * (scan(fwd) + reverse scan(bwd)) * silu(z)

    Each direction is its own (x, dt, A, B, C, D, bias), the last two possibly None, shapes as in ``selective_scan``; both
    may share tensors. ``scale=0.5`` is the mean of the directions, 1.0 their sum. The sum is formed in at least float32.
    """
    first, second = _parameters_wide(_direction(fwd)), _parameters_wide(_direction(bwd))
    _check(first, z, None)
    _check(second, z, None)
    if first.x.shape != second.x.shape or first.x.dtype != second.x.dtype or first.A.shape != second.A.shape:
        raise UserError(
            f"Both directions of a scan expect x and A of one shape and dtype, but {tuple(first.x.shape)} {first.x.dtype} with "
            f"{tuple(first.A.shape)} and {tuple(second.x.shape)} {second.x.dtype} with {tuple(second.A.shape)} came; "
            "try two calls of selective_scan."
        )
    if backend.active("bidirectional_scan", first.x.device, first.x.dtype) == "reference":
        return reference.bidirectional_scan(first, second, z, softplus=softplus, scale=scale)
    out, _ = _bidirectional_scan(*first, *second, z, softplus, scale, _wants_gradient(*first, *second, z))
    return out


def selective_scan_fn(
    u: Float[Tensor, "batch E L"],
    delta: Float[Tensor, "batch E L"],
    A: Float[Tensor, "E S"],
    B: Tensor,
    C: Tensor,
    D: Float[Tensor, "E"] | None = None,
    z: Float[Tensor, "batch E L"] | None = None,
    delta_bias: Float[Tensor, "E"] | None = None,
    delta_softplus: bool = False,
    return_last_state: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """The drop-in with the widely used signature and its channels-first layout: returns (batch, E, L), contiguous.

    B and C may each vary with the tokens, (batch, S, L), vary per group of channels, (batch, groups, S, L), or be constant
    per channel, (E, S). Groups become one scan each; a constant one becomes a scan with E * S channels of one state, and
    costs the memory of all states. Dtypes may be mixed: the widest is computed with, ``out`` has the dtype of ``u``.
    Source: the interface of state-spaces/mamba:mamba_ssm/ops/selective_scan_interface.py (v1.1.1).
    """
    if A.is_complex() or B.is_complex() or C.is_complex():
        raise UserError("selective_scan_fn expects real A, B and C, but complex ones came; pass their real form.")
    dtype = u.dtype
    for other in (delta, B, C, *(() if z is None else (z,))):
        dtype = torch.promote_types(dtype, other.dtype)
    x, dt = u.to(dtype).mT, delta.to(dtype).mT
    gate = None if z is None else z.to(dtype).mT
    if B.dim() == 2 or C.dim() == 2:
        out, last = _scan_of_single_states(x, dt, A, B.to(dtype), C.to(dtype), D, gate, delta_bias, delta_softplus)
    else:
        B, C = (M.to(dtype) if M.dim() == 4 else M.to(dtype).unsqueeze(1) for M in (B, C))
        groups = max(B.shape[1], C.shape[1])
        if A.shape[0] % groups or {B.shape[1], C.shape[1]} - {1, groups}:
            raise UserError(
                f"The groups of B and C must be equal and divide the channels, but {B.shape[1]} and {C.shape[1]} groups came "
                f"for {A.shape[0]} channels; expected shapes are (batch, groups, S, L)."
            )
        parts = []
        for g, channels in enumerate(torch.arange(A.shape[0], device="cpu").tensor_split(groups)):
            own = slice(int(channels[0]), int(channels[-1]) + 1) if len(channels) else slice(0, 0)
            parts.append(
                selective_scan(
                    x[..., own],
                    dt[..., own],
                    A[own],
                    B[:, g % B.shape[1]].mT,
                    C[:, g % C.shape[1]].mT,
                    D=None if D is None else D[own],
                    z=None if gate is None else gate[..., own],
                    bias=None if delta_bias is None else delta_bias[own],
                    softplus=delta_softplus,
                    return_last_state=True,
                )
            )
        out, last = parts[0] if groups == 1 else (torch.cat([o for o, _ in parts], 2), torch.cat([h for _, h in parts], 1))
    out = out.to(u.dtype).mT.contiguous()
    return (out, last) if return_last_state else out
