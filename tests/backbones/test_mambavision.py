"""MambaVision, and what all backbones of several resolutions share."""

from __future__ import annotations

from dataclasses import replace

import pytest
import timm
import torch
import torch.nn.functional as F
from timm.data import resolve_model_data_config
from timm.models import group_parameters
from timm.optim import create_optimizer_v2
from torch import Tensor, nn

from hybridmap.backbones import MambaVision
from hybridmap.backbones.mambavision import WindowStage
from hybridmap.config import override
from hybridmap.errors import UserError
from hybridmap.layers import Attention, MambaVisionMixer
from hybridmap.objectives.map import MAP
from hybridmap.ops import use_backend
from hybridmap.tasks.classification import Classification
from hybridmap.tasks.features import describe
from hybridmap.types import Batch, Mask, Patches

SMALL = MambaVision.Config(
    img_size=128, embed_dim=8, depths=(1, 1, 3, 2), stem_dim=6, num_heads=(2, 4), window_size=(4, 2), mlp_ratio=2, num_classes=5
)


def build(**changes):
    return override(SMALL, changes).build().eval()


def images(*size: int, batch: int = 2, seed: int = 0) -> Tensor:
    return torch.randn(batch, 3, *size, generator=torch.Generator().manual_seed(seed))


def lively(net: nn.Module) -> nn.Module:
    """The network with statistics and parameters that are not at their neutral initial values."""
    generator = torch.Generator().manual_seed(1)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.3, generator=generator)
            module.running_var.uniform_(0.5, 2, generator=generator)
    for name, p in net.named_parameters():
        if p.ndim == 1 and not name.endswith(".D"):
            p.data.add_(torch.randn(p.shape, generator=generator) * 0.2)
    return net


def mixed(masked: int, units: int, batch: int = 2) -> Mask:
    scores = torch.rand(batch, units, generator=torch.Generator().manual_seed(2))
    return Mask.from_masked(scores.argsort(1).argsort(1) < masked)


# The mixer


def plain_mixer(m: MambaVisionMixer, u: Tensor, bias: Tensor) -> Tensor:
    """The mixer on the standard recurrence, whose step sizes have the single bias ``bias``; written with torch's own parts."""
    x, z = F.linear(u, m.in_proj.weight).mT.chunk(2, 1)
    x, z = (F.silu(F.conv1d(v, c.weight, padding=1, groups=v.shape[1])).mT for v, c in ((x, m.conv_x), (z, m.conv_z)))
    delta, B, C = m.x_proj(x).split([m.dt_proj.in_features, 8, 8], -1)
    step, A = F.softplus(delta @ m.dt_proj.weight.mT + bias), -m.A_log.exp()
    h, ys = torch.zeros(*x.shape[::2], 8, dtype=u.dtype), []
    for t in range(u.shape[1]):
        h = (step[:, t, :, None] * A).exp() * h + (step[:, t] * x[:, t])[..., None] * B[:, t, None]
        ys.append((h * C[:, t, None]).sum(-1) + m.D * x[:, t])
    return m.out_proj(torch.cat([torch.stack(ys, 1), z], -1))


def test_the_bias_of_the_step_sizes_counts_twice() -> None:
    m = MambaVisionMixer(24).double()
    nn.init.normal_(m.dt_proj.bias)
    u = torch.randn(2, 7, 24, dtype=torch.float64)
    torch.testing.assert_close(m(u), plain_mixer(m, u, 2 * m.dt_proj.bias), rtol=1e-10, atol=1e-12)
    assert (m(u) - plain_mixer(m, u, m.dt_proj.bias)).abs().max() > 1e-4


@pytest.mark.parametrize("backend", ["torch", "cpu", "gpu"])
def test_every_kernel_computes_the_same_mixer(backend) -> None:
    if backend == "gpu":
        pytest.importorskip("triton", reason="triton is not installed")
    device = "cuda" if backend == "gpu" and torch.cuda.is_available() else "cpu"
    exact = MambaVisionMixer(8).double()
    m = MambaVisionMixer(8)
    m.load_state_dict(exact.state_dict())
    u = torch.randn(2, 5, 8, dtype=torch.float64)
    exact(u).square().sum().backward()
    with use_backend(backend):
        out = m.to(device)(u.to(device, torch.float32))
        out.square().sum().backward()
    torch.testing.assert_close(out.cpu().double(), exact(u), rtol=1e-4, atol=1e-5)
    ours = {name: p.grad.cpu().double() for name, p in m.named_parameters()}
    torch.testing.assert_close(ours, {name: p.grad for name, p in exact.named_parameters()}, rtol=1e-3, atol=1e-5)


