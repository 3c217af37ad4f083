"""Pictures of what a model sees, hides and predicts.

    reconstructions     one row per image: original | what the encoder saw | prediction | prediction pasted with visible patches
    region_picture      the patch grid coloured by rank, the order in which regions are predicted; masked patches are hatched
    permission_picture  the decoder mask as a matrix: row i says which patches the decoder may look at while it predicts patch i

All of them are Pillow images drawn from tensors; nothing here needs a display.
"""

from __future__ import annotations

import colorsys
import io
from collections.abc import Sequence
from pathlib import Path

import torch
from jaxtyping import Bool, Float, Int
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from hybridmap.data.image_transforms import denormalise
from hybridmap.files import replace_file
from hybridmap.objectives.map import MAP
from hybridmap.tokens.images import assemble, partition
from hybridmap.tokens.regions import Rows, Single, Whole, permission
from hybridmap.types import Batch

COLUMNS = ("original", "seen by the encoder", "prediction", "prediction + visible")
_INK, _PAPER, _HIDDEN = (30, 30, 30), (255, 255, 255), 0.75
_MARGIN, _HEADER = 6, 22


@torch.no_grad()
def reconstructions(
    objective: MAP, images: Float[Tensor, "B C H W"], mean: Sequence[float], std: Sequence[float], *, seed: int = 0
) -> Float[Tensor, "B 4 C H W"]:
    """The four columns of :data:`COLUMNS` for normalised ``images``, as values in [0, 1].

    Masks follow from ``seed`` and the position of the image alone. ``mean`` and ``std`` (per channel) undo the loader's
    normalisation. Predictions of normalised pixels are brought back with the mean and deviation of the true patch.
    """
    key = torch.arange(len(images), device=images.device) + 1_000_003 * seed
    patches = objective.backbone.partition(images)
    mask = objective.draw(patches, Batch(inputs=images, key=key, step_key=seed))
    predicted = objective.target.unnormalise(objective.predict(patches, mask), patches).to(images.dtype)
    hidden = mask.masked[..., None]
    middle = torch.tensor([(_HIDDEN - m) / s for m, s in zip(mean, std, strict=True)], dtype=images.dtype, device=images.device)
    grey = middle.repeat(patches.content.shape[-1] // len(middle))  # P: the channel is fastest
    columns = (
        patches.content,
        torch.where(hidden, grey, patches.content),
        predicted,
        torch.where(hidden, predicted, patches.content),
    )
    grid, size = patches.grid, objective.config.backbone.patch_size
    assert grid is not None  # images always have one
    stacked = torch.stack([assemble(content, patches.source, grid, size, images.shape[1]) for content in columns], 1)
    return denormalise(stacked.flatten(0, 1), mean, std).unflatten(0, stacked.shape[:2])


def sheet(columns: Float[Tensor, "B K C H W"], titles: Sequence[str] = COLUMNS, *, min_size: int = 128) -> Image.Image:
    """Tiles in rows with one title per column; small tiles are enlarged, without smoothing, to at least ``min_size`` pixels."""
    rows, count, channels, height, width = columns.shape
    zoom = max(1, -(-min_size // min(height, width)))
    tile = (width * zoom, height * zoom)
    canvas = Image.new("RGB", (count * (tile[0] + _MARGIN) + _MARGIN, rows * (tile[1] + _MARGIN) + _MARGIN + _HEADER), _PAPER)
    draw, font = ImageDraw.Draw(canvas), _font(13)
    values = (columns.float().clamp(0, 1) * 255).round().to(torch.uint8).cpu()
    values = values if channels == 3 else values[:, :, :1].expand(-1, -1, 3, -1, -1)
    for k, title in enumerate(titles):
        left = _MARGIN + k * (tile[0] + _MARGIN)
        draw.text((left, 4), _fit(title, font, tile[0]), fill=_INK, font=font)
        for b in range(rows):
            image = Image.fromarray(values[b, k].permute(1, 2, 0).contiguous().numpy())
            canvas.paste(image.resize(tile, Image.Resampling.NEAREST), (left, _HEADER + _MARGIN + b * (tile[1] + _MARGIN)))
    return canvas


def region_picture(
    ranks: Int[Tensor, "N"], source: Int[Tensor, "N"], grid: tuple[int, int], masked: Bool[Tensor, "N"] | None = None
) -> Image.Image:
    """The patch grid, each patch with its rank and the colour of its rank; masked patches are hatched."""
    rows, columns = grid
    cell = max(14, min(48, 420 // max(grid)))
    canvas = Image.new("RGB", (columns * cell + 1, rows * cell + 1), _PAPER)
    draw, font = ImageDraw.Draw(canvas), _font(max(8, cell // 3))
    highest = max(int(ranks.max()), 1)
    hidden = [False] * len(ranks) if masked is None else masked.tolist()
    for rank, position, is_hidden in zip(ranks.tolist(), source.tolist(), hidden, strict=True):
        top, left = position // columns * cell, position % columns * cell
        draw.rectangle((left, top, left + cell, top + cell), fill=_colour(rank / highest), outline=_PAPER)
        if is_hidden:
            for offset in range(4, 2 * cell, 6):
                start, end = max(0, offset - cell), min(offset, cell)
                draw.line((left + start, top + offset - start, left + end, top + offset - end), fill=_PAPER)
        draw.text((left + cell / 2, top + cell / 2), str(rank), fill=_INK, font=font, anchor="mm")
    return canvas


def permission_picture(allowed: Bool[Tensor, "N N"], ranks: Int[Tensor, "N"]) -> Image.Image:
    """The decoder mask: pixel (i, j) has the colour of j's rank where the prediction of patch i may look at patch j."""
    highest = max(int(ranks.max()), 1)
    palette = torch.tensor([_colour(rank / highest) for rank in range(highest + 1)], dtype=torch.uint8)
    ranks, allowed = ranks.cpu(), allowed.cpu()
    picture = torch.where(allowed[..., None], palette[ranks][None], torch.tensor(238, dtype=torch.uint8))  # N N 3
    zoom = max(1, 420 // len(ranks))
    image = Image.fromarray(picture.contiguous().numpy())
    return image.resize((image.width * zoom, image.height * zoom), Image.Resampling.NEAREST)


def objective_pictures(objective: MAP, images: Float[Tensor, "B C H W"], *, seed: int = 0) -> dict[str, Image.Image]:
    """``regions`` and ``decoder_mask`` of the first image, as the objective would use them."""
    patches = objective.backbone.partition(images[:1])
    key = torch.zeros(1, dtype=torch.int64, device=images.device)
    mask = objective.draw(patches, Batch(inputs=images[:1], key=key, step_key=seed))
    ranks = objective.regions(patches, mask)
    assert patches.grid is not None
    rows, columns = patches.grid
    return {
        "regions": region_picture(ranks[0], patches.source[0], (rows, columns), mask.masked[0]),
        "decoder_mask": permission_picture(permission(ranks, objective.config.decoder_mask)[0, 0], ranks[0]),
    }


def decoder_masks(grid: tuple[int, int]) -> dict[str, tuple[Image.Image, Image.Image]]:
    """The four relations of the paper on one grid: title -> (order of prediction, decoder mask)."""
    cases = {
        "MAE: one region": (Whole, "mae"),
        "local MAE: own row": (Rows, "local_mae"),
        "MAP: own and earlier rows": (Rows, "map"),
        "AR: patch by patch": (Single, "ar"),
    }
    found = {}
    patches = partition(torch.zeros(1, 1, *grid), 1)
    for title, (regions, relation) in cases.items():
        ranks = regions.Config().build()(patches, None)
        allowed = permission(ranks, relation)[0, 0]
        found[title] = (region_picture(ranks[0], patches.source[0], grid), permission_picture(allowed, ranks[0]))
    return found


def save(image: Image.Image, path: str | Path) -> Path:
    """Write a picture atomically; the format follows from the suffix."""
    path = Path(path)
    content = io.BytesIO()
    image.save(content, format=Image.registered_extensions()[path.suffix.lower()])
    return replace_file(path, content.getvalue())


def _colour(position: float) -> tuple[int, int, int]:
    """A light colour for a rank between 0 (first) and 1 (last), from blue through green to red."""
    red, green, blue = colorsys.hls_to_rgb(0.62 * (1 - position), 0.66, 0.62)
    return round(red * 255), round(green * 255), round(blue * 255)


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)


def _fit(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> str:
    while len(text) > 1 and font.getlength(text) > width:
        text = text[:-1]
    return text


__all__ = [
    "COLUMNS",
    "decoder_masks",
    "objective_pictures",
    "permission_picture",
    "reconstructions",
    "region_picture",
    "save",
    "sheet",
]
