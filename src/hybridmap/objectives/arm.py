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

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from hybridmap.backbones.arm import ARM
from hybridmap.backbones.sequence import sides
from hybridmap.errors import UserError
from hybridmap.layers.block import CrossBlock
from hybridmap.layers.pos_embed import resample, sincos_2d
from hybridmap.objectives.base import Objective
from hybridmap.objectives.decoder import Decoder
from hybridmap.objectives.targets import Pixels, Target
from hybridmap.tokens.regions import Clusters, Regions, earlier
from hybridmap.types import Batch, Features, Loss, Mask, Patches


def read_layers(depth: int, outputs: int) -> tuple[int, ...]:
    """Numbers of the layers of an encoder whose outputs are read: evenly from the middle to the last one.

    >>> read_layers(12, 4), read_layers(24, 4)
    ((5, 7, 9, 11), (11, 15, 19, 23))
    """
    half = depth // 2
    behind = [half + (depth - half) * j // (outputs - 1) for j in range(outputs - 1)] + [depth]
    return tuple(max(count, 1) - 1 for count in behind)


class ARMDecoder(Decoder):
    """Cross-attention from the places to be predicted: block j attends to output j of the encoder, which has its own norm.

    The norm of the last output is the encoder's. One linear map serves all outputs, laid side by side; block j takes every
    ``depth``-th of its channels from j on. Fixed sine-cosine positions.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config(Decoder.Config):
        width: int = 512
        """Width of the decoder, a multiple of 4."""
        num_heads: int = 8
        """Attention heads; must divide the width."""

    config: ARMDecoder.Config

    def __init__(
        self, config: ARMDecoder.Config, *, embed_dim: int, grid: tuple[int, int], patch_values: int, encoder_depth: int
    ) -> None:
        super().__init__(config, embed_dim=embed_dim, grid=grid, patch_values=patch_values)
        self.reads = read_layers(encoder_depth, config.depth)
        self.norms = nn.ModuleList(nn.LayerNorm(embed_dim, self.eps) for _ in range(config.depth - 1))
        self.embed = nn.Linear(config.depth * embed_dim, config.depth * config.width)
        blocks = (CrossBlock(config.width, config.num_heads, config.mlp_ratio, eps=self.eps) for _ in range(config.depth))
        self.layers = nn.ModuleList(blocks)
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
        normed = [norm(features.taps[s].branch) for norm, s in zip(self.norms, self.reads[:-1], strict=True)]
        return self.embed(torch.cat([*normed, features.patches], dim=-1)).unflatten(-1, (self.config.width, self.config.depth))

    def forward(
        self, features: Features, mask: Mask, patches: Patches, allowed: Bool[Tensor, "#B 1 Q V"]
    ) -> Float[Tensor, "B N P"]:
        """The last Q patches are predicted; in the places of the others stands zero."""
        memory = self.memory(features)
        unpredicted = patches.source.shape[1] - allowed.shape[-2]
        table = resample(self.pos_embed, self.grid, patches.grid or self.grid)
        x = self.mask_token + F.embedding(patches.source[:, unpredicted:], table[0])
        for block, read in zip(self.layers, memory.unbind(-1), strict=True):
            x = block(x, read, allowed)
        return F.pad(self.pred(self.norm(x)), (0, 0, unpredicted, 0))


class ClusterAR(Objective):
    """Predict every region from all earlier ones; see the picture above."""

    @dataclass(frozen=True, kw_only=True)
    class Config(Objective.Config):
        backbone: ARM.Config
        """A network of one direction, which scans the regions one after the other."""
        regions: Regions.Config = field(default_factory=lambda: Clusters.Config(size=4))
        """What is predicted together, and in which order; at least two."""
        decoder: ARMDecoder.Config = field(default_factory=ARMDecoder.Config)
        """What predicts."""
        target: Target.Config = field(default_factory=Pixels.Config)
        """What predictions are compared with."""

    config: ClusterAR.Config
    backbone: ARM

    def __init__(self, config: ClusterAR.Config) -> None:
        super().__init__(config)
        backbone = config.backbone
        if backbone.directions != 1:
            raise UserError(
                f"what is predicted from earlier clusters needs an encoder of one direction, got {backbone.directions}; set "
                "directions to 1 and the scan to the order of the regions, as in arm_base_pretrain_patch16_192"
            )
        self.regions: Regions = config.regions.build()
        self.target: Target = config.target.build()
        usual = self.backbone.partition(torch.zeros(1, backbone.in_chans, *sides(backbone.img_size), device="cpu"))
        self._usual_sizes = usual.grid, self._count(usual)
        self._check_order(usual)
        self.decoder: ARMDecoder = config.decoder.build(
            embed_dim=self.backbone.embed_dim,
            grid=self.backbone.grid,
            patch_values=backbone.patch_size**2 * backbone.in_chans,
            encoder_depth=backbone.depth,
        )

    def _check_order(self, patches: Patches) -> None:
        """Refuse a scan that reaches a later region before an earlier one: its features would give the region away."""
        ranks = self.regions(patches, None)
        if bool((ranks.diff(dim=1) < 0).any()):
            raise UserError(
                f"the scan {self.backbone.scan!r} does not follow the regions {self.config.regions}, so that features of a "
                "region would know what comes later; clusters of size k need the scan cluster(k), rows the scan row"
            )

    def _count(self, patches: Patches) -> tuple[int, ...]:
        """Patches in each region."""
        sizes = self.regions.sizes(patches)
        if len(sizes) < 2:
            raise UserError(
                f"an input of {patches.source.shape[1]} patches has one region, and there is nothing to predict it from; use "
                "larger inputs or smaller regions"
            )
        return sizes

    def _sizes(self, patches: Patches) -> tuple[int, ...]:
        """The same, counted beforehand for the configured image size, so that a compiled step need not count."""
        grid, sizes = self._usual_sizes
        return sizes if patches.grid == grid else self._count(patches)

    def draw(self, patches: Patches, batch: Batch) -> Mask:
        """The last region: everything is predicted from what comes before it, so the encoder needs all others."""
        return _behind(patches, patches.source.shape[1] - self._sizes(patches)[-1])

    def step(self, patches: Patches, mask: Mask, key: Int[Tensor, "B"] | None = None) -> Loss:
        """The loss over all patches but those of the first region. Under a given mask the first region must be visible."""
        predicted = _behind(patches, self._sizes(patches)[0])
        return Loss(total=self.target.loss(self.predict(patches, mask), patches, predicted, key))

    def predict(self, patches: Patches, mask: Mask) -> Float[Tensor, "B N P"]:
        """The first region, which nothing comes before, is not predicted: zero stands there."""
        seen = self.backbone.encode_visible(patches, mask, causal=True, taps=self.decoder.reads[:-1])
        return self.decoder(seen, mask, patches, self.allowed(patches, mask))

    def predicted(self, patches: Patches) -> Int[Tensor, "B Q"]:
        """Positions of the patches that are predicted, ascending: all behind the first region."""
        first, count = self._sizes(patches)[0], patches.source.shape[1]
        return torch.arange(first, count, device=patches.source.device).expand(patches.source.shape[0], -1)

    def allowed(self, patches: Patches, mask: Mask) -> Bool[Tensor, "#B 1 Q V"]:
        """Which visible patches (last axis) may be looked at where a patch behind the first region is predicted."""
        return earlier(self.regions(patches, mask), mask.visible, self._sizes(patches)[0])


def _behind(patches: Patches, first: int) -> Mask:
    """All patches from position ``first`` on."""
    batch, count = patches.source.shape
    position = torch.arange(count, device=patches.source.device)
    return Mask(masked=(position >= first).expand(batch, -1), visible=position[:first].expand(batch, -1))
