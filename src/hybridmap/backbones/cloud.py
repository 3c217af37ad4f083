"""Backbones for clouds of points: patches of neighbouring points in place of patches of pixels.

points ─ centres and neighbours ─ PatchNet ─┬─ [class token] ─ (+ positions, layer) x depth ─ norm ─ read-out ─ head
                    centres ─ CentreEmbed ──┴─ positions, added again before every layer
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from timm.layers.weight_init import trunc_normal_
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from hybridmap.backbones.base import Backbone
from hybridmap.errors import UserError
from hybridmap.layers.decay import no_decay
from hybridmap.layers.patch_net import CentreEmbed, PatchNet
from hybridmap.tokens.clouds import partition
from hybridmap.types import Features, Patches, Tap


class CloudHead(nn.Module):
    """(B, width) -> logits by three linear maps with batch norm and dropout between them; the last one is ``fc``."""

    def __init__(self, width: int, num_classes: int) -> None:
        super().__init__()
        self.hidden = nn.Sequential(
            *(nn.Linear(width, 256), nn.BatchNorm1d(256), nn.ReLU(), nn.Dropout(0.5)),
            *(nn.Linear(256, 256), nn.BatchNorm1d(256), nn.ReLU(), nn.Dropout(0.5)),
        )
        self.fc = nn.Linear(256, num_classes) if num_classes else nn.Identity()

    def reset(self, num_classes: int) -> None:
        """A fresh classifier where the old one was."""
        like = self.hidden[0].weight
        self.fc = (nn.Linear(256, num_classes) if num_classes else nn.Identity()).to(like.device, like.dtype)  # pyright: ignore

    def forward(self, x: Float[Tensor, "B width"]) -> Tensor:
        return self.fc(self.hidden(x))


class CloudBackbone(Backbone):
    """Abstract: clouds (B, points, 3) in the unit sphere."""

    @dataclass(frozen=True, kw_only=True)
    class Config(Backbone.Config):
        """Fields that every backbone for points has."""

        num_points: int = 1024
        """Points of a cloud that it is meant for; others are taken too."""
        num_patches: int = 128
        """Centres of a cloud."""
        patch_points: int = 32
        """Points of a patch, nearest neighbours of its centre."""
        embed_dim: int = 384
        """Width D of the tokens."""
        num_classes: int = 40
        """Outputs of the classifier; 0 = no classifier."""
        skip_origin: bool = False
        """Never choose points closer to the origin than 0.032 as centres, as the official code's operator does."""

        def official(self) -> Any:
            """The same with what the official code does differently, where that matters for recorded numbers."""
            return replace(self, skip_origin=True)

        def small(self) -> Any:
            """Four layers of width 32 on 16 patches of 8 points."""
            sizes = {"num_points": 64, "num_patches": 16, "patch_points": 8, "embed_dim": 32, "depth": 4, "num_heads": 2}
            return replace(self, **{name: size for name, size in sizes.items() if hasattr(self, name)})

    config: Any
    layers: nn.ModuleList
    head: Any

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        for name in ("num_patches", "patch_points", "num_points"):
            if getattr(config, name) < 1:
                raise UserError(f"{name} must be at least 1, got {getattr(config, name)}")
        self.embed_dim = self.num_features = config.embed_dim
        self.num_classes = config.num_classes
        self.patch_embed = PatchNet(config.embed_dim)

    @property
    def patch_values(self) -> int:
        return 3 * self.config.patch_points

    def blank(self, count: int = 1) -> Float[Tensor, "B P 3"]:
        return torch.zeros(count, self.config.num_points, 3, device="cpu")

    def partition(self, inputs: Tensor, step_key: int = 0) -> Patches:
        c = self.config
        return partition(inputs, c.num_patches, c.patch_points, skip_origin=c.skip_origin)

    def embed(self, patches: Patches) -> Float[Tensor, "B N D"]:
        """Of the content alone: positions join in :meth:`encode`."""
        batch, count, values = patches.content.shape
        return self.patch_embed(patches.content.reshape(batch * count, values // 3, 3)).view(batch, count, -1)

    def forward_features(self, x: Tensor) -> Float[Tensor, "B L D"]:
        features = self.encode_visible(self.partition(x), None, prefix=True)
        return torch.cat([features.prefix, features.patches], dim=1)

    def pooled(self, features: Features) -> Float[Tensor, "B D2"]:
        """Largest and mean value over the patches, after the norm."""
        return torch.cat([features.patches.amax(1), features.patches.mean(1)], dim=1)

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        stem = r"^(?:patch_embed|position|cls_token|cls_pos|order_)"
        return {"stem": stem, "blocks": r"^layers" if coarse else [(r"^layers\.(\d+)", None)]}

    def init_linear(self, module: nn.Module) -> None:
        """PyTorch's own rule, as the official code leaves it."""
        if isinstance(module, nn.Linear):
            module.reset_parameters()


class ClassTokenCloudBackbone(CloudBackbone):
    """Abstract: a class token in front, except in pretraining; positions are added again before every layer.

    A concrete class sets ``layers`` and implements :meth:`run_layer` and :meth:`read_out`.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config(CloudBackbone.Config):
        class_token: bool = True
        """A learned token in front of the patches, which the classifier reads; pretraining goes without."""

        def encoder(self) -> ClassTokenCloudBackbone.Config:
            return replace(self, num_classes=0, class_token=False)

    fresh_parts: ClassVar[tuple[str, ...]] = ("cls_",)
    activation: ClassVar[type[nn.Module]]
    """Of the embedding of centres."""
    checkpointing = 0

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.position = CentreEmbed(config.embed_dim, self.activation())
        self.num_prefix_tokens = int(config.class_token)
        if config.class_token:
            self.cls_token = no_decay(nn.Parameter(torch.zeros(1, 1, config.embed_dim)))
            self.cls_pos = nn.Parameter(torch.zeros(1, 1, config.embed_dim))
            trunc_normal_(self.cls_token, std=0.02)
            trunc_normal_(self.cls_pos, std=0.02)
        elif config.num_classes:
            raise UserError("the classifier of this network reads the class token; leave class_token on")
        self.norm = nn.LayerNorm(config.embed_dim)
        self.head_hidden_size = 2 * config.embed_dim
        self.head = CloudHead(self.head_hidden_size, config.num_classes) if config.num_classes else nn.Module()

    @abstractmethod
    def layer_inputs(self, coords: Float[Tensor, "B V 3"]) -> tuple[Any, ...]:
        """What every layer is given besides the tokens."""

    @abstractmethod
    def read_out(self, token: Float[Tensor, "B D"], patches: Float[Tensor, "B N D"]) -> Float[Tensor, "B D2"]:
        """What the head is given, from the class token and the patches."""

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
        """``taps`` hold the outputs of layers, the class token inside.

        Raises:
            UserError: for ``causal``: layers look at neighbours, wherever these stand in the sequence.
        """
        if causal:
            raise UserError(
                f"{type(self).__name__} cannot encode causally: its layers look at neighbours; leave encoder_causal at none"
            )
        x, position = tokens, self.position(coords).to(tokens.dtype)
        with_token = prefix and self.config.class_token
        if with_token:
            batch = len(tokens)
            x = torch.cat([self.cls_token.expand(batch, -1, -1), x], dim=1)
            position = torch.cat([self.cls_pos.expand(batch, -1, -1), position], dim=1)
        inputs, tapped = self.layer_inputs(coords), {}
        for s, layer in enumerate(self.layers):
            again = self.checkpointing and s % self.checkpointing == 0 and torch.is_grad_enabled()
            x = checkpoint(layer, x + position, *inputs, use_reentrant=False) if again else layer(x + position, *inputs)
            if s in taps:
                tapped[s] = Tap(branch=x, stream=None)
        x, first = self.norm(x), int(with_token)
        return Features(patches=x[:, first:], prefix=x[:, :first], taps=tapped)

    def forward_head(self, x: Float[Tensor, "B L D"], pre_logits: bool = False) -> Tensor:
        if not self.config.class_token:
            return self.pooled(Features(patches=x, prefix=x[:, :0]))
        read = self.read_out(x[:, 0], x[:, 1:])
        return read if pre_logits or not self.num_classes else self.head(read)

    def set_grad_checkpointing(self, enable: bool = True, every: int = 1) -> None:
        self.checkpointing = every if enable else 0
