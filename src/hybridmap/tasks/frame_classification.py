"""Action segmentation of point-cloud video: every frame has a class, and what counts is where actions begin and end.

    clips ─> backbone with its head ─> logits (B, T, classes) ─> cross-entropy with the labels of the frames

Beside the accuracy of frames there are two measures of *segments*, the runs of frames of one class:

    true        ■■■■■■□□□□□□□▲▲▲▲        edit score   100 (1 - changes / longer list) of ■ □ ▲ and ■ □ ■ □ ▲: 60
    predicted   ■■■■□□□■□□□□□▲▲▲▲        F1@k         a segment is found where one of its class overlaps it by k % or more
                                                      (intersection over union), each at most once

No class counts as background. Source of the measures: Lea et al. (arXiv:1611.05267); MS-TCN (arXiv:1903.01945).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from hybridmap.backbones.pointnet4d import PointNet4D
from hybridmap.config import Config, Configurable
from hybridmap.errors import UserError
from hybridmap.types import Batch, InitReport, Loss

OVERLAPS = (10, 25, 50)
"""In per cent of intersection over union, as reported for HOI4D."""
UNKNOWN = -1
"""Label of a frame that has none."""


@runtime_checkable
class Clips(Protocol):
    """What can be evaluated: clips by number."""

    def __len__(self) -> int: ...

    def read(self, index: int) -> tuple[Any, Any]:
        """(points (frames, points, 3), labels (frames,)) as arrays or tensors."""
        ...


class FrameClassification(nn.Module, Configurable):
    """A learner: its backbone's logits against the label of every frame; frames labelled -1 do not count."""

    @dataclass(frozen=True, kw_only=True)
    class Config(Config):
        backbone: PointNet4D.Config
        """The network; its own number of classes is overruled."""
        num_classes: int = 19
        """Outputs of the head for every frame."""
        smoothing: float = 0.0
        """Share of every target that is spread over all classes."""

        def __post_init__(self) -> None:
            if self.num_classes < 1:
                raise UserError(f"classification needs at least one class, got {self.num_classes}")
            if not 0 <= self.smoothing < 1:
                raise UserError(f"label smoothing must lie in [0, 1), got {self.smoothing}")

    config: FrameClassification.Config

    def __init__(self, config: FrameClassification.Config) -> None:
        nn.Module.__init__(self)
        self.config = config
        self.backbone: PointNet4D = replace(config.backbone, num_classes=config.num_classes).build()

    def forward(self, batch: Batch) -> Loss:
        """Cross-entropy, averaged over all labelled frames of the batch.

        Raises:
            UserError: if the data has no labels, or not one for every frame.
        """
        wanted = tuple(batch.inputs.shape[:2])
        if batch.labels is None or tuple(batch.labels.shape) != wanted:
            found = "none" if batch.labels is None else f"labels of shape {tuple(batch.labels.shape)}"
            raise UserError(
                f"every frame needs a label, {wanted} for clips of shape {tuple(batch.inputs.shape)}, got {found}; "
                "use clips with labels"
            )
        return self.step(batch.inputs, batch.labels)

    def step(self, clips: Float[Tensor, "B T N 3"], labels: Int[Tensor, "B T"]) -> Loss:
        """The loss, in at least fp32; 0 where no frame has a label. Public, because it is what gets compiled."""
        logits = self.backbone(clips)
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32)).flatten(0, 1)
        summed = F.cross_entropy(
            logits, labels.flatten(), ignore_index=UNKNOWN, reduction="sum", label_smoothing=self.config.smoothing
        )
        return Loss(total=summed / (labels != UNKNOWN).sum().clamp(min=1))

    @torch.no_grad()
    def evaluate(self, clips: Clips, device: torch.device | str = "cpu", batch_size: int = 1) -> dict[str, float]:
        """:func:`measures` of the likeliest class of every frame, in evaluation mode, and the number of ``clips``.

        Raises:
            UserError: if there are no clips, or a frame has no label or one that is no class.
        """
        was_training = self.training
        self.eval()
        predicted: list[list[int]] = []
        true: list[list[int]] = []
        try:
            for first in range(0, len(clips), batch_size):
                pairs = [clips.read(i) for i in range(first, min(first + batch_size, len(clips)))]
                points = torch.stack([torch.as_tensor(points) for points, _ in pairs]).to(device)
                predicted += self.backbone(points).argmax(-1).tolist()
                true += [torch.as_tensor(labels).tolist() for _, labels in pairs]
        finally:
            self.train(was_training)
        for i, labels in enumerate(true):
            if strange := [label for label in labels if not 0 <= label < self.config.num_classes]:
                raise UserError(
                    f"clip {i} has a frame with the label {strange[0]}, but classes are 0 to {self.config.num_classes - 1}; "
                    "evaluate on clips with labels"
                )
        return measures(predicted, true) | {"clips": float(len(true))}

    def layer_ids(self) -> dict[str, int]:
        """Parameter name -> layer id, for layer-wise learning rates."""
        return {f"backbone.{name}": depth for name, depth in self.backbone.layer_ids().items()}

    def set_grad_checkpointing(self, enable: bool = True, every: int = 1) -> None:
        """Recompute the backbone's activations in the backward pass, as its own method does."""
        self.backbone.set_grad_checkpointing(enable, every)

    def initialise(self, weights: dict[str, Tensor]) -> InitReport:
        """Take over weights of 4DMAP, of such a run, or of a bare backbone, by our names.

        A decoder is dropped. The head starts fresh where the weights have none, and its last layer also where they have
        another number of classes.

        Raises:
            UserError: if the weights are of another network.
        """
        wrapped = any(name.startswith("backbone.") for name in weights)
        original = {name if wrapped else f"backbone.{name}": name for name in weights if not name.startswith("decoder.")}
        own = dict(self.state_dict())
        dropped = {name: "not part of a classifier" for name in weights if name.startswith("decoder.")}
        taken: dict[str, Tensor] = {}
        fresh: dict[str, str] = {}
        misfits = [f"{name} has no place in it" for name in sorted(original.keys() - own.keys())]
        for name, value in own.items():
            given = weights[original[name]] if name in original else None
            if given is not None and given.shape == value.shape:
                taken[name] = given
            elif given is None and name.startswith("backbone.head."):
                fresh[name] = "the weights hold no such part"
            elif given is not None and name.startswith("backbone.head.fc."):
                fresh[name] = f"the file's head has {len(given)} classes, this one {len(value)}"
                dropped[original[name]] = fresh[name]
            else:
                came = "is missing" if given is None else f"is {tuple(given.shape)} and should be {tuple(value.shape)}"
                misfits.append(f"{name} {came}")
        if misfits:
            raise UserError(
                f"the weights are of another network ({misfits[0]}; {len(misfits)} such tensors); choose a recipe of the same "
                "family and size"
            )
        self.load_state_dict(own | taken)
        return InitReport(loaded=tuple(taken), dropped=dropped, fresh=fresh)


