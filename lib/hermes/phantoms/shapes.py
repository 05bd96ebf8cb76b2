"""Smooth solids given by how deep a point lies inside them.

A point array has the shape ``(3, ...)`` and holds anatomical coordinates in mm: x to the patient's left, y to
posterior, z to superior; further rows may hold depths worked out beforehand (see :func:`remembered`).
``depth`` answers in mm, positive inside, zero on the surface, and is close to a true distance near the
surface: the renderer turns it into partial volume there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Points = NDArray[np.float64]
Depth = NDArray[np.float64]
Vector = tuple[float, float, float]

EVERYWHERE_MM = 1e4
"""Half side of the box of a solid without bounds; larger than any body."""


@dataclass(frozen=True)
class Shape:
    """A solid: an enclosing box in mm and its depth function.

    Attributes:
        low: corner of the box with the smallest x, y, z.
        high: the opposite corner.
        depth: ``(3, ...)`` points -> ``(...)`` depth in mm.
    """

    low: Vector
    high: Vector
    depth: Callable[[Points], Depth]


def rotation(degrees: Sequence[float] | NDArray[np.float64]) -> NDArray[np.float64]:
    """The (3, 3) rotation by ``degrees`` about x, then y, then z."""
    matrix = np.eye(3)
    for axis, angle in enumerate(np.deg2rad(np.asarray(degrees, dtype=np.float64))):
        i, j = [(1, 2), (2, 0), (0, 1)][axis]
        turn = np.eye(3)
        turn[i, i] = turn[j, j] = np.cos(angle)
        turn[i, j], turn[j, i] = -np.sin(angle), np.sin(angle)
        matrix = turn @ matrix
    return matrix


def _vector(values: NDArray[np.float64]) -> Vector:
    return float(values[0]), float(values[1]), float(values[2])


def everywhere(depth: Callable[[Points], Depth]) -> Shape:
    """A solid without bounds; intersect it with one that has some."""
    return Shape((-EVERYWHERE_MM,) * 3, (EVERYWHERE_MM,) * 3, depth)


def remembered(row: int) -> Shape:
    """The solid whose depth is row ``row`` of the point array: worked out once, used by many."""
    return everywhere(lambda points: points[row].copy())


def ellipsoid(centre: Vector, radii: Vector, degrees: Vector = (0.0, 0.0, 0.0)) -> Shape:
    """An ellipsoid with semi-axes ``radii`` in mm, turned by ``degrees`` about its centre."""
    turn = rotation(degrees)
    middle, axes = np.asarray(centre), np.asarray(radii)
    reach = np.sqrt(((turn * axes) ** 2).sum(axis=1))

    def depth(points: Points) -> Depth:
        local = [sum(turn[i, axis] * (points[i] - middle[i]) for i in range(3)) for axis in range(3)]
        level = np.sqrt(sum((local[i] / axes[i]) ** 2 for i in range(3)))
        slope = np.sqrt(sum((local[i] / axes[i] ** 2) ** 2 for i in range(3)))
        # First-order distance to the surface; the centre, where the slope vanishes, is merely deep.
        return np.asarray(level * (1.0 - level) / np.maximum(slope, 1e-9) + axes.min() * (level < 1e-6))

    return Shape(_vector(middle - reach), _vector(middle + reach), depth)


def tube(path: Sequence[Vector], radii: Sequence[float], flatten: Vector = (1.0, 1.0, 1.0)) -> Shape:
    """A chain of tapered capsules through ``path``; ``flatten`` > 1 makes it thinner along that axis."""
    scale = np.asarray(flatten)
    nodes = np.asarray(path, dtype=np.float64) * scale
    widest = max(radii) / scale

    def depth(points: Points) -> Depth:
        best: Depth | None = None
        for start, stop, first, last in zip(nodes[:-1], nodes[1:], radii[:-1], radii[1:], strict=True):
            way = stop - start
            offset = [points[i] * scale[i] - start[i] for i in range(3)]
            along = np.clip(
                sum(offset[i] * way[i] for i in range(3)) / max(float(way @ way), 1e-12), 0.0, 1.0
            )
            gap = np.sqrt(sum((offset[i] - along * way[i]) ** 2 for i in range(3)))
            here = first + (last - first) * along - gap
            best = here if best is None else np.maximum(best, here)
        return np.asarray(best)

    corners = nodes / scale
    return Shape(_vector(corners.min(axis=0) - widest), _vector(corners.max(axis=0) + widest), depth)


def union(*shapes: Shape) -> Shape:
    """What lies in any of the solids."""
    return Shape(
        _vector(np.min([s.low for s in shapes], axis=0)),
        _vector(np.max([s.high for s in shapes], axis=0)),
        lambda p: np.asarray(np.maximum.reduce([s.depth(p) for s in shapes])),
    )


def intersection(*shapes: Shape) -> Shape:
    """What lies in all of the solids."""
    return Shape(
        _vector(np.max([s.low for s in shapes], axis=0)),
        _vector(np.min([s.high for s in shapes], axis=0)),
        lambda p: np.asarray(np.minimum.reduce([s.depth(p) for s in shapes])),
    )


def difference(shape: Shape, *removed: Shape) -> Shape:
    """What lies in ``shape`` and in none of ``removed``."""
    return Shape(
        shape.low,
        shape.high,
        lambda p: np.asarray(np.minimum.reduce([shape.depth(p), *(-r.depth(p) for r in removed)])),
    )


def inset(shape: Shape, distance_mm: float) -> Shape:
    """``shape`` shrunk by ``distance_mm`` (grown where negative)."""
    low = np.asarray(shape.low) + min(distance_mm, 0.0)
    high = np.asarray(shape.high) - min(distance_mm, 0.0)
    return Shape(_vector(low), _vector(high), lambda p: shape.depth(p) - distance_mm)


def waves(
    rng: np.random.Generator, wavelength_mm: float, count: int = 4
) -> Callable[[Points], NDArray[np.float64]]:
    """A smooth random function of space: ``count`` plane waves, about standard deviation 1."""
    directions = rng.normal(size=(count, 3))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    numbers = 2.0 * np.pi / (wavelength_mm * rng.uniform(0.75, 1.5, size=(count, 1)))
    vectors = directions * numbers
    phases = rng.uniform(0.0, 2.0 * np.pi, size=count)
    gain = np.sqrt(2.0 / count)

    def value(points: Points) -> NDArray[np.float64]:
        total = np.zeros(points.shape[1:])
        for vector, phase in zip(vectors, phases, strict=True):
            total += np.sin(vector[0] * points[0] + vector[1] * points[1] + vector[2] * points[2] + phase)
        return np.asarray(total * gain)

    return value


def rough(shape: Shape, rng: np.random.Generator, amplitude_mm: float, wavelength_mm: float) -> Shape:
    """``shape`` with a surface that undulates by about ``amplitude_mm``."""
    field = waves(rng, wavelength_mm, count=3)
    room = 2.5 * amplitude_mm
    low, high = np.asarray(shape.low) - room, np.asarray(shape.high) + room

    def depth(points: Points) -> Depth:
        result = shape.depth(points)
        # Only the surface matters, and the waves are the dear part: they fade out away from it.
        fade = 2.0 - np.abs(result) / room
        near = fade > 0.0
        result[near] += amplitude_mm * np.minimum(fade[near], 1.0) * field(points[:, near])
        return result

    return Shape(_vector(low), _vector(high), depth)
