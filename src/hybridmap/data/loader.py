"""The order of samples as a function, and the batches that follow from it.

    position p = step * G + micro * G/A + rank * G/(A W) + i            G global batch, A micro-steps, W processes, i sample
    epoch = p // len        index = permutation(seed, epoch)[p % len]        key = hash(seed, epoch, p % len)

With repeated augmentation the index is that of [p % len // repeats]: each image comes so often in a row, under other keys.
The permutation is one of all images, or, where they come in blocks that are read as a whole, of blocks, a few mixed at a time.

An endless stream of positions: epochs follow each other without a gap, and no batch is cut short. Since everything follows from
the position, a loader has no state to save: it continues at ``start_step``, and any split into processes, micro-steps and
workers sees the same samples. Where the data are asked for several views, each micro-batch is asked for as often.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import lru_cache
from itertools import islice
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.utils.data import DataLoader, get_worker_info
from torch.utils.data import Dataset as TorchDataset

from hybridmap.data.base import Dataset, Samples, key_of_view
from hybridmap.errors import UserError
from hybridmap.hashing import hash_ints
from hybridmap.types import Batch

log = logging.getLogger("hybridmap.data")

_TOO_MANY = 0.01
"""Part of the images that may be unreadable before the log warns."""
_JUDGED_AFTER = 1000
"""Images seen (or one epoch, if that is less) before that part is judged."""
_DEATHS = 3
"""Times in a row that workers may die before they have prepared one more batch."""


MIXED = 16
"""Blocks whose images an epoch mixes with each other, where the data come in blocks."""


@lru_cache(maxsize=2)
def permutation(seed: int, epoch: int, length: int, blocks: tuple[int, ...] | None = None) -> Int[np.ndarray, "length"]:
    """The order in which ``epoch`` visits the data set. With ``blocks`` (lengths of runs that are read together) it is one of
    blocks, and of the images of ``MIXED`` blocks at a time."""
    generator = np.random.Generator(np.random.Philox(key=hash_ints(seed, epoch, length) & ((1 << 64) - 1)))
    if blocks is None:
        return generator.permutation(length)
    ends = np.cumsum(blocks)
    order = generator.permutation(len(blocks))
    windows = [order[first : first + MIXED] for first in range(0, len(order), MIXED)]
    runs = [np.concatenate([np.arange(int(ends[k]) - blocks[k], int(ends[k])) for k in window]) for window in windows]
    return np.concatenate([generator.permutation(run) for run in runs])


_ECHO_S = 5.0
"""Within this time of the first SIGTERM, further ones are the same one."""

Request = tuple[list[int], list[int], int | None, bool]
"""(indices, keys, view, substitute): what a worker is asked for."""


class _Requests:
    """The micro-batches of one process in order, each view of them on its own."""

    def __init__(
        self, dataset: Dataset, seed: int, starts: range, micro: int, stride: int, count: int, views: Sequence[int | None]
    ) -> None:
        self.length, self.blocks, self.seed, self.views = len(dataset), dataset.blocks, seed, views
        self.starts, self.micro, self.stride, self.count = starts, micro, stride, count
        self.repeats = dataset.config.repeats

    def after(self, answered: int) -> Iterator[Request]:
        """Those that follow the first ``answered``."""
        steps, rest = divmod(answered, self.count * len(self.views))
        return islice(self._from(steps), rest, None)

    def _from(self, step: int) -> Iterator[Request]:
        for start in self.starts[step:]:
            for first in range(start, start + self.stride * self.count, self.stride):
                indices, keys = [], []
                for position in range(first, first + self.micro):
                    epoch, place = divmod(position, self.length)
                    indices.append(int(permutation(self.seed, epoch, self.length, self.blocks)[place // self.repeats]))
                    keys.append(hash_ints(self.seed, epoch, place))
                for view in self.views:
                    yield indices, keys, view, True


class _Worker(TorchDataset):
    """Answers a request with a batch. A user's mistake travels back as a value: torch would wrap it in a traceback."""

    def __init__(self, dataset: Dataset, changes: bool) -> None:
        self.dataset, self.changes = dataset, changes

    def __getitem__(self, request: Request) -> Samples | UserError:
        indices, keys, view, substitute = request
        try:
            samples = self.dataset.samples(indices, keys, view=view, substitute=substitute)
            if self.changes and samples.paths:
                samples = replace(samples, images=self.dataset.change(samples.images, _keys(samples, view)))
            if get_worker_info() is not None:
                _share(samples)
        except UserError as error:
            return error
        return samples