def test_the_mixer_has_the_size_of_the_specification() -> None:
    m = MambaVisionMixer(96)
    shapes = {name: tuple(p.shape) for name, p in m.named_parameters()}
    assert shapes == {
        "in_proj.weight": (96, 96),
        "conv_x.weight": (48, 1, 3),
        "conv_z.weight": (48, 1, 3),
        "x_proj.weight": (6 + 16, 48),
        "dt_proj.weight": (48, 6),
        "dt_proj.bias": (48,),
        "A_log": (48, 8),
        "D": (48,),
        "out_proj.weight": (96, 96),
    }


def test_the_scanned_half_sees_one_token_ahead_and_the_other_half_its_neighbours_only() -> None:
    m = MambaVisionMixer(8).double()
    u = torch.randn(1, 9, 8, dtype=torch.float64, requires_grad=True)
    for half, seen in ((slice(0, 4), range(6)), (slice(4, 8), range(3, 6))):
        kept = torch.zeros(8, dtype=torch.float64)
        kept[half] = 1
        m.out_proj.weight.data = torch.diag(kept)
        (gradient,) = torch.autograd.grad(m(u)[0, 4].sum(), u)
        assert gradient[0].abs().sum(1).nonzero().flatten().tolist() == list(seen)


def test_fresh_step_sizes_lie_where_mamba_wants_them_although_their_bias_counts_twice() -> None:
    for mixer in (m for m in build().modules() if isinstance(m, MambaVisionMixer)):
        step = F.softplus(2 * mixer.dt_proj.bias)
        assert step.min() >= 0.999e-3
        assert step.max() <= 0.1001
    for mixer in (m for m in build(init="released").modules() if isinstance(m, MambaVisionMixer)):
        assert torch.equal(mixer.dt_proj.bias, torch.zeros_like(mixer.dt_proj.bias))


@pytest.mark.parametrize(("changes", "sentence"), [({"dim": 9}, "even, got 9; try 10"), ({"dim": 8, "d_conv": 4}, "try 5")])
def test_impossible_mixers_end_with_a_sentence(changes, sentence) -> None:
    with pytest.raises(UserError, match=sentence):
        MambaVisionMixer(**changes)


# The network


def test_the_larger_half_of_a_stage_scans_and_the_rest_attends() -> None:
    net = build(depths=(1, 1, 5, 2))
    kinds = ["".join("A" if isinstance(block.mixer, Attention) else "M" for block in net.stages[s].blocks) for s in (2, 3)]
    assert kinds == ["MMMAA", "MA"]


def test_epsilons_and_activations_are_those_of_the_specification() -> None:
    net = build()
    assert [m.eps for m in net.stem if isinstance(m, nn.BatchNorm2d)] == [1e-4, 1e-4]
    others = [m for part in (net.stages, net.norm) for m in part.modules() if isinstance(m, nn.BatchNorm2d | nn.LayerNorm)]
    assert {m.eps for m in others} == {1e-5}
    convolutions = {name: m.bias is not None for name, m in net.named_modules() if isinstance(m, nn.Conv2d)}
    assert all(biased == (".blocks." in name) for name, biased in convolutions.items())


def test_drop_path_grows_linearly_over_all_blocks_of_all_stages() -> None:
    net = build(drop_path=0.6)
    rates = [block.drop_path for stage in net.stages for block in stage.blocks]
    assert rates == pytest.approx([0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6])


