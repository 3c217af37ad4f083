"""Pretraining on clouds of points: MAP and Point-MAE on the hybrid, Mamba3D and the plain Transformer; PointMamba.

What the official runs have in common: AdamW 1e-3, weight decay 0.05 (of A_log too), cosine to 1e-6 over 300 epochs after 10 of
warm-up, batch 128, float32, 64 patches of 32 out of 1024 points. Their loop runs one epoch more.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from hybridmap.backbones.cloud import CloudBackbone
from hybridmap.backbones.hybrid3d import HybridNet3D
from hybridmap.backbones.point_mamba import PointMamba
from hybridmap.backbones.point_transformer import PointTransformer
from hybridmap.config import override
from hybridmap.data.point_augment import Rotate, RotateAndScale, ScaleAndTranslate
from hybridmap.data.point_clouds import MadeShapes, ShapeNet
from hybridmap.objectives.chamfer import Chamfer
from hybridmap.objectives.map import MAP
from hybridmap.objectives.point_decoder import CurveDecoder, PointDecoder
from hybridmap.tokens.masking import Random
from hybridmap.tokens.regions import VisibleFirst, Whole
from hybridmap.train.optim import AdamW
from hybridmap.train.recipe import Recipe, TrainConfig
from hybridmap.train.schedule import Cosine


def _pretrain(learner: MAP.Config, augment: Any) -> Recipe:
    return Recipe(
        learner=learner,
        data=ShapeNet.Config(augment=augment),
        exams={},
        optim=AdamW.Config(lr=1e-3, betas=(0.9, 0.999), weight_decay=0.05, decay_ssm_state=True),
        schedule=Cosine.Config(form="epoch", warmup_epochs=10.0, warmup_lr=1e-6, min_lr=1e-6),
        train=TrainConfig(epochs=300.0, batch_size=128),
    )


def _map(backbone: CloudBackbone.Config) -> Recipe:
    learner = MAP.Config(
        backbone=backbone,
        masking=Random.Config(ratio=0.5, rounding="floor"),
        regions=VisibleFirst.Config(),
        decoder=PointDecoder.Config(),
        target=Chamfer.Config(),
    )
    return _pretrain(learner, RotateAndScale.Config())


def _point_mae(backbone: CloudBackbone.Config, augment: Any) -> Recipe:
    learner = MAP.Config(
        backbone=backbone,
        masking=Random.Config(ratio=0.6, rounding="floor"),
        regions=Whole.Config(),
        decoder=PointDecoder.Config(),
        decoder_mask="mae",
        target=Chamfer.Config(),
    )
    return _pretrain(learner, augment)


def _hybrid(layout: str = "MMMT" * 4) -> HybridNet3D.Config:
    return HybridNet3D.Config(layout=layout, num_patches=64, drop_path=0.1)


def map_points() -> Recipe:
    """MAP on the hybrid for points (25 M parameters): 64 patches, half of them hidden, blocks of eight.

    Command: hybridmap pretrain map-points --data.root SHAPENET55 --out runs/map-points
    Cost: not measured.
    Expected: the paper's run reaches 95.4 on ModelNet40 after fine-tuning, 95.9 by voting (Table 11); ours not measured.
    Source: arXiv:2410.00871, section 5.3; learning rate, batch and schedule are those of xhanxu/Mamba3D, since MAP gives none.
    """
    return _map(_hybrid())


def map_points_mamba3d() -> Recipe:
    """MAP on Mamba3D (16.9 M parameters).

    Command: hybridmap pretrain map-points-mamba3d --data.root SHAPENET55 --out runs/map-points-mamba3d
    Cost: not measured.
    Expected: the paper's run reaches 95.1 on ModelNet40 after fine-tuning, 95.6 by voting (Table 11); ours not measured.
    Source: as map-points.
    """
    return _map(_hybrid("M" * 12))


def map_points_transformer() -> Recipe:
    """MAP on the plain Transformer for points (22.1 M parameters).

    Command: hybridmap pretrain map-points-transformer --data.root SHAPENET55 --out runs/map-points-transformer
    Cost: not measured.
    Expected: not measured.
    Source: as map-points; yunzeliu/MAP:PointMAP/point_transformer.py.
    """
    return _map(PointTransformer.Config(drop_path=0.1))


def map_points_made() -> Recipe:
    """MAP on the hybrid for points, on shapes that are made: nothing to download.

    Command: hybridmap pretrain map-points-made --out runs/map-points-made
    Cost: not measured.
    Expected: a falling loss; accuracies on made shapes are comparable with nothing.
    Source: as map-points.
    """
    made = MadeShapes.Config(augment=RotateAndScale.Config())
    return override(replace(_map(_hybrid()), data=made), {"train.epochs": 50, "train.batch_size": 32})


def point_mae() -> Recipe:
    """Point-MAE on the plain Transformer (22.1 M parameters): six patches of ten hidden, everything predicted at once.

    Command: hybridmap pretrain point-mae --data.root SHAPENET55 --out runs/point-mae
    Cost: not measured.
    Expected: its authors print 93.8 on ModelNet40 after fine-tuning; ours not measured.
    Source: arXiv:2203.06604, cfgs/pretrain.yaml.
    """
    return _point_mae(PointTransformer.Config(drop_path=0.1), ScaleAndTranslate.Config())


def point_mae_mamba3d() -> Recipe:
    """Point-MAE on Mamba3D (16.9 M parameters).

    Command: hybridmap pretrain point-mae-mamba3d --data.root SHAPENET55 --out runs/point-mae-mamba3d
    Cost: not measured.
    Expected: its authors print 94.7 on ModelNet40 after fine-tuning; ours not measured.
    Source: arXiv:2404.14966, cfgs/pretrain.yaml.
    """
    return _point_mae(_hybrid("M" * 12), Rotate.Config())


def point_mae_hybrid() -> Recipe:
    """Point-MAE on the hybrid for points (25 M parameters), which MAP is compared with.

    Command: hybridmap pretrain point-mae-hybrid --data.root SHAPENET55 --out runs/point-mae-hybrid
    Cost: not measured.
    Expected: not measured.
    Source: arXiv:2203.06604 for the objective, arXiv:2410.00871 for the network.
    """
    return _point_mae(_hybrid(), Rotate.Config())


def pointmamba() -> Recipe:
    """PointMamba (12.3 M parameters): Point-MAE along one of two Hilbert curves, with a decoder of Mamba layers.

    Command: hybridmap pretrain pointmamba --data.root SHAPENET55 --out runs/pointmamba
    Cost: not measured.
    Expected: its authors print 93.6 on ModelNet40 after fine-tuning; ours not measured.
    Source: arXiv:2402.10739 (the version of NeurIPS 2024).
    """
    recipe = _point_mae(PointMamba.Config(drop_path=0.1), Rotate.Config())
    return replace(recipe, learner=replace(recipe.learner, decoder=CurveDecoder.Config()))  # type: ignore[call-arg]
