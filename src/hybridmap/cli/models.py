"""``hybridmap models [GLOB]``: the backbones that ``timm.create_model`` knows after ``import hybridmap``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatch

import torch
import tyro
from rich.table import Table

from hybridmap.backbones.names import ALIASES, MODELS
from hybridmap.cli.flags import Common, closest, parse
from hybridmap.cli.output import console
from hybridmap.errors import UserError

SOURCES = {
    "hybridnet_": "MAP, arXiv:2410.00871",
    "mambar_": "Mamba-R, arXiv:2405.14858",
    "mambavision_": "MambaVision, arXiv:2407.08083",
    "vim_": "Vim, arXiv:2401.09417",
    "mae_vit_": "MAE, arXiv:2111.06377",
    "mae_deit_": "DeiT, arXiv:2012.12877",
    "arm_": "ARM, arXiv:2406.07537",
}
"""Beginning of a name -> where the architecture was published."""


@dataclass(frozen=True, kw_only=True)
class Options(Common):
    pattern: tyro.conf.Positional[str] = "*"
    """Show the names that match, such as 'hybridnet_*'."""


def main(arguments: Sequence[str]) -> int:
    """Print name, parameters (classifiers have a head for 1000 classes), layout and source of each model."""
    options = parse(Options, arguments, "models", "Names, parameters and sources of the backbones.")
    names = [name for name in (*MODELS, *ALIASES) if fnmatch(name, options.pattern)]
    if not names:
        raise UserError(
            f"no model matches {options.pattern!r}; {closest(options.pattern, (*MODELS, *ALIASES), 'hybridmap models')}"
        )
    table = Table("name", "parameters", "width", "layers", "source", box=None, pad_edge=False)
    for column in table.columns[1:4]:
        column.justify = "right"
    for name in names:
        if name in ALIASES:
            continue
        config = MODELS[name]
        with torch.device("meta"):
            backbone = config.build()
        count = sum(parameter.numel() for parameter in backbone.parameters())
        source = next(words for start, words in SOURCES.items() if name.startswith(start))
        layers = max(backbone.layer_ids().values()) - 1  # the last id is that of the head
        table.add_row(name, f"{count / 1e6:.1f} M", str(backbone.num_features), str(layers), source)
    out = console()
    if table.row_count:
        out.print(table)
    for name in names:
        if name in ALIASES:  # as long as they are: a name that is cut short cannot be copied
            out.print(f"{name} = {ALIASES[name]}", soft_wrap=True)
    return 0
