"""Pretraining on images: MAP and what it is compared with, by objective, family and size.

Three scales of the same thing. Plain names (``map-base``) are for one machine: 300 epochs, batch 128. ``-paper`` is the run of
the paper, ``-released`` what the released code does where it differs. Learning rates follow the batch (``optim.base_lr``), so
``--train.batch-size`` is free to choose; what does not fit into memory at once is split by ``--train.accumulate``.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

from hybridmap.backbones import find
from hybridmap.backbones.base import ImageBackbone
from hybridmap.config import Config, override
from hybridmap.data.augment import RandAugment
from hybridmap.data.folder import ImageFolder
from hybridmap.data.image_transforms import RandomResizedCrop
from hybridmap.layers.mixing import Mixing
from hybridmap.objectives.decoder import MAEDecoder
from hybridmap.objectives.map import MAP
from hybridmap.tokens.masking import Random
from hybridmap.tokens.regions import Whole
from hybridmap.train.optim import AdamW
from hybridmap.train.recipe import Recipe, TrainConfig
from hybridmap.train.schedule import Cosine

Size = Literal["tiny", "small", "base", "large", "huge"]


def _pretrain(learner: Config) -> Recipe:
    """MAE's optimisation, which is our reading of the paper where it is silent, at a scale for one machine."""
    return Recipe(
        learner=learner,
        data=ImageFolder.Config(crop=RandomResizedCrop.Config(scale=(0.2, 1.0))),
        exams={},
        optim=AdamW.Config(base_lr=1.5e-4, base_batch=256, betas=(0.9, 0.95), weight_decay=0.05),
        schedule=Cosine.Config(warmup_epochs=40.0, min_lr=0.0),
        train=TrainConfig(epochs=300.0, batch_size=128, precision="bf16"),
    )


def _hybridnet(size: Size, preset: Literal["code", "paper"] = "code") -> ImageBackbone.Config:
    return find(f"hybridnet_{size}_patch16_224", preset)


def _paper(recipe: Recipe) -> Recipe:
    return override(recipe, {"train.epochs": 1600, "train.batch_size": 4096})


def _released(size: Size) -> Recipe:
    """What the released script runs. The moving average that it keeps beside the weights, and does not use, is off."""
    backbone = override(_hybridnet(size), {"drop_path": 0.1, "init": "released"})
    masking = Random.Config(ratio_range=(0.3, 0.7), ratio_std=0.25)
    return replace(
        _pretrain(MAP.Config(backbone=backbone, masking=masking, mixing=Mixing.Config())),
        data=ImageFolder.Config(
            crop=RandomResizedCrop.Config(scale=(0.08, 1.0)), augment=RandAugment.Config(), erasing=0.25, repeats=3
        ),
        optim=AdamW.Config(base_lr=5e-4, base_batch=512, betas=(0.9, 0.999), weight_decay=0.05, decay_ssm_state=True),
        schedule=Cosine.Config(form="epoch", warmup_epochs=5.0, warmup_lr=1e-6, min_lr=1e-5),
        train=TrainConfig(epochs=1600.0, batch_size=8192, precision="bf16"),
    )


def _mae_mask(recipe: Recipe) -> Recipe:
    """One region: every patch may look at every other, and three quarters are hidden."""
    return override(recipe, {"learner.decoder_mask": "mae", "learner.masking.ratio": 0.75})


def _mae_vit(backbone: ImageBackbone.Config) -> Recipe:
    """MAE itself, to the letter of its source."""
    learner = MAP.Config(
        backbone=backbone,
        masking=Random.Config(ratio=0.75, rounding="keep_floor"),
        regions=Whole.Config(),
        decoder=MAEDecoder.Config(),
        decoder_mask="mae",
    )
    return override(_pretrain(learner), {"train.epochs": 800, "train.batch_size": 4096, "train.precision": "fp16"})


def map_tiny() -> Recipe:
    """MAP on HybridNet-T (12 M parameters), for one machine and any folder of images.

    Command: hybridmap pretrain map-tiny --data.root IMAGENET/train --out runs/map-tiny
    Cost: about 1.1 h on 8 H200 for 300 epochs of ImageNet, estimated from its operations.
    Expected: the paper's run (map-tiny-paper) reaches 78.6 top-1 after fine-tuning; this scale is not measured.
    Source: arXiv:2410.00871, section 5.1; optimisation as MAE's (arXiv:2111.06377), scaled to one machine.
    """
    return _pretrain(MAP.Config(backbone=_hybridnet("tiny")))


