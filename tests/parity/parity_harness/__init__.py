"""Which families of recordings are compared, how, and which are still to come."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

from parity_harness import (
    arm,
    clouds,
    hybrid,
    mamba_module,
    mambavision,
    mar_diffloss,
    moco,
    operators,
    pointnet4d,
    tables,
    vim,
    vit,
)
from parity_harness.recording import Recording

FOLDER = Path(os.environ.get("HYBRIDMAP_GOLDEN") or Path(__file__).parents[1] / "fixtures")
"""Where recordings are looked for."""

FAMILIES: dict[str, Callable[[Recording], None]] = {
    "map-hybridnet-pretrain": hybrid.map_pretrain,
    "map-hybridnet-encoder": hybrid.map_encoder,
    "mamba-reg": hybrid.mamba_reg,
    "vim": vim.vim,
    "mae-pretrain": vit.mae_pretrain,
    "mae-vit": vit.mae_vit,
    "arm-finetune": arm.arm_finetune,
    "arm-pretrain": arm.arm_pretrain,
    "op-selective-scan": operators.selective_scan,
    "op-causal-conv1d": operators.causal_conv1d,
    "op-add-norm": operators.add_norm,
    "op-mamba-inner": operators.mamba_inner,
    "op-points": operators.points,
    "mambavision": mambavision.mambavision,
    "mamba-module": mamba_module.mamba_module,
    "mar-diffloss": mar_diffloss.mar_diffloss,
    "tables": tables.tables,
    "moco": moco.moco,
    "mamba3d-cls": clouds.mamba3d_cls,
    "pointmap-cls": clouds.mamba3d_cls,
    "pointmap-pretrain": clouds.pointmap_pretrain,
    "point-mae-cls": clouds.point_mae_cls,
    "point-mae-pretrain": clouds.point_mae_pretrain,
    "pointmamba-cls": clouds.pointmamba_cls,
    "pointmamba-pretrain": clouds.pointmamba_pretrain,
    "pointnet4d-4dmap": pointnet4d.pointnet4d_4dmap,
}
"""Family -> the function that runs our model on a recording of it and compares everything."""

TO_COME: tuple[str, ...] = ()
"""Families that are not supported yet. They are reported by name, never as passed; any other unknown family is a failure."""

STARTS_TO_COME: tuple[str, ...] = ("mamba3d", "point-mae", "pointmap")
"""Families whose initial values are not compared yet."""


def family(path: Path) -> str:
    """The family that a recording's JSON names."""
    return json.loads(path.read_text()).get("family", "")


def recordings() -> list[Path]:
    """The JSON of every pair in the folder; also of half a pair, so that the lack of the other half is noticed."""
    found = {path.with_suffix(".json") for path in FOLDER.glob("*.safetensors")}
    return sorted(found | {path for path in FOLDER.glob("*.json") if "tensors" in json.loads(path.read_text())})


def descriptions(kind: str) -> list[Path]:
    """The JSON-only files: ``kind`` is "init" or "manifest"."""
    return sorted(FOLDER.glob(f"{kind}-*.json"))
