"""What the commands knn and probe share: frozen features of training and test images, and one exam on them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import tyro

from hybridmap.cli.flags import Common, parse
from hybridmap.cli.output import print_scores
from hybridmap.cli.runs import device_named, first_word, open_source, split_data, spread_data_flags
from hybridmap.data.folder import ImageFolder


@dataclass(frozen=True, kw_only=True)
class Options(Common):
    """--data.root DIR expects DIR/train and DIR/val (or DIR/test), each with one folder per class; --data.X sets X of both."""

    source: tyro.conf.Positional[str]
    """A run directory, a weight file, or the name of a model (untrained)."""
    exam: Annotated[Any, tyro.conf.arg(name="")]


def examine(command: str, description: str, exam: type[Any], arguments: Sequence[str]) -> int:
    """Give the exam (whose Config has ``train`` and ``test``) to the backbone named first, and print its scores."""
    name = first_word(arguments, command, "a run, a weight file or a model")
    if name in ("-h", "--help"):
        exam_of_any = exam.Config(train=ImageFolder.Config(split="train"), test=ImageFolder.Config(split="test"))
        parse(Options, ["--help"], command, description, Options(source="SOURCE", exam=exam_of_any))
    source = open_source(name)
    train, test = split_data(source)
    default = Options(source=name, exam=exam.Config(train=train, test=test))
    options = parse(Options, spread_data_flags(arguments), command, description, default)
    device = device_named(options.device)
    print_scores(f"{command} of {source.name}", options.exam.build()(source.backbone.to(device), device))
    return 0
