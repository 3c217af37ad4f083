"""NaN never wins: what happens to a step whose loss or gradient is not finite.

The flag stays on the device, where it turns the optimiser's step into nothing. The host reads it one step late, when the device
has long been given more to do, so that nobody waits. After a few bad steps in a row the loop goes back to the last checkpoint,
and the batch is replayed here with an eye on every module.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from hybridmap.train.state import TrainState

log = logging.getLogger("hybridmap.train")


class Watch:
    """The numbers of one step on their way from the device to the host, and what the host makes of them."""

    def __init__(self, state: TrainState) -> None:
        self.asked = False
        """Whether any process was asked to stop."""
        self._state = state
        self._losses: list[float] = []
        self._names: list[str] = []
        self._values: Tensor | None = None
        self._arrived: torch.cuda.Event | None = None
        self._facts: dict[str, Any] = {}

    def send(self, numbers: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
        """Start the copy of the scalars of a step; ``facts`` are numbers that the host knows already."""
        self._names, self._facts = list(numbers), dict(facts)
        values = torch.stack([value.detach().float() for value in numbers.values()])
        self._values = values.to("cpu", non_blocking=True)
        if values.is_cuda:
            self._arrived = torch.cuda.Event()
            self._arrived.record()

    def receive(self) -> dict[str, Any] | None:
        """What :meth:`send` was given last, as plain numbers, once; None if nothing is on its way.

        Counts the step as good or bad. Waits for the device, so call it when the device has the next step to work on.
        """
        if self._values is None:
            return None
        if self._arrived is not None:
            self._arrived.synchronize()
        record = self._facts | dict(zip(self._names, self._values.tolist(), strict=True))
        self._values = None
        self.asked = self.asked or record.pop("asked") > 0
        if record.pop("skipped"):
            record["skipped"] = True
            self._state.bad_in_row += 1
            self._state.skipped_steps += 1
            searching = self._state.scaler.is_enabled() and math.isfinite(record["loss"])  # for a scale that fp16 can hold
            level = logging.INFO if searching else logging.WARNING
            told = "step %d was not finite (loss %g, gradient %g) and was skipped"
            log.log(level, told, record["step"], record["loss"], record["grad_norm"])
        else:
            self._state.bad_in_row = 0
            self._losses.append(record["loss"])
        return record

    def take_losses(self) -> list[float]:
        """The losses of the good steps since this was asked last."""
        losses, self._losses = self._losses, []
        return losses


@torch.no_grad()
def put_back(buffers: Iterable[Tensor], before: Iterable[Tensor], bad: Tensor) -> None:
    """What a forward pass left in the buffers (running statistics of BatchNorm) is undone where the step is ``bad``.

    Decided on the device, as the optimiser's step is: nobody waits.
    """
    for buffer, was in zip(buffers, before, strict=True):
        buffer.copy_(torch.where(bad, was, buffer))


def first_culprit(learner: nn.Module, replay: Callable[[], Iterator[Tensor]]) -> str | None:
    """Run ``replay`` (which yields the loss of one micro-batch after the other) with its backward, and name what is not finite
    first.

    The answer reads as the subject of a sentence, such as "the output of backbone.layers.3.mixer"; None if all was finite.
    """
    found: list[str] = []
    handles: list[RemovableHandle] = []

    def note(what: str, tensors: Iterator[Tensor | None]) -> None:
        # The gradient of a tensor that nothing depends on is None.
        if not found and not all(bool(t.isfinite().all()) for t in tensors if t is not None):
            found.append(what)

    def before(name: str) -> Callable[..., None]:
        return lambda module, inputs: note(f"the input of {name}", _tensors(inputs))

    def after(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            note(f"the output of {name}", _tensors(output))
            for tensor in _tensors(output):
                if tensor.requires_grad:
                    handles.append(tensor.register_hook(lambda gradient: note(f"the gradient at {name}", iter([gradient]))))

        return hook

    try:
        for name, module in learner.named_modules():
            name = name or type(learner).__name__
            handles.append(module.register_forward_pre_hook(before(name)))
            handles.append(module.register_forward_hook(after(name)))
        with torch.compiler.set_stance("force_eager"):
            for loss in replay():
                note("the loss", iter([loss]))
                loss.backward()
    finally:
        for handle in handles:
            handle.remove()
    for name, parameter in learner.named_parameters():
        if parameter.grad is not None:
            note(f"the gradient of {name}", iter([parameter.grad]))
        parameter.grad = None
    return found[0] if found else None


def _tensors(value: Any) -> Iterator[Tensor]:
    """The floating-point tensors inside tuples, lists, dicts and dataclasses."""
    if isinstance(value, Tensor):
        if value.is_floating_point():
            yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _tensors(item)
    elif isinstance(value, tuple | list):
        for item in value:
            yield from _tensors(item)
    elif is_dataclass(value):
        for item in fields(value):
            yield from _tensors(getattr(value, item.name))
