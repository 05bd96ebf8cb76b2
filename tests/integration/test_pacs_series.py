"""Series of every orientation and kind through a campaign on a real PACS: no voxel moves, nothing bad blocks."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pydicom
import pytest
from dicomweb_client import DICOMwebClient
from fastapi import HTTPException
from highdicom.seg import Segmentation
from pydicom.uid import generate_uid

from hermes.adapters.dicomweb.store import Stored
from hermes.adapters.infer import run_infer
from hermes.dicom import write_segmentation
from hermes.dicom.lattice import same_voxels
from hermes.dicom.structure_set import STRUCTURE_SET_STORAGE
from hermes.geometry import Grid
from hermes.pacs import how_to_install, store
from hermes.phantoms import PhantomCase, make_case
from hermes.phantoms.dicom import series_uid, write_dicom_series
from hermes.records import LabelMap
from hermes.transforms.modality import guess_from_dicom
from hermes.transforms.orientation import Turn
from hermes.transforms.reading import read_label_map, read_volume
from hermes.transforms.writing import write_label_map
from tests.integration.conftest import STRUCTURES
from tests.integration.test_pacs import Site, masks, site, stored_label, uploaded, wait_until

__all__ = ["site"]  # the fixture

pytestmark = pytest.mark.skipif(how_to_install() is not None, reason=str(how_to_install()))

REAL = Path(os.environ.get("HERMES_TEST_DATA", str(Path(__file__).resolve().parents[3] / "shared" / "data")))

ORIENTATIONS = {
    "axial": ((0, 1, 2), (False, False, False)),
    "reversed": ((0, 1, 2), (True, False, True)),
    "coronal": ((1, 0, 2), (False, True, False)),
    "sagittal": ((2, 0, 1), (False, True, False)),
}


def turned(case: PhantomCase, name: str, *, oblique: bool = False) -> PhantomCase:
    """The same patient, stored in another order of axes."""
    axes, flips = ORIENTATIONS[name]
    turn = Turn(axes, flips)
    affine = turn.apply_to_grid(Grid(case.labels.shape, case.affine)).affine.copy()
    if oblique:
        angle = np.deg2rad(17.0)
        rotation = np.eye(4)
        rotation[:3, :3] = [[np.cos(angle), 0, np.sin(angle)], [0, 1, 0], [-np.sin(angle), 0, np.cos(angle)]]
        affine = rotation @ affine
    return replace(
        case,
        name=f"{case.name}-{name}{'-oblique' if oblique else ''}",
        image=np.ascontiguousarray(turn.apply(case.image)),
        labels=np.ascontiguousarray(turn.apply(case.labels)),
        affine=affine,
    )


def on_series(case: PhantomCase, grid: Grid) -> np.ndarray[Any, Any]:
    """The labels of a case in the lattice of its series: slices sorted along row x column."""
    own = Grid(case.labels.shape, case.affine)
    array = case.labels if own.matches(grid) else case.labels[::-1]
    return np.ascontiguousarray(array)


def planes_of(files: list[Path]) -> list[pydicom.Dataset]:
    """The slices as OHIF puts them into its volume: by their distance along row x column, rising."""
    slices = [pydicom.dcmread(file) for file in files]
    row, column = (
        np.array(slices[0].ImageOrientationPatient[part], float) for part in (slice(3), slice(3, 6))
    )
    normal = np.cross(row, column)
    return sorted(slices, key=lambda data: float(normal @ np.array(data.ImagePositionPatient, float)))


def test_every_orientation_comes_back_voxel_by_voxel(site: Site) -> None:
    base = make_case("PhantomAbdomenCT", 3, size="tiny", plain_axes=True)
    cases = [turned(base, name) for name in ORIENTATIONS] + [turned(base, "coronal", oblique=True)]
    files = {}
    for case in cases:
        files[series_uid(case)] = write_dicom_series(case, site.root / case.name)
        store(site.orthanc.dicomweb, files[series_uid(case)])
    truths = {}
    with site.campaign("one") as (parts, pacs):
        task = parts.infers()["hermes"]
        request = {"model": "hermes", "result_extension": ".nrrd", "result_dtype": "uint8"}
        reference: np.ndarray[Any, Any] | None = None
        for case in cases:
            uid = series_uid(case)
            answer = run_infer(task, {**request, "image": uid}, pacs.store, None)
            label, slices = read_label_map(answer["file"]), planes_of(files[uid])
            assert label.array.shape == (len(slices), slices[0].Rows, slices[0].Columns)
            for place, plane in enumerate(slices):
                assert np.allclose(label.grid.to_mm([0, 0, place]), plane.ImagePositionPatient, atol=0.01)
            if "oblique" not in case.name:  # the same patient at the same place: the same answer, turned
                turn = Turn(*ORIENTATIONS[case.name.rsplit("-", 1)[1]])
                if reference is None:
                    reference = label.array
                expected = turn.apply(reference)
                here = Grid(expected.shape, case.affine)
                expected = expected if here.matches(label.grid) else expected[::-1]
                assert np.count_nonzero(label.array != expected) == 0, case.name
                assert all(
                    (label.array != np.flip(expected, axis)).any() for axis in range(3)
                )  # it would be seen
            values = {v: n for v, n in case.names.items() if n in STRUCTURES and n in case.present}
            drawn = on_series(case, label.grid)
            truth = LabelMap(np.where(np.isin(drawn, list(values)), drawn, 0), label.grid, values)
            file = write_label_map(truth, site.root / "label.nii.gz")
            info = [{"name": name, "idx": value} for value, name in values.items()]
            pacs.store.save_label(uid, str(file), "final", {"label_info": info, "label_values": "idx"})
            truths[uid] = masks(truth)
        wait_until(lambda: uploaded(pacs, len(cases)), "the uploads", 60)
    with site.campaign("two") as (parts, pacs):
        wait_until(lambda: set(pacs.store.get_labeled_images()) == set(truths), "all labels", 60)
        for uid, truth in truths.items():
            read = masks(stored_label(parts, uid))
            wrong = sum(np.count_nonzero(read[name] != truth[name]) for name in truth)
            assert (read.keys(), wrong) == (truth.keys(), 0)
    for uid, truth in truths.items():  # and a reader that is not ours
        folder = site.root / f"seg-{uid}"
        assert len(site_objects(site, uid, folder, files[uid])) == 1
        segmentation = Segmentation.from_dataset(site_objects(site, uid, folder, files[uid])[0])
        slices = planes_of(files[uid])
        frames = segmentation.get_pixels_by_source_instance(
            [data.SOPInstanceUID for data in slices], assert_missing_frames_are_empty=True
        )
        for number in segmentation.segment_numbers:
            name = segmentation.get_segment_description(number).segment_label
            assert np.array_equal(frames[..., number - 1] > 0, truth[name]), name


def site_objects(site: Site, uid: str, folder: Path, files: list[Path]) -> list[pydicom.Dataset]:
    header = pydicom.dcmread(files[0], stop_before_pixels=True)
    found = site.qido("instances", Modality="SEG", StudyInstanceUID=str(header.StudyInstanceUID))
    from hermes.adapters.dicomweb.client import Access, PacsClient

    client = PacsClient(Access(site.orthanc.dicomweb))
    objects = []
    for item in found:
        shutil.rmtree(folder, ignore_errors=True)
        objects.append(
            client.instance(
                str(header.StudyInstanceUID),
                item["0020000E"]["Value"][0],
                item["00080018"]["Value"][0],
                folder,
            )
        )
    return objects


Change = Callable[[list[pydicom.Dataset]], None]


def changed(case: PhantomCase, name: str, root: Path, change: Change) -> tuple[str, list[Path]]:
    """A series of its own made of the phantom's by a change to its objects."""
    files = write_dicom_series(replace(case, name=name), root / name)
    slices = [pydicom.dcmread(file) for file in files]
    change(slices)
    for file, data in zip(files, slices, strict=True):
        data.save_as(file, write_like_original=False)
    return series_uid(replace(case, name=name)), files