def map_small() -> Recipe:
    """MAP on HybridNet-S (37 M parameters), for one machine and any folder of images.

    Command: hybridmap pretrain map-small --data.root IMAGENET/train --out runs/map-small
    Cost: about 3.2 h on 8 H200 for 300 epochs of ImageNet, estimated from its operations.
    Expected: the paper's run (map-small-paper) reaches 82.5 top-1 after fine-tuning; this scale is not measured.
    Source: arXiv:2410.00871, section 5.1; optimisation as MAE's (arXiv:2111.06377), scaled to one machine.
    """
    return _pretrain(MAP.Config(backbone=_hybridnet("small")))


def map_base() -> Recipe:
    """MAP on HybridNet-B (137 M parameters), for one machine and any folder of images.

    Command: hybridmap pretrain map-base --data.root IMAGENET/train --out runs/map-base
    Cost: about 11 h on 8 H200 for 300 epochs of ImageNet, estimated from its operations.
    Expected: the paper's run (map-base-paper) reaches 84.9 top-1 after fine-tuning; this scale is not measured.
    Source: arXiv:2410.00871, section 5.1; optimisation as MAE's (arXiv:2111.06377), scaled to one machine.
    """
    return _pretrain(MAP.Config(backbone=_hybridnet("base")))


def map_large() -> Recipe:
    """MAP on HybridNet-L (476 M parameters), for one machine and any folder of images.

    Command: hybridmap pretrain map-large --data.root IMAGENET/train --out runs/map-large
    Cost: about 37 h on 8 H200 for 300 epochs of ImageNet, estimated from its operations.
    Expected: the paper's run (map-large-paper) reaches 85.0 top-1 after fine-tuning; this scale is not measured.
    Source: arXiv:2410.00871, section 5.1; optimisation as MAE's (arXiv:2111.06377), scaled to one machine.
    """
    return _pretrain(MAP.Config(backbone=_hybridnet("large")))


def map_huge() -> Recipe:
    """MAP on HybridNet-H (796 M parameters), for one machine and any folder of images.

    Command: hybridmap pretrain map-huge --data.root IMAGENET/train --out runs/map-huge
    Cost: about 61 h on 8 H200 for 300 epochs of ImageNet, estimated from its operations.
    Expected: not measured; the paper has no huge size.
    Source: arXiv:2410.00871, section 5.1, for the method; the size is yunzeliu/MAP:models_mamba.py @ f3bcdff.
    """
    return _pretrain(MAP.Config(backbone=_hybridnet("huge")))


def map_tiny_paper() -> Recipe:
    """MAP on HybridNet-T (12 M parameters) as the paper describes it: 1600 epochs, half of the patches hidden.

    The paper crops only; flips are MAE's. ``--data.crop.flip false`` takes the text literally.

    Command: hybridmap pretrain map-tiny-paper --data.root IMAGENET/train --out runs/map-tiny-paper
    Cost: about 6.1 h on 8 H200 for 1600 epochs of ImageNet, estimated from its operations.
    Expected: 78.6 top-1 on ImageNet-1K after ft-400-tiny (printed in Table 8); ours not measured.
    Source: arXiv:2410.00871, section 5.1. Batch, learning rate, betas, decay and warm-up are not given there; they are MAE's.
    """
    return _paper(_pretrain(MAP.Config(backbone=_hybridnet("tiny", "paper"))))


def map_small_paper() -> Recipe:
    """MAP on HybridNet-S (37 M parameters) as the paper describes it: 1600 epochs, half of the patches hidden.

    The paper crops only; flips are MAE's. ``--data.crop.flip false`` takes the text literally.

    Command: hybridmap pretrain map-small-paper --data.root IMAGENET/train --out runs/map-small-paper
    Cost: about 17 h on 8 H200 for 1600 epochs of ImageNet, estimated from its operations.
    Expected: 82.5 top-1 on ImageNet-1K after ft-400-small (printed in Table 8); ours not measured.
    Source: arXiv:2410.00871, section 5.1. Batch, learning rate, betas, decay and warm-up are not given there; they are MAE's.
    """
    return _paper(_pretrain(MAP.Config(backbone=_hybridnet("small", "paper"))))


