"""The values: masks by hand, and their one check."""

import pytest
import torch

from hybridmap.errors import UserError
from hybridmap.types import InitReport, Mask


def test_a_mask_by_hand_lists_the_visible_in_ascending_order():
    mask = Mask.from_masked(torch.tensor([[True, False, True, False], [False, False, True, True]]))
    assert mask.visible.tolist() == [[1, 3], [0, 1]]


def test_unequal_counts_are_refused_with_both_numbers():
    with pytest.raises(UserError, match="between 1 and 2"):
        Mask.from_masked(torch.tensor([[True, False], [True, True]]))


def test_an_account_of_weights_is_readable():
    report = InitReport(loaded=("a", "b"), dropped={"decoder.pred": "no decoder"}, fresh={})
    assert str(report) == "loaded 2 tensors; dropped: decoder.pred; freshly initialised: none"