@pytest.mark.parametrize("size", [(128, 128), (96, 160), (70, 99), (1, 1), (33, 31), (64, 257)])
def test_images_of_any_size_and_shape_run(size) -> None:
    net = build()
    rows, columns = (-(-side // 32) for side in size)
    assert net.forward_features(images(*size)).shape == (2, 64, rows, columns)
    assert net(images(*size)).shape == (2, 5)


def test_windows_that_fit_are_independent_and_row_by_row() -> None:
    seen: list[Tensor] = []
    look = nn.Identity()
    look.register_forward_hook(lambda module, inputs, output: seen.append(output))
    stage = WindowStage([look], None, 2)
    x = torch.arange(2 * 3 * 4 * 6.0).view(2, 3, 4, 6)
    assert torch.equal(stage.mix(x), x)
    assert seen[0].shape == (2 * 6, 4, 3)
    assert torch.equal(seen[0][4], x[0, :, 2:4, 2:4].flatten(1).T)  # image 0, window row 1, window column 1
    assert torch.equal(seen[0][6 + 2], x[1, :, :2, 4:].flatten(1).T)


def test_maps_are_padded_at_the_right_and_at_the_bottom_and_cropped() -> None:
    seen: list[Tensor] = []

    class Count(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            seen.append(x)
            return x + 1

    stage = WindowStage([Count(), Count()], None, 3)
    x = torch.rand(1, 2, 4, 5) + 1
    assert torch.equal(stage.mix(x), x + 2)
    assert seen[0].shape == (4, 9, 2)
    inside = seen[0].view(2, 2, 3, 3, 2).permute(0, 2, 1, 3, 4).reshape(6, 6, 2)
    assert torch.equal(inside[:4, :5], x[0].permute(1, 2, 0))
    assert not inside[4:].any()
    assert not inside[:, 5:].any()
    assert torch.equal(seen[1], seen[0] + 1)  # the padding goes through all blocks of the stage


def test_padding_takes_part_in_the_stage() -> None:
    """Nothing masks it: a map of 3 x 3 in a window of 4 differs from the same map in a window of 3."""
    net, other = build(window_size=(4, 2)), build(window_size=(3, 2))
    other.load_state_dict(net.state_dict())
    x = images(48, 48)
    assert not torch.allclose(lively(net).forward_features(x), lively(other).forward_features(x))


def test_windows_do_not_see_each_other() -> None:
    stage = build().stages[2]
    x = torch.randn(1, 32, 8, 8)
    changed = x.clone()
    changed[..., 4:, 4:] = 0
    y, z = stage.mix(x), stage.mix(changed)
    assert torch.equal(y[..., :4, :], z[..., :4, :])
    assert torch.equal(y[..., 4:, :4], z[..., 4:, :4])
    assert (y - z)[..., 4:, 4:].abs().min() > 0


def test_scales_start_at_their_value_and_act_on_their_branch() -> None:
    net = build(layer_scale=0.5, conv_layer_scale=0.25)
    gammas = {name: p for name, p in net.named_parameters() if name.endswith("gamma")}
    assert {p.unique().item() for name, p in gammas.items() if ".scale." in name} == {0.25}
    assert {p.unique().item() for name, p in gammas.items() if ".scale." not in name} == {0.5}
    assert len(gammas) == 2 + 2 * 5
    for p in gammas.values():
        p.data.zero_()
    for stage in net.stages:
        width = stage.blocks[0].norm1.weight.shape[0]
        x = torch.randn(1, width, 4, 4)
        assert torch.equal(stage.mix(x), x)


def test_queries_and_keys_can_be_normalised_per_head() -> None:
    net = build(qk_norm=True)
    attention = [m for m in net.modules() if isinstance(m, Attention)]
    assert {m.q_norm.weight.shape[0] for m in attention} == {16}
    x = torch.randn(1, 4, 32)
    before = attention[0](x)
    attention[0].qkv.weight.data[:32] *= 7  # queries: their length no longer matters
    torch.testing.assert_close(attention[0](x), before, rtol=1e-3, atol=1e-4)
    assert isinstance(build().stages[2].blocks[2].mixer.q_norm, nn.Identity)


def test_every_parameter_gets_a_gradient() -> None:
    net = build(layer_scale=0.1, conv_layer_scale=0.1, qk_norm=True).train()
    net(images(70, 99)).square().sum().backward()
    assert {name for name, p in net.named_parameters() if p.grad is None} == set()


def test_float64_stays_float64_and_autocast_gives_finite_numbers() -> None:
    assert build().double()(images(64, 64).double()).dtype == torch.float64
    net = build().train()
    with torch.autocast("cpu", torch.bfloat16):
        out = net(images(64, 96))
    assert out.dtype == torch.bfloat16
    out.float().square().sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in net.parameters())


# Pretraining


def test_units_are_as_large_as_a_position_of_the_final_map() -> None:
    net = build()
    patches = net.partition(images(96, 160))
    assert (patches.grid, patches.content.shape) == ((3, 5), (2, 15, 32 * 32 * 3))
    assert net.grid == (4, 4)


@pytest.mark.parametrize("training", [False, True])
def test_masked_units_cannot_reach_the_visible_features(training) -> None:
    net = lively(build()).train(training)
    mask = mixed(7, 15)
    patches, other = net.partition(images(96, 160)), net.partition(images(96, 160, seed=1))
    content = torch.where(mask.masked[..., None], other.content, patches.content)
    changed = replace(patches, content=content)
    assert torch.equal(net.encode_visible(patches, mask).patches, net.encode_visible(changed, mask).patches)
    assert not torch.equal(net.encode_visible(patches, None).patches, net.encode_visible(changed, None).patches)


def test_masked_units_are_blank_before_the_stem() -> None:
    net = build()
    entered: list[Tensor] = []
    net.stem.register_forward_pre_hook(lambda module, inputs: entered.append(inputs[0]))
    x, mask = images(64, 96), mixed(2, 6)
    net.encode_visible(net.partition(x), mask)
    blank = mask.masked.view(2, 1, 2, 3).repeat_interleave(32, 2).repeat_interleave(32, 3)
    assert torch.equal(entered[0], x.masked_fill(blank, 0))


def test_visible_features_are_those_of_the_dense_run() -> None:
    net = lively(build())
    x, mask = images(64, 96), mixed(2, 6)
    patches = net.partition(x)
    blank = mask.masked.view(2, 1, 2, 3).repeat_interleave(32, 2).repeat_interleave(32, 3)
    dense = net.forward_features(x.masked_fill(blank, 0)).flatten(2).transpose(1, 2)
    features = net.encode_visible(patches, mask)
    assert features.patches.shape == (2, 4, 64)
    assert features.prefix.shape == (2, 0, 64)
    for b in range(2):
        torch.testing.assert_close(features.patches[b], dense[b, mask.visible[b]])


def test_the_order_of_the_units_is_that_of_the_patches() -> None:
    net = lively(build())
    patches = net.partition(images(64, 96))
    order = torch.tensor([4, 1, 5, 0, 3, 2]).expand(2, 6)
    shuffled = Patches(
        content=patches.content[:, order[0]], coords=patches.coords[:, order[0]], source=order, grid=patches.grid
    )
    plain, other = (net.encode_visible(p, None).patches for p in (patches, shuffled))
    torch.testing.assert_close(other, plain[:, order[0]])


def test_taps_are_the_maps_of_stages_before_downsampling() -> None:
    net = build()
    x = images(64, 96)
    taps = net.encode_visible(net.partition(x), None, taps=(0, 2)).taps
    maps = net.forward_intermediates(x, indices=[0, 2], intermediates_only=True)
    for tap, y in zip((taps[0], taps[2]), maps, strict=True):
        assert tap.stream is None
        torch.testing.assert_close(tap.branch, y.flatten(2).transpose(1, 2))


@pytest.mark.parametrize("decoder_mask", ["map", "mae"])
def test_an_objective_trains_every_parameter_and_its_weights_transfer(decoder_mask) -> None:
    objective = MAP.Config(backbone=SMALL, decoder_mask=decoder_mask).build()
    loss = objective(Batch(inputs=images(128, 128), key=torch.arange(2)))
    loss.total.backward()
    assert {name for name, p in objective.named_parameters() if p.grad is None} == set()
    task = Classification.Config(backbone=SMALL, num_classes=3).build()
    report = task.initialise(objective.state_dict())
    assert set(report.fresh) == {"backbone.head.fc.weight", "backbone.head.fc.bias"}
    state = objective.backbone.state_dict()
    assert state.keys() - task.backbone.state_dict().keys() == {"mask_token"}
    for name, value in state.items():
        assert name == "mask_token" or torch.equal(task.backbone.state_dict()[name], value)
    assert task(Batch(inputs=images(128, 128), key=torch.arange(2), labels=torch.tensor([0, 2]))).total.isfinite()


def test_an_image_is_described_by_the_mean_of_its_map() -> None:
    net = build(num_classes=0)
    x = images(64, 96)
    torch.testing.assert_close(describe(net, x), net(x))


# timm's contract


def create(**kwargs):
    fields = {
        name: getattr(SMALL, name) for name in ("embed_dim", "depths", "stem_dim", "num_heads", "window_size", "mlp_ratio")
    }
    return timm.create_model("mambavision_tiny_224", img_size=64, **fields, **kwargs).eval()


def test_features_and_head_compose_to_the_forward() -> None:
    net = create(num_classes=7)
    x = images(64, 64)
    features = net.forward_features(x)
    assert features.shape == (2, net.num_features, *net.grid)
    assert net.forward_head(features, pre_logits=True).shape == (2, net.head_hidden_size)
    torch.testing.assert_close(net(x), net.forward_head(features))
    assert isinstance(create(num_classes=0).get_classifier(), nn.Identity)


def test_the_classifier_can_be_replaced_and_removed() -> None:
    net = create().double()
    net.reset_classifier(3)
    assert net.num_classes == net.config.num_classes == 3
    assert net(images(64, 64).double()).shape == (2, 3)
    net.reset_classifier(0, global_pool="avg")
    assert net(images(64, 64).double()).shape == (2, 64)
    with pytest.raises(UserError, match="no pooling 'max'"):
        net.reset_classifier(3, global_pool="max")


def test_intermediates_are_the_maps_of_the_stages() -> None:
    net = lively(create())
    x = images(70, 99)
    final, maps = net.forward_intermediates(x)
    torch.testing.assert_close(final, net.forward_features(x))
    assert [tuple(y.shape) for y in maps] == [(2, 8, 18, 25), (2, 16, 9, 13), (2, 32, 5, 7), (2, 64, 3, 4)]
    torch.testing.assert_close(net.norm(maps[-1]), final)
    normed = net.forward_intermediates(x, indices=[-1], norm=True, intermediates_only=True)
    torch.testing.assert_close(normed[0], final)
    tokens = net.forward_intermediates(x, indices=2, output_fmt="NLC", intermediates_only=True)
    torch.testing.assert_close(tokens[0], maps[2].flatten(2).transpose(1, 2))
    early = net.forward_intermediates(x, indices=[1], stop_early=True, intermediates_only=True)
    torch.testing.assert_close(early[0], maps[1])


def test_features_only_gives_a_pyramid_and_its_geometry() -> None:
    net = create(features_only=True)
    assert net.feature_info.channels() == [8, 16, 32, 64]
    assert net.feature_info.reduction() == [4, 8, 16, 32]
    assert [tuple(y.shape[1:]) for y in net(images(96, 64))] == [(8, 24, 16), (16, 12, 8), (32, 6, 4), (64, 3, 2)]
    whole, part = create(), create(features_only=True, out_indices=(0, 2))
    part.model.load_state_dict(whole.state_dict(), strict=False)
    torch.testing.assert_close(
        part(images(64, 64)), whole.forward_intermediates(images(64, 64), [0, 2], intermediates_only=True)
    )
    assert len(part.model.stages) == 3
    assert part.model.stages[2].downsample is None
    assert not any(name.startswith(("norm", "head")) for name, _ in part.model.named_parameters())


def test_depth_counts_the_blocks_of_all_stages_and_timm_agrees() -> None:
    net = create(layer_scale=0.1)
    ids = net.layer_ids()
    assert ids["stem.0.weight"] == 0
    assert ids["stages.0.blocks.0.conv1.weight"] == 1
    assert ids["stages.1.downsample.weight"] == ids["stages.1.blocks.0.conv1.weight"] == 2
    assert ids["stages.3.blocks.1.mlp.fc1.weight"] == 7
    assert ids["norm.weight"] == ids["head.fc.bias"] == 8
    assert group_parameters(net, net.group_matcher(), reverse=True) == ids
    coarse = group_parameters(net, net.group_matcher(coarse=True), reverse=True)
    assert {coarse[name] for name in ids if name.startswith("stages.2.")} == {3}
    optimiser = create_optimizer_v2(net, opt="adamw", lr=1.0, weight_decay=0.05, layer_decay=0.5)
    scale = {id(p): group.get("lr_scale", 1.0) for group in optimiser.param_groups for p in group["params"]}
    assert scale[id(net.stem[0].weight)] == 0.5**8


def test_the_recurrence_is_spared_from_decay_by_mark() -> None:
    net = create()
    recurrence = {name for name, _ in net.named_parameters() if name.endswith((".A_log", ".D"))}
    assert len(recurrence) == 6
    assert net.no_weight_decay() == recurrence
    assert net.no_weight_decay(decay_ssm_state=True) == set()


def test_gradient_checkpointing_changes_no_gradient_and_no_running_statistic() -> None:
    results = []
    state = create(num_classes=3, drop_path_rate=0.3, layer_scale=0.1).state_dict()
    for enable in (False, True):
        net = create(num_classes=3, drop_path_rate=0.3, layer_scale=0.1).train()
        net.load_state_dict(state)
        net.set_grad_checkpointing(enable)
        torch.manual_seed(5)
        net(images(64, 64)).square().sum().backward()
        results.append(({n: p.grad for n, p in net.named_parameters()}, dict(net.named_buffers())))
    torch.testing.assert_close(*results, rtol=0, atol=0)
    assert results[1][1]["stages.0.blocks.0.norm1.num_batches_tracked"] == 1


def test_the_input_size_only_changes_what_the_grid_says() -> None:
    net = create()
    x = images(96, 40)
    before = net(x)
    net.set_input_size((96, 40))
    assert net.grid == (3, 2)
    assert torch.equal(net(x), before)
    net.set_input_size(patch_size=32)
    with pytest.raises(UserError, match="patch_size must be 32, the stride of the last of 4 stages, got 16"):
        net.set_input_size(patch_size=16)


def test_the_data_configuration_of_timm_is_found() -> None:
    with torch.device("meta"):
        nets = {name: timm.create_model(name) for name in ("mambavision_tiny_224", "mamba_vision_T2", "mambavision_small_224")}
    assert [resolve_model_data_config(net)["crop_pct"] for net in nets.values()] == [1.0, 0.98, 0.93]
    assert {net.default_cfg["first_conv"] for net in nets.values()} == {"stem.0"}
    assert {net.default_cfg["classifier"] for net in nets.values()} == {"head.fc"}


# Bad input


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"num_heads": (3, 4)}, "32 must be divisible by the number of heads, got num_heads=3; try 1, 2, 4"),
        ({"patch_size": 16}, "patch_size must be 32"),
        ({"depths": (1, 1, 2)}, r"four stages, got depths=\(1, 1, 2\)"),
        ({"depths": (1, 0, 2, 2)}, "at least one block"),
        ({"window_size": (0, 2)}, "at least one position"),
        ({"img_size": 0}, "got 0x0; try 1x1"),
        ({"init": "zeros"}, "init must be"),
    ],
)
def test_impossible_networks_end_with_a_sentence(changes, sentence) -> None:
    with pytest.raises(UserError, match=sentence):
        build(**changes)


