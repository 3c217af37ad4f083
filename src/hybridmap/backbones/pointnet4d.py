"""PointNet4D: point-cloud video, one token per frame, read forwards in time.

    clip (B, T, N, 3) ─ every frame alone: PointNet++ ─▶ (B, T, D) ─ + place in time ─ temporal layers ─▶ features (B, T, D)
                                                                                             └─ LN, Linear, GELU ─ fc ─▶ logits

    temporal layer    x = x + Mamba(LN x)                  forwards only
                      x = x + GELU(proj(attention(LN x)))  each frame looks at itself and at earlier frames
                      x = x + MLP(LN x)

A frame is a patch, and its place in the clip its rank: no output knows anything of a later frame. The features have no final
norm; the head begins with one. Source: PointNet4D (WACV 2026), yunzeliu/MAP:pointnet4D/HOI4DAS/pn4d @ f3bcdff.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from timm.layers.drop import drop_path
from timm.layers.mlp import Mlp
from timm.layers.weight_init import trunc_normal_
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from hybridmap.backbones.base import Backbone
from hybridmap.backbones.hierarchical import recomputed
from hybridmap.errors import UserError
from hybridmap.layers.attention import attend
from hybridmap.layers.decay import no_decay
from hybridmap.layers.mamba import MambaMixer
from hybridmap.layers.set_abstraction import SetAbstraction
from hybridmap.types import Features, Patches, Tap

EVERYWHERE = 1e9
"""Radius of the last set abstraction: all points."""


class FrameNet(nn.Module):
    """PointNet++ (single-scale grouping): clouds (n, N, 3) -> tokens (n, D), each cloud alone.

    The last stage groups around the first of the remaining points, not around their mean.
    """

    def __init__(
        self, dim: int, centres: tuple[int, int], radii: tuple[float, float], neighbours: tuple[int, int, int]
    ) -> None:
        super().__init__()
        self.sa1 = SetAbstraction(centres[0], radii[0], neighbours[0], 0, (64, 64, 128))
        self.sa2 = SetAbstraction(centres[1], radii[1], neighbours[1], 128, (128, 128, 256))
        self.sa3 = SetAbstraction(1, EVERYWHERE, neighbours[2], 256, (256, 512, dim))

    def forward(self, points: Float[Tensor, "n N 3"]) -> Float[Tensor, "n D"]:
        return self.sa3(*self.sa2(*self.sa1(points)))[1].squeeze(1)


class CausalAttention(nn.Module):
    """``GELU(proj(softmax(q k^T / sqrt(head_width)) v))`` over earlier frames and the own one; heads are as wide as one likes.

    q, k and v come from one linear map ``qkv`` (rows in this order) without bias.
    """

    def __init__(self, dim: int, num_heads: int, head_width: int) -> None:
        super().__init__()
        self.num_heads, self.head_width = num_heads, head_width
        self.qkv = nn.Linear(dim, 3 * num_heads * head_width, bias=False)
        self.proj = nn.Linear(num_heads * head_width, dim)

    def forward(self, x: Float[Tensor, "B T D"]) -> Float[Tensor, "B T D"]:
        heads = self.qkv(x).unflatten(-1, (3, self.num_heads, self.head_width))  # (B, T, 3, H, W)
        q, k, v = heads.permute(2, 0, 3, 1, 4).unbind(0)  # each (B, H, T, W)
        return F.gelu(self.proj(attend(q, k, v, causal=True).transpose(1, 2).flatten(2)))


class TemporalLayer(nn.Module):
    """One of the layers drawn above; drop path acts on each of its three branches."""

    def __init__(self, dim: int, num_heads: int, head_width: int, mlp_ratio: float, drop_path: float = 0.0) -> None:
        super().__init__()
        self.norm1, self.mixer = nn.LayerNorm(dim), MambaMixer(dim, variant="uni")
        self.norm2, self.attn = nn.LayerNorm(dim), CausalAttention(dim, num_heads, head_width)
        self.norm3, self.mlp = nn.LayerNorm(dim), Mlp(dim, int(mlp_ratio * dim))
        self.drop_path = drop_path

    def forward(self, x: Float[Tensor, "B T D"]) -> Float[Tensor, "B T D"]:
        x = x + drop_path(self.mixer(self.norm1(x)), self.drop_path, self.training)
        x = x + drop_path(self.attn(self.norm2(x)), self.drop_path, self.training)
        return x + drop_path(self.mlp(self.norm3(x)), self.drop_path, self.training)


class FrameHead(nn.Module):
    """Features -> logits, frame by frame: ``fc(GELU(hidden(LN x)))``. Without classes there is nothing, so that an encoder has
    no parameter that pretraining does not train."""

    def __init__(self, dim: int, hidden: int, num_classes: int) -> None:
        super().__init__()
        self.dim, self.hidden_width = dim, hidden
        self.norm, self.hidden, self.act, self.fc = (nn.Identity() for _ in range(4))
        self.reset(num_classes)

    @property
    def width(self) -> int:
        """Of what ``fc`` is given."""
        return self.hidden_width if isinstance(self.hidden, nn.Linear) else self.dim

    def reset(self, num_classes: int) -> None:
        """A fresh classifier on the device and in the dtype of the old one; norm and hidden layer stay where there are some."""
        like = next(self.parameters(), torch.empty(0))
        if num_classes and not isinstance(self.hidden, nn.Linear):
            self.norm, self.act = nn.LayerNorm(self.dim), nn.GELU()
            self.hidden = nn.Linear(self.dim, self.hidden_width)
        self.fc = nn.Linear(self.width, num_classes) if num_classes else nn.Identity()
        self.to(like.device, like.dtype)

    def forward(self, x: Float[Tensor, "B T D"], pre_logits: bool = False) -> Tensor:
        x = self.act(self.hidden(self.norm(x)))
        return x if pre_logits else self.fc(x)


class PointNet4D(Backbone):
    """The network drawn above, for clips (B, frames, points, 3) in metres or any other unit that the radii fit."""

    @dataclass(frozen=True, kw_only=True)
    class Config(Backbone.Config):
        num_frames: int = 150
        """Frames of a clip that it is meant for; others are taken too, up to ``max_frames``."""
        num_points: int = 2048
        """Points of a frame that it is meant for; others are taken too."""
        embed_dim: int = 1024
        """Width D of the tokens."""
        depth: int = 5
        """Number of temporal layers."""
        num_heads: int = 4
        """Attention heads."""
        head_width: int = 1024
        """Width of each; it need not be a share of the tokens' width."""
        mlp_ratio: float = 4.0
        """Hidden width of the MLP over ``embed_dim``."""
        num_classes: int = 19
        """Outputs of the classifier for every frame; 0 = no classifier."""
        head_hidden: int = 512
        """Width of the head's hidden layer."""
        max_frames: int = 256
        """Places in time for which positions are stored."""
        centres: tuple[int, int] = (512, 128)
        """Points that remain of a frame after the first and the second set abstraction."""
        radii: tuple[float, float] = (0.2, 0.4)
        """How far around its centres each of them looks, in the unit of the coordinates."""
        neighbours: tuple[int, int, int] = (32, 64, 128)
        """How many points each centre looks at, in each of the three stages."""
        frame_chunk: int = 0
        """Frames that PointNet++ works on at once, to save memory; 0 = all of the batch. In training every chunk is normalised
        by its own statistics."""

        def small(self) -> Any:
            """Four frames of 64 points, two layers of width 32."""
            return replace(
                self,
                num_frames=4,
                num_points=64,
                max_frames=8,
                centres=(16, 8),
                neighbours=(8, 8, 8),
                embed_dim=32,
                depth=2,
                num_heads=2,
                head_width=16,
                head_hidden=16,
            )

    config: PointNet4D.Config
    head: Any

    def __init__(self, config: PointNet4D.Config) -> None:
        super().__init__(config)
        c = config
        sizes = {"depth": c.depth, "num_heads": c.num_heads, "head_width": c.head_width, "head_hidden": c.head_hidden}
        sizes |= {"num_frames": c.num_frames, "max_frames": c.max_frames, "embed_dim": c.embed_dim}
        for name, size in sizes.items():
            if size < 1:
                raise UserError(f"{name} must be at least 1, got {size}")
        if c.num_frames > c.max_frames:
            raise UserError(f"max_frames must be at least num_frames, {c.num_frames}, got {c.max_frames}")
        if c.num_points < c.centres[0] or c.centres[0] < c.centres[1]:
            raise UserError(
                f"centres must become fewer from stage to stage, got {c.num_points} points and centres {c.centres}; "
                "use more points or fewer centres"
            )
        if c.frame_chunk < 0:
            raise UserError(f"frame_chunk must be 0 (all frames at once) or a number of frames, got {c.frame_chunk}")
        self.embed_dim = self.num_features = c.embed_dim
        self.num_classes, self.num_prefix_tokens = c.num_classes, 0
        self.checkpointing = 0
        self.frames = FrameNet(c.embed_dim, c.centres, c.radii, c.neighbours)
        self.frame_pos = no_decay(nn.Parameter(torch.zeros(1, c.max_frames, c.embed_dim)))
        trunc_normal_(self.frame_pos, std=0.02)
        rates = torch.linspace(0, c.drop_path, c.depth, device="cpu").tolist()
        self.layers = nn.ModuleList(TemporalLayer(c.embed_dim, c.num_heads, c.head_width, c.mlp_ratio, rate) for rate in rates)
        self.drop = nn.Dropout(c.drop_rate)
        self.head = FrameHead(c.embed_dim, c.head_hidden, c.num_classes)
        self._read_marks()

    @property
    def head_hidden_size(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Width of what ``forward_head(..., pre_logits=True)`` returns."""
        return self.head.width

    @property
    def patch_values(self) -> int:
        """Three for each point of a frame."""
        return 3 * self.config.num_points

    def blank(self, count: int = 1) -> Float[Tensor, "B T N 3"]:
        return torch.zeros(count, self.config.num_frames, self.config.num_points, 3, device="cpu")

    def partition(self, inputs: Tensor, step_key: int = 0) -> Patches:
        """Every frame is a patch: content (B, T, 3 N), coords its number, in the order of time.

        Raises:
            UserError: if the inputs are no clips (B, frames, points, 3), or too long, or have too few points.
        """
        c = self.config
        if inputs.ndim != 4 or inputs.shape[-1] != 3 or not inputs.is_floating_point():
            raise UserError(
                f"expected clips of shape (batch, frames, points, 3) in floating point, got {tuple(inputs.shape)} in "
                f"{inputs.dtype}; x, y, z go last"
            )
        batch, count, points, _ = inputs.shape
        if not 1 <= count <= c.max_frames:
            raise UserError(
                f"the network has positions for 1 to {c.max_frames} frames, got {count}; cut the clip or raise max_frames"
            )
        if points < c.centres[0]:
            raise UserError(f"a frame needs at least {c.centres[0]} points, got {points}; use more points or fewer centres")
        place = torch.arange(count, device=inputs.device).expand(batch, -1)
        return Patches(content=inputs.flatten(2), coords=place[..., None].to(inputs.dtype), source=place)

    def embed(self, patches: Patches) -> Float[Tensor, "B T D"]:
        """PointNet++ of every frame alone, plus its place in time."""
        batch, count, values = patches.content.shape
        clouds = patches.content.reshape(batch * count, values // 3, 3)
        chunks = clouds.split(self.config.frame_chunk or len(clouds))
        again = self.checkpointing and torch.is_grad_enabled()
        tokens = torch.cat([recomputed(self.frames, chunk) if again else self.frames(chunk) for chunk in chunks])
        return tokens.unflatten(0, (batch, count)) + F.embedding(patches.source, self.frame_pos[0])

    def encode(
        self,
        tokens: Float[Tensor, "B V D"],
        coords: Float[Tensor, "B V A"],
        *,
        prefix: bool = False,
        causal: bool = False,
        taps: Collection[int] = (),
        grid: tuple[int, ...] | None = None,
    ) -> Features:
        """The temporal layers, which are causal whether or not ``causal`` asks for it; there are no prefix tokens.

        Raises:
            UserError: if a tap names a layer that does not exist.
        """
        if taps and not 0 <= min(taps) <= max(taps) < len(self.layers):
            raise UserError(f"taps must be layer numbers from 0 to {len(self.layers) - 1}, got {sorted(taps)}")
        x, tapped = tokens, dict[int, Tap]()
        for s, layer in enumerate(self.layers):
            again = self.checkpointing and s % self.checkpointing == 0 and torch.is_grad_enabled()
            x = checkpoint(layer, x, use_reentrant=False) if again else layer(x)
            if s in taps:
                tapped[s] = Tap(branch=x, stream=None)
        return Features(patches=x, prefix=x[:, :0], taps=tapped)

    def pooled(self, features: Features) -> Float[Tensor, "B D"]:
        """The mean over the frames."""
        return features.patches.mean(1)

    def forward_features(self, x: Tensor) -> Float[Tensor, "B T D"]:
        """Clips -> one vector per frame, which knows that frame and the earlier ones."""
        return self.encode_visible(self.partition(x), None).patches

    def forward_head(self, x: Float[Tensor, "B T D"], pre_logits: bool = False) -> Tensor:
        """Features -> logits (B, T, num_classes), frame by frame."""
        hidden = self.drop(self.head(x, pre_logits=True))
        return hidden if pre_logits else self.head.fc(hidden)

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        return {"stem": r"^(?:frames|frame_pos)", "blocks": r"^layers" if coarse else [(r"^layers\.(\d+)", None)]}

    def set_grad_checkpointing(self, enable: bool = True, every: int = 1) -> None:
        """Recompute PointNet++, chunk by chunk (``frame_chunk``), and every so manieth temporal layer in the backward pass."""
        self.checkpointing = every if enable else 0

    def init_linear(self, module: nn.Module) -> None:
        """PyTorch's own rule, as the official code leaves it."""
        if isinstance(module, nn.Linear):
            module.reset_parameters()
