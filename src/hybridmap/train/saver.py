"""Checkpoints beside the training: a copy of the state is taken, and the run goes on while it is written.

    state ─ copy to the host ─> [checksum, write, sync, rename, prune]      one at a time, in a thread

One process writes one file; where the state is sharded, every process writes its part (``shards``).
"""

from __future__ import annotations

from types import TracebackType
from typing import Any

from torch import Tensor

from hybridmap.errors import UserError
from hybridmap.train.background import Background
from hybridmap.train.checkpoint import Checkpoints
from hybridmap.train.distributed import World, whole
from hybridmap.train.shards import Shards, copy_to_host
from hybridmap.train.state import TrainState


class Saver:
    """Takes checkpoints of a run; leaving the context waits for the last one."""

    def __init__(self, checkpoints: Checkpoints, world: World, *, sharded: bool) -> None:
        """``sharded``: whether processes hold parts of the state; then each writes its own."""
        self._checkpoints, self._world = checkpoints, world
        self._shards = Shards() if sharded else None
        self._host: dict[str, Tensor] = {}
        self._background = Background()

    def save(self, state: TrainState, record: dict[str, Any]) -> None:
        """Begin to write a checkpoint; the state may change as soon as this returns. All processes call it together.

        Raises:
            UserError: if the one before could not be written.
        """
        self.wait()
        step, tensors = state.step, self._copy(state)
        if self._shards is not None:
            self._background.start(lambda: self._write_shards(step, tensors, record))
        elif self._world.is_main:
            self._background.start(lambda: self._checkpoints.save(step, tensors, record))

    def wait(self) -> None:
        """Until the last checkpoint is on the disk, in all processes.

        Raises:
            UserError: in all of them, if one could not write.
        """
        error: UserError | None = None
        try:
            self._background.wait()
        except UserError as raised:
            error = raised
        for found in self._world.gather(error):
            if found is not None:
                raise found

    @property
    def failed(self) -> bool:
        """Whether what this process writes has gone wrong."""
        return self._background.failed

    def _copy(self, state: TrainState) -> dict[str, Tensor]:
        tensors = state.tensors()
        if self._shards is not None:
            return self._shards.copy(tensors, self._host)
        if self._world.is_main:
            return copy_to_host({name: whole(value).detach() for name, value in tensors.items()}, self._host)
        for value in tensors.values():
            whole(value)
        return {}

    def _write_shards(self, step: int, tensors: dict[str, Tensor], record: dict[str, Any]) -> None:
        assert self._shards is not None
        path = self._checkpoints.path_of(step, sharded=True)
        self._shards.write(path, tensors, {**record, "step": step})
        if self._world.is_main:
            self._checkpoints.prune()

    def __enter__(self) -> Saver:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._background.__exit__(kind, error, trace)
