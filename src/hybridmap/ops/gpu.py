"""What the Triton kernels of all operators share: smooth functions that never overflow, and how a kernel is launched.

triton is imported here and in the operators' ``gpu.py`` only, and those are imported when a kernel is first wanted. Sizes of
blocks follow from the shape alone and nothing is tuned while running, so that two runs give the same bits.
"""

# Inside a kernel, annotations and operators mean what Triton makes of them, which pyright cannot follow.
# pyright: reportArgumentType=false, reportCallIssue=false, reportOperatorIssue=false, reportReturnType=false
from __future__ import annotations

from typing import Any, no_type_check

import torch
import triton
import triton.language as tl
from torch import Tensor

LOG2E = tl.constexpr(1.4426950408889634)
LN2 = tl.constexpr(0.6931471805599453)


@triton.jit
@no_type_check
def sigmoid(v):
    u = tl.exp2(tl.abs(v) * -LOG2E)
    inverse = 1.0 / (1.0 + u)
    return tl.where(v < 0.0, u * inverse, inverse)


@triton.jit
@no_type_check
def softplus(v):
    """max(v, 0) + log1p(exp(-|v|)), relatively exact for very negative v, where log(1 + u) would lose every digit."""
    u = tl.exp2(tl.abs(v) * -LOG2E)
    s = u / (2.0 + u)  # log1p(u) = 2 artanh(s), s in [0, 1/3]
    q = s * s
    p = q * (1.0 / 13.0) + (1.0 / 11.0)
    p = p * q + (1.0 / 9.0)
    p = p * q + (1.0 / 7.0)
    p = p * q + (1.0 / 5.0)
    p = p * q + (1.0 / 3.0)
    p = p * q + 1.0
    return tl.where(v > 0.0, v, 0.0) + 2.0 * s * p


@triton.jit
@no_type_check
def silu_slope(v):
    """The derivative of v * sigmoid(v)."""
    s = sigmoid(v)
    return s + v * s * (1.0 - s)


@triton.jit
@no_type_check
def load(pointer, mask):
    """What lies there in its own precision, zero where the mask is false; None masks nothing."""
    if mask is None:
        return tl.load(pointer)
    else:
        return tl.load(pointer, mask=mask, other=0.0)


@triton.jit
@no_type_check
def load_wide(pointer, mask):
    """The same as float32."""
    return load(pointer, mask).to(tl.float32)


def launch(kernel: Any, programs: int, x: Tensor, *arguments: Any, warps: int, **constants: Any) -> None:
    """Run so many programs on the device of ``x``, with fused multiply-adds whatever Triton's default is."""
    with torch.cuda.device_of(x):
        kernel[(programs,)](*arguments, **constants, num_warps=warps, enable_fp_fusion=True)


def power_of_two(size: int) -> int:
    """The smallest power of two that is not smaller: what a tile of Triton's must measure."""
    return triton.next_power_of_2(max(size, 1))
