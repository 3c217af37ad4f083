"""``hybridmap knn RUN|FILE|MODEL --data.root DIR``."""

from __future__ import annotations

from collections.abc import Sequence

from hybridmap.cli.exams import examine
from hybridmap.tasks.knn import KNN


def main(arguments: Sequence[str]) -> int:
    """Print the accuracies in per cent."""
    return examine(
        "knn",
        "Nearest neighbours on frozen features: how well they sort images by class, with nothing trained.",
        KNN,
        arguments,
    )
