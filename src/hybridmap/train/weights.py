"""Weights of a run, for whoever wants to use them: fine-tuning, probes, pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor

from hybridmap.config import from_yaml
from hybridmap.errors import UserError
from hybridmap.train.checkpoint import Checkpoints, read
from hybridmap.train.recipe import Recipe
from hybridmap.train.shards import RECORD


def read_weights(path: str | Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """(name -> tensor on the host, metadata) of a run directory or of a safetensors file.

    A finished run gives its ``final.safetensors``, an unfinished one the weights of its newest checkpoint. Of a checkpoint
    file, the learner's weights are taken: averaged where the run keeps an average.

    Raises:
        UserError: if there is nothing, or something else.
    """
    file = Path(path).expanduser()
    if file.is_dir() and not (file / RECORD).exists():
        file = _of_run(file)
    if not file.exists():
        raise UserError(f"{path} does not exist; expected a run directory or a .safetensors file")
    if file.suffix != ".safetensors" and not file.is_dir():
        raise UserError(
            f"{path} is neither a run directory nor a .safetensors file; convert a checkpoint of others first "
            f"(hybridmap convert {path} -o {file.stem}.safetensors)"
        )
    tensors, record = read(file)
    if record.get("kind") == "checkpoint":
        averages = {name.removeprefix("ema."): value for name, value in tensors.items() if name.startswith("ema.")}
        learner = {name.removeprefix("learner."): value for name, value in tensors.items() if name.startswith("learner.")}
        tensors = learner | averages
    return tensors, record


def has_weights(run: str | Path) -> bool:
    """Whether a run directory has final weights or a checkpoint by now."""
    folder = Path(run).expanduser()
    return (folder / "final.safetensors").exists() or bool(Checkpoints(folder / "checkpoints", keep=1).paths())


def load_run(path: str | Path) -> tuple[Recipe, dict[str, Tensor]]:
    """(recipe, weights) of a run directory.

    Raises:
        UserError: if ``path`` is no run directory, or has no weights yet.
    """
    file = Path(path).expanduser() / "recipe.yaml"
    if not file.exists():
        raise UserError(f"{path} is not the directory of a run: it has no recipe.yaml")
    recipe = from_yaml(file.read_text(), str(file))
    if not isinstance(recipe, Recipe):
        raise UserError(f"{file} holds a {type(recipe).__qualname__}, not the recipe of a run")
    return recipe, read_weights(path)[0]


def _of_run(folder: Path) -> Path:
    """The file with the weights of a run directory."""
    final = folder / "final.safetensors"
    if final.exists():
        return final
    newest = Checkpoints(folder / "checkpoints", keep=1).newest()
    if newest is None:
        raise UserError(f"{folder} holds neither final.safetensors nor a whole checkpoint; is it the directory of a run?")
    return newest
