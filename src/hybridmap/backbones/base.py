"""What every backbone promises: inputs become patches in scan order, patches become tokens, tokens become features.

    inputs ──partition──▶ Patches ──embed──▶ tokens (B N D) ──encode──▶ Features ──forward_head──▶ logits

Objectives use :meth:`Backbone.partition` and :meth:`Backbone.encode_visible`; everything else of the public face is timm's
model contract, so that scripts written for timm's models run unchanged.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from hybridmap import config as configuration
from hybridmap.config import Configurable
from hybridmap.errors import UserError
from hybridmap.layers.decay import is_never_decayed, is_ssm_state
from hybridmap.tokens.select import take
from hybridmap.types import Features, Mask, Patches


class Backbone(nn.Module, Configurable):
    """Abstract. A concrete backbone sets the attributes below, implements the abstract methods and ends its constructor with
    :meth:`_read_marks`."""

    @dataclass(frozen=True, kw_only=True)
    class Config(configuration.Config):
        """Fields that every backbone has."""

        embed_dim: int = 192
        """Width D of the tokens."""
        num_classes: int = 1000
        """Outputs of the classifier; 0 = no classifier, ``forward`` then returns what the classifier would have been given."""
        drop_rate: float = 0.0
        """Dropout before the classifier."""
        drop_path: float = 0.0
        """Largest rate of stochastic depth."""

        def encoder(self) -> Backbone.Config:
            """The same network as objectives build it: every parameter that it has receives a gradient."""
            return replace(self, num_classes=0)

        def masked_encoder(self) -> Backbone.Config:
            """The same, with whatever only masked inputs make use of."""
            return self.encoder()

        def image_encoder(self) -> Backbone.Config:
            """The same for objectives that read one vector per image (``pooled``), and so train a class token that is read."""
            return self.encoder()

    fresh_parts: ClassVar[tuple[str, ...]] = ()
    """Beginnings of the names of parameters that weights of pretraining may lack: they start fresh in fine-tuning."""
    pretraining_parts: ClassVar[tuple[str, ...]] = ()
    """Beginnings of the names of parameters that only pretraining has."""
    poolings: ClassVar[tuple[str, ...]] = ()
    """What timm calls the read-out, where it has a word for it."""

    config: Any
    head: Head
    layers: Any
    """In execution order, where a network is one sequence of them."""
    _marks: tuple[frozenset[str], frozenset[str]]
    embed_dim: int
    num_features: int
    """Width of what ``forward_features`` returns."""
    head_hidden_size: int
    """Width of what ``forward_head(..., pre_logits=True)`` returns."""
    num_classes: int
    num_prefix_tokens: int
    """Leading tokens of ``forward_features`` that are no patches."""

    def __init__(self, config: Any) -> None:
        nn.Module.__init__(self)
        self.config = config

    @property
    @abstractmethod
    def patch_values(self) -> int:
        """P, the raw values of a patch."""

    @property
    def grid(self) -> tuple[int, int] | None:
        """(rows, columns) of the patches of an input of the configured size; None where patches are on no grid."""
        return None

    @abstractmethod
    def blank(self, count: int = 1) -> Tensor:
        """Empty inputs of the configured size, on the host: to count patches and to refuse before the first step."""

    @abstractmethod
    def partition(self, inputs: Tensor, step_key: int = 0) -> Patches:
        """Cut inputs and put the pieces in scan order; no parameters.

        Where a backbone scans in one of several orders, ``step_key`` (:attr:`Batch.step_key`) says which.

        Raises:
            UserError: if the inputs cannot be cut.
        """

    @abstractmethod
    def embed(self, patches: Patches) -> Float[Tensor, "B N D"]:
        """Content and position -> tokens."""

    @abstractmethod
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
        """Tokens -> features.

        ``prefix`` asks for register tokens (a class token is always there), ``causal`` for an encoder in which no token sees a
        later one, ``taps`` for the outputs of these layers. ``grid`` is that of the whole input, for layers that need it.
        """

    def encode_visible(
        self,
        patches: Patches,
        mask: Mask | None,
        *,
        prefix: bool = False,
        causal: bool = False,
        taps: Collection[int] = (),
    ) -> Features:
        """Encode the visible patches only, in scan order; without a mask all of them."""
        tokens, coords = self.embed(patches), patches.coords
        if mask is not None:
            tokens, coords = take(tokens, mask.visible), take(coords, mask.visible)
        return self.encode(tokens, coords, prefix=prefix, causal=causal, taps=taps, grid=patches.grid)

    @abstractmethod
    def pooled(self, features: Features) -> Float[Tensor, "B D"]:
        """One vector per input: what probes and nearest neighbours look at."""

    def from_pretraining(self, weights: dict[str, Tensor]) -> dict[str, Tensor]:
        """Weights of the network that was pretrained, by its own names, as a start for fine-tuning this one.

        The same ones, unless a family fine-tunes another network than it pretrains.
        """
        return weights

    @abstractmethod
    def forward_features(self, x: Tensor) -> Tensor:
        """Inputs, such as images (B, C, height, width) -> features (B, L, D) after the final norm, prefix tokens first."""

    @abstractmethod
    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """What ``forward_features`` returned -> logits (B, num_classes), or the classifier's input (B, head_hidden_size)."""

    def forward(self, x: Tensor) -> Tensor:
        """Inputs -> logits (B, num_classes), or the classifier's input where there is no classifier."""
        return self.forward_head(self.forward_features(x))

    def layer_ids(self) -> dict[str, int]:
        """Parameter name -> depth, for layer-wise learning rates: 0 on the input side, s + 1 in layer s, depth + 1 behind."""
        last = len(self.layers) + 1

        def depth(name: str) -> int:
            top, _, rest = name.partition(".")
            if top == "layers":
                return int(rest.partition(".")[0]) + 1
            return last if top in ("norm", "head") else 0

        return {name: depth(name) for name, _ in self.named_parameters()}

    def no_weight_decay(self, decay_ssm_state: bool = False) -> set[str]:
        """Names of parameters that must not be decayed beyond those that are 1-D or biases anyway, read from their marks."""
        never, recurrence = self._marks
        wanted = never if decay_ssm_state else never | recurrence
        return {name for name, _ in self.named_parameters() if name in wanted}

    def _read_marks(self) -> None:
        """Keep the marks by name: copying or sharding a model makes new parameters, which do not carry them."""
        named = dict(self.named_parameters())
        never = frozenset(name for name, p in named.items() if is_never_decayed(p))
        self._marks = never, frozenset(name for name, p in named.items() if is_ssm_state(p))

    @abstractmethod
    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Patterns of parameter names in the order of depth, as timm's grouping takes them."""

    @abstractmethod
    def set_grad_checkpointing(self, enable: bool = True, every: int = 1) -> None:
        """Recompute activations in the backward pass instead of keeping them, those of ``every`` so manieth block."""

    def get_classifier(self) -> nn.Module:
        """The last linear layer; an ``nn.Identity`` where there is no classifier."""
        return self.head.fc

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """A fresh classifier for ``num_classes`` (0 = none); the read-out is part of the architecture and cannot change.

        Raises:
            UserError: if ``global_pool`` asks for another read-out.
        """
        if global_pool not in (None, "", *self.poolings):
            raise UserError(f"{type(self).__name__} has no pooling {global_pool!r}; leave global_pool out")
        self.num_classes = num_classes
        self.config = replace(self.config, num_classes=num_classes)
        self.head.reset(num_classes)
        self.init_linear(self.head.fc)

    @abstractmethod
    def init_linear(self, module: nn.Module) -> None:
        """Initialise ``module`` as the family initialises the linear maps outside its mixers, if it is one."""


