"""Cluster autoregression (ARM): every cluster of patches is predicted from the features of all earlier ones.

                      clusters 0 .. G-2, in order                       clusters 1 .. G-1
    image ─ partition ──▶ one-way encoder ──▶ outputs of four layers ──▶ decoder block j attends to output j ─▶ norm ─ pred

    query of cluster     features of cluster
                         0 1 2 3 ...
                    1    ■
                    2    ■ ■                 a query knows its place and nothing else;
                    3    ■ ■ ■               queries do not see one another
                    4    ■ ■ ■ ■

Nothing is masked at random: the encoder sees all but the last cluster, and because it scans one way the features of a cluster
know nothing of later ones. Clusters may be any regions of the image that the encoder scans one after the other.
Source: ARM (arXiv:2406.07537), OliverRensu/ARM:models_pretrain.py @ 996d93e.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from hybridmap.backbones.arm import ARM
from hybridmap.errors import UserError
from hybridmap.layers.pos_embed import sincos_2d
from hybridmap.objectives.decoder import QueryDecoder
from hybridmap.objectives.shift import NextRegion
from hybridmap.tokens.regions import Clusters, Regions
from hybridmap.types import Features


def read_layers(depth: int, outputs: int) -> tuple[int, ...]:
    """Numbers of the layers of an encoder whose outputs are read: evenly from the middle to the last one.

    >>> read_layers(12, 4), read_layers(24, 4)
    ((5, 7, 9, 11), (11, 15, 19, 23))
    """
    half = depth // 2
    behind = [half + (depth - half) * j // (outputs - 1) for j in range(outputs - 1)] + [depth]
    return tuple(max(count, 1) - 1 for count in behind)


class ARMDecoder(QueryDecoder):
    """Cross-attention from the places to be predicted: block j attends to output j of the encoder, which has its own norm.

    The norm of the last output is the encoder's. One linear map serves all outputs, laid side by side; block j takes every
    ``depth``-th of its channels from j on. Fixed sine-cosine positions.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config(QueryDecoder.Config):
        width: int = 512
        """Width of the decoder, a multiple of 4."""
        num_heads: int = 8
        """Attention heads; must divide the width."""

        def small(self) -> Any:
            """Two blocks, since they attend to different outputs."""
            return replace(super().small(), depth=2)

    config: ARMDecoder.Config

    def __init__(
        self, config: ARMDecoder.Config, *, embed_dim: int, grid: tuple[int, int], patch_values: int | None, encoder_depth: int
    ) -> None:
        super().__init__(config, embed_dim=embed_dim, grid=grid, patch_values=patch_values)
        self.reads = read_layers(encoder_depth, config.depth)[:-1]
        self.norms = nn.ModuleList(nn.LayerNorm(embed_dim, self.eps) for _ in range(config.depth - 1))
        self.embed = nn.Linear(config.depth * embed_dim, config.depth * config.width)
        self.layers = self._cross_blocks()
        self.pos_embed = nn.Parameter(sincos_2d(config.width, grid), requires_grad=False)
        self._initialise()

    @torch.no_grad()
    def _initialise(self) -> None:
        """Xavier inside the blocks, torch's own weights for the two other maps, no biases, small random mask token."""
        for linear in (module for module in self.layers.modules() if isinstance(module, nn.Linear)):
            nn.init.xavier_uniform_(linear.weight)
        for linear in (module for module in self.modules() if isinstance(module, nn.Linear)):
            nn.init.zeros_(linear.bias)
        nn.init.normal_(self.mask_token, std=0.02)

    def memory(self, features: Features) -> Float[Tensor, "B V W J"]:
        """What each block (last axis) attends to; the last output comes normalised."""
        normed = [norm(features.taps[s].branch) for norm, s in zip(self.norms, self.reads, strict=True)]
        return self.embed(torch.cat([*normed, features.patches], dim=-1)).unflatten(-1, (self.config.width, self.config.depth))


class ClusterAR(NextRegion):
    """Predict every cluster from all earlier ones; see the picture above."""

    @dataclass(frozen=True, kw_only=True)
    class Config(NextRegion.Config):
        backbone: ARM.Config
        """A network of one direction, which scans the regions one after the other."""
        regions: Regions.Config = field(default_factory=lambda: Clusters.Config(size=4))
        """What is predicted together, and in which order; at least two."""
        decoder: ARMDecoder.Config = field(default_factory=ARMDecoder.Config)
        """What predicts."""

    config: ClusterAR.Config
    backbone: ARM
    decoder: ARMDecoder

    def __init__(self, config: ClusterAR.Config) -> None:
        directions = config.backbone.directions
        if directions != 1:
            raise UserError(
                f"what is predicted from earlier clusters needs an encoder of one direction, got {directions}; set "
                "directions to 1 and the scan to the order of the regions, as in arm_base_pretrain_patch16_192"
            )
        super().__init__(config)

    def build_decoder(self, patch_values: int) -> ARMDecoder:
        return self.config.decoder.build(
            embed_dim=self.backbone.embed_dim,
            grid=self.backbone.grid,
            patch_values=patch_values,
            encoder_depth=self.config.backbone.depth,
        )
