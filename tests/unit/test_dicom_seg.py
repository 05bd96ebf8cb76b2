"""DICOM Segmentations: written, read by others, written by others, read."""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys
from copy import deepcopy
from datetime import datetime, timedelta
from itertools import permutations, product
from pathlib import Path

import highdicom
import nibabel
import numpy as np
import pydicom
import pytest
import SimpleITK
from pydicom.config import RAISE
from pydicom.dataset import Dataset
from pydicom.valuerep import validate_value

from hermes.adapters.dicomweb.uploading import description_of
from hermes.dicom import Mask, SourceSeries, absent_names, read_segmentations, tracking_of, write_segmentation
from hermes.dicom.lattice import same_voxels
from hermes.errors import BadLabelError, BadRequestError, GeometryMismatchError
from hermes.geometry import Grid
from hermes.labels import describe
from hermes.phantoms import make_series
from hermes.records import LabelMap
from hermes.transforms.reading import read_volume

REAL = Path(
    os.environ.get("HERMES_TEST_DATA", Path(__file__).resolve().parents[2] / ".." / "shared" / "data")
)
TOOLS = [str(Path(sys.executable).parent), *os.environ.get("PATH", "").split(os.pathsep)]
TURN = np.array([[0.36, 0.48, -0.8], [-0.8, 0.6, 0.0], [0.48, 0.64, 0.6]])
NAMES = {1: "liver", 4: "left kidney", 7: "Baker's cyst"}
NOON = datetime(2026, 1, 2, 12, 0, 0)


def tool(name: str) -> str:
    found = shutil.which(name, path=os.pathsep.join(TOOLS))
    if found is None:
        pytest.skip(f"no {name}: pip install dcmqi")
    return found


def oblique(shape: tuple[int, int, int]) -> Grid:
    return Grid.from_axes(shape, (-31.5, 12.25, 800.125), (0.7, 0.85, 2.5), TURN)


def labels_on(grid: Grid, seed: int = 0) -> LabelMap:
    values = np.random.default_rng(seed).choice([0, 0, *NAMES], grid.shape).astype(np.uint8)
    return LabelMap(values, grid, NAMES)


def stored(dataset: Dataset) -> Dataset:
    """The object as another program reads it."""
    file = io.BytesIO()
    dataset.save_as(file, write_like_original=False)
    file.seek(0)
    return pydicom.dcmread(file)


def written(label_map: LabelMap, source, **changes) -> Dataset:
    choice = {"algorithm_type": "SEMIAUTOMATIC", "model_version": "v7", "created": NOON, **changes}
    return stored(write_segmentation(label_map, source, **choice))


def orientations(grid: Grid, array: np.ndarray):
    """The same voxels with the array's axes in all 48 orders and directions."""
    for order in permutations(range(3)):
        for signs in product((1, -1), repeat=3):
            turned = array.transpose(order)[tuple(slice(None, None, sign) for sign in signs)]
            affine = np.eye(4)
            corner = np.zeros(3)
            for place, (axis, sign) in enumerate(zip(order, signs, strict=True)):
                column = grid.affine[:3, 2 - axis]
                affine[:3, 2 - place] = sign * column
                corner += column * (array.shape[axis] - 1) * (sign < 0)
            affine[:3, 3] = grid.affine[:3, 3] + corner
            yield turned, Grid(turned.shape, affine)


# ------------------------------------------------------------------------------------------------ geometry


def test_labels_survive_all_48_orientations() -> None:
    grid = oblique((4, 5, 6))
    truth = labels_on(grid)
    seen = 0
    for array, turned in orientations(grid, truth.array):
        series = make_series(np.zeros(array.shape), turned.affine)[::-1]
        back = read_segmentations([written(LabelMap(array, turned, NAMES), series)], series)
        again = same_voxels(back.label_map({n: v for v, n in NAMES.items()}).array, back.grid, grid)
        assert np.array_equal(again, truth.array)
        assert all(segment.exact for segment in back.segments)
        seen += 1
    assert seen == 48


