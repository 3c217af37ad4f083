"""VMamba against a second implementation of the whole network.

There is no recording of the official VMamba: nothing of it was run. What stands in its place is ``official`` below, which was
written from the published equations only, with the official names, channels first and one loop step per position; it shares no
line with the package. Equality with it, exact parameter totals of the released sizes and the round trip through the converter
are the evidence. They cannot show that the equations themselves were read correctly.
"""

from __future__ import annotations

import copy
import math
import subprocess
import sys

import pytest
import timm
import torch
import torch.nn.functional as F
from timm.models import group_parameters
from timm.optim import create_optimizer_v2
from torch import Tensor

from hybridmap.backbones import VMamba, create_backbone
from hybridmap.backbones.names import MODELS
from hybridmap.config import override
from hybridmap.convert import convert, load_checkpoint, origin_of
from hybridmap.convert.ours import write_ours
from hybridmap.errors import UserError
from hybridmap.objectives.map import MAP
from hybridmap.tasks.classification import Classification
from hybridmap.types import Batch, Mask

State = dict[str, Tensor]

WIDTH, DEPTHS, STATES, CLASSES = 8, (2, 1, 2, 1), 1, 5
SMALL = VMamba.Config(img_size=(64, 32), embed_dim=WIDTH, depths=DEPTHS, num_classes=CLASSES)


