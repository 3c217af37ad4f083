"""Names -> configurations: one dictionary, from which timm's registry is filled.

After ``import hybridmap``, ``timm.create_model("hybridnet_base_patch16_224", num_classes=10)`` works; every field of the Config
is an argument, with timm's ``drop_path_rate`` for ``drop_path``. ``preset="paper"`` gives a HybridNet the MLP ratios that
reproduce the parameter counts printed in the paper (1 instead of 2 in B and L); plain names are the ``code`` preset, into
which the released weights load. No entry that timm already has is touched.
"""

from __future__ import annotations

import difflib
import sys
from collections.abc import Callable
from functools import partial
from typing import Any, Literal

from timm.models import build_model_with_cfg, generate_default_cfgs, is_model, register_model
from torch import nn

from hybridmap.backbones.arm import ARM
from hybridmap.backbones.base import ImageBackbone
from hybridmap.backbones.hierarchical import HierarchicalBackbone
from hybridmap.backbones.hybrid import HybridNet
from hybridmap.backbones.mambavision import MambaVision
from hybridmap.backbones.sequence import timm_cfg
from hybridmap.backbones.vim import Vim
from hybridmap.backbones.vit import ViT
from hybridmap.backbones.vmamba import VMamba
from hybridmap.config import override
from hybridmap.errors import UserError

Preset = Literal["code", "paper"]


