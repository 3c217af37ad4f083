import subprocess
import sys
import warnings

import pytest
import timm
import torch
from timm.models import is_model, model_entrypoint

from hybridmap.backbones import HybridNet, create_backbone, find
from hybridmap.backbones.names import ALIASES, MODELS
from hybridmap.errors import UserError

COUNTS = {
    "hybridnet_tiny_patch16_224": 11_640_424,
    "hybridnet_small_patch16_224": 37_272_040,
    "hybridnet_base_patch16_224": 137_117_416,
    "hybridnet_large_patch16_224": 475_620_328,
    "hybridnet_huge_patch16_224": 795_894_760,
    "hybridnet_base_paper_patch16_224": 127_674_088,
    "hybridnet_large_paper_patch16_224": 442_049_512,
    "mambar_tiny_patch16_224": 9_264_232,
    "mambar_small_patch16_224": 27_801_064,
    "mambar_base_patch16_224": 99_301_096,
    "mambar_large_patch16_224": 341_222_376,
    "vim_tiny_patch16_224": 7_148_008,
    "vim_small_patch16_224": 25_796_584,
    "vim_base_patch16_224": 97_598_440,
    "vim_tiny_plus_patch16_224": 7_148_008 + (27**2 - 14**2) * 192,
    "vim_small_plus_patch16_224": 25_796_584 + (27**2 - 14**2) * 384,
    "vim_base_plus_patch16_224": 97_598_440 + (27**2 - 14**2) * 768,
    "mae_vit_small_patch16_224": 22_050_664,
    "mae_vit_base_patch16_224": 86_567_656,
    "mae_vit_large_patch16_224": 304_326_632,
    "mae_vit_huge_patch14_224": 632_045_800,
    "mae_deit_tiny_patch16_224": 5_717_416,
    "mae_deit_small_patch16_224": 22_050_664,
    "mae_deit_base_patch16_224": 86_567_656,
    "mambavision_tiny_224": 31_794_248,
    "mambavision_tiny2_224": 35_104_008,
    "mambavision_small_224": 50_140_584,
    "mambavision_base_224": 97_685_288,
    "mambavision_large_224": 227_961_048,
    "mambavision_large2_224": 241_554_824,
    "arm_base_patch16_224": 85_031_656,
    "arm_large_patch16_224": 297_035_720,
    "arm_huge_patch16_224": 662_682_088,
    # those of the official pretraining models without what stands in their decoder (tests/objectives/test_cluster_ar.py)
    "arm_base_pretrain_patch16_192": 80_046_336,
    "arm_large_pretrain_patch16_192": 282_463_200,
    "arm_huge_pretrain_patch16_192": 633_745_920,
}


def count(config):
    with torch.device("meta"):
        return sum(p.numel() for p in config.build().parameters())


def test_every_name_has_a_known_count():
    assert COUNTS.keys() == MODELS.keys()


@pytest.mark.parametrize("name", MODELS)
def test_parameter_counts_are_those_of_the_official_classes(name):
    assert count(MODELS[name]) == COUNTS[name]


@pytest.mark.parametrize(
    ("size", "ratio", "expected"),
    [
        ("tiny", 1, 11_049_064),
        ("tiny", 4, 12_823_144),
        ("small", 1, 34_909_672),
        ("small", 4, 41_996_776),
        ("base", 4, 156_004_072),
        ("large", 4, 542_761_960),
        ("huge", 1, 739_253_224),
        ("huge", 4, 909_177_832),
    ],
)
def test_counts_at_other_mlp_ratios(size, ratio, expected):
    with torch.device("meta"):
        net = create_backbone(f"hybridnet_{size}_patch16_224", transformer_mlp_ratio=float(ratio))
    assert sum(p.numel() for p in net.parameters()) == expected


