"""Points evenly over surfaces: triangles in proportion to their areas, and solids whose union is one shape.

Solid, Solid, ... ──triangles──> points on each ──those inside another solid are dropped──> points on the union
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int

from hybridmap.hashing import hash_ints

Points = Float[np.ndarray, "n 3"]
Triangles = Float[np.ndarray, "t 3 3"]
"""Three corners each."""
Inside = Callable[[Points], Bool[np.ndarray, "n"]]

_ATTEMPTS = 64
"""Rounds in which points on the union are looked for; one or two are the rule."""


def generator_of(*key: int) -> np.random.Generator:
    """A stream of random numbers that depends on the key alone."""
    return np.random.Generator(np.random.Philox(key=hash_ints(*key) & ((1 << 64) - 1)))


def areas(triangles: Triangles) -> Float[np.ndarray, "t"]:
    """Half the length of the cross product of two sides."""
    cross = np.cross(triangles[:, 1] - triangles[:, 0], triangles[:, 2] - triangles[:, 0])
    return np.sqrt((cross * cross).sum(1)) / 2


def sample_surface(triangles: Triangles, count: int, generator: np.random.Generator) -> tuple[Points, Int[np.ndarray, "n"]]:
    """(points, the triangle of each): independent and uniform over the total area, which must be positive.

    Source: Osada et al., "Shape distributions", 2002: (1 - sqrt u) a + sqrt u (1 - v) b + sqrt u v c.
    """
    ends = np.cumsum(areas(triangles))
    draws = generator.random((3, count))
    index = np.minimum(np.searchsorted(ends, draws[0] * ends[-1], side="right"), len(ends) - 1)
    root, along = np.sqrt(draws[1])[:, None], draws[2][:, None]
    a, b, c = triangles[index].transpose(1, 0, 2)
    return (1 - root) * a + root * (1 - along) * b + root * along * c, index


@dataclass(frozen=True, kw_only=True)
class Solid:
    """A piece of a shape: its surface, and which points lie strictly inside it."""

    triangles: Triangles
    inside: Inside
    part: int = 0
    """Which part of the shape it belongs to."""

    def scaled(self, x: float, y: float, z: float) -> Solid:
        """Stretched along the axes."""
        return self.transformed(np.diag([x, y, z]))

    def moved(self, x: float, y: float, z: float) -> Solid:
        """Shifted."""
        return self.transformed(np.eye(3), np.array([x, y, z], dtype=np.float64))

    def turned(self, axis: int, angle: float) -> Solid:
        """Rotated about an axis (0, 1, 2 = x, y, z) by an angle in radians."""
        return self.transformed(rotation(axis, angle))

    def transformed(self, matrix: Float[np.ndarray, "3 3"], shift: Float[np.ndarray, "3"] | None = None) -> Solid:
        """Every point p at ``matrix @ p + shift``."""
        offset = np.zeros(3) if shift is None else shift
        back, before = np.linalg.inv(matrix).T, self.inside
        return Solid(
            triangles=self.triangles @ matrix.T + offset,
            inside=lambda points: before((points - offset) @ back),
            part=self.part,
        )

    def as_part(self, part: int) -> Solid:
        """The same, as another part of the shape."""
        return Solid(triangles=self.triangles, inside=self.inside, part=part)


def rotation(axis: int, angle: float) -> Float[np.ndarray, "3 3"]:
    """The matrix of a rotation about the x, y or z axis by an angle in radians."""
    matrix = np.eye(3)
    i, j = (axis + 1) % 3, (axis + 2) % 3
    matrix[[i, j], [i, j]] = np.cos(angle)
    matrix[i, j], matrix[j, i] = -np.sin(angle), np.sin(angle)
    return matrix


def sample_union(solids: Sequence[Solid], count: int, generator: np.random.Generator) -> tuple[Points, Int[np.ndarray, "n"]]:
    """(points, part of each): uniform over the surface of the union of the solids.

    Where surfaces of two solids coincide (a leg that ends in the face of a seat) both count.
    """
    triangles = np.concatenate([solid.triangles for solid in solids])
    owner = np.repeat(np.arange(len(solids)), [len(solid.triangles) for solid in solids])
    parts = np.array([solid.part for solid in solids])
    points, owners = np.empty((0, 3)), np.empty(0, dtype=np.int64)
    for _ in range(_ATTEMPTS):
        found, index = sample_surface(triangles, count, generator)
        on = owner[index]
        kept = np.ones(count, dtype=bool)
        for number, solid in enumerate(solids):
            others = np.flatnonzero(kept & (on != number))
            kept[others] = ~solid.inside(found[others])
        points, owners = np.concatenate([points, found[kept]]), np.concatenate([owners, on[kept]])
        if len(points) >= count:
            return points[:count], parts[owners[:count]]
    raise RuntimeError(f"the union of {len(solids)} solids has hardly a surface")


def grid_triangles(grid: Float[np.ndarray, "u v 3"]) -> Triangles:
    """Two triangles for every cell of a grid of points."""
    a, b, c, d = grid[:-1, :-1], grid[1:, :-1], grid[1:, 1:], grid[:-1, 1:]
    return np.concatenate([np.stack([a, b, c], axis=2).reshape(-1, 3, 3), np.stack([a, c, d], axis=2).reshape(-1, 3, 3)])


def fan_triangles(outline: Float[np.ndarray, "v 3"], centre: Float[np.ndarray, "3"]) -> Triangles:
    """The triangles from a point to every piece of an outline, whose last point is its first."""
    return np.stack([np.broadcast_to(centre, (len(outline) - 1, 3)), outline[:-1], outline[1:]], axis=1)
