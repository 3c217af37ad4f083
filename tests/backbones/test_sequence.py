"""timm's model contract, for every family at a small size."""

import copy

import pytest
import timm
import torch
from timm.data import resolve_model_data_config
from timm.models import group_parameters
from timm.optim import create_optimizer_v2

import hybridmap  # noqa: F401 (registers the names)
from hybridmap.backbones.sequence import check_images
from hybridmap.errors import UserError

SMALL = {
    "hybridnet_tiny_patch16_224": {"layout": "MMMTMT", "embed_dim": 24, "num_heads": 2, "num_registers": 2, "cls_reduce": 2},
    "mambar_tiny_patch16_224": {"layout": "MMMM", "embed_dim": 24, "num_registers": 2, "scan": "column"},
    "vim_tiny_patch16_224": {"depth": 4, "embed_dim": 24, "rope": True},
    "vim_small_patch16_224": {"depth": 4, "embed_dim": 24, "class_token": "double", "scan": "column", "mixer": "v1"},
    "vim_base_patch16_224": {"depth": 4, "embed_dim": 24, "class_token": "first", "mixer": "uni", "bidirectional_pairs": True},
    "mae_vit_base_patch16_224": {"depth": 4, "embed_dim": 24, "num_heads": 2},
    "mae_deit_tiny_patch16_224": {"depth": 4, "embed_dim": 24, "num_heads": 2},
    "arm_base_patch16_224": {"depth": 4, "embed_dim": 24},
}
NAMES = list(SMALL)
X = torch.randn(2, 3, 48, 64, generator=torch.Generator().manual_seed(0))


def create(name, **kwargs):
    torch.manual_seed(0)
    return timm.create_model(name, img_size=(48, 64), **SMALL[name], **kwargs).eval()


def depth(net):
    return len(net.layers)


@pytest.mark.parametrize("name", NAMES)
def test_features_and_head_compose_to_the_forward(name):
    net = create(name, num_classes=7)
    features = net.forward_features(X)
    assert features.shape == (2, net.num_prefix_tokens + 12, net.num_features)
    assert net.forward_head(features, pre_logits=True).shape == (2, net.head_hidden_size)
    torch.testing.assert_close(net(X), net.forward_head(features))
    assert net(X).shape == (2, 7)


@pytest.mark.parametrize("name", NAMES)
def test_no_classes_means_that_the_forward_returns_pooled_features(name):
    net = create(name, num_classes=0)
    assert isinstance(net.get_classifier(), torch.nn.Identity)
    torch.testing.assert_close(net(X), net.forward_head(net.forward_features(X), pre_logits=True))


@pytest.mark.parametrize("name", NAMES)
def test_the_classifier_can_be_replaced_and_removed(name):
    net = create(name).double()
    net.reset_classifier(3)
    assert net.num_classes == net.config.num_classes == 3
    assert net.get_classifier().weight.dtype == torch.float64
    assert net(X.double()).shape == (2, 3)
    net.reset_classifier(0)
    assert net(X.double()).shape == (2, net.head_hidden_size)


@pytest.mark.parametrize("name", NAMES)
def test_the_last_intermediate_with_norm_is_the_final_feature(name):
    net = create(name)
    final, layers = net.forward_intermediates(X, norm=net.norm_tokens)
    torch.testing.assert_close(final, net.forward_features(X))
    assert [tuple(y.shape) for y in layers] == [(2, 24, 3, 4)] * depth(net)
    torch.testing.assert_close(layers[-1].flatten(2).transpose(1, 2), final[:, net.num_prefix_tokens :])


@pytest.mark.parametrize("name", NAMES)
def test_intermediates_come_in_the_forms_of_timm(name):
    net = create(name)
    maps = net.forward_intermediates(X, indices=[1, -1], intermediates_only=True)
    tokens = net.forward_intermediates(X, indices=2, output_fmt="NLC", intermediates_only=True)
    torch.testing.assert_close(maps[1].flatten(2).transpose(1, 2), tokens[1])
    pairs = net.forward_intermediates(X, indices=[1], return_prefix_tokens=True, intermediates_only=True)
    torch.testing.assert_close(pairs[0][0], maps[0])
    assert pairs[0][1].shape == (2, net.num_prefix_tokens, 24)
    early = net.forward_intermediates(X, indices=[1], stop_early=True, intermediates_only=True)
    torch.testing.assert_close(early[0], maps[0])
    named = net.forward_intermediates(X, indices=[1], output_dict=True, return_prefix_tokens=True)
    assert named.keys() == {"image_intermediates", "image_intermediates_prefix", "image_features"}
    torch.testing.assert_close(named["image_features"], net.forward_features(X))


