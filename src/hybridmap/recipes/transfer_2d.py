"""What becomes of a pretrained network: fine-tuning on labelled images, and the two probes.

A stage is a recipe, and stages are run one after the other, each taking over the weights of the run before:

    hybridmap finetune ft-3stage-base --init runs/map-base --data.root IMAGENET --out runs/stage1
    hybridmap finetune ft-3stage-base-stage2 --init runs/stage1 --data.root IMAGENET --out runs/stage2
    hybridmap finetune ft-3stage-base-stage3 --init runs/stage2 --data.root IMAGENET --out runs/stage3

Without ``--init`` the same recipes train from scratch. The data directory holds ``train`` and ``val`` with a folder per class;
where it does not, one image in ten is held out for the exam. Learning rates follow the batch, as in ``pretrain_2d``.
"""

from __future__ import annotations

from typing import Any, Literal

from hybridmap.backbones import find
from hybridmap.backbones.base import ImageBackbone
from hybridmap.config import override
from hybridmap.data.augment import RandAugment, ThreeAugment
from hybridmap.data.folder import ImageFolder
from hybridmap.data.image_transforms import CentreCrop, RandomResizedCrop
from hybridmap.tasks.classification import Accuracy, Classification
from hybridmap.tasks.knn import KNN
from hybridmap.tasks.linear_probe import LinearProbe
from hybridmap.train.optim import AdamW
from hybridmap.train.recipe import Recipe, TrainConfig
from hybridmap.train.schedule import Cosine

Size = Literal["tiny", "small", "base", "large"]

DROP_PATH: dict[str, tuple[float, float, float]] = {
    "tiny": (0.0, 0.1, 0.1),
    "small": (0.05, 0.15, 0.15),
    "base": (0.1, 0.4, 0.4),
    "large": (0.2, 0.5, 0.5),
}
"""Stochastic depth in stages 1, 2, 3. The source gives base only; the others are our choice."""


def _photos(split: Literal["train", "test"], size: int = 224, crop_ratio: float = 0.875, **training: Any) -> ImageFolder.Config:
    """``training`` is for that split alone, where RandAugment is the default."""
    if split == "train":
        crop = RandomResizedCrop.Config(scale=(0.08, 1.0))
        return ImageFolder.Config(**{"split": "train", "size": size, "crop": crop, "augment": RandAugment.Config()} | training)
    return ImageFolder.Config(split="test", size=size, crop=CentreCrop.Config(crop_ratio=crop_ratio))


def _fixed(split: Literal["train", "test"]) -> ImageFolder.Config:
    """Images for a probe, cropped without randomness."""
    return ImageFolder.Config(split=split, crop=CentreCrop.Config())


def _stage(size: Size, stage: Literal[1, 2, 3], preset: Literal["code", "paper"] = "code") -> Recipe:
    """One of the three stages of Mamba-R: 300 epochs at 128 pixels, 100 at 224, 20 more at 224 with a small, constant rate.

    Source: wangf3014/Mamba-Reg:README.md, main.py @ 0f7c2da. Its EMA of the weights, which it does not evaluate, is off.
    """
    pixels, drop_path = (128, 224, 224)[stage - 1], DROP_PATH[size][stage - 1]
    backbone = override(find(f"hybridnet_{size}_patch16_224", preset), {"img_size": pixels, "drop_path": drop_path})
    last = stage == 3
    base_lr = 5e-4 if stage == 1 else 2e-4
    return Recipe(
        learner=Classification.Config(backbone=backbone, smoothing=0.1 if last else 0.0),
        data=_photos("train", pixels) if last else _photos("train", pixels, augment=ThreeAugment.Config(), repeats=3),
        exams={"val": Accuracy.Config(test=_photos("test", pixels, 1.0 if last else 0.875))},
        optim=AdamW.Config(
            lr=1e-5 if last else None,
            base_lr=base_lr,
            base_batch=512,
            betas=(0.9, 0.999),
            weight_decay=0.1 if last else 0.05,
        ),
        schedule=Cosine.Config(form="epoch", warmup_epochs=5.0, warmup_lr=1e-6, min_lr=1e-5),
        train=TrainConfig(epochs=(300.0, 100.0, 20.0)[stage - 1], batch_size=512 if last else 1024, precision="bf16"),
    )


