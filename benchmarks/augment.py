"""What augmentation costs: ours on batches of tensors, timm's RandAugment and Pillow's 3-Augment on one image after the other.

    python benchmarks/augment.py [--batch 64] [--size 224] [--rounds 9] [--device cuda] [--csv FILE]

In turns, one thread, windows of the bundled photographs. The libraries work on Pillow images; what it takes to make these from
bytes and back is counted, because that is what a data path pays. On a card there is nobody to compare with: what counts there
is the time beside that of a step.
"""

from __future__ import annotations

import argparse
import random
import sys
from collections.abc import Callable
from pathlib import Path

import torch
import torchvision.transforms.v2.functional as F
from PIL import Image, ImageEnhance, ImageFilter, ImageOps
from rich.console import Console
from timm.data.auto_augment import rand_augment_transform
from torch import Tensor

from hybridmap.bench.clock import in_turns
from hybridmap.bench.sheet import Sheet
from hybridmap.data.augment import Augment, RandAugment, ThreeAugment
from hybridmap.data.base import IMAGENET_MEAN
from hybridmap.data.bundled import bundled_files
from hybridmap.hashing import hash_ints
from hybridmap.ops.heap import keep_freed_memory


def windows(batch: int, size: int) -> Tensor:
    """(batch, 3, size, size) uint8, pixel by pixel in memory, as workers have them."""
    files, found = bundled_files(), []
    for k in range(batch):
        with Image.open(files[k % len(files)]) as image:
            side = min(image.size) * (0.4 + 0.6 * k / batch)
            found.append(
                F.pil_to_tensor(image.convert("RGB").resize((size, size), Image.Resampling.BICUBIC, (0, 0, side, side)))
            )
    return torch.stack(found).contiguous(memory_format=torch.channels_last)


def rand_augment() -> Callable[[Image.Image], Image.Image]:
    """timm's."""
    mean = tuple(round(255 * value) for value in IMAGENET_MEAN)
    # inc1 but for the bits of Posterize: Pillow no longer takes 0 of them
    return rand_augment_transform("rand-m9-mstd0.5-mmax9-inc1", {"img_mean": mean, "interpolation": Image.Resampling.BICUBIC})


def three_augment(image: Image.Image) -> Image.Image:
    """Pillow's operations, drawn as DeiT III does."""
    which = random.randrange(3)
    if which == 0:
        image = image.convert("L").convert("RGB")
    elif which == 1:
        image = ImageOps.solarize(image)
    else:
        image = image.filter(ImageFilter.GaussianBlur(random.uniform(0.1, 2.0)))
    for change in random.sample([ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color], 3):
        image = change(image).enhance(random.uniform(0.7, 1.3))
    return image


def one_by_one(images: Tensor, change: Callable[[Image.Image], Image.Image]) -> Callable[[], Tensor]:
    """A batch through a library of single images."""
    return lambda: torch.stack([F.pil_to_tensor(change(F.to_pil_image(image))) for image in images])


def at_once(images: Tensor, config: Augment.Config) -> Callable[[], Tensor]:
    """A batch through ours, under new keys each time."""
    augment, calls = config.build(), iter(range(1 << 30))

    def run() -> Tensor:
        call = next(calls)
        return augment(images, [hash_ints(call, k) for k in range(len(images))], IMAGENET_MEAN)

    return run


def main() -> int:
    """Measure, print, and write a CSV file when asked."""
    keep_freed_memory()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=64, help="images")
    parser.add_argument("--size", type=int, default=224, help="pixels")
    parser.add_argument("--rounds", type=int, default=9, help="measured rounds, of which the median counts")
    parser.add_argument("--device", type=torch.device, default=torch.device("cpu"))
    parser.add_argument("--csv", type=Path, help="also write the table there")
    options = parser.parse_args()
    torch.set_num_threads(1)
    random.seed(0)
    images = windows(options.batch, options.size)
    runs = {
        "RandAugment, ours": at_once(images.to(options.device), RandAugment.Config()),
        "RandAugment, timm": one_by_one(images, rand_augment()),
        "3-Augment, ours": at_once(images.to(options.device), ThreeAugment.Config()),
        "3-Augment, Pillow": one_by_one(images, three_augment),
    }
    if options.device.type != "cpu":
        runs = {name: run for name, run in runs.items() if name.endswith("ours")}
    took = in_turns(runs, options.rounds, options.device)
    sheet = Sheet({"what": "{}", "ms / image": "{:.3f}", "/ ours": "{:.2f} x"})
    for name, seconds in took.items():
        sheet.add(name, 1e3 * seconds / options.batch, seconds / took[f"{name.split(',')[0]}, ours"])
    print(f"batch {options.batch}, {options.size} pixels, {options.device}")
    Console(width=120).print(sheet.table())
    if options.csv:
        sheet.write(options.csv, {"batch": options.batch, "size": options.size, "device": str(options.device)})
    return 0


if __name__ == "__main__":
    sys.exit(main())
