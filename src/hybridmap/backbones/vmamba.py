"""VMamba (second generation): four stages of blocks that scan the map from four sides; no attention, no positions, no windows.

    stem        Conv 3x3 s2 ─ LN ─ GELU ─ Conv 3x3 s2 ─ LN
    block       x = x + DropPath(SS2D(LN x));  x = x + DropPath(MLP(LN x))          SS2D: hybridmap.layers.ss2d
    downsample  Conv 3x3 s2, which doubles the width ─ LN
    head        LN ─ mean over the map ─ fc

All norms act on the channels of one position. Maps are channels-last in memory from the stem on, so that the change between
(B, D, rows, columns), which convolutions take, and (B, rows, columns, D), which blocks take, is a matter of strides only.
Source: VMamba (arXiv:2401.10166), MzeroMiko/VMamba:classification/models/vmamba.py @ 2ed52ea, ``v05_noz``.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

import torch
from jaxtyping import Float
from timm.layers.drop import drop_path
from timm.layers.mlp import Mlp
from timm.layers.norm import LayerNorm2d
from timm.layers.weight_init import trunc_normal_
from torch import Tensor, nn

from hybridmap.backbones.base import Head
from hybridmap.backbones.hierarchical import HierarchicalBackbone, Stage, drop_path_rates
from hybridmap.errors import UserError
from hybridmap.layers.ss2d import SS2D

EPS = 1e-5
"""Of every norm."""


class VMambaBlock(nn.Module):
    """``x = x + DropPath(SS2D(LN x)); x = x + DropPath(MLP(LN x))`` on maps (B, rows, columns, dim), exact GELU."""

    def __init__(self, dim: int, mixer: nn.Module, mlp_ratio: float = 4.0, *, drop_path: float = 0.0) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, EPS)
        self.mixer = mixer
        self.norm2 = nn.LayerNorm(dim, EPS)
        self.mlp = Mlp(dim, int(mlp_ratio * dim))
        self.drop_path = drop_path

    def forward(self, x: Float[Tensor, "B rows columns D"]) -> Float[Tensor, "B rows columns D"]:
        x = x + drop_path(self.mixer(self.norm1(x)), self.drop_path, self.training)
        return x + drop_path(self.mlp(self.norm2(x)), self.drop_path, self.training)


class VMambaStage(Stage):
    """Blocks on channels-last maps between the maps that convolutions take and give."""

    def mix(self, x: Float[Tensor, "B D rows columns"]) -> Float[Tensor, "B D rows columns"]:
        return self.run(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class VMamba(HierarchicalBackbone):
    """The network drawn above. Images may have any size; the weights know none."""

    @dataclass(frozen=True, kw_only=True)
    class Config(HierarchicalBackbone.Config):
        d_state: int = 1
        """States per channel of the scans."""
        expand: float = 2.0
        """Inner width of the mixer over the width of its stage."""
        mlp_ratio: float = 4.0
        """Hidden width of the MLP over the width of its stage."""

    first_conv = "stem.conv1"

    config: VMamba.Config

    def __init__(self, config: VMamba.Config) -> None:
        super().__init__(config)
        first = config.embed_dim
        if first < 2 or first % 2:
            raise UserError(f"embed_dim must be even, since the stem passes through half of it, got {first}; try {first + 1}")
        if int(config.mlp_ratio * first) < 1:
            raise UserError(f"mlp_ratio must leave the MLP a hidden channel, got {config.mlp_ratio}; try 4")
        self.stem = nn.Sequential(
            OrderedDict(
                conv1=nn.Conv2d(config.in_chans, first // 2, 3, stride=2, padding=1),
                norm1=LayerNorm2d(first // 2, EPS),
                act=nn.GELU(),
                conv2=nn.Conv2d(first // 2, first, 3, stride=2, padding=1),
                norm2=LayerNorm2d(first, EPS),
            )
        )
        rates = drop_path_rates(config.drop_path, config.depths)
        last = len(self.widths) - 1
        self.stages = nn.ModuleList(
            VMambaStage(
                (
                    VMambaBlock(dim, SS2D(dim, d_state=config.d_state, expand=config.expand), config.mlp_ratio, drop_path=rate)
                    for rate in rates[s]
                ),
                downsample(dim) if s < last else None,
            )
            for s, dim in enumerate(self.widths)
        )
        self.norm = LayerNorm2d(self.num_features, EPS)
        self.head = Head(self.num_features, config.num_classes, drop=config.drop_rate)
        for module in self.modules():
            self.init_linear(module)
        self._read_marks()

    @torch.no_grad()
    def init_linear(self, module: nn.Module) -> None:
        """Truncated normal for every linear map, those of the mixers too; what is stacked by direction keeps its own start."""
        if isinstance(module, nn.Linear):
            trunc_normal_(module.weight, std=0.02)
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def downsample(dim: int) -> nn.Sequential:
    """Half the resolution, twice the width."""
    conv = nn.Conv2d(dim, 2 * dim, 3, stride=2, padding=1)
    return nn.Sequential(OrderedDict(conv=conv, norm=LayerNorm2d(2 * dim, EPS)))
