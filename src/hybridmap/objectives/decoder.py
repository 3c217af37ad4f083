"""What predicts: in place, among visible features and mask tokens; or by queries, which look at features and at nothing else.

In place (:class:`InPlaceDecoder`) features and mask tokens stand where their patches are, and attend to one another. A mask
token and a visible token have the same rights, as queries and as keys; the permission depends on regions alone.

    features of the visible ─ embed ─┐
                                     ├─▶ in their places, + positions ─ blocks (who may look at whom) ─ norm ─ pred ─▶ B N P
    mask token for the others ───────┘

By queries (:class:`QueryDecoder`), for what is predicted from earlier features alone: a query knows its place and nothing else,
and queries do not see one another.

    mask token + positions of the predicted ─▶ queries ─▶ blocks ─ norm ─ pred ─▶ B N P
    features of the visible ─ embed ─▶ memory of block j ──▲ (who may look at whom)
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from hybridmap import config as configuration
from hybridmap.config import Configurable
from hybridmap.errors import UserError
from hybridmap.layers.block import CrossBlock, TransformerBlock
from hybridmap.layers.pos_embed import resample, sincos_2d
from hybridmap.tokens.select import put, take
from hybridmap.types import Features, Mask, Patches


class Decoder(nn.Module, Configurable):
    """Abstract: what decoders of both kinds have. A concrete one sets ``layers`` and ``pos_embed``."""

    @dataclass(frozen=True, kw_only=True)
    class Config(configuration.Config):
        """Fields that all decoders have; the defaults are MAP's."""

        width: int = 192
        """Width of the decoder, whatever the encoder's."""
        depth: int = 4
        """Number of blocks."""
        num_heads: int = 16
        """Attention heads; must divide the width."""
        mlp_ratio: float = 4.0
        """Hidden width of the MLP over ``width``."""

        def small(self) -> Any:
            """One block of width 32."""
            return replace(self, width=32, depth=1, num_heads=2)

    config: Any
    layers: nn.ModuleList
    pos_embed: nn.Parameter
    eps = 1e-5
    """Of all norms."""

    def __init__(self, config: Any, *, embed_dim: int, grid: tuple[int, int], patch_values: int | None) -> None:
        """``embed_dim`` is the encoder's width, ``grid`` the rows and columns of the stored positions, ``patch_values`` P; with
        None the normed state is returned as it is, for targets that read it (:attr:`Target.of_state`)."""
        nn.Module.__init__(self)
        self.config = config
        for name in ("width", "depth"):
            if getattr(config, name) < 1:
                raise UserError(f"the {name} of the decoder must be at least 1, got {getattr(config, name)}")
        self.grid = grid
        self.embed = nn.Linear(embed_dim, config.width)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, config.width))
        self.norm = nn.LayerNorm(config.width, self.eps)
        self.pred = nn.Identity() if patch_values is None else nn.Linear(config.width, patch_values)

    @torch.no_grad()
    def _initialise(self) -> None:
        """Xavier for all linear maps, small random mask token. Source: facebookresearch/mae, yunzeliu/MAP."""
        for linear in (module for module in self.modules() if isinstance(module, nn.Linear)):
            nn.init.xavier_uniform_(linear.weight)
            nn.init.zeros_(linear.bias)
        nn.init.normal_(self.mask_token, std=0.02)

    def _cross_blocks(self) -> nn.ModuleList:
        """Blocks whose queries and keys have separate norms, as MAP's and ARM's."""
        c = self.config
        return nn.ModuleList(CrossBlock(c.width, c.num_heads, c.mlp_ratio, eps=self.eps) for _ in range(c.depth))

    def _learned_positions(self) -> nn.Parameter:
        return nn.Parameter(nn.init.normal_(torch.empty(1, self.grid[0] * self.grid[1], self.config.width), std=0.02))

    def positions(self, source: Int[Tensor, "B Q"], patches: Patches) -> Float[Tensor, "B Q W"]:
        """Positions of the patches with these raster indices, resampled to the grid of ``patches``."""
        return F.embedding(source, resample(self.pos_embed, self.grid, patches.grid or self.grid)[0])


class InPlaceDecoder(Decoder):
    """Abstract. A concrete one implements :meth:`forward`."""

    @dataclass(frozen=True, kw_only=True)
    class Config(Decoder.Config):
        """Nothing beyond what all decoders have."""

    @abstractmethod
    def forward(
        self, features: Features, mask: Mask, patches: Patches, allowed: Bool[Tensor, "#B 1 N N"] | None
    ) -> Float[Tensor, "B N O"]:
        """Predict values (or states) of all patches, by position in the scan. ``allowed``: who may look at whom, None = all."""

    def place(self, seen: Float[Tensor, "B V W"], mask: Mask, patches: Patches) -> Float[Tensor, "B N W"]:
        """Embedded visible tokens in their places, mask tokens elsewhere, positions (resampled to the patches' grid) added."""
        return self.filled(seen, mask) + self.positions(patches.source, patches)

    def filled(self, seen: Float[Tensor, "B V W"], mask: Mask) -> Float[Tensor, "B N W"]:
        """The same without positions."""
        batch, patch_count = mask.masked.shape
        return put(seen, mask.visible, self.mask_token.to(seen.dtype).expand(batch, patch_count, -1))


