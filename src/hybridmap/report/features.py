"""What a backbone's patch features have in common over an image: their first three principal components as red, green and blue.

    patches of all images (n D) ── minus their mean ── three directions of largest variance ──▶ (n 3) ──▶ a colour per patch

Patches with like colours have like features. The directions are found anew at every depth, over all images that are shown:
colours can be compared between images, not between depths. Nothing here is random.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from hybridmap.backbones.base import ImageBackbone
from hybridmap.backbones.hierarchical import HierarchicalBackbone
from hybridmap.errors import UserError
from hybridmap.report.canvas import Tile, image_of, sized, tiles

_LARGEST = 176
"""Longer side of a picture in pixels: five fit into a page."""
_ENDS = (0.01, 0.99)
"""Quantiles of a component that become the darkest and the brightest value: single patches do not decide about all colours."""


@dataclass(frozen=True, kw_only=True)
class Components:
    """Principal components of the patch features at one depth."""

    colours: Float[Tensor, "B rows columns 3"]
    """In [0, 1]; 0.5 where there is no such component."""
    shares: tuple[float, ...]
    """How much of the features' variance each of the three explains."""


def components(features: Float[Tensor, "B D rows columns"]) -> Components:
    """The first three principal components over all patches of all images.

    A component has no sign of its own; here its third moment is positive, so that the minority of patches is bright.
    """
    batch, _, rows, columns = features.shape
    x = features.detach().double().cpu().permute(0, 2, 3, 1).flatten(0, 2)
    x = x - x.mean(0)
    left, sizes, _ = torch.linalg.svd(x, full_matrices=False)
    total = sizes.square().sum()
    colours, shares = torch.full((len(x), 3), 0.5, dtype=x.dtype), [0.0, 0.0, 0.0]
    for k in range(min(3, len(sizes))):
        if sizes[k] <= 1e-9 * max(float(sizes[0]), torch.finfo(x.dtype).tiny):
            break
        scores = left[:, k] * torch.where(left[:, k].pow(3).sum() < 0, -1.0, 1.0)
        low, high = scores.quantile(torch.tensor(_ENDS, dtype=x.dtype))
        colours[:, k] = ((scores - low) / (high - low).clamp_min(torch.finfo(x.dtype).tiny)).clamp(0, 1)
        shares[k] = float(sizes[k].square() / total)
    return Components(colours=colours.float().view(batch, rows, columns, 3), shares=tuple(shares))


def depths_of(backbone: ImageBackbone, count: int = 4) -> list[int]:
    """Numbers of ``count`` layers (of a hierarchical network: stages), evenly spaced up to the last one.

    >>> from hybridmap.backbones.vit import ViT
    >>> depths_of(ViT.Config(embed_dim=16, num_heads=2, depth=12).build())
    [2, 5, 8, 11]
    """
    depth = len(backbone.feature_info)
    return sorted({-(-depth * (k + 1) // count) - 1 for k in range(count)})


@torch.no_grad()
def feature_components(
    backbone: ImageBackbone, images: Float[Tensor, "B C H W"], depths: Sequence[int] | None = None
) -> dict[int, Components]:
    """Depth -> components of the patch features behind that layer (or stage), as the final norm shows them.

    With the norm, because single tokens and channels of the raw sum are many times larger than all others. The stages of a
    hierarchical network but the last have widths that it does not fit; they are shown as they are.

    Raises:
        UserError: for a depth that the network has not.
    """
    wanted, last = depths_of(backbone) if depths is None else list(depths), len(backbone.feature_info) - 1
    missing = [depth for depth in wanted if not 0 <= depth <= last]
    if missing:
        kind = "stages" if isinstance(backbone, HierarchicalBackbone) else "layers"
        raise UserError(f"{kind} have the numbers 0 to {last} in this network, got {', '.join(map(str, missing))}")
    order = sorted(set(wanted))
    maps = backbone.forward_intermediates(images, order, norm=True, intermediates_only=True)  # pyright: ignore
    found = {depth: components(features) for depth, features in zip(order, maps, strict=True)}
    return {depth: found[depth] for depth in wanted}


def feature_picture(
    backbone: ImageBackbone,
    images: Float[Tensor, "B C H W"],
    shown: Float[Tensor, "B 3 H W"],
    depths: Sequence[int] | None = None,
) -> Image.Image:
    """A row per image: ``shown`` (the images in values from 0 to 1), then the components at each depth."""
    kind = "stage" if isinstance(backbone, HierarchicalBackbone) else "layer"
    columns = [("image\n ", [sized(image_of(values), 128, _LARGEST) for values in shown])]
    for depth, found in feature_components(backbone, images, depths).items():
        rows, across = found.colours.shape[1:3]
        shares = " + ".join(f"{share:.0%}" for share in found.shares)
        like = columns[0][1][0].size
        maps = [image_of(values.permute(2, 0, 1)).resize(like, Image.Resampling.NEAREST) for values in found.colours]
        columns.append((f"{kind} {depth}: {rows} x {across}\n{shares}", maps))
    return tiles([[Tile(image=column[b], title="" if b else title) for title, column in columns] for b in range(len(shown))])


__all__ = ["Components", "components", "depths_of", "feature_components", "feature_picture"]
