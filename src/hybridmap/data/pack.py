"""Any set of images as tar shards in WebDataset's format, made smaller once, so that training decodes no more than it needs.

    train-000000.tar: 000000000.jpg 000000000.cls 000000001.jpg ...      dataset.json: classes, and each shard's checksum

A shard is a function of the source, the settings and its number: images are shuffled once, by a fixed permutation, and every
tar header is the same wherever and whenever it is written. So shards can be made in any order by any number of processes, a
pack that was interrupted goes on with those that are missing, and packing twice gives equal bytes.
"""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

from PIL import Image
from torchvision.transforms.v2.functional import to_pil_image

from hybridmap.data.base import UnreadableImage
from hybridmap.data.decode import decode
from hybridmap.data.image_transforms import resize
from hybridmap.data.loader import permutation
from hybridmap.data.opening import Split, look, open_source
from hybridmap.data.shards import DESCRIPTION
from hybridmap.data.source import Source
from hybridmap.errors import UserError
from hybridmap.files import replace_file, replacing

_DONE = ".done"
"""Directory of notes, one per finished shard, while a pack is not complete."""


@dataclass(frozen=True, kw_only=True)
class Packing:
    """How images are packed."""

    short_side: int = 256
    """Pixels of the short side; smaller images keep their size and their bytes."""
    quality: int = 85
    """Of the JPEGs that are written, 1 to 95."""
    images_per_shard: int = 1000
    """Images in each tar file (the last has the rest)."""

    def __post_init__(self) -> None:
        if self.short_side < 1:
            raise UserError(f"--short-side must be at least 1 pixel, got {self.short_side}")
        if not 1 <= self.quality <= 95:
            raise UserError(f"--quality must lie between 1 and 95, got {self.quality}")
        if self.images_per_shard < 1:
            raise UserError(f"--images-per-shard must be at least 1, got {self.images_per_shard}")


@dataclass(frozen=True, kw_only=True)
class Job:
    """One shard to be written."""

    root: str
    split: Split
    number: int
    first: int
    count: int
    """Of the images in their shuffled order, which of them."""
    target: str
    """The tar file."""
    packing: Packing


@cache
def _source(root: str, split: Split) -> Source:
    """Opened once in every process."""
    return open_source(root, split)


def plan(root: str, out: Path, packing: Packing) -> tuple[list[Job], dict[str, Any]]:
    """(shards to write, what ``dataset.json`` says beside them) for all splits of ``root``.

    Raises:
        UserError: if there are no images, or ``out`` holds something else.
    """
    splits: tuple[Split, ...] = ("train", "test") if look(root).parts else ("all",)
    sources: dict[Split, Source] = {split: _source(root, split) for split in splits}
    jobs = []
    for split, source in sources.items():
        prefix = {"all": "shard", "train": "train", "test": "val"}[split]
        for number, first in enumerate(range(0, len(source), packing.images_per_shard)):
            count = min(packing.images_per_shard, len(source) - first)
            target = str(out / f"{prefix}-{number:06d}.tar")
            jobs.append(Job(root=root, split=split, number=number, first=first, count=count, target=target, packing=packing))
    classes = next(iter(sources.values())).classes
    settings = {
        "format": "webdataset",
        "classes": None if classes is None else list(classes),
        "images": {split: len(source) for split, source in sources.items()},
        **asdict(packing),
    }
    _claim(out, settings)
    return jobs, settings


def _claim(out: Path, settings: dict[str, Any]) -> None:
    """Make the directory ours, or find that it is: for these settings and no others."""
    kept = out / _DONE / "settings.json"
    finished = out / DESCRIPTION
    text = json.dumps(settings, sort_keys=True)
    for path in (kept, finished):
        if path.exists():
            found = json.loads(path.read_text())
            differing = sorted(name for name in settings if found.get(name) != settings[name])
            if differing:
                name = differing[0]
                raise UserError(
                    f"{out} holds a pack of other images or settings ({name} differs); choose another --out, or remove it"
                )
            return
    if out.exists() and any(out.iterdir()):
        raise UserError(f"{out} is not empty and holds no pack; choose another --out")
    replace_file(kept, text)


