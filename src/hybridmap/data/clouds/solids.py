"""The solids that shapes are put together from, each about its own centre, with y upwards.

cuboid, superquadric        revolved: an outline in (radius, height) turned about the y axis
hexahedron                  extruded: an outline in (x, z) drawn along the y axis, twisted and tapered
                            tube: a circle drawn along a curve
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from jaxtyping import Bool, Float

from hybridmap.data.clouds.surfaces import Points, Solid, fan_triangles, grid_triangles

SEGMENTS = 48
"""Pieces of a full circle; their edges are 0.2 % of the radius inside of it."""
_QUADS = ((3, 2, 1, 0), (4, 5, 6, 7), (0, 1, 5, 4), (1, 2, 6, 5), (2, 3, 7, 6), (3, 0, 4, 7))
"""Corners of the faces of a hexahedron: bottom, top, sides."""

Outline = Float[np.ndarray, "k 2"]
"""Corners of a polygon, in order; the last is joined to the first."""


def circle(segments: int = SEGMENTS) -> Outline:
    """The unit circle."""
    angle = np.arange(segments) * (2 * np.pi / segments)
    return np.stack([np.cos(angle), np.sin(angle)], axis=1)


def cuboid(x: float, y: float, z: float) -> Solid:
    """A box of these sides."""
    half = np.array([x, y, z]) / 2
    square = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]])
    corners = np.stack([np.insert(square, 1, side, axis=1) for side in (-1, 1)]) * half  # (2, 4, 3)
    return hexahedron(corners[0], corners[1])


def hexahedron(bottom: Float[np.ndarray, "4 3"], top: Float[np.ndarray, "4 3"]) -> Solid:
    """A convex body with six plane faces, from four corners and the four above them in the same order."""
    corners = np.concatenate([bottom, top]).astype(np.float64)
    faces = corners[np.array(_QUADS)]  # (6, 4, 3)
    normal = np.cross(faces[:, 2] - faces[:, 0], faces[:, 3] - faces[:, 1])
    normal *= np.sign(((faces.mean(1) - corners.mean(0)) * normal).sum(1))[:, None]
    height = (normal * faces[:, 0]).sum(1)

    def inside(points: Points) -> Bool[np.ndarray, "n"]:
        return (points @ normal.T < height).all(1)

    return Solid(triangles=np.concatenate([faces[:, [0, 1, 2]], faces[:, [0, 2, 3]]]), inside=inside)


def superquadric(vertical: float, horizontal: float) -> Solid:
    """(|x|^(2/h) + |z|^(2/h))^(h/v) + |y|^(2/v) <= 1: a unit sphere at 1 and 1, towards a box below, an octahedron at 2.

    Source: Barr, "Superquadrics and angle-preserving transformations", 1981.
    """

    def power(value: np.ndarray, exponent: float) -> np.ndarray:
        return np.sign(value) * np.abs(value) ** exponent

    latitude = np.linspace(-np.pi / 2, np.pi / 2, SEGMENTS + 1)[:, None]
    longitude = np.linspace(-np.pi, np.pi, 2 * SEGMENTS + 1)[None, :]
    level = power(np.cos(latitude), vertical)
    x, z = level * power(np.cos(longitude), horizontal), level * power(np.sin(longitude), horizontal)
    y = np.broadcast_to(power(np.sin(latitude), vertical), x.shape)

    def inside(points: Points) -> Bool[np.ndarray, "n"]:
        across = np.abs(points[:, 0]) ** (2 / horizontal) + np.abs(points[:, 2]) ** (2 / horizontal)
        return across ** (horizontal / vertical) + np.abs(points[:, 1]) ** (2 / vertical) < 1

    return Solid(triangles=grid_triangles(np.stack([x, y, z], axis=-1)), inside=inside)


def revolved(outline: Outline) -> Solid:
    """What a closed outline of (radius >= 0, height) covers when it is turned about the y axis."""
    closed = np.concatenate([outline, outline[:1]])
    turn = np.concatenate([circle(), circle()[:1]])  # (s + 1, 2)
    radius, height = closed[:, :1], closed[:, 1:]
    grid = np.stack([radius * turn[:, 0], np.broadcast_to(height, (len(closed), len(turn))), radius * turn[:, 1]], axis=-1)
    on_axis = (closed[:-1, 0] == 0) & (closed[1:, 0] == 0)
    triangles = [grid_triangles(grid[k : k + 2]) for k in np.flatnonzero(~on_axis)]

    def inside(points: Points) -> Bool[np.ndarray, "n"]:
        return _in_polygon(np.stack([np.hypot(points[:, 0], points[:, 2]), points[:, 1]], axis=1), outline)

    return Solid(triangles=np.concatenate(triangles), inside=inside)


def cylinder(radius: float, height: float, top: float | None = None) -> Solid:
    """A cylinder, or with another radius on top a truncated cone (a whole one at 0)."""
    half, other = height / 2, radius if top is None else top
    return revolved(np.array([[0.0, -half], [radius, -half], [other, half], [0.0, half]]))


def extruded(outline: Outline, height: float, *, twist: float = 0.0, taper: float = 1.0) -> Solid:
    """An outline in (x, z), star-shaped about 0, drawn upwards, turned by ``twist`` radians and scaled to ``taper`` on top."""
    closed = np.concatenate([outline, outline[:1]])
    levels = np.linspace(-0.5, 0.5, 25 if twist else 2)
    scale = (1 + (taper - 1) * (levels + 0.5))[:, None]  # (levels, 1)
    cosine, sine = np.cos(twist * (levels + 0.5))[:, None], np.sin(twist * (levels + 0.5))[:, None]
    x = scale * (cosine * closed[:, 0] - sine * closed[:, 1])
    z = scale * (sine * closed[:, 0] + cosine * closed[:, 1])
    grid = np.stack([x, np.broadcast_to(levels[:, None] * height, x.shape), z], axis=-1)
    caps = [fan_triangles(grid[end], np.array([0.0, levels[end] * height, 0.0])) for end in (0, -1)]

    def inside(points: Points) -> Bool[np.ndarray, "n"]:
        level = points[:, 1] / height + 0.5
        size = np.where(np.abs(level - 0.5) < 0.5, 1 + (taper - 1) * level, 1.0)
        c, s = np.cos(twist * level), np.sin(twist * level)
        flat = np.stack([c * points[:, 0] + s * points[:, 2], c * points[:, 2] - s * points[:, 0]], axis=1)
        return (np.abs(level - 0.5) < 0.5) & _in_polygon(flat / size[:, None], outline)

    return Solid(triangles=np.concatenate([grid_triangles(grid), *caps]), inside=inside)


def tube(curve: Float[np.ndarray, "k 3"], radius: float, binormal: Float[np.ndarray, "3"]) -> Solid:
    """What a disc covers that is drawn along a curve, which never runs parallel to ``binormal``; the ends are flat."""
    along = np.gradient(curve, axis=0)
    along /= np.linalg.norm(along, axis=1, keepdims=True)
    side = np.cross(along, binormal)
    side /= np.linalg.norm(side, axis=1, keepdims=True)
    other = np.cross(along, side)
    turn = np.concatenate([circle(24), circle(24)[:1]]) * radius
    grid = curve[:, None] + side[:, None] * turn[:, :1] + other[:, None] * turn[:, 1:]  # (k, 25, 3)

    def inside(points: Points) -> Bool[np.ndarray, "n"]:
        nearest = np.full(len(points), np.inf)
        for start, end in pairwise(curve):
            step = end - start
            t = np.clip((points - start) @ step / (step @ step), 0, 1)
            nearest = np.minimum(nearest, ((points - start - t[:, None] * step) ** 2).sum(1))
        return nearest < radius * radius

    caps = [fan_triangles(grid[end], curve[end]) for end in (0, -1)]
    return Solid(triangles=np.concatenate([grid_triangles(grid), *caps]), inside=inside)


def _in_polygon(points: Float[np.ndarray, "n 2"], outline: Outline) -> Bool[np.ndarray, "n"]:
    """Whether a ray from each point crosses the outline an odd number of times."""
    u, v = points.T
    odd = np.zeros(len(points), dtype=bool)
    for (u0, v0), (u1, v1) in zip(outline, np.roll(outline, -1, axis=0), strict=True):
        if v0 != v1:
            odd ^= ((v0 > v) != (v1 > v)) & (u < u0 + (v - v0) * (u1 - u0) / (v1 - v0))
    return odd