def _direct(size: Size, epochs: int, preset: Literal["code", "paper"] = "code") -> Recipe:
    """Stage 2 straight from the pretrained weights."""
    return override(_stage(size, 2, preset), {"train.epochs": epochs})


def _vit(backbone: ImageBackbone.Config, *, base_lr: float, layer_decay: float, drop_path: float, epochs: int) -> Recipe:
    """MAE's fine-tuning: the mean of the patches, layer-wise learning rates.

    Source: facebookresearch/mae:FINETUNE.md, main_finetune.py @ efb2a80.
    """
    return Recipe(
        learner=Classification.Config(backbone=override(backbone, {"drop_path": drop_path}), smoothing=0.1, head_std=2e-5),
        data=_photos("train", erasing=0.25),
        exams={"val": Accuracy.Config(test=_photos("test"))},
        optim=AdamW.Config(base_lr=base_lr, base_batch=256, betas=(0.9, 0.999), weight_decay=0.05, layer_decay=layer_decay),
        schedule=Cosine.Config(warmup_epochs=5.0, min_lr=1e-6),
        train=TrainConfig(epochs=float(epochs), batch_size=1024, precision="fp16"),
    )


def ft_3stage_tiny() -> Recipe:
    """HybridNet-T, stage 1 of 3: 300 epochs at 128 pixels, from pretrained weights or from nothing.

    Command: hybridmap finetune ft-3stage-tiny --init runs/map-tiny --data.root IMAGENET --out runs/ft-3stage-tiny
    Cost: about 0.61 h on 8 H200 for 300 epochs of ImageNet, estimated from its operations.
    Expected: not measured.
    Source: wangf3014/Mamba-Reg:README.md @ 0f7c2da, which MAP's README names.
    """
    return _stage("tiny", 1)


def ft_3stage_tiny_stage2() -> Recipe:
    """HybridNet-T, stage 2 of 3: 100 epochs at 224 pixels, from stage 1.

    Command: hybridmap finetune ft-3stage-tiny-stage2 --init runs/ft-3stage-tiny --data.root IMAGENET --out
      runs/ft-3stage-tiny-stage2
    Cost: about 0.58 h on 8 H200 for 100 epochs of ImageNet, estimated from its operations.
    Expected: not measured.
    Source: wangf3014/Mamba-Reg:README.md @ 0f7c2da, which MAP's README names.
    """
    return _stage("tiny", 2)


def ft_3stage_tiny_stage3() -> Recipe:
    """HybridNet-T, stage 3 of 3: 20 epochs at 224 pixels with a constant rate, from stage 2.

    Command: hybridmap finetune ft-3stage-tiny-stage3 --init runs/ft-3stage-tiny-stage2 --data.root IMAGENET --out
      runs/ft-3stage-tiny-stage3
    Cost: about 0.12 h on 8 H200 for 20 epochs of ImageNet, estimated from its operations.
    Expected: the paper prints 78.6 top-1 on ImageNet-1K after 1600 epochs of MAP and 77.1 from scratch (Table 8); ours
      not measured.
    Source: wangf3014/Mamba-Reg:README.md @ 0f7c2da, which MAP's README names.
    """
    return _stage("tiny", 3)


def ft_3stage_small() -> Recipe:
    """HybridNet-S, stage 1 of 3: 300 epochs at 128 pixels, from pretrained weights or from nothing.

    Command: hybridmap finetune ft-3stage-small --init runs/map-small --data.root IMAGENET --out runs/ft-3stage-small
    Cost: about 2.2 h on 8 H200 for 300 epochs of ImageNet, estimated from its operations.
    Expected: not measured.
    Source: wangf3014/Mamba-Reg:README.md @ 0f7c2da, which MAP's README names.
    """
    return _stage("small", 1)


def ft_3stage_small_stage2() -> Recipe:
    """HybridNet-S, stage 2 of 3: 100 epochs at 224 pixels, from stage 1.

    Command: hybridmap finetune ft-3stage-small-stage2 --init runs/ft-3stage-small --data.root IMAGENET --out
      runs/ft-3stage-small-stage2
    Cost: about 2 h on 8 H200 for 100 epochs of ImageNet, estimated from its operations.
    Expected: not measured.
    Source: wangf3014/Mamba-Reg:README.md @ 0f7c2da, which MAP's README names.
    """
    return _stage("small", 2)