def official_shapes(
    width: int = WIDTH, depths: tuple[int, ...] = DEPTHS, states: int = STATES, ratio: int = 2, classes: int = CLASSES
) -> dict[str, tuple[int, ...]]:
    """Every tensor of an official file."""
    shapes: dict[str, tuple[int, ...]] = {}

    def affine(name: str, *weight: int) -> None:
        shapes[f"{name}.weight"], shapes[f"{name}.bias"] = weight, weight[:1]

    affine("patch_embed.0", width // 2, 3, 3, 3)
    affine("patch_embed.2", width // 2)
    affine("patch_embed.5", width, width // 2, 3, 3)
    affine("patch_embed.7", width)
    for s, depth in enumerate(depths):
        d = width * 2**s
        inner, rank = ratio * d, math.ceil(d / 16)
        for j in range(depth):
            block = f"layers.{s}.blocks.{j}"
            affine(f"{block}.norm", d)
            shapes[f"{block}.op.x_proj_weight"] = (4, rank + 2 * states, inner)
            shapes[f"{block}.op.A_logs"] = (4 * inner, states)
            shapes[f"{block}.op.Ds"] = (4 * inner,)
            shapes[f"{block}.op.dt_projs_weight"] = (4, inner, rank)
            shapes[f"{block}.op.dt_projs_bias"] = (4, inner)
            affine(f"{block}.op.out_norm", inner)
            shapes[f"{block}.op.in_proj.weight"] = (inner, d)
            shapes[f"{block}.op.conv2d.weight"] = (inner, 1, 3, 3)
            shapes[f"{block}.op.out_proj.weight"] = (d, inner)
            affine(f"{block}.norm2", d)
            affine(f"{block}.mlp.fc1", 4 * d, d)
            affine(f"{block}.mlp.fc2", d, 4 * d)
        if s < 3:
            affine(f"layers.{s}.downsample.1", 2 * d, d, 3, 3)
            affine(f"layers.{s}.downsample.3", 2 * d)
    affine("classifier.norm", 8 * width)
    affine("classifier.head", classes, 8 * width)
    return shapes


def official_state(**size) -> State:
    """Random weights by official names: every tensor matters, and step sizes differ from direction to direction."""
    generator = torch.Generator().manual_seed(3)
    state = {}
    for name, shape in official_shapes(**size).items():
        noise = torch.randn(shape, generator=generator, dtype=torch.float64)
        fan = math.prod(shape[1:]) if len(shape) > 1 else 1
        if name.endswith(("A_logs", "dt_projs_bias", ".bias")):
            state[name] = 0.5 * noise
        elif len(shape) == 1:  # norms and D
            state[name] = 1 + 0.3 * noise
        else:
            state[name] = noise * (shape[-1] if len(shape) == 3 else fan) ** -0.5
    return state


def images(size=(64, 32), batch=2):
    return torch.randn(batch, 3, *size, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


# The network, a second time


def official(state: State, x: Tensor) -> Tensor:
    """Images (B, 3, height, width) -> logits."""
    return official_head(state, official_stages(state, x)[-1])


def official_head(state: State, x: Tensor) -> Tensor:
    x = over_channels(x, state["classifier.norm.weight"], state["classifier.norm.bias"])
    return x.mean((2, 3)) @ state["classifier.head.weight"].T + state["classifier.head.bias"]


def official_stages(state: State, x: Tensor) -> list[Tensor]:
    """The map (B, d, h, w) behind the last block of each of the four stages."""
    x = F.conv2d(x, state["patch_embed.0.weight"], state["patch_embed.0.bias"], stride=2, padding=1)
    x = F.gelu(over_channels(x, state["patch_embed.2.weight"], state["patch_embed.2.bias"]))
    x = F.conv2d(x, state["patch_embed.5.weight"], state["patch_embed.5.bias"], stride=2, padding=1)
    x = over_channels(x, state["patch_embed.7.weight"], state["patch_embed.7.bias"])
    maps = []
    for s in range(4):
        j = 0
        while f"layers.{s}.blocks.{j}.norm.weight" in state:
            block = {k.removeprefix(f"layers.{s}.blocks.{j}."): v for k, v in state.items()}
            x = x + cross_scan(block, over_channels(x, block["norm.weight"], block["norm.bias"]))
            hidden = over_channels(x, block["norm2.weight"], block["norm2.bias"])
            hidden = F.gelu(pointwise(block["mlp.fc1.weight"], hidden) + block["mlp.fc1.bias"].view(1, -1, 1, 1))
            x = x + pointwise(block["mlp.fc2.weight"], hidden) + block["mlp.fc2.bias"].view(1, -1, 1, 1)
            j += 1
        maps.append(x)
        if s < 3:
            down = f"layers.{s}.downsample"
            x = F.conv2d(x, state[f"{down}.1.weight"], state[f"{down}.1.bias"], stride=2, padding=1)
            x = over_channels(x, state[f"{down}.3.weight"], state[f"{down}.3.bias"])
    return maps


def over_channels(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """LayerNorm over the channels of (B, C, h, w), eps 1e-5."""
    centred = x - x.mean(1, keepdim=True)
    normed = centred / (centred.square().mean(1, keepdim=True) + 1e-5).sqrt()
    return normed * weight.view(1, -1, 1, 1) + bias.view(1, -1, 1, 1)


def pointwise(weight: Tensor, x: Tensor) -> Tensor:
    """A linear map at every position."""
    return torch.einsum("oc,bchw->bohw", weight, x)


def cross_scan(p: State, u: Tensor) -> Tensor:
    """SS2D, variant v05_noz: four scans of (B, d, h, w), one step at a time."""
    inner, rank = p["op.dt_projs_weight"].shape[1:]
    states = p["op.A_logs"].shape[1]
    x = F.conv2d(pointwise(p["op.in_proj.weight"], u), p["op.conv2d.weight"], padding=1, groups=inner)
    x = x * torch.sigmoid(x)
    batch, _, height, width = x.shape
    row_major = [(i, j) for i in range(height) for j in range(width)]
    column_major = [(i, j) for j in range(width) for i in range(height)]
    total: dict[tuple[int, int], Tensor] = {}
    for k, path in enumerate((row_major, column_major, row_major[::-1], column_major[::-1])):
        A = -torch.exp(p["op.A_logs"][k * inner : (k + 1) * inner])
        D = p["op.Ds"][k * inner : (k + 1) * inner]
        h = torch.zeros(batch, inner, states, dtype=x.dtype)
        for i, j in path:
            c = x[:, :, i, j]
            projected = c @ p["op.x_proj_weight"][k].T
            delta, B, C = projected[:, :rank], projected[:, rank : rank + states], projected[:, rank + states :]
            step = torch.log1p(torch.exp(delta @ p["op.dt_projs_weight"][k].T + p["op.dt_projs_bias"][k]))
            h = torch.exp(step[:, :, None] * A) * h + (step * c)[:, :, None] * B[:, None, :]
            y = (h * C[:, None, :]).sum(2) + D * c
            total[i, j] = y if k == 0 else total[i, j] + y
    y = torch.stack([torch.stack([total[i, j] for j in range(width)], -1) for i in range(height)], -2)
    return pointwise(p["op.out_proj.weight"], over_channels(y, p["op.out_norm.weight"], p["op.out_norm.bias"]))


def loaded(state: State, **told) -> VMamba:
    converted = convert(state, **told)
    net = converted.config.build().double().eval()
    net.load_state_dict(converted.backbone, strict=True)
    return net


# Equality


@pytest.mark.parametrize(
    ("size", "pixels"),
    [({}, (64, 32)), ({"states": 3, "depths": (1, 1, 1, 1)}, (32, 64)), ({"ratio": 1, "width": 12}, (64, 32))],
)
def test_logits_and_gradients_are_those_of_the_second_implementation(size, pixels):
    state = {name: value.requires_grad_() for name, value in official_state(**size).items()}
    x = images(pixels).requires_grad_()
    expected = official(state, x)
    expected.square().sum().backward()
    by_official = {name: value.grad for name, value in state.items()}
    by_input, x.grad = x.grad, None

    detached = {name: value.detach() for name, value in state.items()}
    net = loaded(detached)
    logits = net(x)
    logits.square().sum().backward()
    torch.testing.assert_close(logits, expected, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(x.grad, by_input, rtol=1e-9, atol=1e-9)
    shapes = {name: tuple(value.shape) for name, value in state.items()}
    gradients = origin_of(detached).restore({name: p.grad for name, p in net.named_parameters()}, shapes)
    assert gradients.keys() == by_official.keys()
    for name, gradient in by_official.items():
        assert gradient.abs().max() > 0, name
        torch.testing.assert_close(gradients[name], gradient, rtol=1e-9, atol=1e-9, msg=lambda m, name=name: f"{name}: {m}")


def test_every_stage_returns_the_map_of_the_second_implementation():
    state = official_state()
    net, x = loaded(state), images()
    expected = official_stages(state, x)
    maps = net.forward_intermediates(x, intermediates_only=True)
    torch.testing.assert_close(maps, expected, rtol=1e-9, atol=1e-9)


def test_single_precision_agrees_with_the_second_implementation():
    state = official_state()
    net, x = loaded(state).float(), images()
    torch.testing.assert_close(net(x.float()).double(), official(state, x), rtol=1e-4, atol=1e-4)


# Conversion


def older(name: str) -> str:
    """The name that older official files use."""
    for new, old in ((".norm.", ".ln_1."), (".op.", ".self_attention.")):
        if name.startswith("layers."):
            name = name.replace(new, old)
    if name.startswith("classifier."):
        return name.removeprefix("classifier.")
    return name.replace("patch_embed.0.", "patch_embed.proj.").replace("patch_embed.2.", "patch_embed.norm.")


LINEAR = ("in_proj.weight", "out_proj.weight", "fc1.weight", "fc2.weight", "head.weight")


@pytest.mark.parametrize("names", ["new", "old"])
@pytest.mark.parametrize("matrices", ["2-D", "4-D"])
def test_every_form_of_an_official_file_loads_and_is_given_back(names, matrices):
    plain = official_state()
    state = {
        older(name) if names == "old" else name: (
            value[..., None, None] if matrices == "4-D" and name.endswith(LINEAR) else value
        )
        for name, value in plain.items()
    }
    assert len(state) == len(plain)
    origin = origin_of(state)
    assert origin.family == "vmamba"
    converted = origin.convert(state)
    assert not converted.report.dropped
    assert not converted.report.fresh
    restored = origin.restore(converted.weights, {name: tuple(value.shape) for name, value in state.items()})
    assert restored.keys() == state.keys()
    assert all(torch.equal(restored[name], state[name]) for name in state)
    x = images()
    torch.testing.assert_close(loaded(state)(x), loaded(plain)(x), rtol=0, atol=0)


def test_shapes_tell_the_whole_network():
    config = convert(official_state(width=12, depths=(1, 2, 1, 3), states=2, ratio=1, classes=4)).config
    assert config == VMamba.Config(img_size=(224, 224), embed_dim=12, depths=(1, 2, 1, 3), d_state=2, expand=1.0, num_classes=4)
    assert convert(official_state(), grid=(2, 3)).config.img_size == (64, 96)


def test_the_released_sizes_are_recognised_by_shapes_alone():
    for name, ratio in (("vmamba_tiny_224", 2), ("vmamba_tiny_s1l8_224", 1), ("vmamba_base_224", 2)):
        config = MODELS[name]
        shapes = official_shapes(config.embed_dim, config.depths, 1, ratio, 1000)
        state = {key: torch.empty(shape, device="meta") for key, shape in shapes.items()}
        converted = convert(state)
        assert converted.config == override(config, {"img_size": (224, 224), "drop_path": 0.0})
        with torch.device("meta"):
            net = converted.config.build()
        assert {key: value.shape for key, value in net.state_dict().items()} == {
            key: value.shape for key, value in converted.weights.items()
        }


def test_a_file_without_classifier_gives_a_network_without_one():
    state = {name: value for name, value in official_state().items() if not name.startswith("classifier.head")}
    converted = convert(state)
    assert set(converted.report.fresh) == {"head.fc.weight", "head.fc.bias"}
    assert converted.config.num_classes == 0
    converted.config.build().load_state_dict(converted.backbone, strict=True)


def test_other_generations_of_vmamba_are_refused_by_a_sentence():
    state = official_state()
    gated = {name: torch.cat([value, value]) if name.endswith("op.in_proj.weight") else value for name, value in state.items()}
    with pytest.raises(UserError, match=r"without a gate \(v05_noz\).* 16 channels .* got 32"):
        convert(gated)
    one_convolution = {name: value for name, value in state.items() if not name.startswith(("patch_embed.5", "patch_embed.7"))}
    with pytest.raises(UserError, match=r"4 of its tensors are missing: patch_embed\.5\.bias"):
        convert(one_convolution)
    wide = {
        name: torch.zeros(4, value.shape[1], 3) if name.endswith("dt_projs_weight") else value for name, value in state.items()
    }
    with pytest.raises(UserError, match=r"rank 1 .* got 3"):
        convert(wide)


# Initialisation and weight decay


def test_training_starts_as_the_official_code_does():
    net = override(SMALL, {"embed_dim": 32}).build()
    low, high = (math.log(math.expm1(step)) for step in (1e-3, 0.1))
    for name, p in net.named_parameters():
        module = net.get_submodule(name.rpartition(".")[0])
        if isinstance(module, torch.nn.Linear):
            expected = 0.02 if name.endswith("weight") else 0.0
            assert p.std().item() == pytest.approx(expected, rel=0.25), name
        elif name.endswith(("A_logs", ".bias")) and not isinstance(module, torch.nn.Conv2d):
            assert not p.any(), name  # one state: log 1
        elif name.endswith("Ds") or (name.endswith(".weight") and p.ndim == 1):
            assert torch.equal(p, torch.ones_like(p)), name
        elif name.endswith("dt_projs_bias"):
            assert low - 1e-4 < p.min() < p.max() < high + 1e-4, name
            assert p.std(1).min() > 0.5  # every direction
        elif name.endswith(("dt_projs_weight", "x_proj_weight")):
            bound = p.shape[-1] ** -0.5
            assert 0.9 * bound < p.abs().amax((1, 2)).min(), name
            assert p.abs().max() <= bound, name
        else:
            bound = (p.shape[1] * 9 if p.ndim == 4 else module.weight[0].numel()) ** -0.5
            assert isinstance(module, torch.nn.Conv2d), name
            assert p.abs().max() <= bound, name
    assert net.stages[0].blocks[0].mixer.Ds.numel() == 4 * 64
    several = override(SMALL, {"d_state": 3}).build().stages[0].blocks[0].mixer.A_logs
    torch.testing.assert_close(several, torch.tensor([1.0, 2.0, 3.0]).log().expand(64, 3))


def test_the_recurrence_of_every_direction_is_spared_from_decay():
    net = SMALL.build()
    spared = net.no_weight_decay()
    assert spared == {n for n, _ in net.named_parameters() if n.endswith((".A_logs", ".Ds", ".dt_projs_bias"))}
    assert len(spared) == 3 * sum(DEPTHS)
    assert net.no_weight_decay(decay_ssm_state=True) == set()
    assert copy.deepcopy(net).no_weight_decay() == spared


# The network as a backbone


def test_official_names_are_aliases():
    for alias, name in (("tiny_s2l5", "tiny_224"), ("small_s2l15", "small_224"), ("base_s2l15", "base_224")):
        with torch.device("meta"):
            assert create_backbone(f"vmamba_{alias}").config == MODELS[f"vmamba_{name}"]
            assert timm.create_model(f"vmamba_{alias}", num_classes=3).config.depths == MODELS[f"vmamba_{name}"].depths


def test_stages_halve_the_resolution_and_drop_path_rises_over_all_blocks():
    net = override(SMALL, {"drop_path": 0.5}).build()
    rates = [block.drop_path for stage in net.stages for block in stage.blocks]
    assert rates == pytest.approx([0.1 * i for i in range(6)])
    maps = net.forward_intermediates(images((96, 64)).float(), intermediates_only=True)
    assert [tuple(m.shape[1:]) for m in maps] == [(8, 24, 16), (16, 12, 8), (32, 6, 4), (64, 3, 2)]


@pytest.mark.parametrize("size", [(64, 32), (33, 65), (31, 40), (1, 3)])
def test_images_of_any_size_are_classified(size):
    state, x = official_state(), images(size)
    expected = official(state, x)
    assert expected.shape == (2, CLASSES)
    torch.testing.assert_close(loaded(state)(x), expected, rtol=1e-9, atol=1e-9)


def test_pretraining_encodes_visible_units_of_an_image_whose_masked_units_are_blank():
    state, x = official_state(), images((96, 64))
    net = loaded(state)
    masked = torch.tensor([[True, False, False, True, True, False], [False, True, True, False, False, True]])
    blank = x.clone()
    for b, row in enumerate(masked.tolist()):
        for unit, hidden in enumerate(row):
            if hidden:
                i, j = divmod(unit, 2)
                blank[b, :, 32 * i : 32 * (i + 1), 32 * j : 32 * (j + 1)] = 0
    last = official_stages(state, blank)[-1]
    normed = over_channels(last, state["classifier.norm.weight"], state["classifier.norm.bias"]).flatten(2).transpose(1, 2)
    features = net.encode_visible(net.partition(x), Mask.from_masked(masked))
    assert features.patches.shape == (2, 3, 64)
    torch.testing.assert_close(features.patches, normed[~masked].view(2, 3, 64), rtol=1e-9, atol=1e-9)


def test_the_encoder_of_an_objective_has_no_parameter_without_gradient():
    net = SMALL.encoder().build()
    net.encode_visible(net.partition(images().float()), None).patches.square().sum().backward()
    assert {name for name, p in net.named_parameters() if p.grad is None} == set()


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"embed_dim": 7}, "embed_dim must be even.* got 7; try 8"),
        ({"embed_dim": 0}, "embed_dim must be even.* got 0"),
        ({"depths": (1, 0, 1, 1)}, "depths must give every stage at least one block"),
        ({"depths": ()}, "depths"),
        ({"d_state": 0}, "a scan needs channels and states, got .* and 0 states"),
        ({"expand": 0.0}, "a scan needs channels and states, got 0 channels"),
        ({"mlp_ratio": 0.0}, "mlp_ratio must leave the MLP a hidden channel, got 0"),
        ({"patch_size": 16}, "patch_size must be 32"),
    ],
)
def test_impossible_networks_end_with_a_sentence(changes, sentence):
    with pytest.raises(UserError, match=sentence):
        override(SMALL, changes).build()


def test_impossible_images_end_with_a_sentence():
    net = SMALL.build()
    with pytest.raises(UserError, match=r"expected images of shape \(batch, 3, height, width\), got \(1, 1, 32, 32\)"):
        net(torch.zeros(1, 1, 32, 32))
    with pytest.raises(UserError, match="multiples of the patch size 32, got 40 x 32"):
        net.partition(torch.zeros(1, 3, 40, 32))


def test_an_official_file_is_read_converted_and_read_again(tmp_path):
    state = {name: value.float() for name, value in official_state().items()}
    torch.save({"model": {f"module.{name}": value for name, value in state.items()}}, tmp_path / "official.pth")
    first = load_checkpoint(tmp_path / "official.pth")
    write_ours(first, tmp_path / "ours.safetensors")
    again = load_checkpoint(tmp_path / "ours.safetensors")
    assert (again.family, again.config) == ("vmamba", first.config)
    net = again.config.build().eval()
    net.load_state_dict(again.backbone, strict=True)
    torch.testing.assert_close(net(images().float()).double(), official(state, images().float()).double(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("decoder_mask", ["map", "mae"])
def test_it_is_pretrained_and_its_weights_are_taken_over(decoder_mask):
    backbone = override(SMALL, {"img_size": 64})
    objective = MAP.Config(backbone=backbone, decoder_mask=decoder_mask).build()
    loss = objective(Batch(inputs=images((64, 64)).float(), key=torch.arange(2)))
    loss.total.backward()
    assert {name for name, p in objective.named_parameters() if p.requires_grad and p.grad is None} == set()
    task = Classification.Config(backbone=backbone, num_classes=3).build()
    report = task.initialise(objective.state_dict())
    assert set(report.fresh) == {"backbone.head.fc.weight", "backbone.head.fc.bias"}
    assert torch.equal(task.backbone.stages[3].blocks[0].mixer.A_logs, objective.backbone.stages[3].blocks[0].mixer.A_logs)


# timm's model contract


def create(**kwargs) -> VMamba:
    torch.manual_seed(0)
    small = {"embed_dim": 8, "depths": DEPTHS, "img_size": (64, 96), "drop_path_rate": 0.0}
    return timm.create_model("vmamba_tiny_224", **small | kwargs).eval()


X = images((64, 96)).float()


def test_features_and_head_compose_to_the_forward():
    net = create(num_classes=7, drop_rate=0.5)
    features = net.forward_features(X)
    assert features.shape == (2, net.num_features, *net.grid) == (2, 64, 2, 3)
    pooled = net.forward_head(features, pre_logits=True)
    torch.testing.assert_close(pooled, features.mean((2, 3)))
    torch.testing.assert_close(net(X), net.get_classifier()(pooled))
    torch.testing.assert_close(net.pooled(net.encode_visible(net.partition(X), None)), pooled)


def test_the_classifier_can_be_replaced_and_removed():
    net = create().double()
    net.reset_classifier(3)
    assert net.num_classes == net.config.num_classes == 3
    assert net.get_classifier().weight.dtype == torch.float64
    assert net.get_classifier().weight.std().item() == pytest.approx(0.02, rel=0.3)
    assert net(X.double()).shape == (2, 3)
    net.reset_classifier(0)
    assert net(X.double()).shape == (2, net.head_hidden_size) == (2, 64)


def test_features_only_gives_the_maps_of_stages():
    net = create(features_only=True, out_indices=(0, 2))
    maps = net(X)
    assert [tuple(m.shape) for m in maps] == [(2, 8, 16, 24), (2, 32, 4, 6)]
    assert (net.feature_info.channels(), net.feature_info.reduction()) == ([8, 32], [4, 16])
    expected = create().forward_intermediates(X, indices=[0, 2], intermediates_only=True)
    torch.testing.assert_close(list(maps), list(expected))


def test_the_last_intermediate_with_norm_is_the_final_feature():
    net = create()
    final, maps = net.forward_intermediates(X, norm=True)
    torch.testing.assert_close(final, net.forward_features(X))
    torch.testing.assert_close(maps[-1], final)
    tokens = net.forward_intermediates(X, indices=1, output_fmt="NLC", intermediates_only=True)
    torch.testing.assert_close(
        tokens[0], net.forward_intermediates(X, indices=1, intermediates_only=True)[0].flatten(2).transpose(1, 2)
    )


def test_layer_ids_count_the_blocks_of_all_stages():
    net = create()
    ids = net.layer_ids()
    assert ids.keys() == dict(net.named_parameters()).keys()
    assert ids["stem.conv1.weight"] == ids["stem.norm2.bias"] == 0
    assert ids["norm.weight"] == ids["head.fc.weight"] == sum(DEPTHS) + 1
    assert ids["stages.0.blocks.1.mixer.A_logs"] == ids["stages.0.downsample.conv.weight"] == 2
    assert ids["stages.3.blocks.0.mlp.fc1.weight"] == 6
    assert group_parameters(net, net.group_matcher(), reverse=True) == ids


def test_the_optimiser_of_timm_takes_the_model_with_layer_decay():
    net = create()
    optimiser = create_optimizer_v2(net, opt="adamw", lr=1.0, weight_decay=0.05, layer_decay=0.5)
    groups = {id(p): group for group in optimiser.param_groups for p in group["params"]}
    parameters = dict(net.named_parameters())
    assert groups[id(parameters["stem.conv1.weight"])]["lr_scale"] == 0.5 ** (sum(DEPTHS) + 1)
    decay = {name: groups[id(p)]["weight_decay"] for name, p in parameters.items()}
    kept = {name for name in parameters if decay[name] == 0}
    assert kept == {n for n, p in parameters.items() if p.ndim == 1 or n.endswith((".A_logs", ".dt_projs_bias"))}


def test_gradient_checkpointing_changes_no_number():
    net = create(num_classes=3, drop_path_rate=0.3).train()
    grads = []
    for enable in (False, True):
        net.set_grad_checkpointing(enable)
        torch.manual_seed(5)
        net.zero_grad()
        net(X).square().sum().backward()
        grads.append({n: p.grad.clone() for n, p in net.named_parameters()})
    torch.testing.assert_close(*grads, rtol=0, atol=0)


def test_size_and_channels_can_be_chosen():
    net = create(in_chans=4, num_classes=2)
    assert net(torch.zeros(1, 4, 32, 64)).shape == (1, 2)
    net.set_input_size((128, 32))
    assert net.grid == (4, 1)
    assert net.default_cfg["first_conv"] == "stem.conv1"
    assert net.get_submodule(net.default_cfg["first_conv"]).in_channels == 4
    assert net.get_submodule(net.default_cfg["classifier"]).out_features == 2


@pytest.mark.slow
def test_it_compiles_into_one_graph_and_exports_for_any_size(unchecked_environment):
    code = """
import torch
from hybridmap.backbones import VMamba
torch.manual_seed(0)
net = VMamba.Config(embed_dim=8, depths=(1, 1, 1, 1), num_classes=5).build()
x = torch.randn(2, 3, 64, 64)
compiled = torch.compile(net, backend="aot_eager", fullgraph=True)
gradients = [torch.autograd.grad(run(x).square().sum(), list(net.parameters())) for run in (compiled, net)]
torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-6)
rows, columns = (torch.export.Dim(name, min=2, max=8) for name in ("rows", "columns"))
exported = torch.export.export(net.eval(), (x,), dynamic_shapes=({2: 32 * rows, 3: 32 * columns},)).module()
wide = torch.randn(2, 3, 96, 160)
torch.testing.assert_close(exported(wide), net(wide))
"""
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True, env=unchecked_environment)
