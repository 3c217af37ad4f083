"""Residual addition and normalisation as the formula that defines them: any device, any float dtype, by autograd."""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor


def add_norm(
    x: Float[Tensor, "*batch D"],
    residual: Float[Tensor, "*batch D"] | None,
    weight: Float[Tensor, "D"],
    bias: Float[Tensor, "D"] | None = None,
    *,
    eps: float = 1e-5,
    kind: Literal["rms", "layer"] = "rms",
    residual_in_fp32: bool = True,
) -> tuple[Float[Tensor, "*batch D"], Float[Tensor, "*batch D"]]:
    """Add a branch to the residual stream and normalise the sum; return (normed, summed).

        summed = residual + x
        normed = (summed - mean) / sqrt(mean((summed - mean)^2) + eps) * weight + bias          mean = 0 for "rms"

    Statistics are computed in at least float32 from the unrounded sum. ``normed`` has the dtype of ``x``; ``summed`` has at
    least float32 with ``residual_in_fp32``, else the dtype of the residual (of ``x`` where there is none).
    """
    wide = torch.promote_types(x.dtype, torch.float32)
    summed = x.to(wide) if residual is None else residual.to(wide) + x.to(wide)
    centred = summed - summed.mean(-1, keepdim=True) if kind == "layer" else summed
    normed = centred * torch.rsqrt(centred.square().mean(-1, keepdim=True) + eps) * weight.to(wide)
    if bias is not None:
        normed = normed + bias.to(wide)
    kept = summed if residual_in_fp32 else summed.to(x.dtype if residual is None else residual.dtype)
    return normed.to(x.dtype), kept
