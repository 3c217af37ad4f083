"""Mamba3D, and MAP's hybrid of it: layers of neighbours and scan, and layers of neighbours and attention, as a string says.

    "M" * 12        Mamba3D, 16.9 M parameters
    "MMMT" * 4      HybridNet for points, as its released code builds it: 25.2 M (the paper prints 19.3 M)

Source: Mamba3D (arXiv:2404.14966); MAP (arXiv:2410.00871), section 5.3. Differs from the official code in three places, each
with a switch for recorded numbers (:meth:`HybridNet3D.Config.official`): there K-norm divides by one deviation of the whole
batch, the classifier adds the mean token of the batch's first sample to every sample, and no centre lies close to the origin.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from hybridmap.backbones.cloud import ClassTokenCloudBackbone
from hybridmap.errors import UserError
from hybridmap.layers.attention import Attention
from hybridmap.layers.block import TransformerBlock
from hybridmap.layers.channel_scan import ChannelScanMixer
from hybridmap.layers.cloud_block import CloudBlock
from hybridmap.layers.local_norm import Deviation, LocalNormPool
from hybridmap.ops.points import knn


class HybridNet3D(ClassTokenCloudBackbone):
    """Every layout of the two layers."""

    @dataclass(frozen=True, kw_only=True)
    class Config(ClassTokenCloudBackbone.Config):
        layout: str = "MMMT" * 4
        """The layers in execution order, M for Mamba and T for Transformer."""
        num_heads: int = 6
        """Attention heads of T layers; must divide the width."""
        t_layer: Literal["released", "attention"] = "released"
        """``released``: neighbours, then a whole Transformer block. ``attention``: attention alone, which gives the 19.3 M
        parameters that the paper prints; a guess."""
        neighbours: int = 4
        """Nearest centres that a token looks at, itself included."""
        deviation: Deviation = "sample"
        """What K-norm takes its deviation over; ``batch`` as the official code, whose outputs depend on the batch."""
        pool_mean: Literal["own", "first"] = "own"
        """Whose mean token the classifier adds; ``first``: that of the batch's first sample, as the official code."""
        channel_backwards: bool = True
        """The second scan of M layers; off, only its parameters are there."""

        def official(self) -> Any:
            return replace(super().official(), deviation="batch", pool_mean="first")

        def small(self) -> Any:
            first = self.layout[:4]
            layout = (
                first if set(first) == set(self.layout) else "".join(self.layout[i * len(self.layout) // 4] for i in range(4))
            )
            return replace(super().small(), layout=layout)

    config: HybridNet3D.Config
    activation = nn.SiLU

    def __init__(self, config: HybridNet3D.Config) -> None:
        super().__init__(config)
        if not config.layout or set(config.layout) - {"M", "T"}:
            raise UserError(f"a layout is a string of M (Mamba) and T (Transformer) such as 'MMMTMMMT', got {config.layout!r}")
        for name, words in {
            "t_layer": ("released", "attention"),
            "deviation": ("sample", "batch"),
            "pool_mean": ("own", "first"),
        }.items():
            if getattr(config, name) not in words:
                raise UserError(f"{name} must be {' or '.join(words)}, got {getattr(config, name)!r}")
        # Both kinds count from 0 along the same ramp, whatever stands between them.
        mambas = max(config.layout.count("M"), config.layout.count("T"))
        rates = torch.linspace(0, config.drop_path, mambas, device="cpu").tolist()
        numbers = {"M": iter(rates), "T": iter(rates)}
        self.layers = nn.ModuleList(self._layer(kind, next(numbers[kind])) for kind in config.layout)
        self._read_marks()

    def _layer(self, kind: str, rate: float) -> CloudBlock:
        dim, heads = self.config.embed_dim, self.config.num_heads
        if kind == "T" and self.config.t_layer == "attention":
            return CloudBlock(dim, Attention(dim, heads, qkv_bias=False), None, drop_path=rate)
        if kind == "T":
            mixer: nn.Module = TransformerBlock(dim, heads, qkv_bias=False)
        else:
            mixer = ChannelScanMixer(dim, backwards=self.config.channel_backwards)
        return CloudBlock(dim, mixer, LocalNormPool(dim, self.config.deviation), drop_path=rate)

    def layer_inputs(self, coords: Float[Tensor, "B V 3"]) -> tuple[Any, ...]:
        return (knn(coords, coords, min(self.config.neighbours, coords.shape[1]))[1],)

    def read_out(self, token: Float[Tensor, "B D"], patches: Float[Tensor, "B N D"]) -> Float[Tensor, "B D2"]:
        """The class token, and the sum of the largest and the mean value over the patches."""
        mean = patches.mean(1)
        if self.config.pool_mean == "first":
            mean = mean[:1]
        return torch.cat([token, patches.amax(1) + mean], dim=1)
