"""Reconstructions: what an objective sees of an image, and what it predicts.

    one objective      original | seen by the encoder | predicted | predicted + the rest
    several            original | seen | only true means | first | second | ...       the same images under the same masks

Predictions of normalised pixels are brought back with the mean and the deviation of the *true* patch, as is usual: brightness
and contrast of each patch are given, only what is inside of it is predicted. "Only true means" shows how much that gives away.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float
from PIL import Image
from torch import Tensor

from hybridmap.data.image_transforms import denormalise
from hybridmap.files import replace_file
from hybridmap.objectives.map import MAP
from hybridmap.report.canvas import HIDDEN, Tile, image_of, sized, tiles
from hybridmap.tokens.images import assemble
from hybridmap.types import Batch, Mask, Patches

_LARGEST = 224
"""Longer side of a picture in pixels: four fit into a page."""
COLUMNS = ("original", "seen by the encoder", "predicted", "predicted + the rest")


@runtime_checkable
class Predicts(Protocol):
    """An objective whose predictions can be drawn: it masks patches and says something about patches."""

    config: Any
    backbone: Any
    regions: Any
    target: Any

    def draw(self, patches: Patches, batch: Batch) -> Mask: ...

    def predict(self, patches: Patches, mask: Mask) -> Float[Tensor, "B N P"]: ...

    def allowed(self, patches: Patches, mask: Mask) -> Tensor | None: ...


def drawn(objective: Predicts, images: Float[Tensor, "B C H W"], seed: int = 0) -> tuple[Patches, Mask]:
    """The patches of normalised images and a mask as in training, from ``seed`` and the place of an image alone."""
    key = torch.arange(len(images), device=images.device) + 1_000_003 * seed
    patches = objective.backbone.partition(images)
    return patches, objective.draw(patches, Batch(inputs=images, key=key, step_key=seed))


def asked(objective: Any, patches: Patches, mask: Mask) -> Bool[Tensor, "B N"]:
    """Which patches an objective is asked for, by position in the scan: the masked ones, unless it says otherwise."""
    if not isinstance(objective, MAP):
        return torch.zeros_like(mask.masked).scatter(1, objective.predicted(patches), True)
    return mask.masked if objective.config.loss_on == "masked" else torch.ones_like(mask.masked)


@torch.no_grad()
def predictions(objective: Predicts, patches: Patches, mask: Mask) -> Float[Tensor, "B N P"]:
    """What the objective predicts under this mask, on the scale of ``patches.content``."""
    return objective.target.unnormalise(objective.predict(patches, mask), patches).to(patches.content.dtype)


def means(objective: Predicts, patches: Patches) -> Float[Tensor, "B N P"]:
    """What a prediction of zero looks like: for normalised pixels each patch in its true mean."""
    return objective.target.unnormalise(torch.zeros_like(patches.content), patches).to(patches.content.dtype)


class View:
    """Patch values of one objective's images, as pictures in [0, 1] with three channels."""

    def __init__(self, objective: Predicts, images: Float[Tensor, "B C H W"], mean: Sequence[float], std: Sequence[float]):
        """``mean`` and ``std`` (per channel) undo the loader's normalisation of ``images``."""
        self._size, self._channels = objective.config.backbone.patch_size, images.shape[1]
        self._mean, self._std = mean, std

    def picture(self, content: Float[Tensor, "B N P"], patches: Patches) -> Float[Tensor, "B 3 H W"]:
        """Patch values, by position in the scan, in their places."""
        assert patches.grid is not None  # images always have one
        whole = assemble(content, patches.source, patches.grid, self._size, self._channels)
        return denormalise(whole, self._mean, self._std).expand(-1, 3, -1, -1)

    def covered(
        self, content: Float[Tensor, "B N P"], hidden: Bool[Tensor, "B N"], patches: Patches
    ) -> Float[Tensor, "B 3 H W"]:
        """The same with some patches in the tint of hidden ones."""
        assert patches.grid is not None
        whole = hidden[..., None].expand_as(content)
        where = assemble(whole, patches.source, patches.grid, self._size, self._channels)[:, :1]
        tint = torch.tensor(HIDDEN, device=content.device)[:, None, None] / 255
        return torch.where(where, tint.to(content.dtype), self.picture(content, patches))


def reconstructions(
    objective: Predicts, images: Float[Tensor, "B C H W"], mean: Sequence[float], std: Sequence[float], *, seed: int = 0
) -> Float[Tensor, "B 4 3 H W"]:
    """The four columns of :data:`COLUMNS` for normalised ``images``, as values in [0, 1].

    Patches that the encoder did not see, or that the objective is not asked for, have a tint of their own; in the last column
    those that are not asked for are the true ones. Masks follow from ``seed`` and the position of the image alone. ``mean`` and
    ``std`` (per channel) undo the loader's normalisation.
    """
    patches, mask = drawn(objective, images, seed)
    view, content, wanted = View(objective, images, mean, std), patches.content, asked(objective, patches, mask)
    predicted = predictions(objective, patches, mask)
    columns = (
        view.picture(content, patches),
        view.covered(content, mask.masked, patches),
        view.covered(predicted, ~wanted, patches),
        view.picture(torch.where(wanted[..., None], predicted, content), patches),
    )
    return torch.stack(columns, 1)


def sheet(columns: Float[Tensor, "B K 3 H W"], titles: Sequence[str] = COLUMNS, *, min_size: int = 128) -> Image.Image:
    """Pictures with one title per column; small ones are enlarged, without smoothing, to at least ``min_size`` pixels."""
    rows = [[sized(image_of(values), min_size, _LARGEST) for values in row] for row in columns]
    first = [Tile(image=image, title=title) for image, title in zip(rows[0], titles, strict=True)]
    return tiles([first, *([Tile(image=image) for image in row] for row in rows[1:])])


def save(image: Image.Image, path: str | Path) -> Path:
    """Write a picture atomically; the format follows from the suffix."""
    path = Path(path)
    content = io.BytesIO()
    image.save(content, format=Image.registered_extensions()[path.suffix.lower()])
    return replace_file(path, content.getvalue())


__all__ = ["COLUMNS", "Predicts", "View", "asked", "drawn", "means", "predictions", "reconstructions", "save", "sheet"]
