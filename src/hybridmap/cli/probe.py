"""``hybridmap probe RUN|FILE|MODEL --data.root DIR``."""

from __future__ import annotations

from collections.abc import Sequence

from hybridmap.cli.exams import examine
from hybridmap.tasks.linear_probe import LinearProbe


def main(arguments: Sequence[str]) -> int:
    """Print the accuracies in per cent."""
    return examine(
        "probe", "A linear classifier on frozen features, its learning rate chosen in one sweep.", LinearProbe, arguments
    )
