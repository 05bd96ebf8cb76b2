"""All labels of an image: Segmentation objects and RT Structure Sets of any writer, the newest of each structure."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

from hermes.dicom.labels import DicomLabels, Refusal, Segment
from hermes.dicom.seg_read import (
    LABEL_MAP_STORAGE,
    SEGMENTATION_STORAGE,
    ReadObject,
    Target,
    creation_time,
    read_segmentation,
)
from hermes.dicom.source import SourceSeries
from hermes.dicom.structure_set import STRUCTURE_SET_STORAGE, read_structure_set
from hermes.errors import BadLabelError
from hermes.geometry import Grid


def read_segmentations(
    datasets: Sequence[Any],
    target: Grid | SourceSeries | Sequence[Any],
    *,
    structures: Sequence[str] = (),
) -> DicomLabels:
    """The labels of one image out of its DICOM SEG and RTSTRUCT objects.

    For each structure the newest object that lists it wins whole: by content date and time, then instance
    number, then UID; an object that lists it without a voxel, or declares it absent, counts. Within one
    object, segments of one name are united. An object that cannot be read is refused with its reason and
    does not stop the others.

    Args:
        datasets: ``pydicom.Dataset`` of every label object, with pixels.
        target: the image: its series, all of its datasets, or only its grid. With a grid alone nothing can
            be said about the frame of reference, and a frame must state its position.
        structures: the names that the campaign uses.

    Raises:
        BadImageError: the series of the image cannot be used.
    """
    place = _target(target, tuple(structures))
    refused: list[Refusal] = []
    newest: dict[str, Segment | bool] = {}  # True: declared absent; False: listed without a voxel
    for dataset in sorted(datasets, key=age_key, reverse=True):
        try:
            said = _read_object(dataset, place)
        except BadLabelError as error:
            refused.append(Refusal(str(dataset.get("SOPInstanceUID", "")), str(error)))
            continue
        for segment in said.segments:
            newest.setdefault(segment.name, segment)
        for name in said.absent:
            newest.setdefault(name, True)
        for name in said.empty:
            newest.setdefault(name, False)
    return DicomLabels(
        place.grid,
        tuple(entry for entry in newest.values() if isinstance(entry, Segment)),
        tuple(name for name, entry in newest.items() if entry is True),
        tuple(name for name, entry in newest.items() if entry is False),
        tuple(refused),
    )


def age_key(dataset: Any) -> tuple[str, int, str]:
    """What orders label objects by age: the newest is the largest."""
    number = dataset.get("InstanceNumber")
    return creation_time(dataset), int(number or 0), str(dataset.get("SOPInstanceUID", ""))


def _target(target: Grid | SourceSeries | Sequence[Any], structures: tuple[str, ...]) -> Target:
    if isinstance(target, Grid):
        return Target(target, None, structures)
    series = target if isinstance(target, SourceSeries) else SourceSeries.of(target)
    return Target(series.grid, series, structures)


def _read_object(dataset: Any, target: Target) -> ReadObject:
    kind = str(dataset.get("SOPClassUID", ""))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # pydicom warns of every odd value
            if kind in (SEGMENTATION_STORAGE, LABEL_MAP_STORAGE):
                return read_segmentation(dataset, target)
            if kind == STRUCTURE_SET_STORAGE:
                return read_structure_set(dataset, target)
    except (AttributeError, KeyError, IndexError, TypeError, ValueError) as error:
        msg = "Expected a complete DICOM label object, got one that lacks what the standard requires. Export it again."
        raise BadLabelError(msg) from error
    msg = "Expected a DICOM Segmentation or RT Structure Set, got an object of another kind."
    raise BadLabelError(msg)
