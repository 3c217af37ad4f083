"""``hybridmap data pack ROOT --out DIR`` and ``hybridmap data check ROOT``: images made ready, and looked through."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import tyro
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from hybridmap.cli.flags import Common, parse
from hybridmap.cli.output import console
from hybridmap.cli.parallel import Failure, run_all, usable_cores
from hybridmap.cli.runs import first_word
from hybridmap.data import check as checking
from hybridmap.data import pack as packing
from hybridmap.errors import UserError
from hybridmap.files import remove_leftovers, replace_file

_SHOWN = 10
"""Lines of each kind of finding on the console; ``--json`` has all."""


@dataclass(frozen=True, kw_only=True)
class Pack(Common, packing.Packing):
    """Training and test images stay apart where they are so in ROOT. After an interruption the same command goes on."""

    root: tyro.conf.Positional[str]
    """The images: whatever --data.root understands."""
    out: str
    """Directory for the shards."""
    jobs: int | None = None
    """Processes that work at a time (default: one per core)."""


@dataclass(frozen=True, kw_only=True)
class Check(Common):
    """Reads and decodes every image once. Leaves with 1 if there is something to mend."""

    root: tyro.conf.Positional[str]
    """The images: whatever --data.root understands."""
    json: str | None = None
    """A file for all findings; the console shows the first of each kind."""
    jobs: int | None = None
    """Processes that work at a time (default: one per core)."""


def main(arguments: Sequence[str]) -> int:
    """Pack or check."""
    word = first_word(arguments, "data", "pack or check")
    actions = {"pack": _pack, "check": _check}
    if word in ("-h", "--help"):
        print("usage: hybridmap data pack ROOT --out DIR | hybridmap data check ROOT; each with --help tells more")
        return 0
    if word not in actions:
        raise UserError(f"hybridmap data can pack and check, not {word}; try hybridmap data --help")
    return actions[word](arguments[1:])


def _pack(arguments: Sequence[str]) -> int:
    options = parse(Pack, arguments, "data pack", "Images as WebDataset shards, made smaller once.")
    out = Path(options.out).expanduser()
    settings = packing.Packing(
        short_side=options.short_side, quality=options.quality, images_per_shard=options.images_per_shard
    )
    jobs, described = packing.plan(options.root, out, settings)
    remove_leftovers(out)
    missing = {Path(job.target).name: job for job in jobs if not packing.is_done(job)}
    if len(missing) < len(jobs):
        console().print(f"{len(jobs) - len(missing)} of {len(jobs)} shards are there already")
    _in_parallel("packing", missing, packing.write_shard, options.jobs, lambda note: note["images"])
    told = packing.finish(jobs, described, out)
    images, size = (sum(shard[name] for shard in told["shards"].values()) for name in ("images", "bytes"))
    console().print(f"{images} images in {len(jobs)} shards, {size / 1e6:.1f} MB: {out}")
    if told["broken"]:
        console().print(f"{len(told['broken'])} images cannot be read and were left out; {out / 'dataset.json'} names them")
    return 0


def _check(arguments: Sequence[str]) -> int:
    options = parse(Check, arguments, "data check", "Read every image once.")
    stretches = {f"{stretch.split} {stretch.first}": stretch for stretch in checking.stretches(options.root)}
    looks = _in_parallel("checking", stretches, checking.read, options.jobs, len)
    found = checking.conclude(options.root, [look for name in stretches for look in looks[name]])
    if options.json is not None:
        replace_file(options.json, json.dumps(asdict(found), indent=1, sort_keys=True) + "\n")
    _print(found)
    return 0 if found.clean else 1


def _in_parallel(
    told: str, things: Mapping[str, Any], work: Callable[[Any], Any], jobs: int | None, images_of: Callable[[Any], int]
) -> dict[str, Any]:
    """The outcome of every thing, by name, with a bar meanwhile.

    Raises:
        UserError: at the first failure.
    """
    chosen = min(jobs or usable_cores(), max(len(things), 1))
    screen = Console(stderr=True)
    columns = (TextColumn(told), BarColumn(24), MofNCompleteColumn(), TextColumn("ETA"), TimeRemainingColumn())
    outcomes: dict[str, Any] = {}
    done = 0
    with Progress(*columns, TextColumn("{task.fields[told]}"), console=screen, disable=not screen.is_terminal) as bar:
        task = bar.add_task(told, total=len(things), told="")
        for name, outcome in run_all(things, partial(_alone, work), jobs=chosen, threads=1 if chosen > 1 else None):
            if isinstance(outcome, Failure):
                raise UserError(f"{told} {name} failed: {outcome.reason}")
            outcomes[name] = outcome
            done += images_of(outcome)
            bar.update(task, advance=1, told=f"{done} images")
    return outcomes


def _alone(work: Callable[[Any], Any], thing: Any) -> Any:
    with torch.inference_mode():
        return work(thing)


def _print(found: checking.Findings) -> None:
    screen = console()
    smallest, median, largest = found.sides
    screen.print(f"{found.images} images, short sides {smallest} to {largest} pixels, {median} in the middle")
    if found.classes:
        fewest, most = min(found.classes, key=found.classes.__getitem__), max(found.classes, key=found.classes.__getitem__)
        screen.print(
            f"{len(found.classes)} classes, from {found.classes[fewest]} ({fewest}) to {found.classes[most]} ({most}) images"
        )
    kinds: dict[str, list[str]] = {
        "cannot be read": [f"{name}: {reason}" for name, reason in found.broken.items()],
        "the same pixels": [" = ".join(group) for group in found.copies],
        "the same pixels in several classes": [" = ".join(group) for group in found.torn],
        "the same pixels in training and test": [" = ".join(group) for group in found.leaked],
    }
    for kind, lines in kinds.items():
        if lines:
            more = f" (the first {_SHOWN})" if len(lines) > _SHOWN else ""
            screen.print(f"{kind}: {len(lines)}{more}", style="yellow")
            for line in lines[:_SHOWN]:
                screen.print(f"  {line}", markup=False, highlight=False, soft_wrap=True)
    if found.clean:
        screen.print("nothing to mend")
