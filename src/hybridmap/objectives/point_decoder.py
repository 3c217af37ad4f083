"""Decoders for clouds of points: as those for images they work in place, but the place of a patch is where it lies in space.

PointDecoder     Transformer blocks; positions are added again before each       Point-MAE, MAP for points
CurveDecoder     Mamba layers along the scan; positions are added once           PointMamba
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from hybridmap.errors import UserError
from hybridmap.layers.block import TransformerBlock
from hybridmap.layers.norm import AddNorm
from hybridmap.layers.patch_net import CentreEmbed
from hybridmap.layers.plain_mamba import plain_mamba
from hybridmap.objectives.decoder import InPlaceDecoder
from hybridmap.types import Features, Mask, Patches


class CloudDecoder(InPlaceDecoder):
    """Abstract: what decoders for points have. Features of the decoder's own width are taken as they are."""

    @dataclass(frozen=True, kw_only=True)
    class Config(InPlaceDecoder.Config):
        width: int = 384
        """Width of the decoder."""
        num_heads: int = 6
        """Attention heads; must divide the width."""
        drop_path: float = 0.1
        """Largest rate of stochastic depth."""

    def __init__(self, config: Any, *, embed_dim: int, grid: tuple[int, int] | None, patch_values: int | None) -> None:
        super().__init__(config, embed_dim=embed_dim, grid=grid or (1, 1), patch_values=patch_values)
        if config.width == embed_dim:
            self.embed = nn.Identity()  # pyright: ignore[reportAttributeAccessIssue]
        self.position = CentreEmbed(config.width, nn.GELU())

    def rates(self) -> list[float]:
        """Drop path of each layer."""
        return torch.linspace(0, self.config.drop_path, self.config.depth, device="cpu").tolist()


class PointDecoder(CloudDecoder):
    """Source: Point-MAE (arXiv:2203.06604), models/Point_MAE.py (MIT)."""

    @dataclass(frozen=True, kw_only=True)
    class Config(CloudDecoder.Config):
        """384 x 4, 6 heads."""

    def __init__(self, config: Any, *, embed_dim: int, grid: tuple[int, int] | None, patch_values: int | None) -> None:
        super().__init__(config, embed_dim=embed_dim, grid=grid, patch_values=patch_values)
        c = config
        self.layers = nn.ModuleList(
            TransformerBlock(c.width, c.num_heads, c.mlp_ratio, qkv_bias=False, drop_path=rate) for rate in self.rates()
        )
        self._initialise()

    def _initialise(self) -> None:
        for linear in (module for module in self.modules() if isinstance(module, nn.Linear)):
            nn.init.xavier_uniform_(linear.weight)
            if linear.bias is not None:
                nn.init.zeros_(linear.bias)
        nn.init.trunc_normal_(self.mask_token, std=0.02)

    def forward(
        self, features: Features, mask: Mask, patches: Patches, allowed: Bool[Tensor, "#B 1 N N"] | None
    ) -> Float[Tensor, "B N P"]:
        x, position = self.filled(self.embed(features.patches), mask), self.position(patches.coords)
        for block in self.layers:
            x = block(x + position, allowed)
        return self.pred(self.norm(x))


class CurveDecoder(CloudDecoder):
    """Along the scan a patch sees those before it, and never one that comes later; no other permission can be asked for.

    Source: PointMamba (arXiv:2402.10739), models/point_mamba_scan.py (Apache-2.0).
    """

    @dataclass(frozen=True, kw_only=True)
    class Config(CloudDecoder.Config):
        """384 x 4; heads and the width of an MLP are not used."""

    def __init__(self, config: Any, *, embed_dim: int, grid: tuple[int, int] | None, patch_values: int | None) -> None:
        super().__init__(config, embed_dim=embed_dim, grid=grid, patch_values=patch_values)
        self.layers = plain_mamba(config.width, self.rates())
        self.norm = AddNorm(config.width, 1e-5, "layer")  # pyright: ignore[reportAttributeAccessIssue]
        nn.init.trunc_normal_(self.mask_token, std=0.02)

    def forward(
        self, features: Features, mask: Mask, patches: Patches, allowed: Bool[Tensor, "#B 1 N N"] | None
    ) -> Float[Tensor, "B N P"]:
        if allowed is not None:
            raise UserError('a CurveDecoder decides itself who may look at whom; set decoder_mask to "mae"')
        x = self.filled(self.embed(features.patches), mask) + self.position(patches.coords)
        branch, stream, _ = self.layers(x)
        return self.pred(self.layers.finish(branch, stream, self.norm))  # pyright: ignore