def _hybridnet(depth: int, dim: int, heads: int, registers: int, reduce: int, ratio: float = 2.0) -> HybridNet.Config:
    return HybridNet.Config(
        layout="MMMT" * (depth // 3),
        embed_dim=dim,
        num_heads=heads,
        num_registers=registers,
        cls_reduce=reduce,
        transformer_mlp_ratio=ratio,
    )


def _mambar(depth: int, dim: int, registers: int, reduce: int) -> HybridNet.Config:
    return HybridNet.Config(layout="M" * depth, embed_dim=dim, num_registers=registers, cls_reduce=reduce)


def _mae(depth: int, dim: int, heads: int, patch: int = 16) -> ViT.Config:
    return ViT.Config(depth=depth, embed_dim=dim, num_heads=heads, patch_size=patch, pool="avg", norm_position="pooled")


def _arm(depth: int, dim: int) -> ARM.Config:
    return ARM.Config(depth=depth, embed_dim=dim)


def _arm_pretrain(depth: int, dim: int) -> ARM.Config:
    one_way = ARM.Config(depth=depth, embed_dim=dim, img_size=192, directions=1, scan="cluster(4)", positions="sincos")
    return one_way.encoder()


def _mambavision(
    depths: tuple[int, ...], dim: int, stem: int, *, heads: int = 8, drop_path: float = 0.3, scale: float | None = 1e-5
) -> MambaVision.Config:
    return MambaVision.Config(
        depths=depths, embed_dim=dim, stem_dim=stem, num_heads=(heads, 2 * heads), drop_path=drop_path, layer_scale=scale
    )


MODELS: dict[str, ImageBackbone.Config] = {
    # yunzeliu/MAP:models_mamba.py @ f3bcdff; 16 heads in L, since the released 12 do not divide 1024
    "hybridnet_tiny_patch16_224": _hybridnet(24, 192, 12, 12, 1),
    "hybridnet_small_patch16_224": _hybridnet(24, 384, 12, 12, 2),
    "hybridnet_base_patch16_224": _hybridnet(24, 768, 12, 12, 4),
    "hybridnet_large_patch16_224": _hybridnet(48, 1024, 16, 16, 8),
    "hybridnet_huge_patch16_224": _hybridnet(36, 1536, 12, 16, 8),
    # arXiv:2410.00871, Table 8: 128M and 443M
    "hybridnet_base_paper_patch16_224": _hybridnet(24, 768, 12, 12, 4, ratio=1.0),
    "hybridnet_large_paper_patch16_224": _hybridnet(48, 1024, 16, 16, 8, ratio=1.0),
    # wangf3014/Mamba-Reg:models_mamba.py @ 0f7c2da
    "mambar_tiny_patch16_224": _mambar(24, 192, 12, 1),
    "mambar_small_patch16_224": _mambar(24, 384, 12, 2),
    "mambar_base_patch16_224": _mambar(24, 768, 12, 4),
    "mambar_large_patch16_224": _mambar(48, 1024, 16, 8),
    # hustvl/Vim:vim/models_mamba.py @ dd0358a; "plus": the same weights with overlapping patches
    "vim_tiny_patch16_224": Vim.Config(embed_dim=192),
    "vim_small_patch16_224": Vim.Config(embed_dim=384),
    "vim_base_patch16_224": Vim.Config(embed_dim=768),
    "vim_tiny_plus_patch16_224": Vim.Config(embed_dim=192, stride=8),
    "vim_small_plus_patch16_224": Vim.Config(embed_dim=384, stride=8),
    "vim_base_plus_patch16_224": Vim.Config(embed_dim=768, stride=8),
    # facebookresearch/mae:models_vit.py @ efb2a80, read out as its fine-tuning does (small: DeiT's shape)
    "mae_vit_small_patch16_224": _mae(12, 384, 6),
    "mae_vit_base_patch16_224": _mae(12, 768, 12),
    "mae_vit_large_patch16_224": _mae(24, 1024, 16),
    "mae_vit_huge_patch14_224": _mae(32, 1280, 16, patch=14),
    # facebookresearch/deit @ 7e160fe: class token after the norm
    "mae_deit_tiny_patch16_224": ViT.Config(embed_dim=192, num_heads=3),
    "mae_deit_small_patch16_224": ViT.Config(embed_dim=384, num_heads=6),
    "mae_deit_base_patch16_224": ViT.Config(embed_dim=768, num_heads=12),
    # OliverRensu/ARM:Finetuning/models_mamba.py, models_pretrain.py @ 996d93e (the latter without decoder)
    "arm_base_patch16_224": _arm(12, 768),
    "arm_large_patch16_224": _arm(24, 1024),
    "arm_huge_patch16_224": _arm(24, 1536),
    "arm_base_pretrain_patch16_192": _arm_pretrain(12, 768),
    "arm_large_pretrain_patch16_192": _arm_pretrain(24, 1024),
    "arm_huge_pretrain_patch16_192": _arm_pretrain(24, 1536),
    # NVlabs/MambaVision:mambavision/models/mamba_vision.py; the paper's rows "T" and "L" are tiny2 and large2
    "mambavision_tiny_224": _mambavision((1, 3, 8, 4), 80, 32, drop_path=0.2, scale=None),
    "mambavision_tiny2_224": _mambavision((1, 3, 11, 4), 80, 32, drop_path=0.2, scale=None),
    "mambavision_small_224": _mambavision((3, 3, 7, 5), 96, 64, drop_path=0.2, scale=None),
    "mambavision_base_224": _mambavision((3, 3, 10, 5), 128, 64),
    "mambavision_large_224": _mambavision((3, 3, 10, 5), 196, 64, heads=16),
    "mambavision_large2_224": _mambavision((3, 3, 12, 5), 196, 64, heads=16),
    # MzeroMiko/VMamba:classification/configs/vssm @ 2ed52ea; the paper's row is the tiny one with 5 blocks in stage 2
    "vmamba_tiny_224": VMamba.Config(depths=(2, 2, 5, 2), drop_path=0.2),
    "vmamba_tiny_s1l8_224": VMamba.Config(depths=(2, 2, 8, 2), expand=1.0, drop_path=0.2),
    "vmamba_small_224": VMamba.Config(depths=(2, 2, 15, 2), drop_path=0.3),
    "vmamba_base_224": VMamba.Config(depths=(2, 2, 15, 2), embed_dim=128, drop_path=0.6),
}

ALIASES: dict[str, str] = {
    name.replace("hybridnet_", "map_"): name for name in MODELS if name.startswith("hybridnet_") and "paper" not in name
} | {
    f"vim_{official}": f"vim_{ours}"
    for ours, official in {
        "tiny_patch16_224": "tiny_patch16_224_bimambav2_final_pool_mean_abs_pos_embed_with_midclstok_div2",
        "small_patch16_224": "small_patch16_224_bimambav2_final_pool_mean_abs_pos_embed_with_midclstok_div2",
        "base_patch16_224": "base_patch16_224_bimambav2_final_pool_mean_abs_pos_embed_with_middle_cls_token_div2",
        "tiny_plus_patch16_224": "tiny_patch16_stride8_224_bimambav2_final_pool_mean_abs_pos_embed_with_midclstok_div2",
        "small_plus_patch16_224": "small_patch16_stride8_224_bimambav2_final_pool_mean_abs_pos_embed_with_midclstok_div2",
    }.items()
}
"""The official names of the released code. ARM's are those of its classifiers; its pretraining networks have the same ones."""
ALIASES |= {f"arm_{size}_pz16": f"arm_{size}_patch16_224" for size in ("base", "large", "huge")}
ALIASES |= {
    f"mamba_vision_{size}": f"mambavision_{name}_224"
    for size, name in {"T": "tiny", "T2": "tiny2", "S": "small", "B": "base", "L": "large", "L2": "large2"}.items()
}
ALIASES |= {
    f"vmamba_{size}": f"vmamba_{name}_224"
    for size, name in {"tiny_s2l5": "tiny", "tiny_s1l8": "tiny_s1l8", "small_s2l15": "small", "base_s2l15": "base"}.items()
}

CROPS = {"mambar_": 1.0, "mambavision_": 1.0, "mambavision_tiny2_": 0.98, "mambavision_small_": 0.93}
"""Share of the resized image that evaluation crops, by the start of a name, the last that fits; 0.875 for all others."""


def find(name: str, preset: Preset = "code") -> ImageBackbone.Config:
    """The configuration behind a model name or alias.

    Raises:
        UserError: for an unknown name (with the nearest known ones) or preset.
    """
    name = ALIASES.get(name, name)
    if preset not in ("code", "paper"):
        raise UserError(f"preset must be code or paper, got {preset!r}")
    if preset == "paper":
        name = name.replace("_patch16", "_paper_patch16") if name.replace("_patch16", "_paper_patch16") in MODELS else name
    if name not in MODELS:
        close = difflib.get_close_matches(name, MODELS, 3) or sorted(MODELS)[:3]
        raise UserError(f"there is no model {name!r}; did you mean {', '.join(close)}?")
    return MODELS[name]


def create_backbone(name: str, *, preset: Preset = "code", **changes: Any) -> ImageBackbone:
    """A named backbone with some fields of its Config changed: ``create_backbone("map_tiny_patch16_224", num_classes=10)``."""
    return override(find(name, preset), changes).build()


def _entry_point(name: str) -> Callable[..., nn.Module]:
    def create(pretrained: bool = False, preset: Preset = "code", **kwargs: Any) -> nn.Module:
        if pretrained and not (kwargs.get("pretrained_cfg_overlay") or kwargs.get("pretrained_cfg")):
            raise UserError(
                f"no weights of {name} can be downloaded; build it with pretrained=False, convert an official file with "
                "hybridmap convert and load it by load_state_dict()"
            )
        if "drop_path_rate" in kwargs:
            kwargs["drop_path"] = kwargs.pop("drop_path_rate")
        config = find(name, preset)
        levels = len(config.depths) if isinstance(config, HierarchicalBackbone.Config) else 3
        getter = {"out_indices": levels, "feature_cls": "getter"}
        return build_model_with_cfg(partial(_build, config), name, pretrained, feature_cfg=getter, **kwargs)

    create.__name__ = create.__qualname__ = name
    create.__doc__ = f"{name}, as described in {__name__}.MODELS."
    return create


def _build(config: ImageBackbone.Config, **kwargs: Any) -> ImageBackbone:
    return override(config, kwargs).build()


def _timm_cfg(name: str) -> dict[str, Any]:
    crops = [0.875, *(crop for start, crop in CROPS.items() if name.startswith(start))]
    return timm_cfg(MODELS[name], crop_pct=crops[-1])


default_cfgs = generate_default_cfgs({name: _timm_cfg(ALIASES.get(name, name)) for name in (*MODELS, *ALIASES)})

for _name in (*MODELS, *ALIASES):
    if not is_model(_name):
        setattr(sys.modules[__name__], _name, register_model(_entry_point(_name)))
