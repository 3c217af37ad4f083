import pytest
import torch

from hybridmap.errors import UserError
from hybridmap.layers import Registers
from hybridmap.layers.registers import positions, spacing


@pytest.mark.parametrize(
    ("side", "n", "s", "first", "last", "tail"),
    [
        (8, 12, 4, (4, 9), 59, 16),
        (8, 16, 3, (3, 7), 63, 16),
        (14, 12, 15, (15, 31), 191, 16),
        (14, 16, 11, (11, 23), 191, 20),
        (24, 12, 44, (44, 89), 539, 48),
        (24, 16, 33, (33, 67), 543, 48),
        (32, 12, 78, (78, 157), 947, 88),
        (32, 16, 60, (60, 121), 975, 64),
    ],
)
def test_registers_stand_where_mamba_r_puts_them(side, n, s, first, last, tail):
    found = positions(n, side * side)
    assert spacing(n, side * side) == s
    assert found[:2] == first
    assert found[-1] == last
    assert side * side + n - 1 - found[-1] == tail


@pytest.mark.parametrize(("n", "count"), [(1, 2), (3, 10), (4, 24), (12, 196)])
def test_inserted_registers_are_found_again(n, count):
    registers = Registers(n, 3)
    torch.nn.init.normal_(registers.token)
    torch.nn.init.normal_(registers.pos)
    patches = torch.randn(2, count, 3)
    sequence = registers.insert(patches)
    expected = (registers.token + registers.pos).expand(2, -1, -1)
    torch.testing.assert_close(sequence[:, list(positions(n, count))], expected)
    prefix, rest = registers.split(sequence)
    torch.testing.assert_close(prefix, expected)
    assert torch.equal(rest, patches)


def test_too_few_patches_are_refused():
    with pytest.raises(UserError, match=r"12 registers need at least 13 patches .* got 4"):
        Registers(12, 8).insert(torch.zeros(1, 4, 8))
