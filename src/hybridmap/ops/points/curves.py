"""Codes along curves that fill a cube of cells: sorting by them puts most neighbours in space next to each other."""

from __future__ import annotations

import torch
from jaxtyping import Int
from torch import Tensor

from hybridmap.errors import UserError

DEEPEST = 16
"""Bits per axis, at most."""


def hilbert_code(cells: Int[Tensor, "*batch 3"], bits: int | Int[Tensor, "*shape"]) -> Int[Tensor, "*batch"]:
    """The place of each cell along Hilbert's curve through a cube of 2^bits cells per axis, int64.

    From the highest bit down, and for each axis in turn: where the axis has the bit, the lower bits of axis 0 are inverted,
    elsewhere they are exchanged with those of the axis; then the bits of the three axes are interleaved, axis 0 first, and
    Gray-decoded. The curve's orientation depends on ``bits`` modulo 3. ``bits`` may be a tensor that broadcasts against the
    cells without their last axis: ``bits[:, None]`` for a depth per cloud. Source: J. Skilling, Programming the Hilbert curve,
    AIP Conference Proceedings 707 (2004).

    Raises:
        UserError: if a cell does not lie in the cube, or ``bits`` is not 0 to 16 (looked at on CPUs only).
    """
    _check("hilbert_code", cells, bits)
    axes = list(cells.to(torch.int64).unbind(-1))
    for bit in reversed(range(bits if isinstance(bits, int) else DEEPEST)):
        low = (1 << bit) - 1
        if isinstance(bits, Tensor):  # clouds that do not have this bit stay
            low = low * (bit < bits)
        for d in range(3):
            has = axes[d] >> bit & 1
            exchanged = (axes[0] ^ axes[d]) & low * (1 - has)  # nothing for axis 0 itself
            axes[d] = axes[d] ^ exchanged
            axes[0] = axes[0] ^ exchanged ^ low * has
    code = _interleave(axes)
    for shift in (1, 2, 4, 8, 16, 32):  # a running XOR from the top
        code = code ^ code >> shift
    return code


def z_order_code(cells: Int[Tensor, "*batch 3"], bits: int | Int[Tensor, "*shape"]) -> Int[Tensor, "*batch"]:
    """The place of each cell along Morton's curve: the bits of the three axes interleaved, axis 0 first; int64.

    Raises:
        UserError: as :func:`hilbert_code`; the code itself does not depend on ``bits``.
    """
    _check("z_order_code", cells, bits)
    return _interleave(cells.to(torch.int64).unbind(-1))


def _interleave(axes: list[Tensor] | tuple[Tensor, ...]) -> Tensor:
    code = torch.zeros_like(axes[0])
    for d, axis in enumerate(axes):
        for bit in range(DEEPEST):
            code = code | (axis >> bit & 1) << (3 * bit + 2 - d)
    return code


def _check(name: str, cells: Tensor, bits: int | Tensor) -> None:
    if cells.dim() < 1 or cells.shape[-1] != 3 or cells.is_floating_point():
        raise UserError(
            f"{name} expects cells as integers (..., 3), but {tuple(cells.shape)} of {cells.dtype} came; divide coordinates by "
            "the side of a cell and round down."
        )
    if isinstance(bits, int) and not 0 <= bits <= DEEPEST:
        raise UserError(f"{name} expects 0 to {DEEPEST} bits per axis, but {bits} came; take larger cells.")
    if torch.compiler.is_compiling() or cells.device.type != "cpu" or not cells.numel():
        return
    if isinstance(bits, Tensor) and not ((bits >= 0) & (bits <= DEEPEST)).all():
        raise UserError(f"{name} expects 0 to {DEEPEST} bits per axis, but {bits.tolist()} came; take larger cells.")
    highest = 1 << (bits if isinstance(bits, int) else bits.to(torch.int64)[..., None])
    if not ((cells >= 0) & (cells < highest)).all():
        raise UserError(
            f"{name} expects coordinates from 0 to 2^bits - 1, but {int(cells.min())} to {int(cells.max())} came with "
            f"bits={bits if isinstance(bits, int) else bits.tolist()}; subtract the least coordinate, or ask for more bits."
        )
