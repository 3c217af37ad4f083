"""Compile every Triton kernel for a GPU that is not here, through the code that launches them; run by test_gpu.py.

Prints the name of each kernel that got as far as machine code.
"""

from __future__ import annotations

import torch
import triton
from scan_problems import problem
from triton.backends.compiler import GPUTarget

from hybridmap.ops.add_norm import gpu as add_norm
from hybridmap.ops.causal_conv1d import gpu as causal_conv1d
from hybridmap.ops.selective_scan import gpu as selective_scan
from hybridmap.ops.selective_scan.reference import Direction


class Driver:
    """What Triton asks of a driver before it compiles."""

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", 90, 32)


def compile_only(kernel, programs, x, *arguments, warps, **constants) -> None:
    made = kernel.warmup(*arguments, grid=(programs,), **constants, num_warps=warps, enable_fp_fusion=True)
    assert made.asm["cubin"]
    print(kernel.fn.__name__)


def main() -> None:
    triton.runtime.driver.set_active(Driver())
    for module in (selective_scan, causal_conv1d, add_norm):
        module.launch = compile_only
    t = {name: value.detach() for name, value in problem(2, 9, 32, 4, dtype=torch.bfloat16).items()}
    d = Direction(*(t[name] for name in Direction._fields))
    flags = {"softplus": True, "scale": 0.5}
    for pair, reverse, z, h0 in (([d, d], [False, True], t["z"], None), ([d], [True], None, t["h0"][None])):
        _, _, kept = selective_scan.forward(pair, reverse, z, h0, **flags, keep=True, end=h0 is not None)
        selective_scan.backward(t["x"], h0, kept, pair, reverse, z, h0, **flags)
    taps = torch.ones(32, 4)
    for bias in (None, taps[:, 0]):
        causal_conv1d.forward(t["x"], taps, bias, True, bias is None)
        causal_conv1d.backward(t["x"], t["x"], taps, bias, True, bias is None)
    for kind in ("rms", "layer"):
        weight = taps[:, 0]
        normed, summed, mean, rstd = add_norm.forward(t["x"], t["z"], weight, weight, 1e-5, kind, True)
        add_norm.backward(normed, summed, summed, mean, rstd, weight, weight, kind)


if __name__ == "__main__":
    main()
