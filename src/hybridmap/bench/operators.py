"""The operators against whoever computes the same, and against what no kernel can undercut.

A contestant is one way to compute an operator. Before anything is timed, its outputs and gradients are compared with the
formula's: the time of something else would mean nothing. Floors are no contestants: a copy of the bytes that must be read and
written, and for the scan on a CPU a matrix product with as many multiply-adds.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from hybridmap import ops
from hybridmap.bench import peers
from hybridmap.bench.clock import in_turns
from hybridmap.errors import UserError
from hybridmap.ops.backend import Backend
from hybridmap.ops.check import relative_error
from hybridmap.ops.selective_scan import reference

Direction = Literal["forward", "training forward", "backward", "forward + backward"]
"""``forward`` keeps nothing for a backward pass, ``training forward`` does."""
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 2e-2, torch.float16: 5e-3}
"""Relative distance from the formula, in float32, beyond which a contestant computes something else."""
_OPERATIONS: dict[Direction, int] = {"forward": 15, "training forward": 15, "backward": 26, "forward + backward": 41}
"""Multiply-adds per token, channel and state: an estimate of what exponential, recurrence and sums need, 7.3 and 13 cycles of a
processor that does two at a time."""


class Shape(NamedTuple):
    """Of one operator's problem."""

    batch: int = 8
    length: int = 98
    width: int = 768
    state: int = 16


class Contestant(NamedTuple):
    """One way to compute an operator from a problem's inputs."""

    name: str
    call: Callable[..., Tensor | tuple[Tensor, ...]]
    backend: Backend | None = None
    """What our own operators take meanwhile; None = the ordinary choice."""
    channels_first: bool = False
    """Whether it expects, and returns, (batch, channels, tokens); it gets such inputs before the clock runs."""


@dataclass(frozen=True)
class Problem:
    """An operator with inputs, all of which want gradients."""

    operator: str
    call: Callable[..., Tensor | tuple[Tensor, ...]]
    inputs: list[Tensor]
    formula: str
    """What the reference is called in the table."""
    peers: list[Contestant] = field(default_factory=list)
    absent: dict[str, str] = field(default_factory=dict)
    """Peer -> why it does not take part."""
    updates: int = 0
    """Multiply-adds of states that a scan cannot do without, for the floor of its arithmetic."""


class Row(NamedTuple):
    """One line of the table."""

    operator: str
    name: str
    seconds: dict[Direction, float]
    """Empty for whoever did not take part."""
    note: str = ""


def problems(shape: Shape, dtype: torch.dtype, device: torch.device, *, compiled: bool = False) -> list[Problem]:
    """Every operator, with inputs as a trained network has them."""
    generator = torch.Generator(device).manual_seed(0)
    batch, length, width, state = shape

    def normal(*size: int, shift: float = 0.0, dtype: torch.dtype = dtype) -> Tensor:
        return (torch.randn(size, generator=generator, device=device) + shift).to(dtype).requires_grad_()

    def vector(shift: float = 0.0) -> Tensor:
        return normal(width, shift=shift, dtype=torch.float32)

    def direction() -> list[Tensor]:
        A = -torch.arange(1.0, state + 1, device=device).repeat(width, 1)
        tokens, projected = (normal(batch, length, width) for _ in range(2)), (normal(batch, length, state) for _ in range(2))
        return [*tokens, A.requires_grad_(), *projected, vector(), vector(shift=-3)]

    def scan(x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, bias: Tensor, z: Tensor) -> Tensor:
        return ops.selective_scan(x, dt, A, B, C, D=D, bias=bias, z=z)

    def both(*inputs: Tensor) -> Tensor:
        return ops.bidirectional_scan(inputs[:7], inputs[7:14], inputs[14])

    def norm(x: Tensor, residual: Tensor, weight: Tensor) -> tuple[Tensor, ...]:
        return ops.add_norm(x, residual, weight, eps=1e-5, kind="rms")

    z, stream = normal(batch, length, width), normal(batch, length, width)
    rivals, absent = _rivals(device, compiled)
    taps = normal(width, 4, dtype=torch.float32)
    loop, updates = "loop over unbind", batch * length * width * state
    return [
        Problem("selective_scan", scan, [*direction(), z], loop, rivals, absent, updates),
        Problem("bidirectional_scan", both, [*direction(), *direction(), z], loop, updates=2 * updates),
        Problem("causal_conv1d", ops.causal_conv1d, [z, taps, vector()], "formula"),
        Problem("add_norm", norm, [stream, z, vector()], "formula"),
    ]


