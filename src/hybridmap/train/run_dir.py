"""The run directory: one run, one recipe, one launch at a time.

recipe.yaml        everything that decides what is computed
environment.json   versions, device, kernels, commit
metrics.jsonl      a line per step, cut back to the checkpoint where a run continues
checkpoints/       the newest and the best
final.safetensors  the weights, once the run is finished
summary.json       how it ended: steps, exams
results.json       tables of the exams, as the report shows them
skipped.json       images that could not be read, with the reason
log.txt            what was said
heartbeats/        of several processes: where each of them is, or was when it stopped
"""

from __future__ import annotations

import json
import logging
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import IO, Any

import torch

from hybridmap.config import differences, from_yaml, to_yaml
from hybridmap.errors import UserError
from hybridmap.files import remove_leftovers, replace_file, writing
from hybridmap.train.checkpoint import BrokenFile, Checkpoints, read
from hybridmap.train.recipe import Recipe

log = logging.getLogger("hybridmap.train")

_LOCK = ".lock"
_CONTENTS = (
    "recipe.yaml",
    "environment.json",
    "metrics.jsonl",
    "final.safetensors",
    "summary.json",
    "results.json",
    "skipped.json",
    "log.txt",
    "report.html",
)
"""Files of a run directory, besides those of its folders."""
_FOLDERS = {"checkpoints": "step-*", "tensorboard": "events.out.tfevents.*", "pictures": "*.png", "heartbeats": "rank-*"}
"""Folders of a run directory -> the files in them that are a run's."""
_HARMLESS = (".workers", "train.log_every", "train.keep", "train.tensorboard", "train.wandb", "train.patience")
"""Fields (by the end of their name) that change no result, so that a run may be continued with other values."""
_PACKAGES = ("hybridmap", "torch", "torchvision", "timm", "numpy", "safetensors", "triton", "pillow")


@dataclass
class RunDirectory:
    """The files of a run, for the one process that writes them."""

    path: Path
    checkpoints: Checkpoints

    @property
    def final(self) -> Path:
        """The weights of the finished run; the file is there only if the run is finished."""
        return self.path / "final.safetensors"

    def is_finished(self) -> bool:
        """Whether there is nothing left to compute. Final weights that are broken are named in the log; they are there to be
        written again where there is a checkpoint to continue from."""
        if not self.final.exists():
            return False
        try:
            read(self.final, ours=True)
        except BrokenFile as error:
            if not self.checkpoints.paths():
                raise
            log.warning("%s; it is written again from the last checkpoint", error)
            return False
        return True

    def append(self, record: Mapping[str, Any]) -> None:
        """Add a line to ``metrics.jsonl``. Numbers that are not finite are written as null, which JSON can say."""
        plain = {k: None if isinstance(v, float) and not abs(v) < float("inf") else v for k, v in record.items()}
        with writing(self._metrics), self._metrics.open("a") as file:
            file.write(json.dumps(plain) + "\n")

    def lines(self) -> list[dict[str, Any]]:
        """The lines of ``metrics.jsonl`` that are whole."""
        return [json.loads(line) for line in self._whole_lines()]

    def cut_back(self, step: int) -> None:
        """Drop what is later than ``step`` from ``metrics.jsonl``: the run is going to write it again."""
        kept = [line for line in self._whole_lines() if json.loads(line)["step"] <= step]
        replace_file(self._metrics, "".join(line + "\n" for line in kept))

    def note_skipped(self, images: Mapping[str, str]) -> None:
        """Remember images that could not be read, path -> reason, beside those of earlier launches."""
        if images:
            self.write_json("skipped.json", self.read_json("skipped.json") | dict(images))

    def read_json(self, name: str) -> dict[str, Any]:
        """What :meth:`write_json` wrote; empty if it did not."""
        file = self.path / name
        return json.loads(file.read_text()) if file.exists() else {}

    def write_json(self, name: str, value: Mapping[str, Any]) -> None:
        """Write a small file of facts."""
        replace_file(self.path / name, json.dumps(value, indent=2, sort_keys=True) + "\n")

    @property
    def _metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    def _whole_lines(self) -> list[str]:
        """A line that a killed run did not finish has no newline at its end."""
        if not self._metrics.exists():
            return []
        return [line for line in self._metrics.read_text().splitlines(keepends=False) if line.endswith("}")]


