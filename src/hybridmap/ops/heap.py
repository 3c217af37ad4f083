"""Memory that was freed stays with the process, where the C library is glibc.

Left alone, glibc gives large pieces back to the system as soon as they are freed, and every layer fetches its activations anew,
page by page. In inference of Mamba-R-S that was up to a tenth of the time on one thread and up to a third on two, since pages
are handed out one at a time; at 896 pixels, where single pieces are large, another third (docs/diary.md).
"""

from __future__ import annotations

import ctypes
import os
import platform

_TRIM_THRESHOLD, _MMAP_MAX = -1, -4
"""Parameters of ``mallopt``: what may lie idle at the end of the heap, and how many pieces may lie outside of it."""
_OWN_WISHES = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_MMAP_MAX_", "GLIBC_TUNABLES", "LD_PRELOAD")
"""Variables by which a user has settled it otherwise."""


def keep_freed_memory() -> bool:
    """Let freed memory stay with this process; returns whether that was done.

    For programs to call, not for import: it affects the whole process.
    """
    if platform.libc_ver()[0] != "glibc" or any(name in os.environ for name in _OWN_WISHES):
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return bool(mallopt(_MMAP_MAX, 0)) and bool(mallopt(_TRIM_THRESHOLD, -1))  # all of it on the heap, none ever returned
