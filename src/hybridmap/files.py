"""Files that are either whole or not there: written beside, synced, and renamed into place.

A reader, a full disk or a crash at any moment finds the old file or the new one, never half of either.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from safetensors import SafetensorError

from hybridmap.errors import UserError


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn the failure to write ``path`` (a full disk, missing rights) into a sentence.

    Raises:
        UserError: for every OSError or SafetensorError of the block.
    """
    try:
        yield
    except (OSError, SafetensorError) as error:
        raise _sentence(path, error) from error


def _sentence(path: Path, error: Exception) -> UserError:
    number = getattr(error, "errno", None)
    if number is None and (found := re.search(r"os error (\d+)", str(error))):
        number = int(found[1])
    if number in (errno.ENOSPC, errno.EDQUOT):
        return UserError(
            f"there is no space left to write {path}; what was saved before is intact: make room and run the same command again"
        )
    if number == errno.EFBIG:
        return UserError(
            f"cannot write {path} (larger than a file may be here); raise the limit (ulimit -f), or choose another file system"
        )
    if number == errno.ENOENT:
        return UserError(f"cannot write {path} (its directory is gone); was it moved or deleted?")
    reason = os.strerror(number) if number else str(error)
    if number in (errno.EEXIST, errno.ENOTDIR):
        reason = "a file stands where a directory is needed"
    return UserError(f"cannot write {path} ({reason}); choose a directory that you may write to")


@contextmanager
def replacing(path: str | Path, *, make: bool = True) -> Iterator[Path]:
    """Give the block an empty file beside ``path`` to write; once the block is done, that file is synced and takes the place of
    ``path``. Missing directories are made (unless ``make`` is off), and the rights are those of any new file of the user.

    Raises:
        UserError: if there is no room or no permission; what was at ``path`` before is still there, and nothing beside it.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with writing(path):
        try:
            if make:
                path.parent.mkdir(parents=True, exist_ok=True)
            temporary.touch()
            rights = temporary.stat().st_mode  # what the umask says; safetensors would let nobody else read the file
            yield temporary
            temporary.chmod(rights)
            _sync_file(temporary)
            temporary.replace(path)
            _sync_directory(path.parent)
        finally:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)


@contextmanager
def replacing_together(path: str | Path) -> Iterator[Path]:
    """The same for a file that may need others beside it, such as its weights: the block is given a path of the same name in
    an empty folder. Once it is done, all that it left there is synced, then moved beside ``path``, which itself comes last.

    Each file is then whole, but a crash between two moves can leave new files beside an old ``path``.

    Raises:
        UserError: as :func:`replacing`.
    """
    path = Path(path)
    folder = path.with_name(f".{path.name}.{os.getpid()}.parts")
    with writing(path):
        try:
            folder.mkdir(parents=True, exist_ok=True)
            yield folder / path.name
            parts = sorted(folder.iterdir(), key=lambda part: part.name == path.name)
            for part in parts:
                _sync_file(part)
            for part in parts:
                part.replace(path.with_name(part.name))
            _sync_directory(path.parent)
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def _sync_file(path: Path) -> None:
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def _sync_directory(folder: Path) -> None:
    """Write the names in a directory to the disk, which syncing a file does not do."""
    if os.name == "posix":
        number = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(number)
        finally:
            os.close(number)


def replace_file(path: str | Path, content: bytes | str) -> Path:
    """Write a file of that content (text as UTF-8) as a whole or not at all. Returns the path.

    Raises:
        UserError: as :func:`replacing`.
    """
    with replacing(path) as temporary:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)
    return Path(path)


def is_locked(path: Path) -> bool:
    """Whether another process holds the lock (``flock``) of a file; never where the system has no such locks."""
    if os.name != "posix" or not path.exists():
        return False
    import fcntl

    with path.open() as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError:
            return True
    return False


def remove_leftovers(folder: Path) -> None:
    """Delete what a process that was killed while it wrote left behind: our temporary files, and those of safetensors."""
    for pattern in (".*.tmp", ".tmp??????"):
        for path in folder.glob(pattern):
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink()


__all__ = ["is_locked", "remove_leftovers", "replace_file", "replacing", "replacing_together", "writing"]