@pytest.mark.parametrize("name", NAMES)
def test_features_only_gives_maps_and_their_geometry(name):
    whole = create(name)
    net = create(name, features_only=True, out_indices=(0, 2))
    maps = net(X)
    assert [tuple(y.shape) for y in maps] == [(2, 24, 3, 4)] * 2
    assert net.feature_info.channels() == [24, 24]
    assert net.feature_info.reduction() == [16, 16]
    expected = whole.forward_intermediates(X, indices=[0, 2], intermediates_only=True)
    torch.testing.assert_close(list(maps), list(expected))
    assert len(net.model.layers) == 3


@pytest.mark.parametrize("name", NAMES)
def test_layer_ids_count_every_layer_in_execution_order(name):
    net = create(name)
    ids = net.layer_ids()
    assert ids.keys() == dict(net.named_parameters()).keys()
    assert ids["pos_embed"] == ids["patch_embed.proj.weight"] == 0
    assert ids["norm.weight"] == ids["head.fc.weight"] == depth(net) + 1
    for s in range(depth(net)):
        assert {i for n, i in ids.items() if n.startswith(f"layers.{s}.")} == {s + 1}


@pytest.mark.parametrize("name", NAMES)
def test_the_grouping_of_timm_agrees_with_the_layer_ids(name):
    net = create(name)
    assert group_parameters(net, net.group_matcher(), reverse=True) == net.layer_ids()
    coarse = group_parameters(net, net.group_matcher(coarse=True), reverse=True)
    assert {coarse[n] for n in net.layer_ids() if n.startswith("layers.")} == {1}
    assert coarse["head.fc.weight"] == 2


@pytest.mark.parametrize("name", NAMES)
def test_decay_is_spared_by_mark(name):
    net = create(name)
    spared = net.no_weight_decay()
    assert "pos_embed" in spared
    recurrence = {n for n, _ in net.named_parameters() if n.endswith((".A_log", ".D"))}
    assert recurrence <= spared
    assert not recurrence & net.no_weight_decay(decay_ssm_state=True)
    tokens = {n for n, _ in net.named_parameters() if n.startswith(("registers.", "cls_"))}
    assert spared == {"pos_embed"} | recurrence | tokens
    assert copy.deepcopy(net).no_weight_decay() == spared


@pytest.mark.parametrize("name", NAMES)
def test_the_optimiser_of_timm_takes_the_model_with_layer_decay(name):
    net = create(name)
    optimiser = create_optimizer_v2(net, opt="adamw", lr=1.0, weight_decay=0.05, layer_decay=0.5)
    scale = {id(p): group.get("lr_scale", 1.0) for group in optimiser.param_groups for p in group["params"]}
    parameters = dict(net.named_parameters())
    assert scale[id(parameters["head.fc.weight"])] == 1.0
    assert scale[id(parameters["pos_embed"])] == 0.5 ** (depth(net) + 1)


@pytest.mark.parametrize("name", NAMES)
def test_gradient_checkpointing_changes_no_number(name):
    net = create(name, num_classes=3, drop_path_rate=0.3).train()
    grads = []
    passes: list[list[int]] = []
    for s, block in enumerate(net.layers):
        block.register_forward_pre_hook(lambda module, inputs, s=s: passes[-1].append(s))
    for enable, every in ((False, 1), (True, 1), (True, 2)):
        net.set_grad_checkpointing(enable, every)
        passes.append([])
        torch.manual_seed(5)
        net.zero_grad()
        net(X).square().sum().backward()
        grads.append({n: p.grad.clone() for n, p in net.named_parameters()})
        again = range(0, len(net.layers), every) if enable else ()
        assert sorted(passes[-1]) == sorted([*range(len(net.layers)), *again])
    torch.testing.assert_close(grads[0], grads[1], rtol=0, atol=0)
    torch.testing.assert_close(grads[0], grads[2], rtol=0, atol=0)


@pytest.mark.parametrize("name", NAMES)
def test_a_state_dict_survives_the_round_trip(name):
    net, other = create(name), create(name, num_classes=1000)
    for p in net.parameters():
        p.data.normal_()
    other.load_state_dict(net.state_dict(), strict=True)
    torch.testing.assert_close(other(X), net(X))


@pytest.mark.parametrize("name", NAMES)
def test_the_patch_size_can_be_changed(name):
    net = create(name, num_classes=3)
    net.set_input_size((24, 32), patch_size=8)
    assert net.grid == (3, 4)
    assert net.config.patch_size == 8
    assert net(X[:, :, :24, :32]).shape == (2, 3)


def test_the_data_configuration_of_timm_is_found():
    net = create("hybridnet_tiny_patch16_224")
    assert resolve_model_data_config(net)["interpolation"] == "bicubic"
    assert net.default_cfg["classifier"] == "head.fc"
    assert net.default_cfg["first_conv"] == "patch_embed.proj"


def test_images_of_bytes_are_refused() -> None:
    with pytest.raises(UserError, match=r"normalised images in floating point, got torch\.uint8; try images\.float\(\) / 255"):
        check_images(torch.zeros(1, 3, 32, 32, dtype=torch.uint8), 3)