class ImageBackbone(Backbone):
    """Abstract: a backbone whose inputs are images (B, C, height, width), cut into square patches on a grid."""

    @dataclass(frozen=True, kw_only=True)
    class Config(Backbone.Config):
        """Fields that every backbone for images has."""

        img_size: int | tuple[int, int] = 224
        """(height, width) in pixels, or one number for both: the grid of the stored positions. Other sizes resample them."""
        patch_size: int = 16
        """Side of a square patch in pixels."""
        in_chans: int = 3
        """Image channels."""

        def small(self) -> Any:
            """Four layers (``depth``) of width 32 and two heads, where the network has such fields; 16 patches of 8 pixels."""
            sizes = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 4, "num_heads": 2}
            return replace(self, **{name: size for name, size in sizes.items() if hasattr(self, name)})

    first_conv: ClassVar[str] = "patch_embed.proj"
    """Name of the layer that sees the image, for timm's loading of weights for other numbers of channels."""

    feature_info: list[dict[str, Any]]
    default_cfg: dict[str, Any]
    pretrained_cfg: dict[str, Any]

    @property
    @abstractmethod
    def grid(self) -> tuple[int, int]:
        """(rows, columns) of the patches at the configured image size."""

    @property
    def patch_values(self) -> int:
        return self.config.patch_size**2 * self.config.in_chans

    def blank(self, count: int = 1) -> Float[Tensor, "B C height width"]:
        size = self.config.img_size
        height, width = (size, size) if isinstance(size, int) else size
        return torch.zeros(count, self.config.in_chans, height, width, device="cpu")

    @abstractmethod
    def set_input_size(
        self, img_size: int | tuple[int, int] | None = None, patch_size: int | tuple[int, int] | None = None
    ) -> None:
        """Change the size for which positions are stored; they are resampled."""


class Head(nn.Module):
    """Feature tokens (B, n, D) -> logits: reduce each token (``reduce``), concatenate, normalise (``norm``), classify (``fc``).

    With one token, or with ``reduction=1``, only ``fc`` remains. Source: wangf3014/Mamba-Reg:models_mamba.py.
    """

    def __init__(
        self,
        dim: int,
        num_classes: int,
        *,
        tokens: int = 1,
        reduction: int = 1,
        norm: Callable[[int], nn.Module] = nn.Identity,
        drop: float = 0.0,
    ) -> None:
        super().__init__()
        if dim % reduction:
            raise UserError(f"cls_reduce must divide the width {dim}, got {reduction}")
        self.width = tokens * (dim // reduction)
        self.reduce = nn.Linear(dim, dim // reduction, bias=False) if reduction > 1 else None
        self.norm = norm(self.width) if reduction > 1 else None
        self.drop = nn.Dropout(drop)
        self.fc = nn.Linear(self.width, num_classes) if num_classes > 0 else nn.Identity()

    def reset(self, num_classes: int) -> None:
        """A fresh classifier on the device and in the dtype of the old one (of the default where there was none)."""
        like = next(self.fc.parameters(), torch.empty(0))
        fc = nn.Linear(self.width, num_classes) if num_classes > 0 else nn.Identity()
        self.fc = fc.to(like.device, like.dtype)

    def forward(self, tokens: Float[Tensor, "B n D"], pre_logits: bool = False) -> Tensor:
        if self.reduce is not None:
            tokens = self.reduce(tokens)
        x = tokens.flatten(1)
        if self.norm is not None:
            x = self.norm(x)
        x = self.drop(x)
        return x if pre_logits else self.fc(x)