def _keys(samples: Samples, view: int | None) -> list[int]:
    """Those that decide about this view of the samples."""
    return [key_of_view(key, view) for key in samples.keys.tolist()]


def _changes_here(device: torch.device) -> bool:
    """Whether batches are augmented on ``device``, not by the processes that prepare them."""
    return device.type == "cuda"


def _share(samples: Samples) -> None:
    """Move a batch to where the training process can read it. Left to torch, a thread of the worker would do so, and without
    room it would print its error, drop the batch, and leave the training process waiting for ever."""
    try:
        for tensor in (samples.images, samples.labels, samples.keys):
            tensor.share_memory_()
    except RuntimeError as error:
        raise UserError(
            f"cannot write a batch of {samples.images.nbytes / 1e6:.1f} MB to shared memory ({error}); make /dev/shm larger "
            "(docker: --shm-size), raise ulimit -f, or prepare images in the training process (--data.workers 0)"
        ) from None


def _whole(samples: Any) -> Any:
    """A request is a whole batch already; there is nothing to collate."""
    return samples


def _start_worker(number: int) -> None:
    """Leave what is sent to the whole group to the training process, which saves before it goes. A worker is ended only by a
    SIGTERM that comes later than an echo of the first: the launcher passes on what the scheduler has sent to all processes."""
    first: list[float] = []

    def note(received: int, frame: Any) -> None:
        first.append(time.monotonic())
        if first[-1] - first[0] > _ECHO_S:
            signal.signal(received, signal.SIG_DFL)
            os.kill(os.getpid(), received)

    for name in ("SIGINT", "SIGUSR1", "SIGUSR2", "SIGXCPU"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    signal.signal(signal.SIGTERM, note)


def _on(device: torch.device, dataset: Dataset, samples: Samples, keys: Sequence[int]) -> Tensor:
    """The images of an answer on ``device``, augmented by their ``keys``."""
    images = samples.images.to(device, non_blocking=True)
    return dataset.change(images, keys) if _changes_here(device) else images


class _WorkerDied(Exception):
    """A process that prepared images has ended, and not by itself."""


def _serve(
    dataset: Dataset, after: Callable[[int], Iterable[Request]], workers: int, device: torch.device
) -> Iterator[Samples]:
    """The answers to the requests, in order, prepared by ``workers`` processes (0: by this one). ``after`` gives the requests
    that follow the first so many.

    A worker that dies (killed, most often for want of memory) is replaced, with all others, and asked again: answers depend on
    nothing but the request.

    Raises:
        UserError: if that does not help, or for what a worker could not do.
    """
    answered = deaths = 0
    while True:
        try:
            for samples in _answers(dataset, after(answered), workers, device):
                answered, deaths = answered + 1, 0
                yield samples
            return
        except _WorkerDied as error:
            deaths += 1
            if deaths == _DEATHS:
                raise UserError(
                    f"processes that prepare images died {deaths} times in a row ({error}); often the memory is not enough for "
                    f"{workers} of them: try a smaller --data.workers, or 0"
                ) from None
            log.warning("a process that prepared images died (%s); new ones take its place", error)


def _answers(dataset: Dataset, requests: Iterable[Request], workers: int, device: torch.device) -> Iterator[Samples]:
    """What torch's loader gives.

    Raises:
        _WorkerDied: if a worker did.
    """
    with warnings.catch_warnings(), _same_child_handler():
        # Python 3.12 warns of every fork beside threads, but the workers use one thread and no device; torch warns of more
        # workers than processors, but the number is the user's choice.
        warnings.filterwarnings("ignore", category=DeprecationWarning, message=".*fork")
        warnings.filterwarnings("ignore", message="This DataLoader will create")
        answers = iter(
            DataLoader(
                _Worker(dataset, changes=not _changes_here(device)),
                sampler=requests,
                batch_size=None,
                collate_fn=_whole,
                num_workers=workers,
                pin_memory=device.type == "cuda",
                worker_init_fn=_start_worker,
                prefetch_factor=4 if workers else None,
                # Quick, and safe on Linux, because the workers never touch a device.
                multiprocessing_context="fork" if workers and sys.platform == "linux" else None,
                # Of its own, so that the global generator is left alone.
                generator=torch.Generator(),
            )
        )
    try:
        while True:
            death = None
            try:
                samples = next(answers)
            except StopIteration:
                return
            except (RuntimeError, OSError, EOFError) as error:
                if not workers or not _tells_of_a_death(error):
                    raise
                death = str(error).strip().rstrip(".") or type(error).__name__
            if death is not None:  # raised here, where the error of torch is gone, and with it what its traceback holds
                raise _WorkerDied(death)
            if isinstance(samples, UserError):
                raise samples
            yield samples
    finally:
        # The workers end with the iterator; the traceback of an error would keep both alive.
        del answers


@contextmanager
def _same_child_handler() -> Iterator[None]:
    """Undo that torch handles the death of a worker where the training process happens to be, by an error in the middle of
    anything, such as the optimiser's step. Whoever waits for the worker's answer learns of it all the same."""
    if not hasattr(signal, "SIGCHLD") or threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGCHLD)
    yield
    if before is not None:  # None: not set from Python, so that it cannot be set again from here
        signal.signal(signal.SIGCHLD, before)


