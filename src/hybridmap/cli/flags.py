"""From words on the command line to configurations: tyro makes the flags and the help, the recipe gives the defaults.

The whole tree of a recipe is flags (``--learner.masking.ratio 0.75``). Three of them change which flags there are, so they are
read first, whatever their place: ``--import MODULE`` (classes of your own), ``--config FILE`` (a partial YAML laid over the
recipe) and ``--x.type NAME`` (another class at that place; fields that both classes have are carried over).
"""

from __future__ import annotations

import contextlib
import difflib
import importlib
import io
import os
import re
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import tyro

from hybridmap import config
from hybridmap.errors import UserError
from hybridmap.train.recipe import Recipe

T = TypeVar("T")

ALIASES = {
    "--mask-ratio": "--learner.masking.ratio",
    "--mask-scope": "--learner.masking.scope",
    "--masking": "--learner.masking.type",
    "--decoder-mask": "--learner.decoder-mask",
    "--region": "--learner.regions.type",
    "--order": "--learner.regions.order",
    "--cl-flip": "--data.crop.flip",
    "--init": "--init-from",
}
"""Short names for the settings that are varied most often, as the spec and the paper call them."""


@dataclass(frozen=True, kw_only=True)
class Common:
    """What every command understands."""

    device: str = "auto"
    """auto, cpu, cuda, cuda:N or mps."""
    debug: bool = False
    """Show the traceback of an error."""


@dataclass(frozen=True, kw_only=True)
class RunOptions(Common):
    """Where and how a recipe is run; none of it changes what is trained."""

    out: str | None = None
    """Run directory (default: runs/RECIPE). The same command again continues an unfinished run."""
    overwrite: bool = False
    """Start anew in a directory that holds another run."""
    config: tuple[str, ...] = ()
    """YAML files laid over the recipe, such as the recipe.yaml of a run with some lines removed."""
    import_: Annotated[tuple[str, ...], tyro.conf.arg(name="import")] = ()
    """Modules of your own whose classes may be named by --x.type and in YAML."""
    watch: tuple[Literal["knn", "probe", "pictures"], ...] = ()
    """Exams to hold every --train.eval-epochs: neighbours and a linear classifier (for labelled images), reconstructions."""


@dataclass(frozen=True, kw_only=True)
class _Whole:
    options: Annotated[RunOptions, tyro.conf.arg(name="")]
    recipe: Annotated[Any, tyro.conf.arg(name="")]


def closest(name: str, known: Iterable[str], listing: str) -> str:
    """``did you mean ...?``, or where to find the list."""
    close = difflib.get_close_matches(name, list(known), 3, 0.5)
    return f"did you mean {' or '.join(close)}? ({listing} lists them all)" if close else f"{listing} lists them all"


def parse(options: type[T], arguments: Sequence[str], command: str, description: str, default: T | None = None) -> T:
    """An options dataclass from the flags of one command.

    Raises:
        UserError: for wrong flags, tyro's framed message as one sentence. ``--help`` leaves by SystemExit(0).
    """
    defaults: dict[str, Any] = {} if default is None else {"default": default}
    complaint = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaint):
            return tyro.cli(
                options,
                args=list(arguments),
                prog=f"hybridmap {command}",
                description=description,
                config=(tyro.conf.AvoidSubcommands,),
                **defaults,
            )
    except SystemExit as leave:
        if not leave.code:
            raise
        raise UserError(_sentence(complaint.getvalue(), command)) from None


def _sentence(framed: str, command: str) -> str:
    """The message inside tyro's frame: what is wrong, and the nearest flag where tyro knows one."""
    inside = [line.strip("│ ") for line in framed.splitlines() if line.startswith("│")]
    sections = [""]
    for line in inside:
        if line.startswith("──"):
            sections.append("")
        else:
            sections[-1] = f"{sections[-1]} {line}".strip()
    message = re.sub(r"^Error parsing (?!-)[\w.]+: ", "", sections[0] or " ".join(framed.split()))
    suggested = next((s for s in sections[1:] if s.startswith("Perhaps you meant")), "")
    near = re.search(r"--[\w.-]+", suggested)
    return f"{message.rstrip(' .')}; {f'did you mean {near[0]}? ' if near else ''}hybridmap {command} --help lists the flags"