def map_base_paper() -> Recipe:
    """MAP on HybridNet-B (128 M parameters) as the paper describes it: 1600 epochs, half of the patches hidden.

    The paper crops only; flips are MAE's. ``--data.crop.flip false`` takes the text literally.

    Command: hybridmap pretrain map-base-paper --data.root IMAGENET/train --out runs/map-base-paper
    Cost: about 54 h on 8 H200 for 1600 epochs of ImageNet, estimated from its operations.
    Expected: 84.9 top-1 on ImageNet-1K after ft-400-base (printed in Table 8); ours not measured.
    Source: arXiv:2410.00871, section 5.1. Batch, learning rate, betas, decay and warm-up are not given there; they are MAE's.
    """
    return _paper(_pretrain(MAP.Config(backbone=_hybridnet("base", "paper"))))


def map_large_paper() -> Recipe:
    """MAP on HybridNet-L (442 M parameters) as the paper describes it: 1600 epochs, half of the patches hidden.

    The paper crops only; flips are MAE's. ``--data.crop.flip false`` takes the text literally.

    Command: hybridmap pretrain map-large-paper --data.root IMAGENET/train --out runs/map-large-paper
    Cost: about 180 h on 8 H200 for 1600 epochs of ImageNet, estimated from its operations.
    Expected: 85.0 top-1 on ImageNet-1K after ft-400-large (printed in Table 8); ours not measured.
    Source: arXiv:2410.00871, section 5.1. Batch, learning rate, betas, decay and warm-up are not given there; they are MAE's.
    """
    return _paper(_pretrain(MAP.Config(backbone=_hybridnet("large", "paper"))))


def map_tiny_released() -> Recipe:
    """MAP on HybridNet-T with the settings of the released script where they differ from the paper.

    Command: hybridmap pretrain map-tiny-released --data.root IMAGENET/train --out runs/map-tiny-released
    Cost: about 7.6 h on 8 H200 for 1600 epochs of ImageNet, estimated from its operations.
    Expected: 78.6 top-1 on ImageNet-1K after fine-tuning is the paper's number; whether these settings gave it is not known;
      ours not measured.
    Source: yunzeliu/MAP:main.py, README.md @ f3bcdff (batch 8 x 1024; the rate of 8e-3 is high and may diverge).
    """
    return _released("tiny")


def map_small_released() -> Recipe:
    """MAP on HybridNet-S with the settings of the released script where they differ from the paper.

    Command: hybridmap pretrain map-small-released --data.root IMAGENET/train --out runs/map-small-released
    Cost: about 22 h on 8 H200 for 1600 epochs of ImageNet, estimated from its operations.
    Expected: 82.5 top-1 on ImageNet-1K after fine-tuning is the paper's number; whether these settings gave it is not known;
      ours not measured.
    Source: yunzeliu/MAP:main.py, README.md @ f3bcdff (batch 8 x 1024; the rate of 8e-3 is high and may diverge).
    """
    return _released("small")


def map_base_released() -> Recipe:
    """MAP on HybridNet-B with the settings of the released script where they differ from the paper.

    Command: hybridmap pretrain map-base-released --data.root IMAGENET/train --out runs/map-base-released
    Cost: about 77 h on 8 H200 for 1600 epochs of ImageNet, estimated from its operations.
    Expected: 84.9 top-1 on ImageNet-1K after fine-tuning is the paper's number; whether these settings gave it is not known;
      ours not measured.
    Source: yunzeliu/MAP:main.py, README.md @ f3bcdff (batch 8 x 1024; the rate of 8e-3 is high and may diverge).
    """
    return _released("base")


def map_large_released() -> Recipe:
    """MAP on HybridNet-L with the settings of the released script where they differ from the paper.

    Command: hybridmap pretrain map-large-released --data.root IMAGENET/train --out runs/map-large-released
    Cost: about 260 h on 8 H200 for 1600 epochs of ImageNet, estimated from its operations.
    Expected: 85.0 top-1 on ImageNet-1K after fine-tuning is the paper's number; whether these settings gave it is not known;
      ours not measured.
    Source: yunzeliu/MAP:main.py, README.md @ f3bcdff (batch 8 x 1024; the rate of 8e-3 is high and may diverge). The
      released 12 heads do not divide the width 1024; 16 are used.
    """
    return _released("large")


