"""Backbones that halve the resolution from stage to stage (MambaVision, VMamba): what they share.

    image ─ stem ─▶ stage 0 ─ down ─▶ stage 1 ─ down ─▶ stage 2 ─ down ─▶ stage 3 ─ norm ─▶ map ─ mean ─ fc
      1      1/4      1/4               1/8               1/16              1/32             1/32

There are no tokens that could be left out: convolutions and downsampling need the whole image. So pretraining cuts the image
into *units* as large as one position of the final map (32 pixels), blanks the masked units before the stem, puts one learned
vector in their places behind it, runs the network densely, and hands on the positions of the visible units only. The decoder
puts its mask token elsewhere, as everywhere.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from jaxtyping import Bool, Float
from timm.models._features import feature_take_indices
from timm.models._manipulate import MATCH_PREV_GROUP
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.utils.checkpoint import checkpoint

from hybridmap.backbones.base import Head, ImageBackbone
from hybridmap.backbones.sequence import check_images, check_size, sides, timm_cfg
from hybridmap.errors import UserError
from hybridmap.tokens.images import assemble, partition
from hybridmap.tokens.select import put, take
from hybridmap.types import Features, Mask, Patches, Tap


class Stage(nn.Module):
    """Blocks at one resolution, then ``downsample`` to the next one (None in the last stage).

    A stage whose blocks do not work on maps overrides :meth:`mix` and calls :meth:`run` inside. Downsampling is called here and
    not by the backbone, so that a stage can be sharded as a whole.
    """

    def __init__(self, blocks: Iterable[nn.Module], downsample: nn.Module | None) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.downsample = downsample
        self.checkpointing = 0

    def forward(self, x: Float[Tensor, "B D rows columns"]) -> tuple[Tensor, Tensor]:
        """(the map behind the last block, what the next stage is given)."""
        mixed = self.mix(x)
        return mixed, mixed if self.downsample is None else self.downsample(mixed)

    def mix(self, x: Float[Tensor, "B D rows columns"]) -> Float[Tensor, "B D rows columns"]:
        """The map behind the last block."""
        return self.run(x)

    def run(self, x: Tensor) -> Tensor:
        """All blocks, one after the other."""
        for s, block in enumerate(self.blocks):
            again = self.checkpointing and s % self.checkpointing == 0 and torch.is_grad_enabled()
            x = recomputed(block, x) if again else block(x)
        return x


class HierarchicalBackbone(ImageBackbone):
    """Abstract. ``stem -> stages -> norm -> head``, and timm's contract on top.

    A concrete class calls :meth:`__init__`, then sets ``stem`` (stride 4), ``stages``, ``norm`` (of maps) and ``head``,
    implements :meth:`init_linear`, and ends its constructor with ``_read_marks``. Its maps may have any size: with strides
    that round up, an image of height h gives ceil(h / 32) rows.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config(ImageBackbone.Config):
        patch_size: int = 32
        """Side in pixels of the square units that pretraining masks: the stride of the last stage, which the depths give."""
        embed_dim: int = 96
        """Width of the first stage; stage s has ``embed_dim * 2**s``."""
        depths: tuple[int, ...] = (2, 2, 5, 2)
        """Blocks of each stage."""
        mask_token: bool = False
        """Whether a learned vector stands in the stem's output where units are masked. Only pretraining has a use for it."""

        def masked_encoder(self) -> HierarchicalBackbone.Config:
            return replace(self, num_classes=0, mask_token=True)

        def small(self) -> Any:
            """Two blocks in the last two stages and one in the others, four units: an image of 64 pixels."""
            return replace(self, img_size=64, patch_size=32, embed_dim=8, depths=(1, 1, 2, 2))

    STEM_STRIDE: ClassVar[int] = 4
    poolings: ClassVar[tuple[str, ...]] = ("avg",)
    pretraining_parts: ClassVar[tuple[str, ...]] = ("mask_token",)

    stem: nn.Module
    stages: nn.ModuleList
    norm: nn.Module
    head: Head

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        if len(config.depths) < 1 or min(config.depths) < 1:
            raise UserError(f"depths must give every stage at least one block, such as (2, 2, 5, 2), got {config.depths}")
        self.widths = tuple(config.embed_dim * 2**s for s in range(len(config.depths)))
        self.strides = tuple(self.STEM_STRIDE * 2**s for s in range(len(config.depths)))
        self._check_unit(config.patch_size)
        check_size(config.img_size, 1)
        self.embed_dim = self.num_features = self.head_hidden_size = self.widths[-1]
        self.num_classes = config.num_classes
        self.num_prefix_tokens = 0
        self.pretrained_cfg = self.default_cfg = timm_cfg(config)
        self.mask_token = nn.Parameter(torch.empty(1, self.widths[0], 1, 1).normal_(std=0.02)) if config.mask_token else None

    @property
    def grid(self) -> tuple[int, int]:
        """(rows, columns) of the final map at the configured image size."""
        height, width = sides(self.config.img_size)
        unit = self.config.patch_size
        return -(-height // unit), -(-width // unit)

    @property
    def feature_info(self) -> list[dict[str, Any]]:  # pyright: ignore[reportIncompatibleVariableOverride]
        """One entry per stage, as timm's feature extraction reads it."""
        shapes = list(zip(self.widths, self.strides, strict=True))[: len(self.stages)]
        return [{"num_chs": c, "reduction": r, "module": f"stages.{s}"} for s, (c, r) in enumerate(shapes)]

    # From images to features

    def partition(self, inputs: Float[Tensor, "B C height width"], step_key: int = 0) -> Patches:
        """Cut images into the units that pretraining masks, row by row.

        Raises:
            UserError: if the size is no multiple of the unit, or the number of channels is not the network's.
        """
        check_images(inputs, self.config.in_chans)
        return partition(inputs, self.config.patch_size)

    def embed(self, patches: Patches) -> Float[Tensor, "B N D"]:
        """There is no such step.

        Raises:
            UserError: always.
        """
        raise UserError(self._no_tokens())

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
        """There is no such step.

        Raises:
            UserError: always.
        """
        raise UserError(self._no_tokens())

    def _no_tokens(self) -> str:
        return (
            f"{type(self).__name__} works on whole images and cannot encode a choice of tokens;"
            " call encode_visible(patches, mask), which blanks the masked units"
        )

    def encode_visible(
        self,
        patches: Patches,
        mask: Mask | None,
        *,
        prefix: bool = False,
        causal: bool = False,
        taps: Collection[int] = (),
    ) -> Features:
        """What :meth:`encode_dense` returns, at the visible units.

        Raises:
            UserError: if a causal encoder is asked for, or a tap names no stage.
        """
        if causal:
            raise UserError(
                f"{type(self).__name__} cannot encode causally: its convolutions look ahead; choose an objective that masks"
            )
        dense = self.encode_dense(patches, mask, taps=taps)
        return dense if mask is None else replace(dense, patches=take(dense.patches, mask.visible))

    def encode_dense(self, patches: Patches, mask: Mask | None, *, taps: Collection[int] = ()) -> Features:
        """Features of all units, in scan order, of an image in which the masked ones are blank (0, the mean colour).

        Blank alone would not do: around the border of a masked unit the stem sees visible pixels. So its output there is
        replaced as well, where the network has a learned vector for that (``mask_token``). What stands at masked units in the
        end was computed from the visible ones. ``taps`` names stages, as ``feature_info`` does: their maps before
        downsampling, all positions row by row. There are no prefix tokens.

        Raises:
            UserError: if a tap names no stage.
        """
        if taps and not 0 <= min(taps) <= max(taps) < len(self.stages):
            raise UserError(f"taps must be stage numbers from 0 to {len(self.stages) - 1}, got {sorted(taps)}")
        assert patches.grid is not None
        content = patches.content if mask is None else patches.content.masked_fill(mask.masked[..., None], 0)
        images = assemble(content, patches.source, patches.grid, self.config.patch_size, self.config.in_chans)
        maps = list(self._stage_maps(images, None if mask is None else self._behind_stem(mask, patches)))
        encoded = take(tokens_of(self.norm(maps[-1])), patches.source)
        return Features(
            patches=encoded,
            prefix=encoded[:, :0],
            taps={s: Tap(branch=tokens_of(maps[s]), stream=None) for s in taps},
        )

    def _behind_stem(self, mask: Mask, patches: Patches) -> Bool[Tensor, "B 1 rows columns"]:
        """Which positions of the stem's output belong to masked units."""
        rows, columns = patches.grid or self.grid
        units = put(mask.masked[..., None], patches.source, torch.empty_like(mask.masked[..., None]))
        side = self.config.patch_size // self.STEM_STRIDE
        return units.view(-1, 1, rows, columns).repeat_interleave(side, 2).repeat_interleave(side, 3)

    def _stage_maps(
        self, images: Float[Tensor, "B C height width"], masked: Bool[Tensor, "B 1 rows columns"] | None = None
    ) -> Iterator[Float[Tensor, "B _ _rows _columns"]]:
        """The map behind each stage, before it is downsampled."""
        x = self.stem(images)
        if masked is not None and self.mask_token is not None:
            x = torch.where(masked, self.mask_token.to(x.dtype), x)
        for stage in self.stages:
            mixed, x = stage(x)
            yield mixed

    def _stages(self) -> list[Stage]:
        return [stage for stage in self.stages if isinstance(stage, Stage)]

    def pooled(self, features: Features) -> Float[Tensor, "B D"]:
        """Mean of the positions after the final norm."""
        return features.patches.mean(1)

    def forward_features(self, x: Float[Tensor, "B C height width"]) -> Float[Tensor, "B D rows columns"]:
        """Images of any size -> the map behind the final norm, ceil(height / 32) rows and ceil(width / 32) columns.

        Raises:
            UserError: if the number of channels is not the network's, or the image is empty.
        """
        check_images(x, self.config.in_chans)
        return self.norm(deque(self._stage_maps(x), maxlen=1).pop())

    def forward_head(self, x: Float[Tensor, "B D rows columns"], pre_logits: bool = False) -> Tensor:
        return self.head(x.mean((2, 3)).unsqueeze(1), pre_logits)

    def forward_intermediates(
        self,
        x: Float[Tensor, "B C height width"],
        indices: int | Sequence[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> Any:
        """Maps of single stages, as timm's models give them: (final map, [stage maps before downsampling]).

        ``indices``: the last n stages if an int, these stages if a sequence, all if None. ``norm`` applies the final norm to
        the last stage, the only one that it fits. ``NCHW`` gives maps (B, D, rows, columns), ``NLC`` tokens (B, N, D).

        Raises:
            UserError: for another ``output_fmt``, or as ``forward_features`` does.
        """
        if output_fmt not in ("NCHW", "NLC"):
            raise UserError(f"output_fmt must be NCHW or NLC, got {output_fmt!r}")
        check_images(x, self.config.in_chans)
        take_indices, last = feature_take_indices(len(self.stages), as_list(indices))
        found: dict[int, Tensor] = {}
        final = x
        for s, final in enumerate(self._stage_maps(x)):
            if s in take_indices:
                found[s] = self.norm(final) if norm and s == len(self.stages) - 1 else final
            if s == last and stop_early and intermediates_only:
                break
        shaped = [tokens_of(found[s]) if output_fmt == "NLC" else found[s] for s in take_indices]
        return shaped if intermediates_only else (self.norm(final), shaped)

    def prune_intermediate_layers(
        self, indices: int | Sequence[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Drop what the stage maps ``indices`` do not need; returns their numbers. Used by timm's ``features_only``."""
        take_indices, last = feature_take_indices(len(self.stages), as_list(indices))
        if prune_norm or last < len(self.stages) - 1:
            self.norm = nn.Identity()
        del self.stages[last + 1 :]
        self._stages()[last].downsample = None
        self.embed_dim = self.num_features = self.head_hidden_size = self.widths[last]
        if prune_head:
            self.head = Head(self.embed_dim, 0)
        return take_indices

    # The rest of timm's contract

    def layer_ids(self) -> dict[str, int]:
        """Blocks of all stages are counted through; a downsampling has the depth of the block before it."""
        firsts = [sum(self.config.depths[:s]) for s in range(len(self.config.depths) + 1)]

        def depth(name: str) -> int:
            top, *path = name.split(".")
            if top != "stages":
                return firsts[-1] + 1 if top in ("norm", "head") else 0
            stage = int(path[0])
            return firsts[stage] + int(path[2]) + 1 if path[1] == "blocks" else firsts[stage + 1]

        return {name: depth(name) for name, _ in self.named_parameters()}

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Stem, blocks (one group each, or one per stage if ``coarse``); norm and head match nothing and come last."""
        fine = [(r"^stages\.(\d+)\.blocks\.(\d+)", None), (r"^stages\.(\d+)\.downsample", MATCH_PREV_GROUP)]
        return {"stem": r"^(?:stem|mask_token)", "blocks": r"^stages\.(\d+)" if coarse else fine}

    def set_grad_checkpointing(self, enable: bool = True, every: int = 1) -> None:
        for stage in self._stages():
            stage.checkpointing = every if enable else 0

    def set_input_size(
        self, img_size: int | tuple[int, int] | None = None, patch_size: int | tuple[int, int] | None = None
    ) -> None:
        """Change the size for which ``grid`` is told; no parameter depends on it.

        Raises:
            UserError: if ``patch_size`` is not the stride of the last stage.
        """
        if patch_size is not None:
            for side in sides(patch_size):
                self._check_unit(side)
        check_size(img_size or self.config.img_size, 1)
        self.config = replace(self.config, img_size=img_size or self.config.img_size)

    def _check_unit(self, side: int) -> None:
        if side != self.strides[-1]:
            raise UserError(
                f"patch_size must be {self.strides[-1]}, the stride of the last of {len(self.strides)} stages, got {side}"
            )


def tokens_of(x: Float[Tensor, "B D rows columns"]) -> Float[Tensor, "B N D"]:
    """A map as tokens, row by row."""
    return x.flatten(2).transpose(1, 2)


def drop_path_rates(largest: float, depths: Sequence[int]) -> list[list[float]]:
    """Rates for the blocks of each stage, linear from 0 over all blocks of all stages."""
    ramp = torch.linspace(0, largest, sum(depths), device="cpu")
    return [part.tolist() for part in ramp.split(list(depths))]


def as_list(indices: int | Sequence[int] | None) -> int | list[int] | None:
    """Layer numbers as timm's helpers want them."""
    return list(indices) if isinstance(indices, Sequence) else indices


def recomputed(block: nn.Module, x: Tensor) -> Tensor:
    """``block(x)``, computed once more in the backward pass; BatchNorm counts the batch only the first time."""
    norms = [module for module in block.modules() if isinstance(module, _NormBase)]
    if not norms:
        return checkpoint(block, x, use_reentrant=False)  # pyright: ignore[reportReturnType]
    return checkpoint(block, x, use_reentrant=False, context_fn=lambda: (nullcontext(), unmoved(norms)))  # pyright: ignore


@contextmanager
def unmoved(norms: Sequence[_NormBase]) -> Iterator[None]:
    """Inside, norms in training leave their running statistics alone (but hand them to autograd as in the first pass)."""
    kept = [(norm.momentum, norm.num_batches_tracked) for norm in norms]
    for norm in norms:
        norm.momentum, norm.num_batches_tracked = 0.0, None
    try:
        yield
    finally:
        for norm, (momentum, counter) in zip(norms, kept, strict=True):
            norm.momentum, norm.num_batches_tracked = momentum, counter
