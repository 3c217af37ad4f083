"""The paper's tables: what it prints (``results.yaml``), and one file per table that says which runs would print it again.

    masking.py      TABLE = Table(number="T5", base="map-base-paper", then=("ft-400-base",), rows=(...))

A table is found because it stands in a module of this package under the name ``TABLE``; it is called like the module.
"""

from __future__ import annotations

import importlib
import pkgutil
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

from hybridmap.recipes.table import Table


@dataclass(frozen=True, kw_only=True)
class Reported:
    """A number that the paper prints."""

    id: str
    table: str
    """Such as "T5"."""
    label: str
    value: float
    """Top-1 in per cent on ImageNet-1K."""
    note: str = ""
    """What is odd about it: how it disagrees with another, or that it is a reading of damaged print."""


@cache
def reported() -> dict[str, Reported]:
    """id -> what Tables 1 to 8 print, in their order."""
    found = {}
    for record in _document()["results"]:
        doubt = f"read from damaged print ({record['ocr']!r})" if "value" in record.get("uncertain", ()) else ""
        note = "; ".join(filter(None, (record.get("note", ""), doubt)))
        told = {name: record[name] for name in ("id", "table", "label")}
        found[record["id"]] = Reported(**told, value=float(record["value"]), note=note)
    return found


def title(number: str) -> str:
    """What the paper's table of that number is about."""
    return str(_document()["tables"][number]["title"])


@cache
def tables() -> dict[str, Table]:
    """Name -> table, in the paper's order."""
    found = {}
    for info in pkgutil.iter_modules(__path__):
        module = importlib.import_module(f"{__name__}.{info.name}")
        if isinstance(table := getattr(module, "TABLE", None), Table):
            found[info.name] = table
    return dict(sorted(found.items(), key=lambda item: int(item[1].number.removeprefix("T"))))


def quoted(table: Table) -> tuple[Reported, ...]:
    """What the paper prints in this table and no row of ours runs: the numbers that it quotes from others."""
    ours = {id for row in table.rows for id in row.paper}
    return tuple(number for number in reported().values() if number.table == table.number and number.id not in ours)


@cache
def _document() -> dict[str, Any]:
    import yaml

    return yaml.safe_load((resources.files(__name__) / "results.yaml").read_text(encoding="utf-8"))


__all__ = ["Reported", "quoted", "reported", "tables", "title"]