def measures(predicted: Iterable[Sequence[int]], true: Iterable[Sequence[int]]) -> dict[str, float]:
    """In per cent: ``accuracy`` of all frames, ``edit`` averaged over clips, ``f1@10``, ``f1@25``, ``f1@50`` of all segments.

    Raises:
        UserError: if there are no clips, or predictions and labels are not of the same frames.
    """
    pairs = [(list(p), list(t)) for p, t in zip(list(predicted), list(true), strict=True)]
    if not pairs or not all(len(p) == len(t) > 0 for p, t in pairs):
        lengths = ", ".join(f"{len(p)} for {len(t)}" for p, t in pairs if len(p) != len(t) or not t) or "no clips"
        raise UserError(f"segments are measured on clips with one predicted class per labelled frame, got {lengths}")
    frames = [p == t for clip in pairs for p, t in zip(*clip, strict=True)]
    found = {"accuracy": 100.0 * sum(frames) / len(frames), "edit": sum(edit_score(*clip) for clip in pairs) / len(pairs)}
    for overlap in OVERLAPS:
        hits, made, wanted = (sum(column) for column in zip(*(matches(*clip, overlap / 100) for clip in pairs), strict=True))
        found[f"f1@{overlap}"] = 100.0 * 2 * hits / (made + wanted)
    return found


def segments(labels: Sequence[int]) -> list[tuple[int, int, int]]:
    """(class, first frame, frame behind the last) of every run of equal labels.

    >>> segments([4, 4, 7])
    [(4, 0, 2), (7, 2, 3)]
    """
    found, start = [], 0
    for label, run in groupby(labels):
        stop = start + len(list(run))
        found.append((label, start, stop))
        start = stop
    return found


def edit_score(predicted: Sequence[int], true: Sequence[int]) -> float:
    """100 (1 - d / n): d the fewest insertions, deletions and replacements of segments that turn one list of classes into the
    other, n the length of the longer list. How long segments are plays no part."""
    a, b = ([label for label, _, _ in segments(labels)] for labels in (predicted, true))
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        above, row[0] = row[0], i
        for j, y in enumerate(b, 1):
            above, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, above + (x != y))
    return 100.0 * (1 - row[-1] / max(len(a), len(b)))


def matches(predicted: Sequence[int], true: Sequence[int], overlap: float) -> tuple[int, int, int]:
    """(true segments that were found, predicted segments, true segments).

    Predicted segments come in order of time; each claims the true segment of its class that it overlaps most, by intersection
    over union, and has found it if that is at least ``overlap`` and nobody before it has.
    """
    made, wanted = segments(predicted), segments(true)
    found: set[int] = set()
    for label, start, stop in made:
        shares = [_overlap((start, stop), (s, e)) if kind == label else 0.0 for kind, s, e in wanted]
        best = max(range(len(wanted)), key=shares.__getitem__)
        if shares[best] >= overlap:
            found.add(best)
    return len(found), len(made), len(wanted)


def _overlap(a: tuple[int, int], b: tuple[int, int]) -> float:
    """Intersection over union of two stretches of time."""
    common = max(0, min(a[1], b[1]) - max(a[0], b[0]))
    return common / (a[1] - a[0] + b[1] - b[0] - common)
