"""``hybridmap convert OFFICIAL_FILE -o FILE``: weights of the official implementations in our names."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import tyro

from hybridmap.cli.flags import Common, parse
from hybridmap.convert import load_checkpoint
from hybridmap.convert.ours import write_ours
from hybridmap.convert.resize import resized, with_channels
from hybridmap.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Options(Common):
    """Official files are recognised by what they hold (docs/weights.md lists them); nothing in them is run."""

    file: tyro.conf.Positional[str]
    """A file of torch.save, or safetensors with the official names."""
    output: Annotated[str, tyro.conf.arg(name="output", aliases=["-o"])]
    """The safetensors file to write."""
    ema: bool = False
    """Take the moving average of the weights, where the file holds one."""
    num_heads: int | None = None
    """Heads of the Transformer layers where they are not those of the released sizes; no shape tells them."""
    grid: tuple[int, int] | None = None
    """Rows and columns of the file's positions where they are no square."""
    tell: tuple[str, ...] = ()
    """Other choices that no shape tells, by our names: class_token=first pool=mean window_size=8,7. Default: as released."""
    img_size: int | None = None
    """Resample the positions to square images of this side in pixels."""
    official_vim_resize: bool = False
    """Resample a Vim's positions as its released code does, which takes the first row for the class token's."""
    in_chans: int | None = None
    """Adapt the first layer to images of so many channels."""
    keep_untrained: bool = False
    """Also keep what the released pretraining saves but never trains."""


def main(arguments: Sequence[str]) -> int:
    """Convert, and account for every tensor of the file."""
    options = parse(Options, arguments, "convert", "Weights of the official implementations in our names.")
    if not options.output.endswith(".safetensors"):
        raise UserError(f"-o must end in .safetensors, got {options.output}")
    loaded = load_checkpoint(
        options.file,
        ema=options.ema,
        num_heads=options.num_heads,
        grid=options.grid,
        keep_untrained=options.keep_untrained,
        told=dict(_field_and_value(text) for text in options.tell),
    )
    if options.img_size is not None:
        loaded = resized(loaded, options.img_size, options.official_vim_resize)
    elif options.official_vim_resize:
        raise UserError("--official-vim-resize says how to resample positions, but not to which size; add --img-size")
    if options.in_chans is not None:
        loaded = with_channels(loaded, options.in_chans)
    write_ours(loaded, options.output, source=options.file)
    print(f"{options.file} is of {loaded.family}: {loaded.report}")
    return 0


def _field_and_value(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not (name and equals and value):
        raise UserError(f"--tell expects FIELD=VALUE, got {text}; try --tell class_token=first")
    return name, value
