"""``hybridmap export RUN|FILE|MODEL -o FILE``: a network for runtimes, as ONNX or as a program of torch.export."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from hybridmap import export
from hybridmap.backbones.sequence import sides
from hybridmap.cli.flags import Common, parse
from hybridmap.cli.runs import device_named, open_source
from hybridmap.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Options(Common):
    """The file is run on noise and compared with the network before it is kept. ONNX is always traced on the CPU."""

    source: tyro.conf.Positional[str]
    """A run directory, a weight file, or the name of a model (untrained)."""
    output: Annotated[str, tyro.conf.arg(name="output", aliases=["-o"])]
    """The file to write."""
    format: Literal["onnx", "pt2"] | None = None
    """onnx: standard operators. pt2: torch.export with our kernels; import hybridmap before loading. Default: as -o ends."""
    img_size: int | None = None
    """Side of the images in pixels (default: that of the network); positions are resampled once, before."""
    batch: str = "dynamic"
    """Images per call: dynamic, or a number for runtimes that want one."""


def main(arguments: Sequence[str]) -> int:
    """Write the file, and say how far it is from the network."""
    options = parse(Options, arguments, "export", "A network for runtimes, as ONNX or as a program of torch.export.")
    format = options.format or Path(options.output).suffix.removeprefix(".")
    if format not in ("onnx", "pt2"):
        raise UserError(f"-o must end in .onnx or .pt2, got {options.output}; or say --format onnx|pt2")
    if options.batch != "dynamic" and not (options.batch.isdecimal() and int(options.batch)):
        raise UserError(f"--batch expects dynamic or a number of images, got {options.batch}; try --batch 1")
    backbone = open_source(options.source).image_backbone.to("cpu" if format == "onnx" else device_named(options.device))
    size = sides(options.img_size or backbone.config.img_size)
    if size != sides(backbone.config.img_size):
        backbone.set_input_size(size)
    largest = export.export(backbone, options.output, format, size, None if options.batch == "dynamic" else int(options.batch))
    checked = f"not compared, since onnxruntime is not installed: {export.EXTRA}"
    if largest is not None:
        checked = f"largest difference from the network {largest:.1e}"
    outputs = backbone.num_classes or backbone.head_hidden_size
    print(f"{options.output}: ({options.batch}, {backbone.config.in_chans}, {size[0]}, {size[1]}) -> {outputs}; {checked}")
    return 0