def map_huge_released() -> Recipe:
    """MAP on HybridNet-H with the settings of the released script where they differ from the paper.

    Command: hybridmap pretrain map-huge-released --data.root IMAGENET/train --out runs/map-huge-released
    Cost: about 440 h on 8 H200 for 1600 epochs of ImageNet, estimated from its operations.
    Expected: not measured; the paper has no huge size.
    Source: yunzeliu/MAP:main.py, README.md @ f3bcdff (batch 8 x 1024; the rate of 8e-3 is high and may diverge).
    """
    return _released("huge")


def mae_tiny() -> Recipe:
    """MAE on HybridNet-T: the decoder looks everywhere, 75 % of the patches are hidden, all else as map-tiny.

    Command: hybridmap pretrain mae-tiny --data.root IMAGENET/train --out runs/mae-tiny
    Cost: about 0.74 h on 8 H200 for 300 epochs of ImageNet, estimated from its operations.
    Expected: not measured.
    Source: arXiv:2410.00871, Table 8 (the ratio and the decoder are our reading: MAE's ratio, MAP's decoder).
    """
    return _mae_mask(map_tiny())


def mae_small() -> Recipe:
    """MAE on HybridNet-S: the decoder looks everywhere, 75 % of the patches are hidden, all else as map-small.

    Command: hybridmap pretrain mae-small --data.root IMAGENET/train --out runs/mae-small
    Cost: about 1.8 h on 8 H200 for 300 epochs of ImageNet, estimated from its operations.
    Expected: not measured.
    Source: arXiv:2410.00871, Table 8 (the ratio and the decoder are our reading: MAE's ratio, MAP's decoder).
    """
    return _mae_mask(map_small())


def mae_base() -> Recipe:
    """MAE on HybridNet-B: the decoder looks everywhere, 75 % of the patches are hidden, all else as map-base.

    Command: hybridmap pretrain mae-base --data.root IMAGENET/train --out runs/mae-base
    Cost: about 5.6 h on 8 H200 for 300 epochs of ImageNet, estimated from its operations.
    Expected: the paper's run reaches 83.9 top-1 after fine-tuning (Table 8); this scale is not measured.
    Source: arXiv:2410.00871, Table 8 (the ratio and the decoder are our reading: MAE's ratio, MAP's decoder).
    """
    return _mae_mask(map_base())


def mae_large() -> Recipe:
    """MAE on HybridNet-L: the decoder looks everywhere, 75 % of the patches are hidden, all else as map-large.

    Command: hybridmap pretrain mae-large --data.root IMAGENET/train --out runs/mae-large
    Cost: about 19 h on 8 H200 for 300 epochs of ImageNet, estimated from its operations.
    Expected: not measured.
    Source: arXiv:2410.00871, Table 8 (the ratio and the decoder are our reading: MAE's ratio, MAP's decoder).
    """
    return _mae_mask(map_large())


def local_mae_tiny() -> Recipe:
    """Local MAE on HybridNet-T: each row is predicted from itself alone, all else as map-tiny.

    Command: hybridmap pretrain local-mae-tiny --data.root IMAGENET/train --out runs/local-mae-tiny
    Cost: about 1.1 h on 8 H200 for 300 epochs of ImageNet, estimated from its operations.
    Expected: not measured.
    Source: arXiv:2410.00871, Table 6 and Figure 6(c).
    """
    return override(map_tiny(), {"learner.decoder_mask": "local_mae"})


def local_mae_small() -> Recipe:
    """Local MAE on HybridNet-S: each row is predicted from itself alone, all else as map-small.

    Command: hybridmap pretrain local-mae-small --data.root IMAGENET/train --out runs/local-mae-small
    Cost: about 3.2 h on 8 H200 for 300 epochs of ImageNet, estimated from its operations.
    Expected: not measured.
    Source: arXiv:2410.00871, Table 6 and Figure 6(c).
    """
    return override(map_small(), {"learner.decoder_mask": "local_mae"})


def local_mae_base() -> Recipe:
    """Local MAE on HybridNet-B: each row is predicted from itself alone, all else as map-base.

    Command: hybridmap pretrain local-mae-base --data.root IMAGENET/train --out runs/local-mae-base
    Cost: about 11 h on 8 H200 for 300 epochs of ImageNet, estimated from its operations.
    Expected: the paper's run reaches 84.2 top-1 after fine-tuning (Table 6); this scale is not measured.
    Source: arXiv:2410.00871, Table 6 and Figure 6(c).
    """
    return override(map_base(), {"learner.decoder_mask": "local_mae"})


