"""Reading RT Structure Sets: contours become voxels of the image's grid.

A voxel belongs to a structure when its centre lies inside by the even-odd rule over all contours of the
structure in that plane: a contour within another cuts a hole (XOR), and so does a keyhole. A centre exactly on a
contour belongs to the side of larger x and y, so that touching structures share no voxel and leave none out.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hermes.dicom.coding import name_of
from hermes.dicom.labels import Mask, Segment
from hermes.dicom.seg_read import ReadObject, Target, check_frame_of_reference, creation_time, unite
from hermes.errors import BadLabelError

STRUCTURE_SET_STORAGE = "1.2.840.10008.5.1.4.1.1.481.3"
IN_PLANE = 0.5
"""Largest distance of a contour's points from their mean plane and of that from a slice, in slices."""


def read_structure_set(dataset: Any, target: Target) -> ReadObject:
    """The structures of one RTSTRUCT on the grid of ``target``.

    Raises:
        BadLabelError: another frame of reference, or contours across the slices of the image.
    """
    observations = {
        int(item.ReferencedROINumber): item for item in dataset.get("RTROIObservationsSequence") or ()
    }
    contours = {int(item.ReferencedROINumber): item for item in dataset.get("ROIContourSequence") or ()}
    drawn, empty = [], []
    for roi in dataset.get("StructureSetROISequence") or ():
        number = int(roi.ROINumber)
        name = name_of(str(roi.get("ROIName", "") or ""), observations.get(number, {}), target.structures)
        check_frame_of_reference(str(roi.get("ReferencedFrameOfReferenceUID", "") or ""), dataset, target)
        mask = _mask(contours.get(number), target)
        if not mask.count:
            empty.append(name)
            continue
        drawn.append(
            Segment(
                name=name,
                label=str(roi.get("ROIName", "") or ""),
                mask=mask,
                algorithm_type=str(roi.get("ROIGenerationAlgorithm", "") or ""),
                algorithm="",
                tracking_id="",
                tracking_uid="",
                creator=str(dataset.get("OperatorsName", "") or ""),
                created=creation_time(dataset),
                sop_instance_uid=str(dataset.get("SOPInstanceUID", "")),
                number=number,
            )
        )
    names = {segment.name for segment in drawn}
    return ReadObject(unite(drawn), (), tuple(name for name in dict.fromkeys(empty) if name not in names))


def _mask(item: Any, target: Target) -> Mask:
    """The voxels inside the contours of one structure."""
    depth, height, width = target.grid.shape
    planes: dict[int, NDArray[np.uint8]] = defaultdict(lambda: np.zeros((height, width + 1), dtype=np.uint8))
    for z, polygon in _polygons(item, target):
        if 0 <= z < depth:
            _flip_inside(planes[z], polygon)
    if not planes:
        return Mask((0, 0, 0), np.zeros((0, 0, 0), dtype=np.bool_))
    first = min(planes)
    stack = np.zeros((max(planes) - first + 1, height, width), dtype=np.bool_)
    for z, flips in planes.items():
        stack[z - first] = np.bitwise_xor.accumulate(flips, axis=1)[:, :width] != 0
    inside = Mask.of(stack)
    return Mask((inside.start[0] + first, *inside.start[1:]), inside.voxels)


def _polygons(item: Any, target: Target) -> Iterator[tuple[int, NDArray[np.float64]]]:
    """Slice index and ``(n, 2)`` voxel indices (x, y) of every closed contour."""
    for contour in (item.get("ContourSequence") if item is not None else None) or ():
        if str(contour.get("ContourGeometricType", "")) not in ("CLOSED_PLANAR", "CLOSEDPLANAR_XOR"):
            continue  # points and open lines enclose nothing
        points = np.array(contour.get("ContourData") or [], dtype=np.float64).reshape(-1, 3)
        if len(points) < 3:
            continue
        index = target.grid.to_index(points)
        z = float(index[:, 2].mean())
        if np.abs(index[:, 2] - z).max() > IN_PLANE:
            msg = (
                "Expected contours that lie in the slices of the image, got contours across them. Draw on "
                "this series, or export the structures as a segmentation (DICOM SEG)."
            )
            raise BadLabelError(msg)
        yield round(z), index[:, :2]


def _flip_inside(flips: NDArray[np.uint8], polygon: NDArray[np.float64]) -> None:
    """Marks, in each row, the voxel from which on one crosses an edge of ``polygon``.

    Args:
        flips: ``(rows, columns + 1)``; a running XOR along a row tells inside from outside.
        polygon: ``(n, 2)`` x, y.
    """
    rows, columns = flips.shape[0], flips.shape[1] - 1
    for (x0, y0), (x1, y1) in zip(polygon, np.roll(polygon, -1, axis=0), strict=True):
        # Half-open in y: a vertex on a row's centre line is crossed once, not twice or never.
        first, last = sorted((y0, y1))
        crossed = np.arange(max(0, int(np.ceil(first))), min(rows, int(np.ceil(last))))
        if not crossed.size:
            continue
        x = x0 + (crossed - y0) * (x1 - x0) / (y1 - y0)
        start = np.clip(np.ceil(x), 0, columns).astype(np.int64)
        np.bitwise_xor.at(flips, (crossed, start), np.uint8(1))
