"""``hybridmap evaluate RUN --data.root DIR``: accuracy of a fine-tuned classifier on images that it was not trained on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import tyro

from hybridmap.cli.flags import Common, parse
from hybridmap.cli.output import print_scores
from hybridmap.cli.runs import device_named, evaluation_data, first_word, open_run
from hybridmap.data.base import Dataset
from hybridmap.data.folder import ImageFolder
from hybridmap.errors import UserError
from hybridmap.tasks.classifier import Classifier


@dataclass(frozen=True, kw_only=True)
class Options(Common):
    """The images need the same classes, one folder per class, as those that the run was trained on."""

    run: tyro.conf.Positional[str]
    """The directory of a fine-tuning run."""
    data: Dataset.Config
    """The images; by default the test split of the data that the run was trained on."""
    batch_size: int = 256
    """Images per forward pass; does not change the result."""


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
    print_scores(f"accuracy of {run.name}", run.learner.to(device).evaluate(options.data, device, options.batch_size))
    return 0