@pytest.mark.parametrize("enhanced", [False, True])
@pytest.mark.parametrize("shape", [(1, 4, 5), (2, 4, 5), (5, 3, 7)])
def test_tilted_gantry_few_slices_and_multi_frame(shape, enhanced) -> None:
    affine = oblique(shape).affine.copy()
    affine[:3, 2] += 0.4 * affine[:3, 1]  # slices move along their columns
    series = make_series(np.zeros(shape), affine, enhanced=enhanced, modality="MR")
    source = SourceSeries.of(series)
    truth = labels_on(source.grid)
    dataset = written(truth, series)
    assert np.array_equal(
        read_segmentations([dataset], series).label_map({n: v for v, n in NAMES.items()}).array, truth.array
    )
    for group in dataset.PerFrameFunctionalGroupsSequence:
        image = group.DerivationImageSequence[0].SourceImageSequence[0]
        frame = image.get("ReferencedFrameNumber")
        plane = source.planes[image.ReferencedSOPInstanceUID, frame]
        position = [float(v) for v in group.PlanePositionSequence[0].ImagePositionPatient]
        np.testing.assert_allclose(source.grid.to_mm([0, 0, plane]), position, atol=1e-6)
        assert (frame is None) is not enhanced


def test_a_label_on_other_voxels_is_refused() -> None:
    grid = oblique((3, 4, 5))
    series = make_series(np.zeros(grid.shape), grid.affine)
    moved = grid.affine.copy()
    moved[0, 3] += 0.3
    with pytest.raises(GeometryMismatchError, match="voxels of its image"):
        written(labels_on(Grid(grid.shape, moved)), series)
    with pytest.raises(GeometryMismatchError, match="sizes"):
        written(labels_on(oblique((3, 4, 4))), series)


# ------------------------------------------------------------------------------------------------ what is said


@pytest.fixture(scope="module")
def case():
    grid = oblique((6, 9, 7))
    return labels_on(grid), make_series(np.zeros(grid.shape), grid.affine)


def test_segments_are_dense_coded_coloured_and_signed(case) -> None:
    label_map, series = case
    dataset = written(label_map, series, annotator="Jo", algorithm_type={"liver": "AUTOMATIC"})
    assert [item.SegmentNumber for item in dataset.SegmentSequence] == [1, 2, 3]
    assert [item.SegmentLabel for item in dataset.SegmentSequence] == list(NAMES.values())
    liver, kidney, cyst = dataset.SegmentSequence
    kind = kidney.SegmentedPropertyTypeCodeSequence[0]
    assert (kind.CodeValue, kind.CodingSchemeDesignator) == ("64033007", "SCT")
    assert kind.SegmentedPropertyTypeModifierCodeSequence[0].CodeMeaning == "Left"
    assert cyst.SegmentedPropertyTypeCodeSequence[0].CodeMeaning == "Tissue"
    assert (liver.SegmentAlgorithmType, cyst.SegmentAlgorithmType) == ("AUTOMATIC", "MANUAL")
    algorithm = liver.SegmentationAlgorithmIdentificationSequence[0]
    assert (algorithm.AlgorithmName, algorithm.AlgorithmVersion) == ("Hermes", "v7")
    assert "SegmentationAlgorithmIdentificationSequence" not in cyst
    assert dataset.ContentCreatorName == "Jo"
    assert (dataset.ContentDate, dataset.ContentTime) == ("20260102", "120000.000000")
    assert dataset.FrameOfReferenceUID == series[0].FrameOfReferenceUID
    (referred,) = dataset.ReferencedSeriesSequence
    assert referred.SeriesInstanceUID == series[0].SeriesInstanceUID
    assert {item.ReferencedSOPInstanceUID for item in referred.ReferencedInstanceSequence} == {
        str(header.SOPInstanceUID) for header in series
    }