def _rivals(device: torch.device, compiled: bool) -> tuple[list[Contestant], dict[str, str]]:
    """Who else computes the selective scan, and who cannot, here."""
    found, absent = [Contestant("published form (slices)", peers.published, channels_first=True)], {}
    if compiled:
        loop: Any = torch.compile(reference.selective_scan)

        def compiled_loop(x, dt, A, B, C, D, bias, z) -> Tensor:
            return loop(x, dt, A, B, C, D=D, bias=bias, z=z)[0]

        found.append(Contestant("loop over unbind, compiled", compiled_loop))
    else:
        absent["loop over unbind, compiled"] = "left out: --compiled (takes a minute more)"
    makers: dict[str, Callable[[], Callable[..., Tensor]]] = {
        "mambapy, parallel": peers.mambapy,
        "PyTorch associative_scan": peers.associative,
    }
    if device.type == "cuda":
        makers["mamba_ssm"] = peers.mamba_ssm
    for name, make in makers.items():
        try:
            found.append(Contestant(name, make(), channels_first=name == "mamba_ssm"))
        except peers.Absent as reason:
            absent[name] = f"not available: {reason}"
    return found, absent


def contestants(problem: Problem, device: torch.device) -> list[Contestant]:
    """The kernel in use first, then plain PyTorch and the formula, then the peers."""
    kernel = ops.active(problem.operator, device, problem.inputs[0].dtype)
    ours = [Contestant(f"ours ({kernel})", problem.call)]
    if kernel != "torch":
        ours.append(Contestant("plain PyTorch", problem.call, "torch"))
    return [*ours, Contestant(problem.formula, problem.call, "reference"), *problem.peers]


def race(problem: Problem, taking_part: Sequence[Contestant], directions: Sequence[Direction], rounds: int) -> list[Row]:
    """Time contestants in turns, the first of which is ours, and the floors with them.

    Raises:
        UserError: if a contestant computes something else than the formula.
    """
    device, dtype = problem.inputs[0].device, problem.inputs[0].dtype
    wide = [t.detach().float().requires_grad_() for t in problem.inputs]
    truth = outcome(Contestant(problem.formula, problem.call, "reference"), wide)
    ready: dict[str, dict[Direction, Callable[[], object]]] = {}
    failed: dict[str, str] = dict(problem.absent)
    for contestant in taking_part:
        try:
            inputs = _laid_out(problem.inputs, contestant.channels_first)
            _insist(contestant, outcome(contestant, inputs), truth, TOLERANCE[dtype], problem.operator)
            ready[contestant.name] = {d: _run(contestant, inputs, d) for d in directions}
        except (RuntimeError, NotImplementedError) as error:  # no compiler, no memory, no such dtype: its trouble, not ours
            if contestant is taking_part[0]:
                raise
            failed[contestant.name] = f"not available: {_first_line(error)}"
    for name, make in _floors(problem).items():
        ready[name] = {d: make(d) for d in directions}
    taken: dict[str, dict[Direction, float]] = {name: {} for name in ready}
    for direction in directions:
        runs = {name: by_direction[direction] for name, by_direction in ready.items()}
        for name, took in in_turns(runs, rounds, device).items():
            taken[name][direction] = took
    rows = [Row(problem.operator, name, times) for name, times in taken.items()]
    return rows + [Row(problem.operator, name, {}, reason) for name, reason in failed.items()]


