"""``hybridmap models [GLOB]``: the backbones that ``timm.create_model`` knows after ``import hybridmap``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatch

import torch
import tyro
from rich.table import Table

from hybridmap.backbones.base import ImageBackbone
from hybridmap.backbones.flops import gmacs
from hybridmap.backbones.names import ALIASES, MODELS
from hybridmap.cli.flags import Common, closest, parse
from hybridmap.cli.output import console
from hybridmap.errors import UserError

SOURCES = {
    "hybridnet_": "MAP, arXiv:2410.00871",
    "mambar_": "Mamba-R, arXiv:2405.14858",
    "vim_": "Vim, arXiv:2401.09417",
    "arm_": "ARM, arXiv:2406.07537",
    "mambavision_": "MambaVision, arXiv:2407.08083",
    "vmamba_": "VMamba, arXiv:2401.10166",
    "mae_vit_": "MAE, arXiv:2111.06377",
    "mae_deit_": "DeiT, arXiv:2012.12877",
}
"""Beginning of a name -> where the architecture was published."""

CONVENTION = """\
GMACs: 10^9 multiply-adds of a forward pass over one image of the model's own size, counted while it runs without data. Papers
print the same number as GFLOPs. The scan's 9 operations per token, channel and state count as 4.5 multiply-adds."""


@dataclass(frozen=True, kw_only=True)
class Options(Common):
    pattern: tyro.conf.Positional[str] = "*"
    """Show the names that match, such as 'hybridnet_*'."""


def main(arguments: Sequence[str]) -> int:
    """Print name, parameters (classifiers have a head for 1000 classes), GMACs, layout and source of each model."""
    options = parse(Options, arguments, "models", "Names, parameters, GMACs and sources of the backbones.")
    names = [name for name in (*MODELS, *ALIASES) if fnmatch(name, options.pattern)]
    if not names:
        raise UserError(
            f"no model matches {options.pattern!r}; {closest(options.pattern, (*MODELS, *ALIASES), 'hybridmap models')}"
        )
    table = Table("name", "parameters", "GMACs", "width", "layers", "source", box=None, pad_edge=False)
    for column in table.columns[1:5]:
        column.justify = "right"
    for name in names:
        if name in ALIASES:
            continue
        with torch.device("meta"):
            backbone = MODELS[name].build()
        count = sum(parameter.numel() for parameter in backbone.parameters())
        layers = max(backbone.layer_ids().values()) - 1  # what lies behind the last one has a number too
        source = next((words for start, words in SOURCES.items() if name.startswith(start)), "")
        table.add_row(name, f"{count / 1e6:.1f} M", f"{gmacs(backbone):.2f}", _width(backbone), str(layers), source)
    out = console()
    if table.row_count:
        out.print(table)
        out.print(CONVENTION)
    for name in names:
        if name in ALIASES:  # as long as they are: a name that is cut short cannot be copied
            out.print(f"{name} = {ALIASES[name]}", soft_wrap=True)
    return 0


def _width(backbone: ImageBackbone) -> str:
    """Of the tokens; that of the first and of the last stage where they differ."""
    first, last = backbone.feature_info[0]["num_chs"], backbone.num_features
    return str(last) if first == last else f"{first}-{last}"
