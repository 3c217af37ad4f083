"""The data path against torchvision's, per core: images per second from JPEGs of 500 x 375 pixels to crops of 224.

    theirs:  torchvision.datasets.ImageFolder, Pillow; RandomResizedCrop(224, bicubic), flip, ToTensor, Normalize; stacked
    ours:    hybridmap.data.folder.ImageFolder with RandomResizedCrop, normalised per batch
    packed:  the same from the shards that ``hybridmap data pack`` makes of the folder, 256 pixels on the short side
    bytes:   the same without the normalisation, which is the GPU's where there is one: what a worker does then

    python benchmarks/loader.py [--rounds 9] [--images 144]

The folder is made from the photographs bundled with scikit-image and scikit-learn, in a temporary place. All run in this
process on one thread, in turns, so that whatever else the machine does strikes all; a ratio is the median of the rounds.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from PIL import Image
from torchvision import transforms as T
from torchvision.datasets import ImageFolder as TorchvisionFolder

from hybridmap.data import pack
from hybridmap.data.base import IMAGENET_MEAN, IMAGENET_STD
from hybridmap.data.bundled import bundled_files
from hybridmap.data.folder import ImageFolder
from hybridmap.data.image_transforms import normalise
from hybridmap.hashing import hash_ints
from hybridmap.ops.heap import keep_freed_memory

TARGETS = {"ours": 1.4, "bytes": 4.0}
BATCH = 16


def make_folder(folder: Path, images: int) -> None:
    """Write ``images`` JPEGs of 500 x 375 pixels: windows of the bundled photographs, one directory per photograph."""
    sources = bundled_files()
    rng = random.Random(0)
    for number in range(images):
        path = sources[number % len(sources)]
        target = folder / path.stem
        target.mkdir(parents=True, exist_ok=True)
        with Image.open(path) as image:
            width, height = image.size
            side = rng.uniform(0.7, 1.0) * min(width / 4, height / 3)
            left, top = rng.uniform(0, width - 4 * side), rng.uniform(0, height - 3 * side)
            box = (left, top, left + 4 * side, top + 3 * side)
            window = image.convert("RGB").resize((500, 375), Image.Resampling.BICUBIC, box=box)
        window.save(target / f"{number:04d}.jpg", quality=92)


def theirs(folder: Path) -> Callable[[], torch.Tensor]:
    """One pass of torchvision's usual path over the folder."""
    transform = T.Compose(
        [
            T.RandomResizedCrop(224, scale=(0.2, 1.0), interpolation=T.InterpolationMode.BICUBIC),
            T.RandomHorizontalFlip(),
            T.ToTensor(),
            T.Normalize(IMAGENET_MEAN, IMAGENET_STD),
        ]
    )
    dataset = TorchvisionFolder(str(folder), transform)

    def one_pass() -> torch.Tensor:
        for start in range(0, len(dataset), BATCH):
            last = torch.stack([dataset[i][0] for i in range(start, min(start + BATCH, len(dataset)))])
        return last

    return one_pass


def ours(folder: Path, *, normalised: bool = True) -> Callable[[], torch.Tensor]:
    """One pass of our path over a folder or over shards, with new crops each time."""
    config = ImageFolder.Config(root=str(folder), size=224)
    dataset = config.build()
    passes = iter(range(1 << 30))

    def one_pass() -> torch.Tensor:
        epoch = next(passes)
        for start in range(0, len(dataset), BATCH):
            indices = range(start, min(start + BATCH, len(dataset)))
            samples = dataset.samples(indices, [hash_ints(0, epoch, i) for i in indices])
            last = normalise(samples.images, config.mean, config.std) if normalised else samples.images
        return last

    return one_pass


def seconds(run: Callable[[], torch.Tensor]) -> float:
    began = time.perf_counter()
    run()
    return time.perf_counter() - began


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--images", type=int, default=144)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    keep_freed_memory()  # as every command does
    with tempfile.TemporaryDirectory() as place:
        folder, shards = Path(place) / "folder", Path(place) / "shards"
        make_folder(folder, arguments.images)
        jobs, described = pack.plan(str(folder), shards, pack.Packing())
        for job in jobs:
            pack.write_shard(job)
        pack.finish(jobs, described, shards)
        runs = {
            "theirs": theirs(folder),
            "ours": ours(folder),
            "packed": ours(shards),
            "bytes": ours(shards, normalised=False),
        }
        for run in runs.values():
            run()
        times: dict[str, list[float]] = {name: [] for name in runs}
        for _ in range(arguments.rounds):
            for name, run in runs.items():
                times[name].append(seconds(run))
    ratios = {
        name: statistics.median(a / b for a, b in zip(times["theirs"], times[name], strict=True)) for name in list(runs)[1:]
    }
    rates = {f"{name} images/s": round(arguments.images / statistics.median(t), 1) for name, t in times.items()}
    print(json.dumps(rates | {f"{name}/theirs": round(r, 3) for name, r in ratios.items()} | {"targets": TARGETS}))
    return 0 if all(ratios[name] >= target for name, target in TARGETS.items()) else 1


if __name__ == "__main__":
    raise SystemExit(main())
