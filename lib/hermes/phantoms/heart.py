"""A beating heart for cine MR, in the frame of its short axis.

Coordinates in mm: origin in the middle of the left ventricle, z from apex to base, x and y in the short-axis
plane, the right ventricle at negative x. Regions: left ventricle (cavity with the papillary muscles),
myocardium, right ventricle.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from hermes.phantoms.render import Part
from hermes.phantoms.shapes import (
    Depth,
    Points,
    Shape,
    difference,
    ellipsoid,
    everywhere,
    inset,
    intersection,
    rough,
    tube,
    union,
)


@dataclass(frozen=True)
class HeartSize:
    """End-diastolic sizes in mm and how far the heart contracts (0..1)."""

    cavity_mm: float
    wall_mm: float
    half_length_mm: float
    ejection: float

    @staticmethod
    def draw(rng: np.random.Generator) -> HeartSize:
        """A heart between athletic, normal, dilated and hypertrophic."""
        return HeartSize(
            cavity_mm=float(np.clip(rng.normal(25.0, 3.0), 18.0, 33.0)),
            wall_mm=float(np.clip(rng.normal(9.0, 1.6), 6.0, 14.0)),
            half_length_mm=float(rng.uniform(40.0, 48.0)),
            ejection=float(rng.uniform(0.18, 0.38)),
        )


def _cone(radius: float, half_length: float, centre: tuple[float, float]) -> Shape:
    """A bullet: round at the apex, open towards the base, where the slices end."""
    x, y = centre

    def depth(points: Points) -> Depth:
        above = np.clip((half_length - points[2]) / (2.0 * half_length), 0.0, None)
        reach = (
            radius * np.sqrt(np.clip(1.0 - above**2.6, 0.0, None))
            - 4.0 * np.clip(above - 1.0, 0.0, None) * 9.0
        )
        across = np.sqrt((points[0] - x) ** 2 + (points[1] - y) ** 2)
        return np.asarray(np.minimum(reach - across, half_length + 6.0 - points[2]))

    room = radius + 2.0
    return Shape((x - room, y - room, -half_length - 12.0), (x + room, y + room, half_length + 8.0), depth)


def heart_parts(rng: np.random.Generator, size: HeartSize, contraction: float) -> list[Part]:
    """The chest around the heart and the ventricles.

    Args:
        rng: draws the chest and the details; the same state gives the same patient in every phase.
        size: the heart.
        contraction: 0 at end-diastole, 1 at end-systole.
    """
    squeeze = size.ejection * contraction
    cavity = size.cavity_mm * (1.0 - squeeze)
    # The wall keeps its cross-section area while the cavity shrinks, so it thickens.
    outer = float(np.sqrt((size.cavity_mm + size.wall_mm) ** 2 - size.cavity_mm**2 + cavity**2))
    half = size.half_length_mm * (1.0 - 0.25 * squeeze)
    inside = rough(_cone(cavity, half - 6.0, (0.0, 0.0)), rng, 0.9, 40.0)
    muscle = rough(_cone(outer, half + 4.0, (0.0, 0.0)), rng, 0.7, 50.0)
    right = _right_ventricle(rng, outer, half, squeeze)
    right_wall = inset(right, -3.5)
    parts = _chest(rng)
    parts += [
        Part("fat", inset(union(muscle, right_wall), -3.5)),
        Part("myocardium", right_wall),
        Part("right blood", right, "right ventricle"),
        Part("myocardium", muscle, "myocardium"),
        Part("blood", inside, "left ventricle"),
    ]
    for angle in (0.9, 2.9):
        turn = angle + rng.normal(0.0, 0.15)
        spot = 0.62 * cavity
        x, y = spot * np.cos(turn), spot * np.sin(turn)
        path = [(x, y, -0.45 * half), (x, y, 0.25 * half)]
        column = intersection(tube(path, [4.2, 3.2]), inside)
        parts.append(Part("papillary", column, "left ventricle"))
    return parts


def _right_ventricle(rng: np.random.Generator, outer: float, half: float, squeeze: float) -> Shape:
    wide = rng.uniform(30.0, 38.0) * (1.0 - 0.8 * squeeze)
    lift = rng.uniform(-8.0, 2.0)
    pouch = ellipsoid((-0.72 * outer - 6.0, lift, 8.0), (wide, 1.12 * outer, 1.02 * half), (0.0, 8.0, 12.0))
    base = everywhere(lambda p: half + 4.0 - p[2])
    septum = _cone(outer, half + 4.0, (0.0, 0.0))
    return difference(intersection(rough(pouch, rng, 1.6, 40.0), base), septum)


def _chest(rng: np.random.Generator) -> list[Part]:
    tilt = rng.uniform(-0.2, 0.2)
    front = rng.uniform(58.0, 70.0)
    outline = everywhere(lambda p: 205.0 - np.sqrt((p[0] - 20.0) ** 2 + (p[1] - 110.0) ** 2))
    inner = everywhere(lambda p: front + 108.0 - np.sqrt((p[0] - 10.0 * tilt) ** 2 + (p[1] - 108.0) ** 2))
    liver = ellipsoid((-70.0, 95.0, -10.0), (75.0, 55.0, 90.0), (0.0, 0.0, 20.0))
    spine = ellipsoid((30.0, 150.0, 0.0), (26.0, 26.0, 300.0))
    aorta = ellipsoid((34.0, 92.0, 0.0), (11.0, 11.0, 300.0))
    pericardial = ellipsoid((-24.0, -16.0, 0.0), (60.0, 36.0, 62.0))
    return [
        Part("fat", outline),
        Part("muscle", inset(outline, 14.0)),
        Part("lung", inner),
        Part("liver", intersection(rough(liver, rng, 2.0, 60.0), inner)),
        Part("muscle", spine),
        Part("fat", intersection(rough(pericardial, rng, 3.0, 50.0), inner)),
        Part("vessel", aorta),
    ]
