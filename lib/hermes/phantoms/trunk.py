"""The trunk without its organs: outline, fat, muscles, skeleton and the cavity that the organs lie in.

Body coordinates in mm: origin in the middle of the body at the second lumbar vertebra, x to the patient's
left, y to posterior, z to superior.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from hermes.phantoms.render import Part
from hermes.phantoms.shapes import (
    Depth,
    Points,
    Shape,
    Vector,
    difference,
    ellipsoid,
    everywhere,
    inset,
    intersection,
    remembered,
    rough,
    tube,
    union,
)

SPINE_Y_MM = 56.0
"""Depth of the middle of the vertebral bodies."""
VERTEBRA_PERIOD_MM = 34.0
SKIN_ROW = 3
"""Row of the point array that holds the depth below the skin, which every other part hangs on."""
RIB_PERIOD_MM = 28.0
LOWEST_RIB_MM = 22.0


@dataclass(frozen=True)
class Wall:
    """The outline of one trunk.

    Attributes:
        skin: depth below the skin; evaluated once per case into row :data:`SKIN_ROW` of the points.
        body: everything inside the skin.
        muscles: inside the subcutaneous fat.
        cavity: inside the muscular wall, where organs are.
        dome: what lies below the diaphragm.
    """

    skin: Shape
    body: Shape
    muscles: Shape
    cavity: Shape
    dome: Shape


def draw_wall(rng: np.random.Generator) -> Wall:
    """A random trunk: width, depth, thickness of the fat, height of the diaphragm."""
    half_width, half_depth = rng.normal(165.0, 7.0), rng.normal(109.0, 5.0)
    fat = rng.uniform(8.0, 24.0)
    half_width, half_depth = half_width + 0.5 * (fat - 14.0), half_depth + 0.5 * (fat - 14.0)
    power = rng.uniform(2.2, 2.7)

    def skin(points: Points) -> Depth:
        x, y, z = points[:3]
        waist = 1.0 - 0.06 * np.exp(-(((z + 25.0) / 60.0) ** 2))
        shoulder = np.clip((z - 250.0) / 120.0, 0.0, 1.0)
        wide = half_width * waist * (1.0 - 0.3 * shoulder**2)
        deep = half_depth * (1.0 - 0.25 * shoulder)
        # The back has a groove along the spine; the belly is rounder than the back.
        groove = 6.0 * np.exp(-((x / 22.0) ** 2)) * (y > 0)
        level = ((np.abs(x) / wide) ** power + (np.abs(y + 0.35 * groove) / deep) ** power) ** (1.0 / power)
        radius = np.sqrt(x**2 + y**2)
        near_axis = np.maximum(level, 0.05)
        return np.asarray(np.minimum(radius * (1.0 / near_axis - 1.0), half_depth) - groove)

    def under_fat(points: Points) -> Depth:
        thickness = fat * (1.0 + 0.35 * np.clip(points[1] / half_depth, -1.0, 1.0))
        return np.asarray(points[SKIN_ROW] - thickness * (1.0 - 0.4 * np.clip(points[2] / 200.0, 0.0, 1.0)))

    def inside_wall(points: Points) -> Depth:
        back = 6.0 * np.clip(points[1] / half_depth, 0.0, 1.0)
        return np.asarray(np.minimum(under_fat(points) - 12.0 - back, 80.0 - points[1]))

    body = rough(remembered(SKIN_ROW), rng, 1.5, 130.0)
    cavity = everywhere(inside_wall)
    return Wall(everywhere(skin), body, everywhere(under_fat), cavity, _dome(rng, half_width / 165.0))


def _dome(rng: np.random.Generator, width: float) -> Shape:
    right, left = rng.normal(122.0, 6.0), rng.normal(108.0, 6.0)
    return union(
        ellipsoid((-76.0 * width, 6.0, right - 170.0), (90.0, 118.0, 170.0)),
        ellipsoid((78.0 * width, 8.0, left - 170.0), (88.0, 116.0, 170.0)),
        ellipsoid((0.0, -8.0, 0.5 * (left + right) - 190.0), (100.0, 105.0, 180.0)),
    )


def wall_parts(wall: Wall) -> list[Part]:
    """Skin to peritoneum, with the ribs in the muscles."""
    under_fat = wall.muscles

    def rib_depth(points: Points) -> Depth:
        x, y, z = points[:3]
        course = z - 0.38 * y
        inside = under_fat.depth(points)
        sheet = 3.6 - np.abs(inside - 6.5)
        phase = np.mod(course, RIB_PERIOD_MM) - 0.5 * RIB_PERIOD_MM
        band = 5.5 - np.abs(phase)
        front = np.maximum(30.0 - np.abs(x), 0.0) * (y < 0)
        return np.asarray(np.minimum.reduce([sheet, band, course - LOWEST_RIB_MM - front, np.abs(x) - 26.0]))

    def sternum_depth(points: Points) -> Depth:
        sheet = 6.0 - np.abs(under_fat.depth(points) - 8.0)
        return np.asarray(np.minimum.reduce([sheet, 18.0 - np.abs(points[0]), -points[1], points[2] - 120.0]))

    sternum = everywhere(sternum_depth)
    return [
        Part("fat", wall.body),
        Part("muscle", wall.muscles),
        Part("visceral fat", wall.cavity),
        Part("bone", everywhere(rib_depth)),
        Part("bone", sternum),
        Part("marrow", inset(sternum, 2.5)),
    ]


def _ladder(shape: Shape, half_height_mm: float) -> Shape:
    """``shape`` cut to one slab per vertebra, ``half_height_mm`` up and down from its middle."""

    def depth(points: Points) -> Depth:
        phase = np.mod(points[2], VERTEBRA_PERIOD_MM) - 0.5 * VERTEBRA_PERIOD_MM
        return np.asarray(np.minimum(shape.depth(points), half_height_mm - np.abs(phase)))

    return Shape(shape.low, shape.high, depth)


def _column(offset: Vector, radius: float, flatten: Vector) -> Shape:
    x, y, _ = offset
    return tube([(x, y, -260.0), (x, y, 420.0)], [radius, radius], flatten)


def spine_parts(rng: np.random.Generator) -> list[Part]:
    """Vertebral bodies with a marrow core, discs, arches, the canal with the cord, muscles beside them."""
    wide = rng.normal(23.0, 1.0)
    bodies = _column((0.0, SPINE_Y_MM, 0.0), wide, (1.0, 1.28, 1.0))
    y = SPINE_Y_MM + 29.0
    arch = ellipsoid((0.0, y, 80.0), (16.0, 15.0, 600.0))
    ridge = tube([(0.0, y + 8.0, -260.0), (0.0, y + 8.0, 420.0)], [15.0, 15.0], (4.2, 1.0, 1.0))
    wings = tube([(-34.0, y - 5.0, 80.0), (34.0, y - 5.0, 80.0)], [340.0, 340.0], (1.0, 75.0, 1.0))
    beam = intersection(wings, everywhere(lambda p: 38.0 - np.abs(p[0])))
    parts: list[Part] = []
    for side in (-1.0, 1.0):
        lumbar = [(side * 33.0, 80.0, -240.0), (side * 33.0, 80.0, 60.0), (side * 26.0, 86.0, 300.0)]
        parts.append(Part("muscle", rough(tube(lumbar, [26.0, 25.0, 15.0], (1.0, 1.3, 1.0)), rng, 1.0, 60.0)))
        psoas = [(side * 30.0, 54.0, 25.0), (side * 42.0, 50.0, -50.0), (side * 60.0, 25.0, -190.0)]
        parts.append(Part("muscle", rough(tube(psoas, [5.0, 21.0, 26.0]), rng, 1.2, 60.0)))
    return [
        *parts,
        Part("disc", bodies),
        Part("bone", _ladder(bodies, 12.5)),
        Part("marrow", _ladder(inset(bodies, 2.5), 10.0)),
        Part("bone", _ladder(union(arch, ridge), 11.0)),
        Part("bone", _ladder(beam, 5.0)),
        Part("canal", ellipsoid((0.0, y - 2.0, 80.0), (9.5, 8.5, 600.0)), "spinal canal"),
        Part("cord", ellipsoid((0.0, y - 2.0, 230.0), (5.5, 4.6, 270.0)), "spinal cord"),
    ]


def pelvis_parts(wall: Wall, rng: np.random.Generator) -> list[Part]:
    """Iliac wings and sacrum with the gluteal muscles around them."""
    parts: list[Part] = []
    for side in (-1.0, 1.0):
        centre = (side * 64.0, 4.0, -185.0)
        turn = (12.0, side * 14.0, side * -18.0)
        outer = intersection(ellipsoid(centre, (68.0, 82.0, 92.0), turn), inset(wall.muscles, 2.0))
        shell = difference(outer, ellipsoid(centre, (60.0, 74.0, 84.0), turn))
        behind = everywhere(lambda p, s=side: np.minimum(s * p[0] - 34.0, p[1] + 25.0))  # type: ignore[misc]
        wing = intersection(rough(shell, rng, 0.8, 50.0), behind)
        parts += [Part("bone", wing), Part("marrow", inset(wing, 2.2))]
    sacrum = ellipsoid((0.0, 66.0, -150.0), (48.0, 26.0, 48.0), (-20.0, 0.0, 0.0))
    return [*parts, Part("bone", sacrum), Part("marrow", inset(sacrum, 3.0))]


def table_part(rng: np.random.Generator) -> Part:
    """The couch under the patient, a hollow curved plate."""
    height = rng.uniform(124.0, 132.0)

    def depth(points: Points) -> Depth:
        bow = points[1] - height + 0.0012 * points[0] ** 2
        return np.asarray(np.minimum(2.6 - np.abs(bow), 190.0 - np.abs(points[0])))

    return Part("table", everywhere(depth))
