"""Vision Mamba (Vim): Mamba layers alone, which read one class token among the patches.

    image ─ patches + positions ─ class token(s) among them ─ M M M ... M ─ norm ─ class token ─ fc

    class_token   sequence            the head reads
    middle        p p p C p p p       the class token, at N // 2 of N patches
    first         C p p p p p p       the class token
    double        C p p p p p p C     half the sum of both
    none          p p p p p p p       what ``pool`` says

In the released networks every layer scans both ways. Here too, two options that no released network uses: layers that scan one
way, two and two in opposite directions (``bidirectional_pairs``),

    h, r ──┬─────── layer 2j ────────── h_f, r_f ──┬─▶ h = h_f + rev(h_b)
           └─ rev ─ layer 2j+1 ─ rev ── h_b, r_b ──┘   r = r_f + rev(r_b)

where both add h to r, so that the stream doubles at every pair; and rotary positions (``rope``), by which h (with
``rope_residual`` r, too) is turned before every layer or pair. A class token is never turned.
Objectives build the network without head, with patches side by side (:meth:`Vim.Config.encoder`), and without class token
unless they compare images.
Source: Vim (arXiv:2401.09417), hustvl/Vim:vim/models_mamba.py, vim/rope.py @ dd0358a.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from jaxtyping import Float
from timm.layers.weight_init import trunc_normal_
from torch import Tensor, nn

from hybridmap.backbones.base import Head
from hybridmap.backbones.sequence import SequenceBackbone, init_patch_embed
from hybridmap.errors import UserError
from hybridmap.layers.block import MambaBlock, Stack
from hybridmap.layers.decay import no_decay
from hybridmap.layers.mamba import MambaMixer, init_mixers
from hybridmap.layers.norm import AddNorm, NormKind
from hybridmap.layers.rotary import Rotary, rotate
from hybridmap.types import Features, Tap

ClassToken = Literal["middle", "first", "double", "none"]

TOKENS: dict[ClassToken, tuple[str, ...]] = {
    "middle": ("cls_token",),
    "first": ("cls_token",),
    "double": ("cls_token_head", "cls_token_tail"),
    "none": (),
}
"""Names of the class tokens, in the order in which they stand in the sequence."""


def class_positions(class_token: ClassToken, patches: int) -> tuple[int, ...]:
    """Where the class tokens stand in the sequence of ``patches`` and class tokens.

    >>> [class_positions(kind, 45) for kind in ("middle", "first", "double", "none")]
    [(22,), (0,), (0, 46), ()]
    """
    return {"middle": (patches // 2,), "first": (0,), "double": (0, patches + 1), "none": ()}[class_token]


class MambaStack(Stack):
    """Mamba blocks one after another, or two and two in opposite directions, with a turn before each or each pair.

    The tap of a pair's first block is what that block alone returned, the tap of its second the sums behind the pair.
    """

    def __init__(
        self, blocks: Iterable[nn.Module], *, pairs: bool = False, turn_stream: bool = False, final_drop_path: float = 0.0
    ) -> None:
        super().__init__(blocks, outer_skip="none", final_drop_path=final_drop_path)
        self.pairs, self.turn_stream = pairs, turn_stream

    def forward(
        self,
        tokens: Float[Tensor, "B L D"],
        *,
        causal: bool = False,
        taps: Collection[int] = (),
        stop: int | None = None,
        turn: Callable[[Tensor], Tensor] | None = None,
    ) -> tuple[Float[Tensor, "B L D"], Float[Tensor, "B L D"] | None, dict[int, Tap]]:
        """As :meth:`Stack.forward`; ``turn`` acts on the branch, and on the stream where that is wanted.

        Raises:
            UserError: for a causal run of pairs, whose second layers read backwards.
        """
        if causal and self.pairs:
            raise UserError("layers in pairs read the tokens in both directions; for a causal encoder use v1, v2 or uni mixers")
        h, r = tokens, None
        before = h, r
        tapped: dict[int, Tap] = {}
        for s in range(self._length(stop, taps)):
            if self.pairs and s % 2:
                h_b, r_b = self._run(s, *(reverse(x) for x in before), causal)
                h, r = h + reverse(h_b), r + reverse(r_b)
            else:
                if turn is not None:
                    h, r = turn(h), turn(r) if self.turn_stream and r is not None else r
                before = h, r
                h, r = self._run(s, h, r, causal)
            if s in taps:
                tapped[s] = Tap(branch=h, stream=r)
        return h, r, tapped


def reverse(x: Tensor | None) -> Any:
    """The sequence (B, L, D) from its end; None stays None."""
    return None if x is None else x.flip(1)


class Vim(SequenceBackbone):
    """The released networks by default; the other options are those of the official class."""

    @dataclass(frozen=True, kw_only=True)
    class Config(SequenceBackbone.Config):
        depth: int = 24
        """Number of layers."""
        stride: int | None = None
        """Pixels from one patch to the next where patches overlap; None = the patch size."""
        class_token: ClassToken = "middle"
        """Where the class token stands among the patches; ``double``: one at either end."""
        pool: Literal["mean", "none", "all", "max"] = "mean"
        """What the head reads where there is no class token: the mean of the patches, the last patch (``none``), or every
        patch, to give logits per patch (``all``) or the largest over all patches (``max``)."""
        positions: Literal["learned", "none"] = "learned"
        """Whether positions are added to patches and class tokens."""
        mixer: Literal["v2", "v1", "uni"] = "v2"
        """Scans both ways with all (v2) or with some (v1) parameters of their own, or forward alone."""
        divide: bool = True
        """Halve the sum of both directions (v2 only)."""
        layer_scale: float | None = None
        """Start of a learned factor per channel on the output of every mixer; None = no such factor."""
        bidirectional_pairs: bool = False
        """Layers 2j and 2j + 1 read the same input in opposite directions; for mixers that scan forward alone."""
        rope: bool = False
        """Turn the patches' channels by their row and column before every layer or pair."""
        rope_residual: bool = False
        """Turn the residual stream as well."""
        rope_side: int = 14
        """Patches to a side of the grid on which rotary positions are counted."""
        scan: Literal["row", "column"] = "row"
        """Order in which the layers scan the patches."""
        norm_kind: NormKind = "rms"
        """Norm of layers and output."""
        residual_in_fp32: bool = True
        """Keep the stream in at least float32 under autocast."""
        d_state: int = 16
        """States per channel of the scan."""
        d_conv: int = 4
        """Width of the causal convolution."""
        expand: int = 2
        """Inner width of the mixer over ``embed_dim``."""
        init: Literal["keep_dt", "released"] = "keep_dt"
        """``keep_dt``: mixers keep Mamba's own initial step sizes. ``released``: those of backward scans start from 0."""

        @property
        def step(self) -> int:
            return self.patch_size if self.stride is None else self.stride

        def encoder(self) -> Vim.Config:
            return replace(self, num_classes=0, class_token="none", pool="mean", stride=None)

        def small(self) -> Any:
            return replace(super().small(), stride=None if self.stride is None else 4)

        def image_encoder(self) -> Vim.Config:
            return replace(self.encoder(), class_token=self.class_token)

    config: Vim.Config
    fresh_parts = ("cls_",)

    def __init__(self, config: Vim.Config) -> None:
        super().__init__(config)
        _check(config)
        self.scan = config.scan
        names = TOKENS[config.class_token]
        self.num_prefix_tokens = len(names)
        for name in names:
            self.register_parameter(name, no_decay(nn.Parameter(torch.zeros(1, 1, config.embed_dim))))
        if config.positions == "none":
            self.register_parameter("pos_embed", None)
        placed = bool(names) and config.positions == "learned"
        self.cls_pos = no_decay(nn.Parameter(torch.zeros(1, len(names), config.embed_dim))) if placed else None
        self.rope = Rotary(config.embed_dim, config.rope_side) if config.rope else None
        self.layers: MambaStack = _build_layers(config)
        self.norm = AddNorm(config.embed_dim, 1e-5, config.norm_kind, residual_in_fp32=config.residual_in_fp32)
        self.head = Head(config.embed_dim, config.num_classes, drop=config.drop_rate)
        self.head_hidden_size = self.head.width
        self._initialise()
        self._read_marks()

    @property
    def class_tokens(self) -> tuple[Tensor, ...]:
        """Each (1, 1, D), in the order in which they stand in the sequence."""
        return tuple(self.get_parameter(name) for name in TOKENS[self.config.class_token])

    @torch.no_grad()
    def _initialise(self) -> None:
        """The one place that decides how training starts; the mixers come with Mamba's own rules from their constructor."""
        init_patch_embed(self.patch_embed.proj)
        for table in (self.pos_embed, self.cls_pos, *self.class_tokens):
            if table is not None:
                trunc_normal_(table, std=0.02)
        self.init_linear(self.head.fc)
        init_mixers([m for m in self.modules() if isinstance(m, MambaMixer)], self.config.init == "released")

    def init_linear(self, module: nn.Module) -> None:
        if isinstance(module, nn.Linear):
            trunc_normal_(module.weight, std=0.02)
            nn.init.zeros_(module.bias)

    def insert_prefix(self, tokens: Float[Tensor, "B V D"], prefix: bool) -> tuple[Float[Tensor, "B L D"], bool]:
        """The class tokens stand among whatever patches there are."""
        if not self.num_prefix_tokens:
            return tokens, False
        own = torch.cat(self.class_tokens, dim=1)
        own = own if self.cls_pos is None else own + self.cls_pos
        return self._join(own.expand(tokens.shape[0], -1, -1), tokens), True

    def _join(self, own: Float[Tensor, "B R D"], patches: Float[Tensor, "B V D"]) -> Float[Tensor, "B L D"]:
        """One sequence of class tokens and patches."""
        first = class_positions(self.config.class_token, patches.shape[1])[0]
        return torch.cat([patches[:, :first], own[:, :1], patches[:, first:], own[:, 1:]], dim=1)

    def split_prefix(self, sequence: Float[Tensor, "B L D"]) -> tuple[Float[Tensor, "B R D"], Float[Tensor, "B V D"]]:
        if not self.num_prefix_tokens:
            return sequence[:, :0], sequence
        count = sequence.shape[1] - self.num_prefix_tokens
        first = class_positions(self.config.class_token, count)[0]
        own = torch.cat([sequence[:, first : first + 1], sequence[:, count + 1 :]], dim=1)
        return own, torch.cat([sequence[:, :first], sequence[:, first + 1 : count + 1]], dim=1)

    def layer_inputs(self, coords: Float[Tensor, "B V A"], grid: tuple[int, ...]) -> dict[str, Any]:
        return {"turn": self._turn(coords, grid)}

    def _turn(self, coords: Float[Tensor, "B V A"], grid: tuple[int, ...]) -> Callable[[Tensor], Tensor] | None:
        """The rotation of a sequence with patches at these places: by their own angles; of class tokens by none."""
        if self.rope is None:
            return None
        cosine, sine = self.rope(coords, grid)
        if self.num_prefix_tokens:
            still = sine.new_zeros(sine.shape[0], self.num_prefix_tokens, self.embed_dim)
            cosine, sine = self._join(still + 1, cosine), self._join(still, sine)
        return lambda x: rotate(x, cosine, sine)

    def read_out(self, prefix: Float[Tensor, "B R D"], patches: Float[Tensor, "B N D"]) -> Float[Tensor, "B n D"]:
        """The mean of the class tokens; without them what ``pool`` says."""
        if self.num_prefix_tokens:
            return prefix.mean(1, keepdim=True)
        if self.config.pool == "mean":
            return patches.mean(1, keepdim=True)
        return patches[:, -1:] if self.config.pool == "none" else patches

    def forward_head(self, x: Float[Tensor, "B L D"], pre_logits: bool = False) -> Tensor:
        """Logits (B, num_classes), for ``pool="all"`` (B, N, num_classes); the head's input with ``pre_logits``."""
        if self.num_prefix_tokens or self.config.pool in ("mean", "none"):
            return super().forward_head(x, pre_logits)
        each = self.head(x.flatten(0, 1).unsqueeze(1), pre_logits).unflatten(0, x.shape[:2])  # (B, N, ...)
        whole = pre_logits or self.num_classes == 0 or self.config.pool == "all"
        return each if whole else each.amax(1)

    def pooled(self, features: Features) -> Float[Tensor, "B D"]:
        """The mean of the class tokens after the final norm; of the patches where there is no class token."""
        return features.prefix.mean(1) if self.num_prefix_tokens else features.patches.mean(1)


