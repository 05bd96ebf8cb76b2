"""Reading DICOM Segmentation objects of any writer onto the grid of their image."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hermes.dicom.coding import name_of
from hermes.dicom.frame_pixels import FrameReader, frame_reader
from hermes.dicom.labels import Segment
from hermes.dicom.placing import Plane, place
from hermes.dicom.seg_write import ABSENT_TEXT
from hermes.dicom.source import SourceSeries
from hermes.errors import BadLabelError
from hermes.geometry import Grid
from hermes.transforms.dicom_frames import functional

SEGMENTATION_STORAGE = "1.2.840.10008.5.1.4.1.1.66.4"
LABEL_MAP_STORAGE = "1.2.840.10008.5.1.4.1.1.66.7"


@dataclass(frozen=True, eq=False)
class Target:
    """Where labels are to be brought: the grid, and the series where it is known."""

    grid: Grid
    series: SourceSeries | None
    structures: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class ReadObject:
    """What one label object says.

    Attributes:
        segments: its structures with voxels; several segments of one name are united.
        absent: structures that it declares absent.
        empty: structures that it lists without a voxel.
    """

    segments: tuple[Segment, ...]
    absent: tuple[str, ...]
    empty: tuple[str, ...]


def read_segmentation(dataset: Any, target: Target) -> ReadObject:
    """The structures of one SEG on the grid of ``target``.

    Raises:
        BadLabelError: another frame of reference, frames without a place, pixels that cannot be decoded.
    """
    check_frame_of_reference(str(dataset.get("FrameOfReferenceUID", "") or ""), dataset, target)
    items = {int(item.SegmentNumber): item for item in dataset.get("SegmentSequence") or ()}
    planes: dict[int, list[Plane]] = defaultdict(list)
    for number, plane in _planes(dataset, target):
        planes[number].append(plane)
    absent = tuple(name_of(name, {}, target.structures) for name in absent_names(dataset))
    drawn: list[Segment] = []
    empty: list[str] = []
    for number in sorted(items.keys() | planes.keys()):
        segment, name = _segment(dataset, number, items.get(number), planes[number], target)
        if segment is not None:
            drawn.append(segment)
        elif name not in absent:
            empty.append(name)
    united = unite(drawn)
    names = {segment.name for segment in united}
    return ReadObject(
        united,
        tuple(name for name in absent if name not in names),
        tuple(name for name in dict.fromkeys(empty) if name not in names),
    )


def absent_names(dataset: Any) -> list[str]:
    """The structures that a SEG of ours declares absent."""
    for line in str(dataset.get("ImageComments", "") or "").splitlines():
        if line.startswith(ABSENT_TEXT):
            try:
                names = json.loads(line[len(ABSENT_TEXT) :])
            except ValueError:  # edited by somebody: then nothing is declared
                return []
            return [name for name in names if isinstance(name, str)] if isinstance(names, list) else []
    return []


def unite(segments: Sequence[Segment]) -> tuple[Segment, ...]:
    """One segment per name: several of one name (lesions) are one structure."""
    found: dict[str, Segment] = {}
    for segment in segments:
        first = found.get(segment.name)
        found[segment.name] = (
            segment
            if first is None
            else replace(
                first,
                mask=first.mask.union(segment.mask),
                exact=first.exact and segment.exact,
                voxels_outside=first.voxels_outside + segment.voxels_outside,
            )
        )
    return tuple(found.values())


def check_frame_of_reference(uid: str, dataset: Any, target: Target) -> None:
    """Nothing, when the labels lie in the space of the image.

    Raises:
        BadLabelError: they do not, or nothing says that they do.
    """
    if target.series is None:
        return  # the caller chose the objects, and vouches for them
    image = target.series.frame_of_reference
    if uid and image:
        if uid != image:
            msg = (
                "Expected labels in the frame of reference of the image, got another one: positions cannot "
                "be compared. Draw on this series, or register and resample the label first."
            )
            raise BadLabelError(msg)
        return
    if target.series.series_uid not in referenced_series(dataset):
        msg = (
            "Expected labels that name this series or its frame of reference, got an object that does "
            "neither. Export the label again with the image as reference."
        )
        raise BadLabelError(msg)


def referenced_series(dataset: Any) -> set[str]:
    """The series that a SEG or an RTSTRUCT says it was drawn on."""
    found = {str(item.get("SeriesInstanceUID", "")) for item in dataset.get("ReferencedSeriesSequence") or ()}
    for frame in dataset.get("ReferencedFrameOfReferenceSequence") or ():
        for study in frame.get("RTReferencedStudySequence") or ():
            for item in study.get("RTReferencedSeriesSequence") or ():
                found.add(str(item.get("SeriesInstanceUID", "")))
    return found - {""}


def creation_time(dataset: Any) -> str:
    """``YYYYMMDDhhmmss.ffffff`` of the content, else of the structure set, series or instance; "" for none."""
    for date, time in (
        ("ContentDate", "ContentTime"),
        ("StructureSetDate", "StructureSetTime"),
        ("InstanceCreationDate", "InstanceCreationTime"),
        ("SeriesDate", "SeriesTime"),
    ):
        if dataset.get(date):
            day = str(dataset.get(date)).replace("-", "")
            clock, _, fraction = str(dataset.get(time) or "").replace(":", "").partition(".")
            return f"{day}{clock.ljust(6, '0')}.{fraction.ljust(6, '0')}"
    return ""


def _segment(
    dataset: Any, number: int, item: Any, planes: Sequence[Plane], target: Target
) -> tuple[Segment | None, str]:
    item = {} if item is None else item
    label = str(item.get("SegmentLabel", "") or "")
    name = name_of(
        label or f"Segment {number}", item, target.structures, str(item.get("SegmentDescription", "") or "")
    )
    placed = place(planes, target.grid)
    if not placed.mask.count:
        return None, name
    algorithm = str(item.get("SegmentAlgorithmName", "") or "")
    known = item.get("SegmentationAlgorithmIdentificationSequence") or ()
    if known and known[0].get("AlgorithmVersion"):
        algorithm = f"{known[0].get('AlgorithmName', algorithm)} {known[0].AlgorithmVersion}"
    return Segment(
        name=name,
        label=label,
        mask=placed.mask,
        algorithm_type=str(item.get("SegmentAlgorithmType", "") or ""),
        algorithm=algorithm,
        tracking_id=str(item.get("TrackingID", "") or ""),
        tracking_uid=str(item.get("TrackingUID", "") or ""),
        creator=str(dataset.get("ContentCreatorName", "") or ""),
        created=creation_time(dataset),
        sop_instance_uid=str(dataset.get("SOPInstanceUID", "")),
        number=number,
        exact=placed.exact,
        voxels_outside=placed.outside,
    ), name


def _planes(dataset: Any, target: Target) -> Iterator[tuple[int, Plane]]:
    """Segment number and plane of every frame that has a set pixel."""
    groups = dataset.get("PerFrameFunctionalGroupsSequence") or [None]
    try:
        read = frame_reader(dataset)
    except (AttributeError, TypeError, ValueError) as error:
        msg = "Expected a segmentation with pixels, got an object without. Store it again."
        raise BadLabelError(msg) from error
    is_label_map = str(dataset.get("SOPClassUID", "")) == LABEL_MAP_STORAGE or (
        str(dataset.get("SegmentationType", "")) == "LABELMAP"
    )
    numbers = [int(item.SegmentNumber) for item in dataset.get("SegmentSequence") or ()]
    for frame, group in enumerate(groups):
        if is_label_map:
            yield from _label_map_planes(dataset, group, read(frame), target)
            continue
        pixels = _drawn(dataset, read, frame)
        if pixels.any():
            number = functional(dataset, group, "SegmentIdentificationSequence", "ReferencedSegmentNumber")
            if number is None and len(numbers) != 1:
                msg = (
                    "Expected the segment number of every frame, got a frame without. Export the label again."
                )
                raise BadLabelError(msg)
            yield (
                int(numbers[0] if number is None else number),
                _plane(dataset, group, pixels, target).cropped(),
            )


def _label_map_planes(
    dataset: Any, group: Any, pixels: NDArray[Any], target: Target
) -> Iterator[tuple[int, Plane]]:
    background = int(dataset.get("PixelPaddingValue", 0) or 0)
    for value in np.unique(pixels):
        if int(value) != background:
            yield int(value), _plane(dataset, group, pixels == value, target).cropped()


def _drawn(dataset: Any, read: FrameReader, frame: int) -> NDArray[np.bool_]:
    """The set pixels; of a fractional segmentation those of at least half."""
    pixels = read(frame)
    if str(dataset.get("SegmentationType", "BINARY")) == "FRACTIONAL":
        highest = int(dataset.get("MaximumFractionalValue", 255) or 255)
        fractional: NDArray[np.bool_] = pixels.astype(np.int32) * 2 >= highest
        return fractional
    drawn: NDArray[np.bool_] = pixels != 0
    return drawn


def _plane(dataset: Any, group: Any, pixels: NDArray[np.bool_], target: Target) -> Plane:
    position = functional(dataset, group, "PlanePositionSequence", "ImagePositionPatient")
    cosines = functional(dataset, group, "PlaneOrientationSequence", "ImageOrientationPatient")
    spacing = functional(dataset, group, "PixelMeasuresSequence", "PixelSpacing")
    if position is None or cosines is None or spacing is None:
        return _plane_of_source(group, pixels, target)
    axes = np.array(cosines, dtype=np.float64).reshape(2, 3)
    gap = functional(dataset, group, "PixelMeasuresSequence", "SpacingBetweenSlices")
    gap = gap or functional(dataset, group, "PixelMeasuresSequence", "SliceThickness")
    return Plane(
        np.array(position, dtype=np.float64),
        axes / np.linalg.norm(axes, axis=1, keepdims=True),
        (float(spacing[1]), float(spacing[0])),
        abs(float(gap or 0.0)) or min(target.grid.spacing_mm),
        pixels,
    )


def _plane_of_source(group: Any, pixels: NDArray[np.bool_], target: Target) -> Plane:
    """The plane of the image frame that a frame without a position says it was drawn on."""
    for derivation in (group.get("DerivationImageSequence") if group is not None else None) or ():
        for image in derivation.get("SourceImageSequence") or ():
            number = image.get("ReferencedFrameNumber")
            place = (str(image.get("ReferencedSOPInstanceUID", "")), None if number is None else int(number))
            index = target.series.planes.get(place) if target.series is not None else None
            if (
                index is not None
                and target.series is not None
                and pixels.shape == target.series.frames[index].size
            ):
                frame = target.series.frames[index]
                gap = abs(float(frame.normal @ target.grid.affine[:3, 2]))
                return Plane(frame.position, frame.axes, frame.pixel_mm, gap, pixels)
    msg = (
        "Expected a position, orientation and pixel spacing for every frame, or the image it was drawn on; "
        "got a frame with neither. Export the label again."
    )
    raise BadLabelError(msg)