@pytest.mark.parametrize(
    ("annotator", "creator", "description"),
    [
        ("Müller^Jörg", "Müller^Jörg", "Hermes label 7 by Müller^Jörg"),
        ("a\\b=c", "a b c", "Hermes label 7 by a b=c"),
        ("x" * 64, "x" * 64, "Hermes label 7 by " + "x" * 43 + "..."),
        ("田中太郎", "田中太郎", "Hermes label 7 by 田中太郎"),
        ("", "", "Hermes label 7"),
    ],
)
def test_an_object_says_whose_label_it_is_in_what_dicom_allows(case, annotator, creator, description) -> None:
    about = {"algorithm_type": "MANUAL", "number": 7, "annotator": annotator, "model_version": None}
    label_map, series = case
    read = stored(
        written(
            label_map,
            series,
            annotator=annotator,
            algorithm_type="MANUAL",
            series_description=description_of(about),
        )
    )
    assert str(read.ContentCreatorName or "") == creator
    assert read.SeriesDescription == read.ContentDescription == description
    for keyword in ("SeriesDescription", "ContentDescription", "ContentCreatorName"):
        validate_value(read[keyword].VR, str(read[keyword].value or ""), RAISE)


def test_a_prediction_says_which_version_drew_it() -> None:
    about = {"algorithm_type": "AUTOMATIC", "number": 1, "annotator": "", "model_version": "v0003-0a1b2c"}
    assert description_of(about) == "Hermes prediction by v0003-0a1b2c"


def test_versions_share_their_tracking_uid_and_nothing_else(case) -> None:
    first, second = written(*case), written(*case)
    assert first.SOPInstanceUID != second.SOPInstanceUID
    uids = [[item.TrackingUID for item in dataset.SegmentSequence] for dataset in (first, second)]
    assert uids[0] == uids[1]
    assert len(set(uids[0])) == 3
    assert tracking_of("1.2", "Kidney_L") == tracking_of("1.2", "left kidney")
    assert tracking_of("1.2", "liver@A") != tracking_of("1.2", "liver@B") != tracking_of("1.3", "liver@B")
    kept = written(*case, tracking_uids={"liver": "1.2.3.4"})
    assert kept.SegmentSequence[0].TrackingUID == "1.2.3.4"


def test_a_protocol_is_named_and_comes_back(case) -> None:
    label_map, series = case
    names = {1: "liver@BCV", 4: "liver@TotalSegmentator", 7: f"{'x' * 60}@BTCV"}
    dataset = written(LabelMap(label_map.array, label_map.grid, names), series)
    assert dataset.SegmentSequence[0].SegmentDescription == "Protocol: BCV"
    assert len(dataset.SegmentSequence[2].SegmentLabel) <= 64
    assert read_segmentations([dataset], series).names == tuple(names.values())


def test_overlap_survives(case) -> None:
    label_map, series = case
    masks = {"liver": label_map.array > 0, "liver tumour": label_map.array == 4}
    dataset = stored(write_segmentation(masks, series, algorithm_type="MANUAL"))
    assert dataset.SegmentsOverlap == "YES"
    back = read_segmentations([dataset], series)
    for name, mask in masks.items():
        assert np.array_equal(back.mask(name), mask)
    assert back.overlapping_voxels() == np.count_nonzero(label_map.array == 4)
    label = back.label_map({"liver": 2, "liver tumour": 1})
    flat = label.array
    tumour, liver = np.count_nonzero(masks["liver tumour"]), np.count_nonzero(masks["liver"])
    assert back.covered(label) == {"liver": f"liver: {tumour} of {liver} voxels lie under liver tumour"}
    assert np.array_equal(flat == 1, masks["liver tumour"])
    assert np.array_equal(flat == 2, masks["liver"] & ~masks["liver tumour"])


def test_a_structure_wholly_under_another_is_told(case) -> None:
    label_map, series = case
    masks = {"liver": label_map.array > 0, "spleen": label_map.array > 0}
    back = read_segmentations([write_segmentation(masks, series, algorithm_type="MANUAL")], series)
    told = "liver: {0} of {0} voxels lie under spleen, so that nothing of it is left"
    assert back.covered(back.label_map()) == {"liver": told.format(np.count_nonzero(masks["liver"]))}