def test_impossible_inputs_end_with_a_sentence() -> None:
    net = build()
    with pytest.raises(UserError, match=r"\(batch, 3, height, width\), got \(2, 1, 64, 64\)"):
        net(torch.zeros(2, 1, 64, 64))
    with pytest.raises(UserError, match=r"got \(2, 3, 0, 64\)"):
        net(torch.zeros(2, 3, 0, 64))
    with pytest.raises(UserError, match="multiples of the patch size 32, got 70 x 99; try 64 x 96"):
        net.partition(images(70, 99))
    with pytest.raises(UserError, match="output_fmt must be NCHW or NLC"):
        net.forward_intermediates(images(64, 64), output_fmt="NHWC")


def test_what_a_network_of_several_resolutions_cannot_do_is_said() -> None:
    net = build()
    patches = net.partition(images(64, 64))
    with pytest.raises(UserError, match="MambaVision cannot encode causally"):
        net.encode_visible(patches, None, causal=True)
    with pytest.raises(UserError, match="taps must be stage numbers from 0 to 3, got"):
        net.encode_visible(patches, None, taps=(4,))
    with pytest.raises(UserError, match="MambaVision works on whole images"):
        net.embed(patches)
    with pytest.raises(UserError, match="call encode_visible"):
        net.encode(torch.zeros(2, 4, 64), patches.coords)
