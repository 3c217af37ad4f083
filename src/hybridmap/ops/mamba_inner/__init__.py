"""The inside of a Mamba mixer: everything between its input projection and its output projection.

    xz ──┬─ x ─ conv ─ SiLU ─ c ─┬──────────────────────────────┐
         │                       └─ x_proj ─┬─ delta ─ dt_proj ─┤
         │                                  └─ B, C ────────────┴─ scan ─ y ─ · scale · SiLU(z) ──▶ out
         └─ z ────────────────────────────────────────────────────────────────────┘

one direction, or two whose y are added before the gate; the second walks the same memory from the last token, with an
anti-causal convolution. ``reference.py`` is this drawing in operators, ``fused.py`` the same with a backward pass that keeps
half as much: what both directions share is written once, what is cheap is computed again.
Source: Mamba (arXiv:2312.00752), Vision Mamba (arXiv:2401.09417).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from hybridmap.errors import UserError
from hybridmap.ops import backend
from hybridmap.ops.mamba_inner import fused, reference
from hybridmap.ops.mamba_inner.reference import Parameters, scan_inputs
from hybridmap.ops.selective_scan import keeps_states, kept_states, saves

__all__ = ["Parameters", "grouped", "mamba_inner", "scan_inputs"]


def mamba_inner(
    xz: Float[Tensor, "batch L E2"],
    fwd: Parameters,
    bwd: Parameters | None = None,
    *,
    scale: float = 1.0,
) -> Float[Tensor, "batch L E"]:
    """Scan ``x``, the first half of the channels of ``xz``, in one direction or two, and gate with the other half, ``z``.

    Matrices take the dtype of ``xz``, in which ``out`` returns; taps, A, D and biases are at least float32. ``scale=0.5`` is
    the mean of two directions. Gradients flow to every tensor.
    """
    parameters = [_prepared(xz, p) for p in (fwd, bwd) if p is not None]
    if backend.by_reference(xz.device, xz.dtype):
        return reference.mamba_inner(xz, parameters, scale)
    second: Sequence[Tensor | None] = parameters[1] if bwd is not None else [None] * len(Parameters._fields)
    keep = keeps_states(xz, *parameters[0], *second)
    return _mamba_inner(xz, *parameters[0], *second, scale, keep)[0]


def _prepared(xz: Tensor, p: Parameters) -> Parameters:
    """The parameters in the dtypes that are computed with, their shapes checked."""
    channels, states = p.A.shape
    rank = p.dt_proj.shape[-1]
    expected = {
        "xz": (xz, (*xz.shape[:2], 2 * channels)),
        "taps": (p.taps, (channels, p.taps.shape[-1])),
        "taps_bias": (p.taps_bias, (channels,)),
        "x_proj": (p.x_proj, (rank + 2 * states, channels)),
        "dt_proj": (p.dt_proj, (channels, rank)),
        "D": (p.D, (channels,)),
        "bias": (p.bias, (channels,)),
    }
    for name, (tensor, shape) in expected.items():
        if tensor is not None and (tensor.shape != shape or (name == "xz" and tensor.dim() != 3)):
            raise UserError(
                f"A Mamba mixer with A {tuple(p.A.shape)} expects {name} of shape {tuple(shape)}, but {tuple(tensor.shape)} "
                "came; xz holds x and z side by side, (batch, L, 2 E)."
            )
    wide = torch.promote_types(xz.dtype, torch.float32)
    taps, taps_bias, A, D, bias = (None if v is None else v.to(wide) for v in (p.taps, p.taps_bias, p.A, p.D, p.bias))
    return Parameters(taps, taps_bias, p.x_proj.to(xz.dtype), p.dt_proj.to(xz.dtype), A, D, bias)  # pyright: ignore[reportArgumentType]


def grouped(tensors: Sequence[Tensor | None]) -> list[Parameters]:
    """The flat arguments of the operator by direction; the second is absent if its first tensor is."""
    size = len(Parameters._fields)
    return [Parameters(*tensors[i : i + size]) for i in (0, size) if tensors[i] is not None]  # pyright: ignore[reportArgumentType]


_INPUTS = ", ".join(
    ["Tensor xz"]
    + [
        f"Tensor{'?' if suffix == '_bwd' or name == 'taps_bias' else ''} {name}{suffix}"
        for suffix in ("_fwd", "_bwd")
        for name in Parameters._fields
    ]
)


@torch.library.custom_op(
    "hybridmap::mamba_inner",
    mutates_args=(),
    schema=f"({_INPUTS}, float scale, bool save_ckpt) -> (Tensor out, Tensor ckpt, Tensor projected_fwd, Tensor projected_bwd)",
)
def _mamba_inner(xz, *args):
    *tensors, scale, save_ckpt = args
    out, kept, projections = fused.forward(xz, grouped(tensors), scale, saves(xz, save_ckpt))
    if len(projections) == 1:
        projections.append(xz.new_empty(0))
    return out, kept, *projections


@_mamba_inner.register_fake
def _(xz, *args):
    *tensors, _, save_ckpt = args
    directions = grouped(tensors)
    batch, length, width = xz.shape
    shape = kept_states(xz, directions[0].A.shape[1], width // 2, (len(directions),)) if saves(xz, save_ckpt) else (0,)
    projections = [xz.new_empty(batch, length, p.x_proj.shape[0]) for p in directions] + [xz.new_empty(0)]
    wide = torch.promote_types(xz.dtype, torch.float32)
    return xz.new_empty(batch, length, width // 2), xz.new_empty(shape, dtype=wide), *projections[:2]


@torch.library.custom_op(
    "hybridmap::mamba_inner_bwd",
    mutates_args=(),
    schema=f"(Tensor dout, Tensor ckpt, Tensor projected_fwd, Tensor projected_bwd, {_INPUTS}, float scale) -> ("
    + ", ".join(["Tensor"] * (1 + 2 * len(Parameters._fields)))
    + ")",
)
def _mamba_inner_bwd(dout, ckpt, projected_fwd, projected_bwd, xz, *args):
    *tensors, scale = args
    directions = grouped(tensors)
    kept = ckpt if ckpt.numel() else None
    projections = [projected_fwd, projected_bwd][: len(directions)]
    dxz, gradients = fused.backward(dout, kept, projections, xz, directions, scale)
    flat = [v for g in gradients for v in g] + [None] * len(Parameters._fields) * (2 - len(gradients))
    return dxz, *(xz.new_empty(0) if v is None else v for v in flat)


@_mamba_inner_bwd.register_fake
def _(dout, ckpt, projected_fwd, projected_bwd, xz, *args):
    *tensors, _ = args
    return tuple(xz.new_empty(0) if v is None else v.new_empty(v.shape) for v in (xz, *tensors))


def _setup(ctx, inputs, output) -> None:
    *tensors, ctx.scale, _ = inputs
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*output[1:], *tensors)


def _backward(ctx, dout, *_):
    kept, projected_fwd, projected_bwd, *tensors = ctx.saved_tensors  # read once, which checkpointing insists on
    gradients = torch.ops.hybridmap.mamba_inner_bwd(dout, kept, projected_fwd, projected_bwd, *tensors, ctx.scale)
    return *(None if t is None else g for t, g in zip(tensors, gradients, strict=True)), None, None


_mamba_inner.register_autograd(_backward, setup_context=_setup)
