"""The compiled kernels for CPUs: found, else built once and kept, else absent with a reason.

    in the wheel?  ──no──▶  in the user's cache?  ──no──▶  a compiler?  ──no──▶  absent: plain PyTorch runs instead
       prebuilt                 jit                        jit

One C++ file without torch headers, OpenMP or the C++ library, called through ctypes: one binary per instruction set serves
every torch and Python. Its work runs on torch's own threads, through ``torch_parallel_for`` of torch's stable C interface, so
``torch.set_num_threads`` holds here too.

A cached library is named after what it was made from and after its own contents: a damaged file is noticed before it is
loaded, and made again. It appears by an atomic rename, so that many processes may build at once.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import math
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from torch import Tensor

SOURCE = Path(__file__).parent / "hybridmap.cpp"
FLAGS = (
    *("-O3", "-fno-math-errno", "-fno-trapping-math", "-ffp-contract=fast"),
    *("-fno-unswitch-loops", "-fno-tree-vectorize", "-fno-tree-loop-distribute-patterns"),
    *("-fPIC", "-shared", "-fno-exceptions", "-fno-rtti", "-nodefaultlibs", "-w"),
)
"""Not -ffast-math: NaN must get through, and it would set flush-to-zero for the whole process. The source is vectors already:
without those three passes it compiles a quarter faster and runs as fast."""
COMPILERS = ("c++", "g++", "clang++")
SLOWEST = 120
"""Seconds after which a compiler is given up."""

DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
"""What the kernels call the dtype of the activations."""
SLOTS = 32
"""Parts of a batch, at most; each has its own partial sums, so that no sum depends on the number of threads."""
STRIP = 512
"""Channels of a strip, at most."""
KEPT_BY_ONE = 1 << 18
"""Elements of the y of one direction of a scan, (L, strip), at most: a megabyte, which stays in the cache of one core."""
NARROW = 64
"""Channels of a strip, at least, where there are so many."""
TASKS = 16
"""Strips get narrower until there are so many tasks."""

Demand = Literal["prebuilt", "jit", "torch"]


class Variant(NamedTuple):
    """One instruction set: its name, the compiler's flags for it, and the floats of one of its registers."""

    name: str
    flags: tuple[str, ...]
    lanes: int


VARIANTS = {
    "AVX512": Variant("x86-64-v4", ("-march=x86-64-v4",), 16),
    "AVX2": Variant("x86-64-v3", ("-march=x86-64-v3",), 8),
    "DEFAULT": Variant("baseline", (), 4),
}
"""By what torch calls the capability of this CPU."""


class Absent(Exception):
    """There is no compiled kernel; the message says why, to stand after "plain PyTorch, since"."""


class Library(NamedTuple):
    """The loaded kernels and where they came from."""

    functions: ctypes.CDLL
    origin: Literal["prebuilt", "jit"]
    said: str
    """For ``doctor``: the variant and how it came here."""


def variant() -> Variant:
    """What this CPU runs best."""
    x86 = platform.machine().lower() in ("x86_64", "amd64")
    return VARIANTS.get(torch.backends.cpu.get_cpu_capability(), VARIANTS["DEFAULT"]) if x86 else VARIANTS["DEFAULT"]


def library(demand: Demand | None = None) -> Library:
    """The kernels; ``demand`` restricts where they may come from.

    Raises:
        Absent: if there are none.
    """
    found = search(demand)
    if isinstance(found, str):
        raise Absent(found)
    return found


@functools.cache
def search(demand: Demand | None) -> Library | str:
    """The kernels, or why there are none: found out once per process, since a compiler that fails would fail at every call."""
    ours = variant()
    shipped = SOURCE.parent / f"hybridmap-{ours.name}.so"
    try:
        if demand != "jit" and shipped.exists():
            return Library(_open(shipped, ours), "prebuilt", f"C++ kernel for {ours.name}, shipped with this installation")
        if demand == "prebuilt":
            return f"no library for {platform.system()} {platform.machine()} ({ours.name}) is part of this installation"
        functions, how = _cached_or_compiled(ours)
    except Absent as reason:
        return str(reason)
    return Library(functions, "jit", f"C++ kernel for {ours.name}, {how}")


