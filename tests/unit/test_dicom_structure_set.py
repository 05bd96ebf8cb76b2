"""RT Structure Sets: contours become voxels by the even-odd rule at voxel centres."""

from __future__ import annotations

import numpy as np
import pytest
from pydicom.dataset import Dataset

from hermes.dicom import DicomLabels, SourceSeries, read_segmentations
from hermes.dicom.structure_set import STRUCTURE_SET_STORAGE
from hermes.geometry import Grid
from hermes.phantoms import make_series

SHAPE = (3, 8, 10)
TURN = np.array([[0.36, 0.48, -0.8], [-0.8, 0.6, 0.0], [0.48, 0.64, 0.6]])
GRID = Grid.from_axes(SHAPE, (-31.5, 12.25, 80), (0.5, 0.75, 2.5), TURN)
SERIES = make_series(np.zeros(SHAPE), GRID.affine)


def square(low_x, low_y, high_x, high_y, z=1.0):
    """A contour in voxel indices."""
    return [(low_x, low_y, z), (high_x, low_y, z), (high_x, high_y, z), (low_x, high_y, z)]


def structure_set(regions: dict[str, list], kind: str = "CLOSED_PLANAR") -> Dataset:
    data = Dataset()
    data.SOPClassUID, data.SOPInstanceUID, data.Modality = STRUCTURE_SET_STORAGE, "1.2.5", "RTSTRUCT"
    data.StructureSetDate, data.StructureSetTime = "20260102", "120000"
    rois, drawings = [], []
    for number, (name, contours) in enumerate(regions.items(), 1):
        roi, drawing = Dataset(), Dataset()
        roi.ROINumber, roi.ROIName, roi.ReferencedFrameOfReferenceUID = number, name, "1.2.3.0.1"
        drawing.ReferencedROINumber, drawing.ContourSequence = number, []
        for contour in contours:
            item = Dataset()
            item.ContourGeometricType, item.NumberOfContourPoints = kind, len(contour)
            item.ContourData = [f"{v:.8g}" for v in GRID.to_mm(contour).ravel()]
            drawing.ContourSequence.append(item)
        rois.append(roi)
        drawings.append(drawing)
    data.StructureSetROISequence, data.ROIContourSequence = rois, drawings
    return data


def read(data: Dataset) -> DicomLabels:
    return read_segmentations([data], SourceSeries.of(SERIES))


def test_a_voxel_belongs_when_its_centre_is_inside() -> None:
    back = read(structure_set({"Liver": [square(1.6, 2.4, 5.4, 4.6)]}))
    expected = np.zeros(SHAPE, bool)
    expected[1, 3:5, 2:6] = True
    assert np.array_equal(back.mask("liver"), expected)
    assert (back.refused, back.segments[0].created) == ((), "20260102120000.000000")


def test_inner_contours_cut_holes_and_islands_stand_in_them() -> None:
    nested = [square(0.5, 0.5, 8.5, 6.5), square(2.5, 1.5, 7.5, 5.5), square(4.5, 2.5, 6.5, 4.5)]
    mask = read(structure_set({"x": nested})).mask("x")[1]
    expected = np.zeros(SHAPE[1:], bool)
    expected[1:7, 1:9] = True
    expected[2:6, 3:8] = False
    expected[3:5, 5:7] = True
    assert np.array_equal(mask, expected)


def test_touching_structures_share_no_voxel_and_leave_none_out() -> None:
    # The common edge runs through voxel centres.
    back = read(structure_set({"a": [square(1, 1, 5, 5)], "b": [square(5, 1, 9, 5)]}))
    both = back.mask("a").astype(int) + back.mask("b")
    rows = np.flatnonzero(both[1].any(axis=1))
    assert both.max() == 1
    assert (both[1, rows, 2:9] == 1).all()
    assert len(rows) == 4


def test_any_polygon_agrees_with_its_definition() -> None:
    random = np.random.default_rng(3)
    for _ in range(20):
        polygon = np.column_stack([random.uniform(-2, 11, 7), random.uniform(-2, 9, 7), np.ones(7)])
        mask = read(structure_set({"x": [polygon.tolist()]}))
        found = mask.mask("x")[1] if mask.segments else np.zeros(SHAPE[1:], bool)
        for y in range(SHAPE[1]):
            for x in range(SHAPE[2]):
                crossings = 0
                for (x0, y0, _), (x1, y1, _) in zip(polygon, np.roll(polygon, -1, 0), strict=True):
                    if (y0 > y) != (y1 > y) and x0 + (y - y0) * (x1 - x0) / (y1 - y0) > x:
                        crossings += 1
                assert found[y, x] == bool(crossings % 2)


def test_open_contours_and_empty_regions_are_no_voxels() -> None:
    back = read(structure_set({"liver": [square(1, 1, 5, 5)]}, kind="OPEN_PLANAR"))
    assert (back.segments, back.empty) == ((), ("liver",))
    assert read(structure_set({"liver": [square(1, 1, 5, 5, z=7)]})).empty == ("liver",)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (
            lambda d: setattr(d.StructureSetROISequence[0], "ReferencedFrameOfReferenceUID", "1.9"),
            "frame of ref",
        ),
        (
            lambda d: delattr(d.StructureSetROISequence[0], "ReferencedFrameOfReferenceUID"),
            "name this series",
        ),
        (
            lambda d: setattr(d.ROIContourSequence[0].ContourSequence[0], "ContourData", ["1", "2"]),
            "complete",
        ),
    ],
)
def test_what_cannot_be_placed_is_refused(change, reason) -> None:
    data = structure_set({"liver": [square(1, 1, 5, 5)]})
    change(data)
    assert reason in read(data).refused[0].reason


def test_contours_across_the_slices_are_refused() -> None:
    upright = [(1, 3, 0), (6, 3, 0), (6, 3, 2), (1, 3, 2)]
    assert "across" in read(structure_set({"liver": [upright]})).refused[0].reason
