"""Parquet files as the Hugging Face hub has them: a column of images, each {bytes, path}, and a column of labels.

    train-00000-of-00014.parquet: row groups of some hundred rows, each read (and decompressed) as a whole

A row cannot be had without its group. So the order of an epoch mixes a few groups at a time (``blocks``), and every process
keeps the groups that it read last.
"""

from __future__ import annotations

import json
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import numpy as np

from hybridmap.data.base import UnreadableImage
from hybridmap.data.source import Source
from hybridmap.errors import UserError

KEPT = 20
"""Row groups that a process keeps: those that an epoch's order mixes, and a few beyond."""
_LABELS = ("label", "labels", "cls", "class", "fine_label")
"""Names of the column of labels, the first that is there."""


class ParquetFiles(Source):
    """The images of some Parquet files, file by file in the order of their rows."""

    def __init__(self, files: Sequence[str], siblings: Sequence[str] = ()) -> None:
        """Read the files' descriptions and their labels; ``siblings`` are files of other splits, whose classes count as well.

        Raises:
            UserError: if pyarrow is not installed, a file is missing or damaged, or there is no column of images.
        """
        self._files = list(files)
        self.place = files[0].rpartition("/")[0] or "."
        opened = [_open(path) for path in files]
        self._image, self._inside = _image_column(opened[0].schema_arrow, files[0])
        groups = [file.metadata.row_group(k).num_rows for file in opened for k in range(file.num_row_groups)]
        self._groups = [(number, k) for number, file in enumerate(opened) for k in range(file.num_row_groups)]
        self._ends = list(accumulate(groups)) or [0]
        if not self._ends[-1]:
            raise UserError(f"no rows in the {len(files)} Parquet files of {self.place}")
        self.blocks = tuple(count for count in groups if count)
        label = next((name for name in _LABELS if name in opened[0].schema_arrow.names), None)
        self._labels = np.full(self._ends[-1], -1, dtype=np.int64) if label is None else _column(opened, label)
        self.classes = _classes(opened[0].schema_arrow, label, self._labels, siblings)
        self._kept: OrderedDict[int, Any] = OrderedDict()

    def __len__(self) -> int:
        return self._ends[-1]

    def read(self, index: int) -> bytearray:
        group = bisect_right(self._ends, index)
        at = index - (self._ends[group - 1] if group else 0)
        value = self._column_of(group)[at].as_py()
        if value is None:
            raise UnreadableImage(self.name(index), "the row holds no image, only a path or nothing")
        return bytearray(value)

    def name(self, index: int) -> str:
        group = bisect_right(self._ends, index)
        number = self._groups[group][0]
        first = next(k for k, (file, _) in enumerate(self._groups) if file == number)
        return f"{self._files[number]}, row {index - (self._ends[first - 1] if first else 0)}"

    def stable_name(self, index: int) -> str:
        return self.name(index).removeprefix(self.place)

    def label(self, index: int) -> int:
        return int(self._labels[index]) if self.classes is not None else -1

    def _column_of(self, group: int) -> Any:
        """The images of a row group, as an Arrow array of bytes."""
        found = self._kept.pop(group, None)
        if found is None:
            number, k = self._groups[group]
            try:
                table = _open(self._files[number]).read_row_group(k, columns=[self._image], use_threads=False)
            except (OSError, ValueError) as error:
                raise UnreadableImage(f"{self._files[number]}, row group {k}", str(error).splitlines()[0]) from None
            found = table.column(0).combine_chunks()
            found = found.field(self._inside) if self._inside else found
            while len(self._kept) >= KEPT:
                self._kept.popitem(last=False)
        self._kept[group] = found
        return found

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_kept": OrderedDict()}


def _open(path: str) -> Any:
    try:
        import pyarrow.parquet as pq
    except ModuleNotFoundError:
        raise UserError(f"reading {path} needs pyarrow, which is not installed; pip install 'hybridmap[parquet]'") from None
    import pyarrow

    try:
        return pq.ParquetFile(path, memory_map=True)
    except FileNotFoundError:
        raise UserError(f"the file {path} does not exist; check --data.root") from None
    except (OSError, pyarrow.ArrowInvalid) as error:
        raise UserError(f"{path} is not a whole Parquet file ({str(error).splitlines()[0]}); fetch it again") from None


def _image_column(schema: Any, path: str) -> tuple[str, str]:
    """(name, field inside of it) of the column with the contents of image files; the field is empty where it is the column."""
    import pyarrow.types as types

    def holds_bytes(kind: Any) -> bool:
        return types.is_binary(kind) or types.is_large_binary(kind)

    for field in schema:
        if types.is_struct(field.type) and any(part.name == "bytes" and holds_bytes(part.type) for part in field.type):
            return field.name, "bytes"
    for field in schema:
        if holds_bytes(field.type):
            return field.name, ""
    raise UserError(
        f"{path} has no column of images; expected one of {{bytes, path}}, as the Hugging Face hub has them, or of bytes, and "
        f"found {', '.join(schema.names)}"
    )


def _column(files: Sequence[Any], name: str) -> np.ndarray:
    """A column of whole numbers of all files; -1 where there is none."""
    parts = [file.read(columns=[name], use_threads=False).column(0) for file in files]
    return np.concatenate([np.asarray(part.fill_null(-1).to_numpy(), dtype=np.int64) for part in parts])


def _classes(schema: Any, label: str | None, labels: np.ndarray, siblings: Sequence[str]) -> tuple[str, ...] | None:
    """Names from the hub's description, else numbers up to the largest; None where a row has no label."""
    if label is None or (labels < 0).any():
        return None
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        return tuple(features[label]["names"])
    except (KeyError, TypeError, ValueError):
        others = [_column([_open(path)], label) for path in siblings]
        return tuple(str(i) for i in range(1 + max(int(part.max(initial=-1)) for part in [labels, *others])))
