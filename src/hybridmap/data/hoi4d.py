"""HOI4D action segmentation: clips of point clouds, seen by somebody at work, with the action of every frame.

    train1.h5 .. train4.h5, test1.h5, test2.h5      pcd (n, 150, 2048, 3), center (n, 150, 3), label (n, 150)
    test_wolabel.h5                                 the same without labels

19 actions, of which none is a background. Clips are read one by one from the files, which stay on the disk.
Source: HOI4D (CVPR 2022), as yunzeliu/MAP:pointnet4D/HOI4DAS @ f3bcdff lays it out.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from hybridmap.data.base import UnreadableImage
from hybridmap.errors import UserError

FILES: dict[str, tuple[str, ...]] = {
    "train": ("train1.h5", "train2.h5", "train3.h5", "train4.h5"),
    "test": ("test1.h5", "test2.h5"),
    "unlabelled": ("test_wolabel.h5",),
}
NUM_CLASSES = 19


class HOI4D:
    """One split; it holds no open file and no random state, so that any process may ask for any clip at any time."""

    def __init__(self, root: str | Path, split: str = "train") -> None:
        """Look into the files of the split, one of :data:`FILES`, in the folder ``root``.

        Raises:
            UserError: if h5py is not installed, or a file is missing or not of this layout.
        """
        if split not in FILES:
            raise UserError(f"HOI4D has the splits {', '.join(FILES)}, got {split!r}")
        self.split, self.place = split, str(root)
        self._files = [Path(root) / name for name in FILES[split]]
        if missing := [path.name for path in self._files if not path.is_file()]:
            raise UserError(
                f"{root} lacks {', '.join(missing)}; expected the HDF5 files of HOI4D action segmentation, "
                f"{', '.join(FILES[split])} for the split {split}"
            )
        counts = [self._count(path) for path in self._files]
        self._clips = [(path, row) for path, count in zip(self._files, counts, strict=True) for row in range(count)]
        if not self._clips:
            raise UserError(f"the files of HOI4D's split {split} in {root} hold no clips; fetch them again")

    def __len__(self) -> int:
        return len(self._clips)

    def read(self, index: int) -> tuple[Float[np.ndarray, "T N 3"], Int[np.ndarray, "T"]]:
        """(points, labels) of one clip: float32 as stored, neither centred nor scaled, and int64, -1 where there are none.

        Raises:
            UnreadableImage: if the clip is damaged, or holds numbers that are not finite, or labels that are no action.
        """
        path, row = self._clips[index]
        try:
            with _opened(path) as file:
                points = np.asarray(_array(file, "pcd", path)[row], dtype=np.float32)
                stored = None if self.split == "unlabelled" else _array(file, "label", path)[row]
        except (OSError, RuntimeError, KeyError, ValueError):
            raise UnreadableImage(self.name(index), "the file is damaged here") from None
        labels = np.full(len(points), -1) if stored is None else np.asarray(stored)
        labels = labels.astype(np.int64)
        if not np.isfinite(points).all():
            raise UnreadableImage(self.name(index), "some of its points are not finite")
        if stored is not None and not (np.isin(labels, range(NUM_CLASSES)) & (labels == stored)).all():
            raise UnreadableImage(self.name(index), f"some of its labels are no whole numbers from 0 to {NUM_CLASSES - 1}")
        return points, labels

    def name(self, index: int) -> str:
        """What a clip is called in messages."""
        path, row = self._clips[index]
        return f"{path}, clip {row}"

    def _count(self, path: Path) -> int:
        """Clips in a file of this layout."""
        try:
            with _opened(path) as file:
                clips = _array(file, "pcd", path)
                shape, fits = clips.shape, clips.ndim == 4 and clips.shape[3] == 3 and min(clips.shape[1:]) > 0
                if not fits:
                    raise UserError(f"pcd of {path} must be (clips, frames, points, 3), got {shape}; give HOI4D's own files")
                if self.split != "unlabelled" and (labels := _array(file, "label", path).shape) != shape[:2]:
                    raise UserError(f"label of {path} must be {shape[:2]}, one for every frame, got {labels}")
                return shape[0]
        except UserError:
            raise
        except (OSError, RuntimeError, KeyError, ValueError):
            raise UserError(f"{path} is not a whole HDF5 file; fetch it again") from None


def _opened(path: Path) -> Any:
    """The file, open for reading."""
    try:
        import h5py
    except ModuleNotFoundError:
        raise UserError(f"reading {path} needs h5py, which is not installed; pip install 'hybridmap[points]'") from None
    return h5py.File(path, "r")


def _array(file: Any, name: str, path: Path) -> Any:
    """An array that lies in the file itself: links, external storage and virtual arrays can name any file of the machine."""
    import h5py

    if name not in file:
        raise UserError(f"{path} has no array {name}; expected one, and found {', '.join(file) or 'nothing'}")
    found = file[name] if isinstance(file.get(name, getlink=True), h5py.HardLink) else None
    if not isinstance(found, h5py.Dataset) or found.external or found.is_virtual:
        raise UserError(f"{name} of {path} does not lie in the file itself; expected an array")
    if found.dtype.kind not in "fiu":
        raise UserError(f"{name} of {path} holds {found.dtype} where numbers were expected")
    return found