def test_absent_structures_are_read_back_and_empty_ones_get_no_segment(case) -> None:
    label_map, series = case
    named = LabelMap(label_map.array, label_map.grid, {**NAMES, 9: "spleen"})
    dataset = written(named, series, absent=["pancreas", "Knochen, weiß"])
    assert len(dataset.SegmentSequence) == 3
    back = read_segmentations([dataset], series, structures=["Pancreas"])
    assert back.absent == ("Pancreas", "Knochen, weiß")
    nothing = LabelMap(np.zeros(label_map.grid.shape, np.uint8), label_map.grid)
    back = read_segmentations([written(nothing, series, absent=["pancreas", "liver"])], series)
    assert (back.segments, back.absent, back.empty) == ((), ("pancreas", "liver"), ())
    with pytest.raises(BadLabelError, match="at least one voxel"):
        written(nothing, series)
    with pytest.raises(BadLabelError, match="absent"):
        written(label_map, series, absent=["liver"])


@pytest.mark.parametrize(
    ("comments", "names"),
    [("", []), ('a\nLooked for and absent: [1, "a"]', ["a"]), ("Looked for and absent: [", [])],
)
def test_comments_of_others_declare_nothing(comments, names) -> None:
    dataset = Dataset()
    dataset.ImageComments = comments
    assert absent_names(dataset) == names


def test_bad_requests_are_refused(case) -> None:
    label_map, series = case
    with pytest.raises(BadRequestError, match="model version"):
        written(label_map, series, model_version=None)
    with pytest.raises(BadLabelError, match="name for every value"):
        written(LabelMap(label_map.array, label_map.grid, {1: "liver"}), series)
    with pytest.raises(BadLabelError, match="once"):
        written(LabelMap(label_map.array, label_map.grid, {1: "a", 4: "a", 7: "b"}), series)


def test_headers_without_optional_attributes_suffice(case) -> None:
    label_map, series = case
    bare = deepcopy(series)
    for header in bare:
        for keyword in (
            "PatientName",
            "PatientBirthDate",
            "AccessionNumber",
            "SliceThickness",
            "FrameOfReferenceUID",
        ):
            delattr(header, keyword)
        del header.PixelData
    back = read_segmentations([written(label_map, bare)], bare)
    assert np.array_equal(back.label_map({n: v for v, n in NAMES.items()}).array, label_map.array)


def test_patient_and_study_are_copied_as_they_are(case) -> None:
    label_map, series = case
    odd = [stored(header) for header in series]
    for header in odd:
        header.SpecificCharacterSet, header.PatientName = "ISO_IR 100", "Müller^Änne"
        header.PatientSex, header.StudyDescription = "U", "Schädel"
    odd = [stored(header) for header in odd]
    dataset = written(label_map, odd)
    assert (dataset.PatientName, dataset.PatientSex) == ("Müller^Änne", "U")
    assert dataset.StudyDescription == "Schädel"
    assert dataset.StudyInstanceUID == odd[0].StudyInstanceUID


# ------------------------------------------------------------------------------------------------ other readers


def test_highdicom_sees_the_same_voxels(case) -> None:
    label_map, series = case
    dataset = written(label_map, series)
    theirs = highdicom.seg.Segmentation.from_dataset(dataset, copy=False).get_pixels_by_source_instance(
        source_sop_instance_uids=[header.SOPInstanceUID for header in series], combine_segments=True
    )
    source = SourceSeries.of(series)
    order = [source.planes[str(header.SOPInstanceUID), None] for header in series]
    ours = np.searchsorted([0, *NAMES], label_map.array)
    assert np.array_equal(theirs, ours[order])


@pytest.mark.timeout(120)
def test_dcmqi_sees_the_same_voxels_codes_and_colours(case, tmp_path) -> None:
    label_map, series = case
    written(label_map, series).save_as(tmp_path / "seg.dcm")
    arguments = ["--inputDICOM", str(tmp_path / "seg.dcm"), "--outputDirectory", str(tmp_path), "-t", "nrrd"]
    subprocess.run(
        [tool("segimage2itkimage"), *arguments, "-p", "x", "--mergeSegments"], check=True, capture_output=True
    )
    image = SimpleITK.ReadImage(str(tmp_path / "x-1.nrrd"))
    theirs = same_voxels(SimpleITK.GetArrayFromImage(image), Grid.from_simpleitk(image), label_map.grid)
    assert np.array_equal(theirs, np.searchsorted([0, *NAMES], label_map.array))
    meta = json.loads((tmp_path / "x-meta.json").read_text(encoding="utf-8"))
    told = [entry for group in meta["segmentAttributes"] for entry in group]
    assert [entry["labelID"] for entry in told] == [1, 2, 3]
    for entry, name in zip(told, NAMES.values(), strict=True):
        structure = describe(name)
        assert entry["SegmentLabel"] == name
        assert entry["SegmentedPropertyTypeCodeSequence"]["CodeValue"] == structure.code.value
        np.testing.assert_allclose(entry["recommendedDisplayRGBValue"], structure.colour, atol=1)
    assert told[1]["SegmentedPropertyTypeModifierCodeSequence"]["CodeMeaning"] == "Left"


