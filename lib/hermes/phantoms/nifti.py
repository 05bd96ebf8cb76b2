"""Phantom cases as NIfTI files whose bytes depend on the case alone."""

from __future__ import annotations

import gzip
import io
import json
from pathlib import Path

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from hermes.phantoms.cases import PhantomCase, make_case
from hermes.types import Modality

_LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
PET_STEP_SUV = 0.01
"""A PET is stored in whole numbers of this step."""


def stored_integers(case: PhantomCase) -> tuple[NDArray[np.int16], float]:
    """The image as int16 and the slope that turns it into its unit again (HU, SUV or arbitrary)."""
    step = PET_STEP_SUV if case.modality is Modality.PET else 1.0
    return np.clip(np.round(case.image / step), -32768, 32767).astype(np.int16), step


def _write(path: Path, array: NDArray[np.generic], affine: NDArray[np.float64], slope: float = 1.0) -> None:
    """Writes ``array`` (..., z, y, x) with ``affine`` (voxel to LPS mm) as gzipped NIfTI."""
    image = nib.Nifti1Image(np.ascontiguousarray(array.T), _LPS_TO_RAS @ affine)
    image.header.set_xyzt_units("mm", "sec" if array.ndim == 4 else "unknown")
    image.set_qform(image.affine, code=1)
    image.set_sform(image.affine, code=1)
    content = bytearray(image.to_bytes())
    # nibabel scales on writing as it sees fit; slope and intercept are fields 112 and 116 of the header.
    content[112:120] = np.array([slope, 0.0], dtype="<f4").tobytes()
    buffer = io.BytesIO()
    with gzip.GzipFile(filename="", mode="wb", fileobj=buffer, mtime=0, compresslevel=9) as stream:
        stream.write(bytes(content))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(buffer.getvalue())


def write_image(case: PhantomCase, path: Path) -> None:
    """Writes the image of ``case`` to ``path`` (``.nii.gz``): int16, RAS affine; SUV with a slope."""
    array, slope = stored_integers(case)
    _write(path, array, case.affine, slope)


def write_labels(case: PhantomCase, path: Path) -> None:
    """Writes the truth of ``case`` to ``path`` (uint8) and its names to the ``.json`` beside it.

    The JSON holds ``names`` (value -> structure), ``present``, ``absent``, ``protocol``, ``modality``,
    ``series`` and ``seed``.
    """
    _write(path, case.labels, case.affine)
    names = {str(value): structure for value, structure in case.names.items()}
    note = {
        "names": names, "present": list(case.present), "absent": list(case.absent), "protocol": case.dataset,
        "modality": case.modality.value, "series": case.series, "seed": case.seed,
    }  # fmt: skip
    path.with_name(path.name.removesuffix(".nii.gz") + ".json").write_text(json.dumps(note, indent=1) + "\n")


def write_nifti(case: PhantomCase, images: Path, labels: Path | None = None) -> Path:
    """Writes ``images/<name>.nii.gz`` and, where ``labels`` is given, ``labels/<name>.nii.gz`` and ``.json``.

    Returns:
        The path of the image.
    """
    path = images / f"{case.name}.nii.gz"
    write_image(case, path)
    if labels is not None:
        write_labels(case, labels / f"{case.name}.nii.gz")
    return path


def write_cine(seed: int, path: Path, *, phases: int = 8, size: str = "small") -> None:
    """Writes one heartbeat of the cine phantom ``seed`` as a 4D NIfTI (x, y, slice, phase), int16.

    The anatomy is the same in every phase; noise is too, since it comes from the same seed.
    """
    cycle = 1.0 - np.abs(np.linspace(-1.0, 1.0, phases, endpoint=False))
    cases = [make_case("PhantomCineMR", seed, size=size, phase=float(p), plain_axes=True) for p in cycle]
    _write(path, np.stack([stored_integers(c)[0] for c in cases]), cases[0].affine)