def _tells_of_a_death(error: Exception) -> bool:
    """Whether torch says that a worker is gone, or one went while it handed over its answer. What the data set raised in a
    worker is none of this: torch adds "in DataLoader worker process" to it."""
    if isinstance(error, RuntimeError):
        return "DataLoader worker (pid" in str(error) or "Pin memory thread exited" in str(error)
    gone = isinstance(error, ConnectionError | EOFError | FileNotFoundError)
    return gone and "in DataLoader worker process" not in str(error)


class Loader:
    """Training batches, step by step, from ``start_step`` to ``steps``.

        for micro_batches in loader:            # one optimiser step
            for batch in micro_batches: ...     # ``accumulate`` batches, normalised, on the device

    Attributes:
        dataset: the data set.
        skipped: files that could not be read so far, path -> reason.
        wait_s: seconds that the last step (so far) spent waiting for its batches.
    """

    def __init__(
        self,
        config: Dataset.Config,
        *,
        batch_size: int,
        steps: int,
        accumulate: int = 1,
        rank: int = 0,
        world: int = 1,
        seed: int = 0,
        start_step: int = 0,
        device: torch.device | str = "cpu",
        workers: int | None = None,
    ) -> None:
        """Open the data.

        Args:
            config: what to load.
            batch_size: samples per optimiser step, over all processes and micro-steps.
            steps: number of optimiser steps of the whole run.
            accumulate: micro-steps per optimiser step.
            rank, world: this process and the number of processes.
            seed: decides order and crops.
            start_step: the first step to deliver; a continued run says where it stands.
            device: where batches are wanted.
            workers: overrides ``config.workers``.

        Raises:
            UserError: if the batch cannot be divided evenly, or the data cannot be opened.
        """
        if batch_size < 1 or batch_size % (accumulate * world):
            raise UserError(
                f"train.batch_size must be a multiple of processes x accumulate = {world} x {accumulate}, got {batch_size}"
            )
        self.dataset: Dataset = config.build()
        self.batch_size, self.accumulate, self.rank, self.world = batch_size, accumulate, rank, world
        self.seed, self.start_step, self.steps = seed, start_step, steps
        self.device = torch.device(device)
        self.workers = config.workers if workers is None else workers
        self.skipped: dict[str, str] = {}
        self.wait_s = 0.0
        self._seen = 0
        self._warned = False

    def __len__(self) -> int:
        """Optimiser steps that an iteration delivers."""
        return max(0, self.steps - self.start_step)

    def __iter__(self) -> Iterator[Iterator[Batch]]:
        served = _serve(self.dataset, self._requests().after, self.workers, self.device)
        try:
            for step in range(self.start_step, self.steps):
                self.wait_s = 0.0
                micro_batches = self._micro_batches(served, hash_ints(self.seed, step))
                yield micro_batches
                # Whoever leaves a step early finds the next one in its place all the same.
                for _ in micro_batches:
                    pass
        finally:
            served.close()  # type: ignore[attr-defined]
            self._judge(final=True)

    def _requests(self) -> _Requests:
        micro = self.batch_size // (self.accumulate * self.world)
        offset = self.rank * micro
        starts = range(self.start_step * self.batch_size + offset, self.steps * self.batch_size + offset, self.batch_size)
        stride = self.batch_size // self.accumulate
        return _Requests(self.dataset, self.seed, starts, micro, stride, self.accumulate, self._views())

    def _views(self) -> Sequence[int | None]:
        """What each micro-batch is asked for: the samples themselves, or so many independent crops of them."""
        views = self.dataset.config.views
        return (None,) if views == 1 else range(views)

    def _micro_batches(self, served: Iterator[Samples], step_key: int) -> Iterator[Batch]:
        for _ in range(self.accumulate):
            began = time.perf_counter()
            views = [next(served) for _ in self._views()]
            batch = self._batch(views, step_key)
            self.wait_s += time.perf_counter() - began
            self._count(views)
            yield batch

    def _batch(self, views: Sequence[Samples], step_key: int) -> Batch:
        first = views[0]
        named = [(view, _keys(view, number)) for number, view in zip(self._views(), views, strict=True)]
        images = [self.dataset.finish(_on(self.device, self.dataset, view, keys), keys) for view, keys in named]
        labels = first.labels.to(self.device, non_blocking=True) if self.dataset.classes else None
        return Batch(
            inputs=images[0],
            key=first.keys.to(self.device, non_blocking=True),
            step_key=step_key,
            labels=labels,
            views=tuple(images) if len(images) > 1 else None,
        )

    def _count(self, views: Sequence[Samples]) -> None:
        self._seen += len(views[0].paths) * self.world
        for path, reason in (found for view in views for found in view.skipped.items()):
            if path not in self.skipped:
                self.skipped[path] = reason
                log.warning("cannot read %s (%s); another image stands in for it", path, reason)
        self._judge(final=False)

    def _judge(self, *, final: bool) -> None:
        """Warn, once, if more than one image in a hundred could not be read."""
        if self._seen < min(len(self.dataset), _JUDGED_AFTER) and not final:
            return
        if self.too_many_skipped and not self._warned:
            self._warned = True
            seen = min(self._seen, len(self.dataset))
            log.warning(
                "%d of about %d images could not be read, more than 1 %%; is the folder damaged?", len(self.skipped), seen
            )

    @property
    def too_many_skipped(self) -> bool:
        """Whether more than 1 % of the images seen so far could not be read."""
        return len(self.skipped) > _TOO_MANY * min(self._seen, len(self.dataset))