@pytest.mark.parametrize(
    ("layout", "ratio", "expected"),
    [
        ("T" * 32, 4, 228_325_096),
        ("T" * 32, 2, 152_778_472),
        ("T" * 32, 1, 115_005_160),
        ("M" * 32, 2, 131_329_768),
        ("M" * 24 + "T" * 8, 1, 127_674_088),
        ("T" * 8 + "M" * 24, 2, 137_117_416),
        ("TMMM" * 8, 2, 137_117_416),
    ],
)
def test_layouts_of_table_4_have_the_counts_of_the_specification(layout, ratio, expected):
    pure_transformer = "M" not in layout  # DeiT's shell: one class token, no neck
    config = HybridNet.Config(
        layout=layout,
        embed_dim=768,
        transformer_mlp_ratio=float(ratio),
        num_registers=1 if pure_transformer else 12,
        cls_reduce=1 if pure_transformer else 4,
    )
    assert count(config) == expected


@pytest.mark.parametrize(
    ("dim", "heads", "mamba", "rho2", "rho1"),
    [
        (192, 12, 282_048, 297_024, 223_104),
        (384, 12, 1_043_328, 1_183_872, 888_576),
        (768, 12, 4_003_584, 4_727_040, 3_546_624),
        (1024, 16, 7_042_048, 8_399_872, 6_301_696),
        (1536, 12, 15_674_880, 18_891_264, 14_171_136),
    ],
)
def test_single_layers_have_the_counts_of_the_specification(dim, heads, mamba, rho2, rho1):
    for ratio, transformer in ((2, rho2), (1, rho1)):
        with torch.device("meta"):
            net = HybridNet.Config(layout="MT", embed_dim=dim, num_heads=heads, transformer_mlp_ratio=float(ratio)).build()
        assert [sum(p.numel() for p in layer.parameters()) for layer in net.layers] == [mamba, transformer]


def test_presets_differ_only_where_the_paper_needs_it():
    assert find("hybridnet_base_patch16_224", "paper") is MODELS["hybridnet_base_paper_patch16_224"]
    assert find("map_large_patch16_224", "paper").transformer_mlp_ratio == 1
    assert find("hybridnet_tiny_patch16_224", "paper") is MODELS["hybridnet_tiny_patch16_224"]


def test_timm_creates_our_models():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        net = timm.create_model("hybridnet_tiny_patch16_224", num_classes=10, img_size=64, drop_path_rate=0.1, layout="MT")
    assert isinstance(net, HybridNet)
    assert net.num_classes == 10
    assert net.config.drop_path == 0.1
    assert net.pretrained_cfg["architecture"] == "hybridnet_tiny_patch16_224"
    assert net(torch.zeros(1, 3, 64, 64)).shape == (1, 10)
    with torch.device("meta"):
        paper = timm.create_model("hybridnet_base_patch16_224", preset="paper")
    assert paper.config.transformer_mlp_ratio == 1


@pytest.mark.parametrize("name", [*MODELS, *ALIASES])
def test_every_name_is_registered_and_listed(name):
    assert is_model(name)
    assert model_entrypoint(name).__module__ == "hybridmap.backbones.names"
    assert name in timm.list_models(name)
    side = int(MODELS[ALIASES.get(name, name)].img_size)
    assert timm.get_pretrained_cfg(name).input_size == (3, side, side)


@pytest.mark.slow
def test_the_registry_of_timm_is_only_added_to(unchecked_environment):
    code = """
import warnings; warnings.simplefilter("error")
import timm
from timm.models import _registry
before = dict(_registry._model_entrypoints)
import hybridmap.backbones
after = _registry._model_entrypoints
assert all(after[name] is entry for name, entry in before.items())
added = set(after) - set(before)
ours = ("hybridnet_", "mambar_", "vim_", "arm_", "map_", "mae_", "mambavision_", "mamba_vision_")
assert added and all(name.startswith(ours) for name in added), added
"""
    subprocess.run([sys.executable, "-c", code], check=True, env=unchecked_environment)


def test_an_unknown_name_gets_a_proposal():
    with pytest.raises(UserError, match="hybridnet_base_patch16_224"):
        find("hybrid_base_patch16_224")


def test_pretrained_weights_are_not_pretended():
    with pytest.raises(UserError, match="no weights of mambar_tiny_patch16_224"):
        timm.create_model("mambar_tiny_patch16_224", pretrained=True)


def test_unknown_arguments_are_named():
    with pytest.raises(UserError, match="unknown field 'layouts'; did you mean 'layout'"):
        create_backbone("hybridnet_tiny_patch16_224", layouts="MT")
