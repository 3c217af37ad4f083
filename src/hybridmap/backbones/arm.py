"""ARM (MambaMLP): layers of a Mamba mixer and a gated MLP, pretrained one way over clusters, fine-tuned four ways.

    pretraining     directions=1, scan="cluster(4)", cls_token=False, positions="sincos"
                    ▶ forward over clusters of 4 x 4 patches: no token sees a later one, so that clusters can be predicted

    fine-tuning     directions=4, scan="row", cls_token=True, positions="learned"
                    ▶ forward and ◀ backward row by row, ▼ and ▲ column by column, their mean; the class token in the middle:

                        rows     0  1  2  3   4  5  6  7   C   8  9 10 11  12 13 14 15
                        columns  0  4  8 12   1  5  9 13   C   2  6 10 14   3  7 11 15

From one to the other: :func:`for_finetuning`. Source: ARM (arXiv:2406.07537), OliverRensu/ARM:models_pretrain.py,
Finetuning/models_mamba.py @ 996d93e.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from timm.layers.weight_init import trunc_normal_
from torch import Tensor, nn

from hybridmap.backbones.base import Head
from hybridmap.backbones.sequence import SequenceBackbone, init_patch_embed
from hybridmap.errors import UserError
from hybridmap.layers.block import MambaMlpBlock, Stack
from hybridmap.layers.decay import no_decay
from hybridmap.layers.mamba import MambaMixer, init_mixers
from hybridmap.layers.norm import AddNorm
from hybridmap.layers.pos_embed import on_grid, sincos_2d
from hybridmap.tokens.scan import down_columns, order
from hybridmap.types import Features


class ARM(SequenceBackbone):
    """Plain pre-norm residual layers; LayerNorm eps 1e-5, inner width of the mixer = ``embed_dim``, SwiGLU."""

    @dataclass(frozen=True, kw_only=True)
    class Config(SequenceBackbone.Config):
        embed_dim: int = 768
        """Width D of the tokens."""
        depth: int = 12
        """Number of layers."""
        directions: Literal[1, 4] = 4
        """1: every mixer scans forward only. 4: both ways along the sequence and both ways down the columns."""
        scan: str = "row"
        """Order of the sequence: ``row``, ``column``, or squares of k x k patches row by row, ``cluster(k)``, or column by
        column, ``cluster(k, column)``."""
        cls_token: bool = True
        """Whether a class token stands in the middle of the sequence."""
        pool: Literal["avg", "cls"] = "avg"
        """What represents the image: the mean of the means of the patches before and behind the middle, or the class token."""
        positions: Literal["learned", "sincos"] = "learned"
        """``sincos``: the fixed table of MAE, as in pretraining."""
        init: Literal["keep_dt", "released"] = "keep_dt"
        """``keep_dt``: all directions start with Mamba's own step sizes. ``released``: the forward one alone."""

        def encoder(self) -> ARM.Config:
            return replace(self, num_classes=0, cls_token=False, pool="avg")

        def small(self) -> Any:
            """64 patches of 4 pixels, so that there are several clusters of 4 x 4 patches."""
            return replace(super().small(), patch_size=4)

    config: ARM.Config
    fresh_parts = ("cls_", "norm.")

    def __init__(self, config: ARM.Config) -> None:
        super().__init__(config)
        if config.directions not in (1, 4):
            raise UserError(f"directions must be 1 or 4, got {config.directions!r}")
        if config.pool not in ("avg", "cls"):
            raise UserError(f"pool must be avg or cls, got {config.pool!r}")
        if config.positions not in ("learned", "sincos"):
            raise UserError(f"positions must be learned or sincos, got {config.positions!r}")
        if config.init not in ("keep_dt", "released"):
            raise UserError(f"init must be keep_dt or released, got {config.init!r}")
        if config.depth < 1:
            raise UserError(f"depth must be at least 1, got {config.depth}")
        if config.pool == "cls" and not config.cls_token:
            raise UserError('pool="cls" reads the class token, but cls_token is False; set it, or choose pool="avg"')
        order(config.scan, (1, 1))  # refuse an unknown scan now
        if config.scan == "column" and config.directions == 4:
            raise UserError('four directions go down the columns anyway; set scan to "row"')
        self.scan = config.scan
        self.num_prefix_tokens = int(config.cls_token)
        if config.cls_token:
            self.cls_token = no_decay(nn.Parameter(torch.zeros(1, 1, config.embed_dim)))
            self.cls_pos = no_decay(nn.Parameter(torch.zeros(1, 1, config.embed_dim)))
        variant = "uni" if config.directions == 1 else "v3"
        rates = [0.0, *torch.linspace(0, config.drop_path, config.depth, device="cpu").tolist()][: config.depth]
        self.layers = Stack(
            (
                MambaMlpBlock(config.embed_dim, MambaMixer(config.embed_dim, expand=1, variant=variant), drop_path=rate)
                for rate in rates
            ),
            outer_skip="none",
        )
        self.norm = AddNorm(config.embed_dim, 1e-5, "layer")
        self.head = Head(config.embed_dim, config.num_classes, drop=config.drop_rate)
        self.head_hidden_size = self.head.width
        self._initialise()
        self._read_marks()

    @torch.no_grad()
    def _initialise(self) -> None:
        """Everything as torch and Mamba's constructors leave it, but for the stem, biases, the head and the outputs of mixers.

        With ``init="released"`` the directions beyond the first have no initial step sizes.
        """
        init_patch_embed(self.patch_embed.proj)
        for parameter in (self.cls_token, self.cls_pos) if self.config.cls_token else ():
            trunc_normal_(parameter, std=0.02)
        if self.config.positions == "sincos":
            self.pos_embed.copy_(sincos_2d(self.embed_dim, self.grid))
            self.pos_embed.requires_grad_(False)
        else:
            trunc_normal_(self.pos_embed, std=0.02)
        for block in self.layers:
            assert isinstance(block, MambaMlpBlock)
            for linear in (block.mlp.gate, block.mlp.up, block.mlp.down):
                nn.init.zeros_(linear.bias)
        init_mixers([m for m in self.modules() if isinstance(m, MambaMixer)], self.config.init == "released")
        self.init_linear(self.head.fc)

    def init_linear(self, module: nn.Module) -> None:
        if isinstance(module, nn.Linear):
            trunc_normal_(module.weight, std=0.02)
            nn.init.zeros_(module.bias)

    def from_pretraining(self, weights: dict[str, Tensor]) -> dict[str, Tensor]:
        """What :func:`for_finetuning` makes of weights of one direction, if this network has four."""
        one_way = "layers.0.mixer.dirs.bwd.D" not in weights
        return for_finetuning(weights, self.config) if one_way and self.config.directions == 4 else weights

    def insert_prefix(self, tokens: Float[Tensor, "B V D"], prefix: bool) -> tuple[Float[Tensor, "B L D"], bool]:
        """The class token, where there is one, joins the patches in their middle whether it is asked for or not."""
        if not self.config.cls_token:
            return tokens, False
        middle = tokens.shape[1] // 2
        token = (self.cls_token + self.cls_pos).expand(tokens.shape[0], -1, -1)
        return torch.cat([tokens[:, :middle], token, tokens[:, middle:]], dim=1), True

    def split_prefix(self, sequence: Float[Tensor, "B L D"]) -> tuple[Float[Tensor, "B R D"], Float[Tensor, "B V D"]]:
        if not self.config.cls_token:
            return sequence[:, :0], sequence
        middle = (sequence.shape[1] - 1) // 2
        before, token, behind = sequence.split([middle, 1, sequence.shape[1] - middle - 1], dim=1)
        return token, torch.cat([before, behind], dim=1)

    def layer_inputs(self, coords: Float[Tensor, "B V A"], grid: tuple[int, ...]) -> dict[str, Any]:
        return {} if self.config.directions == 1 else {"across": self.second_walk(coords, grid)}

    def second_walk(self, coords: Float[Tensor, "B V A"], grid: tuple[int, ...]) -> Int[Tensor, "#B L"]:
        """Positions in the sequence down the columns; the class token stands in the middle here, too."""
        walk = down_columns(coords, grid[0])
        return around_middle(walk) if self.config.cls_token else walk

    def read_out(self, prefix: Float[Tensor, "B R D"], patches: Float[Tensor, "B N D"]) -> Float[Tensor, "B n D"]:
        if self.config.pool == "cls":
            return prefix
        middle = patches.shape[1] // 2
        if middle == 0:
            return patches
        return 0.5 * (patches[:, :middle].mean(1, keepdim=True) + patches[:, middle:].mean(1, keepdim=True))

    def pooled(self, features: Features) -> Float[Tensor, "B D"]:
        """What the classifier reads, after the final norm."""
        return self.read_out(features.prefix, features.patches).squeeze(1)


