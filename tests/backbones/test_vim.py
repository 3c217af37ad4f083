from dataclasses import replace

import pytest
import torch

from hybridmap.backbones import Vim, create_backbone
from hybridmap.backbones.vim import class_positions
from hybridmap.config import override
from hybridmap.convert.vim import VimClassifier
from hybridmap.errors import UserError
from hybridmap.layers import MambaMixer
from hybridmap.layers.pos_embed import resample
from hybridmap.objectives.decoder import MAPDecoder
from hybridmap.objectives.map import MAP
from hybridmap.tasks.classification import Classification
from hybridmap.types import Batch, Mask, Patches

SMALL = Vim.Config(img_size=64, embed_dim=24, depth=4, num_classes=5, d_state=4)

EVERY_KIND = [
    {},
    {"class_token": "first", "mixer": "uni", "norm_kind": "layer"},
    {"class_token": "double", "mixer": "v1"},
    {"class_token": "none", "divide": False},
    {"class_token": "none", "pool": "none"},
    {"class_token": "none", "pool": "all"},
    {"class_token": "none", "pool": "max", "layer_scale": 0.5},
    {
        "class_token": "none",
        "mixer": "uni",
        "bidirectional_pairs": True,
        "rope": True,
        "rope_residual": True,
        "positions": "none",
    },
    {"class_token": "middle", "rope": True},
    {"class_token": "double", "rope": True, "positions": "none", "scan": "column"},
    {"patch_size": 16, "stride": 8},
]


def build(**changes):
    torch.manual_seed(0)
    return override(SMALL, changes).build().eval()


def images(size=(64, 64), seed=0):
    return torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(seed))


def kind(changes):
    return ",".join(f"{name}={value}" for name, value in changes.items()) or "released"


@pytest.mark.parametrize("changes", EVERY_KIND, ids=kind)
def test_every_option_gives_logits_and_a_gradient_to_every_parameter(changes):
    net = build(**changes)
    logits = net(images())
    assert logits.shape == ((2, 16, 5) if changes.get("pool") == "all" else (2, 5))
    logits.square().sum().backward()
    assert {name for name, p in net.named_parameters() if p.grad is None} == set()