def each(
    dataset: Dataset,
    batch_size: int,
    *,
    device: torch.device | str = "cpu",
    workers: int | None = None,
    seed: int = 0,
    skipped: dict[str, str] | None = None,
) -> Iterator[tuple[Float[Tensor, "B ..."], Int[Tensor, "B"], tuple[str, ...]]]:
    """One pass in order, for evaluation: (normalised inputs, labels, paths), every readable image once.

    Random crops are drawn from the same key each time, so that two passes see the same images. The last batch may be smaller.
    What cannot be read is left out, logged, and added to ``skipped`` (path -> reason) where that is given.

    Raises:
        UserError: if no image can be read, or if one cannot and ``on_error`` is "fail".
    """
    device = torch.device(device)
    batches = [range(start, min(start + batch_size, len(dataset))) for start in range(0, len(dataset), batch_size)]
    requests = [(list(indices), [hash_ints(seed, i) for i in indices], None, False) for indices in batches]
    skipped = {} if skipped is None else skipped
    delivered = 0
    workers = dataset.config.workers if workers is None else workers
    for samples in _serve(dataset, lambda answered: requests[answered:], workers, device):
        for path, reason in samples.skipped.items():
            log.warning("cannot read %s (%s); it is left out", path, reason)
        skipped |= samples.skipped
        if samples.paths:
            delivered += len(samples.paths)
            images = dataset.normalised(_on(device, dataset, samples, _keys(samples, None)))
            yield images, samples.labels.to(device, non_blocking=True), samples.paths
    if not delivered:
        path, reason = next(iter(skipped.items()))
        raise UserError(f"none of the {len(dataset)} {dataset.noun} can be read; the first of them is {path}: {reason}")