# ------------------------------------------------------------------------------------------------ other writers


@pytest.mark.timeout(120)
@pytest.mark.parametrize("kind", [[], ["--segmentationType", "labelmap"], ["--compress", "deflate"]])
def test_dcmqi_segmentations_are_read(case, tmp_path, kind) -> None:
    label_map, series = case
    sparse = np.where(np.arange(label_map.grid.shape[0])[:, None, None] % 3 == 0, 0, label_map.array)
    image = SimpleITK.GetImageFromArray(sparse)
    image.SetOrigin(label_map.grid.origin_mm)
    image.SetSpacing(label_map.grid.spacing_mm[::-1])
    image.SetDirection(label_map.grid.direction.ravel().tolist())
    SimpleITK.WriteImage(image, str(tmp_path / "labels.nrrd"))
    code = {"CodeValue": "10200004", "CodingSchemeDesignator": "SCT", "CodeMeaning": "Liver"}
    category = {
        "CodeValue": "123037004",
        "CodingSchemeDesignator": "SCT",
        "CodeMeaning": "Anatomical Structure",
    }
    attributes = [
        {
            "labelID": value,
            "SegmentLabel": label,
            "SegmentAlgorithmType": "MANUAL",
            "SegmentedPropertyCategoryCodeSequence": category,
            "SegmentedPropertyTypeCodeSequence": code,
        }
        for value, label in ((1, "Segment_1"), (4, "Kidney_Left"), (7, "Liver segment VIII"))
    ]
    meta = {
        "ContentCreatorName": "Jo",
        "SeriesNumber": "5",
        "InstanceNumber": "1",
        "segmentAttributes": [attributes],
    }
    (tmp_path / "meta.json").write_text(json.dumps(meta))
    files = []
    for number, header in enumerate(series):
        files.append(str(tmp_path / f"{number}.dcm"))
        header.save_as(files[-1], write_like_original=False)
    subprocess.run(
        [
            *(
                tool("itkimage2segimage"),
                "--inputImageList",
                str(tmp_path / "labels.nrrd"),
                "--inputDICOMList",
            ),
            *(",".join(files), "--inputMetadata", str(tmp_path / "meta.json"), "--outputDICOM"),
            *(str(tmp_path / "seg.dcm"), "--skip", "1", *kind),
        ],
        check=True,
        capture_output=True,
    )
    back = read_segmentations([pydicom.dcmread(tmp_path / "seg.dcm")], series)
    assert back.refused == ()
    values = {"liver": 1, "left kidney": 4, "Liver segment VIII": 7}
    assert set(back.names) == set(values)
    assert np.array_equal(back.label_map(values).array, sparse)


