"""Vision Transformers as DeiT and MAE use them: class token first, learned or fixed sine-cosine positions.

    pool="cls", norm_position="tokens"    DeiT, and the encoder of MAE       norm ─ class token ─ fc
    pool="avg", norm_position="pooled"    MAE fine-tuning                    mean of patches ─ norm ─ fc

In pretraining (:meth:`ViT.Config.encoder`) positions are fixed and the class token is prepended to the visible patches.
Source: facebookresearch/mae:models_mae.py, models_vit.py @ efb2a80; facebookresearch/deit @ 7e160fe.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Float
from timm.layers.weight_init import trunc_normal_
from torch import Tensor, nn

from hybridmap.backbones.base import Head
from hybridmap.backbones.sequence import SequenceBackbone
from hybridmap.errors import UserError
from hybridmap.layers.block import Stack, TransformerBlock
from hybridmap.layers.decay import no_decay
from hybridmap.layers.norm import AddNorm
from hybridmap.layers.pos_embed import sincos_2d
from hybridmap.types import Features


class ViT(SequenceBackbone):
    """Plain Vision Transformer; LayerNorm eps 1e-6, qkv bias, linear ramp of drop path."""

    @dataclass(frozen=True, kw_only=True)
    class Config(SequenceBackbone.Config):
        embed_dim: int = 768
        """Width D of the tokens."""
        depth: int = 12
        """Number of layers."""
        num_heads: int = 12
        """Attention heads; must divide the width."""
        mlp_ratio: float = 4.0
        """Hidden width of the MLP over ``embed_dim``."""
        pool: Literal["cls", "avg"] = "cls"
        """What represents the image: the class token, or the mean of the patches."""
        norm_position: Literal["tokens", "pooled"] = "tokens"
        """Whether the final norm acts on every token, or on the pooled vector."""
        positions: Literal["learned", "sincos"] = "learned"
        """``sincos``: the fixed table of MAE pretraining, and MAE's initialisation with it."""
        scan: Literal["row", "column"] = "row"
        """Order in which the patches stand, which matters where attention is causal."""

        def encoder(self) -> ViT.Config:
            return replace(self, num_classes=0, pool="cls", norm_position="tokens", positions="sincos")

    config: ViT.Config

    def __init__(self, config: ViT.Config) -> None:
        super().__init__(config)
        if config.pool not in ("cls", "avg"):
            raise UserError(f"pool must be cls or avg, got {config.pool!r}")
        if config.norm_position not in ("tokens", "pooled"):
            raise UserError(f"norm_position must be tokens or pooled, got {config.norm_position!r}")
        if config.positions not in ("learned", "sincos"):
            raise UserError(f"positions must be learned or sincos, got {config.positions!r}")
        if config.scan not in ("row", "column"):
            raise UserError(f"scan must be row or column, got {config.scan!r}")
        if config.depth < 1:
            raise UserError(f"depth must be at least 1, got {config.depth}")
        self.scan = config.scan
        self.num_prefix_tokens = 1
        self.norm_tokens = config.norm_position == "tokens"
        self.cls_token = nn.Parameter(torch.zeros(1, 1, config.embed_dim))
        self.cls_pos = no_decay(nn.Parameter(torch.zeros(1, 1, config.embed_dim)))
        if config.positions == "learned":
            no_decay(self.cls_token)  # MAE's pretraining decays it
        rates = torch.linspace(0, config.drop_path, config.depth, device="cpu").tolist()
        blocks = (
            TransformerBlock(config.embed_dim, config.num_heads, config.mlp_ratio, eps=1e-6, drop_path=rate) for rate in rates
        )
        self.layers = Stack(blocks, outer_skip="none")
        self.norm = AddNorm(config.embed_dim, 1e-6, "layer")
        self.head = Head(config.embed_dim, config.num_classes, drop=config.drop_rate)
        self.head_hidden_size = self.head.width
        self._initialise()
        self._read_marks()

    @torch.no_grad()
    def _initialise(self) -> None:
        """MAE: Xavier for all linear maps and for the patch weight seen as one, fixed positions. Otherwise timm's ViT."""
        for linear in (m for m in self.modules() if isinstance(m, nn.Linear)):
            self.init_linear(linear)
        if self.config.positions == "sincos":
            nn.init.xavier_uniform_(self.patch_embed.proj.weight.flatten(1))
            nn.init.normal_(self.cls_token, std=0.02)
            self.pos_embed.copy_(sincos_2d(self.embed_dim, self.grid))
            self.pos_embed.requires_grad_(False)
            self.cls_pos.requires_grad_(False)
        else:
            for parameter in (self.cls_token, self.cls_pos, self.pos_embed):
                trunc_normal_(parameter, std=0.02)

    def init_linear(self, module: nn.Module) -> None:
        if isinstance(module, nn.Linear):
            if self.config.positions == "sincos":
                nn.init.xavier_uniform_(module.weight)
            else:
                trunc_normal_(module.weight, std=0.02)
            nn.init.zeros_(module.bias)

    def insert_prefix(self, tokens: Float[Tensor, "B V D"], prefix: bool) -> tuple[Float[Tensor, "B L D"], bool]:
        """The class token comes first, in pretraining too."""
        first = (self.cls_token + self.cls_pos).expand(tokens.shape[0], -1, -1)
        return torch.cat([first, tokens], dim=1), True

    def split_prefix(self, sequence: Float[Tensor, "B L D"]) -> tuple[Float[Tensor, "B R D"], Float[Tensor, "B V D"]]:
        return sequence[:, :1], sequence[:, 1:]

    def read_out(self, prefix: Float[Tensor, "B R D"], patches: Float[Tensor, "B N D"]) -> Float[Tensor, "B n D"]:
        pooled = prefix if self.config.pool == "cls" else patches.mean(1, keepdim=True)
        return pooled if self.norm_tokens else self.norm(pooled)[0]

    def pooled(self, features: Features) -> Float[Tensor, "B D"]:
        """The class token or the mean of the patches, after the norm."""
        return self.read_out(features.prefix, features.patches).squeeze(1)
