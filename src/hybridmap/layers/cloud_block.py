"""The layer of Mamba3D and of its hybrid: neighbours first, then the whole cloud.

    x = x + DropPath(LocalNormPool(LN x))
    x = x + DropPath(Mixer(LN x))

In a T layer the mixer is a whole Transformer block with its own two residuals, so that LN x comes on top of what it adds.
Source: Mamba3D (arXiv:2404.14966); the T layer is of MAP's hybrid for points (arXiv:2410.00871).
"""

from __future__ import annotations

from jaxtyping import Float, Int
from timm.layers.drop import drop_path
from torch import Tensor, nn

from hybridmap.layers.local_norm import LocalNormPool


class CloudBlock(nn.Module):
    """``local=None`` leaves the first line out; the mixer is any module called with the tokens alone."""

    def __init__(self, dim: int, mixer: nn.Module, local: LocalNormPool | None, *, drop_path: float = 0.0) -> None:
        super().__init__()
        self.norm1 = nn.Identity() if local is None else nn.LayerNorm(dim)
        self.local = local
        self.norm2 = nn.LayerNorm(dim)
        self.mixer = mixer
        self.drop_path = drop_path

    def forward(self, x: Float[Tensor, "B L D"], neighbours: Int[Tensor, "B V k"]) -> Float[Tensor, "B L D"]:
        """``neighbours`` as :class:`LocalNormPool` wants them."""
        if self.local is not None:
            x = x + drop_path(self.local(self.norm1(x), neighbours), self.drop_path, self.training)
        return x + drop_path(self.mixer(self.norm2(x)), self.drop_path, self.training)
