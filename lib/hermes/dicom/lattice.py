"""Voxels of one grid on another: exactly where the grids share their voxels, by the nearest voxel otherwise."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from hermes.errors import GeometryMismatchError
from hermes.geometry import Grid
from hermes.transforms.orientation import Turn


def same_voxels(array: NDArray[Any], grid: Grid, target: Grid) -> NDArray[Any]:
    """``array`` ``(D, H, W)`` with its axes in the order and direction of ``target``; no voxel moves.

    Raises:
        GeometryMismatchError: the grids do not have the same voxels.
    """
    if grid.matches(target):
        return array
    turn = _turn(grid, target)
    if turn is None or not turn.apply_to_grid(grid).matches(target):
        msg = (
            f"Expected a label on the voxels of its image. {target.difference(grid)} "
            "Export the label with the image as reference."
        )
        raise GeometryMismatchError(msg)
    return turn.apply(array)


def _turn(grid: Grid, target: Grid) -> Turn | None:
    """The permutation and flips that may take the axes of ``grid`` to those of ``target``."""
    steps = (
        np.linalg.inv(target.affine[:3, :3]) @ grid.affine[:3, :3]
    )  # columns: axes of grid, rows: of target
    signs = np.rint(steps)
    if not (np.abs(signs).sum(axis=0) == 1).all() or not (np.abs(signs).sum(axis=1) == 1).all():
        return None
    axes, flips = [], []
    for row in (2, 1, 0):  # array axes run z, y, x
        column = int(np.argmax(np.abs(signs[row])))
        axes.append(2 - column)
        flips.append(bool(signs[row, column] < 0))
    return Turn((axes[0], axes[1], axes[2]), (flips[0], flips[1], flips[2]))
