"""How commands print: tables by rich, as wide as the terminal, or wide enough where the output goes into a file."""

from __future__ import annotations

import sys
from collections.abc import Mapping

from rich.console import Console
from rich.table import Table


def console() -> Console:
    """A console on stdout. Made anew each time, so that a redirected stdout is respected."""
    return Console(width=None if sys.stdout.isatty() else 140)


def print_scores(title: str, scores: Mapping[str, float]) -> None:
    """One line per score."""
    table = Table(title, "", box=None, pad_edge=False)
    table.columns[1].justify = "right"
    for name, value in scores.items():
        table.add_row(name, f"{value:.2f}" if value % 1 else f"{value:.0f}")
    console().print(table)