def localiser(slices: list[pydicom.Dataset]) -> None:
    for data in slices:
        data.ImageType = ["ORIGINAL", "PRIMARY", "LOCALIZER"]


def cut_off(slices: list[pydicom.Dataset]) -> None:
    for data in slices:
        data.PixelData = data.PixelData[: len(data.PixelData) // 4 * 2]


def two_echoes(slices: list[pydicom.Dataset]) -> None:
    for number, data in enumerate(slices):
        data.EchoTime = "4.6" if number % 3 else "9.2"


def test_bad_series_are_left_out_with_their_reason_and_block_nobody(site: Site) -> None:
    case = make_case("PhantomAbdomenCT", 3, size="tiny", plain_axes=True)
    bad, good = {}, {}
    bad["localiser"], files = changed(case, "Localiser", site.root, localiser)
    store(site.orthanc.dicomweb, files[:5])
    bad["slice is missing"], files = changed(case, "Missing", site.root, lambda slices: None)
    store(site.orthanc.dicomweb, files[:4] + files[5:])
    bad["decoded"], files = changed(case, "Cut", site.root, cut_off)
    store(site.orthanc.dicomweb, files)
    for dataset in ("PhantomPET", "PhantomAbdomenMR"):
        other = make_case(dataset, 1, size="tiny")
        good[series_uid(other)] = other
        store(site.orthanc.dicomweb, write_dicom_series(other, site.root / dataset))
    with site.campaign("one") as (parts, pacs):
        campaign = parts.workspace.campaign
        assert set(pacs.store.list_images()) == {*site.cases, *bad.values(), *good}
        campaign.sync_images(pacs.store.list_images(), pacs.store.patient_of)
        task, request = parts.infers()["hermes"], {"model": "hermes"}
        with pytest.raises(HTTPException) as refused, parts.leaving_out_unreadable(bad["decoded"]):
            run_infer(task, {**request, "image": bad["decoded"]}, pacs.store, None)
        assert refused.value.status_code == 422

        def left_out() -> dict[str, str]:
            return {
                image.id: image.quarantined_reason or ""
                for image in campaign.images()
                if image.quarantined_reason
            }

        wait_until(lambda: left_out().keys() == set(bad.values()), "the quarantine")
        for words, uid in bad.items():
            assert words in left_out()[uid]
        offered = {
            parts.queue.offer(
                parts.strategies()["first"]._strategy, pacs.store.list_images(), f"a{n}"
            ).image_id
            for n in range(9)
        }
        assert offered == {*site.cases, *good, None}
        for uid, other in good.items():
            answer = run_infer(task, {**request, "image": uid}, pacs.store, None)
            assert answer["params"]["modality"] == other.modality.value
            assert answer["params"]["modality_source"] == "dicom"
        # What was missing is sent: the series is looked at again, and let back in.
        store(site.orthanc.dicomweb, [site.root / "Missing" / "0005.dcm"])
        wait_until(lambda: pacs.index.current() and bad["slice is missing"] not in left_out(), "its return")
        assert run_infer(task, {**request, "image": bad["slice is missing"]}, pacs.store, None)["file"]


def test_a_series_is_offered_only_after_it_was_looked_at(site: Site) -> None:
    """However fast somebody asks; and who was given one that turns out to be unusable does not keep it."""
    case = make_case("PhantomAbdomenCT", 3, size="tiny", plain_axes=True)
    with site.campaign("one", start=False) as (parts, pacs):
        campaign = parts.workspace.campaign
        first = parts.strategies()["first"]

        def offered(who: str) -> dict[str, Any]:
            pacs.index.expire()
            campaign.sync_images(pacs.store.list_images(), pacs.store.patient_of)
            return dict(first({"client_id": who}, pacs.store))

        before = offered("anna")
        assert (before["id"], "2 new ones are looked at first" in before["reason"]) == (None, True)
        pacs._inspector.look()
        given = [offered(who)["id"] for who in ("anna", "bert")]
        assert set(given) == set(site.cases)
        bad, files = changed(case, "Localiser", site.root, localiser)
        store(site.orthanc.dicomweb, files)
        assert offered("carla")["id"] is None
        # An earlier server may have given it away before anybody had looked.
        assert campaign.assignments.take(bad, "carla", 3600, parts.queue.wish) is not None
        pacs._inspector.look()
        assert {lease.image_id for lease in campaign.assignments.leases()} == set(given)
        last = offered("carla")
        assert last["id"] is None
        assert "new ones" not in last["reason"]
        status = pacs.store.status()
        assert (status["total"], status["completed"], status["quarantined"]) == (2, 0, 1)


def test_a_series_of_several_volumes_gives_several_images(site: Site) -> None:
    case = make_case("PhantomAbdomenMR", 1, size="tiny", plain_axes=True)
    uid, files = changed(case, "Echoes", site.root, lambda slices: None)
    second = []
    for number, file in enumerate(files):
        data = pydicom.dcmread(file)
        data.EchoTime, data.SOPInstanceUID = "92.5", generate_uid()
        data.file_meta.MediaStorageSOPInstanceUID = data.SOPInstanceUID
        if number > 2:  # the second echo covers less
            data.save_as(place := file.with_name(f"b{file.name}"), write_like_original=False)
            second.append(place)
    store(site.orthanc.dicomweb, files + second)
    with site.campaign("one") as (parts, pacs):
        wait_until(lambda: len(pacs.store.list_images()) == 4, "both volumes")
        main, other = (name for name in pacs.store.list_images() if name.startswith(uid))
        assert main == uid
        assert other.startswith(f"{uid}~")
        shapes = [read_volume(pacs.store.get_image_uri(name)).array.shape for name in (main, other)]
        assert shapes == [case.image.shape, (len(second), *case.image.shape[1:])]
        assert (
            read_volume(pacs.store.image_path(other)).modality
            is guess_from_dicom(pydicom.dcmread(second[0])).modality
        )
        label = np.zeros(shapes[1], np.uint8)
        label[2:4, 5:9, 5:9] = 1
        grid = read_volume(pacs.store.get_image_uri(other)).grid
        file = write_label_map(LabelMap(label, grid, {1: "liver"}), site.root / "label.nii.gz")
        pacs.store.save_label(other, str(file), "final", {"label_info": [{"name": "liver", "idx": 1}]})
        wait_until(lambda: uploaded(pacs, 1), "the upload")
    with site.campaign("two") as (parts, pacs):
        wait_until(lambda: pacs.store.get_labeled_images() == [other], "the label on the right volume")
        assert np.array_equal(stored_label(parts, other).array, label)


def test_an_object_that_a_viewer_stored_is_the_submission(site: Site) -> None:
    first, _ = site.cases
    case, headers = site.cases[first], site.headers(first)
    grid = read_volume(site.files[first][0].parent).grid
    drawn = on_series(case, grid) == 1
    ours = write_segmentation({case.names[1]: drawn}, headers, algorithm_type="MANUAL", annotator="carl")
    ours.Manufacturer = "OHIF"
    with site.campaign("one") as (parts, pacs):
        pacs.client.store(ours)
        wait_until(
            lambda: pacs.store.get_labeled_images() == [first], "its label"
        )  # it may be seen before it is taken
        assert pacs.store.take_stored_object(ours, "dora") == Stored(first)
        assert pacs.store.take_stored_object(ours, "dora") == Stored(first)
        labels = parts.workspace.campaign.labels(latest=False)
        assert [(label.annotator, label.source) for label in labels] == [("dora", "annotator")]
        assert np.array_equal(stored_label(parts, first).array > 0, drawn)
        pacs.index.current(max_age_s=0)
        assert pacs.store.status()["pacs"]["uploads"]["waiting"] == 0  # it is there already
        site.delete(ours.SOPInstanceUID)
        wait_until(lambda: pacs.store.get_labeled_images() == [], "its end")
        stranger = write_segmentation({"liver": drawn}, headers, algorithm_type="MANUAL")
        stranger.ReferencedSeriesSequence[0].SeriesInstanceUID = "1.2.3"
        assert pacs.store.take_stored_object(stranger, "dora") is None


def test_what_overlap_costs_is_told(site: Site) -> None:
    first, second = site.cases
    with site.campaign("one") as (parts, pacs):
        pacs.index.current(max_age_s=0)
        for image, stored_here in ((first, True), (second, False)):
            part = np.zeros(read_volume(site.files[image][0].parent).grid.shape, bool)
            part[2:5, 3:9, 3:9] = True
            seg = write_segmentation(
                {"liver": part, "spleen": part}, site.headers(image), algorithm_type="MANUAL"
            )
            seg.Manufacturer = "Somebody else"
            told = "liver: 108 of 108 voxels lie under spleen, so that nothing of it is left"
            if stored_here:
                with pacs.store.storing([seg.SOPInstanceUID]):  # as OHIF's way to the PACS does
                    pacs.client.store(seg)
                    assert pacs.store.take_stored_object(seg, "dora") == Stored(image, (told,))
                assert pacs.store.get_label_info(image, "final")["covered"] == [told]
            else:
                pacs.client.store(seg)
                wait_until(lambda: second in pacs.store.get_labeled_images(), "its label")
                assert [entry["reason"] for entry in pacs.state()["not_used"]] == [f"{told}."]
        for label in parts.workspace.campaign.labels():
            assert list(label.annotated) == ["spleen"]


def test_contours_of_others_come_in(site: Site) -> None:
    first, _ = site.cases
    header, grid = site.headers(first)[0], read_volume(site.files[first][0].parent).grid
    contours = {
        "Liver": [box(grid, 2, (4, 5), (9, 8)), box(grid, 3, (4, 5), (9, 8))],
        "GTV": [box(grid, 2, (1, 1), (3, 3))],
    }
    with site.campaign("one") as (parts, pacs):
        DICOMwebClient(site.orthanc.dicomweb).store_instances(
            [structure_set(header, contours)]
        )  # without preamble
        wait_until(lambda: pacs.store.get_labeled_images() == [first], "its label")
        expected = np.zeros(grid.shape, bool)
        expected[2:4, 5:8, 4:9] = True
        label = stored_label(parts, first)
        assert set(label.names.values()) == {"liver"}
        assert np.array_equal(label.array > 0, expected)
        assert "GTV" in pacs.state()["not_used"][0]["reason"]


def box(grid: Grid, plane: int, low: tuple[int, int], high: tuple[int, int]) -> np.ndarray[Any, Any]:
    """A contour (n, 3) in mm around the voxels from ``low`` up to, not with, ``high`` (x, y) of a plane."""
    (x0, y0), (x1, y1) = (np.subtract(low, 0.4), np.subtract(high, 0.6))
    return grid.to_mm([(x0, y0, plane), (x1, y0, plane), (x1, y1, plane), (x0, y1, plane)])


def structure_set(header: pydicom.Dataset, regions: dict[str, list[np.ndarray[Any, Any]]]) -> pydicom.Dataset:
    """An RT Structure Set as a planning system writes it."""
    data = pydicom.Dataset()
    for keyword in (
        "PatientID",
        "PatientName",
        "PatientBirthDate",
        "PatientSex",
        "StudyInstanceUID",
        "StudyID",
    ):
        setattr(data, keyword, header.get(keyword, ""))
    data.SOPClassUID, data.SOPInstanceUID = STRUCTURE_SET_STORAGE, generate_uid()
    data.SeriesInstanceUID, data.Modality, data.StructureSetLabel = generate_uid(), "RTSTRUCT", "plan"
    data.StructureSetDate, data.StructureSetTime, data.OperatorsName = "20260102", "120000", "Planner"
    series, study, frame = pydicom.Dataset(), pydicom.Dataset(), pydicom.Dataset()
    series.SeriesInstanceUID, frame.FrameOfReferenceUID = header.SeriesInstanceUID, header.FrameOfReferenceUID
    study.RTReferencedSeriesSequence, frame.RTReferencedStudySequence = [series], [study]
    data.ReferencedFrameOfReferenceSequence = [frame]
    data.StructureSetROISequence, data.ROIContourSequence = [], []
    for number, (name, contours) in enumerate(regions.items(), 1):
        roi, drawing = pydicom.Dataset(), pydicom.Dataset()
        roi.ROINumber, roi.ROIName, roi.ReferencedFrameOfReferenceUID = (
            number,
            name,
            header.FrameOfReferenceUID,
        )
        drawing.ReferencedROINumber, drawing.ContourSequence = number, []
        for contour in contours:
            item = pydicom.Dataset()
            item.ContourGeometricType, item.NumberOfContourPoints = "CLOSED_PLANAR", len(contour)
            item.ContourData = [f"{value:.8g}" for value in contour.ravel()]
            drawing.ContourSequence.append(item)
        data.StructureSetROISequence.append(roi)
        data.ROIContourSequence.append(drawing)
    meta = pydicom.dataset.FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = data.SOPClassUID, data.SOPInstanceUID
    meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    data.file_meta, data.is_little_endian, data.is_implicit_VR = meta, True, False
    return data


@pytest.mark.real_data
@pytest.mark.skipif(not (REAL / "pet_headneck_qin").is_dir(), reason="no real volumes: set HERMES_TEST_DATA")
def test_lesions_that_dcmqi_wrote_on_a_real_pet(site: Site) -> None:
    folder = REAL / "pet_headneck_qin"
    store(
        site.orthanc.dicomweb,
        [*sorted((folder / "dicom_pet").iterdir()), folder / "dicom_seg" / "seg_11_lesions.dcm"],
    )
    names = "neoplasm primary,neoplasm secondary"
    with site.campaign("one", structures=names, pacs_modalities="PT") as (parts, pacs):
        wait_until(lambda: len(pacs.store.get_labeled_images()) == 1, "the label")
        label = stored_label(parts, pacs.store.list_images()[0])
        image = nibabel.load(folder / "lesions.nii.gz")
        truth = np.asarray(image.dataobj).transpose(2, 1, 0)
        truth = same_voxels(truth, Grid.from_ras(truth.shape, image.affine), label.grid)
        assert np.array_equal(label.array == 1, truth == 1)
        assert np.array_equal(label.array == 2, truth > 1)
        assert parts.workspace.campaign.labels()[0].annotator == "User2"
