"""Pickles that hold numbers only: the form in which two of the benchmarks come, read without running anything.

A pickle is a program. What it may call here are a handful of functions of our own that stand in for NumPy's; everything that
NumPy would rebuild (arrays, types, scalars) is rebuilt from checked pieces, since NumPy's own can be led to read memory that
is not theirs.
"""

from __future__ import annotations

import io
import pickle
import re
from pathlib import Path
from typing import Any

import numpy as np

from hybridmap.errors import UserError


def read_pickle(path: Path, what: str) -> Any:
    """Arrays, lists, tuples, dicts, texts and numbers from a pickle.

    Raises:
        UserError: if the file is missing or broken, or holds anything else.
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise UserError(f"{path}, {what}, does not exist; check --data.root") from None
    except OSError as error:
        raise UserError(f"{path}, {what}, cannot be read ({error.strerror}); check its permissions") from None
    try:
        return _plain(_Restricted(io.BytesIO(data), encoding="latin1").load(), {})
    except _Forbidden as error:
        raise UserError(
            f"{path} holds {error}, but only arrays, lists and numbers are expected in it; do not trust it"
        ) from None
    except Exception:
        # A broken pickle can raise anything at all.
        raise UserError(f"{path} is not a whole pickle of arrays; fetch it again") from None


class _Forbidden(Exception):
    """Something other than numbers; the message names it."""


class _Restricted(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        made = _ALLOWED.get((re.sub(r"^numpy\._core\b", "numpy.core", module), name))
        if made is None:
            raise _Forbidden(f"{module}.{name}")
        return made()


class _Type:
    """Stands for a NumPy type: b, i, u or f, of 1 to 8 bytes, in either byte order."""

    __slots__ = ("dtype",)

    def __init__(self, code: str) -> None:
        if not isinstance(code, str) or not re.fullmatch(r"[<>=|]?(b1|[iu][1248]|f[248])", code):
            raise _Forbidden(f"an array of the type {code!r}")
        self.dtype = np.dtype(code)

    def __setstate__(self, state: Any) -> None:
        if state[1] not in ("<", ">", "=", "|") or state[2:5] != (None, None, None):
            raise _Forbidden("an array of a composed type")
        self.dtype = self.dtype.newbyteorder(state[1])

    def array(self, data: Any, shape: Any, fortran: Any) -> np.ndarray:
        data = data.encode("latin1") if isinstance(data, str) else data  # as Python 2 wrote it
        if not isinstance(data, bytes | bytearray) or not isinstance(shape, tuple):
            raise _Forbidden("an array of objects")
        return np.frombuffer(bytes(data), self.dtype).reshape(shape, order="F" if fortran else "C")


class _Array:
    """Stands for a NumPy array, which is made empty and filled later."""

    __slots__ = ("value",)

    def __setstate__(self, state: Any) -> None:
        _, shape, kind, fortran, data = state
        self.value = _type_of(kind).array(data, shape, fortran)


def _type_of(kind: Any) -> _Type:
    if not isinstance(kind, _Type):
        raise _Forbidden("an array of an unknown type")
    return kind


class _Callable:
    """What a pickle gets hold of; it has no attributes that the pickle could set."""

    __slots__ = ()


class _ArrayClass(_Callable):
    """numpy.ndarray: only named, as an argument."""


class _Reconstruct(_Callable):
    def __call__(self, kind: Any, shape: Any, code: Any) -> _Array:
        if not isinstance(kind, _ArrayClass):
            raise _Forbidden("an array of a class of its own")
        return _Array()


class _MakeType(_Callable):
    def __call__(self, code: Any, align: Any = False, copy: Any = True) -> _Type:
        return _Type(code)


class _FromBuffer(_Callable):
    def __call__(self, data: Any, kind: Any, shape: Any, order: Any, axes: Any = None) -> np.ndarray:
        found = _type_of(kind).array(bytes(data), shape, order == "F")
        return found if axes is None else found.transpose(axes)


class _Scalar(_Callable):
    def __call__(self, kind: Any, data: Any) -> Any:
        return _type_of(kind).array(data, (1,), False)[0].item()


class _Encode(_Callable):
    """How Python 3 writes bytes for Python 2."""

    def __call__(self, text: Any, encoding: Any) -> bytes:
        if not isinstance(text, str) or encoding != "latin1":
            raise _Forbidden("text in an odd encoding")
        return text.encode("latin1")


class _MakeBytes(_Callable):
    """``bytes()`` and ``bytearray()``, as old protocols write what is empty."""

    def __call__(self, data: Any = b"") -> bytes:
        if not isinstance(data, bytes):
            raise _Forbidden("odd bytes")
        return data


_ALLOWED: dict[tuple[str, str], type[_Callable]] = {
    ("numpy", "ndarray"): _ArrayClass,
    ("numpy", "dtype"): _MakeType,
    ("numpy.core.multiarray", "_reconstruct"): _Reconstruct,
    ("numpy.core.multiarray", "scalar"): _Scalar,
    ("numpy.core.numeric", "_frombuffer"): _FromBuffer,
    ("_codecs", "encode"): _Encode,
    ("builtins", "bytes"): _MakeBytes,
    ("__builtin__", "bytes"): _MakeBytes,
    ("builtins", "bytearray"): _MakeBytes,
}
"""(module, name) -> what stands in for it."""


def _plain(value: Any, seen: dict[int, Any]) -> Any:
    """The same with arrays in the places of what stands for them; what occurs twice is converted once."""
    if isinstance(value, str | bytes | int | float | np.ndarray) or value is None:
        return value
    if id(value) not in seen:
        seen[id(value)] = None  # a list that holds itself
        if isinstance(value, _Array):
            found: Any = value.value
        elif isinstance(value, list):
            found = [_plain(one, seen) for one in value]
        elif isinstance(value, tuple):
            found = tuple(_plain(one, seen) for one in value)
        elif isinstance(value, dict):
            found = {_plain(key, seen): _plain(one, seen) for key, one in value.items()}
        else:
            raise _Forbidden(f"a {type(value).__name__.removeprefix('_').lower()}")
        seen[id(value)] = found
    return seen[id(value)]
