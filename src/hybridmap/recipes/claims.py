"""What the paper claims, as comparisons of cells that a run supports, contradicts, or cannot decide.

    objectives           {none, MAE, AR, local MAE, MAP, MoCo} x {ViT, Mamba, hybrid}
    orders and ratios    scan order x order of AR on Mamba; ratio and strategy of masking on the hybrid

The three networks are one class with the layouts T, M and MMMT, so that nothing but the layers differs. A comparison is a sum
of cells with weights that add up to 0, such as (hybrid MAP) - (hybrid MAE); its interval resamples seeds, pictures and crops.
The verdict on a claim follows from the intervals of its comparisons alone, by a rule that was fixed before anything was
measured:

    all above zero                        supports
    one of them wholly below zero         contradicts
    anything else, or a cell is missing   cannot tell
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from hybridmap.recipes.paper import reported
from hybridmap.recipes.table import SCRATCH, Row, Table
from hybridmap.tasks.bootstrap import Interval, interval

Verdict = Literal["supports", "contradicts", "cannot tell"]

NETWORKS = {"ViT": "T" * 32, "Mamba": "M" * 32, "hybrid": "MMMT" * 8}
OBJECTIVES: dict[str, str] = {
    "none": SCRATCH,
    "MAE": "mae-base",
    "AR": "ar-base",
    "local MAE": "local-mae-base",
    "MAP": "map-base",
    "MoCo": "moco-base",
}
"""Objective -> recipe; AR is the tail, 40 of 196 patches."""


def _grid(title: str, rows: Sequence[Row]) -> Table:
    return Table(number="", title=title, base="map-base", then=("ft-100-base",), rows=tuple(rows))


GRIDS: dict[str, Table] = {
    "objectives": _grid(
        "Objectives and networks",
        [
            Row(label=f"{network} {objective}", base=base, network={"layout": layout})
            for network, layout in NETWORKS.items()
            for objective, base in OBJECTIVES.items()
        ],
    ),
    "orders-and-ratios": _grid(
        "Orders and ratios",
        [
            Row(
                label=f"Mamba scan {scan}, {order}",
                base=base,
                changes=changes,
                network={"layout": NETWORKS["Mamba"], "scan": scan},
            )
            for scan in ("row", "column")
            for order, base, changes in (
                ("none", SCRATCH, {}),
                ("AR row", "ar-base", {}),
                ("AR column", "ar-base", {"learner.regions.type": "Columns"}),
            )
        ]
        + [
            Row(label=f"hybrid MAP {name}", network={"layout": NETWORKS["hybrid"]}, changes=changes)
            for name, changes in {
                "random 25 %": {"learner.masking.ratio": 0.25},
                "random 50 %": {},
                "random 75 %": {"learner.masking.ratio": 0.75},
                "sequential 50 %": {"learner.masking.type": "Sequential"},
                "diagonal 50 %": {"learner.masking.type": "Diagonal"},
            }.items()
        ],
    ),
}
"""Grids by name; rows that mean the same run are one cell."""


@dataclass(frozen=True, kw_only=True)
class Contrast:
    """A sum of cells whose weights add up to 0; the claim says that it is above zero."""

    says: str
    cells: Mapping[str, int]
    """Label of a row of some grid -> weight."""
    paper: Mapping[str, int]
    """The same of what the paper prints, by id; empty where it prints no such numbers."""

    def __post_init__(self) -> None:
        if sum(self.cells.values()) or sum(self.paper.values()):
            raise ValueError(f"the weights of {self.says!r} do not add up to 0")

    def printed(self) -> float | None:
        """The difference that the paper prints, in points; None where it prints none."""
        if not self.paper:
            return None
        return round(sum(weight * reported()[id].value for id, weight in self.paper.items()), 2)

    def measured(self, answers: Mapping[str, np.ndarray], sources: np.ndarray) -> Interval | None:
        """The difference in points, with its interval.

        Args:
            answers: label -> right or wrong (seeds, n), the same seeds and test images for all.
            sources: (n,), which test images belong together.

        Returns None where a cell is missing.
        """
        if any(label not in answers for label in self.cells):
            return None
        return interval(100.0 * sum(weight * answers[label] for label, weight in self.cells.items()), sources)


@dataclass(frozen=True, kw_only=True)
class Claim:
    """A sentence of the paper, and the comparisons that it stands or falls with."""

    says: str
    contrasts: tuple[Contrast, ...]


def verdict(intervals: Sequence[Interval | None]) -> Verdict:
    """What the intervals of a claim's comparisons say about it; None is a comparison that could not be made."""
    if any(found is not None and found.high < 0 for found in intervals):
        return "contradicts"
    if intervals and all(found is not None and found.low > 0 for found in intervals):
        return "supports"
    return "cannot tell"


