"""The verdict on a claim follows from made-up results as it should."""

from __future__ import annotations

import numpy as np
import pytest

from hybridmap.recipes import claims
from hybridmap.recipes.claims import CLAIMS, GRIDS, Contrast, verdict
from hybridmap.tasks.bootstrap import Interval

UP = Interval(value=3.0, low=1.0, high=5.0)
DOWN = Interval(value=-3.0, low=-5.0, high=-1.0)
OPEN = Interval(value=1.0, low=-1.0, high=3.0)


@pytest.mark.parametrize(
    ("intervals", "expected"),
    [
        ([UP, UP], "supports"),
        ([UP, OPEN], "cannot tell"),
        ([UP, DOWN], "contradicts"),
        ([OPEN, DOWN, None], "contradicts"),
        ([UP, None], "cannot tell"),
        ([OPEN], "cannot tell"),
        ([Interval(value=0.0, low=0.0, high=0.0)], "cannot tell"),
        ([], "cannot tell"),
    ],
)
def test_the_rule(intervals: list[Interval | None], expected: str) -> None:
    assert verdict(intervals) == expected


def made_up(gains: dict[str, float], seeds: int = 3) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Answers of cells that are right with probability 0.5 + gain, on 20 sources of 50 images, which all cells share."""
    difficulty = np.random.default_rng(0).random((seeds, 1000))
    return {label: (difficulty < 0.5 + gain).astype(float) for label, gain in gains.items()}, np.repeat(np.arange(20), 50)


def test_what_was_put_in_is_found() -> None:
    contrast = Contrast(says="a over b", cells={"a": 1, "b": -1}, paper={})
    answers, sources = made_up({"a": 0.2, "b": 0.1})
    found = contrast.measured(answers, sources)
    assert found is not None
    assert found.value == pytest.approx(100 * (answers["a"].mean() - answers["b"].mean()))
    assert found.low > 0
    assert verdict([found]) == "supports"
    turned = contrast.measured({"a": answers["b"], "b": answers["a"]}, sources)
    assert verdict([turned]) == "contradicts"
    same = contrast.measured({"a": answers["a"], "b": answers["a"]}, sources)
    assert verdict([same]) == "cannot tell"


def test_a_gain_that_one_seed_made_alone_does_not_count() -> None:
    answers, sources = made_up({"a": 0.0, "b": 0.0})
    answers["a"][0] = 1.0  # one lucky run
    found = Contrast(says="a over b", cells={"a": 1, "b": -1}, paper={}).measured(answers, sources)
    assert found is not None
    assert found.value > 10
    assert verdict([found]) == "cannot tell"


def test_a_missing_cell_leaves_the_question_open() -> None:
    answers, sources = made_up(
        {"hybrid MAP": 0.3, "hybrid none": 0.0, "hybrid MAE": 0.1, "hybrid AR": 0.1, "hybrid local MAE": 0.1}
    )
    claim = next(claim for claim in CLAIMS if claim.says == "MAP wins on hybrids")
    found = [contrast.measured(answers, sources) for contrast in claim.contrasts]
    assert found[-1] is None  # MoCo
    assert verdict(found) == "cannot tell"
    answers["hybrid MoCo"] = answers["hybrid none"]
    assert verdict([contrast.measured(answers, sources) for contrast in claim.contrasts]) == "supports"


def test_comparisons_name_rows_that_exist_and_the_papers_numbers() -> None:
    labels = {row.label for table in GRIDS.values() for row in table.rows}
    for claim in CLAIMS:
        for contrast in claim.contrasts:
            assert set(contrast.cells) <= labels
            assert contrast.printed() is not None
            assert contrast.printed() > 0, "the paper prints what it claims"  # type: ignore[operator]
    printed = {contrast.says: contrast.printed() for claim in CLAIMS for contrast in claim.contrasts}
    assert printed["ViT MAE over ViT none"] == 1.3
    assert printed["gain by MAE: ViT over Mamba"] == 1.1  # (83.6 - 82.3) - (81.4 - 81.2)
    assert printed["hybrid MAP over hybrid MAE"] == 1.0


def test_the_five_claims_of_the_paper_are_there() -> None:
    assert len(CLAIMS) == 5
    assert len(GRIDS["objectives"].rows) == 6 * 3
    assert claims.Contrast(says="", cells={}, paper={}).printed() is None
    with pytest.raises(ValueError, match="do not add up"):
        Contrast(says="a", cells={"a": 1}, paper={})
