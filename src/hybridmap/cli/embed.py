"""``hybridmap embed RUN|FILE|MODEL DIR -o FILE``: one vector per image of a folder, with the paths, in one file."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import tyro
from safetensors.torch import save
from torch import Tensor

from hybridmap.cli.flags import Common, parse
from hybridmap.cli.runs import device_named, evaluation_data, open_source
from hybridmap.errors import UserError
from hybridmap.files import replace_file
from hybridmap.tasks.features import Table, extract

SUFFIXES = (".safetensors", ".npz")


@dataclass(frozen=True, kw_only=True)
class Options(Common):
    """Features are the class token of a ViT, and the mean of the final patch tokens of all other networks."""

    source: tyro.conf.Positional[str]
    """A run directory, a weight file, or the name of a model (untrained)."""
    folder: tyro.conf.Positional[str]
    """Images, nested or not, labelled or not."""
    output: Annotated[str, tyro.conf.arg(name="output", aliases=["-o"])]
    """The file to write; .safetensors (features, labels; paths as JSON in the metadata) or .npz (features, labels, paths)."""
    batch_size: int = 64
    """Images per forward pass."""
    workers: int = 0
    """Processes that read images besides this one."""


def main(arguments: Sequence[str]) -> int:
    """Write the features."""
    options = parse(Options, arguments, "embed", "Features of a folder of images, with their paths, in one file.")
    output = Path(options.output)
    if output.suffix not in SUFFIXES:
        raise UserError(f"-o must end in {' or '.join(SUFFIXES)}, got {options.output}")
    device = device_named(options.device)
    source = open_source(options.source)
    data = evaluation_data(source, root=options.folder, workers=options.workers)
    table = extract(source.backbone.to(device), data, device=device, batch_size=options.batch_size)
    paths = tuple(_relative(path, options.folder) for path in table.paths)
    replace_file(output, _npz(table, paths) if output.suffix == ".npz" else _safetensors(table, paths))
    print(f"{len(paths)} images, {table.features.shape[1]} numbers each, in {output}")
    return 0


def _relative(path: str, folder: str) -> str:
    try:
        return Path(path).relative_to(folder).as_posix()
    except ValueError:
        return path


def _safetensors(table: Table, paths: tuple[str, ...]) -> bytes:
    tensors: dict[str, Tensor] = {"features": table.features.contiguous()}
    if table.labels is not None:
        tensors["labels"] = table.labels
    return save(tensors, {"hybridmap": json.dumps({"classes": table.classes, "paths": paths}, sort_keys=True)})


def _npz(table: Table, paths: tuple[str, ...]) -> bytes:
    import io

    arrays = {"features": table.features.numpy(), "paths": np.array(paths, dtype=np.str_)}
    if table.labels is not None and table.classes is not None:
        arrays |= {"labels": table.labels.numpy(), "classes": np.array(table.classes, dtype=np.str_)}
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return buffer.getvalue()