def local_mae_large() -> Recipe:
    """Local MAE on HybridNet-L: each row is predicted from itself alone, all else as map-large.

    Command: hybridmap pretrain local-mae-large --data.root IMAGENET/train --out runs/local-mae-large
    Cost: about 37 h on 8 H200 for 300 epochs of ImageNet, estimated from its operations.
    Expected: not measured.
    Source: arXiv:2410.00871, Table 6 and Figure 6(c).
    """
    return override(map_large(), {"learner.decoder_mask": "local_mae"})


def ar_mask_base() -> Recipe:
    """HybridNet-B with a token-causal decoder mask, all else as map-base.

    Command: hybridmap pretrain ar-mask-base --data.root IMAGENET/train --out runs/ar-mask-base
    Cost: about 11 h on 8 H200 for 300 epochs of ImageNet, estimated from its operations.
    Expected: the paper's run reaches 83.7 top-1 after fine-tuning (Table 6); this scale is not measured.
    Source: arXiv:2410.00871, Table 6 and Figure 6(a); the order is row by row (our reading).
    """
    return override(map_base(), {"learner.decoder_mask": "ar"})


def mae_mask_base() -> Recipe:
    """HybridNet-B with MAE's decoder mask but MAP's ratio of one half, all else as map-base.

    Command: hybridmap pretrain mae-mask-base --data.root IMAGENET/train --out runs/mae-mask-base
    Cost: about 11 h on 8 H200 for 300 epochs of ImageNet, estimated from its operations.
    Expected: the paper's run reaches 84.1 top-1 after fine-tuning (Table 6); this scale is not measured.
    Source: arXiv:2410.00871, Table 6 and Figure 6(b).
    """
    return override(map_base(), {"learner.decoder_mask": "mae"})


def mae_vit_small() -> Recipe:
    """MAE on ViT-S (22 M parameters), exactly as its authors train it: class token, fixed positions, their decoder.

    Command: hybridmap pretrain mae-vit-small --data.root IMAGENET/train --out runs/mae-vit-small
    Cost: about 13 h on 8 H200 for 800 epochs of ImageNet, estimated from its operations.
    Expected: not measured.
    Source: facebookresearch/mae:PRETRAIN.md @ efb2a80 for the settings; the source has no small size, DeiT's shape is used.
    """
    return _mae_vit(find("mae_vit_small_patch16_224"))


def mae_vit_base() -> Recipe:
    """MAE on ViT-B (86 M parameters), exactly as its authors train it: class token, fixed positions, their decoder.

    Command: hybridmap pretrain mae-vit-base --data.root IMAGENET/train --out runs/mae-vit-base
    Cost: about 20 h on 8 H200 for 800 epochs of ImageNet, estimated from its operations.
    Expected: 83.7 top-1 after 1600 epochs and ft-vit-base, 67.8 linear (printed by the source); ours not measured.
    Source: facebookresearch/mae:PRETRAIN.md, main_pretrain.py @ efb2a80 (800 epochs, batch 4096, fp16).
    """
    return _mae_vit(find("mae_vit_base_patch16_224"))


def mae_vit_large() -> Recipe:
    """MAE on ViT-L (304 M parameters), exactly as its authors train it: class token, fixed positions, their decoder.

    Command: hybridmap pretrain mae-vit-large --data.root IMAGENET/train --out runs/mae-vit-large
    Cost: about 42 h on 8 H200 for 800 epochs of ImageNet, estimated from its operations.
    Expected: 86.0 top-1 after 1600 epochs and ft-vit-large, 76.0 linear (printed by the source); ours not measured.
    Source: facebookresearch/mae:PRETRAIN.md, main_pretrain.py @ efb2a80 (800 epochs, batch 4096, fp16).
    """
    return _mae_vit(find("mae_vit_large_patch16_224"))


