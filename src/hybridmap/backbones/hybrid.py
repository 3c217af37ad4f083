"""HybridNet: Mamba and Transformer layers interleaved as a string says. Mamba-R is HybridNet with M layers only.

    image ─ patches + positions ─ [registers among them] ─ M M M T  M M M T  ... ─ norm ─ registers ─ reduce ─ norm ─ fc

How branch and stream flow through M and T is drawn in ``hybridmap.layers.block``. Objectives build the network without
registers, neck and classifier (:meth:`HybridNet.Config.encoder`).
Source: MAP (arXiv:2410.00871), yunzeliu/MAP:models_mamba.py @ f3bcdff; wangf3014/Mamba-Reg:models_mamba.py @ 0f7c2da.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import torch
from jaxtyping import Float
from timm.layers.weight_init import trunc_normal_
from torch import Tensor, nn

from hybridmap.backbones.base import Head
from hybridmap.backbones.sequence import SequenceBackbone, init_patch_embed
from hybridmap.errors import UserError
from hybridmap.layers.block import MambaBlock, OuterSkip, Stack, TransformerBlock
from hybridmap.layers.mamba import MambaMixer, init_mixers
from hybridmap.layers.norm import AddNorm, NormKind, norm
from hybridmap.layers.registers import Registers, spacing
from hybridmap.types import Features


class HybridNet(SequenceBackbone):
    """The paper's network, and every other layout of its two layers.

    A layout of T alone is a plain Vision Transformer: no outer skip, a final LayerNorm with eps 1e-6, and drop path inside its
    blocks; in all others drop path acts where branches of M layers join the stream and T blocks have none.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config(SequenceBackbone.Config):
        layout: str = "MMMT" * 8
        """The layers in execution order, M for Mamba and T for Transformer."""
        num_heads: int = 12
        """Attention heads of T layers; must divide the width."""
        transformer_mlp_ratio: float = 2.0
        """Hidden width of the MLP in T layers over ``embed_dim``."""
        num_registers: int = 12
        """Register tokens spread among the patches, which the classifier reads; with 0 it reads the mean of the patches."""
        cls_reduce: int = 1
        """Each register is reduced to embed_dim / cls_reduce channels before the classifier."""
        scan: Literal["row", "column"] = "row"
        """Order in which Mamba layers scan the patches."""
        outer_skip: OuterSkip = "per_run"
        """Where the outer skip around T layers goes; has no effect in a layout of T alone."""
        norm_kind: NormKind = "rms"
        """Norm of M layers, neck and output."""
        residual_in_fp32: bool = True
        """Keep the stream in at least float32 under autocast."""
        d_state: int = 16
        """States per channel of the scan."""
        d_conv: int = 4
        """Width of the causal convolution."""
        expand: int = 2
        """Inner width of the mixer over ``embed_dim``."""
        init: Literal["keep_dt", "released"] = "keep_dt"
        """``keep_dt``: mixers keep Mamba's own initial step sizes. ``released``: as the official code does, quirks included."""

        def encoder(self) -> HybridNet.Config:
            return replace(self, num_classes=0, num_registers=0, cls_reduce=1)

        def small(self) -> Any:
            """Four layers that resemble the layout: its first four where they hold all its kinds, else four taken evenly."""
            layout = self.layout
            first = layout[:4].ljust(4, layout[0])
            four = first if set(first) == set(layout) else "".join(layout[i * len(layout) // 4] for i in range(4))
            return replace(super().small(), layout=four, num_registers=min(self.num_registers, 2))

    config: HybridNet.Config

    def __init__(self, config: HybridNet.Config) -> None:
        super().__init__(config)
        if not config.layout or set(config.layout) - {"M", "T"}:
            raise UserError(f"a layout is a string of M (Mamba) and T (Transformer) such as 'MMMTMMMT', got {config.layout!r}")
        if config.scan not in ("row", "column"):
            raise UserError(f"scan must be row or column, got {config.scan!r}")
        if config.init not in ("keep_dt", "released"):
            raise UserError(f"init must be keep_dt or released, got {config.init!r}")
        self.scan = config.scan
        self.num_prefix_tokens = config.num_registers
        if config.num_registers:
            spacing(config.num_registers, self.grid[0] * self.grid[1])  # refuse too small a grid now, not at the first image
        self.registers = Registers(config.num_registers, config.embed_dim) if config.num_registers else None
        self.layers = self._build_layers(config)
        pure_transformer = "M" not in config.layout
        self.norm = AddNorm(
            config.embed_dim,
            1e-6 if pure_transformer else 1e-5,
            "layer" if pure_transformer else config.norm_kind,
            residual_in_fp32=config.residual_in_fp32,
        )
        self.head = Head(
            config.embed_dim,
            config.num_classes,
            tokens=max(config.num_registers, 1),
            reduction=config.cls_reduce,
            norm=partial(norm, eps=1e-5, kind=config.norm_kind),
            drop=config.drop_rate,
        )
        self.head_hidden_size = self.head.width
        self._initialise()
        self._read_marks()

    def _build_layers(self, config: HybridNet.Config) -> Stack:
        pure_transformer = "M" not in config.layout
        mamba_layers = config.layout.count("M") or len(config.layout)
        ramp = torch.linspace(0, config.drop_path, mamba_layers, device="cpu").tolist()
        rates = iter(ramp if pure_transformer else [0.0, *ramp])

        def build(kind: str) -> nn.Module:
            if kind == "M":
                mixer = MambaMixer(config.embed_dim, d_state=config.d_state, d_conv=config.d_conv, expand=config.expand)
                return MambaBlock(
                    config.embed_dim,
                    mixer,
                    norm_kind=config.norm_kind,
                    residual_in_fp32=config.residual_in_fp32,
                    drop_path=next(rates),
                )
            rate = next(rates) if pure_transformer else 0.0
            return TransformerBlock(config.embed_dim, config.num_heads, config.transformer_mlp_ratio, drop_path=rate)

        return Stack(
            (build(kind) for kind in config.layout),
            outer_skip="none" if pure_transformer else config.outer_skip,
            final_drop_path=config.drop_path,
        )

    @torch.no_grad()
    def _initialise(self) -> None:
        """The one place that decides how training starts; the mixers come with Mamba's own rules from their constructor.

        Networks with T layers follow MAP: Xavier for every linear map outside the mixers. Mamba-R: truncated normal. With
        ``init="released"`` MAP treats *all* linear maps alike, those of the mixers and their step sizes included, and Mamba-R
        leaves the backward direction without initial step sizes.
        """
        hybrid, released = "T" in self.config.layout, self.config.init == "released"
        init_patch_embed(self.patch_embed.proj)
        trunc_normal_(self.pos_embed, std=0.02)
        if self.registers is not None:
            trunc_normal_(self.registers.token, std=0.02)
            trunc_normal_(self.registers.pos, std=0.02)
        mixers = [module for module in self.modules() if isinstance(module, MambaMixer)]
        inside = {linear for mixer in mixers for linear in linears(mixer)}
        for linear in linears(self):
            if linear not in inside or (released and hybrid):
                self.init_linear(linear)
        if not (released and hybrid):
            init_mixers(mixers, released)

    def init_linear(self, module: nn.Module) -> None:
        if isinstance(module, nn.Linear):
            if "T" in self.config.layout:
                nn.init.xavier_uniform_(module.weight)
            else:
                trunc_normal_(module.weight, std=0.02)
            if module.bias is not None:
                nn.init.zeros_(module.bias)

    def insert_prefix(self, tokens: Float[Tensor, "B V D"], prefix: bool) -> tuple[Float[Tensor, "B L D"], bool]:
        if self.registers is None or not prefix:
            return tokens, False
        return self.registers.insert(tokens), True

    def split_prefix(self, sequence: Float[Tensor, "B L D"]) -> tuple[Float[Tensor, "B R D"], Float[Tensor, "B V D"]]:
        if self.registers is None:
            return sequence[:, :0], sequence
        return self.registers.split(sequence)

    def read_out(self, prefix: Float[Tensor, "B R D"], patches: Float[Tensor, "B N D"]) -> Float[Tensor, "B n D"]:
        """All registers; the mean of the patches where there are none."""
        return prefix if self.registers is not None else patches.mean(1, keepdim=True)

    def pooled(self, features: Features) -> Float[Tensor, "B D"]:
        """Mean of the patches after the final norm."""
        return features.patches.mean(1)


def linears(module: nn.Module) -> Iterator[nn.Linear]:
    """All linear maps inside ``module``."""
    return (m for m in module.modules() if isinstance(m, nn.Linear))
