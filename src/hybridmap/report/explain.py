"""One page about what a network looks at in one image: the image, the scan order, and a map for each layer.

    ┌───────┐ ┌───────┐  legend
    │ image │ │ scan  │
    └───────┘ └───────┘
    layer 0 (M)  layer 1 (M)  layer 2 (M)  layer 3 (T)  ...

A map shows from which patches those tokens hear that the network reads out: the class token or the registers, or all patches
where it reads their mean. ``query`` asks for one patch instead. ``hybridmap.report.attention_maps`` says what is mapped.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

import matplotlib
import torch
from jaxtyping import Bool, Float, Int
from PIL import Image, ImageDraw
from torch import Tensor

from hybridmap.backbones.base import ImageBackbone
from hybridmap.backbones.sequence import SequenceBackbone
from hybridmap.errors import UserError
from hybridmap.report.attention_maps import TokenMap, capture, is_known, mixers
from hybridmap.report.canvas import INK, ORDER, PAPER, PREFIX, QUIET, dot, fitted, fitting, font, frame, image_of
from hybridmap.report.choices import scan_picture
from hybridmap.types import Patches

_HEAT = matplotlib.colormaps["inferno"]
_LARGE, _SMALL, _PER_ROW = 384, 168, 8
"""Longer side of the pictures on top and of the maps, in pixels; maps per row."""
_MARGIN, _GAP, _TITLE, _LABEL, _LEGEND = 14, 10, 32, 34, 400
_RAMP = (180, 16)


@dataclass(frozen=True, kw_only=True)
class Share:
    """One map of one layer."""

    title: str
    """Such as ``layer 3 (M)``."""
    patches: Float[Tensor, "rows columns"]
    """How much of what is heard comes from each patch; with ``prefix`` it sums to one."""
    prefix: float
    """How much comes from prefix tokens."""


@dataclass(frozen=True, kw_only=True)
class Explanation:
    """All that the page shows besides the image."""

    grid: tuple[int, int]
    """(rows, columns) of the patches."""
    sequence: Int[Tensor, "L"]
    """What the layers see: the raster index of the patch at each place of the scan, -1 for a prefix token."""
    query: tuple[int, int] | None
    """(row, column) of the patch that was asked for."""
    listener: str
    """Whose maps these are, in words."""
    parts: bool
    """Whether each head and each direction has a map of its own."""
    directions: tuple[str, ...]
    """Of the scans of M layers."""
    without: dict[str, int]
    """Kinds of layers that have no map -> how many there are."""
    shares: list[Share]


def explain(
    backbone: ImageBackbone,
    image: Float[Tensor, "1 C H W"],
    *,
    layers: Sequence[int] | None = None,
    query: tuple[int, int] | None = None,
    parts: bool = False,
) -> Explanation:
    """Run the network on one normalised image and keep the maps of ``layers`` (by default all that have one).

    ``query`` is the (row, column) of the patch whose maps are wanted, on the grid of the input. ``parts`` gives each head and
    each direction a map of its own.

    Raises:
        UserError: for a layer that there is not or whose mixing is not known, a query outside the grid, an image that cannot be
            cut into patches.
    """
    patches = backbone.partition(image)
    rows, columns = _rows_and_columns(patches)
    if query is not None and not (0 <= query[0] < rows and 0 <= query[1] < columns):
        raise UserError(
            f"the image has {rows} x {columns} patches, so a query is a row from 0 to {rows - 1} and a column from 0 to "
            f"{columns - 1}, got {query[0]},{query[1]}"
        )
    sequence = sequence_of(backbone, patches)
    if query is None:
        listeners, listener = _read_out(read_tokens(backbone, patches), sequence)
    else:
        listeners, listener = sequence == query[0] * columns + query[1], f"the patch in row {query[0]}, column {query[1]}"

    directions: dict[str, None] = {}

    def keep(found: TokenMap) -> list[Share]:
        own = found.grid is not None
        grid = found.grid or (rows, columns)
        places = torch.arange(found.mean.shape[-1], device=image.device) if own else sequence
        listening = _inside(query, (rows, columns), grid, places) if own else listeners
        directions.update(dict.fromkeys(found.parts if found.letter == "M" else ()))
        named = found.parts if parts else {"": found.mean}
        return [
            _share(f"({found.letter}) {name}".rstrip(), weights[0, listening].mean(0), places, grid)
            for name, weights in named.items()
        ]

    found = mixers(backbone)
    known = [number for number, mixer in enumerate(found) if is_known(mixer)] or [0]
    kept = capture(backbone, image, known if layers is None else layers, keep)
    return Explanation(
        grid=(rows, columns),
        sequence=sequence.cpu(),
        query=query,
        listener=listener,
        parts=parts,
        directions=tuple(directions),
        without=Counter(type(mixer).__name__ for mixer in found if not is_known(mixer)),
        shares=[replace(share, title=f"layer {number} {share.title}") for number, found in kept.items() for share in found],
    )


def _read_out(read: Bool[Tensor, "L"], sequence: Int[Tensor, "L"]) -> tuple[Bool[Tensor, "L"], str]:
    """Whose maps are shown where nothing else is asked for, and their name."""
    prefix, count = sequence < 0, int(read.sum())
    if bool((read & ~prefix).any()):
        return read, "all patches, mean" if bool((read >= ~prefix).all()) else f"{count} of the patches, mean"
    return read, "the prefix token" if count == 1 else f"the {count} prefix tokens, mean"


def _inside(
    query: tuple[int, int] | None, of: tuple[int, int], grid: tuple[int, int], places: Int[Tensor, "L"]
) -> Bool[Tensor, "L"]:
    """The places of a layer's own grid in the queried patch of the grid ``of``, or around it; without a query all."""
    found = torch.ones_like(places, dtype=torch.bool)
    at = (places // grid[1], places % grid[1])
    for asked, full, own, place in zip(query or (), of, grid, at, strict=False):
        found &= place * full // own == asked if own > full else place == asked * own // full
    return found


def _share(title: str, heard: Float[Tensor, "L"], places: Int[Tensor, "L"], grid: tuple[int, int]) -> Share:
    on_grid = places >= 0
    raster = heard.new_zeros(grid[0] * grid[1]).index_copy(0, places[on_grid], heard[on_grid])
    return Share(title=title, patches=raster.view(grid).cpu(), prefix=float(heard[~on_grid].sum()))


def sequence_of(backbone: ImageBackbone, patches: Patches) -> Int[Tensor, "L"]:
    """The raster index of the patch at each place of the sequence that layers see; -1 for a prefix token."""
    source = patches.source[0]
    if not isinstance(backbone, SequenceBackbone):
        return source
    # The backbone splits the numbers of the places as it would split the tokens there.
    places = torch.arange(len(source) + backbone.num_prefix_tokens, device=source.device)
    kept = backbone.split_prefix(places.view(1, -1, 1).double())[1].flatten().long()
    return torch.full_like(places, -1).index_copy(0, kept, source)


@torch.enable_grad()
def read_tokens(backbone: ImageBackbone, patches: Patches) -> Bool[Tensor, "L"]:
    """Which tokens of the sequence the network reads out: those by which its read-out has a gradient; of a map all."""
    length = len(sequence_of(backbone, patches))
    if not isinstance(backbone, SequenceBackbone):
        return torch.ones(length, dtype=torch.bool, device=patches.source.device)
    like = next(backbone.parameters())
    wave = torch.arange(length * backbone.embed_dim, device=like.device, dtype=like.dtype).sin()
    tokens = wave.view(1, length, -1).requires_grad_()
    out = backbone.read_out(*backbone.split_prefix(tokens))
    # A plain sum has no gradient behind a LayerNorm.
    (slope,) = torch.autograd.grad((out * out.detach().cos()).sum(), tokens)
    return slope[0].ne(0).any(-1)


def _rows_and_columns(patches: Patches) -> tuple[int, int]:
    if patches.grid is None or len(patches.grid) != 2:
        raise UserError(f"maps are drawn on a grid of rows and columns, but the patches have the grid {patches.grid}")
    rows, columns = patches.grid
    return rows, columns


# Drawing


def page(found: Explanation, picture: Float[Tensor, "C H W"], title: str) -> Image.Image:
    """The page; ``picture`` is the image in values from 0 to 1."""
    shown = image_of(picture)
    large, small = fitted(shown.size, _LARGE), fitted(shown.size, _SMALL)
    rows = -(-len(found.shares) // _PER_ROW)
    tile = (small[0] + _GAP, small[1] + _GAP + _LABEL)
    width = max(min(len(found.shares), _PER_ROW) * tile[0], 2 * (large[0] + _GAP) + _LEGEND) + 2 * _MARGIN - _GAP
    top = _MARGIN + _TITLE
    below = top + large[1] + 2 * _GAP
    canvas = Image.new("RGB", (width, below + rows * tile[1] + _MARGIN - _GAP), PAPER)
    draw = ImageDraw.Draw(canvas)
    draw.text((_MARGIN, _MARGIN), title, fill=INK, font=font(17))
    canvas.paste(shown.resize(large, Image.Resampling.LANCZOS), (_MARGIN, top))
    scanned = scan_picture(found.sequence, found.grid, shown.resize(large, Image.Resampling.LANCZOS), found.query)
    canvas.paste(scanned, (_MARGIN + large[0] + _GAP, top))
    _legend(draw, found, (_MARGIN + 2 * (large[0] + _GAP), top), canvas)
    for index, share in enumerate(found.shares):
        left = _MARGIN + index % _PER_ROW * tile[0]
        upper = below + index // _PER_ROW * tile[1]
        even = share.patches.numel()
        draw.text((left, upper), share.title, fill=INK, font=fitting(share.title, 14, small[0]))
        note = f"peak {float(share.patches.max()) * even:.1f}x even"
        note += f", prefix {share.prefix:.0%}" if bool((found.sequence < 0).any()) else ""
        draw.text((left, upper + 18), note, fill=QUIET, font=fitting(note, 11, small[0]))
        canvas.paste(_overlay(shown, share, found, small), (left, upper + _LABEL))
    return canvas


def _overlay(shown: Image.Image, share: Share, found: Explanation, size: tuple[int, int]) -> Image.Image:
    """The map in colour over the image in grey; the patch that was asked for has a frame."""
    peak = share.patches.max().clamp_min(torch.finfo(share.patches.dtype).tiny)
    heat = Image.fromarray(_HEAT(share.patches.div(peak).numpy(), bytes=True)[..., :3])
    grey = shown.convert("L").convert("RGB").resize(size, Image.Resampling.LANCZOS)
    blended = Image.blend(grey, heat.resize(size, Image.Resampling.NEAREST), 0.7)
    if found.query is not None:
        frame(ImageDraw.Draw(blended), found.query, found.grid, size)
    return blended


def _legend(draw: ImageDraw.ImageDraw, found: Explanation, corner: tuple[int, int], canvas: Image.Image) -> None:
    left, top = corner
    prefix = int((found.sequence < 0).sum())
    lines = [
        f"{found.grid[0]} x {found.grid[1]} patches" + (f", {prefix} prefix token{'s' * (prefix > 1)}" if prefix else ""),
        *(["Scans: " + ", ".join(found.directions)] if found.directions else []),
        "",
        f"What is heard by {found.listener}:",
        "T  attention" + ("" if found.parts else ", mean of its heads"),
        "M  hidden attention of the scan, mean of its",
        "     absolute value over channels, rows sum to 1",
        "",
        "peak: the loudest patch, in units of an even share",
        *(["prefix: how much comes from prefix tokens"] if prefix else []),
        *(f"no map: {count} x {kind}" for kind, count in found.without.items()),
    ]
    for line in lines:
        draw.text((left, top), line, fill=INK, font=fitting(line, 14, _LEGEND))
        top += 20
    for colours, low, high in ((_HEAT, "nothing", "peak"), (ORDER, "scanned first", "last")):
        ramp = colours(torch.linspace(0, 1, _RAMP[0]).expand(_RAMP[1], -1).numpy(), bytes=True)[..., :3]
        top += 12
        draw.text((left + 100, top), low, fill=INK, font=font(14), anchor="ra")
        canvas.paste(Image.fromarray(ramp), (left + 108, top + 1))
        draw.text((left + 116 + _RAMP[0], top), high, fill=INK, font=font(14))
        top += _RAMP[1]
    if prefix:
        dot(draw, (left + 116, top + 24), 6, PREFIX)
        draw.text((left + 130, top + 16), "prefix token", fill=INK, font=font(14))


__all__ = ["Explanation", "Share", "explain", "page", "read_tokens", "sequence_of"]