def ft_3stage_small_stage3() -> Recipe:
    """HybridNet-S, stage 3 of 3: 20 epochs at 224 pixels with a constant rate, from stage 2.

    Command: hybridmap finetune ft-3stage-small-stage3 --init runs/ft-3stage-small-stage2 --data.root IMAGENET --out
      runs/ft-3stage-small-stage3
    Cost: about 0.4 h on 8 H200 for 20 epochs of ImageNet, estimated from its operations.
    Expected: the paper prints 82.5 top-1 on ImageNet-1K after 1600 epochs of MAP and 81.3 from scratch (Table 8); ours
      not measured.
    Source: wangf3014/Mamba-Reg:README.md @ 0f7c2da, which MAP's README names.
    """
    return _stage("small", 3)


def ft_3stage_base() -> Recipe:
    """HybridNet-B, stage 1 of 3: 300 epochs at 128 pixels, from pretrained weights or from nothing.

    Command: hybridmap finetune ft-3stage-base --init runs/map-base --data.root IMAGENET --out runs/ft-3stage-base
    Cost: about 8.1 h on 8 H200 for 300 epochs of ImageNet, estimated from its operations.
    Expected: not measured.
    Source: wangf3014/Mamba-Reg:README.md @ 0f7c2da, which MAP's README names.
    """
    return _stage("base", 1)


def ft_3stage_base_stage2() -> Recipe:
    """HybridNet-B, stage 2 of 3: 100 epochs at 224 pixels, from stage 1.

    Command: hybridmap finetune ft-3stage-base-stage2 --init runs/ft-3stage-base --data.root IMAGENET --out
      runs/ft-3stage-base-stage2
    Cost: about 7.5 h on 8 H200 for 100 epochs of ImageNet, estimated from its operations.
    Expected: not measured.
    Source: wangf3014/Mamba-Reg:README.md @ 0f7c2da, which MAP's README names.
    """
    return _stage("base", 2)


def ft_3stage_base_stage3() -> Recipe:
    """HybridNet-B, stage 3 of 3: 20 epochs at 224 pixels with a constant rate, from stage 2.

    Command: hybridmap finetune ft-3stage-base-stage3 --init runs/ft-3stage-base-stage2 --data.root IMAGENET --out
      runs/ft-3stage-base-stage3
    Cost: about 1.5 h on 8 H200 for 20 epochs of ImageNet, estimated from its operations.
    Expected: the paper prints 84.9 top-1 on ImageNet-1K after 1600 epochs of MAP and 83.1 from scratch (Table 8); ours
      not measured.
    Source: wangf3014/Mamba-Reg:README.md @ 0f7c2da, which MAP's README names.
    """
    return _stage("base", 3)


def ft_3stage_large() -> Recipe:
    """HybridNet-L, stage 1 of 3: 300 epochs at 128 pixels, from pretrained weights or from nothing.

    Command: hybridmap finetune ft-3stage-large --init runs/map-large --data.root IMAGENET --out runs/ft-3stage-large
    Cost: about 30 h on 8 H200 for 300 epochs of ImageNet, estimated from its operations.
    Expected: not measured.
    Source: wangf3014/Mamba-Reg:README.md @ 0f7c2da, which MAP's README names.
    """
    return _stage("large", 1)


def ft_3stage_large_stage2() -> Recipe:
    """HybridNet-L, stage 2 of 3: 100 epochs at 224 pixels, from stage 1.

    Command: hybridmap finetune ft-3stage-large-stage2 --init runs/ft-3stage-large --data.root IMAGENET --out
      runs/ft-3stage-large-stage2
    Cost: about 27 h on 8 H200 for 100 epochs of ImageNet, estimated from its operations.
    Expected: not measured.
    Source: wangf3014/Mamba-Reg:README.md @ 0f7c2da, which MAP's README names.
    """
    return _stage("large", 2)


def ft_3stage_large_stage3() -> Recipe:
    """HybridNet-L, stage 3 of 3: 20 epochs at 224 pixels with a constant rate, from stage 2.

    Command: hybridmap finetune ft-3stage-large-stage3 --init runs/ft-3stage-large-stage2 --data.root IMAGENET --out
      runs/ft-3stage-large-stage3
    Cost: about 5.3 h on 8 H200 for 20 epochs of ImageNet, estimated from its operations.
    Expected: the paper prints 85.0 top-1 on ImageNet-1K after 1600 epochs of MAP and 83.2 from scratch (Table 8); ours
      not measured.
    Source: wangf3014/Mamba-Reg:README.md @ 0f7c2da, which MAP's README names.
    """
    return _stage("large", 3)


