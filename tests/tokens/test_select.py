"""take and put are inverse on the visible positions."""

import torch

from hybridmap.tokens.select import put, take


def test_put_undoes_take_and_leaves_the_rest_alone():
    x = torch.arange(24.0).view(2, 4, 3)
    index = torch.tensor([[0, 2], [1, 3]])
    fill = torch.full_like(x, -1.0)
    back = put(take(x, index), index, fill)
    for b in range(2):
        for n in range(4):
            expected = x[b, n] if n in index[b] else fill[b, n]
            assert torch.equal(back[b, n], expected)


def test_take_serves_any_trailing_axes():
    index = torch.tensor([[1, 0]])
    assert take(torch.tensor([[5, 6]]), index).tolist() == [[6, 5]]
    assert take(torch.zeros(1, 2, 3, 4), index).shape == (1, 2, 3, 4)
