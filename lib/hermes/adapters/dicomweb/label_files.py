"""Label files as clients send them for an image of a PACS: volumes, DICOM objects, bare bytes of a viewer."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from pydicom.errors import InvalidDicomError

from hermes.dicom import SourceSeries, read_segmentations
from hermes.errors import BadLabelError
from hermes.geometry import Grid
from hermes.records import LabelMap
from hermes.transforms.reading import read_label_map

_MAGIC_AT, _MAGIC = 128, b"DICM"


def read_label_file(
    file: Path,
    params: Mapping[str, Any],
    *,
    grid: Grid,
    source: Callable[[], SourceSeries],
    structures: tuple[str, ...],
) -> tuple[LabelMap, dict[str, Any]]:
    """A label map on the grid of its image, and the request's ``params`` with what the file adds to them.

    Args:
        file: NIfTI, NRRD or MHA; a DICOM SEG or RTSTRUCT, which names its structures itself; ``.bin``: one
            byte (or two) per voxel in the order of the series, as OHIF holds a labelmap.
        params: of the request.
        grid: of the image.
        source: gives the frames of the image.
        structures: what the campaign labels.

    Raises:
        BadLabelError: it cannot be read.
    """
    if file.suffix == ".bin":
        return _bare(file, grid), dict(params)
    if not is_dicom(file):
        return read_label_map(file), dict(params)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of odd values; what is missing is told below
            dataset = pydicom.dcmread(file)
    except (InvalidDicomError, OSError, ValueError, KeyError, AttributeError, EOFError) as error:
        msg = "Expected a DICOM Segmentation or RT Structure Set, got a damaged file. Export it again."
        raise BadLabelError(msg) from error
    return read_label_object(dataset, params, source=source(), structures=structures)


def read_label_object(
    dataset: Any, params: Mapping[str, Any], *, source: SourceSeries, structures: tuple[str, ...]
) -> tuple[LabelMap, dict[str, Any]]:
    """The same of a DICOM SEG or RTSTRUCT in memory; ``params`` then tell as ``covered`` what overlap has cost.

    Raises:
        BadLabelError: it cannot be read onto the image.
    """
    read = read_segmentations([dataset], source, structures=structures)
    if read.refused:
        raise BadLabelError(read.refused[0].reason)
    label = read.label_map()
    told = [{"name": name, "idx": value} for value, name in label.names.items()]
    absent = [*params.get("absent", []), *read.absent]
    known = {**params, "label_info": told, "absent": list(dict.fromkeys(absent))}
    covered = list(read.covered(label).values())
    return label, known | ({"covered": covered} if covered else {})


def is_dicom(file: Path) -> bool:
    """Whether a file begins as DICOM files do."""
    with file.open("rb") as stream:
        stream.seek(_MAGIC_AT)
        return stream.read(len(_MAGIC)) == _MAGIC


def _bare(file: Path, grid: Grid) -> LabelMap:
    voxels, size = int(np.prod(grid.shape)), file.stat().st_size
    if size not in (voxels, 2 * voxels):
        msg = (
            f"Expected {voxels} or {2 * voxels} bytes for the {grid.shape} (z, y, x) voxels of the image, got {size}. "
            "Send the labelmap of the whole series."
        )
        raise BadLabelError(msg)
    kind = np.dtype(np.uint8 if size == voxels else "<u2")
    return LabelMap(np.fromfile(file, kind).reshape(grid.shape).astype(kind.newbyteorder("=")), grid, {})
