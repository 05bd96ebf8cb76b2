"""Phantom cases as classic DICOM series: CT, PET and MR image storage, one file per slice.

Every identifier follows from the case, so that the same case gives the same bytes. Nobody is described: names
and numbers say that this is a phantom.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.sequence import Sequence
from pydicom.uid import ExplicitVRLittleEndian

from hermes.phantoms.cases import PhantomCase
from hermes.phantoms.nifti import stored_integers
from hermes.types import Modality

_CT_STORAGE = "1.2.840.10008.5.1.4.1.1.2"
_MR_STORAGE = "1.2.840.10008.5.1.4.1.1.4"
_PET_STORAGE = "1.2.840.10008.5.1.4.1.1.128"
_CT_INTERCEPT_HU = -1024

PATIENT_WEIGHT_KG = 72.0
INJECTED_DOSE_BQ = 3.5e8
F18_HALF_LIFE_S = 6586.2
UPTAKE_S = 3600
"""From the injection to the start of the PET; activity is corrected to that start."""


def bq_per_ml_of_suv() -> float:
    """Activity concentration in Bq/ml of SUV 1 (body weight, 1 ml = 1 g) at the start of the series."""
    dose_at_start = INJECTED_DOSE_BQ * 0.5 ** (UPTAKE_S / F18_HALF_LIFE_S)
    return float(dose_at_start / (PATIENT_WEIGHT_KG * 1000.0))


def _uid(*parts: str) -> str:
    digest = hashlib.sha256("/".join(("hermes phantom", *parts)).encode()).digest()
    return f"2.25.{int.from_bytes(digest[:16], 'big')}"


def series_uid(case: PhantomCase) -> str:
    """The SeriesInstanceUID of ``case``."""
    return _uid(case.name, "series")


def write_dicom_series(case: PhantomCase, directory: Path) -> list[Path]:
    """Writes one file per slice along the array's first axis; returns their paths in that order.

    CT is stored as HU + 1024 with an intercept; PET in Bq/ml with what an SUV by body weight needs; MR as it
    is, with the tags by which T1, T2 and cine are told apart.
    """
    directory.mkdir(parents=True, exist_ok=True)
    pixels, step = stored_integers(case)
    if case.modality is Modality.CT:
        pixels = pixels - np.int16(_CT_INTERCEPT_HU)
    paths = []
    for index, plane in enumerate(pixels):
        slice_ = _common(case, index)
        _geometry(slice_, case, index)
        _pixels(slice_, plane)
        if case.modality is Modality.CT:
            _tomography(slice_)
        elif case.modality is Modality.PET:
            _emission(slice_, step * bq_per_ml_of_suv(), index, len(pixels))
        else:
            _resonance(slice_, case)
        path = directory / f"{index + 1:04d}.dcm"
        slice_.save_as(path, write_like_original=False)
        paths.append(path)
    return paths


def _common(case: PhantomCase, index: int) -> FileDataset:
    storage = {Modality.CT: _CT_STORAGE, Modality.PET: _PET_STORAGE}.get(case.modality, _MR_STORAGE)
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = storage
    meta.MediaStorageSOPInstanceUID = _uid(case.name, str(index))
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.ImplementationClassUID = _uid("implementation")
    meta.ImplementationVersionName = "HERMES_PHANTOM"
    data = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    data.is_little_endian, data.is_implicit_VR = True, False
    data.SpecificCharacterSet = "ISO_IR 192"
    data.ImageType = ["DERIVED", "PRIMARY", "AXIAL"]
    data.SOPClassUID, data.SOPInstanceUID = storage, meta.MediaStorageSOPInstanceUID
    data.StudyDate = data.SeriesDate = data.AcquisitionDate = data.ContentDate = "20200102"
    data.StudyTime = "090000"
    data.SeriesTime = data.AcquisitionTime = data.ContentTime = "100000"
    data.AccessionNumber, data.ReferringPhysicianName = "", ""
    data.Manufacturer = "Hermes digital phantom"
    data.Modality = {Modality.CT: "CT", Modality.PET: "PT"}.get(case.modality, "MR")
    data.StudyDescription, data.SeriesDescription = "Digital phantom", case.series
    data.PatientName, data.PatientID = f"PHANTOM^{case.name}", case.name
    data.PatientBirthDate, data.PatientSex = "", "O"
    data.PatientIdentityRemoved, data.DeidentificationMethod = "YES", "computed, no person"
    data.StudyInstanceUID, data.SeriesInstanceUID = _uid(case.name, "study"), series_uid(case)
    data.FrameOfReferenceUID, data.PositionReferenceIndicator = _uid(case.name, "frame"), ""
    data.StudyID, data.SeriesNumber, data.InstanceNumber = "1", 1, index + 1
    return data


def _decimal(value: float) -> str:
    return f"{value:.10g}"[:16]


def _geometry(data: Dataset, case: PhantomCase, index: int) -> None:
    axes = case.affine[:3, :3]
    spacing = np.linalg.norm(axes, axis=0)
    across, down = axes[:, 0] / spacing[0], axes[:, 1] / spacing[1]
    corner = case.affine @ np.array([0.0, 0.0, index, 1.0])
    data.ImageOrientationPatient = [_decimal(round(v, 9) + 0.0) for v in (*across, *down)]
    data.ImagePositionPatient = [_decimal(round(v, 6) + 0.0) for v in corner[:3]]
    data.PixelSpacing = [_decimal(spacing[1]), _decimal(spacing[0])]
    data.SliceThickness = _decimal(spacing[2])
    normal = np.cross(across, down)
    data.SliceLocation = _decimal(round(float(normal @ corner[:3]), 6))


def _pixels(data: Dataset, plane: NDArray[np.int16]) -> None:
    data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
    data.Rows, data.Columns = plane.shape
    data.BitsAllocated, data.BitsStored, data.HighBit, data.PixelRepresentation = 16, 16, 15, 0
    data.PixelData = np.ascontiguousarray(plane, dtype="<u2").tobytes()


def _tomography(data: Dataset) -> None:
    data.RescaleIntercept, data.RescaleSlope, data.RescaleType = str(_CT_INTERCEPT_HU), "1", "HU"
    data.KVP, data.AcquisitionNumber, data.PatientPosition = "120", 1, "HFS"
    data.WindowCenter, data.WindowWidth = "50", "400"


def _emission(data: Dataset, slope: float, index: int, count: int) -> None:
    data.RescaleIntercept, data.RescaleSlope = "0", _decimal(slope)
    data.Units, data.DecayCorrection, data.CountsSource = "BQML", "START", "EMISSION"
    data.CorrectedImage = ["DECY", "ATTN", "SCAT", "NORM"]
    data.SeriesType, data.NumberOfSlices, data.ImageIndex = ["WHOLE BODY", "IMAGE"], count, index + 1
    data.RandomsCorrectionMethod, data.FrameReferenceTime = "DLYD", "0"
    data.ActualFrameDuration, data.PatientWeight, data.PatientSize = (
        120000,
        _decimal(PATIENT_WEIGHT_KG),
        "1.74",
    )
    data.PatientPosition, data.SUVType = "HFS", "BW"
    tracer, nuclide = Dataset(), Dataset()
    nuclide.CodeValue, nuclide.CodingSchemeDesignator, nuclide.CodeMeaning = "C-111A1", "SRT", "^18^Fluorine"
    tracer.Radiopharmaceutical = "Fluorodeoxyglucose"
    tracer.RadiopharmaceuticalStartTime = "090000"
    tracer.RadiopharmaceuticalStartDateTime = "20200102090000"
    tracer.RadionuclideTotalDose = _decimal(INJECTED_DOSE_BQ)
    tracer.RadionuclideHalfLife = _decimal(F18_HALF_LIFE_S)
    tracer.RadionuclideCodeSequence = Sequence([nuclide])
    data.RadiopharmaceuticalInformationSequence = Sequence([tracer])


def _resonance(data: Dataset, case: PhantomCase) -> None:
    data.PatientPosition, data.MagneticFieldStrength = "HFS", "1.5"
    data.ScanOptions, data.EchoTrainLength = "", 1
    if case.modality is Modality.T2:
        data.ScanningSequence, data.SequenceVariant, data.MRAcquisitionType = "SE", "SK", "2D"
        data.RepetitionTime, data.EchoTime, data.EchoTrainLength, data.FlipAngle = "3800", "92", 17, "150"
    elif case.modality is Modality.CINE:
        data.ScanningSequence, data.SequenceVariant, data.MRAcquisitionType = "GR", ["SS", "SP"], "2D"
        data.RepetitionTime, data.EchoTime, data.FlipAngle = "3.1", "1.5", "60"
        data.ScanOptions, data.CardiacNumberOfImages, data.TriggerTime = "CG", 1, "0"
        data.NominalInterval = 850
    elif case.dataset == "PhantomBrainT1":
        data.ScanningSequence, data.SequenceVariant, data.MRAcquisitionType = ["GR", "IR"], ["SP", "MP"], "3D"
        data.RepetitionTime, data.EchoTime, data.InversionTime, data.FlipAngle = "2100", "2.9", "900", "9"
    else:
        data.ScanningSequence, data.SequenceVariant, data.MRAcquisitionType = "GR", "SP", "2D"
        data.RepetitionTime, data.EchoTime, data.FlipAngle = "150", "4.6", "70"
