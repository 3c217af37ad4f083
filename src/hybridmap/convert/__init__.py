"""Official checkpoints become ours, and back: one file per origin, every tensor accounted for.

loaded = load_checkpoint("mambar_base_patch16_224.pth")
backbone = loaded.build()
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from hybridmap.convert.arm_finetune import ArmFinetune
from hybridmap.convert.arm_pretrain import ArmPretrain
from hybridmap.convert.clouds import OfficialHybrid3D, OfficialPointMamba, OfficialPointTransformer
from hybridmap.convert.mae_pretrain import MaePretrain
from hybridmap.convert.mae_vit import MaeViT
from hybridmap.convert.mamba_reg import MambaReg
from hybridmap.convert.mambavision import MambaVisionOrigin
from hybridmap.convert.map_hybridnet import MapHybridNet
from hybridmap.convert.moco_v3 import MocoV3
from hybridmap.convert.origin import Loaded, Origin, Rule, shorten
from hybridmap.convert.ours import read_ours
from hybridmap.convert.pointnet4d import OfficialPointNet4D
from hybridmap.convert.read import read
from hybridmap.convert.vim import VimClassifier
from hybridmap.convert.vmamba import VMambaV2
from hybridmap.errors import UserError

ORIGINS: tuple[Origin, ...] = (
    MapHybridNet(),
    MambaReg(),
    MaePretrain(),
    MaeViT(),
    MocoV3(),
    MambaVisionOrigin(),
    ArmPretrain(),
    ArmFinetune(),
    VimClassifier(),
    VMambaV2(),
    OfficialHybrid3D(),
    OfficialPointTransformer(),
    OfficialPointMamba(),
    OfficialPointNet4D(),
)
"""Every kind of official file that can be read. At most one recognises a file."""


def load_checkpoint(path: str | Path, ema: bool = False, **options: Any) -> Loaded:
    """Read a weight file, official or our own, and give its tensors our names.

    Args:
        path: a safetensors file or one of ``torch.save``; nothing in it is trusted (see :mod:`hybridmap.convert.read`).
        ema: take the moving average of an official training file.
        **options: ``num_heads``, ``grid``, ``keep_untrained``, ``told`` of :meth:`Origin.convert`, for official files.

    Raises:
        UserError: for a file that cannot be read, or that is of a model which is not supported.
    """
    tensors, metadata = read(path, ema)
    if metadata is not None:
        if given := [name for name, value in options.items() if value]:
            raise UserError(f"{path} is one of ours and says itself what network it is of; leave {', '.join(given)} out")
        return read_ours(tensors, metadata, Path(path), ema)
    return convert(tensors, name=str(path), **options)


def convert(state: Mapping[str, Tensor], *, name: str = "the state dict", **options: Any) -> Loaded:
    """An official state dict as ours, whatever its origin; ``options`` as for :meth:`Origin.convert`.

    Raises:
        UserError: if the tensors are of no supported model, or do not make a whole one.
    """
    origin = origin_of(state, name)
    try:
        return origin.convert(state, **options)
    except UserError:
        raise
    except (ValueError, LookupError, ArithmeticError, TypeError, RuntimeError) as error:  # a size that is not where it belongs
        raise UserError(
            f"{name} has the names of {origin.source}, but tensors of other shapes than any such network ({error});"
            " copy or download it again"
        ) from error


def origin_of(state: Mapping[str, Tensor], name: str = "the state dict") -> Origin:
    """The origin that recognises the tensors.

    Raises:
        UserError: if none does.
    """
    shapes = {key: tuple(value.shape) for key, value in state.items()}
    for origin in ORIGINS:
        if origin.recognises(shapes):
            return origin
    raise UserError(
        f"{name} is of no supported model (it holds {shorten(sorted(shapes), 5)});"
        f" expected a checkpoint of {', '.join(origin.source for origin in ORIGINS)}, or one written by hybridmap"
    )


__all__ = ["ORIGINS", "Loaded", "Origin", "Rule", "convert", "load_checkpoint", "origin_of", "read"]
