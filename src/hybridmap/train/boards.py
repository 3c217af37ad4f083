"""Where the numbers of a run go besides its own directory: TensorBoard's files, Weights & Biases.

Each board has the same few methods. Neither is imported before it is asked for.
"""

from __future__ import annotations

import hashlib
import importlib.util
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from PIL import Image

from hybridmap.errors import UserError
from hybridmap.files import writing

log = logging.getLogger("hybridmap.train")


@runtime_checkable
class Board(Protocol):
    """Something that shows numbers and pictures by step."""

    def begin(self, step: int) -> None:
        """What is told next follows on ``step``: at the start, and wherever the run goes back to."""
        ...

    def numbers(self, record: Mapping[str, Any], step: int) -> None:
        """The numbers of a step, those of exams by ``exam/number``."""
        ...

    def picture(self, name: str, picture: Image.Image, step: int) -> None: ...

    def close(self) -> None:
        """Write what is still in memory."""
        ...


def scalars(record: Mapping[str, Any]) -> dict[str, float]:
    """What a board shows of a step: exams under their names, everything else under ``train/``."""
    return {
        name if "/" in name else f"train/{name}": value
        for name, value in record.items()
        if name != "step" and isinstance(value, float)
    }


class TensorBoard:
    """Event files below ``tensorboard/``. Source: torch.utils.tensorboard."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._writer: Any = None

    @staticmethod
    def is_installed() -> bool:
        return importlib.util.find_spec("tensorboard") is not None

    def begin(self, step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.close()
        with writing(self._folder):
            self._writer = SummaryWriter(self._folder, purge_step=step + 1)

    def numbers(self, record: Mapping[str, Any], step: int) -> None:
        with writing(self._folder):
            for name, value in scalars(record).items():
                self._writer.add_scalar(name, value, step)

    def picture(self, name: str, picture: Image.Image, step: int) -> None:
        self._writer.add_image(name, np.asarray(picture.convert("RGB")), step, dataformats="HWC")

    def close(self) -> None:
        if self._writer is not None:
            writer, self._writer = self._writer, None
            with writing(self._folder):
                writer.close()


class Wandb:
    """A run of Weights & Biases, of one name however often it is continued; its files lie below ``wandb/``.

    Offline where nobody is logged in (``wandb sync`` sends it later), and wherever ``WANDB_MODE`` says so.
    """

    def __init__(self, folder: Path, project: str, config: Mapping[str, Any]) -> None:
        """Begin or continue the run.

        Raises:
            UserError: if wandb is not installed, or refuses.
        """
        try:
            import wandb
        except ModuleNotFoundError:
            raise UserError("train.wandb needs wandb, which is not installed; pip install 'hybridmap[wandb]'") from None
        mode = os.environ.get("WANDB_MODE") or ("online" if _logged_in() else "offline")
        name = hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:16]
        quiet = wandb.Settings(silent=True, console="off")
        with writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
        try:
            self._run: Any = wandb.init(
                project=project,
                name=folder.parent.name,
                id=name,
                resume="allow",
                mode=mode,  # pyright: ignore[reportArgumentType]
                dir=str(folder.parent),
                config=dict(config),
                settings=quiet,
            )
        except wandb.Error as error:
            raise UserError(f"wandb refuses ({error}); set WANDB_MODE=offline, or leave train.wandb out") from None
        self._image = wandb.Image
        log.info("wandb keeps this run (%s) as %s", mode, name)

    def begin(self, step: int) -> None:
        """wandb takes no step twice: after going back, numbers are shown from where it had been."""

    def numbers(self, record: Mapping[str, Any], step: int) -> None:
        self._run.log(scalars(record), step=step)

    def picture(self, name: str, picture: Image.Image, step: int) -> None:
        self._run.log({name: self._image(picture)}, step=step)

    def close(self) -> None:
        self._run.finish()


def _logged_in() -> bool:
    """Whether wandb knows a key: from the environment, or from ``wandb login``."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    file = Path(os.environ.get("NETRC") or Path.home() / ".netrc")
    return file.is_file() and "wandb" in file.read_text(errors="replace")
