"""Arrays out of HDF5 files, which three of the benchmarks come in; h5py is asked for only here."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hybridmap.errors import UserError


def read_hdf5(path: Path, names: Sequence[str]) -> list[np.ndarray]:
    """The arrays of these names, whole.

    Raises:
        UserError: if h5py is not installed, or the file is missing, damaged, or has no such arrays.
    """
    try:
        import h5py
    except ModuleNotFoundError:
        raise UserError(f"reading {path} needs h5py, which is not installed; pip install 'hybridmap[points]'") from None
    if not path.exists():
        raise UserError(f"the file {path} does not exist; it comes with the data set")
    try:
        with h5py.File(path, "r") as file:
            return [_array(file, name, path) for name in names]
    except UserError:
        raise
    except (OSError, RuntimeError, KeyError, ValueError, MemoryError):
        # h5py's words are those of the C library, with addresses and lines of its source.
        raise UserError(f"{path} is not a whole HDF5 file; fetch it again") from None


def _array(file: Any, name: str, path: Path) -> np.ndarray:
    import h5py

    if name not in file:
        raise UserError(f"{path} has no array {name}; expected one, and found {', '.join(file) or 'nothing'}")
    found = file[name] if isinstance(file.get(name, getlink=True), h5py.HardLink) else None
    # Links, external storage and virtual arrays can name any file of the machine.
    if not isinstance(found, h5py.Dataset) or found.external or found.is_virtual:
        raise UserError(f"{name} of {path} does not lie in the file itself; expected an array")
    if found.dtype.kind not in "fiu":
        raise UserError(f"{name} of {path} holds {found.dtype} where numbers were expected")
    return found[()]
