"""Recipes: functions that return everything a run needs. The only place where models, data and training meet.

    hybridmap recipes                      lists them: name, cost, expected result
    recipes.find("map-base")               the Recipe; recipes.listing() all of them, with what their docstrings say

A recipe is found because it stands in a module of this package: a public function without required arguments that returns a
``Recipe``, or the ``Config`` of an exam. Its name is the function's, with hyphens. There is no second list to keep.
"""

from __future__ import annotations

import difflib
import fnmatch
import importlib
import inspect
import pkgutil
import typing
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from functools import cache
from types import ModuleType
from typing import TYPE_CHECKING, Any, Literal

from hybridmap.config import Config
from hybridmap.errors import UserError

if TYPE_CHECKING:
    from hybridmap.train.recipe import Recipe

LABELS = ("Command", "Cost", "Expected", "Source")
"""What every recipe's docstring tells, one paragraph each, behind its first sentence."""


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A recipe as the list shows it."""

    name: str
    """With hyphens, as on the command line."""
    kind: Literal["pretrain", "finetune", "exam"]
    """The command it is meant for; an exam measures what another recipe trained."""
    make: Callable[[], Any]
    """Returns the Recipe, or the Config of an exam."""
    summary: str
    command: str
    cost: str
    """Hardware and hours, or "not measured"."""
    expected: str
    """The number it should reach, whose number that is, or "not measured"."""
    source: str


def find(name: str) -> Any:
    """The recipe of that name, newly made.

    Raises:
        UserError: if there is none; with the nearest names.
    """
    return entry(name).make()


def entry(name: str) -> Entry:
    """What the list knows about one recipe.

    Raises:
        UserError: if there is none; with the nearest names.
    """
    known = _entries()
    wanted = name.replace("_", "-")
    if wanted not in known:
        close = difflib.get_close_matches(wanted, known, 3, 0.5)
        hint = f"did you mean {' or '.join(close)}?" if close else "hybridmap recipes lists them all"
        raise UserError(f"there is no recipe {name!r}; {hint}")
    return known[wanted]


def share_data(recipe: Recipe) -> Recipe:
    """The recipe with the directory of its data given to those exams that name none, so that ``--data.root`` is said once."""
    root = getattr(recipe.data, "root", "")

    def filled(exam: Config) -> Config:
        held = {field.name: getattr(exam, field.name) for field in fields(exam)}
        empty = {name: data for name, data in held.items() if isinstance(data, Config) and getattr(data, "root", None) == ""}
        return replace(exam, **{name: replace(data, root=root) for name, data in empty.items()})  # type: ignore[call-arg]

    return replace(recipe, exams={name: filled(exam) for name, exam in recipe.exams.items()})


def listing(pattern: str = "*") -> tuple[Entry, ...]:
    """All recipes whose names match a glob pattern, module by module, in the order in which they are written."""
    return tuple(found for found in _entries().values() if fnmatch.fnmatchcase(found.name, pattern))


@cache
def _entries() -> dict[str, Entry]:
    found: dict[str, Entry] = {}
    for info in sorted(pkgutil.iter_modules(__path__), key=lambda info: info.name):
        for made in _recipes_of(importlib.import_module(f"{__name__}.{info.name}")):
            if made.name in found:
                raise RuntimeError(f"two recipes are called {made.name}")
            found[made.name] = made
    return found


def _recipes_of(module: ModuleType) -> list[Entry]:
    entries = []
    for name, function in vars(module).items():
        if name.startswith("_") or not inspect.isfunction(function) or function.__module__ != module.__name__:
            continue
        required = [p for p in inspect.signature(function).parameters.values() if p.default is p.empty]
        returned = typing.get_type_hints(function).get("return")
        if required or not (isinstance(returned, type) and issubclass(returned, Config)):
            continue
        told = _told(inspect.getdoc(function) or "", f"{module.__name__}.{name}")
        entries.append(Entry(name=name.replace("_", "-"), kind=_kind(function()), make=function, **told))
    return entries


def _kind(made: Config) -> Literal["pretrain", "finetune", "exam"]:
    from hybridmap.tasks.classifier import Classifier
    from hybridmap.train.recipe import Recipe

    if not isinstance(made, Recipe):
        return "exam"
    return "finetune" if isinstance(made.learner, Classifier.Config) else "pretrain"


def _told(text: str, where: str) -> dict[str, Any]:
    """The first paragraph and the labelled lines (which continue where the next is indented) of a docstring."""
    told: dict[str, str] = {"summary": " ".join(text.partition("\n\n")[0].split())}
    label = ""
    for line in text.splitlines():
        start, colon, rest = line.partition(":")
        if colon and start in LABELS:
            label = start.lower()
            if label in told:
                raise RuntimeError(f"the docstring of {where} has two lines that start with {start}:")
            told[label] = rest.strip()
        elif label and line.startswith(" "):
            told[label] += " " + line.strip()
        else:
            label = ""
    missing = [name for name in LABELS if name.lower() not in told]
    if missing:
        raise RuntimeError(f"the docstring of {where} lacks a line that starts with {missing[0]}:")
    return told


__all__ = ["Entry", "entry", "find", "listing", "share_data"]
