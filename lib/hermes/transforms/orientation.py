"""Turning arrays so that their axes grow to superior, posterior and left, and back; exact, nothing moves."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hermes.geometry import Grid, nearest_axes


@dataclass(frozen=True)
class Turn:
    """A permutation of array axes followed by flips.

    Attributes:
        axes: for the turned axes (z, y, x): which axis of the stored array it is.
        flips: for the turned axes (z, y, x): whether it runs backwards.
    """

    axes: tuple[int, int, int]
    flips: tuple[bool, bool, bool]

    @classmethod
    def to_lps(cls, grid: Grid) -> Turn:
        """The turn after which z grows to superior, y to posterior and x to left, as nearly as turning can.

        An oblique remainder stays: oblique images are not resampled to straight axes, since that would
        invent voxels; the network sees them in the frame of the scanner's slices.
        """
        source: dict[int, tuple[int, bool]] = {}
        for index_axis, (world, sign) in enumerate(nearest_axes(grid.affine[:3, :3])):
            source[world] = (2 - index_axis, sign < 0)  # array axes run z, y, x
        (z, flip_z), (y, flip_y), (x, flip_x) = source[2], source[1], source[0]
        return cls((z, y, x), (flip_z, flip_y, flip_x))

    def apply(self, array: NDArray[Any]) -> NDArray[Any]:
        """The turned array; a view."""
        return array.transpose(self.axes)[self._steps()]

    def undo(self, array: NDArray[Any]) -> NDArray[Any]:
        """The stored order of a turned array; a view."""
        return array[self._steps()].transpose(np.argsort(self.axes))

    def apply_to_grid(self, grid: Grid) -> Grid:
        """The grid of the turned array: every voxel stays where it is in the patient."""
        shape = tuple(grid.shape[axis] for axis in self.axes)
        affine = grid.affine.copy()
        for index_axis in range(3):  # x, y, z of the turned array
            turned = 2 - index_axis
            stored = 2 - self.axes[turned]
            column = grid.affine[:3, stored]
            if self.flips[turned]:
                affine[:3, 3] += column * (shape[turned] - 1)
                column = -column
            affine[:3, index_axis] = column
        return Grid((shape[0], shape[1], shape[2]), affine)

    def _steps(self) -> tuple[slice, slice, slice]:
        z, y, x = (slice(None, None, -1 if flip else 1) for flip in self.flips)
        return z, y, x
