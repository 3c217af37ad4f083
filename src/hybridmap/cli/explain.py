"""``hybridmap explain RUN|FILE|MODEL IMAGE -o FILE``: what each layer looks at in an image, and the scan order, on one page.

With ``--features``, what the patches have become there: principal components of their features as colours.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from PIL import Image

from hybridmap.cli.flags import Common, parse
from hybridmap.cli.runs import device_named, evaluation_data, open_source, read_images
from hybridmap.data.image_transforms import denormalise
from hybridmap.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Options(Common):
    source: tyro.conf.Positional[str]
    """A run directory, a weight file, or the name of a model (untrained)."""
    image: tyro.conf.Positional[str | None] = None
    """An image file of any size; the middle is shown at the size that the network is used to."""
    output: Annotated[str, tyro.conf.arg(name="output", aliases=["-o"])]
    """The picture to write; the format follows from its suffix."""
    layers: str | None = None
    """Only these layers, such as 0,3,7; they count from 0."""
    query: str | None = None
    """ROW,COL of a patch: maps of what it hears, instead of what the class token, the registers or all patches hear."""
    parts: bool = False
    """A map of its own for each head and for each scan direction, instead of their mean."""
    features: bool = False
    """Instead of maps, three principal components of the patch features as red, green and blue; --layers are then those behind
    which they are taken, of a hierarchical network its stages (default: four depths)."""


def main(arguments: Sequence[str]) -> int:
    """Write the page and say where it is."""
    options = parse(Options, arguments, "explain", "What each layer looks at in an image, and the scan order, on one page.")
    if options.image is None:
        raise UserError("expected an image; hybridmap explain RUN|FILE|MODEL IMAGE -o out.png")
    if Path(options.output).suffix.lower() not in Image.registered_extensions():
        raise UserError(f"-o must name a picture, such as out.png, got {options.output}")
    if options.features and (options.parts or options.query is not None):
        raise UserError("--features shows all patches and has no maps; leave --query and --parts out")
    layers = None if options.layers is None else _numbers(options.layers, "--layers expects numbers with commas, such as 0,3,7")
    query = None if options.query is None else _place(options.query)
    device = device_named(options.device)
    source = open_source(options.source)
    data = evaluation_data(source)
    images = read_images([options.image], data).to(device)
    with Image.open(options.image) as file:
        smaller, patch = min(file.size), source.image_backbone.config.patch_size
    if smaller < patch:
        raise UserError(f"{options.image} has a side of {smaller} pixels, less than one patch ({patch}); give a larger image")
    # Here, because it brings matplotlib, for which a mistake in the arguments need not wait.
    from hybridmap.report.explain import explain, page
    from hybridmap.report.features import feature_picture
    from hybridmap.report.pictures import save

    if options.features:
        shown = denormalise(images, data.mean, data.std).expand(-1, 3, -1, -1)
        print(save(feature_picture(source.image_backbone.to(device).eval(), images, shown, layers), options.output))
        return 0
    found = explain(source.image_backbone.to(device).eval(), images, layers=layers, query=query, parts=options.parts)
    title = f"{Path(options.source).name} looks at {Path(options.image).name}"
    print(save(page(found, denormalise(images, data.mean, data.std)[0], title), options.output))
    return 0


def _numbers(text: str, expected: str) -> list[int]:
    """Integers from a list with commas.

    Raises:
        UserError: if it is something else.
    """
    if not re.fullmatch(r"\d+(,\d+)*", text.replace(" ", "")):
        raise UserError(f"{expected}, got {text!r}")
    return [int(word) for word in text.split(",")]


def _place(text: str) -> tuple[int, int]:
    expected = "--query expects the row and the column of a patch, such as 6,7"
    numbers = _numbers(text, expected)
    if len(numbers) != 2:
        raise UserError(f"{expected}, got {text!r}")
    return numbers[0], numbers[1]
