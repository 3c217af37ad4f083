"""Checkpoints: safetensors that are either whole or not there.

A checkpoint is one safetensors file of flattened tensors (``learner.<name>``, ``optimizer.<name>.exp_avg``, ``ema.<name>``)
with one metadata key, ``hybridmap``: JSON with sorted keys, without times or paths, so that equal runs write equal bytes. A
checksum of the rest and of the tensors is part of it; a checkpoint that does not match is not used, and the one before it is.
"""

from __future__ import annotations

import json
import logging
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from hybridmap.errors import UserError
from hybridmap.files import replacing, writing
from hybridmap.train import shards

log = logging.getLogger("hybridmap.train")

METADATA = "hybridmap"
"""The one metadata key of every safetensors file that the project writes."""


class BrokenFile(UserError):
    """A file that is not what was once written: cut off, changed, or something else altogether."""


def write(path: Path, tensors: Mapping[str, Tensor], record: Mapping[str, Any]) -> None:
    """Write ``tensors`` and the JSON-able ``record`` as a whole or not at all, into a directory that is there: a run that was
    deleted meanwhile is not to come back in parts.

    Raises:
        UserError: if the directory is gone, or the disk is full or not writable; what was at ``path`` before is still there.
    """
    host = {name: tensors[name].detach().to("cpu").contiguous() for name in sorted(tensors)}
    record = json.loads(json.dumps(record))  # as it is going to be read
    text = json.dumps({**record, "checksum": _checksum(host, record)}, sort_keys=True)
    with replacing(path, make=False) as temporary:
        save_file(host, temporary, metadata={METADATA: text})


def read_record(path: Path) -> dict[str, Any]:
    """The metadata of a file, without its tensors; empty where the file has none of ours.

    Raises:
        BrokenFile: if it is no whole safetensors file.
    """
    try:
        if path.is_dir():
            return shards.read_record(path)
        with safe_open(path, "pt") as file:
            return json.loads((file.metadata() or {}).get(METADATA, "{}"))
    except FileNotFoundError as error:
        if path.is_dir():
            raise BrokenFile(f"{path} is not a whole checkpoint: it has no {shards.RECORD}") from None
        raise UserError(f"cannot read {path}: {error.strerror or error}") from None
    except (SafetensorError, ValueError) as error:
        kind = "checkpoint" if path.is_dir() else "safetensors file"
        raise BrokenFile(f"{path} is not a whole {kind} ({error}); it may have been cut off") from None
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from None


def read(path: Path, *, ours: bool = False) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors (on the host) and metadata of a file. With ``ours``, one that :func:`write` did not write is broken.

    Raises:
        BrokenFile: if the file is cut off, or does not hold what was written.
    """
    record = read_record(path)
    if path.is_dir():
        try:
            return shards.read(path), record
        except (SafetensorError, ValueError, KeyError, OSError) as error:
            raise BrokenFile(f"{path} does not hold what was written to it: {error}") from None
    try:
        with safe_open(path, "pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    except SafetensorError as error:
        raise BrokenFile(f"{path} is not a whole safetensors file ({error}); it may have been cut off") from None
    written = record.pop("checksum", None)
    if written is None and ours:
        raise BrokenFile(f"{path} does not hold what was written to it: it has no checksum")
    if written is not None and written != _checksum(tensors, record):
        raise BrokenFile(f"{path} does not hold what was written to it: its checksum differs")
    return tensors, record


def _checksum(tensors: Mapping[str, Tensor], record: Mapping[str, Any]) -> int:
    """CRC-32 over the record, then over names, types, shapes and bytes, by name."""
    total = zlib.crc32(json.dumps(record, sort_keys=True).encode())
    for name in sorted(tensors):
        total = zlib.crc32(f"{name} {tensors[name].dtype} {tuple(tensors[name].shape)}".encode(), total)
        total = zlib.crc32(tensors[name].reshape(-1).view(torch.uint8).numpy().data, total)
    return total


class Checkpoints:
    """The checkpoints of a run: the newest ``keep``, and the one with the highest score.

    Those written because a run was asked to stop are extra: they are where it continues, but they are not counted, and nothing
    goes back to them, so that a run that was stopped and continued does what an uninterrupted one does.
    """

    def __init__(self, folder: Path, keep: int) -> None:
        self.folder, self.keep = folder, keep

    def paths(self) -> list[Path]:
        """Checkpoints, oldest first: files, or directories of shards."""
        return sorted(self.folder.glob("step-*"))

    def path_of(self, step: int, *, sharded: bool = False) -> Path:
        """Where the checkpoint of ``step`` is written."""
        return self.folder / (f"step-{step:08d}" if sharded else f"step-{step:08d}.safetensors")

    def save(self, step: int, tensors: Mapping[str, Tensor], record: Mapping[str, Any]) -> None:
        """Write the checkpoint of ``step``, then delete those that are no longer kept.

        Raises:
            UserError: as :func:`write`, and if the run directory is gone: a run does not go on in one that lacks the rest.
        """
        with writing(self.folder):
            self.folder.mkdir(exist_ok=True)
        write(self.path_of(step), tensors, {**record, "step": step})
        self.prune()

    def newest(self, *, extra: bool = True) -> Path | None:
        """The newest checkpoint that is whole, or None; broken ones are named in the log. ``extra=False`` leaves out those that
        were written because the run was asked to stop."""
        for path in reversed(self.paths()):
            try:
                if extra or not read_record(path).get("extra"):
                    read(path, ours=True)
                    return path
            except BrokenFile as error:
                log.warning("%s; the checkpoint before it is used", error)
        return None

    def drop_after(self, step: int) -> None:
        """Delete the checkpoints of later steps: broken ones, or those of a future that is not going to be."""
        for path in self.paths():
            if int(path.stem.removeprefix("step-")) > step:
                _remove(path)

    def prune(self) -> None:
        """Keep the newest (whatever it is), the newest ``keep`` that are not extra, and the one with the highest score."""
        records = {path: self._record(path) for path in self.paths()}
        kept = {max(records)}
        kept.update([path for path, record in records.items() if not record.get("extra")][-self.keep :])
        scored = [path for path, record in records.items() if record.get("score") is not None]
        if scored:
            kept.add(max(scored, key=lambda path: (records[path]["score"], path)))
        for path in records.keys() - kept:
            _remove(path)

    def _record(self, path: Path) -> dict[str, Any]:
        try:
            return read_record(path)
        except BrokenFile:
            return {"extra": True}


def _remove(path: Path) -> None:
    if path.is_dir():
        shards.remove(path)
    else:
        path.unlink()
