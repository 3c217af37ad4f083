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


def test_resampling_keeps_linear_positions_linear_inside():
    rows, columns = torch.meshgrid(torch.arange(8.0), torch.arange(6.0), indexing="ij")
    table = torch.stack([rows.flatten(), columns.flatten()], -1)[None]
    finer = resample(table, (8, 6), (16, 12)).view(16, 12, 2)
    inner = finer[6:10, 5:7]
    torch.testing.assert_close(inner[:, :, 0], ((torch.arange(6.0, 10) + 0.5) / 2 - 0.5)[:, None].expand(4, 2))
    torch.testing.assert_close(inner[:, :, 1], ((torch.arange(5.0, 7) + 0.5) / 2 - 0.5).expand(4, 2))


def test_low_precision_tables_are_resampled_in_float32():
    table = torch.randn(1, 16, 4)
    coarse = resample(table.bfloat16(), (4, 4), (6, 6))
    assert coarse.dtype == torch.bfloat16
    torch.testing.assert_close(coarse, resample(table.bfloat16().float(), (4, 4), (6, 6)).bfloat16())