class MAPDecoder(InPlaceDecoder):
    """The released decoder of MAP: four narrow blocks with separate norms for queries and keys, learned positions.

    Class and register tokens do not reach it. Source: yunzeliu/MAP:models_mamba.py.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config(InPlaceDecoder.Config):
        """192 x 4, 16 heads: the same for encoders of every size."""

    def __init__(self, config: MAPDecoder.Config, *, embed_dim: int, grid: tuple[int, int], patch_values: int | None) -> None:
        super().__init__(config, embed_dim=embed_dim, grid=grid, patch_values=patch_values)
        self.layers = self._cross_blocks()
        self._initialise()
        self.pos_embed = self._learned_positions()

    def forward(
        self, features: Features, mask: Mask, patches: Patches, allowed: Bool[Tensor, "#B 1 N N"] | None
    ) -> Float[Tensor, "B N P"]:
        x = self.place(self.embed(features.patches), mask, patches)
        for block in self.layers:
            x = block(x, x, allowed)
        return self.pred(self.norm(x))


class MAEDecoder(InPlaceDecoder):
    """The decoder of MAE: ordinary Transformer blocks, fixed sine-cosine positions, the encoder's class token in front.

    The class token takes part only where everybody may look at everybody: under any other permission it would carry what
    lies in later regions to earlier ones. Source: facebookresearch/mae:models_mae.py.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config(InPlaceDecoder.Config):
        width: int = 512
        """Width of the decoder, a multiple of 4."""
        depth: int = 8
        """Number of blocks."""
        prefix: bool = True
        """Whether the encoder's class token, if it has one, is decoded along."""

    config: MAEDecoder.Config
    eps = 1e-6

    def __init__(self, config: MAEDecoder.Config, *, embed_dim: int, grid: tuple[int, int], patch_values: int | None) -> None:
        super().__init__(config, embed_dim=embed_dim, grid=grid, patch_values=patch_values)
        blocks = (TransformerBlock(config.width, config.num_heads, config.mlp_ratio, eps=self.eps) for _ in range(config.depth))
        self.layers = nn.ModuleList(blocks)
        self.pos_embed = nn.Parameter(sincos_2d(config.width, grid), requires_grad=False)
        if config.prefix:
            self.cls_pos = nn.Parameter(torch.zeros(1, 1, config.width), requires_grad=False)
        self._initialise()

    def forward(
        self, features: Features, mask: Mask, patches: Patches, allowed: Bool[Tensor, "#B 1 N N"] | None
    ) -> Float[Tensor, "B N P"]:
        x = self.place(self.embed(features.patches), mask, patches)
        count = features.prefix.shape[1] if self.config.prefix and allowed is None else 0
        if count:
            x = torch.cat([self.embed(features.prefix) + self.cls_pos, x], dim=1)
        for block in self.layers:
            x = block(x, allowed)
        return self.pred(self.norm(x))[:, count:]


class QueryDecoder(Decoder):
    """Abstract. A concrete one implements :meth:`memory`; its ``layers`` are called as ``block(queries, memory, allowed)``."""

    @dataclass(frozen=True, kw_only=True)
    class Config(Decoder.Config):
        """Nothing beyond what all decoders have."""

    reads: tuple[int, ...] = ()
    """Numbers of the encoder's layers whose outputs :meth:`memory` wants beside the last one."""

    @abstractmethod
    def memory(self, features: Features) -> Float[Tensor, "B V W J"]:
        """What each block (last axis) attends to."""

    def forward(
        self, features: Features, predicted: Int[Tensor, "B Q"], patches: Patches, allowed: Bool[Tensor, "#B 1 Q V"]
    ) -> Float[Tensor, "B N P"]:
        """Predict the values of the patches at the positions ``predicted``; where the others are stands zero.

        ``allowed``: which features each of them may look at, at least one.
        """
        x = self.mask_token + self.positions(take(patches.source, predicted), patches)
        for block, read in zip(self.layers, self.memory(features).unbind(-1), strict=True):
            x = block(x, read, allowed)
        pred = self.pred(self.norm(x))
        return put(pred, predicted, pred.new_zeros(*patches.source.shape, pred.shape[-1]))


class MAPQueryDecoder(QueryDecoder):
    """Queries with the blocks, sizes and positions of MAP's decoder; all blocks attend to the encoder's output."""

    @dataclass(frozen=True, kw_only=True)
    class Config(QueryDecoder.Config):
        """192 x 4, 16 heads, as :class:`MAPDecoder`."""

    def __init__(self, config: MAPQueryDecoder.Config, *, embed_dim: int, grid: tuple[int, int], patch_values: int) -> None:
        super().__init__(config, embed_dim=embed_dim, grid=grid, patch_values=patch_values)
        self.layers = self._cross_blocks()
        self._initialise()
        self.pos_embed = self._learned_positions()

    def memory(self, features: Features) -> Float[Tensor, "B V W J"]:
        return self.embed(features.patches).unsqueeze(-1).expand(-1, -1, -1, len(self.layers))