def parse_recipe(arguments: Sequence[str], command: str, description: str) -> tuple[str, Recipe, RunOptions]:
    """``RECIPE [flags]`` as (name, recipe with everything applied, options).

    Raises:
        UserError: for an unknown recipe, module or type, or a file that cannot be read; wrong flags leave by SystemExit(2).
    """
    from hybridmap import recipes

    if not arguments or arguments[0] in ("-h", "--help"):
        print(_recipe_help(command, description))
        raise SystemExit(0 if arguments else 2)
    name, rest = arguments[0], _plain_booleans([_unalias(word) for word in arguments[1:]])
    if name.startswith("-"):
        raise UserError(f"expected the name of a recipe first, got {name}; try hybridmap {command} RECIPE {name} ...")
    for module in _values(rest, "--import"):
        trust(module)
    kind = recipes.entry(name).kind
    if kind != command:
        verb = f"hybridmap {kind} {name}" if kind != "exam" else "hybridmap knn RUN or hybridmap probe RUN"
        raise UserError(f"{name} is not a recipe for {command}; use {verb}")
    recipe = recipes.find(name)
    for file in _values(rest, "--config"):
        recipe = config.overlay(recipe, config.parse_yaml(read_text(file), file))
    types, rest = _take_types(rest)
    if types:
        recipe = config.override(recipe, types)
    whole = parse(_Whole, rest, f"{command} {name}", description, _Whole(options=RunOptions(), recipe=recipe))
    return name, whole.recipe, whole.options


def trust(module: str) -> None:
    """Import a module of the user's, found from the current directory too, and accept its classes as types."""
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise UserError(
            f"--import {module}: there is no module {error.name!r}; name it as in an import statement, without .py"
        ) from None
    config.trusted_modules.add(module.partition(".")[0])


def read_text(file: str) -> str:
    """The text of a file that the user named."""
    try:
        return Path(file).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not text"
        raise UserError(f"cannot read {file}: {reason}; expected a YAML file") from None


def _unalias(word: str) -> str:
    flag, equals, value = word.partition("=")
    return ALIASES.get(flag.replace("_", "-") if flag.startswith("--") else flag, flag) + equals + value


def _plain_booleans(words: Sequence[str]) -> list[str]:
    """``--x.flag true`` and ``--x.flag false``, as in YAML, in the form of flags: ``--x.flag`` and ``--x.no-flag``."""
    plain: list[str] = []
    for word in words:
        answer = word.lower()
        if answer == "false" and plain and plain[-1].startswith("--"):
            before, dot, leaf = plain.pop().removeprefix("--").rpartition(".")
            plain.append(f"--{before}{dot}no-{leaf}")
        elif answer != "true" or not (plain and plain[-1].startswith("--")):
            plain.append(word)
    return plain


def _values(words: Sequence[str], flag: str) -> list[str]:
    """The values of a flag that takes several: ``--config a.yaml b.yaml`` or ``--config=a.yaml``."""
    found: list[str] = []
    for i, word in enumerate(words):
        if word.startswith(flag + "="):
            found.append(word.partition("=")[2])
        elif word == flag:
            for value in words[i + 1 :]:
                if value.startswith("--"):
                    break
                found.append(value)
    return found


def _take_types(words: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """``--x.type NAME`` as {"x.type": NAME}, and the words that are left."""
    types: dict[str, str] = {}
    rest: list[str] = []
    words = list(words)
    while words:
        flag, equals, value = words.pop(0).partition("=")
        if flag.startswith("--") and flag.endswith(".type"):
            if not equals:
                if not words or words[0].startswith("--"):
                    raise UserError(f"{flag} needs the name of a class, such as {flag} hybridmap.tokens.masking:Random")
                value = words.pop(0)
            types[flag[2:].replace("-", "_")] = value
        else:
            rest.append(flag + equals + value)
    return types, rest


def _recipe_help(command: str, description: str) -> str:
    aliases = "\n".join(f"  {short:16}{long}" for short, long in ALIASES.items())
    return (
        f"usage: hybridmap {command} RECIPE [flags]\n\n{description}\n\n"
        f"hybridmap recipes lists the recipes; hybridmap {command} RECIPE --help lists every setting of one.\n"
        f"--x.type NAME chooses another class, as in --learner.masking.type Sequential.\n\nshort names:\n{aliases}"
    )


__all__ = ["ALIASES", "Common", "RunOptions", "closest", "parse", "parse_recipe", "read_text", "trust"]
