"""NaN never wins: what happens to a step whose loss or gradient is not finite.

The flag stays on the device, where it turns the optimiser's step into nothing. The host reads it one step late, when the device
has long been given more to do, so that nobody waits. After a few bad steps in a row the loop goes back to the last checkpoint,
and the batch is replayed here with an eye on every module.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle


class Watch:
    """The numbers of one step on their way from the device to the host."""

    def __init__(self) -> None:
        self._names: list[str] = []
        self._values: Tensor | None = None
        self._arrived: torch.cuda.Event | None = None
        self._facts: dict[str, Any] = {}

    def send(self, numbers: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
        """Start the copy of some scalars; ``facts`` are numbers of the step that the host knows already."""
        self._names, self._facts = list(numbers), dict(facts)
        self._values = torch.stack([value.detach().float() for value in numbers.values()]).to("cpu", non_blocking=True)
        if torch.cuda.is_available() and next(iter(numbers.values())).is_cuda:
            self._arrived = torch.cuda.Event()
            self._arrived.record()

    def receive(self) -> dict[str, Any] | None:
        """Everything that :meth:`send` was given, as plain numbers, once; None if there is nothing on its way."""
        if self._values is None:
            return None
        if self._arrived is not None:
            self._arrived.synchronize()
        record = self._facts | dict(zip(self._names, self._values.tolist(), strict=True))
        self._values = None
        return record


def first_culprit(learner: nn.Module, replay: Callable[[], Tensor]) -> str | None:
    """Run ``replay`` (a forward pass that returns the loss) with its backward, and name what is not finite first.

    The answer reads as the subject of a sentence, such as "the output of backbone.layers.3.mixer"; None if all was finite.
    """
    found: list[str] = []
    handles: list[RemovableHandle] = []

    def note(what: str, tensors: Iterator[Tensor]) -> None:
        if not found and not all(bool(t.isfinite().all()) for t in tensors):
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
            loss = replay()
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
