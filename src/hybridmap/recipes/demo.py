"""The first minutes, on pictures that are already there: pretrain a small HybridNet, then see whether it helped.

Pictures: grey 64-pixel crops of about 18 photographs and textures; the question is which picture a crop was cut from. Training
crops come from the left halves, test crops from the right halves.
"""

from __future__ import annotations

from hybridmap.backbones.hybrid import HybridNet
from hybridmap.data.bundled import BundledPhotos
from hybridmap.layers.mixing import Mixing
from hybridmap.objectives.decoder import MAPDecoder
from hybridmap.objectives.map import MAP
from hybridmap.tasks.classification import Accuracy, Classification
from hybridmap.tasks.knn import KNN
from hybridmap.tasks.linear_probe import LinearProbe
from hybridmap.tokens.masking import Random
from hybridmap.train.optim import Muon
from hybridmap.train.recipe import Recipe, TrainConfig
from hybridmap.train.schedule import Cosine

SOURCES = 18
"""Pictures in the bundle, hence classes."""

BACKBONE = HybridNet.Config(
    layout="MMTT",
    embed_dim=128,
    d_state=4,
    num_heads=4,
    img_size=64,
    patch_size=8,
    in_chans=1,
    num_registers=0,
    num_classes=SOURCES,
)
"""The network of the demo, 64 patches. Without registers its classifier reads the mean of the patches, as the probes do."""

SCALE = (64.0, 64.0)
"""Height of the crops in the pictures: as they are, pixel for pixel."""

TRAIN = BundledPhotos.Config(split="train", per_source=256, scale=SCALE)
"""Crops that probes learn from, the same in every pass."""
TEST = BundledPhotos.Config(split="test", per_source=128, scale=SCALE)
"""Crops that are asked for: a fixed set."""


def demo_pretrain(seed: int = 0) -> Recipe:
    """MAP on the bundled photographs with a HybridNet of two Mamba and two Transformer layers, width 128.

    Two T layers instead of one, because the same steps then gave the larger gain; Muon, because the steps are few, with a
    strong decay, because its noise would pile up in the weights (docs/diary.md has both); crops of half to twice the size that
    is asked for later, and mirrored, because 18 half pictures are little to learn from.

    Command: hybridmap demo
    Cost: under three minutes on two CPU cores.
    Expected: nearest neighbours 11 to 12 points above the untrained network; measured values are in results/demo.json.
    Source: our own; the objective is arXiv:2410.00871.
    """
    return Recipe(
        learner=MAP.Config(
            backbone=BACKBONE,
            masking=Random.Config(ratio=0.75),
            decoder=MAPDecoder.Config(width=96, depth=2, num_heads=4),
        ),
        data=BundledPhotos.Config(split="train", scale=(32.0, 128.0), flip=True),
        exams={},
        optim=Muon.Config(lr=2e-3, matrix_lr=6.0, betas=(0.9, 0.95), weight_decay=1.0),
        schedule=Cosine.Config(warmup_epochs=0.5, min_lr=0.0),
        train=TrainConfig(steps=650, batch_size=64, clip=3.0, precision="fp32"),
        seed=seed,
    )


def demo_finetune(seed: int = 0) -> Recipe:
    """Fine-tune the demo's network, from its pretrained weights or (without --init) from scratch.

    Command: hybridmap finetune demo-finetune --init runs/demo --out runs/demo/finetune
    Cost: under a minute on two CPU cores.
    Expected: measured values are in results/demo.json, beside those from scratch.
    Source: our own.
    """
    learner = Classification.Config(
        backbone=BACKBONE,
        num_classes=SOURCES,
        smoothing=0.1,
        mixing=Mixing.Config(mixup=0.0, cutmix=0.0),
    )
    return Recipe(
        learner=learner,
        data=BundledPhotos.Config(split="train", scale=SCALE),
        exams={"test": Accuracy.Config(test=TEST)},
        optim=Muon.Config(lr=1e-3, matrix_lr=6.0, betas=(0.9, 0.999), weight_decay=0.05),
        schedule=Cosine.Config(warmup_epochs=0.05, min_lr=0.0),
        train=TrainConfig(steps=45, batch_size=32, precision="fp32"),
        seed=seed,
    )


def demo_knn() -> KNN.Config:
    """Nearest neighbours among crops of the bundled photographs.

    Command: hybridmap demo
    Cost: seconds.
    Expected: measured values are in results/demo.json.
    Source: facebookresearch/dino:eval_knn.py for the protocol.
    """
    return KNN.Config(train=TRAIN, test=TEST)


def demo_probe() -> LinearProbe.Config:
    """A linear classifier on crops of the bundled photographs, all learning rates in one pass.

    Command: hybridmap demo
    Cost: seconds.
    Expected: measured values are in results/demo.json.
    Source: facebookresearch/mae:main_linprobe.py for the head; plain momentum instead of LARS, since the steps are few.
    """
    return LinearProbe.Config(train=TRAIN, test=TEST, protocol="sgd", batch_size=256)
