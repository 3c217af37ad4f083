"""The selective scan: a linear recurrence whose step size and projections depend on the input.

    delta_t = softplus(dt_t + bias)
    h_t     = exp(delta_t A) * h_{t-1} + delta_t x_t B_t          one (E, S) state per sample
    out_t   = out_scale * (C_t . h_t + D x_t) * silu(z_t)

Letters: L tokens, E channels, S states per channel. Everything is channels-last, (batch, L, E): what linear layers
produce and consume, so nothing is transposed; only the last stride should be 1, halves and slices of larger tensors are
welcome. x, dt, z, B and C share one dtype, in which ``out`` returns; A, D, bias, the state, all exponentials, sums and
parameters' gradients are float32. ``dt`` comes raw, before bias and softplus. Source: Mamba (arXiv:2312.00752).

``reference.py`` is the meaning, ``cpu.py`` the plain-PyTorch implementation, ``native.py`` the compiled one for CPUs,
``gpu.py`` the Triton one for CUDA devices, ``README.md`` the derivation of the backward pass. The operators are functional and
have no optional results: where there is nothing to return (no z, no checkpoint), a tensor of no elements comes back.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType
from typing import Literal, overload

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from hybridmap.errors import UserError
from hybridmap.ops import backend
from hybridmap.ops.selective_scan import reference
from hybridmap.ops.selective_scan.cpu import kept_states
from hybridmap.ops.selective_scan.reference import Direction

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
    if backend.by_reference(x.device, x.dtype):
        x, dt, A, B, C, D, bias = direction
        out, last = reference.selective_scan(
            x, dt, A, B, C, D=D, z=z, bias=bias, h0=h0, softplus=softplus, reverse=reverse, out_scale=out_scale
        )
    else:
        x, dt, A, B, C, D, bias = direction
        h0 = None if h0 is None else h0.to(torch.float32)
        keep = keeps_states(*direction, z, h0)
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
    if backend.by_reference(first.x.device, first.x.dtype):
        return reference.bidirectional_scan(first, second, z, softplus=softplus, scale=scale)
    out, _ = _bidirectional_scan(*first, *second, z, softplus, scale, keeps_states(*first, *second, z))
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
        size = A.shape[0] // groups
        parts = []
        for g in range(groups):
            own = slice(g * size, (g + 1) * size)
            scanned = selective_scan(
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
            parts.append(scanned)
        out, last = parts[0] if groups == 1 else (torch.cat([o for o, _ in parts], 2), torch.cat([h for _, h in parts], 1))
    out = out.to(u.dtype).mT.contiguous()
    return (out, last) if return_last_state else out


def _scan_of_single_states(
    x: Float[Tensor, "batch L E"],
    dt: Float[Tensor, "batch L E"],
    A: Float[Tensor, "E S"],
    B: Tensor,
    C: Tensor,
    D: Float[Tensor, "E"] | None,
    z: Float[Tensor, "batch L E"] | None,
    bias: Float[Tensor, "E"] | None,
    softplus: bool,
) -> tuple[Float[Tensor, "batch L E"], Float[Tensor, "batch E S"]]:
    """Scan with B or C constant over the tokens, (E, S), by making every state a channel of its own with one state."""
    wide = torch.promote_types(x.dtype, torch.float32)
    x, dt = x.to(wide), dt.to(wide)
    channels, states = A.shape

    def per_channel(M: Tensor) -> Tensor:
        if M.dim() == 2:
            return M.to(wide)
        grouped = M.to(wide) if M.dim() == 4 else M.to(wide).unsqueeze(1)
        return grouped.permute(0, 3, 1, 2).repeat_interleave(channels // grouped.shape[1], 2)  # (batch, L, E, S)

    driven = (x.unsqueeze(-1) * per_channel(B)).flatten(2)  # (batch, L, E * S)
    steps = dt.unsqueeze(-1).expand(*dt.shape, states).flatten(2)
    one = x.new_ones(*x.shape[:2], 1)
    repeated = None if bias is None else bias.repeat_interleave(states)
    h, last = selective_scan(
        driven, steps, A.reshape(-1, 1), one, one, bias=repeated, softplus=softplus, return_last_state=True
    )
    y = (h.unflatten(2, (channels, states)) * per_channel(C)).sum(-1)
    if D is not None:
        y = y + D.to(wide) * x
    if z is not None:
        y = y * F.silu(z.to(wide))
    return y, last.reshape(-1, channels, states)


def _direction(tensors: Sequence[Tensor | None]) -> Direction:
    if not 5 <= len(tensors) <= 7 or any(t is None for t in tensors[:5]):
        raise UserError(
            f"A direction is (x, dt, A, B, C, D, bias), only D and bias possibly None, but {len(tensors)} values came, or one "
            "of the first five is None; pass them in this order."
        )
    return Direction(*tensors)  # pyright: ignore[reportArgumentType]


def _parameters_wide(d: Direction) -> Direction:
    """Bring A, D and bias to the dtype of the state, float32 (float64 for float64 inputs)."""
    wide = torch.promote_types(d.x.dtype, torch.float32)
    D, bias = (None if p is None else p.to(wide) for p in (d.D, d.bias))
    return d._replace(A=d.A.to(wide), D=D, bias=bias)


def keeps_states(*tensors: Tensor | None) -> bool:
    """Whether the forward pass keeps what the backward pass starts from: only where one may come, and never in an export.

    The number of kept states would tie an exported program to a range of lengths; a backward pass that finds none recomputes.
    """
    wanted = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)
    return wanted and not torch.compiler.is_exporting()


def saves(x: Tensor, save_ckpt: bool) -> bool:
    """Whether an operator that is asked to keep states for the backward pass does: never on CUDA devices, see ``gpu.py``."""
    return save_ckpt and not backend.for_gpu(x)


def _check(d: Direction, z: Tensor | None, h0: Tensor | None) -> None:
    x, A = d.x, d.A
    if x.dim() != 3 or A.dim() != 2:
        raise UserError(
            f"The scan expects x as (batch, L, E) and A as (E, S), but {tuple(x.shape)} and {tuple(A.shape)} came; "
            "transpose channels-first inputs, or call selective_scan_fn."
        )
    batch, length, channels = x.shape
    per_token = (batch, length, A.shape[1])
    expected = {
        "dt": (d.dt, x.shape),
        "A": (A, (channels, A.shape[1])),
        "B": (d.B, per_token),
        "C": (d.C, per_token),
        "D": (d.D, (channels,)),
        "z": (z, x.shape),
        "bias": (d.bias, (channels,)),
        "h0": (h0, (batch, *A.shape)),
    }
    for name, (tensor, shape) in expected.items():
        if tensor is not None and tensor.shape != shape:
            raise UserError(
                f"The scan of x {tuple(x.shape)} with A {tuple(A.shape)} expects {name} of shape {tuple(shape)}, but "
                f"{tuple(tensor.shape)} came; check its layout (channels last)."
            )
    for name, tensor in (("dt", d.dt), ("B", d.B), ("C", d.C), ("z", z)):
        if tensor is not None and tensor.dtype != x.dtype:
            raise UserError(
                f"The scan expects dt, B, C and z in the dtype of x, {x.dtype}, but {name} is {tensor.dtype}; "
                f"cast it with {name}.to(x.dtype)."
            )
    if x.dtype not in (*_DTYPES, torch.float64):
        raise UserError(f"The scan expects float32, bfloat16, float16 or float64, but x is {x.dtype}; cast it to float32.")


def performer(x: Tensor) -> ModuleType:
    """Who computes, with the signatures of ``cpu.py``; all keep the same states or none, so any may follow another."""
    return backend.performer("selective_scan", x.device, x.dtype)


# The operators. ``ckpt`` holds the state before every chunk of tokens, with the shape ``kept_states``, whose axis of directions
# only the bidirectional scan has; it is empty without ``save_ckpt``, and on CUDA devices.

_SCAN_INPUTS = "Tensor x, Tensor dt, Tensor A, Tensor B, Tensor C, Tensor? D, Tensor? z, Tensor? bias, Tensor? h0"
_SCAN_FLAGS = "bool softplus, bool reverse, float out_scale"


@torch.library.custom_op(
    "hybridmap::selective_scan",
    mutates_args=(),
    schema=f"({_SCAN_INPUTS}, {_SCAN_FLAGS}, bool save_ckpt) -> (Tensor out, Tensor last_state, Tensor ckpt)",
)
def _selective_scan(x, dt, A, B, C, D, z, bias, h0, softplus, reverse, out_scale, save_ckpt):
    start, keep = None if h0 is None else h0.unsqueeze(0), saves(x, save_ckpt)
    out, last, kept = performer(x).forward(
        [Direction(x, dt, A, B, C, D, bias)], [reverse], z, start, softplus=softplus, scale=out_scale, keep=keep, end=True
    )
    assert last is not None
    return out, last.squeeze(0), kept.squeeze(1) if keep else kept


@_selective_scan.register_fake
def _(x, dt, A, B, C, D, z, bias, h0, softplus, reverse, out_scale, save_ckpt):
    wide = torch.promote_types(x.dtype, torch.float32)
    ckpt = kept_states(x, A.shape[1], x.shape[2]) if saves(x, save_ckpt) else (0,)
    return x.new_empty(x.shape), x.new_empty((x.shape[0], *A.shape), dtype=wide), x.new_empty(ckpt, dtype=wide)


@torch.library.custom_op(
    "hybridmap::selective_scan_bwd",
    mutates_args=(),
    schema=f"(Tensor dout, Tensor? dlast_state, Tensor ckpt, {_SCAN_INPUTS}, {_SCAN_FLAGS}) -> (Tensor dx, Tensor ddt, "
    "Tensor dA, Tensor dB, Tensor dC, Tensor dD, Tensor dz, Tensor dbias, Tensor dh0)",
)
def _selective_scan_bwd(dout, dlast_state, ckpt, x, dt, A, B, C, D, z, bias, h0, softplus, reverse, out_scale):
    after, start = (None if h is None else h.unsqueeze(0) for h in (dlast_state, h0))
    (d,), dz, dh0 = performer(x).backward(
        dout,
        after,
        ckpt.unsqueeze(1) if ckpt.numel() else None,
        [Direction(x, dt, A, B, C, D, bias)],
        [reverse],
        z,
        start,
        softplus=softplus,
        scale=out_scale,
    )
    nothing = (v if v is not None else x.new_empty(0) for v in (d.D, dz, d.bias))
    return d.x, d.dt, d.A, d.B, d.C, *nothing, x.new_empty(0) if dh0 is None else dh0.squeeze(0)


@_selective_scan_bwd.register_fake
def _(dout, dlast_state, ckpt, x, dt, A, B, C, D, z, bias, h0, softplus, reverse, out_scale):
    return tuple(x.new_empty(0) if v is None else v.new_empty(v.shape) for v in (x, dt, A, B, C, D, z, bias, h0))


def _selective_scan_setup(ctx, inputs, output) -> None:
    *tensors, softplus, reverse, out_scale, _ = inputs
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(output[2], *tensors)
    ctx.flags = (softplus, reverse, out_scale)


def _selective_scan_backward(ctx, dout, dlast_state, _):
    ckpt, *tensors = ctx.saved_tensors
    if dout is None:
        dout = torch.zeros_like(tensors[0])
    gradients = torch.ops.hybridmap.selective_scan_bwd(dout, dlast_state, ckpt, *tensors, *ctx.flags)
    return *(None if t is None else g for t, g in zip(tensors, gradients, strict=True)), None, None, None, None


_selective_scan.register_autograd(_selective_scan_backward, setup_context=_selective_scan_setup)

_PAIR_INPUTS = ", ".join(
    f"Tensor{'?' if name in ('D', 'bias') else ''} {name}{suffix}" for suffix in ("_fwd", "_bwd") for name in Direction._fields
)


@torch.library.custom_op(
    "hybridmap::bidirectional_scan",
    mutates_args=(),
    schema=f"({_PAIR_INPUTS}, Tensor? z, bool softplus, float out_scale, bool save_ckpt) -> (Tensor out, Tensor ckpt)",
)
def _bidirectional_scan(*args):
    *tensors, z, softplus, out_scale, save_ckpt = args
    out, _, kept = performer(tensors[0]).forward(
        [Direction(*tensors[:7]), Direction(*tensors[7:])],
        [False, True],
        z,
        None,
        softplus=softplus,
        scale=out_scale,
        keep=saves(tensors[0], save_ckpt),
    )
    return out, kept


@_bidirectional_scan.register_fake
def _(*args):
    x, A, save_ckpt = args[0], args[2], args[-1]
    ckpt = kept_states(x, A.shape[1], x.shape[2], (2,)) if saves(x, save_ckpt) else (0,)
    return x.new_empty(x.shape), x.new_empty(ckpt, dtype=torch.promote_types(x.dtype, torch.float32))


@torch.library.custom_op(
    "hybridmap::bidirectional_scan_bwd",
    mutates_args=(),
    schema=f"(Tensor dout, Tensor ckpt, {_PAIR_INPUTS}, Tensor? z, bool softplus, float out_scale) -> ("
    + ", ".join(["Tensor"] * 15)
    + ")",
)
def _bidirectional_scan_bwd(*args):
    dout, ckpt, *tensors, z, softplus, out_scale = args
    directions = [Direction(*tensors[:7]), Direction(*tensors[7:])]
    kept = ckpt if ckpt.numel() else None
    gradients, dz, _ = performer(dout).backward(
        dout, None, kept, directions, [False, True], z, None, softplus=softplus, scale=out_scale
    )
    return tuple(dout.new_empty(0) if v is None else v for v in (*gradients[0], *gradients[1], dz))


@_bidirectional_scan_bwd.register_fake
def _(*args):
    dout, _, *tensors, _, _ = args
    return tuple(dout.new_empty(0) if v is None else v.new_empty(v.shape) for v in tensors)


def _bidirectional_scan_setup(ctx, inputs, output) -> None:
    *tensors, softplus, out_scale, _ = inputs
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(output[1], *tensors)
    ctx.flags = (softplus, out_scale)


def _bidirectional_scan_backward(ctx, dout, _):
    ckpt, *tensors = ctx.saved_tensors
    gradients = torch.ops.hybridmap.bidirectional_scan_bwd(dout, ckpt, *tensors, *ctx.flags)
    return *(None if t is None else g for t, g in zip(tensors, gradients, strict=True)), None, None, None


_bidirectional_scan.register_autograd(_bidirectional_scan_backward, setup_context=_bidirectional_scan_setup)
