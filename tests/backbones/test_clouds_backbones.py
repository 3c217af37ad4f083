"""Backbones for clouds of points: sizes as the official code's, samples that do not depend on each other, order, bad input."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from hybridmap import ops
from hybridmap.backbones.cloud import CloudBackbone
from hybridmap.backbones.hybrid3d import HybridNet3D
from hybridmap.backbones.point_mamba import PointMamba
from hybridmap.backbones.point_transformer import PointTransformer
from hybridmap.errors import UserError
from hybridmap.layers.block import TransformerBlock
from hybridmap.layers.channel_scan import ChannelScanMixer
from hybridmap.layers.local_norm import LocalNormPool
from hybridmap.layers.patch_net import PatchNet
from hybridmap.tokens.clouds import curve_order, partition
from hybridmap.types import Mask

NETWORKS: dict[str, CloudBackbone.Config] = {
    "hybrid": HybridNet3D.Config(),
    "mamba3d": HybridNet3D.Config(layout="M" * 12),
    "attention": HybridNet3D.Config(t_layer="attention"),
    "transformer": PointTransformer.Config(),
    "pointmamba": PointMamba.Config(),
}


@pytest.fixture(params=NETWORKS)
def config(request: pytest.FixtureRequest) -> CloudBackbone.Config:
    return NETWORKS[request.param].small()


def clouds(count: int = 3, points: int = 64, seed: int = 0) -> Tensor:
    return torch.randn(count, points, 3, generator=torch.Generator().manual_seed(seed))


def built(config: CloudBackbone.Config) -> CloudBackbone:
    torch.manual_seed(0)
    return config.build().eval()


@pytest.mark.parametrize(
    ("config", "count"),
    [
        (PointTransformer.Config(), 22_099_752),
        (PointTransformer.Config(num_classes=15), 22_093_327),
        (HybridNet3D.Config(layout="M" * 12), 16_934_184),
        (HybridNet3D.Config(layout="M" * 12, num_classes=15), 16_927_759),
        (HybridNet3D.Config(), 25_227_048),
        (HybridNet3D.Config(num_classes=15), 25_220_623),
        (PointMamba.Config(), 12_297_768),
        (PointMamba.Config(num_classes=15), 12_291_343),
    ],
)
def test_they_have_as_many_parameters_as_the_official_ones(config: CloudBackbone.Config, count: int) -> None:
    with torch.device("meta"):
        assert sum(parameter.numel() for parameter in config.build().parameters()) == count


def test_a_sample_does_not_depend_on_the_others_unless_it_is_asked_to(config: CloudBackbone.Config) -> None:
    network, x = built(config), clouds()
    whole = network(x)
    assert whole.shape == (3, config.num_classes)
    alone = torch.cat([network(x[i : i + 1]) for i in range(3)])
    assert torch.allclose(whole, alone, atol=1e-5)


def test_the_official_quirks_make_samples_depend_on_the_batch_and_not_a_batch_of_one() -> None:
    plain = built(NETWORKS["mamba3d"].small())
    quirky = built(NETWORKS["mamba3d"].official().small())
    quirky.load_state_dict(plain.state_dict())
    x = clouds()
    assert torch.allclose(plain(x[:1]), quirky(x[:1]), atol=1e-5)
    assert not torch.allclose(plain(x), quirky(x), atol=1e-4)


def test_the_order_of_the_points_matters_only_for_the_first_centre(config: CloudBackbone.Config) -> None:
    network, x = built(config), clouds()
    order = torch.cat([torch.zeros(1, dtype=torch.long), 1 + torch.randperm(63, generator=torch.Generator().manual_seed(1))])
    assert torch.allclose(network(x[:, order]), network(x), atol=1e-5)


def test_recomputing_changes_nothing(config: CloudBackbone.Config) -> None:
    network, x, found = built(config), clouds(), []
    for enable in (False, True):
        network.set_grad_checkpointing(enable)
        network.zero_grad()
        network(x).square().sum().backward()
        found.append([parameter.grad.clone() for parameter in network.parameters() if parameter.grad is not None])
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(*found, strict=True))


def test_visible_patches_alone_are_encoded(config: CloudBackbone.Config) -> None:
    network, x = built(config.encoder()), clouds()
    patches = network.partition(x)
    mask = Mask.from_masked((torch.arange(16) % 2 == 0).expand(3, -1))
    features = network.encode_visible(patches, mask)
    assert features.patches.shape == (3, 8, 32)
    changed = replace(patches, content=torch.where(mask.masked[..., None], torch.tensor(7.0), patches.content))
    assert torch.equal(network.encode_visible(changed, mask).patches, features.patches)
    assert network.pooled(features).shape == (3, 64)


def test_transformer_layers_follow_every_third_mamba_layer() -> None:
    network, seen = built(HybridNet3D.Config(embed_dim=48, num_patches=16, patch_points=8)), []
    for layer in network.layers:
        kind = "T" if isinstance(layer.mixer, TransformerBlock) else "M"
        layer.register_forward_hook(lambda module, args, output, kind=kind: seen.append(kind))
    network(clouds())
    assert "".join(seen) == "MMMT" * 4


def test_positions_join_before_every_layer() -> None:
    network = built(NETWORKS["transformer"].small().encoder())
    patches = network.partition(clouds())
    tokens, position = network.embed(patches), network.position(patches.coords)
    x = tokens
    for layer in network.layers:
        x = layer(x + position)
    assert torch.equal(network.encode_visible(patches, None).patches, network.norm(x))


def test_the_mixer_is_two_scans_of_which_the_second_has_its_channels_reversed() -> None:
    torch.manual_seed(1)
    mixer = ChannelScanMixer(16)
    u = torch.randn(2, 9, 16)
    fwd, bwd = (direction.parameters_of_scan() for direction in mixer.dirs.values())
    xz = mixer.in_proj(u)
    expected = mixer.out_proj(ops.mamba_inner(xz, fwd) + ops.mamba_inner(xz.flip(-1), bwd).flip(-1))
    assert torch.allclose(mixer(u), expected, atol=1e-5)
    tokens_reversed = mixer.out_proj(ops.mamba_inner(xz, fwd) + ops.mamba_inner(xz.flip(1), bwd).flip(1))
    assert not torch.allclose(mixer(u), tokens_reversed, atol=1e-3)
    forward_only = ChannelScanMixer(16, backwards=False)
    forward_only.load_state_dict(mixer.state_dict())
    assert torch.allclose(forward_only(u), mixer.out_proj(ops.mamba_inner(xz, fwd)), atol=1e-6)


def test_local_pooling_is_the_published_formula() -> None:
    torch.manual_seed(2)
    layer, x = LocalNormPool(8, "batch"), torch.randn(2, 7, 8)
    with torch.no_grad():
        layer.scale.normal_()
        layer.shift.normal_()
    neighbours = torch.randint(6, (2, 6, 3))
    own = x[:, 1:]
    near = torch.stack([own[b][neighbours[b]] for b in range(2)])
    difference = near - own[:, :, None]
    value = torch.cat([difference / (difference.std() + 1e-5), own[:, :, None].expand_as(near)], dim=-1)
    value = value * layer.scale + layer.shift
    pooled = (value * value.exp()).sum(2) / value.exp().sum(2)
    expected = nn.functional.silu(layer.proj(layer.norm(pooled)))
    found = layer(x, neighbours)
    assert torch.allclose(found[:, 1:], expected, atol=1e-5)
    assert torch.equal(found[:, 0], x[:, 0])


def test_a_patch_is_embedded_whatever_the_order_of_its_points() -> None:
    torch.manual_seed(3)
    network, points = PatchNet(8).eval(), torch.randn(5, 6, 3)
    local = network.point2(torch.relu(network.norm1(network.point1(points.flatten(0, 1))))).unflatten(0, (5, 6))
    both = torch.cat([local.amax(1, keepdim=True).expand_as(local), local], dim=-1)
    expected = network.patch2(torch.relu(network.norm2(network.patch1(both.flatten(0, 1))))).unflatten(0, (5, 6)).amax(1)
    assert torch.allclose(network(points), expected, atol=1e-5)
    assert torch.allclose(network(points.flip(1)), expected, atol=1e-5)


def test_patches_are_centres_and_their_nearest_points() -> None:
    x = clouds()
    patches = partition(x, 16, 8)
    around = patches.content.view(3, 16, 8, 3) + patches.coords[:, :, None]
    distance = torch.cdist(patches.coords, x, compute_mode="donot_use_mm_for_euclid_dist")
    nearest = distance.sort(dim=2).values[..., :8]
    assert torch.allclose((around - patches.coords[:, :, None]).norm(dim=-1), nearest, atol=1e-5)
    assert torch.equal(patches.coords[:, 0], x[:, 0])


def test_each_cloud_has_its_own_curve_unless_they_share_the_depth() -> None:
    near, far = clouds(1, 20, seed=5) * 0.1, clouds(1, 20, seed=6) * 3
    both = torch.cat([near, far])
    assert torch.equal(curve_order(both, 0.02)[:1], curve_order(near, 0.02))
    assert torch.equal(curve_order(both, 0.02, shared_depth=True)[1:], curve_order(far, 0.02))
    assert sorted(curve_order(both, 0.02)[0].tolist()) == list(range(20))


def test_pointmamba_scans_along_either_curve_by_the_step() -> None:
    network, x = built(NETWORKS["pointmamba"].small()), clouds()
    drawn = {network.partition(x, key).order for key in range(20)}
    assert drawn == {0, 1}
    assert network.partition(x, 3).order == network.partition(x, 3).order


@pytest.mark.parametrize(
    ("config", "shape", "message"),
    [
        (PointTransformer.Config().small(), (2, 12, 3), "a cloud of 12 points cannot be cut into 16 patches of 8"),
        (PointTransformer.Config().small(), (2, 64, 4), r"expected clouds of shape \(batch, points, 3\), got \(2, 64, 4\)"),
        (PointTransformer.Config().small(), (2, 3, 8, 8), "expected clouds of shape"),
    ],
)
def test_what_is_no_cloud_is_refused(config: CloudBackbone.Config, shape: tuple[int, ...], message: str) -> None:
    with pytest.raises(UserError, match=message):
        built(config)(torch.randn(shape))


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: HybridNet3D.Config(layout="MX").build(), "a layout is a string of M"),
        (lambda: HybridNet3D.Config(class_token=False).build(), "leave class_token on"),
        (lambda: PointTransformer.Config(depth=0).build(), "depth must be at least 1"),
        (lambda: PointMamba.Config(cell=0.0).build(), "cell must be a positive length"),
        (lambda: PointMamba.Config(num_patches=0).build(), "num_patches must be at least 1"),
    ],
)
def test_impossible_networks_are_refused(build: object, message: str) -> None:
    with pytest.raises(UserError, match=message):
        build()  # type: ignore[operator]


def test_what_looks_at_neighbours_cannot_encode_causally() -> None:
    network = built(NETWORKS["hybrid"].small().encoder())
    patches = network.partition(clouds())
    with pytest.raises(UserError, match="cannot encode causally"):
        network.encode_visible(patches, None, causal=True)