def _laid_out(inputs: Sequence[Tensor], channels_first: bool) -> list[Tensor]:
    if not channels_first:
        return list(inputs)
    return [t.detach().mT.contiguous().requires_grad_() if t.dim() == 3 else t for t in inputs]


def _outputs(contestant: Contestant, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
    out = contestant.call(*inputs)
    return (out,) if isinstance(out, Tensor) else out


def outcome(contestant: Contestant, inputs: Sequence[Tensor]) -> list[Tensor]:
    """Outputs and gradients, channels last, for cotangents that follow from the shapes."""
    with ops.use_backend(contestant.backend):
        outputs = _outputs(contestant, inputs)
        cotangents = [torch.ones_like(out) for out in outputs]
        found = [*(out.detach() for out in outputs), *torch.autograd.grad(outputs, inputs, cotangents)]
    return [t.mT if contestant.channels_first and t.dim() == 3 else t for t in found]


def _insist(contestant: Contestant, found: list[Tensor], truth: list[Tensor], tolerance: float, operator: str) -> None:
    for value, true in zip(found, truth, strict=True):
        error = relative_error(value, true) if value.shape == true.shape else float("inf")
        if not error <= tolerance:
            raise UserError(
                f"{contestant.name} does not compute {operator}: an output or gradient is off by {error:.0e} where at most "
                f"{tolerance:.0e} was expected; hybridmap doctor checks our kernels"
            )


def _run(contestant: Contestant, inputs: Sequence[Tensor], direction: Direction) -> Callable[[], object]:
    """What is timed."""

    def forward() -> object:
        with ops.use_backend(contestant.backend), torch.set_grad_enabled(direction != "forward"):
            return _outputs(contestant, inputs)

    def both() -> object:
        with ops.use_backend(contestant.backend):
            outputs = _outputs(contestant, inputs)
            return torch.autograd.grad(outputs, inputs, [torch.ones_like(out) for out in outputs])

    if direction == "forward + backward":
        return both
    if direction != "backward":
        return forward
    with ops.use_backend(contestant.backend):
        kept = _outputs(contestant, inputs)
    cotangents = [torch.ones_like(out) for out in kept]

    def backward() -> object:
        with ops.use_backend(contestant.backend):
            return torch.autograd.grad(kept, inputs, cotangents, retain_graph=True)

    return backward


def _floors(problem: Problem) -> dict[str, Callable[[Direction], Callable[[], object]]]:
    """Floor -> what is timed for a direction."""
    inputs, device = problem.inputs, problem.inputs[0].device
    with torch.no_grad():
        outputs = _outputs(Contestant("", problem.call), inputs)
    read, written = (sum(t.nbytes for t in tensors) for tensors in (inputs, outputs))

    def copy(direction: Direction) -> Callable[[], object]:
        forward, backward = read + written, 2 * read + written  # gradients are as large as what they belong to
        moved = {"backward": backward, "forward + backward": forward + backward}.get(direction, forward)
        source, target = (torch.zeros(moved // 2, dtype=torch.uint8, device=device) for _ in range(2))
        return lambda: target.copy_(source)

    def arithmetic(direction: Direction) -> Callable[[], object]:
        side = 512
        left = torch.randn(side, side)
        right = torch.randn(side, max(problem.updates * _OPERATIONS[direction] // side**2, 1))
        result = left @ right
        return lambda: torch.mm(left, right, out=result)

    floors: dict[str, Callable[[Direction], Callable[[], object]]] = {"floor: copy of its bytes": copy}
    if problem.updates and device.type == "cpu":  # elsewhere exponentials are no multiply-adds
        floors["floor: its arithmetic in a product"] = arithmetic
    return floors


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}{f', {lines[0]}' if lines else ''}"[:120]
