"""One process or many: the few places where it makes a difference.

Started by ``torchrun``, or as one of several tasks by SLURM's ``srun``, every process is a rank of a :class:`World`; started
alone, it is a world of one, and everything here does nothing.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Literal, TypeVar
from uuid import uuid4

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.rendezvous import rendezvous
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

from hybridmap.errors import UserError
from hybridmap.train import slurm
from hybridmap.types import Batch

T = TypeVar("T")

_PATIENCE = timedelta(hours=6)
"""How long ranks wait for each other: rank 0 may be busy with an exam."""


class _Totals(nn.Module):
    """A learner whose forward returns plain tensors, which is what the wrappers below look for."""

    def __init__(self, learner: nn.Module) -> None:
        super().__init__()
        self.learner = learner

    def forward(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        loss = self.learner(batch)
        return loss.total, loss.parts


@dataclass(frozen=True)
class World:
    """This process among its peers."""

    rank: int
    size: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        """Whether this process writes the files."""
        return self.rank == 0

    def wrap(self, learner: nn.Module, parallel: Literal["ddp", "fsdp"]) -> nn.Module:
        """``learner`` as a module batch -> (total, parts) whose gradients are means over all processes.

        "ddp" keeps a copy of the parameters in every process; "fsdp" shards them (and the optimiser's state with them), the
        entries of every list of layers separately.
        """
        model = _Totals(learner)
        if self.size == 1:
            return model
        if parallel == "ddp":
            return DistributedDataParallel(model, device_ids=[self.device] if self.device.type == "cuda" else None)
        mesh = init_device_mesh(self.device.type, (self.size,))
        for layer in _layers(learner):
            fully_shard(layer, mesh=mesh)
        fully_shard(model, mesh=mesh)
        return model

    def accumulating(self, model: nn.Module, *, last: bool) -> AbstractContextManager[Any]:
        """Around forward and backward of a micro-step: gradients travel between processes after the last one only."""
        if isinstance(model, DistributedDataParallel) and not last:
            return model.no_sync()
        if isinstance(model, FSDPModule):
            model.set_requires_gradient_sync(last)
        return nullcontext()

    def mean(self, value: Tensor) -> Tensor:
        """Mean over the processes, on the device, computed in place."""
        if self.size > 1:
            dist.all_reduce(value)
            value /= self.size
        return value

    def on_main(self, action: Callable[[], T]) -> T:
        """Do something in one process and give its result, or its UserError, to all of them."""
        if self.size == 1:
            return action()
        outcome: list[Any] = [None, None]
        if self.is_main:
            try:
                outcome[0] = action()
            except UserError as error:
                outcome[1] = error
        dist.broadcast_object_list(outcome, src=0, device=self.device if self.device.type == "cuda" else None)
        if outcome[1] is not None:
            raise outcome[1]
        return outcome[0]

    def gather(self, value: T) -> list[T]:
        """The values of all processes, in the order of their ranks."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value)
        return values


def unsynchronised(model: nn.Module) -> nn.Module:
    """What :meth:`World.wrap` made, without the exchange of gradients where it can be left out."""
    return model.module if isinstance(model, DistributedDataParallel) else model


def _layers(module: nn.Module) -> Iterator[nn.Module]:
    """The entries of the outermost lists of layers."""
    for child in module.children():
        if isinstance(child, nn.ModuleList):
            yield from child
        else:
            yield from _layers(child)


def whole(value: Tensor) -> Tensor:
    """A tensor that may be sharded, gathered (all processes take part)."""
    return value.full_tensor() if isinstance(value, DTensor) else value


def like(template: Tensor, value: Tensor) -> Tensor:
    """``value`` on the device of ``template`` and sharded as it is."""
    if isinstance(template, DTensor):
        return distribute_tensor(value.to(template.device), template.device_mesh, template.placements)
    return value.to(template.device)


def choose_device(name: str, local_rank: int = 0) -> torch.device:
    """The device that ``--device`` names; "auto" is the first kind of accelerator that is there, or the CPU.

    Raises:
        UserError: if there is no such device here.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UserError(f"there is no device {name!r}; expected auto, cpu, cuda, cuda:N or mps") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UserError(f"device {name!r} was asked for, but this torch finds no CUDA GPU; try --device cpu")
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise UserError("device 'mps' was asked for, but this torch finds none; try --device cpu")
    if device.type == "cuda":
        index = local_rank if device.index is None else device.index
        if index >= torch.cuda.device_count():
            raise UserError(f"GPU {index} was asked for, but there are {torch.cuda.device_count()}")
        return torch.device("cuda", index)
    return device


@contextmanager
def join(device: str = "auto") -> Iterator[World]:
    """The world of this process, as long as the context is open; variables of ``torchrun`` or SLURM say whether it has peers.

    Raises:
        UserError: if there is no such device, or SLURM's variables are not whole.
    """
    os.environ.update(slurm.torchrun_variables(os.environ))
    rank, size, local = (int(os.environ.get(name, default)) for name, default in _TORCHRUN.items())
    chosen = choose_device(device, local)
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)
    starts = size > 1 and not dist.is_initialized()
    if starts:
        backend = "nccl" if chosen.type == "cuda" else "gloo"
        store, _, _ = next(rendezvous("env://", rank, size, timeout=_PATIENCE))
        place: dict[str, Any] = {"rank": rank, "world_size": size, "device_id": chosen if chosen.type == "cuda" else None}
        dist.init_process_group(backend, store=of_this_launch(store, rank, size), timeout=_PATIENCE, **place)
    try:
        yield World(rank=rank, size=size, device=chosen)
    finally:
        if starts:
            dist.destroy_process_group()


def of_this_launch(store: Store, rank: int, size: int) -> Store:
    """The part of a store that no earlier launch has written to.

    ``torchrun`` keeps one store over all its restarts, with the addresses of processes that are gone, and does not tell a
    restart for another number of nodes from the start before it. So each process says a word that nobody has said before, and
    the first one answers that word with the name of this launch.

    Raises:
        UserError: if not all processes come.
    """
    word = uuid4().hex
    if rank > 0:
        store.set(f"hello/{rank}", word)
        launch = store.get(f"welcome/{word}").decode()
        store.set(f"met/{launch}/{rank}", "")
        return PrefixStore(launch, store)
    missing, end = set(range(1, size)), time.monotonic() + _PATIENCE.total_seconds()
    while missing:
        for other in missing:
            if store.check([f"hello/{other}"]):
                store.set(f"welcome/{store.get(f'hello/{other}').decode()}", word)
        missing = {other for other in missing if not store.check([f"met/{word}/{other}"])}
        if missing and time.monotonic() > end:
            raise UserError(
                f"of {size} processes, {len(missing)} have not come (the first is rank {min(missing)}); look at their logs"
            )
        time.sleep(0.01)
    return PrefixStore(word, store)


def restarted() -> bool:
    """Whether this is not the first launch by its launcher: ``torchrun --max-restarts``, or a job that SLURM has requeued."""
    return any(os.environ.get(name, "0") != "0" for name in ("TORCHELASTIC_RESTART_COUNT", "SLURM_RESTART_COUNT"))


_TORCHRUN = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}