def is_done(job: Job) -> bool:
    """Whether the shard is there, whole: its checksum is that of its note, or of the finished description."""
    target = Path(job.target)
    note = _note(job)
    return note is not None and target.exists() and note["sha256"] == checksum(target)


def _note(job: Job) -> dict[str, Any] | None:
    target = Path(job.target)
    path, finished = target.parent / _DONE / f"{target.name}.json", target.parent / DESCRIPTION
    if path.exists():
        return json.loads(path.read_text())
    return json.loads(finished.read_text())["shards"].get(target.name) if finished.exists() else None


def write_shard(job: Job) -> dict[str, Any]:
    """Write one shard; its note: ``images``, ``bytes``, ``sha256``, and what could not be read, name -> reason.

    Raises:
        UserError: if the disk is full or not writable; no half of a shard stays.
    """
    source = _source(job.root, job.split)
    order = permutation(0, 0, len(source), source.blocks)[job.first : job.first + job.count]
    broken: dict[str, str] = {}
    target = Path(job.target)
    images = 0
    with replacing(target) as temporary:
        with tarfile.open(temporary, "w", format=tarfile.USTAR_FORMAT) as tar:
            for place, index in enumerate(order.tolist(), job.first):
                try:
                    data, ending = _small(source, index, job.packing)
                except UnreadableImage as error:
                    broken[source.stable_name(index)] = error.reason
                    continue
                images += 1
                _add(tar, f"{place:09d}{ending}", data)
                if source.classes is not None:
                    _add(tar, f"{place:09d}.cls", str(source.label(index)).encode())
        note = {"images": images, "bytes": temporary.stat().st_size, "sha256": checksum(temporary), "broken": broken}
    replace_file(target.parent / _DONE / f"{target.name}.json", json.dumps(note, sort_keys=True))
    return note


def finish(jobs: list[Job], settings: dict[str, Any], out: Path) -> dict[str, Any]:
    """Write ``dataset.json`` once all shards are there, and remove the notes. Returns what it says."""
    notes = {Path(job.target).name: _note(job) or {} for job in jobs}
    broken = {name: reason for note in notes.values() for name, reason in note.pop("broken", {}).items()}
    described = settings | {"shards": notes, "broken": broken or _broken_before(out)}
    replace_file(out / DESCRIPTION, json.dumps(described, indent=1, sort_keys=True) + "\n")
    for path in (out / _DONE).glob("*.json"):
        path.unlink()
    if (out / _DONE).exists():
        (out / _DONE).rmdir()
    return described


def _broken_before(out: Path) -> dict[str, str]:
    path = out / DESCRIPTION
    return json.loads(path.read_text()).get("broken", {}) if path.exists() else {}


def _small(source: Source, index: int, packing: Packing) -> tuple[bytes | bytearray, str]:
    """(contents, ending) of an image whose short side is no longer than it should be; unchanged where it is not."""
    data, name = source.read(index), source.name(index)
    side = packing.short_side
    decoded = decode(name, data, lambda full: min(full) / side)
    if min(decoded.full) <= side:
        return data, Path(source.stable_name(index)).suffix.lower() or ".jpg"
    size = tuple(round(length * side / min(decoded.full)) for length in decoded.full)
    file = io.BytesIO()
    picture: Image.Image = to_pil_image(resize(decoded.image, (size[0], size[1])))
    picture.save(file, "JPEG", quality=packing.quality, subsampling="4:2:0")
    return file.getvalue(), ".jpg"


def _add(tar: tarfile.TarFile, name: str, data: bytes | bytearray) -> None:
    """A member without times, owners or rights of this machine."""
    header = tarfile.TarInfo(name)
    header.size, header.mode = len(data), 0o644
    tar.addfile(header, io.BytesIO(data))


def checksum(path: Path) -> str:
    """SHA-256 of a file, as hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
