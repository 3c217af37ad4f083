"""``hybridmap recipes [GLOB]``: what can be run, what it costs and what to expect."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import tyro
from rich.markup import escape
from rich.table import Table

from hybridmap import recipes
from hybridmap.cli.flags import Common, closest, parse
from hybridmap.cli.output import console
from hybridmap.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Options(Common):
    pattern: tyro.conf.Positional[str] = "*"
    """Show the names that match, such as 'map-*'; a single name is told in full."""


def main(arguments: Sequence[str]) -> int:
    """Print the recipes."""
    options = parse(Options, arguments, "recipes", "Names, cost and expected result of the recipes.")
    found = recipes.listing(options.pattern)
    if not found:
        hint = closest(options.pattern, [entry.name for entry in recipes.listing()], "hybridmap recipes")
        raise UserError(f"no recipe matches {options.pattern!r}; {hint}")
    out = console()
    if len(found) == 1:
        only = found[0]
        table = Table(only.name, escape(only.summary), box=None, pad_edge=False)
        for label in recipes.LABELS:
            table.add_row(label.lower(), escape(getattr(only, label.lower())))
    else:
        table = Table("name", "for", "what it is", "cost", "expected", box=None, pad_edge=False)
        table.columns[0].no_wrap = table.columns[1].no_wrap = True
        for entry in found:
            table.add_row(entry.name, entry.kind, *map(escape, (entry.summary, entry.cost, entry.expected)))
    out.print(table)
    return 0
