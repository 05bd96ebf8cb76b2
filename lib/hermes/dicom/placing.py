"""Bringing the planes of a segmentation onto the grid of its image.

A plane whose corners lie on voxel centres of the image (nearer than :data:`ON_VOXEL`) is copied exactly,
whatever its orientation, order and size. A segment with a plane that does not is resampled: every voxel of the
image takes the nearest pixel of the nearest plane.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hermes.dicom.labels import Mask
from hermes.geometry import Grid

ON_VOXEL = 0.2
"""Largest distance of a corner of a plane from a voxel centre, in voxels: slice positions are rounded, and an
even grid may pass beside a slice by a tenth of the gap (see `hermes.transforms.dicom_volumes`)."""


@dataclass(frozen=True, eq=False)
class Plane:
    """One drawn plane of a segment.

    Attributes:
        position: (3,) LPS mm of the centre of the first pixel.
        axes: (2, 3): unit directions along a row (x), along a column (y).
        pixel_mm: distance of neighbouring pixels along x, along y.
        gap_mm: distance of neighbouring planes.
        pixels: ``(rows, columns)`` bool.
    """

    position: NDArray[np.float64]
    axes: NDArray[np.float64]
    pixel_mm: tuple[float, float]
    gap_mm: float
    pixels: NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Placed:
    """A segment on the grid of the image.

    Attributes:
        mask: its voxels.
        exact: False when it was resampled.
        outside: set pixels that lie beyond the edge of the image (0 where resampled: not counted).
    """

    mask: Mask
    exact: bool
    outside: int


def place(planes: Sequence[Plane], grid: Grid) -> Placed:
    """The planes of one segment on ``grid``."""
    points: list[NDArray[np.int64]] = []
    for plane in planes:
        found = _indices(plane, grid)
        if found is None:
            return Placed(_resampled(planes, grid), exact=False, outside=0)
        points.append(found)
    everything = np.concatenate(points) if points else np.empty((0, 3), dtype=np.int64)
    inside = ((everything >= 0) & (everything < np.array(grid.shape))).all(axis=1)
    return Placed(_mask(everything[inside]), exact=True, outside=int(np.count_nonzero(~inside)))


def _indices(plane: Plane, grid: Grid) -> NDArray[np.int64] | None:
    """``(n, 3)`` grid indices (z, y, x) of the set pixels; None when they are not on voxels of the grid."""
    rows, columns = plane.pixels.shape
    along = plane.axes * np.array(plane.pixel_mm)[:, None]  # mm per pixel
    # One pixel at least, so that the direction of a single row or column is checked as well.
    ends = np.array([[0, 0], [max(columns - 1, 1), 0], [0, max(rows - 1, 1)]], dtype=np.float64)
    corners = grid.to_index(plane.position + ends @ along)
    nearest = np.rint(corners)
    if np.abs(corners - nearest).max() > ON_VOXEL:
        return None
    steps = (nearest[1:] - nearest[0]) / ends[[1, 2], [0, 1]][:, None]
    if not (np.abs(steps).sum(axis=1) == 1).all() or not (np.abs(steps).max(axis=1) == 1).all():
        return None
    if (steps[0] * steps[1]).any():
        return None
    y, x = np.nonzero(plane.pixels)
    xyz = nearest[0] + x[:, None] * steps[0] + y[:, None] * steps[1]
    found: NDArray[np.int64] = np.rint(xyz[:, ::-1]).astype(np.int64)
    return found


def _mask(points: NDArray[np.int64]) -> Mask:
    if not len(points):
        return Mask((0, 0, 0), np.zeros((0, 0, 0), dtype=np.bool_))
    low, high = points.min(axis=0), points.max(axis=0)
    voxels = np.zeros(high - low + 1, dtype=np.bool_)
    voxels[tuple((points - low).T)] = True
    return Mask((int(low[0]), int(low[1]), int(low[2])), voxels)


def _resampled(planes: Sequence[Plane], grid: Grid) -> Mask:
    """Every voxel of the image takes the nearest pixel of the nearest plane within half a gap."""
    normal = np.cross(planes[0].axes[0], planes[0].axes[1])
    ordered = sorted(planes, key=lambda plane: float(plane.position @ normal))
    heights = np.array([float(plane.position @ normal) for plane in ordered])
    points = []
    for z, low, high in _reach(ordered, grid, normal):
        y, x = np.meshgrid(np.arange(low[1], high[1]), np.arange(low[0], high[0]), indexing="ij")
        indices = np.stack([x.ravel(), y.ravel(), np.full(x.size, z)], axis=-1)
        mm = grid.to_mm(indices)
        height = mm @ normal
        nearest = (
            np.abs(height[:, None] - heights[None, :]).argmin(axis=1)
            if len(heights) < 4
            else _nearest(heights, height)
        )
        for number in np.unique(nearest):
            plane = ordered[number]
            chosen = np.flatnonzero(
                (nearest == number) & (np.abs(height - heights[number]) <= plane.gap_mm / 2 + 1e-6)
            )
            hit = _pixel_at(plane, mm[chosen])
            points.append(indices[chosen[hit]][:, ::-1])
    return _mask(np.concatenate(points) if points else np.empty((0, 3), dtype=np.int64))


def _nearest(sorted_values: NDArray[np.float64], values: NDArray[np.float64]) -> NDArray[np.intp]:
    right = np.clip(np.searchsorted(sorted_values, values), 1, len(sorted_values) - 1)
    closer = values - sorted_values[right - 1] <= sorted_values[right] - values
    found: NDArray[np.intp] = right - closer
    return found


def _pixel_at(plane: Plane, mm: NDArray[np.float64]) -> NDArray[np.bool_]:
    """``(n,)``: whether the pixel nearest to each point is set."""
    rows, columns = plane.pixels.shape
    local = np.rint((mm - plane.position) @ plane.axes.T / np.array(plane.pixel_mm)).astype(np.int64)
    inside = ((local >= 0) & (local < (columns, rows))).all(axis=1)
    result = np.zeros(len(mm), dtype=np.bool_)
    result[inside] = plane.pixels[local[inside, 1], local[inside, 0]]
    return result


def _reach(
    planes: Sequence[Plane], grid: Grid, normal: NDArray[np.float64]
) -> Iterator[tuple[int, NDArray[np.int64], NDArray[np.int64]]]:
    """For each slice z of the grid that the planes may reach: the box (x, y) to look at."""
    corners = []
    for plane in (planes[0], planes[-1]):
        rows, columns = plane.pixels.shape
        along = plane.axes * np.array(plane.pixel_mm)[:, None]
        ends = np.array([[x, y] for x in (-0.5, columns - 0.5) for y in (-0.5, rows - 0.5)]) @ along
        corners += [plane.position + ends + side * plane.gap_mm / 2 * normal for side in (-1, 1)]
    reached = grid.to_index(np.concatenate(corners))
    sizes = np.array(grid.shape[::-1])
    low = np.clip(np.floor(reached.min(axis=0)), 0, sizes).astype(np.int64)
    high = np.clip(np.ceil(reached.max(axis=0)) + 1, 0, sizes).astype(np.int64)
    for z in range(int(low[2]), int(high[2])):
        yield z, low[:2], high[:2]
