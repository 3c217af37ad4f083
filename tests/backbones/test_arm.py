import pytest
import torch

from hybridmap.backbones import ARM, create_backbone
from hybridmap.backbones.arm import for_finetuning
from hybridmap.config import override
from hybridmap.errors import UserError
from hybridmap.layers import resample, sincos_2d
from hybridmap.types import Mask, Patches

SMALL = ARM.Config(img_size=(32, 48), patch_size=8, embed_dim=16, depth=3, num_classes=5)
ONE_WAY = ARM.Config(
    img_size=(32, 48),
    patch_size=8,
    embed_dim=16,
    depth=3,
    num_classes=0,
    directions=1,
    scan="cluster(2)",
    cls_token=False,
    positions="sincos",
)


def build(config=SMALL, **changes):
    return override(config, changes).build().double().eval()


def images(size=(32, 48), batch=2, seed=0):
    return torch.randn(batch, 3, *size, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def shaken(net):
    """Parameters of different sizes everywhere, so that nothing is equal by chance."""
    for p in net.parameters():
        p.data.add_(0.2 * torch.randn_like(p))
    return net


def like_forward(net):
    """All directions as the forward one."""
    for block in net.layers:
        first, *others = block.mixer.directions
        for direction in others:
            direction.load_state_dict(first.state_dict())
    return net


def walk(net, size):
    """Where the class token and the patches stand in the second walk of the mixers."""
    patches = net.partition(images(size))
    return net.layer_inputs(patches.coords, patches.grid)["across"][0].tolist()


def test_the_class_token_stands_in_the_middle_of_both_walks():
    net = build(img_size=32)
    assert walk(net, (32, 32)) == [0, 4, 9, 13, 1, 5, 10, 14, 8, 2, 6, 11, 15, 3, 7, 12, 16]
    assert walk(net, (16, 24)) == [0, 4, 1, 3, 5, 2, 6]
    assert walk(net, (24, 24)) == [0, 3, 7, 1, 4, 5, 8, 2, 6, 9]  # nine patches: four before the token
    sequence, has_prefix = net.insert_prefix(net.embed(net.partition(images((32, 32)))), prefix=False)
    assert has_prefix
    torch.testing.assert_close(sequence[:, 8], (net.cls_token + net.cls_pos)[:, 0].expand(2, -1))


def test_the_prefix_is_split_off_where_it_was_inserted():
    net = build()
    for count in (1, 2, 5, 24):
        tokens = torch.randn(2, count, 16, dtype=torch.float64)
        sequence, _ = net.insert_prefix(tokens, True)
        prefix, patches = net.split_prefix(sequence)
        assert torch.equal(patches, tokens)
        assert torch.equal(prefix, (net.cls_token + net.cls_pos).expand(2, -1, -1))


@pytest.mark.parametrize("grid", [(4, 4), (2, 6), (3, 4), (3, 3)])
def test_equal_directions_commute_with_transposing_the_grid(grid):
    rows, columns = grid
    size = (8 * rows, 8 * columns)
    net, turned = (like_forward(shaken(build(img_size=s, cls_token=rows * columns % 2 == 0))) for s in (size, size[::-1]))
    turned.load_state_dict(net.state_dict())
    turned.pos_embed.data = net.pos_embed.data.view(1, rows, columns, 16).transpose(1, 2).flatten(1, 2)
    turned.patch_embed.proj.weight.data = net.patch_embed.proj.weight.data.transpose(2, 3)
    x = images(size)
    straight, across = net.forward_features(x), turned.forward_features(x.transpose(2, 3))
    n = net.num_prefix_tokens
    torch.testing.assert_close(across[:, :n], straight[:, :n])
    torch.testing.assert_close(across[:, n:].unflatten(1, (columns, rows)), straight[:, n:].unflatten(1, grid).transpose(1, 2))


def test_different_directions_do_not_commute_with_transposing_the_grid():
    net = shaken(build(img_size=32))
    net.pos_embed.data.zero_()
    net.patch_embed.proj.weight.data = net.patch_embed.proj.weight.data + net.patch_embed.proj.weight.data.transpose(2, 3)
    x = images((32, 32))
    assert not torch.allclose(net.forward_features(x)[:, 0], net.forward_features(x.transpose(2, 3))[:, 0])


def test_the_network_is_plain_residual_layers_written_out():
    net = shaken(build())
    patches = net.partition(images())
    x, _ = net.insert_prefix(net.embed(patches), True)
    inputs = net.layer_inputs(patches.coords, patches.grid)
    for block in net.layers:
        x = x + block.mixer(block.norm1(x), **inputs)
        u = block.norm2(x)
        x = x + block.mlp.down(torch.nn.functional.silu(block.mlp.gate(u)) * block.mlp.up(u))
    x = torch.nn.functional.layer_norm(x, (16,), net.norm.weight, net.norm.bias, 1e-5)
    features = net.forward_features(images())
    torch.testing.assert_close(features, torch.cat([x[:, 12:13], x[:, :12], x[:, 13:]], 1))


@pytest.mark.parametrize(("width", "hidden"), [(768, 2048), (1024, 2730), (1536, 4096), (64, 170)])
def test_the_gated_mlp_has_two_thirds_of_four_times_the_width(width, hidden):
    with torch.device("meta"):
        mlp = ARM.Config(embed_dim=width, depth=1).build().layers[0].mlp
    assert mlp.gate.weight.shape == mlp.up.weight.shape == (hidden, width)


def test_the_mean_of_halves_or_the_class_token_is_read_out():
    net, token = build(), build(pool="cls")
    token.load_state_dict(net.state_dict())
    features = net.forward_features(images())
    halves = 0.5 * (features[:, 1:13].mean(1) + features[:, 13:].mean(1))
    torch.testing.assert_close(net.forward_head(features, pre_logits=True), halves)
    torch.testing.assert_close(halves, features[:, 1:].mean(1))  # an even number of patches
    torch.testing.assert_close(token.forward_head(features, pre_logits=True), features[:, 0])
    torch.testing.assert_close(net.pooled(net.encode_visible(net.partition(images()), None)), halves)
    odd = net.forward_features(images((24, 24)))
    expected = 0.5 * (odd[:, 1:5].mean(1) + odd[:, 5:].mean(1))
    torch.testing.assert_close(net.forward_head(odd, pre_logits=True), expected)
    single = net.forward_features(images((8, 8)))
    torch.testing.assert_close(net.forward_head(single, pre_logits=True), single[:, 1])


@pytest.mark.parametrize("pool", ["avg", "cls"])
@pytest.mark.parametrize("directions", [1, 4])
def test_every_parameter_gets_a_gradient(directions, pool):
    net = build(directions=directions, pool=pool)
    net(images()).square().sum().backward()
    assert {name for name, p in net.named_parameters() if p.grad is None} == set()


@pytest.mark.parametrize("config", [SMALL, ONE_WAY])
def test_the_encoder_of_objectives_has_no_parameter_without_gradient(config):
    net = config.encoder().build().double()
    mask = Mask.from_masked(torch.rand(2, 24).argsort(1) < 7)
    features = net.encode_visible(net.partition(images()), mask)
    assert features.patches.shape == (2, 17, 16)
    assert features.prefix.shape == (2, 0, 16)
    features.patches.square().sum().backward()
    assert {name for name, p in net.named_parameters() if p.grad is None and p.requires_grad} == set()


def test_masked_patches_are_left_out_of_both_walks():
    net = shaken(build())
    patches = net.partition(images())
    mask = Mask.from_masked(torch.rand(2, 24).argsort(1) < 7)
    together = net.encode_visible(patches, mask).patches
    for b in range(2):
        alone = Patches(
            content=patches.content[b : b + 1], coords=patches.coords[b : b + 1], source=patches.source[b : b + 1], grid=(4, 6)
        )
        torch.testing.assert_close(
            net.encode_visible(alone, Mask.from_masked(mask.masked[b : b + 1])).patches, together[b : b + 1]
        )
    changed = torch.where(mask.masked[..., None], patches.content + 1, patches.content)
    other = Patches(content=changed, coords=patches.coords, source=patches.source, grid=patches.grid)
    assert torch.equal(net.encode_visible(other, mask).patches, together)


def test_one_direction_over_clusters_sees_no_later_patch():
    net = shaken(build(ONE_WAY))
    patches = net.partition(images())
    assert patches.source[0, :8].tolist() == [0, 1, 6, 7, 2, 3, 8, 9]
    changed = patches.content.clone()
    changed[:, 12:] += 1
    other = Patches(content=changed, coords=patches.coords, source=patches.source, grid=patches.grid)
    before, after = (net.encode_visible(p, None).patches for p in (patches, other))
    assert torch.equal(before[:, :12], after[:, :12])
    assert not torch.isclose(before[:, 12:], after[:, 12:]).all(-1).any()


def test_features_come_row_by_row_whatever_the_scan():
    net = build(ONE_WAY)
    patches = net.partition(images())
    encoded = net.encode_visible(patches, None).patches
    final, layers = net.forward_intermediates(images(), norm=True)
    assert torch.equal(final, net.forward_features(images()))
    assert torch.equal(final[:, patches.source[0]], encoded)
    torch.testing.assert_close(layers[-1].flatten(2).transpose(1, 2), final)


def test_positions_of_pretraining_are_fixed_sines_in_raster_order():
    net = ONE_WAY.build()
    torch.testing.assert_close(net.pos_embed.data, sincos_2d(16, (4, 6)))
    assert not net.pos_embed.requires_grad
    patches = net.partition(images().float())
    empty = Patches(content=torch.zeros_like(patches.content), coords=patches.coords, source=patches.source, grid=patches.grid)
    torch.testing.assert_close(net.embed(empty)[0], sincos_2d(16, (4, 6))[0, patches.source[0]])
    net.set_input_size((32, 32))
    assert not net.pos_embed.requires_grad
    assert net.forward_features(images((32, 32)).float()).shape == (2, 16, 16)


def test_other_sizes_resample_the_patch_positions_only():
    net = shaken(build())
    x = images((64, 24))
    before = net(x)
    row = net.cls_pos.clone()
    net.set_input_size((64, 24))
    assert torch.equal(net.cls_pos, row)
    torch.testing.assert_close(net(x), before)


def test_drop_path_rates_are_shifted_by_one_layer():
    assert [block.drop_path for block in build(depth=4, drop_path=0.3).layers] == pytest.approx([0, 0, 0.1, 0.2])


def test_drop_path_acts_on_both_branches_of_a_layer():
    net = build(depth=3, drop_path=0.9).train()
    block = net.layers[2]
    block.drop_path = 1 - 1e-12  # every sample is dropped
    x = torch.randn(4, 6, 16, dtype=torch.float64)
    assert torch.equal(block(x, across=torch.arange(6)[None]), x)


def test_kept_step_sizes_in_all_directions_and_released_ones_in_the_first_alone():
    for init in ("keep_dt", "released"):
        for block in ARM.Config(img_size=32, embed_dim=32, depth=4, init=init).build().layers:
            first, *others = block.mixer.directions
            for direction in [first, *(others if init == "keep_dt" else ())]:
                assert -6.909 < direction.dt_proj.bias.min() <= direction.dt_proj.bias.max() < -2.251
            if init == "released":
                assert all(torch.equal(d.dt_proj.bias, torch.zeros(32)) for d in others)
            assert block.mixer.out_proj.weight.abs().max() <= (32 * 4) ** -0.5


def test_class_token_and_positions_are_not_decayed():
    spared = build().no_weight_decay(decay_ssm_state=True)
    assert spared == {"cls_token", "cls_pos", "pos_embed"}


def pretrained(**changes):
    return shaken(build(ONE_WAY, **changes)).state_dict()


def test_after_the_copy_all_directions_are_the_pretrained_one():
    weights = pretrained()
    found = for_finetuning(weights, SMALL)
    net = build()
    missing = net.load_state_dict(found, strict=False)
    assert not missing.unexpected_keys
    assert set(missing.missing_keys) == {"cls_token", "norm.weight", "norm.bias", "head.fc.weight", "head.fc.bias"}
    for s, block in enumerate(net.layers):
        for direction in block.mixer.directions:
            for name, value in direction.state_dict().items():
                assert torch.equal(value, weights[f"layers.{s}.mixer.dirs.fwd.{name}"])
        assert torch.equal(block.mlp.up.weight, weights[f"layers.{s}.mlp.up.weight"])
    assert torch.equal(net.cls_pos, torch.zeros_like(net.cls_pos))
    assert net.pos_embed.requires_grad
    copies = [found[f"layers.0.mixer.dirs.{d}.D"] for d in ("fwd", "bwd", "col_fwd", "col_bwd")]
    assert len({copy.data_ptr() for copy in copies}) == 4  # trained apart from here on


def test_the_copy_keeps_positions_of_the_same_grid_and_resamples_others():
    weights = pretrained()
    assert torch.equal(for_finetuning(weights, SMALL)["pos_embed"], weights["pos_embed"])
    weights = pretrained(img_size=96)
    found = for_finetuning(weights, override(SMALL, {"img_size": 112}))
    torch.testing.assert_close(found["pos_embed"], resample(weights["pos_embed"], (12, 12), (14, 14)))


@pytest.mark.parametrize(
    ("weights", "sentence"),
    [
        (lambda: build().state_dict(), "pretrained with one direction"),
        (lambda: {"cls_token": torch.zeros(1)}, "pretrained with one direction"),
        (lambda: pretrained(depth=2), r"layers\.2\..* is in only one of both \(19 such"),
        (lambda: pretrained(depth=4), r"layers\.3\..* is in only one"),
        (lambda: pretrained(embed_dim=32), r"is \(.*32.*\) there and \(.*16.*\) in the network"),
    ],
)
def test_weights_that_cannot_be_copied_end_with_a_sentence(weights, sentence):
    with pytest.raises(UserError, match=sentence):
        for_finetuning(weights(), SMALL)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"directions": 2}, "directions must be .*4, got 2"),
        ({"scan": "cluster"}, r"scan must be cluster\(k\), .*row or column, got 'cluster'"),
        ({"pool": "max"}, "pool must be .*cls, got 'max'"),
        ({"positions": "none"}, "positions must be .*sincos, got"),
        ({"init": "zeros"}, "init must be .*released, got"),
        ({"depth": 0}, "depth must be at least 1, got 0"),
        ({"scan": "column"}, "four directions go down the columns anyway"),
        ({"pool": "cls", "cls_token": False}, "cls_token is False"),
        ({"positions": "sincos", "embed_dim": 18}, "multiple of 4, got 18"),
        ({"img_size": 30}, "multiple of the patch size 8"),
    ],
)
def test_impossible_networks_end_with_a_sentence(changes, sentence):
    with pytest.raises(UserError, match=sentence):
        build(**changes)


def test_official_names_are_those_of_the_classifiers():
    with torch.device("meta"):
        net = create_backbone("arm_base_pz16", num_classes=10)
    assert (net.config.directions, net.config.cls_token, net.grid) == (4, True, (14, 14))
