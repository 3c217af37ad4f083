"""The small text files that come with the benchmarks: lists of clouds, names of classes; and tables of numbers."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from hybridmap.data.base import UnreadableImage
from hybridmap.data.decode import read_file
from hybridmap.errors import UserError

log = logging.getLogger("hybridmap.data")


def find_place(root: str, wanted: Sequence[str], inside: Sequence[str], what: str) -> Path:
    """The folder that holds any of ``wanted``: ``root``, or one of the folders ``inside`` of it.

    Raises:
        UserError: if there is none; ``what`` says what was looked for.
    """
    if not root:
        raise UserError(f"the folder of {what} was expected, but none was named; use --data.root DIR")
    path = Path(root).expanduser()
    if not path.is_dir():
        raise UserError(f"the folder {root} does not exist; expected --data.root to name that of {what}")
    for place in (path, *(path / name for name in inside)):
        if any((place / name).exists() for name in wanted):
            return place
    raise UserError(f"{root} is not the folder of {what}; expected {' or '.join(wanted)} in it")


def read_lines(path: Path, what: str) -> list[str]:
    """The lines of a text file, without those that are empty.

    Raises:
        UserError: if it is missing, no text, or empty.
    """
    lines = [line.strip() for line in _text(path, what).splitlines()]
    kept = [line for line in lines if line]
    if not kept:
        raise UserError(f"{path}, {what}, is empty; fetch it again")
    return kept


def read_json_names(path: Path, what: str) -> list[str]:
    """A list of texts in a JSON file.

    Raises:
        UserError: if it is missing, or something else.
    """
    try:
        names = json.loads(_text(path, what))
    except (ValueError, RecursionError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{path}, {what}, is not whole JSON ({error}); fetch it again") from None
    if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
        raise UserError(f"{path}, {what}, is not a list of names; fetch it again")
    return names


def _text(path: Path, what: str) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise UserError(f"{path}, {what}, does not exist; it comes with the data set") from None
    except UnicodeDecodeError:
        raise UserError(f"{path}, {what}, is no text; fetch it again") from None
    except OSError as error:
        raise UserError(f"{path}, {what}, cannot be read ({error.strerror}); check its permissions") from None


def warn_of_count(name: str, split: str, found: int, published: int | None) -> None:
    """Say so where a split has another number of clouds than is commonly published; it may be a part that was chosen."""
    if published is not None and found != published:
        log.warning("%s, %s: %d clouds; %d are published, so results are not comparable", name, split, found, published)


def read_table(path: str, data: bytes | bytearray) -> np.ndarray:
    """A table of numbers, (rows, columns) in float64, from text with commas or spaces between them.

    Raises:
        UnreadableImage: if it is none; ``path`` is what messages call it.
    """
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise UnreadableImage(path, "it is no text") from None
    if not text.strip():
        raise UnreadableImage(path, "the file is empty")
    try:
        return np.loadtxt(io.StringIO(text), ndmin=2, delimiter="," if "," in text.strip().partition("\n")[0] else None)
    except ValueError as error:
        raise UnreadableImage(path, f"it is no table of numbers ({str(error).partition(';')[0]})") from None


def read_array(path: str) -> np.ndarray:
    """The array of an ``.npy`` file, without anything that could run code.

    Raises:
        UnreadableImage: if it is missing, broken, or holds objects.
    """
    data = read_file(path)
    file = io.BytesIO(data)
    try:
        version = np.lib.format.read_magic(file)
        header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, kind = header(file)
        if kind.hasobject:
            raise UnreadableImage(path, "it holds Python objects, which could run code; save it with a numeric type")
        missing = int(np.prod(shape, dtype=object)) * kind.itemsize - (len(data) - file.tell())
        if missing > 0:
            # Before the memory for all that the header claims is asked for.
            raise UnreadableImage(path, f"it is cut off: {missing} bytes are missing")
        file.seek(0)
        return np.load(file, allow_pickle=False)
    except UnreadableImage:
        raise
    except (ValueError, EOFError, TypeError, SyntaxError, MemoryError, RecursionError):
        raise UnreadableImage(path, "it is not a whole .npy file") from None
