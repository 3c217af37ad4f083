"""4DMAP: masked autoregressive pretraining of point-cloud video; frames are the regions, and time is their order.

    clip ─ whole, also the masked frames ─▶ causal backbone ─▶ features of every frame ──┐
                                     mask token in place of those of masked frames ──────┴─ + place in time
                                          ─ causal blocks ─ norm ─▶ N x 3 points of every masked frame ─▶ Chamfer distance

A prediction at frame t looks at frames up to t, and of those the features know frames up to their own: what a masked frame
holds reaches predictions of later frames, through visible frames between, but never its own. That is so because the backbone is
causal and PointNet++ sees one frame at a time; convolutions over neighbouring frames would give the answer away.
Source: yunzeliu/MAP:pointnet4D/HOI4DAS/pn4d/pretrain/fourd_map.py @ f3bcdff.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from timm.layers.weight_init import trunc_normal_
from torch import Tensor, nn

from hybridmap import config as configuration
from hybridmap.backbones.pointnet4d import PointNet4D
from hybridmap.config import Configurable
from hybridmap.errors import UserError
from hybridmap.layers.block import TransformerBlock
from hybridmap.layers.decay import no_decay
from hybridmap.objectives.base import PatchObjective
from hybridmap.objectives.targets import exact, predicted_positions
from hybridmap.ops.points import chamfer_l2
from hybridmap.tokens.masking import Masking, Random
from hybridmap.tokens.regions import permission
from hybridmap.tokens.select import take
from hybridmap.types import Batch, Loss, Mask, Patches


class FrameDecoder(nn.Module, Configurable):
    """Transformer blocks of the backbone's width over all frames, and a linear map from a frame's token to its points."""

    @dataclass(frozen=True, kw_only=True)
    class Config(configuration.Config):
        depth: int = 4
        """Number of blocks."""
        num_heads: int = 8
        """Attention heads; must divide the backbone's width."""
        mlp_ratio: float = 4.0
        """Hidden width of the MLP over the width."""

        def small(self) -> Any:
            """One block."""
            return replace(self, depth=1, num_heads=2)

    config: FrameDecoder.Config

    def __init__(self, config: FrameDecoder.Config, *, embed_dim: int, max_frames: int, frame_values: int) -> None:
        nn.Module.__init__(self)
        self.config = config
        if config.depth < 1:
            raise UserError(f"a decoder needs at least one block, got depth {config.depth}; try 4")
        self.mask_token = no_decay(nn.Parameter(torch.zeros(1, 1, embed_dim)))
        self.frame_pos = no_decay(nn.Parameter(torch.zeros(1, max_frames, embed_dim)))
        for parameter in (self.mask_token, self.frame_pos):
            trunc_normal_(parameter, std=0.02)
        blocks = (TransformerBlock(embed_dim, config.num_heads, config.mlp_ratio, qkv_bias=False) for _ in range(config.depth))
        self.layers = nn.ModuleList(blocks)
        self.norm = nn.LayerNorm(embed_dim)
        self.pred = nn.Linear(embed_dim, frame_values)

    def forward(
        self, features: Float[Tensor, "B T D"], mask: Mask, patches: Patches, allowed: Bool[Tensor, "#B 1 T T"]
    ) -> Float[Tensor, "B T D"]:
        """Tokens of all frames, from which ``pred`` makes points. ``allowed``: who may look at whom."""
        x = torch.where(mask.masked[..., None], self.mask_token.to(features.dtype), features)
        x = x + nn.functional.embedding(patches.source, self.frame_pos[0])
        for block in self.layers:
            x = block(x, allowed)
        return self.norm(x)


class FourDMAP(PatchObjective):
    """Predict the points of masked frames from what came before; see the picture above."""

    @dataclass(frozen=True, kw_only=True)
    class Config(PatchObjective.Config):
        backbone: PointNet4D.Config
        """The network to be pretrained; it is built without classifier."""
        masking: Masking.Config = field(default_factory=Random.Config)
        """Which frames are predicted."""
        decoder: FrameDecoder.Config = field(default_factory=FrameDecoder.Config)
        """What predicts."""

    config: FourDMAP.Config

    def __init__(self, config: FourDMAP.Config) -> None:
        super().__init__(config)
        self.masking: Masking = config.masking.build()
        if self.masking.hides_nothing:
            raise UserError("4DMAP predicts masked frames, but with a mask ratio of 0 there are none; try 0.5")
        if config.masking.scope != "image":
            raise UserError("every frame is a region of its own, of which no part can be masked; leave masking.scope at image")
        self.decoder: FrameDecoder = config.decoder.build(
            embed_dim=self.backbone.embed_dim,
            max_frames=config.backbone.max_frames,
            frame_values=self.backbone.patch_values,
        )

    def draw(self, patches: Patches, batch: Batch) -> Mask:
        ranks = patches.source
        return self.masking(patches, ranks, (1,) * ranks.shape[1], batch.key, batch.step_key)

    def step(self, patches: Patches, mask: Mask, key: Int[Tensor, "B"] | None = None) -> Loss:
        """Mean squared distance from predicted to true points of masked frames, plus that from true to predicted ones."""
        positions = predicted_positions(patches, mask)
        found = self.decoder.pred(take(self.decode(patches, mask), positions))
        true = take(patches.content, positions)
        return Loss(total=chamfer_l2(_clouds(exact(found)), _clouds(exact(true))))

    def predict(self, patches: Patches, mask: Mask) -> Float[Tensor, "B T P"]:
        """The points of every frame, three numbers each."""
        return exact(self.decoder.pred(self.decode(patches, mask)))

    def decode(self, patches: Patches, mask: Mask) -> Float[Tensor, "B T D"]:
        """The decoder's tokens of all frames."""
        features = self.backbone.encode_visible(patches, None)
        return self.decoder(features.patches, mask, patches, self.allowed(patches))

    def allowed(self, patches: Patches) -> Bool[Tensor, "#B 1 T T"]:
        """Who may look at whom in the decoder: the rank of a frame is its place in time, and rank(j) <= rank(i) is needed."""
        return permission(patches.source, "map")


def _clouds(values: Float[Tensor, "B M P"]) -> Float[Tensor, "BM N 3"]:
    """Every frame as a cloud of a batch of them."""
    return values.flatten(0, 1).unflatten(1, (-1, 3))
