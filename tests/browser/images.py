"""DICOM series whose every voxel is known, in every orientation that a scanner stores."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hermes.phantoms import PhantomCase
from hermes.phantoms.dicom import write_dicom_series
from hermes.types import Modality

SHAPE = (12, 28, 32)
"""Slices, rows, columns."""
STRUCTURES = ("liver", "spleen", "left kidney")
MIDDLE_HU = {"liver": 100, "spleen": 200, "left kidney": 300}

_TURN = np.deg2rad(20.0)
_TILTED = np.array(
    [[np.cos(_TURN), -np.sin(_TURN), 0.0], [np.sin(_TURN), np.cos(_TURN), 0.0], [0.0, 0.0, 1.0]]
) @ np.array([[1.0, 0.0, 0.0], [0.0, np.cos(0.3), -np.sin(0.3)], [0.0, np.sin(0.3), np.cos(0.3)]])

ORIENTATIONS: dict[str, NDArray[np.float64]] = {
    "axial": np.eye(3),
    "coronal": np.array([[1.0, 0.0, 0.0], [0.0, 0.0, 1.0], [0.0, -1.0, 0.0]]),
    "sagittal": np.array([[0.0, 0.0, 1.0], [1.0, 0.0, 0.0], [0.0, -1.0, 0.0]]),
    "oblique": _TILTED,
    "reversed": np.diag([1.0, 1.0, -1.0]),
}
"""Columns: the LPS directions along which columns, rows and slices are counted."""


def make_image(orientation: str, seed: int = 0) -> PhantomCase:
    """Three boxes without a symmetry, and single voxels scattered over the image: a shift or a flip shows at once."""
    rng = np.random.default_rng([seed, sorted(ORIENTATIONS).index(orientation)])
    labels = np.zeros(SHAPE, np.uint8)
    labels[1:6, 3:14, 4:20] = 1
    labels[5:11, 15:24, 2:11] = 2
    labels[7:10, 4:9, 22:30] = 3
    stray = rng.random(SHAPE) < 0.03
    labels[stray] = rng.integers(0, 4, int(stray.sum()))
    middles = np.array([-100.0, *(MIDDLE_HU[name] for name in STRUCTURES)])
    image = middles[labels] + rng.integers(-40, 40, SHAPE)
    affine = np.eye(4)
    affine[:3, :3] = ORIENTATIONS[orientation] * np.array([1.5, 1.2, 2.5])
    affine[:3, 3] = (-20.0, -31.5, 7.25)
    return PhantomCase(
        name=f"Bands-{orientation}-{seed}", dataset="Bands", modality=Modality.CT, image=image.astype(np.float32),
        affine=affine, labels=labels, names=dict(enumerate(STRUCTURES, start=1)), present=STRUCTURES, absent=(),
        seed=seed, series=f"bands {orientation}",
    )  # fmt: skip


def write(case: PhantomCase, directory: Path) -> list[Path]:
    """The series as DICOM files."""
    return write_dicom_series(case, directory / case.name)
