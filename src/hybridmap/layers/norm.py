"""Addition and normalisation in one step, as the residual blocks around Mamba mixers need it."""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from hybridmap import ops

NormKind = Literal["rms", "layer"]


class AddNorm(nn.Module):
    """``summed = residual + x`` and its normalised copy, in one pass.

    ``kind="rms"``: ``w * v / sqrt(mean(v^2) + eps)``, parameter ``weight`` only; ``kind="layer"``: LayerNorm, ``weight`` and
    ``bias``. Both are computed in at least float32; ``normed`` has the dtype of x. The sum is kept in at least float32 when
    ``residual_in_fp32`` is set, otherwise in the dtype of x.
    Source: state-spaces/mamba v1.1.1, mamba_ssm/ops/triton/layernorm.py (semantics).
    """

    def __init__(self, dim: int, eps: float = 1e-5, kind: NormKind = "rms", *, residual_in_fp32: bool = True) -> None:
        super().__init__()
        self.eps, self.residual_in_fp32 = eps, residual_in_fp32
        self.kind: NormKind = kind
        self.weight = nn.Parameter(torch.ones(dim))
        self.bias = nn.Parameter(torch.zeros(dim)) if kind == "layer" else None

    def forward(
        self, x: Float[Tensor, "B L D"], residual: Float[Tensor, "B L D"] | None = None
    ) -> tuple[Float[Tensor, "B L D"], Float[Tensor, "B L D"]]:
        return ops.add_norm(
            x, residual, self.weight, self.bias, eps=self.eps, kind=self.kind, residual_in_fp32=self.residual_in_fp32
        )

    def extra_repr(self) -> str:
        return f"{self.weight.shape[0]}, eps={self.eps}, kind={self.kind!r}"


def norm(dim: int, eps: float, kind: NormKind) -> nn.Module:
    """The same normalisation without an addition: torch's own RMSNorm or LayerNorm."""
    return nn.RMSNorm(dim, eps) if kind == "rms" else nn.LayerNorm(dim, eps)
