"""``hybridmap evaluate RUN --data.root DIR``: accuracy of a fine-tuned classifier on images that it was not trained on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import tyro

from hybridmap.cli.flags import Common, parse
from hybridmap.cli.output import print_scores
from hybridmap.cli.runs import Run, device_named, evaluation_data, first_word, open_run
from hybridmap.data.base import Dataset
from hybridmap.data.folder import ImageFolder
from hybridmap.data.point_clouds import PointClouds
from hybridmap.errors import UserError
from hybridmap.tasks.classifier import Classifier
from hybridmap.tasks.voting import Voting


@dataclass(frozen=True, kw_only=True)
class Options(Common):
    """The images need the same classes, one folder per class, as those that the run was trained on."""

    run: tyro.conf.Positional[str]
    """The directory of a fine-tuning run."""
    data: Dataset.Config
    """The images; by default the test split of the data that the run was trained on."""
    batch_size: int = 256
    """Images per forward pass; does not change the result."""
    vote: int = 0
    """For clouds of points: repeats of ten random views that vote together, drawn and augmented as in training. The official
    protocol is the maximum of 299; 0 = each cloud once, without chance."""


def main(arguments: Sequence[str]) -> int:
    """Print top-1 and top-5 accuracy in per cent."""
    told = "Accuracy of a fine-tuned classifier."
    name = first_word(arguments, "evaluate", "the directory of a fine-tuning run")
    if name in ("-h", "--help"):
        parse(Options, ["--help"], "evaluate", told, Options(run="RUN", data=ImageFolder.Config()))
    run = open_run(name)
    if not isinstance(run.learner, Classifier):
        raise UserError(f"{run.name} is no classifier; fine-tune it first (hybridmap finetune RECIPE --init {run.name})")
    default = Options(run=run.name, data=evaluation_data(run, split="test"))
    options = parse(Options, arguments, "evaluate", told, default)
    device = device_named(options.device)
    if options.vote:
        print_scores(f"accuracy of {run.name} by voting", _vote(run, options, device))
        return 0
    print_scores(f"accuracy of {run.name}", run.learner.to(device).evaluate(options.data, device, options.batch_size))
    return 0


def _vote(run: Run, options: Options, device: torch.device) -> dict[str, float]:
    if not isinstance(options.data, PointClouds.Config):
        raise UserError("--vote is for clouds of points, of which every draw is another view; leave it out for images")
    as_trained = {name: getattr(run.data, name) for name in ("sampling", "pool", "augment")}
    test = replace(options.data, **as_trained)
    return Voting.Config(test=test, repeats=options.vote, batch_size=options.batch_size).build()(run.learner.to(device), device)
