"""Shapes that need no files, for tests, demos and first steps: made from (seed, index) alone, also moving.

    (seed, index) ─> family by index, its sizes at random ─> points uniform over the surface, each with its part

Their accuracies say whether the code learns; they are not comparable to any benchmark's.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int

from hybridmap.data.clouds.families import FAMILIES
from hybridmap.data.clouds.source import Cloud, CloudSource, normalise_cloud
from hybridmap.data.clouds.surfaces import generator_of, rotation, sample_union
from hybridmap.errors import UserError

ACTIONS = ("still", "translate", "rotate", "grow", "bounce")
"""What a shape of a clip does, by label."""

_SHAPE, _POINTS, _MOTION = 0x73686170, 0x706F696E, 0x6D6F7665
"""The hash streams of sizes, of points and of movements."""


class Procedural(CloudSource):
    """``count`` made shapes, their families in turn; other seeds give other shapes."""

    def __init__(self, count: int, points: int = 2048, seed: int = 0, families: Sequence[str] = tuple(FAMILIES)) -> None:
        """Choose the families (all of them by default); parts are numbered over these, in their order.

        Raises:
            UserError: if a number is not positive, or a family is unknown, named twice, or there is none.
        """
        if count < 1 or points < 1:
            raise UserError(f"made shapes need one shape and one point or more, got count {count} and points {points}")
        unknown = [name for name in families if name not in FAMILIES]
        if unknown or not families or len(set(families)) != len(families):
            raise UserError(
                f"expected different families of {', '.join(FAMILIES)}, got {', '.join(families) if families else 'none'}"
            )
        self.count, self.points, self.seed, self.families = count, points, seed, tuple(families)
        self.classes, self.place = self.families, "made shapes"
        sizes = [len(FAMILIES[name].parts) for name in families]
        starts = np.cumsum([0, *sizes])
        self._first_part = starts[:-1]
        self.parts = tuple(tuple(range(int(start), int(start) + size)) for start, size in zip(starts[:-1], sizes, strict=True))
        self.part_names = tuple(f"{name} {part}" for name in families for part in FAMILIES[name].parts)

    def __len__(self) -> int:
        return self.count

    def read(self, index: int) -> Cloud:
        label = self.label(index)
        points, parts = _shape(self.families[label], self.seed, index, self.points)
        return Cloud(points=points, label=label, parts=parts + self._first_part[label])

    def name(self, index: int) -> str:
        return f"{self.families[self.label(index)]}:{self.seed}:{index}"

    def label(self, index: int) -> int:
        return index % len(self.families)


def _shape(family: str, seed: int, index: int, count: int) -> tuple[Float[np.ndarray, "n 3"], Int[np.ndarray, "n"]]:
    """(points, part of each from 0) of one member of a family, whatever other families there are."""
    number = list(FAMILIES).index(family)
    solids = FAMILIES[family].make(generator_of(_SHAPE, seed, index, number))
    points, parts = sample_union(solids, count, generator_of(_POINTS, seed, index, number))
    return points.astype(np.float32), parts


def moving_clip(
    seed: int, index: int, frames: int, points: int
) -> tuple[Float[np.ndarray, "frames points 3"], Int[np.ndarray, "frames"]]:
    """A made shape that does two or three things in a row, and for every frame the number of what it does (``ACTIONS``).

    The shape starts in the unit sphere and its points move with it. The label of a frame says how it came from the one before;
    position, size and direction are continuous, and neighbouring actions differ. An action lasts a fifth of the clip or more;
    clips of two frames have two actions, of one frame one.

    Raises:
        UserError: if there are no frames or no points.
    """
    if frames < 1 or points < 1:
        raise UserError(f"a clip needs one frame and one point or more, got {frames} frames and {points} points")
    family = tuple(FAMILIES)[index % len(FAMILIES)]
    cloud = normalise_cloud(_shape(family, seed, index, points)[0]).astype(np.float64)
    g = generator_of(_MOTION, seed, index)
    clip, labels = np.empty((frames, points, 3), dtype=np.float32), np.empty(frames, dtype=np.int64)
    place, angle, size, previous = np.zeros(3), 0.0, 1.0, -1
    start = 0
    for length in _lengths(frames, g):
        action = int(g.choice([number for number in range(len(ACTIONS)) if number != previous]))
        direction = g.normal(size=3)
        direction *= g.uniform(0.4, 1.0) / np.linalg.norm(direction)  # shifted by so much in all
        turn = g.choice([-1.0, 1.0]) * g.uniform(0.5, 1.0) * math.pi
        growth = g.choice([-1.0, 1.0]) * g.uniform(0.3, 0.6)  # of the logarithm of the size
        height, hops = g.uniform(0.3, 0.7), int(g.integers(1, 3)) if length >= 8 else 1
        for frame in range(length):
            t = (frame + 1) / length
            at, a, s = place.copy(), angle, size
            if ACTIONS[action] == "translate":
                at = place + direction * t
            elif ACTIONS[action] == "rotate":
                a = angle + turn * t
            elif ACTIONS[action] == "grow":
                s = size * math.exp(growth * t)
            elif ACTIONS[action] == "bounce":
                # a parabola for every hop; where a segment is a single frame, it is caught at the top
                phase = (t * hops) % 1.0 if length > 1 else 0.5
                at[1] += 4 * height * phase * (1 - phase)
            clip[start + frame] = s * (cloud @ rotation(1, a).T) + at
            labels[start + frame] = action
        place, angle, size, previous = at, a, s, action
        start += length
    return clip, labels


def _lengths(frames: int, g: np.random.Generator) -> list[int]:
    """How long each of two or three segments is, none shorter than a fifth of the clip."""
    count = min(frames, int(g.integers(2, 4)))
    least = max(1, frames // 5)
    spare = frames - count * least
    cuts = np.sort(g.integers(0, spare + 1, count - 1))
    return [int(piece) + least for piece in np.diff([0, *cuts, spare])]
