"""Backbones whose layers all work on one sequence of patches of one size (HybridNet, Mamba-R, Vim, ViT): what they share."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.layers.patch_embed import PatchEmbed
from timm.models._features import feature_take_indices
from torch import Tensor, nn

from hybridmap.backbones.base import Head, ImageBackbone
from hybridmap.errors import UserError
from hybridmap.layers.block import Stack
from hybridmap.layers.decay import no_decay
from hybridmap.layers.norm import AddNorm
from hybridmap.layers.pos_embed import resample
from hybridmap.tokens.images import partition
from hybridmap.tokens.select import put
from hybridmap.types import Features, Patches


class SequenceBackbone(ImageBackbone):
    """Abstract. ``partition -> embed -> prefix -> layers -> norm``, and timm's contract on top.

    A concrete class calls :meth:`__init__`, then sets ``layers``, ``norm`` and ``head`` and implements the three hooks for its
    prefix tokens and its read-out.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config(ImageBackbone.Config):
        @property
        def step(self) -> int:
            """Pixels from one patch to the next; patches overlap where it is smaller than they are."""
            return self.patch_size

    layers: Stack
    norm: AddNorm
    head: Head
    scan: str = "row"
    """Order in which the patches are scanned, ``row`` or ``column``."""
    norm_tokens: bool = True
    """Whether ``norm`` acts on the tokens; otherwise it acts after pooling."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        check_size(config.img_size, config.patch_size, config.step)
        self.embed_dim = self.num_features = config.embed_dim
        self.num_classes = config.num_classes
        self.patch_embed = PatchEmbed(
            sides(config.img_size), config.patch_size, config.in_chans, config.embed_dim, strict_img_size=False
        )
        self._set_stride()
        rows, columns = self.grid
        self.pos_embed = no_decay(nn.Parameter(torch.zeros(1, rows * columns, config.embed_dim)))
        self.pretrained_cfg = self.default_cfg = timm_cfg(config)

    @property
    def grid(self) -> tuple[int, int]:
        """(rows, columns) of the stored positions."""
        height, width = sides(self.config.img_size)
        patch, step = self.config.patch_size, self.config.step
        return (height - patch) // step + 1, (width - patch) // step + 1

    def _set_stride(self) -> None:
        """timm's module knows patches side by side only."""
        rows, columns = self.grid
        self.patch_embed.proj.stride = (self.config.step, self.config.step)
        self.patch_embed.grid_size, self.patch_embed.num_patches = (rows, columns), rows * columns

    @property
    def feature_info(self) -> list[dict[str, Any]]:  # pyright: ignore[reportIncompatibleVariableOverride]
        """One entry per layer, as timm's feature extraction reads it."""
        return [
            {"num_chs": self.embed_dim, "reduction": self.config.step, "module": f"layers.{s}"} for s in range(len(self.layers))
        ]

    # From inputs to features

    def partition(self, inputs: Float[Tensor, "B C height width"], step_key: int = 0) -> Patches:
        """Cut images into patches, in the order of ``scan``.

        Raises:
            UserError: if patches do not cover the image exactly, or the number of channels is not the network's.
        """
        check_images(inputs, self.config.in_chans)
        check_size(tuple(inputs.shape[-2:]), self.config.patch_size, self.config.step)
        return partition(inputs, self.config.patch_size, self.scan, self.config.step)

    def embed(self, patches: Patches) -> Float[Tensor, "B N D"]:
        """Linear map of each patch's content (the weight of ``patch_embed``) plus its position, resampled to the grid."""
        proj = self.patch_embed.proj
        weight = proj.weight.permute(0, 2, 3, 1).flatten(1)  # (D, p p C): the channel fastest, as in content
        tokens = F.linear(patches.content, weight, proj.bias)
        if self.pos_embed is None:
            return tokens
        table = resample(self.pos_embed, self.grid, patches.grid or self.grid)
        return tokens + F.embedding(patches.source, table[0])

    @abstractmethod
    def insert_prefix(self, tokens: Float[Tensor, "B V D"], prefix: bool) -> tuple[Float[Tensor, "B L D"], bool]:
        """The sequence that the layers see, and whether it holds prefix tokens."""

    def layer_inputs(self, coords: Float[Tensor, "B V A"], grid: tuple[int, ...]) -> dict[str, Any]:
        """What ``layers`` are given besides the sequence, for patches at ``coords`` of a ``grid`` (rows, columns).

        Nothing, unless the layers of a family look at places.
        """
        return {}

    @abstractmethod
    def split_prefix(self, sequence: Float[Tensor, "B L D"]) -> tuple[Float[Tensor, "B R D"], Float[Tensor, "B V D"]]:
        """(prefix tokens, patches) of a sequence with prefix tokens."""

    @abstractmethod
    def read_out(self, prefix: Float[Tensor, "B R D"], patches: Float[Tensor, "B N D"]) -> Float[Tensor, "B n D"]:
        """The tokens that the head is given."""

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
        sequence, has_prefix = self.insert_prefix(tokens, prefix)
        inputs = self.layer_inputs(coords, grid or self.grid)
        branch, stream, tapped = self.layers(sequence, causal=causal, taps=taps, **inputs)
        out = self.layers.finish(branch, stream, self.norm if self.norm_tokens else None)
        registers, encoded = self.split_prefix(out) if has_prefix else (out[:, :0], out)
        return Features(patches=encoded, prefix=registers, taps=tapped)

    def forward_features(self, x: Float[Tensor, "B C height width"]) -> Float[Tensor, "B L D"]:
        """Tokens after the final norm: prefix tokens first, then the patches row by row, whatever the scan order."""
        patches = self.partition(x)
        features = self.encode_visible(patches, None, prefix=True)
        return torch.cat([features.prefix, self._raster(features.patches, patches)], dim=1)

    def forward_head(self, x: Float[Tensor, "B L D"], pre_logits: bool = False) -> Tensor:
        prefix, patches = x[:, : self.num_prefix_tokens], x[:, self.num_prefix_tokens :]
        return self.head(self.read_out(prefix, patches), pre_logits)

    def forward_intermediates(
        self,
        x: Float[Tensor, "B C height width"],
        indices: int | Sequence[int] | None = None,
        return_prefix_tokens: bool = False,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
        output_dict: bool = False,
    ) -> Any:
        """Outputs of single layers, as timm's models give them: (final features, [layer outputs]).

        A layer's output is the full sum (stream plus branch) behind it, so that with ``norm`` the last one equals
        :meth:`forward_features`. ``indices``: the last n layers if an int, these layers if a sequence, all if None. ``NCHW``
        gives maps (B, D, rows, columns), ``NLC`` tokens (B, N, D), both without prefix tokens; ``return_prefix_tokens`` pairs
        each with them.

        Raises:
            UserError: for another ``output_fmt``.
        """
        if output_fmt not in ("NCHW", "NLC"):
            raise UserError(f"output_fmt must be NCHW or NLC, got {output_fmt!r}")
        wanted = list(indices) if isinstance(indices, Sequence) else indices
        take_indices, last = feature_take_indices(len(self.layers), wanted)
        patches = self.partition(x)
        sequence, _ = self.insert_prefix(self.embed(patches), True)
        stop = last + 1 if stop_early else None
        inputs = self.layer_inputs(patches.coords, patches.grid or self.grid)
        branch, stream, taps = self.layers(sequence, taps=take_indices, stop=stop, **inputs)

        def tokens(branch: Tensor, stream: Tensor | None, norm: AddNorm | None) -> tuple[Tensor, Tensor]:
            """(prefix, patches row by row) of the sum."""
            total = self.layers.finish(branch, stream, norm)
            prefix, encoded = self.split_prefix(total) if self.num_prefix_tokens else (total[:, :0], total)
            return prefix, self._raster(encoded, patches)

        def shaped(encoded: Tensor) -> Tensor:
            return encoded.transpose(1, 2).unflatten(2, patches.grid or self.grid) if output_fmt == "NCHW" else encoded

        split = [tokens(taps[s].branch, taps[s].stream, self.norm if norm else None) for s in take_indices]
        outputs = [shaped(encoded).contiguous() for _, encoded in split]
        prefixes = [prefix for prefix, _ in split]
        paired = return_prefix_tokens and self.num_prefix_tokens > 0
        intermediates = list(zip(outputs, prefixes, strict=True)) if paired else outputs
        if intermediates_only and not output_dict:
            return intermediates
        result: dict[str, Any] = {"image_intermediates": outputs}
        if paired:
            result["image_intermediates_prefix"] = prefixes
        if not intermediates_only:
            final = torch.cat(tokens(branch, stream, self.norm if self.norm_tokens else None), dim=1)
            result["image_features"] = final
            if not output_dict:
                return final, intermediates
        return result

    def prune_intermediate_layers(
        self, indices: int | Sequence[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Drop what the layer outputs ``indices`` do not need; returns their numbers. Used by timm's ``features_only``."""
        take_indices, last = feature_take_indices(len(self.layers), list(indices) if isinstance(indices, Sequence) else indices)
        self.layers.truncate(last + 1)
        if prune_norm:
            self.norm_tokens = False
            self.norm = nn.Identity()  # pyright: ignore[reportAttributeAccessIssue]
        if prune_head:
            self.head = Head(self.embed_dim, 0)
        return take_indices

    def _raster(self, encoded: Float[Tensor, "B N D"], patches: Patches) -> Float[Tensor, "B N D"]:
        """Patches in scan order -> row by row."""
        return encoded if self.scan == "row" else put(encoded, patches.source, encoded)

    # The rest of timm's contract

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Input side, layers (one group each, or all in one if ``coarse``); norm and head match nothing and come last."""
        stem = r"^(?:patch_embed|pos_embed|cls_token|cls_pos|registers)"
        return {"stem": stem, "blocks": r"^layers" if coarse else [(r"^layers\.(\d+)", None)]}

    def set_grad_checkpointing(self, enable: bool = True, every: int = 1) -> None:
        self.layers.checkpointing = every if enable else 0

    def set_input_size(
        self, img_size: int | tuple[int, int] | None = None, patch_size: int | tuple[int, int] | None = None
    ) -> None:
        """Change the stored grid, and the patch; positions and the patch weights are resampled.

        Raises:
            UserError: if patches do not cover the size exactly, or are not square.
        """
        patch = sides(patch_size or self.config.patch_size)
        if patch[0] != patch[1]:
            raise UserError(f"patches are square here, got {patch[0]}x{patch[1]}; try {patch[0]}")
        new = replace(self.config, img_size=img_size or self.config.img_size, patch_size=patch[0])
        check_size(new.img_size, new.patch_size, new.step)
        old_grid, self.config = self.grid, new
        self.patch_embed.set_input_size(sides(new.img_size), patch)
        self._set_stride()
        if self.pos_embed is not None:
            table = resample(self.pos_embed.detach(), old_grid, self.grid)
            self.pos_embed = no_decay(nn.Parameter(table.clone(), requires_grad=self.pos_embed.requires_grad))


def sides(size: int | Sequence[int]) -> tuple[int, int]:
    """(height, width) from one number for both, or from two."""
    return (size, size) if isinstance(size, int) else (size[0], size[1])


def check_images(inputs: Tensor, in_chans: int) -> None:
    """Refuse what is no batch of images (B, in_chans, height, width), or of empty ones.

    Raises:
        UserError: saying what was expected.
    """
    if inputs.ndim != 4 or inputs.shape[1] != in_chans or 0 in inputs.shape[2:]:
        expected = f"(batch, {in_chans}, height, width)"
        raise UserError(f"expected images of shape {expected}, got {tuple(inputs.shape)}; try in_chans or another input")
    if not inputs.is_floating_point():
        raise UserError(f"expected normalised images in floating point, got {inputs.dtype}; try images.float() / 255")


def check_size(img_size: int | Sequence[int], patch_size: int, stride: int | None = None) -> None:
    """Refuse sizes (in pixels) that patches, one every ``stride`` (by default side by side), do not cover exactly.

    Raises:
        UserError: naming a size that they cover.
    """
    height, width = sides(img_size)
    step = patch_size if stride is None else stride
    if not 1 <= step <= patch_size:
        raise UserError(f"patches of {patch_size} pixels cannot start every {step}; try a stride from 1 to the patch size")
    if min(height, width) < patch_size or (height - patch_size) % step or (width - patch_size) % step:
        near = [patch_size + max(0, side - patch_size) // step * step for side in (height, width)]
        fits = "a multiple of the patch size" if step == patch_size else f"a multiple of {step} above the patch size"
        raise UserError(f"the image size must be {fits} {patch_size}, got {height}x{width}; try {near[0]}x{near[1]}")


@torch.no_grad()
def init_patch_embed(proj: nn.Conv2d) -> None:
    """Weights as timm 0.4.12's ``lecun_normal_`` draws them, no bias."""
    nn.init.normal_(proj.weight, std=proj.weight[0].numel() ** -0.5 / 0.87962566103423978)
    assert proj.bias is not None
    nn.init.zeros_(proj.bias)


def timm_cfg(config: ImageBackbone.Config, **changes: Any) -> dict[str, Any]:
    """What timm's data pipeline wants to know about a network."""
    return {
        "url": "",
        "num_classes": config.num_classes,
        "input_size": (config.in_chans, *sides(config.img_size)),
        "pool_size": None,
        "crop_pct": 0.875,
        "interpolation": "bicubic",
        "fixed_input_size": False,
        "mean": IMAGENET_DEFAULT_MEAN,
        "std": IMAGENET_DEFAULT_STD,
        "first_conv": config.owner.first_conv,  # pyright: ignore[reportAttributeAccessIssue]
        "classifier": "head.fc",
    } | changes
