from dataclasses import replace

import pytest
import torch

from hybridmap.backbones import ViT
from hybridmap.config import override
from hybridmap.errors import UserError
from hybridmap.layers import sincos_2d
from hybridmap.types import Mask

SMALL = ViT.Config(img_size=(32, 48), patch_size=8, embed_dim=16, depth=3, num_heads=2, num_classes=5)


def build(**changes):
    return override(SMALL, changes).build().double().eval()


def images(size=(32, 48)):
    return torch.randn(2, 3, *size, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def test_the_class_token_comes_first_and_has_its_own_position():
    net = build()
    sequence, has_prefix = net.insert_prefix(net.embed(net.partition(images())), prefix=False)
    assert has_prefix
    assert sequence.shape == (2, 25, 16)
    torch.testing.assert_close(sequence[:, :1], (net.cls_token + net.cls_pos).expand(2, -1, -1))


@pytest.mark.parametrize("pool", ["cls", "avg"])
@pytest.mark.parametrize("norm_position", ["tokens", "pooled"])
def test_the_read_out_pools_and_norms_in_the_order_it_was_told(pool, norm_position):
    net = build(pool=pool, norm_position=norm_position)
    x = images()
    tokens = torch.cat([net.cls_token + net.cls_pos + torch.zeros(2, 1, 16), net.embed(net.partition(x))], 1)
    for block in net.layers:
        tokens = block(tokens)

    def norm(v):
        return torch.nn.functional.layer_norm(v, (16,), net.norm.weight, net.norm.bias, 1e-6)

    if norm_position == "tokens":
        tokens = norm(tokens)
    pooled = tokens[:, 0] if pool == "cls" else tokens[:, 1:].mean(1)
    pooled = norm(pooled) if norm_position == "pooled" else pooled
    features = net.forward_features(x)
    torch.testing.assert_close(features, tokens)
    torch.testing.assert_close(net.forward_head(features, pre_logits=True), pooled)
    torch.testing.assert_close(net(x), net.head.fc(pooled))
    torch.testing.assert_close(net.pooled(net.encode_visible(net.partition(x), None)), pooled)


def test_in_pretraining_the_class_token_joins_the_visible_patches():
    net = SMALL.encoder().build().double()
    mask = Mask.from_masked(torch.arange(24).expand(2, 24) % 4 != 0)
    features = net.encode_visible(net.partition(images()), mask)
    assert features.patches.shape == (2, 6, 16)
    assert features.prefix.shape == (2, 1, 16)
    torch.testing.assert_close(net.pooled(features), features.prefix[:, 0])


def test_the_encoder_of_mae_has_fixed_sine_cosine_positions():
    net = SMALL.encoder().build()
    torch.testing.assert_close(net.pos_embed.data, sincos_2d(16, (4, 6)))
    assert torch.equal(net.cls_pos, torch.zeros(1, 1, 16))
    assert not net.pos_embed.requires_grad
    assert not net.cls_pos.requires_grad
    weight = net.patch_embed.proj.weight
    assert 0.98 * (6 / (192 + 16)) ** 0.5 < weight.abs().max() <= (6 / (192 + 16)) ** 0.5
    assert {name for name, p in net.named_parameters() if p.requires_grad} - set(net.state_dict()) == set()
    net.encode_visible(net.partition(images().float()), None).prefix.square().sum().backward()
    assert {name for name, p in net.named_parameters() if p.requires_grad and p.grad is None} == set()


def test_the_class_token_is_decayed_in_mae_pretraining_only():
    assert build().no_weight_decay() == {"cls_token", "cls_pos", "pos_embed"}
    assert SMALL.encoder().build().no_weight_decay() == {"cls_pos", "pos_embed"}


def test_drop_path_rises_linearly():
    assert [block.drop_path for block in build(drop_path=0.2).layers] == pytest.approx([0, 0.1, 0.2])


def test_other_sizes_resample_the_patch_positions_only():
    net = build()
    assert net.forward_features(images((64, 24))).shape == (2, 1 + 24, 16)
    before = net.cls_pos.clone()
    net.set_input_size((64, 64))
    assert torch.equal(net.cls_pos, before)
    assert net.pos_embed.shape == (1, 64, 16)


def test_the_order_of_the_patches_matters_only_where_attention_is_causal():
    by_row, by_column = build(), build(scan="column")
    by_column.load_state_dict(by_row.state_dict())
    x = images((32, 48))
    torch.testing.assert_close(by_row.forward_features(x), by_column.forward_features(x))
    patches = by_column.partition(x)
    assert patches.source[0, :3].tolist() == [0, 6, 12]
    later = patches.source[0] % 6 >= 3
    other = replace(patches, content=torch.where(later[:, None], patches.content + 1, patches.content))
    seen, changed = (by_column.encode_visible(p, None, causal=True).patches for p in (patches, other))
    assert torch.equal(seen[:, ~later], changed[:, ~later])
    assert not torch.isclose(seen[:, later], changed[:, later]).all(-1).any()


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"num_heads": 3}, "16 must be divisible"),
        ({"pool": "max"}, "pool"),
        ({"depth": 0}, "depth must be at least 1, got 0"),
        ({"scan": "snake"}, "scan must be one of row, column, got 'snake'"),
    ],
)
def test_impossible_networks_end_with_a_sentence(changes, sentence):
    with pytest.raises(UserError, match=sentence):
        build(**changes)
