"""The layouts of Table 4 from scratch: 32 layers of base width, which differ in where the Transformer layers stand.

Each recipe is the first of the three stages of ``ft-3stage``; the other two are those of HybridNet-B with the layout given,
``hybridmap finetune ft-3stage-base-stage2 --learner.backbone.layout ...``. The paper does not say how it trained them.
"""

from __future__ import annotations

from hybridmap.config import override
from hybridmap.recipes.transfer_2d import ft_3stage_base
from hybridmap.train.recipe import Recipe


def _layout(layout: str) -> Recipe:
    return override(ft_3stage_base(), {"learner.backbone.layout": layout})


def ft_layout_t() -> Recipe:
    """32 Transformer layers, 300 epochs at 128 pixels from scratch.

    Command: hybridmap finetune ft-layout-t --data.root IMAGENET --out runs/ft-layout-t
    Cost: about 9.1 h on 8 H200 for 300 epochs of ImageNet, estimated from its operations.
    Expected: the paper prints 82.8 top-1 on ImageNet-1K at the end (Table 4); ours not measured.
    Source: arXiv:2410.00871, Table 4, for the layout; the settings are those of ft-3stage-base.
    """
    return _layout("T" * 32)


def ft_layout_m() -> Recipe:
    """32 Mamba layers, 300 epochs at 128 pixels from scratch.

    Command: hybridmap finetune ft-layout-m --data.root IMAGENET --out runs/ft-layout-m
    Cost: about 7.8 h on 8 H200 for 300 epochs of ImageNet, estimated from its operations.
    Expected: the paper prints 82.7 top-1 on ImageNet-1K at the end (Table 4); ours not measured.
    Source: arXiv:2410.00871, Table 4, for the layout; the settings are those of ft-3stage-base.
    """
    return _layout("M" * 32)


def ft_layout_mt() -> Recipe:
    """24 Mamba layers, then 8 Transformer layers, 300 epochs at 128 pixels from scratch.

    Command: hybridmap finetune ft-layout-mt --data.root IMAGENET --out runs/ft-layout-mt
    Cost: about 8.1 h on 8 H200 for 300 epochs of ImageNet, estimated from its operations.
    Expected: the paper prints 82.88 top-1 on ImageNet-1K at the end (Table 4); ours not measured.
    Source: arXiv:2410.00871, Table 4, for the layout; the settings are those of ft-3stage-base.
    """
    return _layout("M" * 24 + "T" * 8)


def ft_layout_tm() -> Recipe:
    """8 Transformer layers, then 24 Mamba layers, 300 epochs at 128 pixels from scratch.

    Command: hybridmap finetune ft-layout-tm --data.root IMAGENET --out runs/ft-layout-tm
    Cost: about 8.1 h on 8 H200 for 300 epochs of ImageNet, estimated from its operations.
    Expected: the paper prints 82.93 top-1 on ImageNet-1K at the end (Table 4); ours not measured.
    Source: arXiv:2410.00871, Table 4, for the layout; the settings are those of ft-3stage-base.
    """
    return _layout("T" * 8 + "M" * 24)


def ft_layout_tmmm() -> Recipe:
    """A Transformer layer before every three Mamba layers, 300 epochs at 128 pixels from scratch.

    Command: hybridmap finetune ft-layout-tmmm --data.root IMAGENET --out runs/ft-layout-tmmm
    Cost: about 8.1 h on 8 H200 for 300 epochs of ImageNet, estimated from its operations.
    Expected: the paper prints 83.01 top-1 on ImageNet-1K at the end (Table 4); ours not measured.
    Source: arXiv:2410.00871, Table 4, for the layout; the settings are those of ft-3stage-base.
    """
    return _layout("TMMM" * 8)


def ft_layout_mmmt() -> Recipe:
    """A Transformer layer behind every three Mamba layers, which is HybridNet-B, 300 epochs at 128 pixels from scratch.

    Command: hybridmap finetune ft-layout-mmmt --data.root IMAGENET --out runs/ft-layout-mmmt
    Cost: about 8.1 h on 8 H200 for 300 epochs of ImageNet, estimated from its operations.
    Expected: the paper prints 83.12 top-1 on ImageNet-1K at the end (Table 4); ours not measured.
    Source: arXiv:2410.00871, Table 4, for the layout; the settings are those of ft-3stage-base.
    """
    return _layout("MMMT" * 8)
