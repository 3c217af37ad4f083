"""Operations are counted as they are computed by hand, whatever the network is made of."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from hybridmap import ops
from hybridmap.backbones import HybridNet, ViT
from hybridmap.backbones.base import Backbone
from hybridmap.backbones.flops import FORMULAS, flops, flops_of, gmacs
from hybridmap.backbones.names import MODELS
from hybridmap.errors import UserError
from hybridmap.layers.mamba import MambaMixer


def on_meta(config: Backbone.Config) -> Backbone:
    with torch.device("meta"):
        return config.build()


def count(config: Backbone.Config) -> int:
    return flops(on_meta(config))


def test_a_transformer_block_by_hand() -> None:
    sizes = [count(ViT.Config(depth=depth, embed_dim=48, num_heads=3, img_size=64, num_classes=7)) for depth in (1, 2)]
    length, dim = 1 + 16, 48
    maps = 2 * length * dim * (3 * dim + dim + 4 * dim + 4 * dim)  # qkv, projection, both of the MLP
    attention = 2 * (2 * length * length * dim)  # q k' and its product with v
    assert sizes[1] - sizes[0] == maps + attention
    patches, head = 2 * 16 * (16 * 16 * 3) * dim, 2 * dim * 7
    assert sizes[0] == patches + maps + attention + head


@pytest.mark.parametrize("variant", ["biscan", "v1", "uni"])
def test_a_mamba_mixer_by_hand(variant: str) -> None:
    dim, inner, state, rank, length = 48, 96, 16, 3, 10
    with torch.device("meta"):
        mixer, tokens = MambaMixer(dim, variant=variant), torch.empty(2, length, dim)
    inside, scan = 2 * length * inner * (4 + (rank + 2 * state) + rank), 9 * length * inner * state
    directions = {"biscan": 2 * inside + 2 * scan, "v1": inside + 2 * scan, "uni": inside + scan}
    outside = 2 * length * dim * (2 * inner + inner)  # in_proj, out_proj
    assert flops_of(lambda: mixer(tokens)) == 2 * (outside + directions[variant])


def test_a_layer_is_its_mixer() -> None:
    sizes = [count(HybridNet.Config(layout=layout, embed_dim=48, img_size=64, num_registers=2)) for layout in ("M", "MM")]
    with torch.device("meta"):
        mixer, tokens = MambaMixer(48), torch.empty(1, 16 + 2, 48)
    assert sizes[1] - sizes[0] == flops_of(lambda: mixer(tokens))


def test_a_scan_and_a_convolution_by_themselves() -> None:
    with torch.device("meta"):
        x, taps, A, B, D = (torch.empty(shape) for shape in ((2, 5, 8), (8, 3), (8, 4), (2, 5, 4), (8,)))
    scan, convolution = 9 * 2 * 5 * 8 * 4, 2 * 2 * 5 * 8 * 3
    assert flops_of(lambda: ops.causal_conv1d(x, taps)) == convolution
    assert flops_of(lambda: ops.selective_scan(x, x, A, B, B, D=D, z=x)) == scan
    direction = (x, x, A, B, B, D, None)
    assert flops_of(lambda: ops.bidirectional_scan(direction, direction)) == 2 * scan


def test_every_operator_of_ours_has_a_formula() -> None:
    names = {name.partition(".")[0] for name in torch._C._dispatch_get_all_op_names() if name.startswith("hybridmap::")}
    forward = {name for name in names if not name.endswith("_bwd")}
    assert forward
    assert forward == {str(packet).replace(".", "::") for packet in FORMULAS}


def test_convolutions_of_images_count_what_their_groups_compute() -> None:
    with torch.device("meta"):
        images = torch.empty(2, 4, 8, 8)
        depthwise, dense = nn.Conv2d(4, 4, 3, padding=1, groups=4), nn.Conv2d(4, 6, 2, stride=2)
    assert flops_of(lambda: depthwise(images)) == 2 * 2 * 64 * 4 * 9
    assert flops_of(lambda: dense(images)) == 2 * 2 * 16 * 6 * (4 * 2 * 2)


PUBLISHED = {  # the model cards of timm, whose counter takes norms for multiply-adds too
    "mae_deit_tiny_patch16_224": 1.3,
    "mae_deit_small_patch16_224": 4.6,
    "mae_deit_base_patch16_224": 17.6,
    "mae_vit_large_patch16_224": 61.6,
    "mae_vit_huge_patch14_224": 167.4,
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_vision_transformers_have_the_published_number(name: str) -> None:
    assert gmacs(on_meta(MODELS[name])) == pytest.approx(PUBLISHED[name], abs=0.05, rel=1e-3)


def test_the_count_grows_with_the_image_and_does_not_depend_on_the_backend() -> None:
    net = on_meta(HybridNet.Config(layout="MT", embed_dim=32, num_heads=2, img_size=64, num_registers=2))
    assert flops(net, 128) > 3 * flops(net) > 0
    assert flops(net, (64, 128)) < flops(net, 128)
    with ops.use_backend("reference"):
        assert flops(net) == flops(net, 64)
        by_reference = flops(net)
    assert by_reference == flops(net)
    assert net.training
    with pytest.raises(UserError, match="try 96x96"):
        flops(net, 100)


def test_the_count_is_the_same_on_a_real_device() -> None:
    config = HybridNet.Config(layout="MT", embed_dim=32, num_heads=2, img_size=32, num_registers=1)
    assert flops(config.build()) == count(config)