def viewer_export(series, masks: dict[str, np.ndarray], *, fractional: bool = False) -> Dataset:
    """A SEG as OHIF (dcmjs) stores it: gaps in the numbers, one general code, only frames with voxels."""
    data = written(
        LabelMap((masks[next(iter(masks))] > 0).astype(np.uint8), SourceSeries.of(series).grid, {1: "x"}),
        series,
    )
    template = deepcopy(data.SegmentSequence[0])
    data.SegmentSequence, groups, frames = [], [], []
    for number, (label, mask) in enumerate(masks.items(), start=2):
        item = deepcopy(template)
        item.SegmentNumber, item.SegmentLabel, item.SegmentAlgorithmType = number * 2, label, "MANUAL"
        code = item.SegmentedPropertyTypeCodeSequence[0]
        code.CodeValue, code.CodingSchemeDesignator, code.CodeMeaning = "T-D0050", "SRT", "Tissue"
        del item.TrackingID, item.TrackingUID, item.SegmentationAlgorithmIdentificationSequence
        data.SegmentSequence.append(item)
        for plane, header in enumerate(series):
            if mask[plane].any():
                group, identity, position = Dataset(), Dataset(), Dataset()
                identity.ReferencedSegmentNumber = number * 2
                position.ImagePositionPatient = header.ImagePositionPatient
                group.SegmentIdentificationSequence, group.PlanePositionSequence = [identity], [position]
                groups.append(group)
                frames.append(mask[plane])
    data.PerFrameFunctionalGroupsSequence, data.NumberOfFrames = groups, len(frames)
    stack = np.stack(frames).astype(np.uint8)
    if fractional:
        data.SegmentationType, data.MaximumFractionalValue, data.BitsAllocated = "FRACTIONAL", 200, 8
        data.BitsStored, data.HighBit, data.PixelData = (
            8,
            7,
            np.where(stack, 100, 99).astype(np.uint8).tobytes(),
        )
    else:
        data.PixelData = np.packbits(stack.reshape(-1), bitorder="little").tobytes()
    data.PixelData += b"\0" * (len(data.PixelData) % 2)
    return data


@pytest.mark.parametrize("fractional", [False, True])
def test_a_viewers_export_is_read_by_its_labels(case, fractional) -> None:
    label_map, series = case
    array = label_map.array.copy()
    array[1:3] = 0
    masks = {"Liver": array == 1, "kidney left": array == 4, "Segment 5": array == 7}
    back = read_segmentations(
        [viewer_export(series, masks, fractional=fractional)], series, structures=["Kidney_L"]
    )
    assert back.names == ("liver", "Kidney_L", "Segment 5")
    for name, mask in zip(back.names, masks.values(), strict=True):
        assert np.array_equal(back.mask(name), mask)


def test_frames_without_a_position_lie_on_the_image_they_name(case) -> None:
    label_map, series = case
    dataset = written(label_map, series)
    for group in dataset.PerFrameFunctionalGroupsSequence:
        del group.PlanePositionSequence
    back = read_segmentations([dataset], series)
    assert np.array_equal(back.label_map({n: v for v, n in NAMES.items()}).array, label_map.array)
    alone = read_segmentations([dataset], back.grid)
    assert "position" in alone.refused[0].reason


@pytest.mark.parametrize(
    ("label", "code", "name"),
    [
        ("", ("T-71000", "SRT", "left"), "left kidney"),
        ("Segment 3", ("64033007", "SCT", "left"), "left kidney"),
        ("Niere", ("64033007", "SCT", "right"), "right kidney"),
        ("Segment 3", ("T-D0050", "SRT", ""), "Segment 3"),
        ("kidney cortex", ("64033007", "SCT", ""), "kidney cortex"),
        ("LIVER", ("78961009", "SCT", ""), "liver"),
    ],
)
def test_the_label_names_a_segment_and_else_the_code(case, label, code, name) -> None:
    label_map, series = case
    dataset = written(LabelMap((label_map.array > 0).astype(np.uint8), label_map.grid, {1: "x"}), series)
    item = dataset.SegmentSequence[0]
    item.SegmentLabel = label
    kind = item.SegmentedPropertyTypeCodeSequence[0]
    kind.CodeValue, kind.CodingSchemeDesignator, side = code
    if side:
        value = {"left": "7771000", "right": "24028007"}[side]
        modifier = Dataset()
        modifier.CodeValue, modifier.CodingSchemeDesignator, modifier.CodeMeaning = value, "SCT", side
        kind.SegmentedPropertyTypeModifierCodeSequence = [modifier]
    assert read_segmentations([dataset], series).names == (name,)


