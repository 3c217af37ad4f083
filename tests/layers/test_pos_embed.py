import math

import pytest
import torch

from hybridmap.errors import UserError
from hybridmap.layers import resample, sincos_2d


def test_column_channels_come_first_and_sines_before_cosines():
    table = sincos_2d(8, (2, 3))
    assert table.shape == (1, 6, 8)
    assert table.dtype == torch.float32
    row, column = 1, 2
    expected = [f(position * w) for position in (column, row) for f in (math.sin, math.cos) for w in (1.0, 0.01)]
    torch.testing.assert_close(table[0, row * 3 + column], torch.tensor(expected))


def test_a_width_that_is_no_multiple_of_four_is_refused():
    with pytest.raises(UserError, match="multiple of 4"):
        sincos_2d(10, (2, 2))


def test_the_same_grid_returns_the_table_itself():
    table = torch.randn(1, 12, 4)
    assert resample(table, (3, 4), (3, 4)) is table


def cubic(distance):
    """The kernel of bicubic interpolation with a = -0.75."""
    d, a = abs(distance), -0.75
    if d <= 1:
        return (a + 2) * d**3 - (a + 3) * d**2 + 1
    return a * d**3 - 5 * a * d**2 + 8 * a * d - 4 * a if d < 2 else 0.0


def test_resampling_is_bicubic_with_pixel_centres_in_the_middle():
    table = torch.randn(8, 6)
    finer = resample(table.reshape(1, 48, 1), (8, 6), (16, 12)).view(16, 12)
    row, column = (7 + 0.5) / 2 - 0.5, (6 + 0.5) / 2 - 0.5
    expected = sum(cubic(row - i) * cubic(column - j) * table[i, j] for i in range(8) for j in range(6))
    torch.testing.assert_close(finer[7, 6], torch.as_tensor(expected))


def test_low_precision_tables_are_resampled_in_float32():
    table = torch.randn(1, 16, 4)
    coarse = resample(table.bfloat16(), (4, 4), (6, 6))
    assert coarse.dtype == torch.bfloat16
    torch.testing.assert_close(coarse, resample(table.bfloat16().float(), (4, 4), (6, 6)).bfloat16())
