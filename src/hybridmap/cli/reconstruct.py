"""``hybridmap reconstruct RUN IMAGE... -o FILE``: original, visible patches, prediction, prediction pasted; a row per image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import tyro
from PIL import Image

from hybridmap.cli.flags import Common, parse
from hybridmap.cli.runs import device_named, evaluation_data, open_run, read_images
from hybridmap.errors import UserError
from hybridmap.report.pictures import Predicts, reconstructions, save, sheet


@dataclass(frozen=True, kw_only=True)
class Options(Common):
    run: tyro.conf.Positional[str]
    """The directory of a pretraining run."""
    images: tyro.conf.Positional[tuple[str, ...]]
    """Image files of any size; the middle is shown at the size that the run was trained on."""
    output: Annotated[str, tyro.conf.arg(name="output", aliases=["-o"])]
    """The picture to write; the format follows from its suffix."""
    seed: int = 0
    """Chooses the masks."""


def main(arguments: Sequence[str]) -> int:
    """Write the picture."""
    options = parse(Options, arguments, "reconstruct", "Original, what the encoder saw, prediction, prediction pasted.")
    if not options.images:
        raise UserError("expected at least one image; hybridmap reconstruct RUN IMAGE... -o out.png")
    known = Image.registered_extensions()
    if not any(options.output.lower().endswith(suffix) for suffix in known):
        raise UserError(f"-o must name a picture, such as out.png, got {options.output}")
    run = open_run(options.run)
    device = device_named(options.device)
    learner = run.learner.to(device).eval()
    if not isinstance(learner, Predicts):
        raise UserError(
            f"{run.name} predicts no patches, so it cannot reconstruct; give the directory of a pretraining run that does"
        )
    data = evaluation_data(run)
    images = read_images(options.images, data).to(device)
    columns = reconstructions(learner, images, data.mean, data.std, seed=options.seed)
    print(save(sheet(columns), options.output))
    return 0
