"""ARM: pretraining by cluster autoregression at 192 pixels, fine-tuning at 224 with scans in four directions.

Pretraining reads one way over clusters of 4 x 4 patches; fine-tuning copies what it learned to all four directions and adds a
class token (``hybridmap.backbones.arm``). The source's evaluation squeezes images into a square; ours crops, as usual.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal

from hybridmap.backbones import find
from hybridmap.config import override
from hybridmap.data.image_transforms import RandomResizedCrop
from hybridmap.objectives.arm import ClusterAR
from hybridmap.recipes.pretrain_2d import map_base
from hybridmap.recipes.transfer_2d import ft_vit_base
from hybridmap.tasks.classification import Classification
from hybridmap.train.recipe import Recipe, TrainConfig

Size = Literal["base", "large", "huge"]


def _pretrain(size: Size, batch: int) -> Recipe:
    """Source: OliverRensu/ARM:README.md, main_pretrain.py @ 996d93e."""
    plain = map_base()
    backbone: Any = find(f"arm_{size}_pretrain_patch16_192")
    return replace(
        plain,
        learner=ClusterAR.Config(backbone=backbone),
        data=replace(plain.data, size=192, crop=RandomResizedCrop.Config(scale=(0.2, 1.0))),  # type: ignore[call-arg]
        train=TrainConfig(epochs=1600.0, batch_size=batch, clip=3.0, precision="bf16"),
    )


def _finetune(size: Size, *, layer_decay: float, drop_path: float) -> Recipe:
    """Source: OliverRensu/ARM:README.md, Finetuning/main_finetune.py @ 996d93e."""
    backbone = override(find(f"arm_{size}_patch16_224"), {"drop_path": drop_path})
    plain = override(ft_vit_base(), {"optim.layer_decay": layer_decay})
    return replace(
        plain,
        learner=Classification.Config(backbone=backbone, smoothing=0.1, head_std=2e-5),
        train=replace(plain.train, precision="bf16", ema=0.99992),
    )


def arm_base() -> Recipe:
    """Cluster autoregression on ARM-B, 1600 epochs at 192 pixels.

    Command: hybridmap pretrain arm-base --data.root IMAGENET/train --out runs/arm-base
    Cost: about 53 h on 8 H200 for 1600 epochs of ImageNet, estimated from its operations.
    Expected: 83.2 top-1 on ImageNet-1K after fine-tuning (printed by the source); ours not measured.
    Source: OliverRensu/ARM:README.md, main_pretrain.py @ 996d93e.
    """
    return _pretrain("base", 2048)


def arm_large() -> Recipe:
    """Cluster autoregression on ARM-L, 1600 epochs at 192 pixels.

    Command: hybridmap pretrain arm-large --data.root IMAGENET/train --out runs/arm-large
    Cost: about 160 h on 8 H200 for 1600 epochs of ImageNet, estimated from its operations.
    Expected: 84.5 top-1 on ImageNet-1K after fine-tuning (printed in Table 8); ours not measured.
    Source: OliverRensu/ARM:README.md, main_pretrain.py @ 996d93e.
    """
    return _pretrain("large", 1024)


def arm_huge() -> Recipe:
    """Cluster autoregression on ARM-H, 1600 epochs at 192 pixels.

    Command: hybridmap pretrain arm-huge --data.root IMAGENET/train --out runs/arm-huge
    Cost: about 350 h on 8 H200 for 1600 epochs of ImageNet, estimated from its operations.
    Expected: not measured.
    Source: OliverRensu/ARM:README.md, main_pretrain.py @ 996d93e. It has no command for this size; the settings are
      those of ARM-L.
    """
    return _pretrain("huge", 1024)


def ft_arm_base() -> Recipe:
    """ARM-B, 100 epochs at 224 pixels, four directions.

    Command: hybridmap finetune ft-arm-base --init runs/arm-base --data.root IMAGENET --out runs/ft-arm-base
    Cost: about 4.3 h on 8 H200 for 100 epochs of ImageNet, estimated from its operations.
    Expected: 83.2 top-1 on ImageNet-1K from arm-base (printed by the source); ours not measured.
    Source: OliverRensu/ARM:README.md, Finetuning/main_finetune.py @ 996d93e.
    """
    return _finetune("base", layer_decay=0.65, drop_path=0.1)


def ft_arm_large() -> Recipe:
    """ARM-L, 100 epochs at 224 pixels, four directions.

    Command: hybridmap finetune ft-arm-large --init runs/arm-large --data.root IMAGENET --out runs/ft-arm-large
    Cost: about 15 h on 8 H200 for 100 epochs of ImageNet, estimated from its operations.
    Expected: 84.5 top-1 on ImageNet-1K from arm-large (printed in Table 8); ours not measured.
    Source: OliverRensu/ARM:README.md, Finetuning/main_finetune.py @ 996d93e.
    """
    return _finetune("large", layer_decay=0.75, drop_path=0.3)


def ft_arm_huge() -> Recipe:
    """ARM-H, 100 epochs at 224 pixels, four directions.

    Command: hybridmap finetune ft-arm-huge --init runs/arm-huge --data.root IMAGENET --out runs/ft-arm-huge
    Cost: about 34 h on 8 H200 for 100 epochs of ImageNet, estimated from its operations.
    Expected: not measured.
    Source: OliverRensu/ARM:README.md, Finetuning/main_finetune.py @ 996d93e. It has no command for this size; the
      settings are those of ARM-L.
    """
    return _finetune("huge", layer_decay=0.75, drop_path=0.3)