def division(batch: int, channels: int, length: int = 1) -> tuple[int, int, int]:
    """How work is divided, by the shape alone: slots of samples, strips of channels, and channels of a strip.

    ``length`` is that of sequences of which a task keeps one direction while it works on the other.
    """
    slots = max(1, min(batch, SLOTS))
    widest = max(NARROW, min(STRIP, KEPT_BY_ONE // max(length, 1)))
    strips = max(math.ceil(channels / widest), min(math.ceil(TASKS / slots), channels // NARROW), 1)
    lanes = variant().lanes
    strip = max(1, math.ceil(channels / strips / lanes)) * lanes
    return slots, max(1, math.ceil(channels / strip)), strip


def rows(tensor: Tensor) -> Tensor:
    """The tensor, copied only where neighbouring channels do not lie together."""
    return tensor if tensor.stride(-1) == 1 or tensor.shape[-1] <= 1 else tensor.contiguous()


def cache_directory() -> Path:
    """Where libraries are kept: ``$XDG_CACHE_HOME/hybridmap``, by default ``~/.cache/hybridmap``."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "hybridmap"


def compile_library(compiler: str, ours: Variant, into: Path, extra: Sequence[str] = ()) -> None:
    """Build the library of one variant.

    Raises:
        Absent: if the compiler fails; the message has the first line of its complaint.
    """
    command = [compiler, *FLAGS, *ours.flags, f"-DW={ours.lanes}", *extra, "-x", "c++", "-std=c++17", str(SOURCE)]
    try:
        run = subprocess.run(
            [*command, "-o", str(into), "-lc", "-lgcc"], capture_output=True, text=True, timeout=SLOWEST, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise Absent(f"the compiler {compiler} could not be run ({error})") from None
    if run.returncode:
        complaint = next((line for line in run.stderr.splitlines() if "error" in line), "no message")
        raise Absent(f"the compiler {compiler} failed: {complaint}")


def parallel(function: Callable[..., int], tasks: int, context: ctypes.Structure) -> None:
    """Run tasks 0 to ``tasks`` - 1 on torch's threads.

    Raises:
        MemoryError: if a task found no memory.
    """
    begin, end, pointer = ctypes.c_int64(0), ctypes.c_int64(tasks), ctypes.byref(context)
    run = _parallel_for()
    if run is None:
        function(begin, end, pointer)
    elif run(begin, end, ctypes.c_int64(1), function, pointer):
        raise RuntimeError("torch_parallel_for reported an error")
    if context.failed:
        raise MemoryError("the kernel's scratch memory could not be allocated")


@functools.cache
def _parallel_for() -> Callable[..., int] | None:
    """torch's own parallel loop, or None where this torch does not export it: then one thread does the work."""
    # the extension module is loaded already and depends on the library that has the symbol
    return getattr(ctypes.CDLL(torch._C.__file__), "torch_parallel_for", None)


def _cached_or_compiled(ours: Variant) -> tuple[ctypes.CDLL, str]:
    source = SOURCE.read_bytes()
    key = hashlib.sha256(repr((source, FLAGS, ours)).encode()).hexdigest()[:16]
    cache = cache_directory()
    for path in sorted(cache.glob(f"{ours.name}-{key}-*.so")):
        if hashlib.sha256(path.read_bytes()).hexdigest()[:16] == path.stem.rsplit("-", 1)[1]:
            return _open(path, ours), "found in the user's cache"
    compiler = next((found for name in COMPILERS if (found := shutil.which(name))), None)
    if compiler is None:
        raise Absent(f"no C++ compiler ({', '.join(COMPILERS)}) was found to build the kernel with")
    try:
        cache.mkdir(parents=True, exist_ok=True, mode=0o700)
        home, how = tempfile.TemporaryDirectory(dir=cache), "compiled into the user's cache"
    except OSError:  # a cache that cannot be written to
        home, how = (
            tempfile.TemporaryDirectory(),
            "compiled for this process alone, since the user's cache cannot be written to",
        )
    with home as folder:
        built = Path(folder) / "hybridmap.so"
        compile_library(compiler, ours, built)
        if Path(folder).parent != cache:
            return _open(built, ours), how
        digest = hashlib.sha256(built.read_bytes()).hexdigest()[:16]
        kept = cache / f"{ours.name}-{key}-{digest}.so"
        os.replace(built, kept)
    return _open(kept, ours), how


def _open(path: Path, ours: Variant) -> ctypes.CDLL:
    try:
        functions = ctypes.CDLL(str(path))
        lanes = functions.hybridmap_lanes()
    except (OSError, AttributeError) as error:
        raise Absent(f"the library at {path} could not be loaded ({error})") from None
    if lanes != ours.lanes:
        raise Absent(f"the library at {path} has {lanes} floats per register, but {ours.name} needs {ours.lanes}")
    return functions
