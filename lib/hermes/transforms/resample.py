"""Resampling along the axes of an array, one axis after the other.

The centre of the field of view stays where it is: voxel ``m`` of ``n_out`` lies, in indices of the source
axis of ``n_in`` voxels, at ``(m + 0.5 - n_out / 2) * step + n_in / 2 - 0.5``, with the step
``spacing_out / spacing_in``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

Interpolation = Literal["linear", "bspline"]

SAME_AXIS_VOXELS = 0.05
"""An axis is left as it is when resampling would move no voxel further than this part of one."""


@dataclass(frozen=True)
class AxisMap:
    """How one axis is resampled.

    Attributes:
        size_in: voxels before.
        size_out: voxels after.
        step: ``spacing_out / spacing_in``; exactly 1 where nothing is resampled.
    """

    size_in: int
    size_out: int
    step: float

    @classmethod
    def between(cls, size_in: int, spacing_in_mm: float, spacing_out_mm: float) -> AxisMap:
        """The map that keeps the field of view to half a voxel."""
        step = spacing_out_mm / spacing_in_mm
        if abs(step - 1.0) * size_in < SAME_AXIS_VOXELS:
            return cls(size_in, size_in, 1.0)
        return cls(size_in, max(1, int(np.floor(size_in / step + 0.5))), step)

    @property
    def is_identity(self) -> bool:
        """Whether the axis stays as it is."""
        return self.step == 1.0

    def positions(self) -> NDArray[np.float64]:
        """``(size_out,)``: where each voxel after lies, in indices before (may reach beyond the ends)."""
        after = np.arange(self.size_out, dtype=np.float64) + 0.5 - self.size_out / 2
        return after * self.step + self.size_in / 2 - 0.5

    def nearest_in(self) -> NDArray[np.intp]:
        """``(size_out,)``: the voxel before that is nearest to each voxel after."""
        return _nearest(self.positions(), self.size_in)

    def nearest_out(self) -> NDArray[np.intp]:
        """``(size_in,)``: the voxel after that is nearest to each voxel before."""
        before = np.arange(self.size_in, dtype=np.float64) + 0.5 - self.size_in / 2
        return _nearest(before / self.step + self.size_out / 2 - 0.5, self.size_out)


AxisMaps = tuple[AxisMap, AxisMap, AxisMap]
"""The maps of the axes z, y, x."""


def resample(array: NDArray[np.float32], maps: AxisMaps, interpolation: Interpolation) -> NDArray[np.float32]:
    """``array`` (D, H, W) on the new axes; the border's values continue beyond the border.

    At most three arrays of the size of the larger one are held; the axis that shrinks most goes first.
    """
    for axis in sorted(range(3), key=lambda axis: maps[axis].size_out / maps[axis].size_in):
        if not maps[axis].is_identity:
            along = _linear if interpolation == "linear" else _cubic
            array = along(array, axis, maps[axis])
    return array


def take_nearest(
    array: NDArray[Any], indices: tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.intp]]
) -> NDArray[Any]:
    """``array[indices_z][:, indices_y][:, :, indices_x]``, the axes in the order that moves least memory."""
    for axis in sorted(range(3), key=lambda axis: (len(indices[axis]) / array.shape[axis], -axis)):
        wanted = indices[axis]
        if len(wanted) != array.shape[axis] or not np.array_equal(wanted, np.arange(len(wanted))):
            array = np.take(array, wanted, axis=axis)
    return array


def _nearest(positions: NDArray[np.float64], size: int) -> NDArray[np.intp]:
    nearest: NDArray[np.intp] = np.clip(np.floor(positions + 0.5), 0, size - 1).astype(np.intp)
    return nearest


def _linear(array: NDArray[np.float32], axis: int, axis_map: AxisMap) -> NDArray[np.float32]:
    positions = np.clip(axis_map.positions(), 0, axis_map.size_in - 1)
    low = np.minimum(positions.astype(np.intp), max(axis_map.size_in - 2, 0))
    high = np.minimum(low + 1, axis_map.size_in - 1)
    weight = _along(positions - low, axis)
    result: NDArray[np.float32] = np.take(array, low, axis=axis)
    upper = np.take(array, high, axis=axis)
    upper -= result
    upper *= weight
    result += upper
    return result


def _cubic(array: NDArray[np.float32], axis: int, axis_map: AxisMap) -> NDArray[np.float32]:
    """Interpolating cubic B-spline with mirrored ends (Unser 1999)."""
    size = axis_map.size_in
    if size == 1:
        return _linear(array, axis, axis_map)
    coefficients = ndimage.spline_filter1d(array, order=3, axis=axis, output=np.float32, mode="mirror")
    positions = np.clip(axis_map.positions(), 0, size - 1)
    base = np.floor(positions).astype(np.intp)
    t = positions - base
    taps = ((1 - t) ** 3, 4 - 6 * t**2 + 3 * t**3, 1 + 3 * t + 3 * t**2 - 3 * t**3, t**3)
    result: NDArray[np.float32] | None = None
    for offset, weight in zip((-1, 0, 1, 2), taps, strict=True):
        index = np.abs(base + offset)
        index = np.where(index > size - 1, 2 * (size - 1) - index, index)
        part = np.take(coefficients, index, axis=axis)
        part *= _along(weight / 6.0, axis)
        result = part if result is None else np.add(result, part, out=result)
    assert result is not None  # there are four taps
    return result


def _along(values: NDArray[np.float64], axis: int) -> NDArray[np.float32]:
    shape = [1, 1, 1]
    shape[axis] = -1
    return values.astype(np.float32).reshape(shape)