def ft_400_tiny() -> Recipe:
    """HybridNet-T, 400 epochs at 224 pixels: the paper's sentence on fine-tuning, taken literally, and its network.

    Command: hybridmap finetune ft-400-tiny --init runs/map-tiny-paper --data.root IMAGENET --out runs/ft-400-tiny
    Cost: about 2.3 h on 8 H200 for 400 epochs of ImageNet, estimated from its operations.
    Expected: 78.6 top-1 on ImageNet-1K from map-tiny-paper (printed in Table 8); ours not measured.
    Source: arXiv:2410.00871, section 5.1, for the epochs; the settings are stage 2 of ft-3stage.
    """
    return _direct("tiny", 400, "paper")


def ft_400_small() -> Recipe:
    """HybridNet-S, 400 epochs at 224 pixels: the paper's sentence on fine-tuning, taken literally, and its network.

    Command: hybridmap finetune ft-400-small --init runs/map-small-paper --data.root IMAGENET --out runs/ft-400-small
    Cost: about 8.1 h on 8 H200 for 400 epochs of ImageNet, estimated from its operations.
    Expected: 82.5 top-1 on ImageNet-1K from map-small-paper (printed in Table 8); ours not measured.
    Source: arXiv:2410.00871, section 5.1, for the epochs; the settings are stage 2 of ft-3stage.
    """
    return _direct("small", 400, "paper")


def ft_400_base() -> Recipe:
    """HybridNet-B, 400 epochs at 224 pixels: the paper's sentence on fine-tuning, taken literally, and its network.

    Command: hybridmap finetune ft-400-base --init runs/map-base-paper --data.root IMAGENET --out runs/ft-400-base
    Cost: about 28 h on 8 H200 for 400 epochs of ImageNet, estimated from its operations.
    Expected: 84.9 top-1 on ImageNet-1K from map-base-paper (printed in Table 8); ours not measured.
    Source: arXiv:2410.00871, section 5.1, for the epochs; the settings are stage 2 of ft-3stage.
    """
    return _direct("base", 400, "paper")


def ft_400_large() -> Recipe:
    """HybridNet-L, 400 epochs at 224 pixels: the paper's sentence on fine-tuning, taken literally, and its network.

    Command: hybridmap finetune ft-400-large --init runs/map-large-paper --data.root IMAGENET --out runs/ft-400-large
    Cost: about 99 h on 8 H200 for 400 epochs of ImageNet, estimated from its operations.
    Expected: 85.0 top-1 on ImageNet-1K from map-large-paper (printed in Table 8); ours not measured.
    Source: arXiv:2410.00871, section 5.1, for the epochs; the settings are stage 2 of ft-3stage.
    """
    return _direct("large", 400, "paper")


def ft_100_tiny() -> Recipe:
    """HybridNet-T, 100 epochs at 224 pixels: for small budgets and your own images.

    Command: hybridmap finetune ft-100-tiny --init runs/map-tiny --data.root IMAGENET --out runs/ft-100-tiny
    Cost: about 0.58 h on 8 H200 for 100 epochs of ImageNet, estimated from its operations.
    Expected: not measured.
    Source: our choice: stage 2 of ft-3stage alone; ``--optim.layer-decay 0.7`` is worth a try.
    """
    return _direct("tiny", 100)


def ft_100_small() -> Recipe:
    """HybridNet-S, 100 epochs at 224 pixels: for small budgets and your own images.

    Command: hybridmap finetune ft-100-small --init runs/map-small --data.root IMAGENET --out runs/ft-100-small
    Cost: about 2 h on 8 H200 for 100 epochs of ImageNet, estimated from its operations.
    Expected: not measured.
    Source: our choice: stage 2 of ft-3stage alone; ``--optim.layer-decay 0.7`` is worth a try.
    """
    return _direct("small", 100)


