import math

import pytest
import torch

from hybridmap.backbones import HybridNet
from hybridmap.config import override
from hybridmap.errors import UserError
from hybridmap.layers import MambaMixer, TransformerBlock
from hybridmap.layers.registers import positions
from hybridmap.types import Mask

SMALL = HybridNet.Config(
    img_size=64, embed_dim=48, layout="MMMT", num_heads=4, num_registers=3, num_classes=5, d_state=4, cls_reduce=2
)


def build(**changes):
    return override(SMALL, changes).build().eval()


def images(batch=2, size=(64, 64), seed=0):
    return torch.randn(batch, 3, *size, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("layout", ["MMMT", "MMMTMMMTM", "TTMM", "TMMM", "M", "TT", "MTT"])
@pytest.mark.parametrize("registers", [0, 2])
def test_every_layout_gives_logits_and_a_gradient_to_every_parameter(layout, registers):
    net = build(layout=layout, num_registers=registers, cls_reduce=2 if registers else 1)
    logits = net(images())
    assert logits.shape == (2, 5)
    logits.square().sum().backward()
    assert {name for name, p in net.named_parameters() if p.grad is None} == set()


@pytest.mark.parametrize("layout", ["MMMT", "TTMM", "TT", "MM"])
def test_the_encoder_of_objectives_has_no_parameter_without_gradient(layout):
    net = override(SMALL, {"layout": layout}).encoder().build()
    patches = net.partition(images())
    mask = Mask.from_masked(torch.arange(16).expand(2, 16) % 2 == 0)
    features = net.encode_visible(patches, mask)
    assert features.patches.shape == (2, 8, 48)
    assert features.prefix.shape == (2, 0, 48)
    features.patches.square().sum().backward()
    assert {name for name, p in net.named_parameters() if p.grad is None} == set()


def test_masked_content_cannot_reach_the_encoder():
    net = build()
    mask = Mask.from_masked(torch.rand(2, 16).argsort(1) < 7)
    patches = net.partition(images())
    other = images(seed=1)
    both = torch.where(mask.masked[..., None], net.partition(other).content, patches.content)
    changed = type(patches)(content=both, coords=patches.coords, source=patches.source, grid=patches.grid)
    assert torch.equal(net.encode_visible(patches, mask).patches, net.encode_visible(changed, mask).patches)
    assert not torch.equal(net.encode_visible(patches, None).patches, net.encode_visible(changed, None).patches)


def test_silent_transformer_steps_double_the_branch():
    net = build(layout="MMMTMMMT").double()
    for block in net.layers:
        if isinstance(block, TransformerBlock):
            for linear in (block.attn.proj, block.mlp.fc2):
                torch.nn.init.zeros_(linear.weight)
                torch.nn.init.zeros_(linear.bias)
    taps = net.encode_visible(net.partition(images().double()), None, taps=(2, 3, 6, 7)).taps
    assert torch.equal(taps[3].branch, 2 * taps[2].branch)
    assert torch.equal(taps[7].branch, 2 * taps[6].branch)
    assert torch.equal(taps[3].stream, taps[2].stream)


def test_registers_are_put_among_the_patches_before_the_layers():
    net = build(layout="MM")
    patches = net.partition(images())
    tokens = net.embed(patches)
    seen = net.encode(tokens, patches.coords, prefix=True, taps=(0,)).taps[0].stream  # the first stream is the input itself
    where = list(positions(3, 16))
    torch.testing.assert_close(seen[:, where], (net.registers.token + net.registers.pos).expand(2, -1, -1))
    torch.testing.assert_close(seen[:, [i for i in range(19) if i not in where]], tokens)


def test_embedding_equals_the_convolution_of_the_patch_weight():
    net = build().double()
    x = images(size=(32, 96)).double()
    net.set_input_size((32, 96))
    expected = net.patch_embed.proj(x).flatten(2).transpose(1, 2) + net.pos_embed
    torch.testing.assert_close(net.embed(net.partition(x)), expected)


def test_column_scan_is_row_scan_of_the_transposed_image_with_transposed_weights():
    rows, columns = build(img_size=(64, 32)).double(), build(img_size=(32, 64), scan="column").double()
    columns.load_state_dict(rows.state_dict())
    columns.pos_embed.data = rows.pos_embed.data.view(1, 4, 2, 48).transpose(1, 2).flatten(1, 2)
    columns.patch_embed.proj.weight.data = rows.patch_embed.proj.weight.data.transpose(2, 3)
    x = images(size=(64, 32)).double()
    by_rows, by_columns = rows.forward_features(x), columns.forward_features(x.transpose(2, 3))
    torch.testing.assert_close(by_columns[:, :3], by_rows[:, :3])
    torch.testing.assert_close(by_columns[:, 3:].unflatten(1, (2, 4)), by_rows[:, 3:].unflatten(1, (4, 2)).transpose(1, 2))


def test_any_rectangular_grid_runs_with_resampled_positions():
    net = build()
    for size in [(64, 64), (32, 96), (128, 16), (16, 64)]:
        assert net.forward_features(images(size=size)).shape == (2, 3 + size[0] * size[1] // 256, 48)


def test_changing_the_input_size_equals_resampling_at_run_time():
    net = build().double()
    x = images(size=(96, 32)).double()
    before = net(x)
    net.set_input_size((96, 32))
    assert net.grid == (6, 2)
    assert net.pos_embed.shape == (1, 12, 48)
    torch.testing.assert_close(net(x), before)
    assert "pos_embed" in net.no_weight_decay()


def test_a_causal_encoder_does_not_see_later_patches():
    net = build(num_registers=0, cls_reduce=1).double()
    patches = net.partition(images().double())
    tokens = net.embed(patches)
    changed = tokens.clone()
    changed[:, 9:] += 1
    a, b = (net.encode(t, patches.coords, causal=True).patches for t in (tokens, changed))
    torch.testing.assert_close(a[:, :9], b[:, :9])


def test_drop_path_rates_are_shifted_by_one_layer_and_absent_in_transformer_blocks():
    net = build(layout="MMMTMM", drop_path=0.4)
    rates = [block.drop_path for block in net.layers]
    assert rates == pytest.approx([0, 0, 0.1, 0, 0.2, 0.3])
    assert net.layers.final_drop_path == 0.4


def test_float64_models_stay_in_float64():
    net = build().double()
    assert net(images().double()).dtype == torch.float64


def test_layer_norm_variant_has_biases():
    names = build(norm_kind="layer").state_dict().keys()
    assert {"norm.bias", "layers.0.norm.bias", "head.norm.bias"} <= names
    assert not {"norm.bias", "layers.0.norm.bias", "head.norm.bias"} & build().state_dict().keys()


def test_kept_step_sizes_and_scaled_outputs():
    for layout in ("MMMT", "MMM"):
        net = build(layout=layout, init="keep_dt")
        for mixer in (m for m in net.modules() if isinstance(m, MambaMixer)):
            for direction in mixer.directions:
                assert direction.dt_proj.bias.min() >= -6.908
                assert direction.dt_proj.bias.max() <= -2.251
            assert mixer.out_proj.weight.abs().max() <= (96 * 3) ** -0.5


def test_released_initialisation_of_hybrid_networks_overwrites_the_step_sizes():
    net = build(init="released")
    for mixer in (m for m in net.modules() if isinstance(m, MambaMixer)):
        assert all(torch.equal(d.dt_proj.bias, torch.zeros(96)) for d in mixer.directions)
        bound = math.sqrt(6 / (96 + 48))
        assert 0.95 * bound < mixer.out_proj.weight.abs().max() <= bound


def test_released_initialisation_of_mamba_r_leaves_the_backward_bias_at_zero():
    net = build(layout="MMM", init="released")
    for mixer in (m for m in net.modules() if isinstance(m, MambaMixer)):
        forward, backward = mixer.directions
        assert -6.908 <= forward.dt_proj.bias.min() <= forward.dt_proj.bias.max() <= -2.251
        assert torch.equal(backward.dt_proj.bias, torch.zeros(96))
        assert mixer.out_proj.weight.abs().max() <= (96 * 3) ** -0.5


def test_patch_weights_and_positions_start_as_in_the_released_code():
    net = build(img_size=256)
    assert net.patch_embed.proj.weight.std().item() == pytest.approx(0.0410, rel=0.02)
    assert torch.equal(net.patch_embed.proj.bias, torch.zeros(48))
    assert net.pos_embed.std().item() == pytest.approx(0.02, rel=0.03)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"num_heads": 5}, "48 must be divisible by the number of heads, got num_heads=5; try 3, 4, 6"),
        ({"img_size": 70}, "multiple of the patch size 16, got 70x70; try 64x64"),
        ({"img_size": (64, 8)}, "got 64x8; try 64x16"),
        ({"layout": "MMXT"}, "string of M .* got 'MMXT'"),
        ({"layout": ""}, "string of M"),
        ({"num_registers": 16}, "16 registers need at least 17 patches"),
        ({"cls_reduce": 7}, "cls_reduce must divide the width 48, got 7"),
        ({"scan": "diagonal"}, "scan"),
        ({"outer_skip": "twice"}, "outer_skip"),
        ({"init": "zeros"}, "init"),
    ],
)
def test_impossible_networks_end_with_a_sentence(changes, sentence):
    with pytest.raises(UserError, match=sentence):
        build(**changes)


@pytest.mark.parametrize(
    ("shape", "sentence"),
    [((2, 3, 60, 64), "got 60x64; try 48x64"), ((2, 1, 64, 64), r"\(batch, 3, height, width\), got \(2, 1, 64, 64\)")],
)
def test_impossible_inputs_end_with_a_sentence(shape, sentence):
    with pytest.raises(UserError, match=sentence):
        build().forward_features(torch.zeros(shape))


def test_too_small_an_image_for_the_registers_is_refused():
    with pytest.raises(UserError, match="3 registers need at least 4 patches"):
        build()(images(size=(16, 16)))
