"""The one idea of the project: ordered regions of patches, and who may look at whom.

A *region* is a set of patches that are predicted together; its *rank* is its place in the order of prediction. Regions are
nothing but a tensor: each patch carries the rank of its region. Five ways to cut a 4 x 4 grid:

    Rows         Columns      Clusters(2)  Single          Whole
    0 0 0 0      0 1 2 3      0 0 1 1       0  1  2  3     0 0 0 0
    1 1 1 1      0 1 2 3      0 0 1 1       4  5  6  7     0 0 0 0
    2 2 2 2      0 1 2 3      2 2 3 3       8  9 10 11     0 0 0 0
    3 3 3 3      0 1 2 3      2 2 3 3      12 13 14 15     0 0 0 0

The decoder mask is a relation between ranks, :func:`permission`. Everything that the paper compares is one of its kinds on one
of these partitions: one region is MAE; rows that see themselves are local MAE; rows that see themselves and earlier rows
are MAP; single patches that see themselves and earlier ones are autoregression.

The order of prediction is the objective's and independent of the scan order, which is the backbone's: ranks are computed from
the place of a patch in the image, wherever it stands in the sequence.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from hybridmap import config as configuration
from hybridmap.config import Configurable
from hybridmap.errors import UserError
from hybridmap.types import Mask, Patches

DecoderMask = Literal["ar", "mae", "local_mae", "map"]
"""What a patch may look at while it is predicted, see :func:`permission`."""


def permission(rank: Int[Tensor, "B N"], kind: DecoderMask) -> Bool[Tensor, "#B 1 N N"]:
    """Which patches (last axis) each patch (the axis before it) may look at while it is predicted.

    "mae": all; "local_mae": its own region; "map": its own and earlier regions; "ar": itself and earlier patches, where the
    order is by rank and, inside a region, by position in the scan. The diagonal is always allowed, so that softmax never meets
    an empty row. Whether a patch is masked plays no part. Where all samples share one row of ranks (an expanded tensor, as
    partitions of images return it), one N x N relation comes back for all of them.
    Source: MAP (arXiv:2410.00871), Figure 6; yunzeliu/MAP:models_mamba.py.

    Raises:
        UserError: for an unknown kind.
    """
    rank = _one_row(rank)
    if kind == "ar":
        rank = prediction_order(rank)
    query, key = rank[:, None, :, None], rank[:, None, None, :]
    if kind == "mae":
        return (query == query) & (key == key)
    if kind == "local_mae":
        return key == query
    if kind in ("map", "ar"):
        return key <= query
    raise UserError(f"decoder_mask must be one of {', '.join(get_args(DecoderMask))}, got {kind!r}")


def earlier(
    rank: Int[Tensor, "B N"], visible: Int[Tensor, "B V"], predicted: Int[Tensor, "B Q"], by: int = 1
) -> Bool[Tensor, "#B 1 Q V"]:
    """Which of the patches at the positions ``visible`` may be looked at where those at ``predicted`` are predicted, if an
    encoder that scans one way made their features: those that know nothing of what comes later than ``by`` ranks before.

    A feature knows what the scan has met so far, so its *reach* counts: the highest rank among the visible patches up to it.
    Where the scan follows the ranks, the reach is the rank itself, and ``by=1`` is ARM's relation, all earlier regions
    (arXiv:2406.07537). Nothing guarantees that everybody has somebody to look at.
    """
    if rank.stride(0) == visible.stride(0) == predicted.stride(0) == 0:
        rank, visible, predicted = rank[:1], visible[:1], predicted[:1]
    reach = rank.gather(1, visible).cummax(dim=1).values
    return reach[:, None, None, :] + by <= rank.gather(1, predicted)[:, None, :, None]


def _one_row(shared: Int[Tensor, "B N"]) -> Int[Tensor, "#B N"]:
    """The first row where the batch is that row again and again, (1, N); else all of them."""
    return shared[:1] if shared.stride(0) == 0 else shared


def prediction_order(rank: Int[Tensor, "B N"]) -> Int[Tensor, "B N"]:
    """Place of every patch in the token-wise order of prediction: by rank, inside a region by position in the scan."""
    return rank.argsort(dim=1, stable=True).argsort(dim=1)


def check_follows(patches: Patches, regions: Regions, scan: str) -> None:
    """Refuse a scan that reaches a later region before an earlier one: there a one-way encoder knows what comes later.

    ``scan`` is the name of the order in which the patches stand, for the message.

    Raises:
        UserError: saying which scan goes with which regions.
    """
    if bool((regions(patches, None).diff(dim=1) < 0).any()):
        raise UserError(
            f"the scan {scan!r} does not follow the regions {regions.config}, so that features of a "
            "region would know what comes later; clusters of size k need the scan cluster(k) or cluster(k, column), rows row"
        )


class Regions(Configurable):
    """Abstract: a partition of the patches into ordered regions."""

    @dataclass(frozen=True, kw_only=True)
    class Config(configuration.Config):
        """Fields that all partitions have: none."""

    config: Any

    @abstractmethod
    def __call__(self, patches: Patches, mask: Mask | None) -> Int[Tensor, "B N"]:
        """The rank of each patch's region, by position in the scan. Ranks need not be consecutive; only their order counts.

        ``mask`` is for partitions that depend on what is masked (:class:`VisibleFirst`), which those of images do not.
        """

    @abstractmethod
    def sizes(self, patches: Patches) -> tuple[int, ...]:
        """Patches in each region, by ascending rank; computed on the host without looking at any tensor of the device."""


class GridRegions(Regions):
    """Abstract: regions that follow from a patch's row and column in the grid."""

    @dataclass(frozen=True, kw_only=True)
    class Config(Regions.Config):
        reverse: bool = False
        """Predict the regions in the opposite order."""

    config: Any

    @abstractmethod
    def number(self, grid: tuple[int, int]) -> int:
        """How many regions a grid (rows, columns) has; ranks run from 0 to one less."""

    @abstractmethod
    def rank_of(self, row: Int[Tensor, "..."], column: Int[Tensor, "..."], grid: tuple[int, int]) -> Int[Tensor, "..."]:
        """Rank of the region that holds the patch in this row and column."""

    def raster_ranks(self, grid: tuple[int, int]) -> Int[Tensor, "N"]:
        """The ranks of all patches of a grid in raster order, on the host: the partition as one would draw it."""
        return self._ranks(torch.arange(grid[0] * grid[1], device="cpu"), grid)

    def __call__(self, patches: Patches, mask: Mask | None = None) -> Int[Tensor, "B N"]:
        return self._ranks(_one_row(patches.source), self._grid(patches)).expand_as(patches.source)

    def sizes(self, patches: Patches) -> tuple[int, ...]:
        grid = self._grid(patches)
        return tuple(self.raster_ranks(grid).bincount(minlength=self.number(grid)).tolist())

    def _ranks(self, source: Int[Tensor, "..."], grid: tuple[int, int]) -> Int[Tensor, "..."]:
        rank = self.rank_of(source // grid[1], source % grid[1], grid)
        return self.number(grid) - 1 - rank if self.config.reverse else rank

    def _grid(self, patches: Patches) -> tuple[int, int]:
        return image_grid(patches, type(self).__name__)


class Rows(GridRegions):
    """The rows of the image, from the top: MAP's own choice."""

    @dataclass(frozen=True, kw_only=True)
    class Config(GridRegions.Config):
        """``reverse`` starts at the bottom."""

    def number(self, grid: tuple[int, int]) -> int:
        return grid[0]

    def rank_of(self, row: Int[Tensor, "..."], column: Int[Tensor, "..."], grid: tuple[int, int]) -> Int[Tensor, "..."]:
        return row


class Columns(GridRegions):
    """The columns of the image, from the left."""

    @dataclass(frozen=True, kw_only=True)
    class Config(GridRegions.Config):
        """``reverse`` starts at the right."""

    def number(self, grid: tuple[int, int]) -> int:
        return grid[1]

    def rank_of(self, row: Int[Tensor, "..."], column: Int[Tensor, "..."], grid: tuple[int, int]) -> Int[Tensor, "..."]:
        return column


class Clusters(GridRegions):
    """Rectangles of patches; where their size does not divide the grid's, those at the right and bottom border are smaller."""

    @dataclass(frozen=True, kw_only=True)
    class Config(GridRegions.Config):
        size: int | tuple[int, int] = 2
        """(rows, columns) of a cluster in patches, or one number for both."""
        order: Literal["row", "column"] = "row"
        """Whether the clusters follow one another row by row or column by column."""

    config: Clusters.Config

    def __init__(self, config: Clusters.Config) -> None:
        super().__init__(config)
        self.size = (config.size, config.size) if isinstance(config.size, int) else config.size
        if min(self.size) < 1:
            raise UserError(f"a cluster has at least one row and one column of patches, got size {config.size}; try size 2")
        _check_lines(config.order)

    def _clusters(self, grid: tuple[int, int]) -> tuple[int, int]:
        return -(-grid[0] // self.size[0]), -(-grid[1] // self.size[1])

    def number(self, grid: tuple[int, int]) -> int:
        rows, columns = self._clusters(grid)
        return rows * columns

    def rank_of(self, row: Int[Tensor, "..."], column: Int[Tensor, "..."], grid: tuple[int, int]) -> Int[Tensor, "..."]:
        rows, columns = self._clusters(grid)
        row, column = row // self.size[0], column // self.size[1]
        return row * columns + column if self.config.order == "row" else column * rows + row


class Single(GridRegions):
    """Every patch is a region of its own: with ``decoder_mask="map"`` this is token-wise autoregression."""

    @dataclass(frozen=True, kw_only=True)
    class Config(GridRegions.Config):
        order: Literal["row", "column"] = "row"
        """Whether the patches follow one another row by row or column by column."""

    config: Single.Config

    def __init__(self, config: Single.Config) -> None:
        super().__init__(config)
        _check_lines(config.order)

    def number(self, grid: tuple[int, int]) -> int:
        return grid[0] * grid[1]

    def rank_of(self, row: Int[Tensor, "..."], column: Int[Tensor, "..."], grid: tuple[int, int]) -> Int[Tensor, "..."]:
        return row * grid[1] + column if self.config.order == "row" else column * grid[0] + row


def _check_lines(word: str) -> None:
    """Refuse an unknown order of clusters or patches."""
    if word not in ("row", "column"):
        raise UserError(f"order must be row or column, got {word!r}")


class Whole(Regions):
    """One region: nothing comes before anything else, as in MAE."""

    @dataclass(frozen=True, kw_only=True)
    class Config(Regions.Config):
        """There is nothing to choose."""

    def __call__(self, patches: Patches, mask: Mask | None = None) -> Int[Tensor, "B N"]:
        return torch.zeros_like(patches.source)

    def sizes(self, patches: Patches) -> tuple[int, ...]:
        return (patches.source.shape[1],)


class Runs(Regions):
    """Stretches of the scan, one after the other: where a scan follows a curve through space, regions of space."""

    @dataclass(frozen=True, kw_only=True)
    class Config(Regions.Config):
        length: int = 8
        """Patches of a region; the last one may have fewer."""

    config: Runs.Config

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        _check_length(config.length)

    def __call__(self, patches: Patches, mask: Mask | None = None) -> Int[Tensor, "B N"]:
        place = torch.arange(patches.source.shape[1], device=patches.source.device)
        return (place // self.config.length).expand_as(patches.source)

    def sizes(self, patches: Patches) -> tuple[int, ...]:
        return _sizes_of_runs(patches.source.shape[1], self.config.length)


class VisibleFirst(Regions):
    """Stretches of the list of visible patches followed by the masked ones, each in the order of the scan: what the released
    code of MAP does with points. No region of space, and none mixes both kinds where ``length`` divides their numbers.

    Before there is a mask, ranks are those of :class:`Runs`. Source: yunzeliu/MAP:PointMAP/point_transformer.py.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config(Regions.Config):
        length: int | None = None
        """Patches of a region; None = the square root of their number, which must be whole."""

    config: VisibleFirst.Config

    def __init__(self, config: VisibleFirst.Config) -> None:
        super().__init__(config)
        if config.length is not None:
            _check_length(config.length)

    def __call__(self, patches: Patches, mask: Mask | None = None) -> Int[Tensor, "B N"]:
        source, length = patches.source, self._length(patches)
        if mask is None:
            return (torch.arange(source.shape[1], device=source.device) // length).expand_as(source)
        masked = mask.masked.long()
        place = torch.where(mask.masked, mask.visible.shape[1] + masked.cumsum(1), (1 - masked).cumsum(1)) - 1
        return place // length

    def sizes(self, patches: Patches) -> tuple[int, ...]:
        return _sizes_of_runs(patches.source.shape[1], self._length(patches))

    def _length(self, patches: Patches) -> int:
        count = patches.source.shape[1]
        length = self.config.length or math.isqrt(count)
        if self.config.length is None and length * length != count:
            raise UserError(f"{count} patches are no square number, so that regions need a length; give one, such as {length}")
        return length


def _check_length(length: int) -> None:
    if length < 1:
        raise UserError(f"a region has at least one patch, got length {length}")


def _sizes_of_runs(count: int, length: int) -> tuple[int, ...]:
    return tuple(min(length, count - start) for start in range(0, count, length))


class Given(Regions):
    """Any partition, written down: one rank per patch."""

    @dataclass(frozen=True, kw_only=True)
    class Config(Regions.Config):
        ranks: tuple[int, ...]
        """Rank of every patch's region, in raster order; equal ranks are one region, and only the order of ranks counts."""

    config: Given.Config

    def __call__(self, patches: Patches, mask: Mask | None = None) -> Int[Tensor, "B N"]:
        self._check(patches)
        ranks = torch.tensor(self.config.ranks, dtype=patches.source.dtype).to(patches.source.device, non_blocking=True)
        return ranks[patches.source]

    def sizes(self, patches: Patches) -> tuple[int, ...]:
        self._check(patches)
        return tuple(self.config.ranks.count(rank) for rank in sorted(set(self.config.ranks)))

    def _check(self, patches: Patches) -> None:
        patch_count = patches.source.shape[1]
        if len(self.config.ranks) != patch_count:
            raise UserError(
                f"the given regions have {len(self.config.ranks)} ranks, but there are {patch_count} patches; give one each"
            )


def image_grid(patches: Patches, name: str) -> tuple[int, int]:
    """(rows, columns) of the patches' grid; ``name`` is of the class that needs it, for the message.

    Raises:
        UserError: if the patches are not on a grid of two axes.
    """
    if patches.grid is None or len(patches.grid) != 2:
        raise UserError(
            f"{patches.source.shape[1]} patches are not a grid; {name}() needs an image, otherwise use Whole() or Given(...)"
        )
    rows, columns = patches.grid
    return rows, columns