def mae_vit_huge() -> Recipe:
    """MAE on ViT-H (632 M parameters), exactly as its authors train it: class token, fixed positions, their decoder.

    Command: hybridmap pretrain mae-vit-huge --data.root IMAGENET/train --out runs/mae-vit-huge
    Cost: about 99 h on 8 H200 for 800 epochs of ImageNet, estimated from its operations.
    Expected: 86.9 top-1 after 1600 epochs and ft-vit-huge, 77.2 linear (printed by the source); ours not measured.
    Source: facebookresearch/mae:PRETRAIN.md, main_pretrain.py @ efb2a80 (800 epochs, batch 4096, fp16).
    """
    return _mae_vit(find("mae_vit_huge_patch14_224"))


def map_vit_base() -> Recipe:
    """MAP on ViT-B: MAE's encoder with MAP's rows, ratio and decoder; the class token is not decoded.

    Command: hybridmap pretrain map-vit-base --data.root IMAGENET/train --out runs/map-vit-base
    Cost: about 7 h on 8 H200 for 300 epochs of ImageNet, estimated from its operations.
    Expected: the paper's run reaches 83.6 top-1 after fine-tuning (Table 8); this scale is not measured.
    Source: arXiv:2410.00871, Table 8, which gives no details. ``--learner.decoder.type MAEDecoder`` makes the pair with
      mae-vit-base fair in decoder size.
    """
    return _pretrain(MAP.Config(backbone=find("mae_vit_base_patch16_224")))


def map_vit_large() -> Recipe:
    """MAP on ViT-L: MAE's encoder with MAP's rows, ratio and decoder; the class token is not decoded.

    Command: hybridmap pretrain map-vit-large --data.root IMAGENET/train --out runs/map-vit-large
    Cost: about 24 h on 8 H200 for 300 epochs of ImageNet, estimated from its operations.
    Expected: the paper's run reaches 86.1 top-1 after fine-tuning (Table 8); this scale is not measured.
    Source: arXiv:2410.00871, Table 8, which gives no details. ``--learner.decoder.type MAEDecoder`` makes the pair with
      mae-vit-large fair in decoder size.
    """
    return _pretrain(MAP.Config(backbone=find("mae_vit_large_patch16_224")))


def map_mambar_tiny() -> Recipe:
    """MAP on Mamba-R-T, Mamba layers only, without its registers while it is pretrained.

    Command: hybridmap pretrain map-mambar-tiny --data.root IMAGENET/train --out runs/map-mambar-tiny
    Cost: about 0.94 h on 8 H200 for 300 epochs of ImageNet, estimated from its operations.
    Expected: not measured.
    Source: arXiv:2410.00871, Table 8; the network is arXiv:2405.14858.
    """
    return _pretrain(MAP.Config(backbone=find("mambar_tiny_patch16_224")))


def map_mambar_small() -> Recipe:
    """MAP on Mamba-R-S, Mamba layers only, without its registers while it is pretrained.

    Command: hybridmap pretrain map-mambar-small --data.root IMAGENET/train --out runs/map-mambar-small
    Cost: about 2.4 h on 8 H200 for 300 epochs of ImageNet, estimated from its operations.
    Expected: not measured.
    Source: arXiv:2410.00871, Table 8; the network is arXiv:2405.14858.
    """
    return _pretrain(MAP.Config(backbone=find("mambar_small_patch16_224")))


def map_mambar_base() -> Recipe:
    """MAP on Mamba-R-B, Mamba layers only, without its registers while it is pretrained.

    Command: hybridmap pretrain map-mambar-base --data.root IMAGENET/train --out runs/map-mambar-base
    Cost: about 8 h on 8 H200 for 300 epochs of ImageNet, estimated from its operations.
    Expected: the paper's run reaches 84.0 top-1 after fine-tuning (Table 8); this scale is not measured.
    Source: arXiv:2410.00871, Table 8; the network is arXiv:2405.14858.
    """
    return _pretrain(MAP.Config(backbone=find("mambar_base_patch16_224")))


def map_mambar_large() -> Recipe:
    """MAP on Mamba-R-L, Mamba layers only, without its registers while it is pretrained.

    Command: hybridmap pretrain map-mambar-large --data.root IMAGENET/train --out runs/map-mambar-large
    Cost: about 27 h on 8 H200 for 300 epochs of ImageNet, estimated from its operations.
    Expected: the paper's run reaches 84.8 top-1 after fine-tuning (Table 8); this scale is not measured.
    Source: arXiv:2410.00871, Table 8; the network is arXiv:2405.14858.
    """
    return _pretrain(MAP.Config(backbone=find("mambar_large_patch16_224")))
