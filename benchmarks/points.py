"""How much faster are farthest points and nearest neighbours than the loops that one would write?

    python benchmarks/points.py [--points 1024 2048 8192] [--batch 8] [--rounds 5] [--csv FILE]

    ours            hybridmap.ops.points: the compiled kernel, or what stands in for it here
    plain PyTorch   our own form without a compiler, which also runs on GPUs
    naive torch     fps: the usual loop over masks; knn: cdist and topk
    NumPy loop      a cloud and a point at a time, by argmax and argpartition

In turns, one thread, float32, normally distributed points; fps takes so many groups and so many samples, knn the neighbours of
the first points. Ours is to be at least 20 times as fast as the NumPy loop and 3 times as fast as naive torch.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from torch import Tensor

from hybridmap.bench.clock import in_turns
from hybridmap.bench.sheet import Sheet
from hybridmap.ops import active, points, use_backend
from hybridmap.ops.heap import keep_freed_memory

CPU = torch.device("cpu")
TARGETS = {"NumPy loop": 20.0, "naive torch": 3.0}
Run = Callable[[], object]


def naive_fps(cloud: Tensor, count: int) -> Tensor:
    """The loop that goes round: distances to the last choice, kept by a mask where they are less, then the maximum."""
    batch, size, _ = cloud.shape
    chosen = torch.zeros(batch, count, dtype=torch.long)
    distance, rows = torch.full((batch, size), 1e10), torch.arange(batch)
    farthest = torch.zeros(batch, dtype=torch.long)
    for k in range(count):
        chosen[:, k] = farthest
        centre = cloud[rows, farthest][:, None]
        squared = ((cloud - centre) ** 2).sum(-1)
        nearer = squared < distance
        distance[nearer] = squared[nearer]
        farthest = distance.max(-1).indices
    return chosen


def naive_knn(cloud: Tensor, query: Tensor, k: int) -> Tensor:
    return torch.cdist(query, cloud, compute_mode="donot_use_mm_for_euclid_dist").topk(k, largest=False).indices


def numpy_fps(clouds: np.ndarray, count: int) -> np.ndarray:
    chosen = np.zeros((len(clouds), count), dtype=np.int64)
    for cloud, row in zip(clouds, chosen, strict=True):
        distance = np.full(len(cloud), 1e10, dtype=np.float32)
        for k in range(1, count):
            distance = np.minimum(distance, ((cloud - cloud[row[k - 1]]) ** 2).sum(1))
            row[k] = int(distance.argmax())
    return chosen


def numpy_knn(clouds: np.ndarray, queries: np.ndarray, k: int) -> np.ndarray:
    index = np.zeros((*queries.shape[:2], k), dtype=np.int64)
    for b, cloud in enumerate(clouds):
        for m, point in enumerate(queries[b]):
            distance = ((cloud - point) ** 2).sum(1)
            nearest = distance.argpartition(k - 1)[:k]
            index[b, m] = nearest[distance[nearest].argsort()]
    return index


def contestants(cloud: Tensor, groups: int, samples: int, k: int) -> dict[str, dict[str, Run]]:
    """By operator and then by name; ours first."""
    centres = cloud[:, :groups].contiguous()
    array, array_centres = cloud.numpy(), centres.numpy()

    def plain(run: Run) -> Run:
        def demanded() -> None:
            with use_backend("torch"):
                run()

        return demanded

    def sampling(count: int) -> dict[str, Run]:
        def ours() -> Tensor:
            return points.fps(cloud, count)

        return {
            "ours": ours,
            "plain PyTorch": plain(ours),
            "naive torch": lambda: naive_fps(cloud, count),
            "NumPy loop": lambda: numpy_fps(array, count),
        }

    def ours() -> object:
        return points.knn(cloud, centres, k)

    neighbours: dict[str, Run] = {
        "ours": ours,
        "plain PyTorch": plain(ours),
        "naive torch": lambda: naive_knn(cloud, centres, k),
        "NumPy loop": lambda: numpy_knn(array, array_centres, k),
    }
    return {f"fps {count}": sampling(count) for count in (groups, samples)} | {f"knn {k} of {groups}": neighbours}


def main() -> int:
    """Measure, print, and write a CSV file when asked; the code is 1 if a target is missed."""
    keep_freed_memory()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--points", type=int, nargs="+", default=[1024, 2048, 8192], help="of a cloud")
    parser.add_argument("--batch", type=int, default=8, help="clouds")
    parser.add_argument("--groups", type=int, default=128, help="points that fps takes, and queries of knn")
    parser.add_argument("--samples", type=int, default=1024, help="points that fps takes")
    parser.add_argument("--neighbours", type=int, default=32, help="k of knn")
    parser.add_argument("--rounds", type=int, default=5, help="measured rounds, of which the median counts")
    parser.add_argument("--csv", type=Path, help="also write the table there")
    options = parser.parse_args()
    torch.set_num_threads(1)
    sheet = Sheet({"points": "{}", "operator": "{}", "what": "{}", "ms": "{:.3f}", "/ ours": "{:.1f} x", "target": "{}"})
    missed = False
    for size in options.points:
        cloud = torch.randn(options.batch, size, 3, generator=torch.Generator().manual_seed(0))
        for operator, runs in contestants(cloud, options.groups, options.samples, options.neighbours).items():
            took = in_turns(runs, options.rounds, CPU)
            for name, seconds in took.items():
                ratio, target = seconds / took["ours"], TARGETS.get(name)
                missed |= target is not None and ratio < target
                sheet.add(size, operator, name, 1e3 * seconds, ratio, "" if target is None else f">= {target:.0f} x")
    print(f"batch {options.batch}, one thread; ours is the {active('causal_conv1d', CPU)} library")
    Console(width=120).print(sheet.table())
    if options.csv:
        sheet.write(options.csv, {"batch": options.batch})
    return int(missed)


if __name__ == "__main__":
    sys.exit(main())
