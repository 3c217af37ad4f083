"""Shards that lie elsewhere: addresses with braces, and files fetched whole, once, into a cache that all processes share."""

from __future__ import annotations

import hashlib
import itertools
import logging
import os
import re
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from hybridmap.errors import UserError
from hybridmap.files import replacing

log = logging.getLogger("hybridmap.data")

_TRIES = 3
_PAUSE_S = 2.0
"""Before the second try; twice as long before the third."""
_CHUNK = 1 << 20


def is_remote(place: str) -> bool:
    """Whether a place is an address (``https://``, ``s3://``, ``file://`` ...) and no path."""
    return re.match(r"[a-z][a-z0-9+.-]*://", place) is not None


def expand(pattern: str) -> list[str]:
    """The names that braces stand for: ``a-{000..002}.tar`` is three of them, ``{train,val}.tar`` two.

    Raises:
        UserError: if the braces do not fit together.
    """
    pieces = re.split(r"\{([^{}]*)\}", pattern)
    if any("{" in text or "}" in text for text in pieces):
        raise UserError(f"the braces of {pattern} do not fit together; expected a form such as shard-{{000000..000146}}.tar")
    choices = [_choices(piece, pattern) if i % 2 else [piece] for i, piece in enumerate(pieces)]
    return ["".join(parts) for parts in itertools.product(*choices)]


def _choices(inside: str, pattern: str) -> list[str]:
    if "," in inside:
        return inside.split(",")
    if (ends := re.fullmatch(r"(\d+)\.\.(\d+)", inside)) is None or int(ends[1]) > int(ends[2]):
        raise UserError(f"{{{inside}}} in {pattern} is no range; expected such as {{000000..000146}}, or {{a,b}}")
    width = len(ends[1]) if ends[1].startswith("0") else 0
    return [f"{number:0{width}}" for number in range(int(ends[1]), int(ends[2]) + 1)]


def cache_for(place: str, cache: str) -> Path:
    """The directory below ``cache`` (by default the user's) for files that come from the folder ``place``."""
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "hybridmap" / "shards"
    return (Path(cache).expanduser() if cache else home) / hashlib.sha256(place.encode()).hexdigest()[:16]


def fetch(address: str, target: Path, *, sha256: str | None = None) -> Path:
    """A copy of the file at ``address`` at ``target``; one that is there already is taken as it is. Of several processes that
    ask at once, one fetches and the others wait.

    Raises:
        UserError: if it cannot be had after several tries, or is not the file with that checksum.
    """
    if target.exists():
        return target
    with _alone(target):
        if not target.exists():
            for attempt in range(_TRIES):
                try:
                    _download(address, target, sha256)
                    break
                except (OSError, _Differs) as error:
                    if attempt == _TRIES - 1 or _is_missing(error):
                        raise UserError(
                            f"{address} cannot be fetched ({_said(error)}); check the address and the network"
                        ) from None
                    time.sleep(_PAUSE_S * 2**attempt)
    return target


def exists(address: str) -> bool:
    """Whether there is a file at ``address``.

    Raises:
        UserError: if nobody answers there.
    """
    try:
        with _opened(address) as file:
            file.read(1)
            return True
    except OSError as error:
        if _is_missing(error):
            return False
        raise UserError(f"{address} cannot be reached ({_said(error)}); check the address and the network") from None


class _Differs(Exception):
    """What was fetched is not what was expected."""


def _download(address: str, target: Path, sha256: str | None) -> None:
    seen = hashlib.sha256()
    with _opened(address) as source, replacing(target) as temporary, temporary.open("wb") as file:
        while chunk := source.read(_CHUNK):
            seen.update(chunk)
            file.write(chunk)
        if sha256 is not None and seen.hexdigest() != sha256:
            raise _Differs("its checksum is not the one that the set's index names")


@contextmanager
def _opened(address: str) -> Iterator[IO[bytes]]:
    """A file that is read from its beginning: http by Python itself, everything else by fsspec."""
    if address.startswith(("http://", "https://")):
        with urllib.request.urlopen(address, timeout=60) as file:
            yield file
        return
    import fsspec

    opened: Any
    try:
        opened = fsspec.open(address, "rb")
    except (ImportError, ValueError) as error:
        raise UserError(f"{address} cannot be read: {error}") from None
    with opened as file:
        yield file


def _is_missing(error: Exception) -> bool:
    return isinstance(error, FileNotFoundError) or (isinstance(error, urllib.error.HTTPError) and error.code in (403, 404, 410))


def _said(error: Exception) -> str:
    return str(getattr(error, "reason", None) or error) or type(error).__name__


@contextmanager
def _alone(target: Path) -> Iterator[None]:
    """One process of this machine at a time, where the system has such locks."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if os.name != "posix":
        yield
        return
    import fcntl

    with (target.parent / f".{target.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
