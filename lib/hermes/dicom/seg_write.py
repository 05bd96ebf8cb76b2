"""Writing labels as a DICOM Segmentation object (PS3.3 A.51), with highdicom."""

from __future__ import annotations

import json
import uuid
import warnings
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, Literal, TypeAlias

import highdicom
import numpy as np
from highdicom.seg import Segmentation, SegmentDescription
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code as DicomCode

import hermes
from hermes.dicom.coding import (
    code_item,
    dicom_lab,
    segment_description,
    segment_label,
    split_task,
    structure_of,
)
from hermes.dicom.lattice import same_voxels
from hermes.dicom.source import Reference, SourceSeries
from hermes.errors import BadLabelError, BadRequestError, GeometryMismatchError
from hermes.geometry import Grid
from hermes.labels.catalogue import Code, Structure, canonical_key
from hermes.labels.names import key
from hermes.records import LabelMap
from hermes.transforms.dicom_frames import Frame, functional

AlgorithmType: TypeAlias = Literal["MANUAL", "SEMIAUTOMATIC", "AUTOMATIC"]
"""Who drew a segment: a person, a person on a prediction, the model."""

ABSENT_TEXT = "Looked for and absent: "
"""Opens the line of Image Comments (LT, 0020,4000) that lists absent structures as a JSON array."""

_ALGORITHM = "Hermes"
_COPIED = (
    *("PatientID", "PatientName", "PatientBirthDate", "PatientSex", "PatientAge", "PatientSize"),
    *("PatientWeight", "IssuerOfPatientID", "PatientIdentityRemoved", "DeidentificationMethod"),
    *("AccessionNumber", "StudyID", "StudyDate", "StudyTime", "StudyDescription", "ReferringPhysicianName"),
    *("SpecificCharacterSet", "TimezoneOffsetFromUTC", "PositionReferenceIndicator"),
)
"""What the SEG takes over from its image; required ones are there, empty where the image has none."""

_LOSSY = ("LossyImageCompression", "LossyImageCompressionRatio", "LossyImageCompressionMethod")


def write_segmentation(
    labels: LabelMap | Mapping[str, NDArray[Any]],
    source: SourceSeries | Sequence[Any],
    *,
    algorithm_type: AlgorithmType | Mapping[str, AlgorithmType],
    model_version: str | None = None,
    annotator: str = "",
    absent: Sequence[str] = (),
    tracking_uids: Mapping[str, str] | None = None,
    grid: Grid | None = None,
    created: datetime | None = None,
    series_instance_uid: str | None = None,
    series_number: int = 900,
    series_description: str = "Hermes labels",
    sop_instance_uid: str | None = None,
    instance_number: int = 1,
) -> Dataset:
    """A DICOM Segmentation object of labels; save it with ``save_as(path, write_like_original=False)``.

    Args:
        labels: a label map, or name -> mask ``(D, H, W)`` (anything not zero), which may overlap. The voxels
            must be those of the image; axes may be permuted or flipped against the series' own grid.
        source: the image series, or all of its datasets (pixels are not needed).
        algorithm_type: of all structures, or by name.
        model_version: what predicted; required unless everything is MANUAL.
        annotator: who drew or corrected it.
        absent: structures that were looked for and are not there; kept in Image Comments.
        tracking_uids: name -> Tracking UID, to go on with those of an object that is corrected; the default
            follows from series and structure, so that all versions of a label share it.
        grid: of the masks, where they are not on the series' grid; a label map has its own.
        created: content date and time; now by default.
        series_instance_uid: of the SEG series; a new one by default.
        series_number: of the SEG series.
        series_description: of the SEG series, at most 64 characters.
        sop_instance_uid: of the object; a new one by default.
        instance_number: within the series; the version of the label.

    Returns:
        Segments are numbered from 1 without gaps, in the order of the label values (or of the masks); a
        structure without a voxel gets no segment, unless nothing is drawn at all: then the absent ones
        stand with one empty frame each, because DICOM knows no segmentation without a segment.

    Raises:
        GeometryMismatchError: the labels are not on the voxels of the image.
        BadLabelError: no voxel is drawn and nothing is declared absent.
        BadRequestError: a name that cannot be a structure's, or no model version.
        BadImageError: the series cannot be used.
    """
    series = source if isinstance(source, SourceSeries) else SourceSeries.of(source)
    names, pixels = _numbered(labels, grid or series.grid, series.grid)
    both = sorted(set(names) & set(absent))
    if both:
        msg = f"Expected absent structures to have no voxel, but {both} are drawn. Erase them or do not call them absent."
        raise BadLabelError(msg)
    if not names and not absent:
        msg = "Expected a label with at least one voxel or one structure declared absent, got neither."
        raise BadLabelError(msg)
    planes = np.flatnonzero(pixels.any(axis=tuple(range(1, pixels.ndim)))) if names else np.array([0])
    types = {
        name: algorithm_type if isinstance(algorithm_type, str) else algorithm_type.get(name, "MANUAL")
        for name in names or absent
    }
    tracking = tracking_uids or {}
    segments = [
        _describe(number, name, types[name], model_version, tracking.get(name), series)
        for number, name in enumerate(names or absent, start=1)
    ]
    moment = created or datetime.now()
    images = _planes_as_images(series, planes)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of odd values in the image's own attributes, which are copied
        dataset = Segmentation(
            source_images=images,
            pixel_array=_with_empty_segments(pixels[planes], len(segments)),
            segmentation_type="BINARY",
            segment_descriptions=segments,
            series_instance_uid=series_instance_uid or highdicom.UID(),
            series_number=series_number,
            sop_instance_uid=sop_instance_uid or highdicom.UID(),
            instance_number=instance_number,
            manufacturer=_ALGORITHM,
            manufacturer_model_name=_ALGORITHM,
            software_versions=hermes.__version__,
            device_serial_number="0",
            content_label="HERMES",
            content_description=series_description[:64],
            series_description=series_description[:64],
        )
    _refer(dataset, series, dict(zip(planes.tolist(), images, strict=True)))
    _sign(dataset, moment, annotator, absent)
    return dataset


