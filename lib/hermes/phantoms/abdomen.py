"""Organs below the diaphragm, in the body coordinates of :mod:`hermes.phantoms.trunk`.

Regions (what a drawing protocol may call on): liver, liver vessels, liver tumour, spleen, left/right kidney
(parenchyma), left/right kidney sinus, left/right kidney tumour, stomach, pancreas, gallbladder, aorta,
inferior vena cava, portal vein and splenic vein, duodenum, bladder.
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


def _near(rng: np.random.Generator, centre: Vector, spread_mm: float) -> Vector:
    x, y, z = np.asarray(centre) + np.clip(rng.normal(size=3), -2.0, 2.0) * spread_mm
    return float(x), float(y), float(z)


def _sized(rng: np.random.Generator, radii: Vector, spread: float = 0.08) -> Vector:
    common = np.exp(spread * np.clip(rng.normal(), -2.0, 2.0))
    a, b, c = np.asarray(radii) * common * np.exp(0.5 * spread * np.clip(rng.normal(size=3), -2.0, 2.0))
    return float(a), float(b), float(c)


def _turned(rng: np.random.Generator, degrees: Vector, spread: float = 7.0) -> Vector:
    return _near(rng, degrees, spread)


def vessel_parts(rng: np.random.Generator) -> list[Part]:
    """Abdominal aorta with the iliac arteries, and the inferior vena cava."""
    bend = rng.normal(0.0, 5.0, size=3)
    radius = rng.uniform(9.5, 13.0)
    trunk: list[Vector] = [
        (9.0, 32.0, 150.0),
        (8.0 + bend[0], 27.0, 70.0),
        (7.0 + bend[1], 24.0, 0.0),
        (3.0 + bend[2], 24.0, -85.0),
    ]
    fork = trunk[-1]
    aorta = tube(trunk, [radius + 1.0, radius, radius - 0.5, radius - 1.5])
    cava: list[Vector] = [(-18.0, 24.0, -90.0), (-22.0, 24.0, 0.0), (-22.0, 10.0, 70.0), (-20.0, 0.0, 122.0)]
    wide = rng.uniform(9.5, 13.0)
    parts = [
        Part("vein", tube(cava, [wide, wide, wide + 1.5, wide + 2.0], (1.0, 1.25, 1.0)), "inferior vena cava")
    ]
    for side in (-1.0, 1.0):
        end = (side * 38.0, 12.0, -190.0)
        parts.append(Part("vein", tube([cava[0], (side * 40.0, 22.0, -190.0)], [8.5, 8.0])))
        parts.append(Part("artery", tube([fork, end], [7.0, 6.0])))
    return [*parts, Part("artery", aorta, "aorta")]


def _liver(wall: Wall, rng: np.random.Generator) -> Shape:
    size = np.exp(0.06 * np.clip(rng.normal(), -2.0, 2.0))
    right = ellipsoid(
        _near(rng, (-78.0, 8.0, 42.0), 4.0),
        _sized(rng, (66.0 * size, 78.0 * size, 88.0 * size)),
        _turned(rng, (0.0, 8.0, -8.0)),
    )
    left = ellipsoid(
        _near(rng, (-14.0, -46.0, 66.0), 5.0),
        _sized(rng, (72.0 * size, 36.0, 44.0), 0.12),
        _turned(rng, (0.0, 12.0, -16.0)),
    )
    tilt = rng.uniform(0.35, 0.6)
    underside = rough(
        everywhere(lambda p: (p[2] + 18.0 - tilt * (p[0] + 70.0) + 0.35 * (p[1] - 10.0)) * 0.85),
        rng,
        4.0,
        75.0,
    )
    hilum = ellipsoid(_near(rng, (-18.0, 14.0, 18.0), 3.0), (30.0, 34.0, 36.0), (0.0, 25.0, 0.0))
    back = ellipsoid((0.0, 62.0, 40.0), (48.0, 42.0, 200.0))
    lobes = union(right, left)
    space = intersection(underside, inset(wall.cavity, 2.0), inset(wall.dome, 3.0))
    return difference(intersection(rough(lobes, rng, 2.2, 70.0), space), hilum, back)


def liver_parts(wall: Wall, rng: np.random.Generator, *, tumours: int) -> list[Part]:
    """Liver with portal and hepatic veins and ``tumours`` round lesions."""
    solid = _liver(wall, rng)
    parts = [Part("liver", solid, "liver")]
    inner = inset(solid, 7.0)
    parts += [Part("liver vessel", intersection(v, inner), "liver vessels") for v in _liver_veins(rng)]
    for _ in range(tumours):
        radius = rng.uniform(9.0, 24.0)
        if rng.uniform() < 0.75:
            spot = _near(rng, (-80.0, 5.0, 55.0), 22.0)
        else:
            spot = _near(rng, (-20.0, -50.0, 68.0), 14.0)
        blob = rough(
            ellipsoid(spot, _sized(rng, (radius, radius, radius), 0.15)), rng, 0.1 * radius, 2.2 * radius
        )
        parts.append(Part("liver tumour", intersection(blob, inset(solid, 1.0)), "liver tumour"))
    return parts


def _liver_veins(rng: np.random.Generator) -> list[Shape]:
    porta, cava = (-26.0, 2.0, 34.0), (-21.0, 6.0, 100.0)
    ends = [(-110.0, 25.0, 60.0), (-100.0, -30.0, 40.0), (-95.0, 45.0, 15.0), (15.0, -55.0, 68.0)]
    veins = []
    for end in ends:
        target = _near(rng, end, 8.0)
        middle = _near(rng, tuple(0.55 * a + 0.45 * b for a, b in zip(porta, target, strict=True)), 5.0)  # type: ignore[arg-type]
        veins.append(tube([porta, middle, target], [6.0, 4.2, 1.8]))
    for end in [(-115.0, 20.0, 85.0), (-70.0, -45.0, 75.0), (10.0, -50.0, 85.0)]:
        target = _near(rng, end, 8.0)
        veins.append(tube([cava, target], [5.5, 2.0]))
    return veins


def kidney_parts(wall: Wall, rng: np.random.Generator, side: str, *, tumour: bool) -> list[Part]:
    """One kidney: cortex, pyramids, fat and vessels of the sinus; perhaps a tumour on its surface."""
    sign, height = (1.0, 14.0) if side == "left" else (-1.0, -8.0)
    centre = _near(rng, (sign * 67.0, 42.0, height), 4.0)
    radii = _sized(rng, (30.0, 28.0, 56.0), 0.08)
    turn = _turned(rng, (-12.0, sign * -12.0, sign * 30.0), 5.0)
    inside = inset(wall.cavity, 2.0)
    bean = rough(ellipsoid(centre, radii, turn), rng, 1.0, 45.0)
    dent = ellipsoid((centre[0] - sign * 27.0, centre[1] - 10.0, centre[2]), (15.0, 13.0, 17.0))
    body = intersection(difference(bean, dent), inside)
    sinus_centre = (centre[0] - sign * 10.0, centre[1] - 4.0, centre[2])
    sinus = intersection(
        rough(ellipsoid(sinus_centre, (15.0, 10.0, 26.0), turn), rng, 2.0, 22.0), inset(body, 3.0)
    )
    medulla = inset(rough(ellipsoid(centre, radii, turn), rng, 3.0, 18.0), 9.0)
    name = f"{side} kidney"
    hilum = (centre[0] - sign * 16.0, centre[1] - 7.0, centre[2])
    parts = [
        Part("artery", tube([(7.0, 25.0, height + 8.0), hilum], [3.4, 2.8])),
        Part("vein", tube([(-20.0, 20.0, height), (hilum[0], hilum[1] - 4.0, hilum[2] - 4.0)], [4.5, 4.0])),
        Part("kidney cortex", body, name),
        Part("kidney medulla", intersection(medulla, body), name),
        Part("kidney sinus", sinus, f"{name} sinus"),
    ]
    if tumour:
        radius = rng.uniform(12.0, 26.0)
        bearing = rng.uniform(-0.8, 0.8)
        spot = (centre[0] + sign * 0.75 * radii[0], centre[1] + 6.0, centre[2] + bearing * radii[2])
        blob = rough(ellipsoid(spot, (radius, radius, radius)), rng, 0.1 * radius, 2.0 * radius)
        parts.append(Part("kidney tumour", intersection(blob, inside), f"{name} tumour"))
    return parts


def spleen_parts(wall: Wall, rng: np.random.Generator) -> list[Part]:
    """A bean below the left dome, hollowed where the stomach leans on it."""
    centre = _near(rng, (103.0, 32.0, 62.0), 4.0)
    bean = ellipsoid(centre, _sized(rng, (33.0, 52.0, 52.0), 0.12), _turned(rng, (-10.0, 18.0, 20.0)))
    hollow = ellipsoid((centre[0] - 46.0, centre[1] - 16.0, centre[2] - 6.0), (32.0, 40.0, 52.0))
    solid = difference(
        intersection(rough(bean, rng, 2.0, 50.0), inset(wall.cavity, 1.5), inset(wall.dome, 2.5)), hollow
    )
    return [Part("spleen", solid, "spleen")]


def stomach_parts(wall: Wall, rng: np.random.Generator) -> list[Part]:
    """Fundus to antrum; fluid below, gas in front, sometimes food."""
    fill = rng.uniform(0.75, 1.15)
    path = [
        _near(rng, (62.0, 2.0, 84.0), 3.0), _near(rng, (66.0, -22.0, 50.0), 4.0),
        _near(rng, (48.0, -52.0, 8.0), 5.0), _near(rng, (4.0, -56.0, -6.0), 5.0), (-22.0, -38.0, 8.0),
    ]  # fmt: skip
    radii = [30.0 * fill, 29.0 * fill, 22.0 * fill, 17.0 * fill, 9.0]
    bag = intersection(
        rough(tube(path, radii), rng, 1.8, 60.0), inset(wall.cavity, 3.0), inset(wall.dome, 4.0)
    )
    lumen = inset(bag, 4.5)
    level = float(rng.uniform(-62.0, -30.0))
    gas = intersection(lumen, everywhere(lambda p: level - p[1]))
    content = "stomach content" if rng.uniform() < 0.75 else "bowel wall"
    return [
        Part("stomach wall", bag, "stomach"),
        Part(content, lumen, "stomach"),
        Part("gas", gas, "stomach"),
    ]


def pancreas_parts(wall: Wall, rng: np.random.Generator) -> list[Part]:
    """Pancreas with the splenic vein behind it and the duodenum around its head."""
    shift = rng.normal(0.0, 3.0, size=3)
    nodes = [
        (-30.0, 2.0, -14.0),
        (-18.0, -8.0, 12.0),
        (12.0, -14.0, 20.0),
        (48.0, 4.0, 32.0),
        (80.0, 24.0, 46.0),
    ]
    path = [_near(rng, (x + shift[0], y + shift[1], z + shift[2]), 2.0) for x, y, z in nodes]
    gland = rough(tube(path, [13.0, 13.0, 9.0, 11.0, 8.0]), rng, 1.6, 22.0)
    behind = [(x, y + 12.0, z + 1.0) for x, y, z in path[1:]]
    head = path[0]
    loop = [
        (head[0] + 4.0, head[1] - 34.0, 16.0), (head[0] - 22.0, head[1] - 6.0, 6.0),
        (head[0] - 20.0, head[1] + 8.0, -38.0), (4.0, 0.0, -46.0),
    ]  # fmt: skip
    gut = rough(tube(loop, [11.0, 11.0, 11.0, 9.0]), rng, 1.5, 25.0)
    inside = inset(wall.cavity, 3.0)
    return [
        Part("bowel wall", intersection(gut, inside), "duodenum"),
        Part("bowel content", intersection(inset(gut, 4.0), inside), "duodenum"),
        Part(
            "vein",
            tube([(-26.0, 2.0, 36.0), *behind], [5.5, 5.5, 4.5, 4.5, 3.5]),
            "portal vein and splenic vein",
        ),
        Part("pancreas", intersection(gland, inside), "pancreas"),
    ]


def gallbladder_parts(rng: np.random.Generator) -> list[Part]:
    """A pear under the right lobe."""
    neck = _near(rng, (-42.0, -12.0, 18.0), 3.0)
    fundus = _near(rng, (-58.0, -46.0, -16.0), 4.0)
    size = rng.uniform(0.8, 1.25)
    return [
        Part(
            "gallbladder",
            rough(tube([neck, fundus], [6.0 * size, 15.0 * size]), rng, 0.6, 40.0),
            "gallbladder",
        )
    ]


def bowel_parts(wall: Wall, rng: np.random.Generator) -> list[Part]:
    """Colon as a frame with stool and gas, loops of small bowel inside it."""
    inside = inset(wall.cavity, 3.0)
    right, left = (-112.0, 10.0), (114.0, 22.0)
    sweep = [
        (right[0], right[1], -150.0), (right[0], right[1], -45.0), (-80.0, -50.0, -30.0), (0.0, -72.0, -44.0),
        (70.0, -62.0, -8.0), (left[0] - 6.0, 0.0, 10.0),
        (left[0], left[1], -30.0), (left[0] - 4.0, left[1], -150.0),
    ]  # fmt: skip
    path = [_near(rng, node, 6.0) for node in sweep]
    colon = intersection(
        rough(tube(path, [24.0, 22.0, 17.0, 17.0, 17.0, 15.0, 14.0, 14.0]), rng, 3.0, 28.0), inside
    )
    parts: list[Part] = []
    for _ in range(26):
        start = np.array([rng.uniform(-85, 85), rng.uniform(-72, 14), rng.uniform(-180, -34)])
        steps = rng.normal(0.0, 24.0, size=(2, 3)).cumsum(axis=0) * (1.0, 0.8, 0.6)
        nodes = [start, *(start + step for step in steps)]
        loop = tube([(float(a), float(b), float(c)) for a, b, c in nodes], [rng.uniform(9.5, 15.0)] * 3)
        gut = intersection(rough(loop, rng, 1.2, 24.0), inside)
        parts += [Part("bowel wall", gut), Part("bowel content", inset(gut, 3.5))]
        if rng.uniform() < 0.25:
            parts.append(Part("gas", inset(gut, 5.5)))
    gas = everywhere(lambda p: -38.0 - p[1])
    return [
        *parts,
        Part("bowel wall", colon),
        Part("stool", inset(colon, 3.0)),
        Part("gas", intersection(inset(rough(colon, rng, 3.0, 20.0), 6.0), gas)),
    ]


def bladder_parts(rng: np.random.Generator) -> list[Part]:
    """The urinary bladder, more or less full."""
    fill = rng.uniform(0.7, 1.15)
    solid = rough(ellipsoid((0.0, -32.0, -205.0), (40.0 * fill, 34.0 * fill, 32.0 * fill)), rng, 1.0, 60.0)
    return [Part("bladder wall", solid, "bladder"), Part("bladder", inset(solid, 4.0), "bladder")]
