"""Opening a weight file without trusting it: safetensors, or a pickle from which nothing but tensors and plain values may come.

A pickle is a program. ``torch.load(weights_only=True)`` runs only the parts of it that rebuild tensors; the training scripts of
the official repositories also store their arguments, so a few harmless classes are admitted besides, and nothing else.
"""

from __future__ import annotations

import argparse
import pathlib
import pickle
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from hybridmap.errors import UserError

METADATA_KEY = "hybridmap"
"""The one metadata key of our own safetensors files."""

WRAPPERS = ("model", "state_dict", "base_model")
"""Entries under which training scripts store the weights, in order of preference."""

EMA_WRAPPERS = ("model_ema", "state_dict_ema")
"""Entries under which they store the exponential moving average of the weights."""

PREFIXES = ("module.", "_orig_mod.")
"""What DistributedDataParallel and torch.compile put before every name."""


def read(path: str | Path, ema: bool = False) -> tuple[dict[str, Tensor], str | None]:
    """The tensors of a weight file by the names in it, without wrappers and ``module.``, and its ``hybridmap`` metadata if any.

    Args:
        path: a safetensors file (by its content, whatever its name) or a file of ``torch.save``.
        ema: take the moving average (``model_ema``) instead of the raw weights.

    Raises:
        UserError: for a file that is missing, damaged, holds no tensors, or asks to run code; nothing of it is run.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"expected a weight file, but {path} is {'a folder' if path.is_dir() else 'not there'}; check the path")
    if _is_safetensors(path):
        tensors, metadata = _read_safetensors(path)
        if ema and metadata is None:
            raise UserError(f"{path} holds no moving average that is marked as such; leave out the EMA option to load it")
        return tensors, metadata
    return strip_prefixes(unwrap(_read_pickle(path), path, ema)), None


def unwrap(content: Any, path: Path, ema: bool = False) -> dict[str, Tensor]:
    """The mapping of names to tensors inside what a training script saved."""
    if isinstance(content, Mapping):
        found = [name for name in (*WRAPPERS, *EMA_WRAPPERS) if isinstance(content.get(name), Mapping)]
        wanted = [name for name in (EMA_WRAPPERS if ema else WRAPPERS) if name in found]
        if ema and not wanted:
            raise UserError(
                f"{path} holds no moving average ({' or '.join(EMA_WRAPPERS)}); leave out the EMA option to load it"
            )
        if wanted:
            content = content[wanted[0]]
        elif found:
            raise UserError(f"{path} holds only a moving average ({found[0]}); load it with the EMA option")
        tensors = {str(name): value for name, value in content.items() if isinstance(value, Tensor)}
        if odd := next((name for name, value in tensors.items() if value.layout != torch.strided or value.is_quantized), None):
            raise UserError(f"{path} holds {odd} in a sparse or quantised form; expected plain tensors, so save it as such")
        if tensors:
            return tensors
    raise UserError(f"{path} holds no named tensors; expected a state dict, or one under 'model', 'state_dict' or 'base_model'")


def strip_prefixes(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same tensors without the prefixes that wrappers put before every name."""
    stripped = dict(state)
    while prefix := next((p for p in PREFIXES if stripped and all(name.startswith(p) for name in stripped)), None):
        stripped = {name.removeprefix(prefix): value for name, value in stripped.items()}
    return stripped


def safe_globals() -> list[Any]:
    """The classes that a pickle may name besides tensors: an argparse namespace, paths, NumPy scalars and their dtypes."""
    scalar = np.float64(0).__reduce__()[0]
    kinds = ("Bool", "Int8", "Int16", "Int32", "Int64", "UInt8", "UInt16", "UInt32", "UInt64", "Float16", "Float32", "Float64")
    return [
        argparse.Namespace,
        # A path of the other system cannot be made here, so both become pure paths, which only hold their text.
        *((pathlib.PurePosixPath, f"{module}.PosixPath") for module in ("pathlib", "pathlib._local")),
        *((pathlib.PureWindowsPath, f"{module}.WindowsPath") for module in ("pathlib", "pathlib._local")),
        *((scalar, f"{module}.multiarray.scalar") for module in ("numpy.core", "numpy._core")),
        np.dtype,
        *(getattr(np.dtypes, f"{kind}DType") for kind in kinds),
    ]


def _is_safetensors(path: Path) -> bool:
    """A safetensors file starts with the length of its header, eight bytes, and the header is JSON."""
    with path.open("rb") as file:
        head = file.read(9)
    return len(head) == 9 and head[8:] == b"{" and int.from_bytes(head[:8], "little") < path.stat().st_size


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], str | None]:
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (it is no dict)
            metadata = (file.metadata() or {}).get(METADATA_KEY)
    except SafetensorError as error:
        raise UserError(f"{path} is damaged ({error}); copy or download it again") from None
    if not tensors:
        raise UserError(f"{path} holds no tensors; expected a file of weights")
    return strip_prefixes(tensors), metadata


def _read_pickle(path: Path) -> Any:
    try:
        with torch.serialization.safe_globals(safe_globals()), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of protocols that may not be supported: if so, an error follows
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        named = re.search(r"(?:GLOBAL|Unsupported class|Unsupported global:)\s+([\w.]+)", str(error))
        if named is None:
            raise _not_weights(path) from None
        raise UserError(
            f"{path} asks to load {named[1]}, which could run code, so it was not opened; expected tensors and plain values,"
            " so ask its author for a safetensors file"
        ) from None
    except (EOFError, RuntimeError, ValueError, KeyError, AttributeError, TypeError, IndexError, OSError):
        raise _not_weights(path) from None


def _not_weights(path: Path) -> UserError:
    return UserError(f"{path} is neither a safetensors file nor one of torch.save, or it is damaged; copy or download it again")