def tracking_of(series_uid: str, name: str) -> tuple[str, str]:
    """Tracking ID and UID of a structure (of a protocol) in a series: the same for every version of its label."""
    structure, protocol = split_task(name)
    text = f"hermes:{series_uid}:{canonical_key(structure)}" + (f"@{key(protocol)}" if protocol else "")
    return text, f"2.25.{uuid.uuid5(uuid.NAMESPACE_OID, text).int}"


def _numbered(
    labels: LabelMap | Mapping[str, NDArray[Any]], grid: Grid, target: Grid
) -> tuple[list[str], NDArray[Any]]:
    """The drawn names, and ``(D, H, W)`` of their numbers from 1, or ``(D, H, W, names)`` where they overlap."""
    if isinstance(labels, LabelMap):
        return _numbered_map(labels, target)
    drawn: dict[str, NDArray[np.bool_]] = {}
    for name, mask in labels.items():
        if mask.shape != grid.shape:
            msg = f"Expected masks of the grid's shape {grid.shape} (z, y, x), got {mask.shape}."
            raise GeometryMismatchError(msg)
        if mask.any():
            drawn[name] = same_voxels(mask, grid, target) != 0
    array = np.zeros(target.shape, dtype=np.uint8 if len(drawn) <= 255 else np.uint16)
    for number, mask in enumerate(drawn.values(), start=1):
        if array[mask].any():
            return list(drawn), np.stack(list(drawn.values()), axis=-1)
        array[mask] = number
    return list(drawn), array


def _numbered_map(label_map: LabelMap, target: Grid) -> tuple[list[str], NDArray[Any]]:
    counts = np.bincount(label_map.array.reshape(-1))
    values = [int(value) for value in np.flatnonzero(counts) if value]
    unnamed = [value for value in values if value not in label_map.names]
    if unnamed:
        msg = f"Expected a name for every value of the label map, got none for {unnamed[:10]}. Name the segments."
        raise BadLabelError(msg)
    names = [label_map.names[value] for value in values]
    if len(set(names)) != len(names):
        msg = (
            f"Expected each structure once, got {sorted(n for n in set(names) if names.count(n) > 1)} twice."
        )
        raise BadLabelError(msg)
    table = np.zeros(len(counts), dtype=np.uint8 if len(values) <= 255 else np.uint16)
    table[values] = np.arange(1, len(values) + 1)
    return names, table[same_voxels(label_map.array, label_map.grid, target)]


def _with_empty_segments(pixels: NDArray[Any], segments: int) -> NDArray[Any]:
    """One empty plane of ``segments`` masks where nothing is drawn; else ``pixels``."""
    if pixels.any():
        return pixels
    return np.zeros((*pixels.shape[:3], segments), dtype=np.uint8)


def _describe(
    number: int,
    name: str,
    algorithm_type: AlgorithmType,
    model_version: str | None,
    tracking_uid: str | None,
    series: SourceSeries,
) -> SegmentDescription:
    structure = structure_of(name)
    if algorithm_type != "MANUAL" and not model_version:
        msg = f"Expected the model version of a segment that a model drew ({name!r}), got none."
        raise BadRequestError(msg)
    tracking_id, default_uid = tracking_of(series.series_uid, name)
    item = SegmentDescription(
        segment_number=number,
        segment_label=segment_label(name),
        segmented_property_category=_code(structure.category),
        segmented_property_type=_code(structure.code),
        algorithm_type=algorithm_type,
        algorithm_identification=None
        if algorithm_type == "MANUAL"
        else highdicom.AlgorithmIdentificationSequence(
            name=_ALGORITHM, version=str(model_version), family=codes.DCM.ArtificialIntelligence
        ),
        tracking_uid=tracking_uid or default_uid,
        tracking_id=tracking_id,
        anatomic_regions=[_code(structure.region)] if structure.region else None,
        primary_anatomic_structures=[_code(part) for part in structure.parts] or None,
    )
    _finish(item, name, structure)
    return item


