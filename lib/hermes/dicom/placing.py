"""Bringing the planes of a segmentation onto the grid of its image.

A plane whose corners lie on voxel centres of the image (nearer than :data:`ON_VOXEL`) is copied exactly,
whatever its orientation, order and size. A segment with a plane that does not is resampled: every voxel of the
image takes the nearest pixel of the nearest plane.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

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

    def cropped(self) -> Plane:
        """The plane of the bounding box of the set pixels: a SEG may have thousands, mostly empty."""
        rows, columns = np.flatnonzero(self.pixels.any(axis=1)), np.flatnonzero(self.pixels.any(axis=0))
        if not rows.size:
            return replace(self, pixels=self.pixels[:0, :0])
        corner = np.array([columns[0], rows[0]]) * self.pixel_mm @ self.axes
        box = self.pixels[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].copy()
        return replace(self, position=self.position + corner, pixels=box)


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


@dataclass(frozen=True, eq=False)
class _Block:
    """Voxels ``(d, h, w)`` bool, one plane thick, whose first lies at ``start`` (z, y, x) of the grid."""

    start: NDArray[np.int64]
    voxels: NDArray[np.bool_]

    @property
    def end(self) -> NDArray[np.int64]:
        return self.start + self.voxels.shape

    def within(self, shape: tuple[int, int, int]) -> _Block:
        """The part of it in a grid of ``shape``."""
        low = np.clip(-self.start, 0, self.voxels.shape)
        high = np.clip(np.array(shape) - self.start, low, self.voxels.shape)
        z, y, x = (slice(int(first), int(last)) for first, last in zip(low, high, strict=True))
        return _Block(self.start + low, self.voxels[z, y, x])


def place(planes: Sequence[Plane], grid: Grid) -> Placed:
    """The planes of one segment on ``grid``."""
    to_index = np.linalg.inv(grid.affine)
    blocks: list[_Block] = []
    outside = 0
    for plane in planes:
        block = _block(plane, to_index)
        if block is None:
            return Placed(_resampled(planes, grid), exact=False, outside=0)
        inside = block.within(grid.shape)
        outside += int(np.count_nonzero(block.voxels) - np.count_nonzero(inside.voxels))
        if inside.voxels.any():
            blocks.append(inside)
    return Placed(_joined(blocks), exact=True, outside=outside)


def _block(plane: Plane, to_index: NDArray[np.float64]) -> _Block | None:
    """The set pixels of a plane as voxels of the grid; None when they are not on its voxels."""
    rows, columns = plane.pixels.shape
    along = plane.axes * np.array(plane.pixel_mm)[:, None]  # mm per pixel
    # One pixel at least, so that the direction of a single row or column is checked as well.
    ends = np.array([[0, 0], [max(columns - 1, 1), 0], [0, max(rows - 1, 1)]], dtype=np.float64)
    corners = (plane.position + ends @ along) @ to_index[:3, :3].T + to_index[:3, 3]
    first = np.rint(corners[0]).astype(np.int64)
    steps = (np.rint(corners[1:]) - first) / ends[[1, 2], [0, 1]][:, None]  # rows: one pixel along x, along y
    if np.abs(corners - np.rint(corners)).max() > ON_VOXEL or not _are_axes(steps):
        return None
    across, down = (int(np.argmax(np.abs(step))) for step in steps)
    first += sum(
        np.minimum(step, 0).astype(np.int64) * (size - 1)
        for step, size in zip(steps, (columns, rows), strict=True)
    )
    turned = plane.pixels[:: int(steps[1][down]), :: int(steps[0][across]), None]
    order = (down, across, 3 - down - across)  # index axis (x 0, y 1, z 2) of each axis of ``turned``
    return _Block(first[::-1], turned.transpose([order.index(axis) for axis in (2, 1, 0)]))


def _are_axes(steps: NDArray[np.float64]) -> bool:
    """Whether the two rows are different axes, of length one."""
    lengths = np.abs(steps)
    return bool((lengths.sum(axis=1) == 1).all() and (lengths.max(axis=1) == 1).all()) and not bool(
        (steps[0] * steps[1]).any()
    )


def _joined(blocks: Sequence[_Block]) -> Mask:
    if not blocks:
        return Mask((0, 0, 0), np.zeros((0, 0, 0), dtype=np.bool_))
    low = np.min([block.start for block in blocks], axis=0)
    voxels = np.zeros(np.max([block.end for block in blocks], axis=0) - low, dtype=np.bool_)
    for block in blocks:
        z, y, x = (slice(int(a), int(b)) for a, b in zip(block.start - low, block.end - low, strict=True))
        voxels[z, y, x] |= block.voxels
    return Mask((int(low[0]), int(low[1]), int(low[2])), voxels)


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
        nearest = _nearest(heights, height)
        for number in np.unique(nearest):
            plane = ordered[number]
            chosen = np.flatnonzero(
                (nearest == number) & (np.abs(height - heights[number]) <= plane.gap_mm / 2 + 1e-6)
            )
            hit = _pixel_at(plane, mm[chosen])
            points.append(indices[chosen[hit]][:, ::-1])
    return _mask(np.concatenate(points) if points else np.empty((0, 3), dtype=np.int64))


def _nearest(sorted_values: NDArray[np.float64], values: NDArray[np.float64]) -> NDArray[np.intp]:
    if len(sorted_values) == 1:
        return np.zeros(len(values), dtype=np.intp)
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
    for plane in planes:
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