def test_the_newest_object_of_a_structure_wins(case) -> None:
    label_map, series = case
    later = LabelMap(np.where(label_map.array == 1, 1, 0).astype(np.uint8)[:, ::-1], label_map.grid, NAMES)
    old = written(label_map, series)
    new = written(later, series, created=NOON + timedelta(seconds=1), absent=["Baker's cyst"])
    same_time = written(label_map, series, created=NOON, instance_number=2)
    back = read_segmentations([new, same_time, old], series)
    assert np.array_equal(back.mask("liver"), later.array == 1)
    assert back.absent == ("Baker's cyst",)
    assert {s.name: s.sop_instance_uid for s in back.segments}["left kidney"] == same_time.SOPInstanceUID


def test_objects_of_another_space_are_refused_and_the_others_read(case) -> None:
    label_map, series = case
    good, foreign, broken = written(label_map, series), written(label_map, series), written(label_map, series)
    foreign.FrameOfReferenceUID = "1.2.9"
    broken.PixelData = broken.PixelData[:10]
    back = read_segmentations([foreign, broken, good, series[0]], series)
    assert len(back.segments) == 3
    reasons = {refusal.sop_instance_uid: refusal.reason for refusal in back.refused}
    assert "frame of reference" in reasons[foreign.SOPInstanceUID]
    assert "cut off" in reasons[broken.SOPInstanceUID]
    assert "another kind" in reasons[series[0].SOPInstanceUID]


def test_another_geometry_in_the_same_frame_takes_the_nearest_voxel() -> None:
    coarse = Grid.from_axes((4, 4, 4), (0.5, 0.5, 0.5), (2, 2, 2))
    fine = Grid.from_axes((8, 8, 8), (0, 0, 0), (1, 1, 1))
    truth = labels_on(coarse)
    there = make_series(np.zeros(coarse.shape), coarse.affine, uid="1.2.7")
    here = make_series(np.zeros(fine.shape), fine.affine, uid="1.2.8")
    for header in here:
        header.FrameOfReferenceUID = there[0].FrameOfReferenceUID
    back = read_segmentations([written(truth, there)], here)
    expected = truth.array.repeat(2, 0).repeat(2, 1).repeat(2, 2)
    assert np.array_equal(back.label_map({n: v for v, n in NAMES.items()}).array, expected)
    assert not any(segment.exact for segment in back.segments)


def test_voxels_beyond_the_image_are_counted(case) -> None:
    label_map, series = case
    back = read_segmentations([written(label_map, series)], series[2:])
    for segment in back.segments:
        value = {name: v for v, name in NAMES.items()}[segment.name]
        assert np.array_equal(segment.mask.full(back.grid.shape), label_map.array[2:] == value)
        assert segment.voxels_outside == np.count_nonzero(label_map.array[:2] == value)


def test_masks_keep_their_bounding_box() -> None:
    full = np.zeros((4, 5, 6), bool)
    full[1:3, 2, 3:5] = True
    mask = Mask.of(full)
    assert (mask.start, mask.voxels.shape, mask.count) == ((1, 2, 3), (2, 1, 2), 4)
    other = np.zeros_like(full)
    other[0, 0, 0] = True
    assert np.array_equal(mask.union(Mask.of(other)).full(full.shape), full | other)
    assert Mask.of(np.zeros_like(full)).count == 0


@pytest.mark.real_data
@pytest.mark.skipif(not (REAL / "pet_headneck_qin").is_dir(), reason="no real volumes: set HERMES_TEST_DATA")
def test_a_real_segmentation_of_lesions_is_read_voxel_by_voxel() -> None:
    folder = REAL / "pet_headneck_qin"
    series = [pydicom.dcmread(f, stop_before_pixels=True) for f in sorted((folder / "dicom_pet").iterdir())]
    back = read_segmentations([pydicom.dcmread(folder / "dicom_seg" / "seg_11_lesions.dcm")], series)
    truth = nibabel.load(folder / "lesions.nii.gz")
    array = np.asarray(truth.dataobj).transpose(2, 1, 0)
    array = same_voxels(array, Grid.from_ras(array.shape, truth.affine), back.grid)
    assert np.array_equal(back.mask("Neoplasm, Primary"), array == 1)
    assert np.array_equal(back.mask("Neoplasm, Secondary"), array > 1)
    assert read_volume(folder / "dicom_pet").grid.matches(back.grid)