def _finish(item: SegmentDescription, name: str, structure: Structure) -> None:
    """Side, protocol and colour, for which highdicom has no argument."""
    if structure.laterality is not None:
        kind = item.SegmentedPropertyTypeCodeSequence[0]
        kind.SegmentedPropertyTypeModifierCodeSequence = [code_item(structure.laterality)]
    description = segment_description(name)
    if description is not None:
        item.SegmentDescription = description
    item.RecommendedDisplayCIELabValue = dicom_lab(structure.colour)


def _code(code: Code) -> DicomCode:
    return DicomCode(code.value, code.scheme, code.meaning)


def _planes_as_images(series: SourceSeries, planes: NDArray[np.intp]) -> list[Dataset]:
    """Each plane as a classic image without pixels: one form for classic and multi-frame sources."""
    gap = float(abs(series.frames[0].normal @ series.grid.affine[:3, 2]))
    return [_plane_as_image(series, series.frames[plane], series.references[plane], gap) for plane in planes]


def _plane_as_image(series: SourceSeries, frame: Frame, reference: Reference, gap: float) -> Dataset:
    header = series.headers[frame.source]
    groups = header.get("PerFrameFunctionalGroupsSequence")
    group = groups[frame.frame] if groups and frame.frame is not None else None
    image = Dataset()
    for keyword in _COPIED:
        setattr(image, keyword, header.get(keyword))
    if str(header.get("LossyImageCompression", "")) == "01":
        for keyword in _LOSSY:
            setattr(image, keyword, header.get(keyword))
    image.StudyInstanceUID, image.SeriesInstanceUID = header.StudyInstanceUID, header.SeriesInstanceUID
    image.SOPClassUID, image.SOPInstanceUID = reference.sop_class_uid, reference.sop_instance_uid
    image.Modality, (image.Rows, image.Columns) = header.Modality, frame.size
    image.FrameOfReferenceUID = (
        series.frame_of_reference or f"2.25.{uuid.uuid5(uuid.NAMESPACE_OID, series.series_uid).int}"
    )
    for macro, keyword in (
        ("PlanePositionSequence", "ImagePositionPatient"),
        ("PlaneOrientationSequence", "ImageOrientationPatient"),
        ("PixelMeasuresSequence", "PixelSpacing"),
    ):
        setattr(image, keyword, functional(header, group, macro, keyword))
    thickness = functional(header, group, "PixelMeasuresSequence", "SliceThickness")
    image.SliceThickness = thickness or f"{gap:.9g}"
    image.SpacingBetweenSlices = f"{gap:.9g}"  # a decimal string holds 16 characters
    return image


def _refer(dataset: Dataset, series: SourceSeries, images: Mapping[int, Dataset]) -> None:
    """Points at the source: all instances of the volume, and the very frame behind each frame of the SEG."""
    by_position = {tuple(map(float, item.ImagePositionPatient)): plane for plane, item in images.items()}
    for group in dataset.PerFrameFunctionalGroupsSequence:
        position = tuple(map(float, group.PlanePositionSequence[0].ImagePositionPatient))
        reference = series.references[by_position[position]]
        image = group.DerivationImageSequence[0].SourceImageSequence[0]
        image.ReferencedSOPClassUID = reference.sop_class_uid
        image.ReferencedSOPInstanceUID = reference.sop_instance_uid
        if reference.frame_number is not None:
            image.ReferencedFrameNumber = reference.frame_number
    objects = {r.sop_instance_uid: r.sop_class_uid for r in series.references}
    dataset.SourceImageSequence = [_instance(sop, kind) for sop, kind in objects.items()]
    referred = Dataset()
    referred.SeriesInstanceUID = series.series_uid
    referred.ReferencedInstanceSequence = [_instance(sop, kind) for sop, kind in objects.items()]
    dataset.ReferencedSeriesSequence = [referred]


def _instance(sop_instance_uid: str, sop_class_uid: str) -> Dataset:
    item = Dataset()
    item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = sop_class_uid, sop_instance_uid
    return item


def _sign(dataset: Dataset, moment: datetime, annotator: str, absent: Sequence[str]) -> None:
    dataset.ContentDate = dataset.SeriesDate = moment.strftime("%Y%m%d")
    dataset.ContentTime = dataset.SeriesTime = moment.strftime("%H%M%S.%f")
    dataset.ContentCreatorName = annotator.replace("\\", " ")[:64] or None
    if absent:
        dataset.ImageComments = ABSENT_TEXT + json.dumps(list(absent), ensure_ascii=False)
    dataset.SpecificCharacterSet = "ISO_IR 192"