@pytest.mark.parametrize("changes", EVERY_KIND, ids=kind)
def test_any_size_and_aspect_ratio_runs_and_equals_a_network_set_to_it(changes):
    net = build(**changes).double()
    for size in [(64, 64), (32, 96), (128, 16), (16, 16)]:
        x = images(size).double()
        before = net(x)
        rows, columns = ((side - 16) // net.config.step + 1 for side in size)
        assert net.forward_features(x).shape == (2, net.num_prefix_tokens + rows * columns, 24)
        again = build(**changes).double()
        again.set_input_size(size)
        assert again.grid == (rows, columns)
        torch.testing.assert_close(again(x), before)


@pytest.mark.parametrize("changes", EVERY_KIND, ids=kind)
def test_the_encoder_of_objectives_has_no_class_token_and_no_parameter_without_gradient(changes):
    net = override(SMALL, changes).encoder().build()
    mask = Mask.from_masked(torch.arange(16).expand(2, 16) % 2 == 0)
    features = net.encode_visible(net.partition(images()), mask)
    assert features.patches.shape == (2, 8, 24)
    assert features.prefix.shape == (2, 0, 24)
    features.patches.square().sum().backward()
    assert {name for name, p in net.named_parameters() if p.grad is None} == set()


@pytest.mark.parametrize("changes", EVERY_KIND, ids=kind)
def test_masked_content_cannot_reach_the_encoder(changes):
    net = override(SMALL, changes).encoder().build().eval()
    patches, other = net.partition(images()), net.partition(images(seed=1))
    mask = Mask.from_masked(torch.arange(16).expand(2, 16) % 3 != 0)
    content = torch.where(mask.masked[..., None], other.content, patches.content)
    changed = Patches(content=content, coords=patches.coords, source=patches.source, grid=patches.grid)
    assert torch.equal(net.encode_visible(patches, mask).patches, net.encode_visible(changed, mask).patches)


@pytest.mark.parametrize("class_token", ["middle", "first", "double"])
@pytest.mark.parametrize("size", [(64, 64), (48, 80)])
def test_class_tokens_stand_where_the_table_says(class_token, size):
    net = build(class_token=class_token)
    patches = net.partition(images(size))
    tokens = net.embed(patches)
    seen = net.encode(tokens, patches.coords, taps=(0,)).taps[0].stream  # the first stream is the input itself
    where = class_positions(class_token, tokens.shape[1])
    own = torch.cat(net.class_tokens, dim=1) + net.cls_pos
    torch.testing.assert_close(seen[:, list(where)], own.expand(2, -1, -1))
    torch.testing.assert_close(seen[:, [i for i in range(seen.shape[1]) if i not in where]], tokens)
    prefix, rest = net.split_prefix(seen)
    torch.testing.assert_close(prefix, own.expand(2, -1, -1))
    torch.testing.assert_close(rest, tokens)


@pytest.mark.parametrize("changes", [{}, {"class_token": "double", "mixer": "v1"}], ids=kind)
def test_column_scan_is_row_scan_of_the_transposed_image_with_transposed_weights(changes):
    rows = build(img_size=(64, 32), **changes).double()
    columns = build(img_size=(32, 64), scan="column", **changes).double()
    columns.load_state_dict(rows.state_dict())
    columns.pos_embed.data = rows.pos_embed.data.view(1, 4, 2, 24).transpose(1, 2).flatten(1, 2)
    columns.patch_embed.proj.weight.data = rows.patch_embed.proj.weight.data.transpose(2, 3)
    x, n = images((64, 32)).double(), rows.num_prefix_tokens
    by_rows, by_columns = rows.forward_features(x), columns.forward_features(x.transpose(2, 3))
    torch.testing.assert_close(by_columns[:, :n], by_rows[:, :n])
    torch.testing.assert_close(by_columns[:, n:].unflatten(1, (2, 4)), by_rows[:, n:].unflatten(1, (4, 2)).transpose(1, 2))


def test_objectives_train_every_parameter_of_the_encoder():
    objective = MAP.Config(backbone=SMALL, decoder=MAPDecoder.Config(width=16, depth=1, num_heads=2)).build()
    objective(Batch(inputs=images(), key=torch.arange(2))).total.backward()
    assert {name for name, p in objective.named_parameters() if p.grad is None} == set()
    assert not any("cls" in name for name, _ in objective.named_parameters())


def test_positions_of_class_tokens():
    assert [class_positions("middle", n) for n in (196, 45, 729, 1)] == [(98,), (22,), (364,), (0,)]
    assert class_positions("double", 16) == (0, 17)


@pytest.mark.parametrize("class_token", ["middle", "double"])
def test_with_a_class_token_the_head_reads_it_alone(class_token):
    net = build(class_token=class_token, pool="none")
    features = net.forward_features(images())
    n = net.num_prefix_tokens
    torch.testing.assert_close(net.forward_head(features, pre_logits=True), features[:, :n].mean(1))
    torch.testing.assert_close(net.pooled(net.encode_visible(net.partition(images()), None)), features[:, :n].mean(1))


def test_without_a_class_token_the_head_reads_what_pool_says():
    nets = {pool: build(class_token="none", pool=pool) for pool in ("mean", "none", "all", "max")}
    features = nets["mean"].forward_features(images())
    each = nets["all"].head.fc(features)
    torch.testing.assert_close(nets["mean"](images()), nets["mean"].head.fc(features.mean(1)))
    torch.testing.assert_close(nets["none"](images()), each[:, -1])
    torch.testing.assert_close(nets["all"](images()), each)
    torch.testing.assert_close(nets["max"](images()), each.amax(1))
    torch.testing.assert_close(nets["max"].forward_head(features, pre_logits=True), features)
    nets["max"].reset_classifier(0)
    torch.testing.assert_close(nets["max"](images()), features)


def test_overlapping_patches_are_embedded_by_the_strided_convolution():
    net = build(img_size=(48, 80), stride=8).double()
    assert net.grid == (5, 9)
    assert net.patch_embed.grid_size == (5, 9)
    assert net.feature_info[0]["reduction"] == 8
    x = images((48, 80)).double()
    expected = net.patch_embed.proj(x).flatten(2).transpose(1, 2) + net.pos_embed
    torch.testing.assert_close(net.embed(net.partition(x)), expected)


def test_a_changed_patch_keeps_the_stride_that_was_asked_for():
    net = build(stride=8)
    net.set_input_size((64, 64), patch_size=8)
    assert net.grid == (8, 8)
    assert net.patch_embed.proj.stride == (8, 8)
    with pytest.raises(UserError, match="patches of 4 pixels cannot start every 8"):
        net.set_input_size((64, 64), patch_size=4)
    assert net.grid == (8, 8)


def test_pairs_that_share_their_weights_reverse_with_their_input():
    net = build(class_token="none", mixer="uni", bidirectional_pairs=True).double()
    for j in range(0, 4, 2):
        net.layers[j + 1].load_state_dict(net.layers[j].state_dict())
    tokens = torch.randn(2, 9, 24, dtype=torch.float64)
    forward, backward = (net.layers.finish(*net.layers(t)[:2], net.norm) for t in (tokens, tokens.flip(1)))
    torch.testing.assert_close(backward, forward.flip(1))


def test_with_silent_mixers_the_stream_doubles_at_every_pair():
    net = build(class_token="none", mixer="uni", bidirectional_pairs=True).double()
    for layer in net.layers:
        torch.nn.init.zeros_(layer.mixer.out_proj.weight)
    tokens = torch.randn(2, 9, 24, dtype=torch.float64)
    branch, stream, _ = net.layers(tokens)
    torch.testing.assert_close(net.layers.finish(branch, stream, None), 2**2 * tokens)


def test_single_layers_with_silent_mixers_hand_the_input_on():
    net = build(mixer="v1").double()
    for layer in net.layers:
        torch.nn.init.zeros_(layer.mixer.out_proj.weight)
    x = images().double()
    expected = net.norm(net.insert_prefix(net.embed(net.partition(x)), True)[0], None)[0]
    torch.testing.assert_close(net.forward_features(x), torch.cat(net.split_prefix(expected), dim=1))


def test_rotating_branch_and_stream_is_rotating_their_sum():
    net = build(depth=2, rope=True, rope_residual=True, positions="none", class_token="none").double()
    patches = net.partition(images().double())
    turn = net._turn(patches.coords, patches.grid)
    first = net.encode_visible(patches, None, taps=(0, 1)).taps
    torch.testing.assert_close(first[0].stream, turn(net.embed(patches)))
    torch.testing.assert_close(first[1].stream, turn(first[0].stream + first[0].branch))


@pytest.mark.parametrize("class_token", ["middle", "first", "double"])
def test_class_tokens_are_not_turned_and_patches_by_their_own_angle(class_token):
    net = build(rope=True, class_token=class_token)
    patches = net.partition(images())
    sequence, _ = net.insert_prefix(net.embed(patches), True)
    turned = net._turn(patches.coords, patches.grid)(sequence)
    (prefix, encoded), (own, tokens) = net.split_prefix(turned), net.split_prefix(sequence)
    assert torch.equal(prefix, own)
    torch.testing.assert_close(encoded, build(rope=True, class_token="none")._turn(patches.coords, patches.grid)(tokens))


def test_rotary_positions_leave_no_trace_in_the_state_dict():
    assert build(rope=True).state_dict().keys() == build().state_dict().keys()


def test_a_causal_encoder_does_not_see_later_patches():
    net = override(SMALL, {"rope": True}).encoder().build().double().eval()
    patches = net.partition(images().double())
    tokens = net.embed(patches)
    changed = tokens.clone()
    changed[:, 9:] += 1
    a, b = (net.encode(t, patches.coords, causal=True, grid=patches.grid).patches for t in (tokens, changed))
    torch.testing.assert_close(a[:, :9], b[:, :9])
    paired = build(class_token="none", mixer="uni", bidirectional_pairs=True)
    with pytest.raises(UserError, match="pairs read the tokens in both directions"):
        paired.encode(tokens.float(), patches.coords, causal=True)


def test_the_class_row_stays_when_positions_are_resampled():
    net = build()
    before, table = net.cls_pos.detach().clone(), net.pos_embed.detach().clone()
    net.set_input_size((128, 64))
    assert torch.equal(net.cls_pos, before)
    torch.testing.assert_close(net.pos_embed.data, resample(table, (4, 4), (8, 4)))


def test_the_official_table_at_another_size_keeps_its_class_row_in_the_middle():
    net = build()
    net.set_input_size((96, 96))
    shapes = {"cls_token": (1, 1, 24), "pos_embed": (1, 37, 24), "layers.0.norm.weight": (24,)}
    official = VimClassifier().restore(net.state_dict(), shapes)["pos_embed"]
    assert torch.equal(official[:, 18:19], net.cls_pos)
    assert torch.equal(torch.cat([official[:, :18], official[:, 19:]], 1), net.pos_embed)


def test_drop_path_rates_are_shifted_by_one_layer():
    net = build(drop_path=0.3)
    assert [block.drop_path for block in net.layers] == pytest.approx([0, 0, 0.1, 0.2])
    assert net.layers.final_drop_path == 0.3


@pytest.mark.parametrize("changes", [{}, {"mixer": "v1"}, {"mixer": "uni"}], ids=kind)
def test_released_and_kept_step_sizes(changes):
    for init in ("keep_dt", "released"):
        for mixer in (m for m in build(init=init, **changes).modules() if isinstance(m, MambaMixer)):
            forward, *backward = (direction.dt_proj.bias for direction in mixer.directions)
            assert -6.908 <= forward.min() <= forward.max() <= -2.251
            for bias in backward:
                kept = -6.908 <= bias.min() <= bias.max() <= -2.251
                assert kept if init == "keep_dt" else torch.equal(bias, torch.zeros(48))
            assert mixer.out_proj.weight.abs().max() <= (48 * 4) ** -0.5


def test_tokens_and_positions_are_never_decayed():
    spared = build(class_token="double").no_weight_decay(decay_ssm_state=True)
    assert spared == {"cls_token_head", "cls_token_tail", "cls_pos", "pos_embed"}
    assert build(class_token="none", positions="none").no_weight_decay(decay_ssm_state=True) == set()


@pytest.mark.parametrize("changes", EVERY_KIND, ids=kind)
def test_the_stream_stays_in_float32_under_autocast(changes):
    net = build(**changes)
    with torch.autocast("cpu", torch.bfloat16):
        taps = net.encode_visible(net.partition(images()), None, taps=range(4)).taps
    assert all(tap.stream.dtype == torch.float32 for tap in taps.values())


def test_pretrained_weights_are_fine_tuned_with_a_fresh_class_token_and_overlapping_patches():
    encoder = override(SMALL, {}).encoder().build()
    weights = {f"backbone.{name}": value for name, value in encoder.state_dict().items()} | {
        "decoder.norm.weight": torch.ones(1)
    }
    learner = Classification.Config(backbone=override(SMALL, {"stride": 8}), num_classes=3).build()
    report = learner.initialise(weights)
    assert set(report.fresh) == {f"backbone.{n}" for n in ("cls_token", "cls_pos", "head.fc.weight", "head.fc.bias")}
    torch.testing.assert_close(learner.backbone.pos_embed.data, resample(encoder.pos_embed.data, (4, 4), (7, 7)))
    assert torch.equal(learner.backbone.layers[2].mixer.in_proj.weight, encoder.layers[2].mixer.in_proj.weight)


def test_the_released_networks_are_found_by_their_official_names():
    with torch.device("meta"):
        net = create_backbone("vim_tiny_patch16_stride8_224_bimambav2_final_pool_mean_abs_pos_embed_with_midclstok_div2")
    assert (net.grid, net.embed_dim, len(net.layers), net.num_prefix_tokens) == ((27, 27), 192, 24, 1)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"class_token": "last"}, "class_token must be middle, first, double or none, got 'last'"),
        ({"pool": "avg"}, "pool must be mean, none, all or max, got 'avg'"),
        ({"pool": "max"}, "with a class token the head reads that alone"),
        ({"mixer": "v3"}, "mixer must be v2, v1 or uni, got 'v3'"),
        ({"positions": "sincos"}, "positions must be learned or none"),
        ({"scan": "diagonal"}, "scan must be row or column"),
        ({"norm_kind": "batch"}, "norm_kind must be rms or layer"),
        ({"init": "zeros"}, "init must be keep_dt or released"),
        ({"depth": 0}, "depth must be at least 1, got 0"),
        ({"depth": 3, "bidirectional_pairs": True}, "layers in pairs need an even depth, got 3; try 4"),
        ({"embed_dim": 18, "rope": True}, "multiple of 4, got 18; try 20"),
        ({"stride": 0}, "patches of 16 pixels cannot start every 0"),
        ({"stride": 17}, "patches of 16 pixels cannot start every 17"),
        ({"img_size": 70}, "multiple of the patch size 16, got 70x70; try 64x64"),
        ({"img_size": 70, "stride": 8}, "multiple of 8 above the patch size 16, got 70x70; try 64x64"),
    ],
)
def test_impossible_networks_end_with_a_sentence(changes, sentence):
    config = replace(SMALL)
    for name, value in changes.items():
        object.__setattr__(config, name, value)  # past the check of types, which is on in tests only
    with pytest.raises(UserError, match=sentence):
        config.build()


@pytest.mark.parametrize(
    ("shape", "sentence"),
    [
        ((2, 3, 60, 64), "multiple of 8 above the patch size 16, got 60x64; try 56x64"),
        ((2, 3, 8, 64), "got 8x64; try 16x64"),
        ((2, 1, 64, 64), r"\(batch, 3, height, width\), got \(2, 1, 64, 64\)"),
    ],
)
def test_impossible_inputs_end_with_a_sentence(shape, sentence):
    with pytest.raises(UserError, match=sentence):
        build(stride=8).forward_features(torch.zeros(shape))
