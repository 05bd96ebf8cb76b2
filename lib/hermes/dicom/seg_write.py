"""Writing labels as a DICOM Segmentation object (PS3.3 A.51), with highdicom."""

from __future__ import annotations

import json
import uuid
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
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

LONGEST_LO = 64
"""Characters of a DICOM long string (PS3.5 6.2)."""
_ALGORITHM = "Hermes"
_REQUIRED = (
    *("PatientID", "PatientName", "PatientBirthDate", "PatientSex", "AccessionNumber", "StudyID"),
    *("StudyDate", "StudyTime", "ReferringPhysicianName", "PositionReferenceIndicator"),
)
"""What the SEG takes over from its image; empty where the image has none."""
_OPTIONAL = (
    *("PatientAge", "PatientSize", "PatientWeight", "IssuerOfPatientID", "PatientIdentityRemoved"),
    *("DeidentificationMethod", "StudyDescription", "TimezoneOffsetFromUTC"),
)
"""What the SEG takes over where the image has it."""
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
        series_description: of the SEG series and, as Content Description, of the object. A long string (LO): what lies
            behind 64 characters is cut off, a backslash or control character becomes a space.
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
    drawn = (
        _drawn_map(labels, series.grid)
        if isinstance(labels, LabelMap)
        else _drawn_masks(labels, grid or series.grid, series.grid)
    )
    names = drawn.names
    _require_content(names, absent)
    planes = np.flatnonzero(drawn.present.any(axis=1)) if names else np.array([0])
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
    images = _planes_as_images(series, planes, len(segments))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of odd values in the image's own attributes, which are copied
        dataset = Segmentation(
            source_images=images,
            pixel_array=_presence(drawn.present[planes], len(segments)),
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
            content_description=long_string(series_description),
            series_description=long_string(series_description),
        )
        _copy(dataset, series.headers[series.frames[0].source])
    behind = _refer(dataset, series, dict(zip(planes.tolist(), images, strict=True)))
    _fill(dataset, drawn, series.frames[0].size, behind)
    _sign(dataset, moment, annotator, absent)
    return dataset


def long_string(text: str) -> str:
    """A text as DICOM's LO can hold it: at most 64 characters, no backslash, nothing that cannot be shown."""
    shown = "".join(" " if one == "\\" or not one.isprintable() else one for one in text)
    return shown.strip()[:LONGEST_LO].strip()


def _require_content(drawn: Sequence[str], absent: Sequence[str]) -> None:
    both = sorted(set(drawn) & set(absent))
    if both:
        msg = f"Expected absent structures to have no voxel, but {both} are drawn. Erase them or do not call them absent."
        raise BadLabelError(msg)
    if not drawn and not absent:
        msg = "Expected a label with at least one voxel or one structure declared absent, got neither."
        raise BadLabelError(msg)


def tracking_of(series_uid: str, name: str) -> tuple[str, str]:
    """Tracking ID and UID of a structure (of a protocol) in a series: the same for every version of its label."""
    structure, protocol = split_task(name)
    text = f"hermes:{series_uid}:{canonical_key(structure)}" + (f"@{key(protocol)}" if protocol else "")
    return text, f"2.25.{uuid.uuid5(uuid.NAMESPACE_OID, text).int}"


@dataclass(frozen=True, eq=False)
class _Drawn:
    """What is drawn, plane by plane: whole masks of many structures would not fit in memory.

    Attributes:
        names: of the segments, from number 1.
        present: ``(planes, segments)`` bool: where a segment has a voxel.
        frame: (segment from 0, plane) -> its mask ``(rows, columns)``.
        overlap: whether a voxel belongs to two segments.
    """

    names: tuple[str, ...]
    present: NDArray[np.bool_]
    frame: Callable[[int, int], NDArray[np.bool_]]
    overlap: bool


def _drawn_map(label_map: LabelMap, target: Grid) -> _Drawn:
    array = same_voxels(label_map.array, label_map.grid, target)
    size = int(array.max(initial=0)) + 1
    counts = np.stack([np.bincount(plane.reshape(-1), minlength=size) for plane in array])
    values = [int(value) for value in np.flatnonzero(counts.any(axis=0)) if value]
    unnamed = [value for value in values if value not in label_map.names]
    if unnamed:
        msg = f"Expected a name for every value of the label map, got none for {unnamed[:10]}. Name the segments."
        raise BadLabelError(msg)
    names = tuple(label_map.names[value] for value in values)
    if len(set(names)) != len(names):
        msg = (
            f"Expected each structure once, got {sorted(n for n in set(names) if names.count(n) > 1)} twice."
        )
        raise BadLabelError(msg)
    return _Drawn(
        names, counts[:, values] > 0, lambda segment, plane: array[plane] == values[segment], overlap=False
    )


def _drawn_masks(masks: Mapping[str, NDArray[Any]], grid: Grid, target: Grid) -> _Drawn:
    stacks: dict[str, NDArray[Any]] = {}
    for name, mask in masks.items():
        if mask.shape != grid.shape:
            msg = f"Expected masks of the grid's shape {grid.shape} (z, y, x), got {mask.shape}."
            raise GeometryMismatchError(msg)
        if mask.any():
            stacks[name] = same_voxels(mask, grid, target)
    arrays = list(stacks.values())
    present = np.array([[plane.any() for plane in array] for array in arrays], dtype=np.bool_)
    overlap = any(
        np.count_nonzero(sum((array[plane] != 0).astype(np.uint8) for array in arrays) > 1)
        for plane in range(target.shape[0])
    )
    return _Drawn(
        tuple(stacks),
        present.T.reshape(target.shape[0], len(arrays)),
        lambda segment, plane: arrays[segment][plane] != 0,
        overlap=overlap,
    )