@contextmanager
def hold(out: str | Path, recipe: Recipe, *, overwrite: bool = False, wait_s: float = 0.0) -> Iterator[RunDirectory]:
    """Open (or make) the run directory ``out`` for ``recipe`` and hold its lock, for which it waits up to ``wait_s`` seconds.

    Raises:
        UserError: if another process holds it, if it is of another recipe, if it is no run directory but holds something, or if
            it cannot be written.
    """
    path = Path(out).expanduser()
    with writing(path):
        path.mkdir(parents=True, exist_ok=True)
        foreign = not (path / "recipe.yaml").exists() and any(not item.name.startswith(".") for item in path.iterdir())
    if foreign:
        raise UserError(f"{path} is not empty and not the directory of a run; choose another --out")
    with writing(path):
        lock = (path / _LOCK).open("a")
    with lock:
        _lock(lock, path, wait_s)
        if overwrite:
            _clear(path)
        _claim(path, recipe)
        for folder in (path, *(path / name for name in _FOLDERS)):
            remove_leftovers(folder)
        yield RunDirectory(path, Checkpoints(path / "checkpoints", recipe.train.keep))


def _lock(file: IO[str], path: Path, wait_s: float) -> None:
    """Lock the open file until it is closed; forked children let go of it, so that they cannot keep a dead run locked.

    Raises:
        UserError: if another process still holds it after ``wait_s`` seconds.
    """
    if os.name != "posix":
        return
    import fcntl

    end = time.monotonic() + wait_s
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except BlockingIOError:
            if time.monotonic() >= end:
                raise UserError(f"another process is training in {path}; wait for it to end, or choose another --out") from None
            time.sleep(0.1)
        except OSError as error:
            told = "the file system of %s has no locks (%s): take care that no other launch writes there at the same time"
            log.warning(told, path, error.strerror)
            return
    os.register_at_fork(after_in_child=file.close)


def _claim(path: Path, recipe: Recipe) -> None:
    """Write ``recipe.yaml``, or compare with the one that is there.

    A launch that ended before its first step, such as one with a mistyped folder, leaves nothing to protect: the mended recipe
    takes its place.
    """
    file = path / "recipe.yaml"
    if not file.exists():
        replace_file(file, to_yaml(recipe))
        return
    found = from_yaml(file.read_text(), str(file))
    changes = {name: pair for name, pair in differences(found, recipe).items() if not name.endswith(_HARMLESS)}
    if changes and not _took_a_step(path):
        _clear(path)
        replace_file(file, to_yaml(recipe))
    elif changes:
        told = "; ".join(f"{name} was {old!r}, now {new!r}" for name, (old, new) in list(changes.items())[:8])
        more = f"; and {len(changes) - 8} more" if len(changes) > 8 else ""
        raise UserError(
            f"{path} holds a run of another recipe ({told}{more}); choose another --out, or start anew with --overwrite"
        )


def _took_a_step(path: Path) -> bool:
    """Whether there is more of a run than its beginning: weights, a checkpoint behind step 0, or a line of metrics."""
    saved = {file.stem for file in (path / "checkpoints").glob(_FOLDERS["checkpoints"])} - {"step-00000000"}
    metrics = path / "metrics.jsonl"
    return bool(saved) or (path / "final.safetensors").exists() or (metrics.exists() and metrics.stat().st_size > 0)


def _clear(path: Path) -> None:
    """Delete what a run directory contains, and nothing else."""
    with writing(path):
        for folder, pattern in _FOLDERS.items():
            for file in (path / folder).glob(pattern):
                if file.is_dir():
                    shutil.rmtree(file)
                else:
                    file.unlink()
        # recipe.yaml goes last: while it is there, this is still the directory of a run.
        for name in reversed(_CONTENTS):
            (path / name).unlink(missing_ok=True)


def environment(device: torch.device, processes: int) -> dict[str, Any]:
    """Versions, hardware and commit: what it takes to repeat a run, and what explains a difference."""
    return {
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
        "commit": _commit(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "platform": platform.platform(),
        "processes": processes,
        "python": platform.python_version(),
        "threads": torch.get_num_threads(),
        "versions": {name: version for name in _PACKAGES if (version := version_of(name))},
    }


def version_of(package: str) -> str | None:
    """The installed version of a package; None where it is not installed."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


@cache
def _commit() -> str | None:
    """The commit of the source that is running, with "+" where files differ from it; None outside a clone."""

    def git(*arguments: str) -> str:
        ran = subprocess.run(
            ["git", "-C", str(here.parent), *arguments], capture_output=True, text=True, timeout=10, check=True
        )
        return ran.stdout.strip()

    here = Path(__file__)
    try:
        git("ls-files", "--error-unmatch", here.name)
        return git("rev-parse", "HEAD") + ("+" if git("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.SubprocessError):
        return None
