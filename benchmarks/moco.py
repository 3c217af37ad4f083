"""What MoCo costs beyond two passes of its network: momentum update, projectors, similarities, queue.

    python benchmarks/moco.py [--model hybridnet_small_patch16_224] [--batch 8] [--rounds 5] [--csv FILE]

    MoCo         one micro-step: forward with all that moves, backward, and what the loop keeps of the buffers and puts back
    its floor    forward and backward of the backbone on one crop, forward without gradient on the other, nothing else

In turns, one thread, float32, at the recipes' queue of 65536 keys. MoCo over its floor is to be at most 1.10.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from rich.console import Console

from hybridmap.backbones import find
from hybridmap.backbones.sequence import sides
from hybridmap.bench.clock import in_turns
from hybridmap.bench.sheet import Sheet
from hybridmap.objectives.moco import MoCo
from hybridmap.ops.heap import keep_freed_memory
from hybridmap.tasks.features import describe
from hybridmap.train.nonfinite import put_back
from hybridmap.types import Batch

TARGET = 1.10


def contestants(learner: MoCo, batch: Batch) -> dict[str, Callable[[], None]]:
    """A micro-step of MoCo, and the two passes that it cannot do without."""
    assert batch.views is not None
    first, second = batch.views

    def moco() -> None:
        learner.zero_grad()
        before = [buffer.clone() for buffer in learner.buffers()]
        loss = learner(batch).total
        loss.backward()
        put_back(learner.buffers(), before, ~loss.isfinite())

    def floor() -> None:
        learner.zero_grad()
        with torch.no_grad():
            describe(learner.key_backbone, second)
        describe(learner.backbone, first).sum().backward()

    return {"MoCo": moco, "its floor": floor}


def main() -> int:
    """Measure, print, and write a CSV file when asked; the code is 1 if the target is missed."""
    keep_freed_memory()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="hybridnet_small_patch16_224", help="hybridmap models lists them")
    parser.add_argument("--batch", type=int, default=8, help="images; must divide the queue")
    parser.add_argument("--queue", type=int, default=65536, help="keys")
    parser.add_argument("--rounds", type=int, default=5, help="measured rounds, of which the median counts")
    parser.add_argument("--device", type=torch.device, default=torch.device("cpu"))
    parser.add_argument("--csv", type=Path, help="also write the table there")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    learner: MoCo = MoCo.Config(backbone=find(options.model), queue_size=options.queue).build().to(options.device).train()
    size = sides(learner.config.backbone.img_size)
    views = tuple(torch.randn(options.batch, 3, *size, device=options.device) for _ in range(2))
    batch = Batch(inputs=views[0], key=torch.arange(options.batch, device=options.device), views=views)
    took = in_turns(contestants(learner, batch), options.rounds, options.device)
    sheet = Sheet({"what": "{}", "s": "{:.4f}", "/ floor": "{:.3f} x"})
    for name, seconds in took.items():
        sheet.add(name, seconds, seconds / took["its floor"])
    print(f"{options.model}, batch {options.batch}, queue {options.queue}, {options.device}, target {TARGET:.2f} x")
    Console(width=120).print(sheet.table())
    if options.csv:
        sheet.write(options.csv, {"model": options.model, "batch": options.batch, "queue": options.queue})
    return 0 if took["MoCo"] <= TARGET * took["its floor"] else 1


if __name__ == "__main__":
    sys.exit(main())
