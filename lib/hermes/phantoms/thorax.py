"""Organs above the diaphragm, in the body coordinates of :mod:`hermes.phantoms.trunk`.

Regions: left/right lung, heart, aorta, trachea, esophagus; the lesions of a PET are here too.
"""

from __future__ import annotations

import numpy as np

from hermes.phantoms.render import Part
from hermes.phantoms.shapes import (
    Shape,
    Vector,
    difference,
    ellipsoid,
    everywhere,
    inset,
    intersection,
    rough,
    tube,
    union,
)
from hermes.phantoms.trunk import Wall

CARINA: Vector = (-4.0, 14.0, 225.0)
"""Where the trachea forks."""


def _lung(wall: Wall, rng: np.random.Generator, sign: float) -> Shape:
    lobe = ellipsoid(
        (sign * 74.0, 8.0, 150.0), (70.0, 102.0, 175.0), (0.0, sign * -6.0, 0.0)
    )  # narrower towards the apex
    medial = everywhere(lambda p: sign * p[0] - 20.0 - 0.10 * np.abs(p[1] - 10.0))
    behind = ellipsoid((0.0, 58.0, 200.0), (34.0, 30.0, 400.0))
    space = intersection(rough(lobe, rng, 1.5, 90.0), inset(wall.cavity, -3.0), medial)
    return difference(space, wall.dome, behind)


def _heart(rng: np.random.Generator) -> tuple[Shape, list[Shape]]:
    size = rng.uniform(0.9, 1.1)
    centre = np.array([22.0, -28.0, 152.0]) + rng.normal(0.0, 3.0, size=3)
    turn = (0.0, 32.0, -38.0)

    def place(x: float, y: float, z: float, radii: Vector) -> Shape:
        spot = centre + size * np.array([x, y, z])
        a, b, c = (size * r for r in radii)
        return ellipsoid((float(spot[0]), float(spot[1]), float(spot[2])), (a, b, c), turn)

    outline = rough(
        union(place(0, 0, 0, (60.0, 44.0, 46.0)), place(-22, 14, 18, (42.0, 40.0, 44.0))), rng, 1.5, 60.0
    )
    chambers = [
        place(16, 6, -2, (33.0, 21.0, 22.0)),
        place(2, -20, -8, (38.0, 13.0, 24.0)),
        place(-38, -4, 12, (17.0, 22.0, 25.0)),
        place(-16, 30, 20, (26.0, 15.0, 20.0)),
    ]
    return outline, chambers


def thorax_parts(wall: Wall, rng: np.random.Generator) -> list[Part]:
    """Lungs with their vessels, mediastinum, heart, great vessels and airways."""
    lungs = {side: _lung(wall, rng, sign) for side, sign in (("left", 1.0), ("right", -1.0))}
    outline, chambers = _heart(rng)
    parts = [Part("lung", shape, f"{side} lung") for side, shape in lungs.items()]
    parts += _lung_vessels(lungs, rng)
    parts += [
        Part("fat", intersection(inset(outline, -4.0), wall.cavity)),
        Part("heart wall", outline, "heart"),
        *(Part("heart blood", intersection(c, inset(outline, 3.0)), "heart") for c in chambers),
    ]
    return [*parts, *_great_vessels(rng), *_tubes(rng)]


