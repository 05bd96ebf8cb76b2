"""Grids: where the voxels of an image lie in the patient.

Conventions, used everywhere in this package:

* world coordinates are LPS millimetres (x grows to the patient's left, y to posterior, z to superior), as in
  DICOM and ITK; NIfTI's RAS differs by the sign of x and y;
* arrays of voxels are ``(D, H, W) = (z, y, x)``; the affine takes voxel indices as ``(i, j, k) = (x, y, z)``;
* spacings and shapes as tuples are in array order ``(z, y, x)``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from hermes.errors import BadImageError

LPS_FROM_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
"""Turns RAS millimetres into LPS millimetres and back (it is its own inverse)."""

GRID_TOLERANCE_MM = 1e-2
"""Two grids are one when no corner differs by more: above the rounding of the float32 affines of NIfTI and of
the decimal strings of DICOM, far below any voxel."""

_AXIS_LETTERS = (("R", "L"), ("A", "P"), ("I", "S"))  # towards the smaller, the larger LPS coordinate


@dataclass(frozen=True, eq=False)
class Grid:
    """Where the voxels of an image lie.

    Attributes:
        shape: ``(D, H, W)`` of the array as stored.
        affine: ``(4, 4)`` float64, read-only; takes the voxel index ``(x, y, z, 1)`` to LPS mm.

    Raises:
        BadImageError: the shape is not three positive sizes or the affine is not finite and invertible.
    """

    shape: tuple[int, int, int]
    affine: NDArray[np.float64]

    def __post_init__(self) -> None:
        shape = tuple(int(size) for size in self.shape)
        if len(shape) != 3 or min(shape) < 1:
            msg = f"Expected a grid of three positive sizes (z, y, x), got {shape}. Give a 3D image."
            raise BadImageError(msg)
        affine = np.array(self.affine, dtype=np.float64)
        if affine.shape != (4, 4) or not np.isfinite(affine).all() or not _is_invertible(affine):
            msg = (
                "Expected a finite, invertible 4x4 matrix from voxel index to millimetres, got "
                f"{np.asarray(self.affine).tolist()}. Repair the header of the image."
            )
            raise BadImageError(msg)
        affine.setflags(write=False)
        object.__setattr__(self, "shape", shape)
        object.__setattr__(self, "affine", affine)

    @classmethod
    def from_ras(cls, shape: tuple[int, int, int], affine_ras: ArrayLike) -> Grid:
        """The grid of an array ``(D, H, W)`` whose affine is given in RAS mm, as NIfTI has it."""
        return cls(shape, np.matmul(LPS_FROM_RAS, np.asarray(affine_ras, dtype=np.float64)))

    @classmethod
    def from_axes(
        cls,
        shape: tuple[int, int, int],
        origin_mm: Sequence[float],
        spacing_xyz_mm: Sequence[float],
        direction: ArrayLike | None = None,
    ) -> Grid:
        """The grid with its first voxel at ``origin_mm`` (LPS, xyz); columns of ``direction`` are axes."""
        affine = np.eye(4)
        turn = np.eye(3) if direction is None else np.asarray(direction, dtype=np.float64).reshape(3, 3)
        affine[:3, :3] = turn * np.asarray(spacing_xyz_mm, dtype=np.float64)
        affine[:3, 3] = origin_mm
        return cls(shape, affine)

    @classmethod
    def from_simpleitk(cls, image: Any) -> Grid:
        """The grid of a three-dimensional ``SimpleITK.Image``."""
        x, y, z = image.GetSize()
        return cls.from_axes((z, y, x), image.GetOrigin(), image.GetSpacing(), image.GetDirection())

    @property
    def affine_ras(self) -> NDArray[np.float64]:
        """``(4, 4)``: voxel index ``(x, y, z, 1)`` to RAS mm, as NIfTI wants it."""
        return LPS_FROM_RAS @ self.affine

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """Distance of neighbouring voxels along ``(z, y, x)``."""
        x, y, z = np.linalg.norm(self.affine[:3, :3], axis=0)
        return float(z), float(y), float(x)

    @property
    def origin_mm(self) -> tuple[float, float, float]:
        """Centre of the first voxel, LPS xyz."""
        x, y, z = self.affine[:3, 3]
        return float(x), float(y), float(z)

    @property
    def direction(self) -> NDArray[np.float64]:
        """``(3, 3)``: unit vectors of the index axes x, y, z as columns, in LPS."""
        axes: NDArray[np.float64] = self.affine[:3, :3] / np.linalg.norm(self.affine[:3, :3], axis=0)
        return axes

    @property
    def voxel_volume_ml(self) -> float:
        """Volume of one voxel in millilitres; right for sheared grids too."""
        return float(abs(np.linalg.det(self.affine[:3, :3]))) / 1000.0

    @property
    def axis_codes(self) -> str:
        """Where the index axes x, y, z point to (nearest anatomical direction), e.g. ``"LPS"``."""
        return "".join(_AXIS_LETTERS[axis][int(sign > 0)] for axis, sign in nearest_axes(self.affine[:3, :3]))

    @property
    def is_orthogonal(self) -> bool:
        """Whether the index axes are perpendicular (a gantry tilt makes them not), to 1e-3."""
        axes = self.direction
        return bool(np.allclose(axes.T @ axes, np.eye(3), atol=1e-3))

    def to_mm(self, index_xyz: ArrayLike) -> NDArray[np.float64]:
        """LPS mm ``(..., 3)`` of voxel indices ``(..., 3)`` in xyz order (fractions allowed)."""
        points: NDArray[np.float64] = np.asarray(index_xyz, dtype=np.float64) @ self.affine[:3, :3].T
        return points + self.affine[:3, 3]

    def to_index(self, point_mm: ArrayLike) -> NDArray[np.float64]:
        """Voxel indices ``(..., 3)`` in xyz order, with fractions, of LPS points ``(..., 3)``."""
        inverse = np.linalg.inv(self.affine)
        indices: NDArray[np.float64] = np.asarray(point_mm, dtype=np.float64) @ inverse[:3, :3].T
        return indices + inverse[:3, 3]

    def corners_mm(self) -> NDArray[np.float64]:
        """``(8, 3)`` LPS mm of the centres of the eight corner voxels."""
        depth, height, width = self.shape
        return self.to_mm(list(product((0, width - 1), (0, height - 1), (0, depth - 1))))

    def difference(self, other: Grid, tolerance_mm: float = GRID_TOLERANCE_MM) -> str | None:
        """What tells ``other`` from this grid, as a sentence; None when they are one within the tolerance."""
        if self.shape != other.shape:
            return f"The sizes (z, y, x) differ: {self.shape} against {other.shape}."
        # One voxel beyond the corner as well: in a grid of one slice, no corner shows the slice spacing.
        beyond = np.abs(self.affine[:3, :3] - other.affine[:3, :3]).max()
        apart = np.linalg.norm(self.corners_mm() - other.corners_mm(), axis=1).max()
        if max(apart, beyond) <= tolerance_mm:
            return None
        if self.axis_codes != other.axis_codes:
            return f"The axes point elsewhere: {self.axis_codes} against {other.axis_codes}."
        if not np.allclose(self.spacing_mm, other.spacing_mm, atol=tolerance_mm):
            here, there = _short(self.spacing_mm), _short(other.spacing_mm)
            return f"The spacings (z, y, x) in mm differ: {here} against {there}."
        if not np.allclose(self.origin_mm, other.origin_mm, atol=tolerance_mm):
            return (
                f"The origins in LPS mm differ: {_short(self.origin_mm)} against {_short(other.origin_mm)}."
            )
        return f"The directions differ: corners lie up to {apart:.3g} mm apart."

    def matches(self, other: Grid, tolerance_mm: float = GRID_TOLERANCE_MM) -> bool:
        """Whether both grids are one within the tolerance."""
        return self.difference(other, tolerance_mm) is None

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, Grid)
            and self.shape == other.shape
            and bool((self.affine == other.affine).all())
        )

    def __hash__(self) -> int:
        return hash((self.shape, self.affine.tobytes()))


def nearest_axes(columns: NDArray[np.float64]) -> tuple[tuple[int, int], tuple[int, int], tuple[int, int]]:
    """Which LPS axis each index axis is nearest to, each used once, and its sign (+1 along, -1 against).

    Args:
        columns: ``(3, 3)``; the index axes x, y, z in LPS as columns, of any length.

    Returns:
        For index axes x, y, z: ``(LPS axis 0..2, sign)``. The permutation with the greatest sum of cosines
        is taken, so oblique grids never map two axes to one; ties go to the first in counting order.
    """
    cosines = columns / np.linalg.norm(columns, axis=0)
    orders = [(0, 1, 2), (0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0)]
    scores = [sum(abs(cosines[world, index]) for index, world in enumerate(order)) for order in orders]
    # A rounding error must not decide between two equally near orders: 45 degrees would flip at random.
    best = orders[int(np.argmax(np.array(scores) >= max(scores) - 1e-9))]
    x, y, z = ((world, 1 if cosines[world, index] >= 0 else -1) for index, world in enumerate(best))
    return x, y, z


def _is_invertible(affine: NDArray[np.float64]) -> bool:
    columns = affine[:3, :3]
    lengths = np.linalg.norm(columns, axis=0)
    if lengths.min() <= 0 or not np.allclose(affine[3], (0, 0, 0, 1)):
        return False
    return bool(abs(np.linalg.det(columns / lengths)) > 1e-6)


def _short(values: Sequence[float]) -> str:
    return "(" + ", ".join(f"{value:.4g}" for value in values) + ")"
