"""PointMamba: a plain Mamba along curves that fill space.

    centres ─ order along a Hilbert curve ─┐
            ─ along one with x and y swapped ─┴─ tokens of both, each scaled in its own way, one behind the other ─ + positions
            ─ layers ─ norm ─ mean ─ head

In pretraining the clouds of one step are scanned along one of the two curves. Differs from the official code, where the depth
of the curve is that of the batch's largest cloud: here each cloud's own (:meth:`PointMamba.Config.official` has it that way).
Source: PointMamba (arXiv:2402.10739), models/point_mamba_scan.py (Apache-2.0).
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from hybridmap.backbones.cloud import CloudBackbone, CloudHead
from hybridmap.errors import UserError
from hybridmap.hashing import uniform_int
from hybridmap.layers.norm import AddNorm
from hybridmap.layers.patch_net import CentreEmbed
from hybridmap.layers.plain_mamba import plain_mamba
from hybridmap.tokens.clouds import curve_order, in_order
from hybridmap.tokens.select import take
from hybridmap.types import Features, Patches

_STREAM = 0x63757276
ORDERS = 2


class PointMamba(CloudBackbone):
    """One scan forwards; what a token knows of later ones comes from the second order."""

    @dataclass(frozen=True, kw_only=True)
    class Config(CloudBackbone.Config):
        num_patches: int = 64
        """Centres of a cloud."""
        depth: int = 12
        """Number of layers."""
        cell: float = 0.02
        """Side of the cells that the curves run through."""
        shared_depth: bool = False
        """The curve is as deep as the batch's largest cloud needs, as in the official code."""

        def official(self) -> Any:
            return replace(super().official(), shared_depth=True)

    config: PointMamba.Config
    layers: Any

    def __init__(self, config: PointMamba.Config) -> None:
        super().__init__(config)
        if config.depth < 1:
            raise UserError(f"depth must be at least 1, got {config.depth}")
        if not config.cell > 0:
            raise UserError(f"cell must be a positive length, got {config.cell}")
        dim = config.embed_dim
        self.position = CentreEmbed(dim, nn.GELU())
        self.order_scale = nn.ParameterList(nn.init.normal_(torch.empty(dim), mean=1.0, std=0.02) for _ in range(ORDERS))
        self.order_shift = nn.ParameterList(nn.init.normal_(torch.empty(dim), std=0.02) for _ in range(ORDERS))
        self.num_prefix_tokens = 0
        self.layers = plain_mamba(dim, torch.linspace(0, config.drop_path, config.depth, device="cpu").tolist())
        self.norm = AddNorm(dim, 1e-5, "layer")
        self.head_hidden_size = dim
        self.head = CloudHead(dim, config.num_classes) if config.num_classes else nn.Module()
        self._read_marks()

    def order(self, centres: Float[Tensor, "B N 3"], number: int) -> Int[Tensor, "B N"]:
        """Places of the centres along curve ``number``, 0 or 1."""
        return curve_order(centres, self.config.cell, swapped=number == 1, shared_depth=self.config.shared_depth)

    def partition(self, inputs: Tensor, step_key: int = 0) -> Patches:
        """Along the one of the two curves that ``step_key`` draws."""
        patches, number = super().partition(inputs), int(ORDERS * uniform_int(step_key, _STREAM))
        return in_order(patches, self.order(patches.coords, number), number)

    def embed(self, patches: Patches) -> Float[Tensor, "B N D"]:
        return self._scaled(super().embed(patches), patches.order)

    def _scaled(self, tokens: Float[Tensor, "B N D"], number: int) -> Float[Tensor, "B N D"]:
        """As curve ``number`` has them. Stacked, so that the parameters of the other one get a gradient too: zeros."""
        scale, shift = (torch.stack(list(both))[number] for both in (self.order_scale, self.order_shift))
        return tokens * scale + shift

    def encode(
        self,
        tokens: Float[Tensor, "B V D"],
        coords: Float[Tensor, "B V 3"],
        *,
        prefix: bool = False,
        causal: bool = False,
        taps: Collection[int] = (),
        grid: tuple[int, ...] | None = None,
    ) -> Features:
        """``causal`` changes nothing: no token ever sees a later one."""
        x = tokens + self.position(coords).to(tokens.dtype)
        branch, stream, tapped = self.layers(x, taps=taps)
        x = self.layers.finish(branch, stream, self.norm)
        return Features(patches=x, prefix=x[:, :0], taps=tapped)

    def forward_features(self, x: Tensor) -> Float[Tensor, "B N2 D"]:
        """The patches along the first curve, then along the second."""
        patches = super().partition(x)
        both = [in_order(patches, self.order(patches.coords, number), number) for number in range(ORDERS)]
        plain = super().embed(patches)  # once for both
        scaled = [self._scaled(take(plain, p.source), p.order) for p in both]
        return self.encode(torch.cat(scaled, dim=1), torch.cat([p.coords for p in both], dim=1)).patches

    def forward_head(self, x: Float[Tensor, "B L D"], pre_logits: bool = False) -> Tensor:
        mean = x.mean(1)
        return mean if pre_logits or not self.num_classes else self.head(mean)

    def set_grad_checkpointing(self, enable: bool = True, every: int = 1) -> None:
        self.layers.checkpointing = every if enable else 0
