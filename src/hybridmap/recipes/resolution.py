"""From 224 to 384 pixels: 30 more epochs of a network that was fine-tuned at 224.

The paper prints numbers at 384 pixels (Table 8) and does not say how they come about; the settings are those of the last stage
of ``ft-3stage``, for longer. Positions are resampled, and registers find their places on the larger grid.
"""

from __future__ import annotations

from hybridmap.config import override
from hybridmap.recipes.arm import ft_arm_base, ft_arm_large
from hybridmap.recipes.transfer_2d import ft_400_base, ft_400_large, ft_vit_base, ft_vit_large
from hybridmap.recipes.vim import ft_vim_base, ft_vim_small
from hybridmap.train.recipe import Recipe


def _at_384(recipe: Recipe) -> Recipe:
    """Drop path and moving average stay as they are at 224."""
    return override(
        recipe,
        {
            "learner.backbone.img_size": 384,
            "learner.smoothing": 0.1,
            "data.size": 384,
            "data.augment.type": "RandAugment",
            "exams.val.test.size": 384,
            "exams.val.test.crop.crop_ratio": 1.0,
            "optim.lr": 1e-5,
            "optim.weight_decay": 0.1,
            "optim.layer_decay": None,
            "schedule.form": "epoch",
            "schedule.warmup_epochs": 5.0,
            "schedule.warmup_lr": 1e-6,
            "schedule.min_lr": 1e-6,
            "train.epochs": 30,
            "train.batch_size": 512,
        },
    )


def ft_384_base() -> Recipe:
    """HybridNet-B, 30 epochs at 384 pixels, from ft-400-base.

    Command: hybridmap finetune ft-384-base --init runs/ft-400-base --data.root IMAGENET --out runs/ft-384-base
    Cost: about 6.1 h on 8 H200 for 30 epochs of ImageNet, estimated from its operations.
    Expected: the paper prints 85.5 top-1 on ImageNet-1K with MAP and 84.5 without (Table 8); ours not measured.
    Source: our choice, by the last stage of wangf3014/Mamba-Reg:README.md @ 0f7c2da;
      facebookresearch/deit:README_deit.md has 30 epochs, too.
    """
    return _at_384(ft_400_base())


def ft_384_large() -> Recipe:
    """HybridNet-L, 30 epochs at 384 pixels, from ft-400-large.

    Command: hybridmap finetune ft-384-large --init runs/ft-400-large --data.root IMAGENET --out runs/ft-384-large
    Cost: about 21 h on 8 H200 for 30 epochs of ImageNet, estimated from its operations.
    Expected: the paper prints 86.2 top-1 on ImageNet-1K with MAP and 84.6 without (Table 8); ours not measured.
    Source: our choice, by the last stage of wangf3014/Mamba-Reg:README.md @ 0f7c2da;
      facebookresearch/deit:README_deit.md has 30 epochs, too.
    """
    return _at_384(ft_400_large())


def ft_384_vit_base() -> Recipe:
    """ViT-B, 30 epochs at 384 pixels, from ft-vit-base.

    Command: hybridmap finetune ft-384-vit-base --init runs/ft-vit-base --data.root IMAGENET --out runs/ft-384-vit-base
    Cost: about 4.3 h on 8 H200 for 30 epochs of ImageNet, estimated from its operations.
    Expected: not measured.
    Source: our choice, by the last stage of wangf3014/Mamba-Reg:README.md @ 0f7c2da;
      facebookresearch/deit:README_deit.md has 30 epochs, too.
    """
    return _at_384(ft_vit_base())


def ft_384_vit_large() -> Recipe:
    """ViT-L, 30 epochs at 384 pixels, from ft-vit-large.

    Command: hybridmap finetune ft-384-vit-large --init runs/ft-vit-large --data.root IMAGENET --out
      runs/ft-384-vit-large
    Cost: about 15 h on 8 H200 for 30 epochs of ImageNet, estimated from its operations.
    Expected: not measured.
    Source: our choice, by the last stage of wangf3014/Mamba-Reg:README.md @ 0f7c2da;
      facebookresearch/deit:README_deit.md has 30 epochs, too.
    """
    return _at_384(ft_vit_large())


def ft_384_vim_small() -> Recipe:
    """Vim-S, 30 epochs at 384 pixels, from ft-vim-small.

    Command: hybridmap finetune ft-384-vim-small --init runs/ft-vim-small --data.root IMAGENET --out
      runs/ft-384-vim-small
    Cost: about 1.2 h on 8 H200 for 30 epochs of ImageNet, estimated from its operations.
    Expected: not measured.
    Source: our choice, by the last stage of wangf3014/Mamba-Reg:README.md @ 0f7c2da;
      facebookresearch/deit:README_deit.md has 30 epochs, too.
    """
    return _at_384(ft_vim_small())


def ft_384_vim_base() -> Recipe:
    """Vim-B, 30 epochs at 384 pixels, from ft-vim-base.

    Command: hybridmap finetune ft-384-vim-base --init runs/ft-vim-base --data.root IMAGENET --out runs/ft-384-vim-base
    Cost: about 4.5 h on 8 H200 for 30 epochs of ImageNet, estimated from its operations.
    Expected: not measured.
    Source: our choice, by the last stage of wangf3014/Mamba-Reg:README.md @ 0f7c2da;
      facebookresearch/deit:README_deit.md has 30 epochs, too.
    """
    return _at_384(ft_vim_base())


def ft_384_arm_base() -> Recipe:
    """ARM-B, 30 epochs at 384 pixels, from ft-arm-base.

    Command: hybridmap finetune ft-384-arm-base --init runs/ft-arm-base --data.root IMAGENET --out runs/ft-384-arm-base
    Cost: about 3.8 h on 8 H200 for 30 epochs of ImageNet, estimated from its operations.
    Expected: not measured.
    Source: our choice, by the last stage of wangf3014/Mamba-Reg:README.md @ 0f7c2da;
      facebookresearch/deit:README_deit.md has 30 epochs, too.
    """
    return _at_384(ft_arm_base())


def ft_384_arm_large() -> Recipe:
    """ARM-L, 30 epochs at 384 pixels, from ft-arm-large.

    Command: hybridmap finetune ft-384-arm-large --init runs/ft-arm-large --data.root IMAGENET --out
      runs/ft-384-arm-large
    Cost: about 13 h on 8 H200 for 30 epochs of ImageNet, estimated from its operations.
    Expected: not measured.
    Source: our choice, by the last stage of wangf3014/Mamba-Reg:README.md @ 0f7c2da;
      facebookresearch/deit:README_deit.md has 30 epochs, too.
    """
    return _at_384(ft_arm_large())