def _check(config: Vim.Config) -> None:
    """Refuse networks that do not exist."""
    choices = {
        "class_token": tuple(TOKENS),
        "pool": ("mean", "none", "all", "max"),
        "positions": ("learned", "none"),
        "mixer": ("v2", "v1", "uni"),
        "scan": ("row", "column"),
        "norm_kind": ("rms", "layer"),
        "init": ("keep_dt", "released"),
    }
    for name, allowed in choices.items():
        if getattr(config, name) not in allowed:
            raise UserError(f"{name} must be {', '.join(allowed[:-1])} or {allowed[-1]}, got {getattr(config, name)!r}")
    if config.depth < 1:
        raise UserError(f"depth must be at least 1, got {config.depth}")
    if config.pool == "max" and config.class_token != "none":
        raise UserError(
            "pool='max' is a maximum over patches, but with a class token the head reads that alone; use another pool"
        )
    if config.bidirectional_pairs and config.depth % 2:
        raise UserError(f"layers in pairs need an even depth, got {config.depth}; try {config.depth + 1}")


def _build_layers(config: Vim.Config) -> MambaStack:
    ramp = torch.linspace(0, config.drop_path, config.depth, device="cpu").tolist()

    def build(rate: float) -> MambaBlock:
        mixer = MambaMixer(
            config.embed_dim,
            d_state=config.d_state,
            d_conv=config.d_conv,
            expand=config.expand,
            variant=config.mixer,
            divide=config.divide,
            layer_scale=config.layer_scale,
        )
        return MambaBlock(
            config.embed_dim,
            mixer,
            norm_kind=config.norm_kind,
            residual_in_fp32=config.residual_in_fp32,
            drop_path=rate,
        )

    return MambaStack(
        (build(rate) for rate in [0.0, *ramp[:-1]]),
        pairs=config.bidirectional_pairs,
        turn_stream=config.rope_residual,
        final_drop_path=config.drop_path,
    )
