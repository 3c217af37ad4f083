"""Error bars for accuracies whose test samples are not independent.

Crops of one photograph resemble each other, so a thousand crops of eighteen photographs say less than a thousand photographs.
The bootstrap therefore resamples twice: first the sources (classes, photographs, scenes), then the samples within each drawn
source. Two models that answered the same samples are compared by the interval of their difference, sample by sample. Where a
training was repeated with several seeds, the seeds are resampled too: a difference that one seed made alone does not count.
Source: Efron and Tibshirani, "An Introduction to the Bootstrap", 1993, chapters 8 and 13 (two-stage resampling, percentiles).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from hybridmap.errors import UserError

_BLOCK = 1 << 22
"""Numbers that are drawn at a time; bounds the memory, and the result does not depend on it."""


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A mean, and the range that contains it with the stated confidence, in the units of the values."""

    value: float
    low: float
    high: float
    level: float = 0.95

    @property
    def excludes_zero(self) -> bool:
        """Whether the whole range lies on one side of zero: for a difference, whether it is significant."""
        return self.low > 0 or self.high < 0

    def __str__(self) -> str:
        return f"{self.value:.1f} [{self.low:.1f}, {self.high:.1f}]"


def interval(values: ArrayLike, sources: ArrayLike, *, resamples: int = 2000, level: float = 0.95, seed: int = 0) -> Interval:
    """The mean of ``values`` with its bootstrap interval, resampling sources and then samples within each source.

    ``values`` (n,) may be answers right or wrong (an accuracy: multiply by 100 for per cent), or differences of two models;
    ``sources`` (n,) are integers that say which samples belong together. A resample draws as many sources as there are, with
    replacement, and from each as many samples as it has; its statistic is the mean over all samples drawn. ``values`` (S, n)
    are those of S repetitions (seeds) on the same samples: a resample then also draws S of them, with replacement. With few
    repetitions that interval is a little too narrow, as every bootstrap of few is.

    Raises:
        UserError: if nothing was measured, or the two arrays do not belong together.
    """
    values = np.asarray(values, dtype=np.float64)
    sources = np.asarray(sources)
    values = np.atleast_2d(values)
    if values.ndim != 2 or values.shape[1:] != sources.shape or not values.size:
        raise UserError(f"an interval needs one source per value, got {values.shape} values and {sources.shape} sources")
    if not 0 < level < 1:
        raise UserError(f"the level of an interval must lie between 0 and 1, got {level}")
    order = np.argsort(sources, kind="stable")
    _, start, size = np.unique(sources[order], return_index=True, return_counts=True)
    ordered, groups, widest, repetitions = values[:, order], len(size), int(size.max()), len(values)

    choose, pick, repeat = np.random.default_rng(seed).spawn(3)
    means = np.empty(resamples)
    block = max(1, _BLOCK // (groups * widest))
    for first in range(0, resamples, block):
        count = min(block, resamples - first)
        drawn = choose.integers(groups, size=(count, groups))  # resample, slot -> source
        within = (pick.random((count, groups, widest)) * size[drawn][..., None]).astype(np.int64)
        used = np.arange(widest) < size[drawn][..., None]  # sources differ in size; the rest of a slot is not counted
        index = np.where(used, start[drawn][..., None] + within, 0)
        if repetitions == 1:
            found = ordered[0][index]
        else:
            chosen = repeat.integers(repetitions, size=(count, repetitions))
            shares = (chosen[..., None] == np.arange(repetitions)).mean(1)  # resample, repetition
            found = np.take_along_axis(shares @ ordered, index.reshape(count, -1), 1).reshape(index.shape)
        means[first : first + count] = (found * used).sum((1, 2)) / size[drawn].sum(1)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return Interval(value=float(values.mean()), low=float(low), high=float(high), level=level)


def difference(
    ours: ArrayLike, theirs: ArrayLike, sources: ArrayLike, *, resamples: int = 2000, level: float = 0.95, seed: int = 0
) -> Interval:
    """How much better ``ours`` did than ``theirs`` on the SAME samples: the interval of the paired difference.

    Pairing removes what both models find easy or hard, so the interval is tighter than two intervals side by side.

    Raises:
        UserError: if the two models did not answer the same number of samples.
    """
    ours, theirs = np.asarray(ours, dtype=np.float64), np.asarray(theirs, dtype=np.float64)
    if ours.shape != theirs.shape:
        raise UserError(f"a paired difference needs the same test samples, got {ours.shape} and {theirs.shape} answers")
    return interval(ours - theirs, sources, resamples=resamples, level=level, seed=seed)
