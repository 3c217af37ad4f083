"""Our operators in the standard ones of ONNX: what ``torch.onnx.export`` looks up for ``hybridmap::...``.

The scan becomes ONNX's own ``Scan``, whose body is one token of the recurrence:

    state, delta_t, driven_t, B_t, C_t  ─▶  state = exp(delta_t A) * state + driven_t B_t  ─▶  state, y_t = state . C_t

so that nothing larger than one (batch, E, S) state is ever held, whatever the length; exponentials only shrink (A < 0), so that
long sequences do not overflow; and the order of the sums is that of ``reference.py``. Batch and length stay free. A formulation
by doubling, of additions and products alone, would hold (batch, L, E, S) tensors and pass over them log2 L times; one that
divides by a cumulative product overflows. A reverse scan walks the same memory from its end, by the attributes of ``Scan``.

Needs onnxscript, which ``pip install hybridmap[export]`` brings; nothing else imports this file. Tensors are float32.
"""

# No "from __future__ import annotations": onnxscript reads the annotations of ``_recurrence`` as types.

from collections.abc import Callable, Sequence
from typing import Any

import torch
from onnxscript import FLOAT, graph, opset18, script

from hybridmap.ops.mamba_inner import Parameters, grouped
from hybridmap.ops.selective_scan.reference import Direction

op: Any = opset18  # typed by element type, which is not known here
_END = 2**31 - 1
"""What ONNX understands as the last index of any axis; its negative as the first, walking backwards."""


@script(default_opset=op)
def _recurrence(
    start: FLOAT,
    delta: FLOAT,
    driven: FLOAT,
    B: FLOAT,
    C: FLOAT,
    A: FLOAT,
    reads: Sequence[int],
    writes: Sequence[int],
) -> tuple[FLOAT, FLOAT]:
    """(last state, y) of (L, batch, E) steps and driven inputs and (L, batch, S) projections; 1 in ``reads`` is backwards."""

    @graph()
    def token(state, delta_t, driven_t, B_t, C_t):
        row = op.Constant(value_ints=[1])
        column = op.Constant(value_ints=[2])
        decay = op.Exp(op.Mul(op.Unsqueeze(delta_t, column), A))
        drive = op.Mul(op.Unsqueeze(driven_t, column), op.Unsqueeze(B_t, row))
        after = op.Add(op.Mul(decay, state), drive)
        y_t = op.Squeeze(op.MatMul(after, op.Unsqueeze(C_t, column)), column)
        return after, y_t

    last, y = op.Scan(
        start, delta, driven, B, C, body=token, num_scan_inputs=4, scan_input_directions=reads, scan_output_directions=writes
    )
    return last, y


def _silu(x: Any) -> Any:
    return op.Mul(x, op.Sigmoid(x))


def _nothing() -> Any:
    """The tensor of no elements that an operator returns where it has nothing to keep."""
    return op.ConstantOfShape(op.Constant(value_ints=[0]))


def _columns(x: Any, first: int, last: int) -> Any:
    """``x[..., first:last]``"""
    return op.Slice(x, *(op.Constant(value_ints=[value]) for value in (first, last, -1)))


def _scan(d: Any, start: Any, softplus: bool, reverse: bool) -> tuple[Any, Any]:
    """(sum over the states plus D x, last state) of one ``Direction``, before any gate."""
    delta = d.dt if d.bias is None else op.Add(d.dt, d.bias)
    if softplus:
        delta = op.Softplus(delta)
    delta, driven, B, C = (op.Transpose(v, perm=[1, 0, 2]) for v in (delta, op.Mul(delta, d.x), d.B, d.C))
    if start is None:
        start = op.ConstantOfShape(op.Concat(op.Shape(d.x, start=0, end=1), op.Shape(d.A), axis=0))
    last, y = _recurrence(start, delta, driven, B, C, d.A, reads=[int(reverse)] * 4, writes=[int(reverse)])
    y = op.Transpose(y, perm=[1, 0, 2])
    return (y if d.D is None else op.Add(y, op.Mul(d.D, d.x))), last


def _finish(y: Any, z: Any, scale: float) -> Any:
    y = y if z is None else op.Mul(y, _silu(z))
    return y if scale == 1.0 else op.Mul(y, op.Constant(value_float=scale))


def _both(directions: Sequence[Direction], z: Any, softplus: bool, scale: float) -> Any:
    """One direction or two, added before the gate; the second runs from the last token."""
    y, *second = (_scan(d, None, softplus, reverse)[0] for d, reverse in zip(directions, (False, True), strict=False))
    return _finish(op.Add(y, *second) if second else y, z, scale)


def _selective_scan(x, dt, A, B, C, D, z, bias, h0, softplus: bool, reverse: bool, out_scale: float, save_ckpt: bool) -> Any:
    y, last = _scan(Direction(x, dt, A, B, C, D, bias), h0, softplus, reverse)
    return _finish(y, z, out_scale), last, _nothing()


def _bidirectional_scan(*args: Any) -> Any:
    *tensors, z, softplus, out_scale, _ = args
    return _both([Direction(*tensors[:7]), Direction(*tensors[7:])], z, softplus, out_scale), _nothing()


def _causal_conv1d(x, w, b, silu: bool, reverse: bool) -> Any:
    channels, width = w.shape
    taps = w
    if reverse:
        taps = op.Slice(w, *(op.Constant(value_ints=[value]) for value in (-1, -_END, 1, -1)))
    inputs = [op.Transpose(x, perm=[0, 2, 1]), op.Unsqueeze(taps, op.Constant(value_ints=[1])), *([] if b is None else [b])]
    u = op.Conv(*inputs, group=channels, pads=[0, width - 1] if reverse else [width - 1, 0])
    u = op.Transpose(u, perm=[0, 2, 1])
    return _silu(u) if silu else u


def _inner_direction(x: Any, p: Parameters, reverse: bool) -> Direction:
    c = _causal_conv1d(x, p.taps, p.taps_bias, True, reverse)
    rank, states = p.dt_proj.shape[1], p.A.shape[1]
    projected = op.MatMul(c, op.Transpose(p.x_proj, perm=[1, 0]))
    delta, B, C = (
        _columns(projected, first, first + size) for first, size in ((0, rank), (rank, states), (rank + states, states))
    )
    return Direction(c, op.MatMul(delta, op.Transpose(p.dt_proj, perm=[1, 0])), p.A, B, C, p.D, p.bias)


def _mamba_inner(*args: Any) -> Any:
    xz, *tensors, scale, _ = args
    parameters = grouped(tensors)
    channels = parameters[0].A.shape[0]
    x, z = _columns(xz, 0, channels), _columns(xz, channels, 2 * channels)
    directions = [_inner_direction(x, p, reverse) for p, reverse in zip(parameters, (False, True), strict=False)]
    return _both(directions, z, True, scale), _nothing(), _nothing(), _nothing()


def translations() -> dict[Callable, Callable]:
    """The ``custom_translation_table`` of ``torch.onnx.export``."""
    operators = torch.ops.hybridmap
    return {
        operators.selective_scan.default: _selective_scan,
        operators.bidirectional_scan.default: _bidirectional_scan,
        operators.causal_conv1d.default: _causal_conv1d,
        operators.mamba_inner.default: _mamba_inner,
    }
