import pytest
import torch

from hybridmap.errors import UserError
from hybridmap.layers.rotary import Rotary, rotate

X = torch.randn(1, 12, 16, generator=torch.Generator().manual_seed(0))


def places(rows, columns):
    raster = torch.arange(rows * columns)
    return torch.stack([raster // columns, raster % columns], dim=-1).float()[None]


def test_the_first_patch_is_not_turned():
    cosine, sine = Rotary(16, 4)(places(3, 4), (3, 4))
    assert torch.equal(rotate(X, cosine, sine)[:, 0], X[:, 0])
    assert not torch.allclose(rotate(X, cosine, sine)[:, 1:], X[:, 1:])


def test_every_pair_of_channels_keeps_its_length():
    turned = rotate(X, *Rotary(16, 4)(places(3, 4), (3, 4)))
    torch.testing.assert_close(turned.unflatten(-1, (8, 2)).norm(dim=-1), X.unflatten(-1, (8, 2)).norm(dim=-1))


def test_rows_turn_the_first_half_of_the_channels_and_columns_the_second():
    for table in Rotary(16, 4).tables((4, 4), torch.device("cpu")):
        grid = table.view(4, 4, 16)
        assert torch.equal(grid[:, :, :8], grid[:, :1, :8].expand(4, 4, 8))
        assert torch.equal(grid[:, :, 8:], grid[:1, :, 8:].expand(4, 4, 8))
        torch.testing.assert_close(grid[:, 0, :8], grid[0, :, 8:])


def test_angles_are_those_of_the_formula():
    cosine, sine = Rotary(16, 6).tables((3, 3), torch.device("cpu"))
    for row in range(3):
        for column in range(3):
            for pair in range(8):
                position = (row if pair < 4 else column) / 3 * 6
                angle = torch.tensor(position * 10000 ** (-4 * (pair % 4) / 16))
                for channel in (2 * pair, 2 * pair + 1):
                    torch.testing.assert_close(cosine[row * 3 + column, channel], angle.cos())
                    torch.testing.assert_close(sine[row * 3 + column, channel], angle.sin())


def test_a_pair_is_turned_as_a_complex_number():
    cosine, sine = Rotary(16, 4)(places(3, 4), (3, 4))
    turned = torch.view_as_complex(rotate(X, cosine, sine).unflatten(-1, (8, 2)))
    expected = torch.view_as_complex(X.unflatten(-1, (8, 2))) * torch.complex(cosine, sine)[..., ::2]
    torch.testing.assert_close(turned, expected)


def test_visible_patches_have_the_angles_of_their_places():
    rotary, everywhere = Rotary(16), places(3, 4)
    chosen = torch.tensor([1, 5, 11])
    for part, whole in zip(rotary(everywhere[:, chosen], (3, 4)), rotary(everywhere, (3, 4)), strict=True):
        assert torch.equal(part, whole[:, chosen])


def test_a_finer_grid_spans_the_same_angles():
    coarse, fine = (Rotary(16, 4).tables((side, side), torch.device("cpu"))[0] for side in (4, 8))
    torch.testing.assert_close(fine.view(8, 8, 16)[::2, ::2], coarse.view(4, 4, 16))


@pytest.mark.parametrize(("dim", "side", "sentence"), [(18, 4, "multiple of 4, got 18; try 20"), (16, 0, "at least one patch")])
def test_impossible_tables_end_with_a_sentence(dim, side, sentence):
    with pytest.raises(UserError, match=sentence):
        Rotary(dim, side)
