"""Writing label maps on the grid of their image."""

from __future__ import annotations

import os
import uuid
from pathlib import Path

import nibabel
import numpy as np
import SimpleITK

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
    target = Path(path)
    suffix = next((known for known in LABEL_SUFFIXES if target.name.lower().endswith(known)), None)
    if suffix is None:
        msg = f"Expected a file name ending in one of {', '.join(LABEL_SUFFIXES)}, got {target.name!r}."
        raise BadRequestError(msg)
    if suffix in (".nrrd", ".mha") and not label_map.grid.is_orthogonal:
        msg = f"A {suffix} file cannot hold a sheared grid (gantry tilt). Write .nii.gz instead."
        raise BadRequestError(msg)
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{uuid.uuid4().hex}{suffix}")
    try:
        if suffix.startswith(".nii"):
            _write_nifti(label_map, partial)
        else:
            _write_itk(label_map, partial, named=suffix == ".nrrd")
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)
    return target


def _write_nifti(label_map: LabelMap, path: Path) -> None:
    affine = label_map.grid.affine_ras
    image = nibabel.Nifti1Image(label_map.array.transpose(2, 1, 0), affine)
    image.set_sform(affine, code=1)
    # The quaternion cannot shear: there it would contradict the matrix, so it is marked as unknown.
    image.set_qform(affine, code=1 if label_map.grid.is_orthogonal else 0)
    image.header.set_xyzt_units("mm")
    nibabel.save(image, path)


def _write_itk(label_map: LabelMap, path: Path, *, named: bool) -> None:
    image = SimpleITK.GetImageFromArray(np.ascontiguousarray(label_map.array))
    place_simpleitk(image, label_map.grid)
    for number, (value, name) in enumerate(sorted(label_map.names.items()) if named else ()):
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
