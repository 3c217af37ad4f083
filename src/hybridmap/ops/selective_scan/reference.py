"""The selective scan as the loop that defines it: any device, any float dtype, differentiated by autograd.

No line here is fast and none is clever; the file is the meaning of the operator and the witness against which the
hand-written gradients are judged. ``x.unbind(1)`` is the one concession: indexing ``x[:, t]`` inside the loop would make
autograd allocate a full-size zero tensor for every step, which is quadratic in the length.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor


class Direction(NamedTuple):
    """What one direction of a layer scans with; shapes as in ``hybridmap.ops.selective_scan``."""

    x: Tensor
    dt: Tensor
    A: Tensor
    B: Tensor
    C: Tensor
    D: Tensor | None = None
    bias: Tensor | None = None


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
) -> tuple[Float[Tensor, "batch L E"], Float[Tensor, "batch E S"]]:
    """Run the recurrence token by token and return (out, last_state).

        delta_t = softplus(dt_t + bias)
        h_t     = exp(delta_t A) * h_{t-1} + delta_t x_t B_t            (E, S) per sample
        out_t   = out_scale * (C_t . h_t + D x_t) * silu(z_t)

    Everything is computed in at least float32; ``out`` returns in the dtype of ``x``, ``last_state`` stays wide. With
    ``reverse`` the tokens are visited from the last to the first and ``last_state`` is the state after the first token.
    Source: Mamba (arXiv:2312.00752), equations 1-2 with the simplified discretisation of B.
    """
    wide = torch.promote_types(x.dtype, torch.float32)
    delta = dt.to(wide) if bias is None else dt.to(wide) + bias.to(wide)
    if softplus:
        delta = F.softplus(delta)
    A = A.to(wide)
    steps = list(zip(x.to(wide).unbind(1), delta.unbind(1), B.to(wide).unbind(1), C.to(wide).unbind(1), strict=True))
    if reverse:
        steps.reverse()
    h = x.new_zeros(x.shape[0], *A.shape, dtype=wide) if h0 is None else h0.to(wide)
    outputs = []
    for x_t, delta_t, B_t, C_t in steps:
        decay = torch.exp(delta_t[:, :, None] * A)  # (batch, E, S)
        h = decay * h + (delta_t * x_t)[:, :, None] * B_t[:, None, :]
        outputs.append((h * C_t[:, None, :]).sum(-1))  # (batch, E)
    if reverse:
        outputs.reverse()
    y = torch.stack(outputs, 1) if outputs else delta * 0  # (batch, L, E)
    if D is not None:
        y = y + D.to(wide) * x.to(wide)
    if z is not None:
        y = y * F.silu(z.to(wide))
    return (y * out_scale).to(x.dtype), h


def bidirectional_scan(
    forward: Direction,
    backward: Direction,
    z: Float[Tensor, "batch L E"] | None = None,
    *,
    softplus: bool = True,
    scale: float = 0.5,
) -> Float[Tensor, "batch L E"]:
    """Add the scans of both directions in at least float32, then gate once."""
    wide = torch.promote_types(forward.x.dtype, torch.float32)
    first, second = (
        selective_scan(d.x.to(wide), d.dt, d.A, d.B, d.C, D=d.D, bias=d.bias, softplus=softplus, reverse=reverse)[0]
        for d, reverse in ((forward, False), (backward, True))
    )
    total = first + second
    if z is not None:
        total = total * F.silu(z.to(wide))
    return (total * scale).to(forward.x.dtype)
