"""The matrix products of a computation: which there are, how many operations that makes, and how long they take alone.

What a training step is mostly made of, and what a library cannot make faster: products of linear maps, forward and the two
backward ones, and those inside of attention. Alone, on random numbers in the same shapes, layouts and dtypes, they are the
floor that the step is compared with. Products inside of a compiled graph are not seen: record the computation uncompiled.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from hybridmap.bench.clock import in_turns
from hybridmap.ops import Parameters

PEAKS = (
    *(("GB200", 2500), ("B200", 2250), ("GH200", 989), ("H200", 989), ("H100 PCIe", 756), ("H100", 989), ("A100", 312)),
    *(("A30", 165), ("A10G", 70), ("A10", 125), ("L40S", 362), ("L40", 181), ("L4", 121), ("A6000", 155)),
    *(("RTX 5090", 210), ("RTX 4090", 165), ("RTX 3090", 71)),
)
"""Part of a card's name -> dense bf16 TFLOP/s by its data sheet; the more particular name comes first."""


class Operand(NamedTuple):
    """The layout of one factor."""

    shape: tuple[int, ...]
    stride: tuple[int, ...]


class Product(NamedTuple):
    """(rows, inner) times (inner, columns), or a batch of these."""

    left: Operand
    right: Operand
    dtype: torch.dtype

    @property
    def operations(self) -> int:
        """Floating-point operations: a multiplication and an addition each."""
        *batch, rows, inner = self.left.shape
        return 2 * rows * inner * self.right.shape[-1] * (batch[0] if batch else 1)


def products_of(name: str, args: tuple[Any, ...]) -> list[Product]:
    """The products inside of one call of an ``aten`` operator, such as ``aten::addmm``; mostly none."""
    if name in ("aten::mm", "aten::bmm"):
        return [_product(args[0], args[1])]
    if name in ("aten::addmm", "aten::baddbmm"):
        return [_product(args[1], args[2])]
    if name in ("hybridmap::mamba_inner", "hybridmap::mamba_inner_bwd"):
        return _inside_of_a_mixer(args, backward=name.endswith("_bwd"))
    if "::_scaled_dot_product" not in name:
        return []
    backward = name.endswith("_backward")
    query, key = args[1:3] if backward else args[:2]
    (*batch, queries, width), keys = query.shape, key.shape[-2]
    count = torch.Size(batch).numel()
    scores, mix = (queries, width, keys), (queries, keys, width)  # q k', and scores v
    # backward: dP = dO v', dQ = dS k, dK = dS' q, dV = P' dO
    sizes = [scores, mix, (keys, queries, width), (keys, queries, width)] if backward else [scores, mix]
    return [Product(_dense(count, m, k), _dense(count, k, n), query.dtype) for m, k, n in sizes]


def _inside_of_a_mixer(args: tuple[Any, ...], *, backward: bool) -> list[Product]:
    """The projections of each direction, which that operator multiplies itself; backward, dt is multiplied once more."""
    xz, *parameters = args[4:-1] if backward else args[:-2]
    tokens, found = xz.shape[0] * xz.shape[1], []
    for p in (Parameters(*parameters[:7]), Parameters(*parameters[7:14])):
        if p.x_proj is None:
            continue
        (rows, channels), rank = p.x_proj.shape, p.dt_proj.shape[1]
        forward = [(tokens, channels, rows), (tokens, rank, channels)]
        through = [(tokens, rank, channels), (tokens, channels, rank), (tokens, rows, channels)]
        to_weights = [(rows, tokens, channels), (channels, tokens, rank)]
        for m, k, n in [*through, *to_weights] if backward else forward:
            found.append(Product(Operand((m, k), (k, 1)), Operand((k, n), (n, 1)), xz.dtype))
    return found


def _product(left: Tensor, right: Tensor) -> Product:
    return Product(Operand(tuple(left.shape), left.stride()), Operand(tuple(right.shape), right.stride()), left.dtype)


def _dense(*shape: int) -> Operand:
    return Operand(shape, (shape[1] * shape[2], shape[2], 1))


def operations(products: Mapping[Product, int]) -> int:
    """Floating-point operations of all of them."""
    return sum(product.operations * times for product, times in products.items())


def replay(products: Counter[Product], device: torch.device) -> Callable[[], None]:
    """A function that computes all of them and nothing else, from and into three buffers that exist before it is called."""

    def buffer(sizes: dict[torch.dtype, int]) -> dict[torch.dtype, Tensor]:
        return {dtype: torch.randn(size, device=device).to(dtype) for dtype, size in sizes.items()}

    sizes: tuple[dict[torch.dtype, int], ...] = ({}, {}, {})
    for product in products:
        needed = (_extent(product.left), _extent(product.right), _extent(_result(product)))
        for size, extent in zip(sizes, needed, strict=True):
            size[product.dtype] = max(size.get(product.dtype, 0), extent)
    buffers = [buffer(size) for size in sizes]
    calls = []
    for product, times in products.items():
        operands = zip((product.left, product.right, _result(product)), buffers, strict=True)
        left, right, result = (buffer[product.dtype].as_strided(*operand) for operand, buffer in operands)
        calls.append((torch.mm if left.dim() == 2 else torch.bmm, left, right, result, times))

    @torch.no_grad()
    def run() -> None:
        for multiply, left, right, result, times in calls:
            for _ in range(times):
                multiply(left, right, out=result)

    return run


def _result(product: Product) -> Operand:
    shape = (*product.left.shape[:-1], product.right.shape[-1])
    return Operand(shape, (shape[-2] * shape[-1], shape[-1], 1)[-len(shape) :])


def _extent(operand: Operand) -> int:
    return 1 + sum((size - 1) * stride for size, stride in zip(*operand, strict=True))


def peak(device: torch.device) -> tuple[float, str]:
    """Dense bf16 operations per second of a card, and whose number that is: the data sheet's, else one large product's."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else ""
    for part, tera in PEAKS:
        if part in name:
            return tera * 1e12, "by its data sheet"
    side = 8192 if device.type == "cuda" else 512
    product = Product(_dense(1, side, side), _dense(1, side, side), torch.bfloat16)
    run = replay(Counter({product: 1}), device)
    return product.operations / in_turns({"product": run}, 5, device)["product"], f"by a product of side {side}"