def _presence(present: NDArray[np.bool_], segments: int) -> NDArray[np.uint16]:
    """``(planes, 1, segments)`` label map in which a segment has one pixel in each plane it is drawn in.

    From this highdicom writes the frames that there are; their pixels are put in by :func:`_fill`, one frame
    after the other: highdicom would hold all of them unpacked at once (gigabytes for a whole body).
    """
    if not present.size:
        return np.zeros((1, 1, segments), dtype=np.uint16)
    numbers: NDArray[np.uint16] = (present * np.arange(1, segments + 1)).astype(np.uint16)
    return numbers[:, None, :]


def _fill(dataset: Dataset, drawn: _Drawn, size: tuple[int, int], planes: Sequence[int]) -> None:
    """Puts in the pixels of each frame; ``planes``: the plane that each frame lies on."""
    dataset.Rows, dataset.Columns = size
    dataset.SegmentsOverlap = "YES" if drawn.overlap else "NO"
    numbers = [
        int(group.SegmentIdentificationSequence[0].ReferencedSegmentNumber)
        for group in dataset.PerFrameFunctionalGroupsSequence
    ]
    packed = bytearray()
    rest = np.empty(0, dtype=np.bool_)
    for number, plane in zip(numbers, planes, strict=True):
        frame = drawn.frame(number - 1, plane) if drawn.names else np.zeros(size, dtype=np.bool_)
        bits = np.concatenate([rest, frame.reshape(-1)])
        whole = bits.size // 8 * 8  # a frame may end within a byte: the next one goes on there
        packed += np.packbits(bits[:whole], bitorder="little").tobytes()
        rest = bits[whole:]
    packed += np.packbits(rest, bitorder="little").tobytes()
    dataset.PixelData = bytes(packed) + b"\0" * (len(packed) % 2)


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


def _planes_as_images(series: SourceSeries, planes: NDArray[np.intp], columns: int) -> list[Dataset]:
    """Each plane as a classic image of one row without pixels: one form for classic and multi-frame sources."""
    gap = float(abs(series.frames[0].normal @ series.grid.affine[:3, 2]))
    return [
        _plane_as_image(series, series.frames[plane], series.references[plane], gap, columns)
        for plane in planes
    ]


def _plane_as_image(
    series: SourceSeries, frame: Frame, reference: Reference, gap: float, columns: int
) -> Dataset:
    header = series.headers[frame.source]
    groups = header.get("PerFrameFunctionalGroupsSequence")
    group = groups[frame.frame] if groups and frame.frame is not None else None
    image = Dataset()
    for keyword in _REQUIRED:  # highdicom refuses odd values; the true ones are copied as they are
        setattr(image, keyword, None)
    if str(header.get("LossyImageCompression", "")) == "01":
        for keyword in _LOSSY:
            setattr(image, keyword, header.get(keyword))
    image.StudyInstanceUID, image.SeriesInstanceUID = header.StudyInstanceUID, header.SeriesInstanceUID
    # Made up for a frame of a multi-frame object, since highdicom wants them all different; `_refer` puts it right.
    number = "" if reference.frame_number is None else f".{reference.frame_number}"
    image.SOPClassUID, image.SOPInstanceUID = reference.sop_class_uid, reference.sop_instance_uid + number
    image.Modality, (image.Rows, image.Columns) = header.Modality, (1, columns)
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


def _refer(dataset: Dataset, series: SourceSeries, images: Mapping[int, Dataset]) -> list[int]:
    """Points at the source: all instances of the volume, and the very frame behind each frame of the SEG.

    Returns:
        For each frame of the SEG the plane of the grid that it lies on.
    """
    behind = []
    by_position = {tuple(map(float, item.ImagePositionPatient)): plane for plane, item in images.items()}
    for group in dataset.PerFrameFunctionalGroupsSequence:
        position = tuple(map(float, group.PlanePositionSequence[0].ImagePositionPatient))
        behind.append(by_position[position])
        reference = series.references[behind[-1]]
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
    return behind


def _instance(sop_instance_uid: str, sop_class_uid: str) -> Dataset:
    item = Dataset()
    item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = sop_class_uid, sop_instance_uid
    return item


def _copy(dataset: Dataset, header: Any) -> None:
    """Patient and study, as the image has them."""
    for keyword in (*_REQUIRED, *_OPTIONAL):
        if keyword in header and (keyword in _REQUIRED or header.get(keyword) not in (None, "")):
            dataset[keyword] = header[keyword]


def _sign(dataset: Dataset, moment: datetime, annotator: str, absent: Sequence[str]) -> None:
    dataset.ContentDate = dataset.SeriesDate = moment.strftime("%Y%m%d")
    dataset.ContentTime = dataset.SeriesTime = moment.strftime("%H%M%S.%f")
    # In a person's name (PN) "=" would begin another way of writing it.
    dataset.ContentCreatorName = long_string(annotator.replace("=", " ")) or None
    if absent:
        dataset.ImageComments = ABSENT_TEXT + json.dumps(list(absent), ensure_ascii=False)
    dataset.SpecificCharacterSet = "ISO_IR 192"