def _over(better: str, worse: str, paper: tuple[str, str] | None = None) -> Contrast:
    printed = {} if paper is None else {paper[0]: 1, paper[1]: -1}
    return Contrast(says=f"{better} over {worse}", cells={better: 1, worse: -1}, paper=printed)


def _gains_more(objective: str, here: str, there: str, paper: Mapping[str, int]) -> Contrast:
    cells = {f"{here} {objective}": 1, f"{here} none": -1, f"{there} {objective}": -1, f"{there} none": 1}
    return Contrast(says=f"gain by {objective}: {here} over {there}", cells=cells, paper=paper)


CLAIMS: tuple[Claim, ...] = (
    Claim(
        says="MAE helps Transformers most",
        contrasts=(
            _over("ViT MAE", "ViT none", ("t1-vit-mae", "t1-vit")),
            _over("ViT MAE", "ViT AR", ("t1-vit-mae", "t1-vit-ar")),
            _over("ViT MAE", "ViT MoCo", ("t1-vit-mae", "t1-vit-cl")),
            _gains_more("MAE", "ViT", "Mamba", {"t1-vit-mae": 1, "t1-vit": -1, "t1-vim-mae": -1, "t1-vim": 1}),
        ),
    ),
    Claim(
        says="AR helps Mamba",
        contrasts=(
            _over("Mamba AR", "Mamba none", ("t1-vim-ar", "t1-vim")),
            _over("Mamba AR", "Mamba MAE", ("t1-vim-ar", "t1-vim-mae")),
            _over("Mamba AR", "Mamba MoCo", ("t1-vim-ar", "t1-vim-cl")),
            _gains_more("AR", "Mamba", "ViT", {"t1-vim-ar": 1, "t1-vim": -1, "t1-vit-ar": -1, "t1-vit": 1}),
        ),
    ),
    Claim(
        says="MAP wins on hybrids",
        contrasts=(
            _over("hybrid MAP", "hybrid none", ("t8-hybridnet-b-map", "t8-hybridnet-b")),
            _over("hybrid MAP", "hybrid MAE", ("t8-hybridnet-b-map", "t8-hybridnet-b-mae")),
            _over("hybrid MAP", "hybrid AR", ("t8-hybridnet-b-map", "t8-hybridnet-b-ar")),
            _over("hybrid MAP", "hybrid local MAE", ("t6-map", "t6-local_mae")),
            _over("hybrid MAP", "hybrid MoCo", ("t8-hybridnet-b-map", "t8-hybridnet-b-cl")),
        ),
    ),
    Claim(
        says="the order of prediction must match the order of the scan",
        contrasts=(
            _over("Mamba scan row, AR row", "Mamba scan row, AR column", ("t2-r-arr", "t2-r-arc")),
            _over("Mamba scan column, AR column", "Mamba scan column, AR row", ("t2-c-arc", "t2-c-arr")),
        ),
    ),
    Claim(
        says="random masking near 50 % is best",
        contrasts=(
            _over("hybrid MAP random 50 %", "hybrid MAP random 25 %", ("t5-ratio50", "t5-ratio25")),
            _over("hybrid MAP random 50 %", "hybrid MAP random 75 %", ("t5-ratio50", "t5-ratio75")),
            _over("hybrid MAP random 50 %", "hybrid MAP sequential 50 %", ("t5-random", "t5-sequential")),
            _over("hybrid MAP random 50 %", "hybrid MAP diagonal 50 %", ("t5-random", "t5-diagonal")),
        ),
    ),
)

__all__ = ["CLAIMS", "GRIDS", "Claim", "Contrast", "Verdict", "verdict"]