def ft_100_base() -> Recipe:
    """HybridNet-B, 100 epochs at 224 pixels: for small budgets and your own images.

    Command: hybridmap finetune ft-100-base --init runs/map-base --data.root IMAGENET --out runs/ft-100-base
    Cost: about 7.5 h on 8 H200 for 100 epochs of ImageNet, estimated from its operations.
    Expected: not measured.
    Source: our choice: stage 2 of ft-3stage alone; ``--optim.layer-decay 0.7`` is worth a try.
    """
    return _direct("base", 100)


def ft_100_large() -> Recipe:
    """HybridNet-L, 100 epochs at 224 pixels: for small budgets and your own images.

    Command: hybridmap finetune ft-100-large --init runs/map-large --data.root IMAGENET --out runs/ft-100-large
    Cost: about 27 h on 8 H200 for 100 epochs of ImageNet, estimated from its operations.
    Expected: not measured.
    Source: our choice: stage 2 of ft-3stage alone; ``--optim.layer-decay 0.7`` is worth a try.
    """
    return _direct("large", 100)


def ft_vit_base() -> Recipe:
    """ViT-B, 100 epochs at 224 pixels, as MAE fine-tunes it.

    Command: hybridmap finetune ft-vit-base --init runs/mae-vit-base --data.root IMAGENET --out runs/ft-vit-base
    Cost: about 4.5 h on 8 H200 for 100 epochs of ImageNet, estimated from its operations.
    Expected: 83.7 top-1 on ImageNet-1K from MAE's 1600-epoch weights (printed by the source); ours not measured.
    Source: facebookresearch/mae:FINETUNE.md @ efb2a80.
    """
    return _vit(find("mae_vit_base_patch16_224"), base_lr=5e-4, layer_decay=0.65, drop_path=0.1, epochs=100)


def ft_vit_large() -> Recipe:
    """ViT-L, 50 epochs at 224 pixels, as MAE fine-tunes it.

    Command: hybridmap finetune ft-vit-large --init runs/mae-vit-large --data.root IMAGENET --out runs/ft-vit-large
    Cost: about 7.9 h on 8 H200 for 50 epochs of ImageNet, estimated from its operations.
    Expected: 86.0 top-1 on ImageNet-1K from MAE's 1600-epoch weights (printed by the source); ours not measured.
    Source: facebookresearch/mae:FINETUNE.md @ efb2a80.
    """
    return _vit(find("mae_vit_large_patch16_224"), base_lr=1e-3, layer_decay=0.75, drop_path=0.2, epochs=50)


def ft_vit_huge() -> Recipe:
    """ViT-H, 50 epochs at 224 pixels, as MAE fine-tunes it.

    Command: hybridmap finetune ft-vit-huge --init runs/mae-vit-huge --data.root IMAGENET --out runs/ft-vit-huge
    Cost: about 21 h on 8 H200 for 50 epochs of ImageNet, estimated from its operations.
    Expected: 86.9 top-1 on ImageNet-1K from MAE's 1600-epoch weights (printed by the source); ours not measured.
    Source: facebookresearch/mae:FINETUNE.md @ efb2a80.
    """
    return _vit(find("mae_vit_huge_patch14_224"), base_lr=1e-3, layer_decay=0.75, drop_path=0.3, epochs=50)


def knn() -> KNN.Config:
    """Nearest neighbours on frozen features, by DINO's protocol.

    Command: hybridmap knn runs/map-base --data.root IMAGENET
    Cost: one pass over all training and test images without gradients.
    Expected: not measured.
    Source: facebookresearch/dino:eval_knn.py; the feature is the mean of the patch tokens, or a ViT's class token.
    """
    return KNN.Config(train=_fixed("train"), test=_fixed("test"))


def probe_linear() -> LinearProbe.Config:
    """A linear classifier on frozen features, by MAE's protocol: LARS, 90 epochs, base rate 0.1.

    Command: hybridmap probe runs/mae-vit-base --data.root IMAGENET --base-lrs 0.1
    Cost: one pass over all training and test images without gradients.
    Expected: 67.8 top-1 on ImageNet-1K with MAE's ViT-B (printed by the source, whose crops are random); ours not
      measured.
    Source: facebookresearch/mae:main_linprobe.py, util/lars.py @ efb2a80; images are cropped once, in the centre, and
      their features kept.
    """
    return LinearProbe.Config(train=_fixed("train"), test=_fixed("test"), base_lrs=(0.1,))
