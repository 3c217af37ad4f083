"""Writing a file so that a reader, a full disk or a crash never leaves half of it."""

from __future__ import annotations

import os
from pathlib import Path


def replace_file(path: str | Path, content: bytes | str) -> Path:
    """Write beside the file, flush to the disk, then rename: the old file stays whole until the new one is. Returns the path.

    Raises:
        OSError: if there is no room or no permission; the old file is untouched and nothing is left beside it.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with partial.open("wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        return partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


__all__ = ["replace_file"]
