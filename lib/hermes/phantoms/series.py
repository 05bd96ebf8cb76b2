"""Any array on any affine as a DICOM series in memory: for tests of geometry that no phantom case has."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian

_STORAGE = {
    "CT": "1.2.840.10008.5.1.4.1.1.2",
    "MR": "1.2.840.10008.5.1.4.1.1.4",
    "PT": "1.2.840.10008.5.1.4.1.1.128",
}
_ENHANCED = {
    "CT": "1.2.840.10008.5.1.4.1.1.2.1",
    "MR": "1.2.840.10008.5.1.4.1.1.4.1",
    "PT": "1.2.840.10008.5.1.4.1.1.130",
}


def make_series(
    array: NDArray[Any],
    affine: NDArray[np.float64],
    *,
    modality: str = "CT",
    uid: str = "1.2.3",
    enhanced: bool = False,
) -> list[FileDataset]:
    """The planes of ``array`` as a DICOM series: one object per plane, or one multi-frame object.

    Args:
        array: ``(D, H, W)`` whole numbers from 0 to 65535; plane ``array[k]`` is instance ``k + 1``.
        affine: (4, 4) voxel (x, y, z, 1) to LPS mm; x and y perpendicular, z anything (a gantry tilt).
        modality: CT, MR or PT.
        uid: the SeriesInstanceUID, and the root of all others.
        enhanced: one enhanced multi-frame object.
    """
    if enhanced:
        return [_enhanced(np.asarray(array), affine, modality, uid)]
    series = []
    for number, plane in enumerate(np.asarray(array)):
        data = _object(_STORAGE[modality], modality, uid, number + 1)
        data.ImagePositionPatient = _position(affine, number)
        data.ImageOrientationPatient, data.PixelSpacing = _orientation(affine), _spacing(affine)
        data.SliceThickness = _number(_gap(affine))
        _pixels(data, plane)
        series.append(data)
    return series


def _object(storage: str, modality: str, uid: str, number: int) -> FileDataset:
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = storage, f"{uid}.{number}"
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    data.is_little_endian, data.is_implicit_VR = True, False
    data.SOPClassUID, data.SOPInstanceUID, data.InstanceNumber = storage, f"{uid}.{number}", number
    data.Modality, data.ImageType = modality, ["ORIGINAL", "PRIMARY", "AXIAL"]
    data.SeriesInstanceUID, data.StudyInstanceUID, data.FrameOfReferenceUID = uid, f"{uid}.0", f"{uid}.0.1"
    data.PatientID, data.PatientName, data.PatientBirthDate, data.PatientSex = (
        "SERIES",
        "PHANTOM^SERIES",
        "",
        "O",
    )
    data.StudyDate, data.StudyTime, data.StudyID, data.AccessionNumber = "20200102", "090000", "1", ""
    data.ReferringPhysicianName, data.SeriesNumber, data.PositionReferenceIndicator = "", 1, ""
    return data


def _enhanced(array: NDArray[Any], affine: NDArray[np.float64], modality: str, uid: str) -> FileDataset:
    data = _object(_ENHANCED[modality], modality, uid, 1)
    measures, orientation, shared = Dataset(), Dataset(), Dataset()
    measures.PixelSpacing, measures.SliceThickness = _spacing(affine), _number(_gap(affine))
    orientation.ImageOrientationPatient = _orientation(affine)
    shared.PixelMeasuresSequence, shared.PlaneOrientationSequence = [measures], [orientation]
    frames = []
    for number in range(len(array)):
        frame, position = Dataset(), Dataset()
        position.ImagePositionPatient = _position(affine, number)
        frame.PlanePositionSequence = [position]
        frames.append(frame)
    data.SharedFunctionalGroupsSequence, data.PerFrameFunctionalGroupsSequence = [shared], frames
    data.NumberOfFrames = len(array)
    _pixels(data, array)
    return data


def _pixels(data: Dataset, pixels: NDArray[Any]) -> None:
    data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
    data.Rows, data.Columns = pixels.shape[-2:]
    data.BitsAllocated, data.BitsStored, data.HighBit, data.PixelRepresentation = 16, 16, 15, 0
    data.PixelData = np.ascontiguousarray(pixels, dtype="<u2").tobytes()


def _position(affine: NDArray[np.float64], number: int) -> list[str]:
    return [_number(value) for value in (affine @ np.array([0.0, 0.0, number, 1.0]))[:3]]


def _orientation(affine: NDArray[np.float64]) -> list[str]:
    axes = affine[:3, :2] / np.linalg.norm(affine[:3, :2], axis=0)
    return [_number(value) for value in axes.T.ravel()]


def _spacing(affine: NDArray[np.float64]) -> list[str]:
    across, down = np.linalg.norm(affine[:3, :2], axis=0)
    return [_number(down), _number(across)]


def _gap(affine: NDArray[np.float64]) -> float:
    normal = np.cross(affine[:3, 0], affine[:3, 1])
    return float(abs(normal @ affine[:3, 2]) / np.linalg.norm(normal))


def _number(value: float) -> str:
    """A decimal string of at most 16 characters, as DICOM asks."""
    return f"{round(float(value), 9) + 0.0:.9g}"
