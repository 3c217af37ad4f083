"""How many floating-point operations one forward pass takes: counted while the network runs on the meta device.

Nothing is computed and no weight is allocated. torch's own counter sees every matrix product, convolution (by groups) and
attention that reaches it; the operators of ``hybridmap.ops`` are opaque to it, so their formulas are here, one each:

    selective_scan, bidirectional_scan    9 B L E S per direction
    causal_conv1d                         2 B L E W
    mamba_inner                           per direction: convolution, both projections, scan
    add_norm                              nothing, as torch counts nothing for its own norms
    fps, knn, ball_query, chamfer         nothing, as nobody counts them

The unit: a multiplication and an addition are two operations. What timm and most papers print as "GFLOPs" or "GMACs" counts
such a pair once and is half of this: :func:`gmacs`. Element by element operations (activations, norms, gates, biases, the skip
D of a scan) are counted nowhere.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from hybridmap.backbones.base import ImageBackbone
from hybridmap.backbones.sequence import sides
from hybridmap.ops import Parameters, use_backend

Shape = torch.Size | tuple[int, ...]


def scan_flops(x: Shape, A: Shape) -> int:
    """``9 B L E S`` for one direction, x (B, L, E) and A (E, S): the usual count, that of a parallel scan, which combines 2 L
    pairs at 3 operations per element of the state; 3 more go before and after it.

    These are operations: papers that add them to multiply-adds without halving them print more than :func:`gmacs`.
    Source: A. Gu in issue 110 of state-spaces/mamba.
    """
    batch, length, channels = x
    return 9 * batch * length * channels * A[1]


def conv_flops(x: Shape, taps: Shape) -> int:
    """``2 B L E W``: every channel with its own W taps, x (B, L, E) and taps (E, W)."""
    batch, length, channels = x
    return 2 * batch * length * channels * taps[1]


def _selective_scan(x: Shape, dt: Shape, A: Shape, *_: Any, **__: Any) -> int:
    return scan_flops(x, A)


def _bidirectional_scan(*args: Any, **_: Any) -> int:
    x, A = args[0], args[2]
    return 2 * scan_flops(x, A)


def _causal_conv1d(x: Shape, taps: Shape, *_: Any, **__: Any) -> int:
    return conv_flops(x, taps)


def _mamba_inner(xz: Shape, *args: Any, **_: Any) -> int:
    batch, length, width = xz
    x, size = (batch, length, width // 2), len(Parameters._fields)
    directions: list[Any] = [Parameters(*args[i : i + size]) for i in (0, size) if args[i] is not None]
    return sum(
        conv_flops(x, p.taps) + scan_flops(x, p.A) + 2 * batch * length * (_product(p.x_proj) + _product(p.dt_proj))
        for p in directions
    )


def _product(shape: Any) -> int:
    return shape[0] * shape[1]


def _nothing(*_: Any, **__: Any) -> int:
    return 0


FORMULAS: dict[Any, Any] = {
    torch.ops.hybridmap.selective_scan: _selective_scan,
    torch.ops.hybridmap.bidirectional_scan: _bidirectional_scan,
    torch.ops.hybridmap.causal_conv1d: _causal_conv1d,
    torch.ops.hybridmap.mamba_inner: _mamba_inner,
    torch.ops.hybridmap.add_norm: _nothing,
    torch.ops.hybridmap.fps: _nothing,
    torch.ops.hybridmap.knn: _nothing,
    torch.ops.hybridmap.ball_query: _nothing,
    torch.ops.hybridmap.chamfer: _nothing,
}
"""Operator -> operations of one call, from the shapes of its arguments: what torch's counter wants to be told."""


def flops_of(run: Callable[[], object]) -> int:
    """Operations of whatever ``run`` computes, without gradients."""
    # The formula of an operator, should that be what runs now, consists of operations that the counter does not know.
    with use_backend(None), torch.no_grad(), FlopCounterMode(display=False, custom_mapping=FORMULAS) as counter:
        run()
    return counter.get_total_flops()


def flops(backbone: ImageBackbone, img_size: int | tuple[int, int] | None = None) -> int:
    """Operations of one forward pass over one image, head included; ``img_size`` in pixels, default: the configured one.

    It runs where the weights are. On the meta device (``with torch.device("meta"): backbone = config.build()``) nothing is
    computed and nothing allocated.

    Raises:
        UserError: if the network cannot take images of this size.
    """
    size = sides(backbone.config.img_size if img_size is None else img_size)
    images = torch.empty(1, backbone.config.in_chans, *size, device=next(backbone.parameters()).device)
    training = backbone.training
    backbone.eval()
    try:
        return flops_of(lambda: backbone(images))
    finally:
        backbone.train(training)


def gmacs(backbone: ImageBackbone, img_size: int | tuple[int, int] | None = None) -> float:
    """The same in 10^9 multiply-adds, half of :func:`flops`: what the field prints."""
    return flops(backbone, img_size) / 2e9
