"""The same weights for other images: positions resampled to another grid, the first layer for other channels."""

from __future__ import annotations

from dataclasses import replace

import torch
from timm.models._manipulate import adapt_input_conv
from torch import Tensor

from hybridmap.backbones.base import ImageBackbone
from hybridmap.backbones.vim import Vim, class_positions
from hybridmap.convert.origin import Loaded
from hybridmap.convert.vim import Positions
from hybridmap.errors import UserError
from hybridmap.layers.pos_embed import resample

DECODER_POSITIONS = "decoder.pos_embed"


def resized(loaded: Loaded, img_size: int | tuple[int, int], official_vim_resize: bool = False) -> Loaded:
    """Weights and configuration for images of ``img_size`` pixels, by the backbone's own rule (``set_input_size``).

    A pretraining decoder's positions follow the backbone's grid. ``official_vim_resize``: the positions of a Vim as its
    released code resamples them, which takes the first row for the class token's, wherever that stands: published numbers at
    other sizes rest on it.

    Raises:
        UserError: if it is not known which network the weights belong to, or the size does not suit it; or if
            ``official_vim_resize`` is asked of another network than a Vim with one class token.
    """
    if loaded.config is None:
        raise UserError("positions can be resampled only where the file says which backbone it is of; leave the size out")
    backbone = loaded.build()
    if not isinstance(backbone, ImageBackbone):
        raise UserError("only networks for images have an image size; leave it out")
    before = backbone.grid
    backbone.set_input_size(img_size)
    weights = loaded.weights | {name: value for name, value in backbone.state_dict().items() if name in loaded.weights}
    if DECODER_POSITIONS in weights:
        weights[DECODER_POSITIONS] = resample(weights[DECODER_POSITIONS], before, backbone.grid).contiguous()
    if official_vim_resize:
        weights |= _as_vim_resizes(loaded, before, backbone.grid)
    return replace(loaded, weights=weights, config=backbone.config)


def _as_vim_resizes(loaded: Loaded, before: tuple[int, int], after: tuple[int, int]) -> dict[str, Tensor]:
    """``cls_pos`` and ``pos_embed``. Source: hustvl/Vim:vim/main.py, vim/utils.py @ dd0358a."""
    kind = getattr(loaded.config, "class_token", None)
    if not isinstance(loaded.config, Vim.Config) or kind not in ("middle", "first") or "cls_pos" not in loaded.weights:
        raise UserError("official_vim_resize is for a Vim with positions and one class token; leave it out")
    then, now = (
        Positions(official="pos_embed", ours=("cls_pos", "pos_embed"), rows=class_positions(kind, rows * columns))
        for rows, columns in (before, after)
    )
    table = then.join(loaded.weights)
    return now.split(torch.cat([table[:, :1], resample(table[:, 1:], before, after)], dim=1))


def with_channels(loaded: Loaded, in_chans: int) -> Loaded:
    """Weights and configuration for images of ``in_chans`` channels: the first layer sums over colours, or repeats them.

    That is timm's rule. A pretraining decoder, which predicts the old channels, is left out.

    Raises:
        UserError: if it is not known which network the weights belong to, or the rule does not say how.
    """
    if not isinstance(loaded.config, ImageBackbone.Config):
        raise UserError("channels can be adapted only where the file says which network for images it is of; leave them out")
    if in_chans < 1:
        raise UserError(f"an image has at least one channel, got in_chans={in_chans}")
    if in_chans == loaded.config.in_chans:
        return loaded
    if in_chans != 1 and loaded.config.in_chans != 3:
        raise UserError(f"only three channels become {in_chans}, but the file has {loaded.config.in_chans}; try in_chans=1")
    config = replace(loaded.config, in_chans=in_chans)
    with torch.device("meta"):
        first = config.build().default_cfg["first_conv"] + ".weight"
    weights = loaded.backbone | {first: adapt_input_conv(in_chans, loaded.weights[first])}
    decoder = dict.fromkeys(loaded.weights.keys() - weights.keys(), "the decoder predicts the old channels")
    report = replace(loaded.report, loaded=tuple(weights), dropped=loaded.report.dropped | decoder)
    return replace(loaded, weights=weights, config=config, report=report, decoder={})
