"""The causal depthwise convolution as the sum that defines it: any device, any float dtype, differentiated by autograd."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor


def causal_conv1d(
    x: Float[Tensor, "batch L E"],
    w: Float[Tensor, "E W"],
    b: Float[Tensor, "E"] | None = None,
    *,
    silu: bool = True,
    reverse: bool = False,
) -> Float[Tensor, "batch L E"]:
    """Convolve every channel with its own W taps over the present and the W-1 earlier tokens, then apply SiLU.

        u_t = b + sum_j w[:, j] * x_{t-(W-1)+j}          zeros before the first token
        out = silu(u)

    With ``reverse`` time runs the other way (the taps meet ``x_{t+(W-1)-j}``, zeros after the last token). Everything is
    computed in at least float32 and returns in the dtype of ``x``. Source: Mamba (arXiv:2312.00752), figure 3.
    """
    wide = torch.promote_types(x.dtype, torch.float32)
    width, length = w.shape[1], x.shape[1]
    padded = F.pad(x.to(wide), (0, 0, 0, width - 1) if reverse else (0, 0, width - 1, 0))  # (batch, L + W-1, E)
    u = x.new_zeros(x.shape, dtype=wide) if b is None else b.to(wide).expand(x.shape)
    for j in range(width):
        first = width - 1 - j if reverse else j
        u = u + w[:, j].to(wide) * padded[:, first : first + length]
    return (F.silu(u) if silu else u).to(x.dtype)
