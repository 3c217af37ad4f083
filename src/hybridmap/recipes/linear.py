"""Linear probes by MAE's protocol to the letter: a frozen network, images cropped anew in every epoch, LARS.

    hybridmap finetune lin-vit-base --init runs/mae-vit-base --data.root IMAGENET --out runs/lin-vit-base

``hybridmap probe`` costs one pass over the images and chooses its learning rate; these cost 90 or 50, and take the source's.
"""

from __future__ import annotations

from hybridmap.backbones import find
from hybridmap.backbones.base import ImageBackbone
from hybridmap.data.folder import ImageFolder
from hybridmap.data.image_transforms import CentreCrop, RandomResizedCrop
from hybridmap.tasks.classification import Accuracy
from hybridmap.tasks.linear_classification import LinearClassification
from hybridmap.train.optim import LARS
from hybridmap.train.recipe import Recipe, TrainConfig
from hybridmap.train.schedule import Cosine


def _linear(backbone: ImageBackbone.Config, *, epochs: float = 90.0) -> Recipe:
    """Source: facebookresearch/mae:FINETUNE.md, main_linprobe.py, util/lars.py, util/crop.py @ efb2a80.

    Differs from source: a crop that does not fit into the image is drawn again, as torchvision does, where the source cuts it.
    """
    return Recipe(
        learner=LinearClassification.Config(backbone=backbone),
        data=ImageFolder.Config(split="train", crop=RandomResizedCrop.Config(scale=(0.08, 1.0))),
        exams={"val": Accuracy.Config(test=ImageFolder.Config(split="test", crop=CentreCrop.Config()))},
        optim=LARS.Config(),
        schedule=Cosine.Config(warmup_epochs=10.0),
        train=TrainConfig(epochs=epochs, batch_size=16384, precision="fp16"),
    )


def lin_vit_base() -> Recipe:
    """A linear classifier on a frozen ViT-B, 90 epochs.

    Command: hybridmap finetune lin-vit-base --init runs/mae-vit-base --data.root IMAGENET --out runs/lin-vit-base
    Cost: about 1.3 h on 8 H200 for 90 epochs of ImageNet, estimated from its operations.
    Expected: 67.8 top-1 on ImageNet-1K from MAE's 1600-epoch weights (printed by the source); ours not measured.
    Source: facebookresearch/mae:FINETUNE.md @ efb2a80.
    """
    return _linear(find("mae_vit_base_patch16_224"))


def lin_vit_large() -> Recipe:
    """A linear classifier on a frozen ViT-L, 50 epochs.

    Command: hybridmap finetune lin-vit-large --init runs/mae-vit-large --data.root IMAGENET --out runs/lin-vit-large
    Cost: about 2.6 h on 8 H200 for 50 epochs of ImageNet, estimated from its operations.
    Expected: not measured.
    Source: facebookresearch/mae:FINETUNE.md @ efb2a80.
    """
    return _linear(find("mae_vit_large_patch16_224"), epochs=50.0)


def lin_vit_huge() -> Recipe:
    """A linear classifier on a frozen ViT-H, 50 epochs.

    Command: hybridmap finetune lin-vit-huge --init runs/mae-vit-huge --data.root IMAGENET --out runs/lin-vit-huge
    Cost: about 7.1 h on 8 H200 for 50 epochs of ImageNet, estimated from its operations.
    Expected: not measured.
    Source: facebookresearch/mae:FINETUNE.md @ efb2a80.
    """
    return _linear(find("mae_vit_huge_patch14_224"), epochs=50.0)


def lin_tiny() -> Recipe:
    """A linear classifier on the mean of a frozen HybridNet-T's patches, 90 epochs.

    Command: hybridmap finetune lin-tiny --init runs/map-tiny --data.root IMAGENET --out runs/lin-tiny
    Cost: about 0.16 h on 8 H200 for 90 epochs of ImageNet, estimated from its operations.
    Expected: not measured.
    Source: facebookresearch/mae:FINETUNE.md @ efb2a80 for the protocol; the mean of the patches is our choice.
    """
    return _linear(find("hybridnet_tiny_patch16_224"))


def lin_small() -> Recipe:
    """A linear classifier on the mean of a frozen HybridNet-S's patches, 90 epochs.

    Command: hybridmap finetune lin-small --init runs/map-small --data.root IMAGENET --out runs/lin-small
    Cost: about 0.57 h on 8 H200 for 90 epochs of ImageNet, estimated from its operations.
    Expected: not measured.
    Source: facebookresearch/mae:FINETUNE.md @ efb2a80 for the protocol; the mean of the patches is our choice.
    """
    return _linear(find("hybridnet_small_patch16_224"))


def lin_base() -> Recipe:
    """A linear classifier on the mean of a frozen HybridNet-B's patches, 90 epochs.

    Command: hybridmap finetune lin-base --init runs/map-base --data.root IMAGENET --out runs/lin-base
    Cost: about 2.1 h on 8 H200 for 90 epochs of ImageNet, estimated from its operations.
    Expected: not measured.
    Source: facebookresearch/mae:FINETUNE.md @ efb2a80 for the protocol; the mean of the patches is our choice.
    """
    return _linear(find("hybridnet_base_patch16_224"))


def lin_large() -> Recipe:
    """A linear classifier on the mean of a frozen HybridNet-L's patches, 50 epochs.

    Command: hybridmap finetune lin-large --init runs/map-large --data.root IMAGENET --out runs/lin-large
    Cost: about 4.1 h on 8 H200 for 50 epochs of ImageNet, estimated from its operations.
    Expected: not measured.
    Source: facebookresearch/mae:FINETUNE.md @ efb2a80 for the protocol; the mean of the patches is our choice.
    """
    return _linear(find("hybridnet_large_patch16_224"), epochs=50.0)
