"""Checkpoints of sharded state: every process writes its own part of every tensor, beside the training.

    step-00001000/  shard-00001-model-00001-of-00001.safetensors ...      a file per process, of torch.distributed.checkpoint
                    record.json                                           what the file form keeps in its metadata, and the
                                                                          checksums of every shard and of itself

The shards are safetensors, so that nothing that is read can run code. The directory gets its name once all of it is written.
Whoever reads it puts the tensors together, on any number of processes.
"""

from __future__ import annotations

import json
import os
import shutil
import warnings
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor

from hybridmap.files import replace_file, writing

RECORD = "record.json"
_CHUNK = 1 << 22


class Shards:
    """Writes the checkpoints of all processes together; one exists in every process of a world whose state is sharded."""

    def __init__(self) -> None:
        # Of its own, on the host, so that agreeing about files never waits for gradients, nor they for it.
        self._group: Any = dist.new_group(backend="gloo")
        self._mesh = DeviceMesh.from_group(self._group, "cpu")

    def copy(self, tensors: Mapping[str, Tensor], host: dict[str, Tensor]) -> dict[str, Tensor]:
        """This process's parts on the host, in the buffers of ``host``, which are made where they are missing."""
        parts = {name: value.to_local() if isinstance(value, DTensor) else value for name, value in tensors.items()}
        copied: dict[str, Tensor] = copy_to_host(parts, host)
        for name, value in tensors.items():
            if isinstance(value, DTensor):
                placed = {"run_check": False, "shape": value.shape, "stride": value.stride()}
                copied[name] = DTensor.from_local(copied[name], self._mesh, value.placements, **placed)
        return copied

    def write(self, path: Path, tensors: Mapping[str, Tensor], record: Mapping[str, Any]) -> None:
        """Write this process's part of what :meth:`copy` gave; all processes call this together.

        Raises:
            UserError: in every process, if one of them could not write.
        """
        unfinished = path.with_name(f".{path.name}.tmp")
        target = HuggingFaceStorageWriter(str(unfinished), save_distributed=True)
        with writing(path):
            try:
                save(dict(tensors), storage_writer=target, process_group=self._group)
            except CheckpointException as error:
                raise next(iter(error.failures.values()))[0] from None
            if dist.get_rank() == 0:
                self._finish(unfinished, path, record)

    def _finish(self, unfinished: Path, path: Path, record: Mapping[str, Any]) -> None:
        sums = {shard.name: _sum_of(shard) for shard in sorted(unfinished.glob("*.safetensors"))}
        record = json.loads(json.dumps({**record, "shards": sums}))  # as it is going to be read
        replace_file(unfinished / RECORD, json.dumps({**record, "checksum": _sum_of_record(record)}, sort_keys=True))
        for shard in unfinished.iterdir():
            with shard.open("rb+") as file:
                os.fsync(file.fileno())
        remove(path)
        unfinished.rename(path)


def copy_to_host(tensors: Mapping[str, Tensor], host: dict[str, Tensor]) -> dict[str, Tensor]:
    """Copies on the host, in the buffers of ``host``, which are made where they are missing (for a GPU page-locked): whoever
    copies again and again neither asks for memory each time nor waits for each tensor."""
    for name, value in tensors.items():
        buffer = host.get(name)
        if buffer is None or buffer.shape != value.shape:
            buffer = host[name] = torch.empty(value.shape, dtype=value.dtype, pin_memory=value.is_cuda)
        buffer.copy_(value, non_blocking=True)
    if any(value.is_cuda for value in tensors.values()):
        torch.cuda.synchronize()
    return {name: host[name] for name in tensors}


def remove(path: Path) -> None:
    """Delete a sharded checkpoint, if it is there: its name goes first, so that nobody finds half of it."""
    if path.exists():
        doomed = path.with_name(f".{path.name}.old.tmp")
        path.rename(doomed)
        shutil.rmtree(doomed)


def read_record(path: Path) -> dict[str, Any]:
    """The record of a sharded checkpoint.

    Raises:
        ValueError: if it is damaged.
        OSError: if it is missing.
    """
    record = json.loads((path / RECORD).read_text())
    if not isinstance(record, dict) or record.pop("checksum", None) != _sum_of_record(record):
        raise ValueError(f"the checksum of its {RECORD} differs")
    return record


def read(path: Path) -> dict[str, Tensor]:
    """All tensors of a sharded checkpoint, whole, on the host.

    Raises:
        ValueError: if a shard is missing or is not what was written.
    """
    for name, expected in read_record(path)["shards"].items():
        if not (path / name).exists():
            raise ValueError(f"its shard {name} is missing")
        if _sum_of(path / name) != expected:
            raise ValueError(f"the checksum of its shard {name} differs")
    source = HuggingFaceStorageReader(str(path))
    described = source.read_metadata().state_dict_metadata
    tensors = {
        name: torch.empty(tuple(told.size), dtype=told.properties.dtype)
        for name, told in described.items()
        if isinstance(told, TensorStorageMetadata)
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that one process reads what many wrote, which is meant
        load(tensors, storage_reader=source, no_dist=True)
    return tensors


def _sum_of_record(record: Mapping[str, Any]) -> int:
    return zlib.crc32(json.dumps(record, sort_keys=True).encode())


def _sum_of(path: Path) -> int:
    """CRC-32 of a file."""
    total = 0
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            total = zlib.crc32(chunk, total)
    return total
