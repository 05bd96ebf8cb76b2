"""A head for T1-weighted MR: scalp, skull, folded cortex, white matter, ventricles, cerebellum.

Body coordinates in mm: origin in the middle of the brain, x to the left, y to posterior, z to superior.
Regions: grey matter, white matter, cerebrospinal fluid.
"""

from __future__ import annotations

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
    waves,
)

_GREY, _WHITE, _FLUID = "grey matter", "white matter", "cerebrospinal fluid"


def head_parts(rng: np.random.Generator, *, stripped: bool) -> list[Part]:
    """A head; ``stripped`` leaves out everything outside the brain, as after skull stripping."""
    a, b, c = np.array([66.0, 84.0, 62.0]) * np.exp(0.04 * np.clip(rng.normal(size=3), -2.0, 2.0))
    skull_space = rough(
        union(
            ellipsoid((0.0, 0.0, 6.0), (a + 3.0, b + 3.0, c + 3.0)),
            ellipsoid((0.0, 46.0, -34.0), (52.0, 36.0, 34.0)),
        ),
        rng,
        1.2,
        70.0,
    )
    parts = [] if stripped else _outside(skull_space)
    parts.append(Part(_FLUID, inset(skull_space, 2.0), _FLUID))
    return [*parts, *_cerebrum(rng, (a, b, c), skull_space), *_deep(rng), *_hindbrain(rng)]


def _outside(skull_space: Shape) -> list[Part]:
    face = ellipsoid((0.0, -34.0, -62.0), (58.0, 62.0, 62.0), (-12.0, 0.0, 0.0))
    neck = tube([(0.0, 38.0, -50.0), (0.0, 34.0, -170.0)], [54.0, 56.0])
    parts = [
        Part("scalp", union(inset(skull_space, -13.0), face, neck)),
        Part("muscle", union(inset(face, 6.0), inset(neck, 8.0))),
        Part(
            "airway", tube([(0.0, -58.0, -60.0), (0.0, -10.0, -62.0), (0.0, -2.0, -140.0)], [11.0, 12.0, 8.0])
        ),
        Part("skull", inset(skull_space, -7.0)),
        Part("marrow", difference(inset(skull_space, -5.0), inset(skull_space, -2.5))),
        Part("skull", inset(skull_space, -1.5)),
    ]
    for side in (-1.0, 1.0):
        parts.append(Part("eye", ellipsoid((side * 32.0, -80.0, -30.0), (12.5, 12.5, 12.5))))
    return parts


def _cerebrum(rng: np.random.Generator, size: tuple[float, float, float], skull_space: Shape) -> list[Part]:
    folds = waves(rng, 30.0, count=9)
    a, b, c = size
    bulk = [ellipsoid((0.0, 0.0, 8.0), (a, b - 1.0, c - 1.0))]
    bulk += [
        ellipsoid((s * 40.0, -16.0, -22.0), (22.0, 42.0, 22.0), (8.0, 0.0, s * 10.0)) for s in (-1.0, 1.0)
    ]
    below = everywhere(lambda p: p[2] + 31.0 - 0.15 * p[1])
    hull = intersection(union(intersection(bulk[0], below), *bulk[1:]), inset(skull_space, 3.0))
    thickness = rng.uniform(4.8, 5.8)
    atrophy = rng.uniform(0.3, 1.8)

    def pia(points: Points) -> Depth:
        # Sulci run where the folding function changes its sign: a labyrinth of narrow valleys.
        valley = np.clip(1.0 - np.abs(folds(points)) / (0.2 + 0.06 * atrophy), 0.0, 1.0)
        outside = np.abs(points[0]) - 0.5 - 0.6 * atrophy
        crossing = (points[2] < 20.0) & (np.abs(points[1] + 2.0) < 44.0)
        midline = np.where(crossing, 50.0, outside)
        return np.asarray(np.minimum(hull.depth(points) - atrophy - 14.0 * valley, midline))

    def white(points: Points) -> Depth:
        # Gyri have a core of white matter; under a sulcus it ends deeper.
        valley = np.clip(1.0 - np.abs(folds(points)) / 0.75, 0.0, 1.0)
        midline = np.where(
            (points[2] < 20.0) & (np.abs(points[1] + 2.0) < 40.0), 50.0, np.abs(points[0]) - 5.0
        )
        return np.asarray(np.minimum(hull.depth(points) - atrophy - thickness - 17.0 * valley, midline))

    cortex = Shape(hull.low, hull.high, pia)
    core = intersection(Shape(hull.low, hull.high, white), inset(cortex, 1.5))
    return [Part(_GREY, cortex, _GREY), Part(_WHITE, core, _WHITE)]


def _deep(rng: np.random.Generator) -> list[Part]:
    wide = rng.uniform(0.75, 1.5)
    parts = [
        Part(_WHITE, ellipsoid((0.0, -2.0, 8.0), (26.0, 50.0, 20.0)), _WHITE),
    ]
    for side in (-1.0, 1.0):
        grey = [
            ellipsoid((side * 12.0, 8.0, 4.0), (9.0, 15.0, 9.5), (0.0, 0.0, side * -20.0)),
            ellipsoid((side * 25.0, -8.0, 3.0), (7.0, 18.0, 10.5), (0.0, 0.0, side * -12.0)),
            ellipsoid((side * 13.0, -24.0, 11.0), (6.0, 12.0, 9.0)),
            ellipsoid((side * 27.0, 10.0, -18.0), (7.0, 19.0, 6.0), (10.0, 0.0, side * 18.0)),
        ]
        parts += [Part("deep grey matter", rough(shape, rng, 0.7, 25.0), _GREY) for shape in grey]
        horn = [
            (side * 9.0, -34.0, 12.0), (side * 8.0, -12.0, 20.0), (side * 11.0, 14.0, 20.0),
            (side * 22.0, 34.0, 8.0), (side * 20.0, 50.0, 4.0),
        ]  # fmt: skip
        parts.append(
            Part(_FLUID, tube(horn, [4.6 * wide, 4.4 * wide, 5.4 * wide, 5.8 * wide, 2.5 * wide]), _FLUID)
        )
    parts.append(Part(_FLUID, ellipsoid((0.0, 4.0, 2.0), (2.0 * wide, 14.0, 11.0)), _FLUID))
    return parts


def _hindbrain(rng: np.random.Generator) -> list[Part]:
    lobe = union(*(ellipsoid((s * 22.0, 46.0, -40.0), (28.0, 27.0, 22.0)) for s in (-1.0, 1.0)))
    lobe = rough(lobe, rng, 1.0, 30.0)
    leaves = everywhere(lambda p: 2.2 * np.cos(2.0 * np.pi * (p[2] + 0.5 * p[1]) / 9.0))
    inner = inset(lobe, 6.0)
    core = Shape(inner.low, inner.high, lambda p: inner.depth(p) + leaves.depth(p))
    stem = tube([(0.0, 8.0, -12.0), (0.0, 12.0, -36.0), (0.0, 24.0, -86.0)], [14.0, 14.5, 8.0])
    return [
        Part(_GREY, lobe, _GREY),
        Part(_WHITE, core, _WHITE),
        Part(_WHITE, rough(stem, rng, 0.8, 30.0), _WHITE),
        Part(_FLUID, ellipsoid((0.0, 27.0, -38.0), (6.0, 4.0, 9.0)), _FLUID),
    ]
