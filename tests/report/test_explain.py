"""The page shows the maps at the places of their patches, for those who listen."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hybridmap.backbones.arm import ARM
from hybridmap.backbones.base import Backbone
from hybridmap.backbones.hybrid import HybridNet
from hybridmap.backbones.mambavision import MambaVision
from hybridmap.backbones.vim import Vim
from hybridmap.backbones.vit import ViT
from hybridmap.backbones.vmamba import VMamba
from hybridmap.errors import UserError
from hybridmap.layers.registers import positions
from hybridmap.report.attention_maps import TokenMap, capture, token_map
from hybridmap.report.explain import Explanation, explain, page, read_tokens, sequence_of

SMALL: dict[str, Any] = {"embed_dim": 16, "num_heads": 2, "img_size": (16, 24), "patch_size": 4}
IMAGE = (1, 3, 16, 24)


def hybrid(**changes: Any) -> HybridNet:
    return HybridNet.Config(**(SMALL | {"layout": "MMT", "num_registers": 3} | changes)).build().eval()


def vit(**changes: Any) -> ViT:
    return ViT.Config(**SMALL, depth=2, **changes).build().eval()


def test_the_sequence_is_what_the_layers_see() -> None:
    found = sequence_of(hybrid(), hybrid().partition(torch.zeros(IMAGE)))
    assert (found < 0).nonzero().flatten().tolist() == list(positions(3, 24))
    assert found[found >= 0].tolist() == list(range(24))
    columns = sequence_of(hybrid(scan="column"), hybrid(scan="column").partition(torch.zeros(IMAGE)))
    assert columns[columns >= 0].tolist()[:5] == [0, 6, 12, 18, 1]
    bare = hybrid(num_registers=0)
    assert sequence_of(bare, bare.partition(torch.zeros(IMAGE))).tolist() == list(range(24))
    assert sequence_of(vit(), vit().partition(torch.zeros(IMAGE))).tolist() == [-1, *range(24)]


@pytest.mark.parametrize(
    ("backbone", "reads", "listener"),
    [
        (hybrid(), True, "the 3 prefix tokens, mean"),
        (hybrid(num_registers=0), False, "all patches, mean"),
        (vit(pool="cls"), True, "the prefix token"),
        (vit(pool="avg", norm_position="pooled"), False, "all patches, mean"),
    ],
    ids=["registers", "none", "class token", "mean beside a class token"],
)
def test_those_listen_that_the_network_reads_out(backbone: Backbone, reads: bool, listener: str) -> None:
    image = torch.randn(IMAGE)
    patches = backbone.partition(image)
    prefix = sequence_of(backbone, patches) < 0
    assert torch.equal(read_tokens(backbone, patches), prefix if reads else ~prefix)
    found = explain(backbone, image)
    assert found.listener == listener
    weights = capture(backbone, image, (1,), lambda kept: kept.mean)[1][0]
    heard = weights[prefix if reads else ~prefix].mean(0)
    torch.testing.assert_close(found.shares[1].patches.flatten(), heard[~prefix])
    assert found.shares[1].prefix == pytest.approx(float(heard[prefix].sum()))


@pytest.mark.parametrize("scan", ["row", "column"])
def test_shares_sum_to_one_and_stand_at_their_patches(scan: str) -> None:
    backbone, image = hybrid(scan=scan), torch.randn(IMAGE)
    found = explain(backbone, image, query=(2, 4))
    assert [share.title for share in found.shares] == ["layer 0 (M)", "layer 1 (M)", "layer 2 (T)"]
    assert found.listener == "the patch in row 2, column 4"
    place = found.sequence.tolist().index(2 * 6 + 4)
    for number, share in enumerate(found.shares):
        assert share.patches.shape == (4, 6)
        assert float(share.patches.sum()) + share.prefix == pytest.approx(1, abs=1e-5)
        heard = capture(backbone, image, (number,), lambda kept: kept.mean)[number][0, place]
        for source, value in zip(found.sequence.tolist(), heard.tolist(), strict=True):
            assert source < 0 or share.patches[source // 6, source % 6] == pytest.approx(value)


def test_a_direction_hears_only_what_it_has_passed() -> None:
    forward, backward, *heads = explain(hybrid(), torch.randn(IMAGE), layers=(1, 2), query=(1, 3), parts=True).shares
    titles = [share.title for share in (forward, backward, *heads)]
    assert titles == ["layer 1 (M) forward", "layer 1 (M) backward", "layer 2 (T) head 0", "layer 2 (T) head 1"]
    assert explain(hybrid(), torch.randn(IMAGE)).directions == ("forward", "backward")
    assert explain(vit(), torch.randn(IMAGE)).directions == ()
    assert forward.patches.flatten()[10:].eq(0).all()
    assert forward.patches.flatten()[:10].gt(0).all()
    assert backward.patches.flatten()[:9].eq(0).all()
    assert all(head.patches.gt(0).all() for head in heads)


def test_images_of_another_size_have_a_map_of_their_own_grid() -> None:
    found = explain(hybrid(), torch.randn(1, 3, 32, 24), layers=(0,))
    assert found.grid == (8, 6)
    assert found.shares[0].patches.shape == (8, 6)


@pytest.mark.parametrize("query", [(4, 0), (0, 6), (-1, 0)])
def test_a_query_outside_the_grid(query: tuple[int, int]) -> None:
    with pytest.raises(UserError, match="4 x 6 patches, so a query is a row from 0 to 3 and a column from 0 to 5, got"):
        explain(hybrid(), torch.randn(IMAGE), query=query)


def test_an_image_that_is_no_multiple_of_the_patch() -> None:
    with pytest.raises(UserError, match="must be a multiple of the patch size 4, got 3x24"):
        explain(hybrid(), torch.randn(1, 3, 3, 24))


class OwnGrid(nn.Module):
    """Like mixers of hierarchical networks it works on a map of its own, without prefix tokens; every token hears itself."""

    def __init__(self, grid: tuple[int, int]) -> None:
        super().__init__()
        self.grid = grid

    def forward(self, u: Tensor, causal: bool = False) -> Tensor:
        return u


@token_map.register(OwnGrid)
def _(mixer: OwnGrid, u: Tensor, causal: bool = False) -> TokenMap:
    return TokenMap(letter="M", mean=torch.eye(mixer.grid[0] * mixer.grid[1])[None], parts={}, grid=mixer.grid)


def test_a_layer_with_a_coarser_grid_of_its_own() -> None:
    backbone = hybrid()
    backbone.layers[1].mixer = OwnGrid((2, 3))  # type: ignore[union-attr]
    share = explain(backbone, torch.randn(IMAGE), layers=(1,), query=(3, 2)).shares[0]
    assert share.patches.tolist() == [[0, 0, 0], [0, 1, 0]]
    share = explain(backbone, torch.randn(IMAGE), layers=(1,)).shares[0]
    torch.testing.assert_close(share.patches, torch.full((2, 3), 1 / 6))


def test_a_layer_with_a_finer_grid_of_its_own() -> None:
    """All of its tokens inside the patch that was asked for are heard alike."""
    backbone = hybrid()
    backbone.layers[1].mixer = OwnGrid((8, 18))  # type: ignore[union-attr]
    share = explain(backbone, torch.randn(IMAGE), layers=(1,), query=(3, 2)).shares[0]
    expected = torch.zeros(8, 18)
    expected[6:8, 6:9] = 1 / 6
    torch.testing.assert_close(share.patches, expected)


class Mean(nn.Module):
    """A mixer without a function for its maps."""

    def forward(self, u: Tensor, causal: bool = False) -> Tensor:
        return u.mean(1, keepdim=True).expand_as(u)


def test_layers_without_a_map_are_left_out_and_named() -> None:
    backbone = hybrid()
    backbone.layers[1].mixer = Mean()  # type: ignore[union-attr]
    found = explain(backbone, torch.randn(IMAGE))
    assert [share.title for share in found.shares] == ["layer 0 (M)", "layer 2 (T)"]
    assert found.without == {"MambaBlock": 1}
    assert drawn(found).float().std() > 30
    with pytest.raises(UserError, match="how MambaBlock mixes tokens is not known"):
        explain(backbone, torch.randn(IMAGE), layers=(1,))
    for block in (0, 1, 2):
        backbone.layers[block] = nn.Identity()
    with pytest.raises(UserError, match="how Identity mixes tokens is not known"):
        explain(backbone, torch.randn(IMAGE))


def drawn(found: Explanation) -> Tensor:
    picture = page(found, torch.rand(IMAGE[1:]), "a network looks at an image")
    values = torch.frombuffer(bytearray(picture.tobytes()), dtype=torch.uint8)
    return values.view(picture.height, picture.width, 3)


@pytest.mark.parametrize("backbone", [hybrid(), hybrid(num_registers=0, scan="column"), vit()], ids=["R", "column", "ViT"])
def test_a_page_is_drawn_and_not_blank(backbone: Backbone) -> None:
    image = torch.randn(IMAGE)
    whole = drawn(explain(backbone, image))
    assert whole.float().std() > 30
    framed = drawn(explain(backbone, image, query=(0, 5)))
    assert (framed == torch.tensor([0, 230, 255])).all(-1).any()
    assert not (whole == torch.tensor([0, 230, 255])).all(-1).any()


@pytest.mark.parametrize(
    ("backbone", "layers", "grids"),
    [
        (MambaVision.Config(embed_dim=16, depths=(1, 1, 2, 2), num_heads=(2, 2), window_size=(3, 2)), "MTMT", [(4, 6), (2, 3)]),
        (VMamba.Config(embed_dim=8, depths=(1, 1, 2)), "MMMM", [(16, 24), (8, 12), (4, 6)]),
    ],
    ids=["MambaVision", "VMamba"],
)
def test_backbones_of_several_resolutions(backbone: Any, layers: str, grids: list[tuple[int, int]]) -> None:
    backbone = replace(backbone, patch_size=4 * 2 ** (len(backbone.depths) - 1), img_size=(64, 96)).build().eval()
    found = explain(backbone, torch.randn(1, 3, 64, 96), query=(0, 1))
    assert "".join(share.title.split("(")[1][0] for share in found.shares) == layers
    assert list(dict.fromkeys(tuple(share.patches.shape) for share in found.shares)) == grids
    for share in found.shares:
        assert 0 < float(share.patches.sum()) <= 1 + 1e-5
    assert drawn(found).float().std() > 30


@pytest.mark.parametrize("scan", ["row", "cluster(2)"])
def test_four_directions(scan: str) -> None:
    backbone = ARM.Config(embed_dim=16, depth=2, img_size=(16, 24), patch_size=4, scan=scan).build().eval()
    found = explain(backbone, torch.randn(IMAGE), layers=(1,), query=(1, 3), parts=True)
    assert found.directions == ("forward", "backward", "across forward", "across backward")
    place = found.sequence.tolist().index(9)
    earlier = [source for source in found.sequence.tolist()[: place + 1] if source >= 0]
    assert found.shares[0].patches.flatten().nonzero().flatten().tolist() == sorted(earlier)
    row, column = torch.meshgrid(torch.arange(4), torch.arange(6), indexing="ij")
    above = (column < 3) | ((column == 3) & (row <= 1))
    assert torch.equal(found.shares[2].patches > 0, above)
    assert all(float(share.patches.sum()) + share.prefix == pytest.approx(1, abs=1e-5) for share in found.shares)


def test_a_class_token_among_the_patches() -> None:
    backbone = Vim.Config(embed_dim=16, depth=1, img_size=(16, 24), patch_size=4, rope=False).build().eval()
    found = explain(backbone, torch.randn(IMAGE))
    assert found.listener == "the prefix token"
    assert found.sequence.tolist().index(-1) == 12
    assert drawn(found).float().std() > 30


def test_layers_in_pairs_read_from_both_ends() -> None:
    changes: dict[str, Any] = {"bidirectional_pairs": True, "mixer": "uni"}
    backbone = Vim.Config(embed_dim=16, depth=2, img_size=(16, 24), patch_size=4, **changes).build().eval()
    found = explain(backbone, torch.randn(IMAGE), query=(1, 3))
    first, second = (share.patches.flatten() > 0 for share in found.shares)
    assert torch.equal(first, torch.arange(24) <= 9)
    assert torch.equal(second, torch.arange(24) >= 9)
    assert found.directions == ("forward", "forward, from the end")


def test_a_page_grows_by_rows_of_eight_maps() -> None:
    image = torch.randn(IMAGE)
    backbone = hybrid(layout="MT" * 5)
    eight, ten = (page(explain(backbone, image, layers=range(n)), torch.rand(IMAGE[1:]), "") for n in (8, 10))
    assert ten.width == eight.width
    assert ten.height > eight.height


def test_grey_pictures_are_drawn_too() -> None:
    found = explain(hybrid(in_chans=1), torch.randn(1, 1, 16, 24), layers=(2,))
    assert page(found, torch.rand(1, 16, 24), "").width > 700
