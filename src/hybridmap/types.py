"""The values that flow through the system: frozen dataclasses of tensors, nearly without behaviour.

    file ─> sample ─> Batch ─> Patches ─> tokens + Mask + ranks ─> Features ─> prediction ─> Loss

Letters, for every shape in the project: ``B`` batch, ``N`` patches of an input, ``V`` visible patches, ``P`` raw values of a
patch, ``A`` spatial axes (2 for images, 3 for points), ``D`` width (``embed_dim``), ``H`` heads, ``R`` prefix tokens, ``L``
scanned length, ``E`` inner width of a Mamba mixer, ``S`` its state size.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

from jaxtyping import Bool, Float, Int
from torch import Tensor

from hybridmap.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Batch:
    """What a loader yields: normalised inputs, and the keys from which everything random about them follows."""

    inputs: Tensor
    """(B, C, height, width) normalised images, or (B, points, 3) coordinates in the unit sphere."""
    key: Int[Tensor, "B"]
    """One integer per sample, a hash of (seed, epoch, position in the epoch's order); crops and masks are functions of it."""
    step_key: int = 0
    """A hash of (seed, optimiser step), equal on all ranks: what is drawn once per step (a mask ratio) follows from it."""
    labels: Tensor | None = None
    """Per input, pixel or point; None where unknown."""
    views: tuple[Tensor, ...] | None = None
    """Independent crops of the same images, of which ``inputs`` is the first; None unless the data was asked for several."""


@dataclass(frozen=True, kw_only=True)
class Patches:
    """An input cut into N patches, ALREADY in scan order: the position in this sequence is the order in which Mamba scans."""

    content: Float[Tensor, "B N P"]
    """Raw values of each patch, for images p*p*C with the channel fastest."""
    coords: Float[Tensor, "B N A"]
    """Centre of each patch: (row, column) in patch units, or (x, y, z)."""
    source: Int[Tensor, "B N"]
    """Scan position -> original (raster) index, to undo the order for dense outputs."""
    grid: tuple[int, ...] | None = None
    """(rows, columns) of the patch grid as Python integers; None where the input has no grid."""
    order: int = 0
    """Number of the scan order, where a backbone has several."""


@dataclass(frozen=True, kw_only=True)
class Mask:
    """Which patches are hidden from the encoder and are to be predicted; the same number in every sample."""

    masked: Bool[Tensor, "B N"]
    """True = hidden and to be predicted (MAE's 1)."""
    visible: Int[Tensor, "B V"]
    """Positions of the other patches, ASCENDING, so that masking never scrambles the scan."""

    @classmethod
    def from_masked(cls, masked: Bool[Tensor, "B N"]) -> Mask:
        """Make a mask from a recorded or hand-made boolean tensor (B, N). Reads the counts on the host.

        Raises:
            UserError: if the samples do not all hide the same number of patches.
        """
        counts = masked.sum(1)
        if bool((counts != counts[:1]).any()):
            raise UserError(f"every sample must mask the same number of patches, got between {counts.min()} and {counts.max()}")
        visible = (~masked).nonzero()[:, 1].view(masked.shape[0], -1)
        return cls(masked=masked, visible=visible)


@dataclass(frozen=True, kw_only=True)
class Tap:
    """What one layer returned: its branch (the mixer's output) and the residual stream that the branch is yet to join."""

    branch: Float[Tensor, "B L D"]
    stream: Float[Tensor, "B L D"] | None
    """None in plain residual networks, where the branch is the stream."""


@dataclass(frozen=True, kw_only=True)
class Features:
    """What an encoder returns."""

    patches: Float[Tensor, "B V D"]
    """One vector per visible patch, in scan order, after the final norm."""
    prefix: Float[Tensor, "B R D"]
    """Class or register tokens; R may be 0. Never counted in N."""
    taps: dict[int, Tap] = field(default_factory=dict)
    """Outputs of the layers that were asked for, by layer number in execution order, prefix tokens still inside."""


@dataclass(frozen=True, kw_only=True)
class Loss:
    """A scalar to minimise, and its parts for the log."""

    total: Float[Tensor, ""]
    parts: dict[str, Tensor] = field(default_factory=dict)


@runtime_checkable
class Learner(Protocol):
    """All that the training loop knows about a model: objectives and tasks are both learners (and ``nn.Module``s)."""

    def forward(self, batch: Batch) -> Loss: ...

    def initialise(self, weights: dict[str, Tensor]) -> InitReport:
        """Take over pretrained weights (by our names); say what was loaded, dropped and left fresh, and why."""
        ...

    # Optional: follow(average: dict[str, Tensor] | None, progress: float) -> None, called before every step with the moving
    # average of the learner's state (None where there is none) and the part of the run that is done.
    # Optional: settle(batches: Iterable[Batch]) -> None, called on a copy before it is examined or becomes the final weights,
    # for what follows from weights and data together (running statistics).


@dataclass(frozen=True, kw_only=True)
class InitReport:
    """Account of every tensor when weights are taken over: name -> reason."""

    loaded: tuple[str, ...]
    dropped: dict[str, str]
    fresh: dict[str, str]

    def __str__(self) -> str:
        def listed(names: Iterable[str]) -> str:
            names = list(names)
            return ", ".join(names[:6]) + (f", ... ({len(names)} in all)" if len(names) > 6 else "") or "none"

        return f"loaded {len(self.loaded)} tensors; dropped: {listed(self.dropped)}; freshly initialised: {listed(self.fresh)}"
