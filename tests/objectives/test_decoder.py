from __future__ import annotations

import pytest
import torch
from torch import Tensor

from hybridmap.errors import UserError
from hybridmap.layers.attention import CrossAttention
from hybridmap.objectives.decoder import Decoder, MAEDecoder, MAPDecoder
from hybridmap.tokens.images import partition
from hybridmap.tokens.regions import Clusters, Columns, Regions, Rows, Single, Whole, permission, prediction_order
from hybridmap.tokens.select import take
from hybridmap.types import Features, Mask, Patches

SMALL = [MAPDecoder.Config(width=16, depth=2, num_heads=4), MAEDecoder.Config(width=16, depth=2, num_heads=4)]
PARTITIONS = [
    Rows.Config(),
    Rows.Config(reverse=True),
    Columns.Config(),
    Clusters.Config(size=2),
    Single.Config(),
    Whole.Config(),
]


def decoder_of(config: Decoder.Config, grid: tuple[int, int] = (3, 5)) -> Decoder:
    return config.build(embed_dim=8, grid=grid, patch_values=12).eval()


def example(grid: tuple[int, int] = (3, 5), scan: str = "row", prefix: int = 0) -> tuple[Patches, Mask, Features]:
    patches = partition(torch.randn(2, 3, grid[0] * 2, grid[1] * 2), 2, scan)
    count = grid[0] * grid[1]
    scores = torch.rand(2, count).argsort(1)
    mask = Mask.from_masked(scores < count // 2)
    return patches, mask, Features(patches=torch.randn(2, mask.visible.shape[1], 8), prefix=torch.randn(2, prefix, 8))


def disturbed(features: Features, mask: Mask, chosen: Tensor) -> Features:
    """Other features for the visible patches at the chosen positions (B, N)."""
    noise = torch.randn_like(features.patches) * take(chosen, mask.visible)[..., None]
    return Features(patches=features.patches + noise, prefix=features.prefix)


@pytest.mark.parametrize("kind", ["map", "local_mae", "ar"])
@pytest.mark.parametrize("scan", ["row", "column"])
@pytest.mark.parametrize("regions", PARTITIONS, ids=str)
@pytest.mark.parametrize("config", SMALL, ids=lambda config: type(config).__qualname__)
def test_a_decoder_mask_blocks_what_it_forbids_bit_by_bit(
    config: Decoder.Config, regions: Regions.Config, scan: str, kind: str
) -> None:
    """Other features, mask tokens and positions in a region change no prediction of a patch that may not look there."""
    decoder = decoder_of(config)
    patches, mask, features = example(scan=scan)
    rank = regions.build()(patches, None)
    allowed = permission(rank, kind)  # pyright: ignore[reportArgumentType]
    order = prediction_order(rank) if kind == "ar" else rank
    with torch.no_grad():
        before = decoder(features, mask, patches, allowed)
        for changed in order.unique().tolist():
            chosen = order == changed  # (B, N)
            spared = order < changed if kind in ("map", "ar") else order != changed
            table = decoder.pos_embed.clone()
            decoder.pos_embed[0, patches.source[0][chosen[0]]] += torch.randn(int(chosen[0].sum()), 16)
            after = decoder(disturbed(features, mask, chosen), mask, patches, allowed)
            decoder.pos_embed.copy_(table)
            assert torch.equal(after[spared], before[spared])
            assert not torch.isclose(after[chosen], before[chosen]).all()


@pytest.mark.parametrize("config", SMALL, ids=lambda config: type(config).__qualname__)
def test_without_a_mask_everybody_looks_at_everybody(config: Decoder.Config) -> None:
    decoder = decoder_of(config)
    patches, mask, features = example()
    everything = permission(Whole.Config().build()(patches, None), "mae")
    free = decoder(features, mask, patches, None)
    torch.testing.assert_close(decoder(features, mask, patches, everything), free)
    first_visible = torch.zeros(2, 15, dtype=torch.bool).scatter(1, mask.visible[:, :1], True)
    changed = decoder(disturbed(features, mask, first_visible), mask, patches, None)
    assert (changed != free).any(-1).all()


@pytest.mark.parametrize("scan", ["row", "column"])
def test_features_are_put_where_their_patch_is_and_mask_tokens_elsewhere(scan: str) -> None:
    decoder = decoder_of(SMALL[0])
    patches, mask, features = example(scan=scan)
    placed = decoder.place(decoder.embed(features.patches), mask, patches)
    for b in range(2):
        visible = iter(decoder.embed(features.patches)[b])
        for n in range(15):
            content = decoder.mask_token[0, 0] if mask.masked[b, n] else next(visible)
            torch.testing.assert_close(placed[b, n], content + decoder.pos_embed[0, patches.source[b, n]])


@pytest.mark.parametrize("config", SMALL, ids=lambda config: type(config).__qualname__)
@pytest.mark.parametrize("grid", [(1, 1), (1, 7), (6, 2), (7, 9)], ids=str)
def test_other_grids_are_decoded_with_resampled_positions(config: Decoder.Config, grid: tuple[int, int]) -> None:
    decoder = decoder_of(config)
    patches, mask, features = example(grid)
    out = decoder(features, mask, patches, permission(Rows.Config().build()(patches, None), "map"))
    assert out.shape == (2, grid[0] * grid[1], 12)
    assert out.isfinite().all()


def test_the_boolean_mask_equals_the_additive_reference_in_value_and_gradient() -> None:
    attention = CrossAttention(16, 4).double()
    x = torch.randn(2, 15, 16, dtype=torch.float64, requires_grad=True)
    patches, _, _ = example()
    allowed = permission(Clusters.Config(size=2).build()(patches, None), "map")
    fast = attention(x, x, allowed)

    q = attention.q(x).unflatten(-1, (4, 4)).transpose(1, 2)
    k, v = attention.kv(x).unflatten(-1, (2, 4, 4)).permute(2, 0, 3, 1, 4)
    additive = torch.zeros(2, 1, 15, 15, dtype=torch.float64).masked_fill(~allowed, -torch.inf)
    dense = attention.proj((((q @ k.mT) / 2 + additive).softmax(-1) @ v).transpose(1, 2).flatten(2))

    torch.testing.assert_close(fast, dense)
    seed = torch.randn_like(fast)
    torch.testing.assert_close(torch.autograd.grad(fast, x, seed), torch.autograd.grad(dense, x, seed))


def test_the_class_token_is_decoded_along_only_where_nothing_is_forbidden() -> None:
    decoder = decoder_of(SMALL[1])
    patches, mask, features = example(prefix=1)
    other = Features(patches=features.patches, prefix=features.prefix + 1)
    assert not torch.equal(decoder(features, mask, patches, None), decoder(other, mask, patches, None))
    allowed = permission(Rows.Config().build()(patches, None), "map")
    assert torch.equal(decoder(features, mask, patches, allowed), decoder(other, mask, patches, allowed))
    without = decoder_of(MAEDecoder.Config(width=16, depth=2, num_heads=4, prefix=False))
    assert torch.equal(without(features, mask, patches, None), without(other, mask, patches, None))
    assert "cls_pos" not in without.state_dict()


def test_no_prefix_token_reaches_the_decoder_of_map() -> None:
    decoder = decoder_of(SMALL[0])
    patches, mask, features = example(prefix=2)
    other = Features(patches=features.patches, prefix=features.prefix + 1)
    assert torch.equal(decoder(features, mask, patches, None), decoder(other, mask, patches, None))


def test_the_released_decoder_has_its_size_and_its_initial_values() -> None:
    decoder = MAPDecoder.Config().build(embed_dim=768, grid=(14, 14), patch_values=768)
    assert sum(p.numel() for p in decoder.parameters()) == pytest.approx(2.1e6, rel=0.05)
    assert decoder.pos_embed.std().item() == pytest.approx(0.02, rel=0.05)
    assert decoder.mask_token.std().item() == pytest.approx(0.02, rel=0.25)
    bound = (6 / (768 + 192)) ** 0.5
    assert decoder.embed.weight.abs().max().item() == pytest.approx(bound, rel=1e-2)
    assert not decoder.pred.bias.any()
    assert {layer.norm_q.eps for layer in decoder.layers} == {1e-5}


def test_maes_decoder_has_fixed_positions_and_its_own_norms() -> None:
    decoder = MAEDecoder.Config().build(embed_dim=768, grid=(14, 14), patch_values=768)
    assert [name for name, p in decoder.named_parameters() if not p.requires_grad] == ["pos_embed", "cls_pos"]
    assert {layer.norm1.eps for layer in decoder.layers} == {1e-6} == {decoder.norm.eps}
    assert len(decoder.layers) == 8


@pytest.mark.parametrize("kind", [MAPDecoder, MAEDecoder], ids=lambda kind: kind.__name__)
def test_heads_that_do_not_divide_the_width_are_refused(kind: type[Decoder]) -> None:
    with pytest.raises(UserError, match="width 64 must be divisible by the number of heads, got num_heads=5"):
        decoder_of(kind.Config(width=64, num_heads=5))


@pytest.mark.parametrize("field", ["width", "depth"])
def test_a_decoder_without_extent_is_refused(field: str) -> None:
    with pytest.raises(UserError, match=f"the {field} of the decoder must be at least 1"):
        decoder_of(MAPDecoder.Config(**{field: 0}))