FRESH = ("cls_token", "norm.", "head.")
"""Parts of the fine-tuning network that start fresh."""

DIRECTION = re.compile(r"\.dirs\.\w+\.")
"""The place of the direction in the name of a parameter."""


def around_middle(walk: Int[Tensor, "B V"]) -> Int[Tensor, "B L"]:
    """Positions in a sequence without class token -> those in the sequence with one, which stays in the middle of both."""
    middle = walk.shape[1] // 2
    moved = walk + (walk >= middle)
    token = torch.full_like(walk[:, :1], middle)
    return torch.cat([moved[:, :middle], token, moved[:, middle:]], dim=1)


def for_finetuning(weights: Mapping[str, Tensor], config: ARM.Config) -> dict[str, Tensor]:
    """Weights of a one-way pretraining network as a start for the network that ``config`` describes.

    What the one direction owns is copied to every other; positions are resampled to the new grid, and the class token gets the
    position zero. Class token, final norm and head are not among the result: they start fresh.
    Source: OliverRensu/ARM:Finetuning/main_finetune.py.

    Args:
        weights: by the names of :class:`ARM` itself, without ``backbone.`` in front.
        config: of the network to be fine-tuned.

    Raises:
        UserError: if the weights are of another network, or no one-way ones.
    """
    if "layers.0.mixer.dirs.fwd.D" not in weights or "layers.0.mixer.dirs.bwd.D" in weights:
        raise UserError(
            "expected weights of an ARM that was pretrained with one direction; those of four directions need no such step"
        )
    with torch.device("meta"):
        network: ARM = config.build()
    wanted = network.state_dict()
    sources = {name: DIRECTION.sub(".dirs.fwd.", name) for name in wanted if not name.startswith(FRESH)}
    given = {name: value for name, value in weights.items() if not name.startswith((*FRESH, "decoder."))}
    if strange := sorted(given.keys() ^ (set(sources.values()) - {"cls_pos"})):
        raise UserError(
            f"the weights are of another network: {strange[0]} is in only one of both ({len(strange)} such tensors); choose the"
            " depth of the pretrained network"
        )
    found: dict[str, Tensor] = {}
    for name, source in sources.items():
        own = wanted[name]
        if name == "cls_pos":
            value = given["pos_embed"].new_zeros(own.shape)
        elif name == "pos_embed":
            value = on_grid(given[name], network.grid).clone()
        else:
            value = given[source].clone()
        if value.shape != own.shape:
            raise UserError(
                f"the weights are of another network: {source} is {tuple(value.shape)} there and {tuple(own.shape)} in the "
                "network to be fine-tuned; choose the width of the pretrained network"
            )
        found[name] = value
    return found