def _great_vessels(rng: np.random.Generator) -> list[Part]:
    wide = rng.uniform(12.0, 15.0)
    arch = [
        (-8.0, -24.0, 180.0), (-14.0, -30.0, 222.0), (-6.0, -22.0, 246.0), (10.0, 4.0, 258.0),
        (20.0, 30.0, 246.0), (18.0, 38.0, 215.0), (12.0, 36.0, 150.0), (9.0, 32.0, 100.0),
    ]  # fmt: skip
    upper_cava = [(-30.0, -16.0, 190.0), (-28.0, -14.0, 262.0), (-22.0, -20.0, 320.0)]
    pulmonary = [(-34.0, 6.0, 215.0), (10.0, -6.0, 222.0), (44.0, 14.0, 216.0)]
    calibre = [wide + 2.0, wide + 2.0, wide + 1.0, wide, wide, wide - 1.0, wide - 1.5, wide - 2.0]
    return [
        Part("vein", tube(upper_cava, [9.5, 9.5, 8.0])),
        Part("vein", tube([(-20.0, 0.0, 118.0), (-22.0, -6.0, 140.0)], [12.0, 12.0]), "inferior vena cava"),
        Part("heart blood", tube([(4.0, -34.0, 190.0), (10.0, -8.0, 222.0)], [13.0, 12.0])),
        Part("heart blood", tube(pulmonary, [9.0, 12.0, 9.0])),
        Part("artery", tube([(-4.0, -14.0, 250.0), (-16.0, -2.0, 330.0)], [6.0, 4.5])),
        Part("artery", tube([(14.0, 12.0, 255.0), (26.0, 6.0, 330.0)], [5.0, 4.5])),
        Part("artery", tube(arch, calibre), "aorta"),
    ]


def _tubes(rng: np.random.Generator) -> list[Part]:
    top = (float(rng.normal(0.0, 2.0)), -2.0, 360.0)
    gullet: list[Vector] = [(0.0, 26.0, 350.0), (2.0, 32.0, 230.0), (6.0, 26.0, 150.0), (18.0, 10.0, 96.0)]
    parts = [Part("muscle", tube(gullet, [7.5, 8.0, 8.0, 8.0]), "esophagus")]
    for end, wide in (((-40.0, 16.0, 196.0), 6.5), ((42.0, 20.0, 200.0), 5.5)):
        parts.append(Part("airway", tube([CARINA, end], [wide + 1.0, wide - 1.5])))
    return [
        *parts,
        Part("muscle", tube([top, (CARINA[0], CARINA[1], CARINA[2] + 8.0)], [11.0, 11.0])),
        Part("airway", tube([top, CARINA], [9.0, 9.0]), "trachea"),
    ]


def _lung_vessels(lungs: dict[str, Shape], rng: np.random.Generator) -> list[Part]:
    parts: list[Part] = []
    for side, sign in (("left", 1.0), ("right", -1.0)):
        root = np.array([sign * 34.0, 12.0, 208.0])
        for _ in range(9):
            reach = rng.uniform([25.0, -70.0, -90.0], [85.0, 65.0, 85.0]) * (sign, 1.0, 1.0)
            middle = root + 0.5 * reach + rng.normal(0.0, 7.0, size=3)
            nodes = [root, middle, root + reach]
            twig = middle + 0.5 * reach + rng.normal(0.0, 22.0, size=3)
            for path, radii in ((nodes, [6.0, 3.6, 1.4]), ([middle, twig], [3.0, 1.2])):
                vessel = tube([(float(a), float(b), float(c)) for a, b, c in path], radii)
                parts.append(Part("lung vessel", intersection(vessel, lungs[side]), f"{side} lung"))
    return parts


def lesion_parts(wall: Wall, rng: np.random.Generator, count: int) -> list[Part]:
    """``count`` lesions with uptake: nodules in the lungs, metastases in the liver, lymph nodes, bone."""
    sites: list[tuple[Vector, float]] = [
        ((-80.0, 5.0, 190.0), 28.0), ((80.0, 5.0, 190.0), 28.0), ((-75.0, 5.0, 65.0), 25.0),
        ((0.0, 14.0, 235.0), 15.0), ((0.0, 24.0, -10.0), 20.0), ((0.0, 56.0, 100.0), 12.0),
    ]  # fmt: skip
    parts = []
    for _ in range(count):
        middle, spread = sites[int(rng.integers(len(sites)))]
        spot = np.asarray(middle) + np.clip(rng.normal(size=3), -1.6, 1.6) * spread
        radius = float(rng.uniform(8.0, 20.0))
        ball = ellipsoid((float(spot[0]), float(spot[1]), float(spot[2])), (radius, radius, radius))
        blob = intersection(rough(ball, rng, 0.12 * radius, 2.0 * radius), wall.muscles)
        parts.append(Part("lesion", blob, "lesion"))
    return parts
