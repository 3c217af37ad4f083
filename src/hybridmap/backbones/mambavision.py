"""MambaVision: convolutions at high resolution, then Mamba mixers followed by attention inside of windows.

    image ─ stem ─▶ C ... C ─▶ C ... C ─▶ M ... M A ... A ─▶ M ... M A ... A ─▶ norm ─▶ mean ─ fc
                    1/4        1/8        1/16                1/32
                                          └── windows of 14 x 14   └── windows of 7 x 7

In stages 2 and 3 the first half of the blocks (the larger half, if their number is odd) mixes by the scan, the rest by
attention. A map is padded with zeros at the right and at the bottom until windows divide it; all blocks of the stage run on the
windows, padding included, which nothing masks; then it is put together and cropped. At 224 pixels each map is one window.
Source: MambaVision (arXiv:2407.08083), NVlabs/MambaVision:mambavision/models/mamba_vision.py.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from timm.layers.drop import drop_path
from timm.layers.layer_scale import LayerScale, LayerScale2d
from timm.layers.mlp import Mlp
from timm.layers.weight_init import trunc_normal_
from timm.models.swin_transformer import window_partition, window_reverse
from torch import Tensor, nn

from hybridmap.backbones.base import Head
from hybridmap.backbones.hierarchical import HierarchicalBackbone, Stage, drop_path_rates
from hybridmap.backbones.hybrid import linears
from hybridmap.errors import UserError
from hybridmap.layers.attention import Attention
from hybridmap.layers.mambavision import MambaVisionMixer


class ConvBlock(nn.Module):
    """``x + DropPath(scale(BN(conv(GELU(BN(conv x))))))``: 3x3, tanh-approximate GELU; ``scale`` is learned, per channel."""

    def __init__(self, dim: int, *, layer_scale: float | None, drop_path: float) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(dim, dim, 3, padding=1)
        self.norm1 = nn.BatchNorm2d(dim)
        self.conv2 = nn.Conv2d(dim, dim, 3, padding=1)
        self.norm2 = nn.BatchNorm2d(dim)
        self.scale = nn.Identity() if layer_scale is None else LayerScale2d(dim, layer_scale)
        self.drop_path = drop_path

    def forward(self, x: Float[Tensor, "B D rows columns"]) -> Float[Tensor, "B D rows columns"]:
        branch = F.gelu(self.norm1(self.conv1(x)), approximate="tanh")
        branch = self.scale(self.norm2(self.conv2(branch)))
        return x + drop_path(branch, self.drop_path, self.training)


class WindowBlock(nn.Module):
    """``x = x + DropPath(scale1(Mixer(LN1 x))); x = x + DropPath(scale2(MLP(LN2 x)))`` on the tokens of single windows."""

    def __init__(self, dim: int, mixer: nn.Module, mlp_ratio: float, *, layer_scale: float | None, drop_path: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.mixer = mixer
        self.scale1 = nn.Identity() if layer_scale is None else LayerScale(dim, layer_scale)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = Mlp(dim, int(mlp_ratio * dim))
        self.scale2 = nn.Identity() if layer_scale is None else LayerScale(dim, layer_scale)
        self.drop_path = drop_path

    def forward(self, x: Float[Tensor, "B L D"]) -> Float[Tensor, "B L D"]:
        x = x + drop_path(self.scale1(self.mixer(self.norm1(x))), self.drop_path, self.training)
        return x + drop_path(self.scale2(self.mlp(self.norm2(x))), self.drop_path, self.training)


class WindowStage(Stage):
    """A stage whose blocks run on windows of ``window`` x ``window`` positions, tokens row by row."""

    def __init__(self, blocks: Iterable[nn.Module], downsample: nn.Module | None, window: int) -> None:
        super().__init__(blocks, downsample)
        self.window = window

    def mix(self, x: Float[Tensor, "B D rows columns"]) -> Float[Tensor, "B D rows columns"]:
        rows, columns = x.shape[-2:]
        padded = F.pad(x, (0, -columns % self.window, 0, -rows % self.window)).permute(0, 2, 3, 1)  # (B, rows, columns, D)
        size = (self.window, self.window)
        tokens = self.run(window_partition(padded, size).flatten(1, 2))  # (B windows, window^2, D)
        joined = window_reverse(tokens.unflatten(1, size), size, padded.shape[1], padded.shape[2])
        return joined.permute(0, 3, 1, 2)[..., :rows, :columns]


class MambaVision(HierarchicalBackbone):
    """The network of MambaVision; images may have any size."""

    @dataclass(frozen=True, kw_only=True)
    class Config(HierarchicalBackbone.Config):
        embed_dim: int = 80
        """Width of the first stage; stage s has ``embed_dim * 2**s``."""
        depths: tuple[int, ...] = (1, 3, 8, 4)
        """Blocks of each of the four stages."""
        stem_dim: int = 32
        """Width between the two convolutions of the stem."""
        num_heads: tuple[int, int] = (8, 16)
        """Attention heads in stages 2 and 3; must divide their widths."""
        window_size: tuple[int, int] = (14, 7)
        """Side of the windows in stages 2 and 3, in positions; (14, 7) is the whole map at 224 pixels, (32, 16) at 512."""
        mlp_ratio: float = 4.0
        """Hidden width of the MLPs over that of their stage."""
        qk_norm: bool = False
        """LayerNorm of queries and keys, per head."""
        layer_scale: float | None = None
        """Initial value of the learned scale of every branch in stages 2 and 3; None = no such scale."""
        conv_layer_scale: float | None = None
        """The same for stages 0 and 1."""
        init: Literal["keep_dt", "released"] = "keep_dt"
        """``keep_dt``: mixers keep Mamba's own initial step sizes. ``released``: as the official code does, quirks included."""

        def small(self) -> Any:
            """Windows as large as the maps, as at 224 pixels."""
            return replace(super().small(), stem_dim=8, num_heads=(2, 4), window_size=(4, 2))

    config: MambaVision.Config
    first_conv: ClassVar[str] = "stem.0"

    def __init__(self, config: MambaVision.Config) -> None:
        if len(config.depths) != 4:
            raise UserError(f"MambaVision has four stages, got depths={config.depths}; try (1, 3, 8, 4)")
        super().__init__(config)
        if min(config.window_size) < 1:
            raise UserError(f"windows need at least one position, got window_size={config.window_size}; try (14, 7)")
        if config.init not in ("keep_dt", "released"):
            raise UserError(f"init must be keep_dt or released, got {config.init!r}")
        self.stem = nn.Sequential(
            nn.Conv2d(config.in_chans, config.stem_dim, 3, 2, 1, bias=False),
            nn.BatchNorm2d(config.stem_dim, eps=1e-4),
            nn.ReLU(),
            nn.Conv2d(config.stem_dim, config.embed_dim, 3, 2, 1, bias=False),
            nn.BatchNorm2d(config.embed_dim, eps=1e-4),
            nn.ReLU(),
        )
        rates = drop_path_rates(config.drop_path, config.depths)
        self.stages = nn.ModuleList(self._build_stage(config, s, rates[s]) for s in range(4))
        self.norm = nn.BatchNorm2d(self.num_features)
        self.head = Head(self.num_features, config.num_classes, drop=config.drop_rate)
        self._initialise()
        self._read_marks()

    def _build_stage(self, config: MambaVision.Config, s: int, rates: list[float]) -> Stage:
        dim = self.widths[s]
        downsample = None if s == 3 else nn.Conv2d(dim, 2 * dim, 3, 2, 1, bias=False)
        if s < 2:
            return Stage((ConvBlock(dim, layer_scale=config.conv_layer_scale, drop_path=rate) for rate in rates), downsample)

        def mixer(j: int) -> nn.Module:
            if 2 * j < len(rates):
                return MambaVisionMixer(dim)
            return Attention(dim, config.num_heads[s - 2], qk_norm=config.qk_norm)

        blocks = (
            WindowBlock(dim, mixer(j), config.mlp_ratio, layer_scale=config.layer_scale, drop_path=rate)
            for j, rate in enumerate(rates)
        )
        return WindowStage(blocks, downsample, config.window_size[s - 2])

    @torch.no_grad()
    def _initialise(self) -> None:
        """Truncated normal for the linear maps; convolutions as torch makes them, the mixers by Mamba's rules.

        With ``init="released"`` the linear maps of the mixers are treated alike, their step sizes included.
        """
        mixers = [module for module in self.modules() if isinstance(module, MambaVisionMixer)]
        inside = {linear for mixer in mixers for linear in linears(mixer)}
        for linear in linears(self):
            if linear not in inside or self.config.init == "released":
                self.init_linear(linear)

    def init_linear(self, module: nn.Module) -> None:
        if isinstance(module, nn.Linear):
            trunc_normal_(module.weight, std=0.02)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
