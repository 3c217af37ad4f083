"""What it costs a rank to say where it is (``hybridmap.train.heartbeat``).

    mark:    one mark of the main thread, in microseconds of wall-clock time: the median, and the slowest of a hundred
    thread:  processor time of the thread beside the training, as a share of one core

    python benchmarks/heartbeat.py [--folder DIR] [--marks 20000] [--seconds 10]

A step of one micro-batch has four marks. ``--folder`` measures another file system than that of temporary files.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import torch

from hybridmap.train.distributed import World
from hybridmap.train.heartbeat import Heartbeat


class Alone(World):
    """A world that says that it has two processes and asks nobody."""

    def on_main(self, action):
        return action()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", default=None)
    parser.add_argument("--marks", type=int, default=20_000)
    parser.add_argument("--seconds", type=float, default=10.0)
    options = parser.parse_args()
    world = replace(Alone(rank=0, size=1, device=torch.device("cpu")), size=2)
    with tempfile.TemporaryDirectory(dir=options.folder) as folder, Heartbeat(Path(folder), world, 600.0) as mark:
        times = []
        for step in range(options.marks):
            began = time.perf_counter()
            mark("forward and backward", step)
            times.append(time.perf_counter() - began)
        times.sort()
        print(f"mark: median {statistics.median(times) * 1e6:.1f} us, slowest 1 % {times[-len(times) // 100] * 1e6:.1f} us")
        began = time.process_time()
        time.sleep(options.seconds)
        print(f"thread: {(time.process_time() - began) / options.seconds:.3%} of a core")


if __name__ == "__main__":
    main()
