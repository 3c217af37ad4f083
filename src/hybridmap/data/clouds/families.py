"""Fourteen families of shapes, about one unit large, with y upwards; each member is a few random numbers.

Sizes are chosen so that members of a family differ and families can still be told apart: a torus has a hole, a helix two turns
or more, a table no back. Pieces reach a little into each other, so that where they meet there is no surface.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from hybridmap.data.clouds.solids import Outline, circle, cuboid, cylinder, extruded, hexahedron, revolved, superquadric, tube
from hybridmap.data.clouds.surfaces import Solid

Shape = tuple[Solid, ...]
"""The solids of one shape; their numbers of parts start at 0."""


@dataclass(frozen=True, kw_only=True)
class Family:
    """How members of a family are made, and what their parts are called."""

    make: Callable[[np.random.Generator], Shape]
    parts: tuple[str, ...]


# Solids of one part


def _box(g: np.random.Generator) -> Shape:
    x, y, z = g.uniform(0.4, 1.4, 3)
    return (cuboid(x, y, z),)


def _superquadric(g: np.random.Generator) -> Shape:
    vertical, horizontal = g.uniform(0.5, 1.5, 2)
    x, y, z = g.uniform(0.3, 0.8, 3)
    return (superquadric(vertical, horizontal).scaled(x, y, z),)


def _cylinder(g: np.random.Generator) -> Shape:
    flat = g.uniform(0.6, 1.0)
    return (cylinder(g.uniform(0.2, 0.6), g.uniform(0.5, 1.6)).scaled(1.0, 1.0, flat),)


def _cone(g: np.random.Generator) -> Shape:
    radius = g.uniform(0.3, 0.7)
    return (cylinder(radius, g.uniform(0.7, 1.5), top=radius * max(0.0, g.uniform(-0.3, 0.35))),)


def _torus(g: np.random.Generator) -> Shape:
    thick = g.uniform(0.08, 0.25)
    x, z = g.uniform(0.7, 1.0, 2)
    ring = revolved(circle(32) * thick + [g.uniform(0.45, 0.75), 0.0])
    return (ring.scaled(x, g.uniform(0.7, 1.4), z).turned(0, g.choice([0.0, np.pi / 2])),)


def _capsule(g: np.random.Generator) -> Shape:
    radius, half = g.uniform(0.15, 0.4), g.uniform(0.25, 0.7)
    angle = np.linspace(0, np.pi / 2, 13)
    upper = np.stack([radius * np.cos(angle), half + radius * np.sin(angle)], axis=1)
    upper[-1, 0] = 0.0
    return (revolved(np.concatenate([upper[::-1] * [1, -1], upper])[::-1]),)


def _helix(g: np.random.Generator) -> Shape:
    turns, radius, thick = g.uniform(2.0, 4.0), g.uniform(0.25, 0.55), g.uniform(0.04, 0.09)
    angle = np.linspace(0, 2 * np.pi * turns, int(32 * turns))
    pitch = thick * g.uniform(3.0, 6.0)  # of a turn; below two radii the windings would touch
    height = (angle / (2 * np.pi) - turns / 2) * pitch
    curve = np.stack([radius * np.cos(angle), height, g.choice([-1.0, 1.0]) * radius * np.sin(angle)], axis=1)
    return (tube(curve, thick, np.array([0.0, 1.0, 0.0])),)


def _prism(g: np.random.Generator) -> Shape:
    corners = int(g.choice([3, 5, 6]))
    solid = extruded(circle(corners), g.uniform(0.5, 1.6), taper=g.uniform(0.7, 1.0))
    x, z = g.uniform(0.3, 0.7, 2)
    return (solid.scaled(x, 1.0, z),)


def _extrusion(g: np.random.Generator) -> Shape:
    angle = np.linspace(0, 2 * np.pi, 72, endpoint=False)
    lobes, depth = int(g.integers(3, 8)), g.uniform(0.25, 0.5)
    radius = 1 + depth * np.cos(lobes * angle) + g.uniform(0.0, 0.2) * np.cos(2 * angle + g.uniform(0, 2 * np.pi))
    outline = np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1) * g.uniform(0.3, 0.5)
    twist = g.choice([0.0, g.uniform(0.3, 1.2)])
    return (extruded(outline, g.uniform(0.4, 1.4), twist=float(twist), taper=g.uniform(0.6, 1.0)),)


# Things of several parts


def _legs(g: np.random.Generator, width: float, depth: float, top: float, part: int) -> Shape:
    """What carries a plate of this size whose underside is at the height ``top``, from the floor at 0."""
    kind, height = g.choice(["square", "round", "pedestal"], p=[0.45, 0.35, 0.2]), top + 0.01
    if kind == "pedestal":
        foot = 0.03 + 0.03 * g.random()
        column = cylinder(g.uniform(0.03, 0.07), height).moved(0.0, height / 2, 0.0)
        return (
            column.as_part(part),
            cylinder(g.uniform(0.5, 0.8) * min(width, depth) / 2, foot).moved(0.0, foot / 2, 0.0).as_part(part),
        )
    thick, splay = g.uniform(0.04, 0.1), g.uniform(0.0, 0.12)
    taper = g.uniform(0.6, 1.0)
    leg = cuboid(thick, height, thick) if kind == "square" else cylinder(thick / 2 * taper, height, top=thick / 2)
    x, z = width / 2 - thick * 0.6, depth / 2 - thick * 0.6
    placed = []
    for side in (-1.0, 1.0):
        for end in (-1.0, 1.0):
            lean = np.array([[1.0, -splay * side, 0.0], [0.0, 1.0, 0.0], [0.0, -splay * end, 1.0]])
            upright = leg.moved(0.0, -height / 2, 0.0).transformed(lean)  # hangs from its upper end
            placed.append(upright.moved(side * x, height, end * z).as_part(part))
    return tuple(placed)


def _chair(g: np.random.Generator) -> Shape:
    width, depth = g.uniform(0.45, 0.65, 2)
    height, thick, back = g.uniform(0.35, 0.55), g.uniform(0.04, 0.1), g.uniform(0.4, 0.75)
    seat = cuboid(width, thick, depth).moved(0.0, height, 0.0)
    slab = g.uniform(0.03, 0.07)
    if g.random() < 0.5:
        pieces = (cuboid(width, back, slab).moved(0.0, back / 2, 0.0),)
    else:
        count = int(g.integers(3, 6))
        places = np.linspace(-0.5, 0.5, count) * (width - slab)
        rail = cuboid(width, slab * 2, slab).moved(0.0, back - slab, 0.0)
        pieces = (rail, *(cuboid(slab, back, slab * 0.8).moved(float(x), back / 2 - 0.01, 0.0) for x in places))
    lean = -g.uniform(0.0, 0.25)
    behind = tuple(
        piece.turned(0, lean).moved(0.0, height + thick / 2 - 0.015, (slab - depth) / 2).as_part(1) for piece in pieces
    )
    return (seat, *behind, *_legs(g, width, depth, height - thick / 2, 2))


def _table(g: np.random.Generator) -> Shape:
    height, thick = g.uniform(0.45, 0.75), g.uniform(0.03, 0.08)
    width, depth = g.uniform(0.8, 1.5), g.uniform(0.6, 0.9)
    if g.random() < 0.35:
        top = cylinder(0.5, thick).scaled(width, 1.0, depth)
        width, depth = width * 0.7, depth * 0.7  # of the legs, which stand within the round plate
    else:
        top = cuboid(width, thick, depth)
    return (top.moved(0.0, height, 0.0), *_legs(g, width, depth, height - thick / 2, 1))


def _lamp(g: np.random.Generator) -> Shape:
    height, radius = g.uniform(0.6, 1.4), g.uniform(0.14, 0.3)
    foot, pole = g.uniform(0.03, 0.14), g.uniform(0.015, 0.04)
    base = cylinder(radius, foot, top=radius * g.uniform(0.3, 1.0)).moved(0.0, foot / 2, 0.0)
    stem = cylinder(pole, height).moved(0.0, height / 2 + foot * 0.8, 0.0).as_part(1)
    wide, tall = g.uniform(0.22, 0.42), g.uniform(0.2, 0.45)
    narrow, wall = wide * g.uniform(0.4, 0.9), 0.012
    shade = revolved(np.array([[wide - wall, 0.0], [wide, 0.0], [narrow, tall], [narrow - wall, tall]]))
    return (base, stem, shade.moved(0.0, height + foot - tall * g.uniform(0.5, 0.9), 0.0).as_part(2))


def _mug(g: np.random.Generator) -> Shape:
    radius, height, wall = g.uniform(0.32, 0.45), g.uniform(0.7, 1.1), g.uniform(0.04, 0.07)
    foot = radius * g.uniform(0.8, 1.0)
    outline: Outline = np.array(
        [[0.0, 0.0], [foot, 0.0], [radius, height], [radius - wall, height], [foot - wall, wall], [0.0, wall]]
    )
    angle = np.linspace(0, np.pi, 33)
    thick, reach, span = g.uniform(0.04, 0.07), g.uniform(0.2, 0.32), height * g.uniform(0.25, 0.36)
    middle = height * g.uniform(0.48, 0.58)
    level = middle + span * np.cos(angle)
    # The ends of the handle lie inside of the wall, which leans where the foot is narrower than the rim.
    start = foot + (radius - foot) * level / height - wall / 2
    curve = np.stack([start + reach * np.sin(angle), level, np.zeros(33)], axis=1)
    return (revolved(outline), tube(curve, thick, np.array([0.0, 0.0, 1.0])).as_part(1))


def _fin(span: float, root: float, tip: float, sweep: float, rise: float, thick: float) -> Solid:
    """A wing to the right (x), its root in the plane x = 0 and centred at z = 0; its tip is shifted back (-z) and up."""

    def section(x: float, chord: float, back: float, up: float, height: float) -> np.ndarray:
        ends = np.array([[-0.5, -0.5], [-0.5, 0.5], [0.5, 0.5], [0.5, -0.5]])
        return np.stack([np.full(4, x), up + ends[:, 0] * height, ends[:, 1] * chord - back], axis=1)

    return hexahedron(section(0.0, root, 0.0, 0.0, thick), section(span, tip, sweep, rise, thick * 0.6))


def _aircraft(g: np.random.Generator) -> Shape:
    length, radius = g.uniform(1.2, 1.7), g.uniform(0.07, 0.13)
    fuselage = superquadric(g.uniform(0.5, 0.9), 1.0).scaled(radius, length / 2, radius).turned(0, np.pi / 2)
    span, root = g.uniform(0.5, 0.85), g.uniform(0.25, 0.4)
    wing = _fin(span, root, root * g.uniform(0.3, 0.8), g.uniform(0.0, 0.35), g.uniform(0.0, 0.1), g.uniform(0.02, 0.035))
    shifted = wing.moved(0.0, float(g.uniform(-0.4, 0.4)) * radius, length * g.uniform(-0.05, 0.12))
    small, chord, swept = g.uniform(0.2, 0.32), g.uniform(0.12, 0.2), g.uniform(0.02, 0.12)
    aft = -length * 0.5 + chord * 0.5 + 0.06
    tail = _fin(small, chord, chord * 0.6, swept, 0.02, 0.018).moved(0.0, 0.0, aft)
    upright = _fin(small * g.uniform(0.7, 1.1), chord * 1.2, chord * 0.6, swept, 0.0, 0.02).turned(2, np.pi / 2)
    return (
        fuselage,
        shifted.as_part(1),
        shifted.scaled(-1.0, 1.0, 1.0).as_part(1),
        tail.as_part(2),
        tail.scaled(-1.0, 1.0, 1.0).as_part(2),
        upright.moved(0.0, 0.0, aft).as_part(2),
    )


FAMILIES: dict[str, Family] = {
    "box": Family(make=_box, parts=("box",)),
    "superquadric": Family(make=_superquadric, parts=("superquadric",)),
    "cylinder": Family(make=_cylinder, parts=("cylinder",)),
    "cone": Family(make=_cone, parts=("cone",)),
    "torus": Family(make=_torus, parts=("torus",)),
    "capsule": Family(make=_capsule, parts=("capsule",)),
    "helix": Family(make=_helix, parts=("helix",)),
    "prism": Family(make=_prism, parts=("prism",)),
    "extrusion": Family(make=_extrusion, parts=("extrusion",)),
    "chair": Family(make=_chair, parts=("seat", "back", "legs")),
    "table": Family(make=_table, parts=("top", "legs")),
    "lamp": Family(make=_lamp, parts=("base", "pole", "shade")),
    "mug": Family(make=_mug, parts=("body", "handle")),
    "aircraft": Family(make=_aircraft, parts=("body", "wings", "tail")),
}
"""Name -> family, simple solids first."""
