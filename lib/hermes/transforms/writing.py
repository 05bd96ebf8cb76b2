"""Writing label maps and maps of numbers on the grid of their image."""

from __future__ import annotations

import os
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import SimpleITK
from numpy.typing import NDArray

from hermes.errors import BadRequestError
from hermes.geometry import Grid
from hermes.records import LabelMap

LABEL_SUFFIXES = (".nii.gz", ".nii", ".nrrd", ".mha")
"""What :func:`write_label_map` can write."""


def write_label_map(label_map: LabelMap, path: str | os.PathLike[str]) -> Path:
    """Writes a label map and returns its path; the file appears complete or not at all.

    NIfTI keeps every invertible affine, sheared ones too. NRRD and MHA know perpendicular axes only; in a
    NRRD each value carries its name, as a 3D Slicer segmentation.

    Args:
        label_map: integers ``(D, H, W)`` on the image's grid.
        path: ends in one of :data:`LABEL_SUFFIXES`.

    Raises:
        BadRequestError: another suffix, or a sheared grid in a format that cannot say so.
    """
    return _write(label_map.array, label_map.grid, label_map.names, Path(path))


def write_number_map(array: NDArray[np.float32], grid: Grid, path: str | os.PathLike[str]) -> Path:
    """Writes a number per voxel, ``(D, H, W)`` on ``grid``, as :func:`write_label_map` writes labels.

    Raises:
        BadRequestError: as there.
    """
    return _write(array, grid, {}, Path(path))


def _write(array: NDArray[Any], grid: Grid, names: Mapping[int, str], target: Path) -> Path:
    suffix = next((known for known in LABEL_SUFFIXES if target.name.lower().endswith(known)), None)
    if suffix is None:
        msg = f"Expected a file name ending in one of {', '.join(LABEL_SUFFIXES)}, got {target.name!r}."
        raise BadRequestError(msg)
    if suffix in (".nrrd", ".mha") and not grid.is_orthogonal:
        msg = f"A {suffix} file cannot hold a sheared grid (gantry tilt). Write .nii.gz instead."
        raise BadRequestError(msg)
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{uuid.uuid4().hex}{suffix}")
    try:
        if suffix.startswith(".nii"):
            _write_nifti(array, grid, partial)
        else:
            _write_itk(array, grid, names if suffix == ".nrrd" else {}, partial)
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)
    return target


def _write_nifti(array: NDArray[Any], grid: Grid, path: Path) -> None:
    affine = grid.affine_ras
    image = nibabel.Nifti1Image(array.transpose(2, 1, 0), affine)
    image.set_sform(affine, code=1)
    # The quaternion cannot shear: there it would contradict the matrix, so it is marked as unknown.
    image.set_qform(affine, code=1 if grid.is_orthogonal else 0)
    image.header.set_xyzt_units("mm")
    nibabel.save(image, path)


def _write_itk(array: NDArray[Any], grid: Grid, names: Mapping[int, str], path: Path) -> None:
    image = SimpleITK.GetImageFromArray(np.ascontiguousarray(array))
    place_simpleitk(image, grid)
    for number, (value, name) in enumerate(sorted(names.items())):
        image.SetMetaData(f"Segment{number}_ID", f"Segment_{value}")
        image.SetMetaData(f"Segment{number}_Name", name)
        image.SetMetaData(f"Segment{number}_LabelValue", str(value))
        image.SetMetaData(f"Segment{number}_Layer", "0")
    SimpleITK.WriteImage(image, str(path), useCompression=True)


def place_simpleitk(image: SimpleITK.Image, grid: Grid) -> None:
    """Gives a SimpleITK image the origin, spacing and direction of ``grid``, which must be orthogonal."""
    # ITK refuses directions that are not orthonormal to its own precision: take the nearest rotation.
    left, _, right = np.linalg.svd(grid.direction)
    image.SetOrigin(grid.origin_mm)
    image.SetSpacing(grid.spacing_mm[::-1])
    exact = grid.direction
    near = left @ right
    image.SetDirection((exact if np.allclose(exact, near, atol=1e-9) else near).ravel().tolist())
