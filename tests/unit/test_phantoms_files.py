"""Phantom files: NIfTI and DICOM say what the case says, and the sample data are what the manifest says."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest
import SimpleITK as sitk  # noqa: N813

from hermes.phantoms import datasets, make_case, write_cine, write_dicom_series, write_nifti
from hermes.phantoms.__main__ import main
from hermes.phantoms.dicom import INJECTED_DOSE_BQ, UPTAKE_S, series_uid
from hermes.phantoms.pictures import draw_case
from hermes.phantoms.samples import (
    CAMPAIGN_SEEDS,
    FIRST_TRAINING_SEED,
    HELDOUT_SEEDS,
    MANIFEST,
    content_hash,
    differences,
    samples,
    write_sample,
)
from hermes.types import Modality

SAMPLE_DATA = Path(__file__).parents[2] / "sample-data"


@pytest.mark.parametrize("name", [d.name for d in datasets()])
def test_nifti_gives_the_case_back(name: str, tmp_path: Path) -> None:
    case = make_case(name, 5, size="tiny")
    path = write_nifti(case, tmp_path / "images", tmp_path / "labels")
    image, labels = nib.load(path), nib.load(tmp_path / "labels" / path.name)
    step = 0.01 if case.modality is Modality.PET else 1.0
    np.testing.assert_allclose(np.asarray(image.dataobj).T, case.image, atol=0.51 * step)
    assert np.array_equal(np.asarray(labels.dataobj).T, case.labels)
    lps_from_voxel = np.diag([-1.0, -1.0, 1.0, 1.0]) @ image.affine
    np.testing.assert_allclose(lps_from_voxel, case.affine, atol=1e-3)
    note = json.loads((tmp_path / "labels" / f"{case.name}.json").read_text())
    assert note["names"] == {str(v): n for v, n in case.names.items()}
    assert note["modality"] == case.modality.value


def test_nifti_bytes_depend_on_the_case_alone(tmp_path: Path) -> None:
    case = make_case("PhantomCineMR", 5, size="tiny")
    first, again = (write_nifti(case, tmp_path / d) for d in ("a", "b"))
    assert first.read_bytes() == again.read_bytes()


def test_cine_file_has_time_as_its_fourth_axis(tmp_path: Path) -> None:
    write_cine(2, tmp_path / "cine.nii.gz", phases=4, size="tiny")
    beat = np.asarray(nib.load(tmp_path / "cine.nii.gz").dataobj)
    assert beat.ndim == 4
    assert beat.shape[3] == 4
    assert not np.array_equal(beat[..., 0], beat[..., 2])


def _read_series(folder: Path) -> sitk.Image:
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(folder)))
    return reader.Execute()


@pytest.mark.parametrize(
    "name", ["PhantomAbdomenCT", "PhantomPET", "PhantomAbdomenMR", "PhantomCineMR", "PhantomBrainT1"]
)
def test_dicom_series_gives_the_case_back_to_an_independent_reader(name: str, tmp_path: Path) -> None:
    case = make_case(name, 9, size="tiny", plain_axes=True)
    files = write_dicom_series(case, tmp_path)
    assert len(files) == len(case.image)
    read = _read_series(tmp_path)
    head = pydicom.dcmread(files[0])
    array = sitk.GetArrayFromImage(read).astype(np.float64)
    if case.modality is Modality.PET:
        tracer = head.RadiopharmaceuticalInformationSequence[0]
        dose = float(tracer.RadionuclideTotalDose) * 0.5 ** (UPTAKE_S / float(tracer.RadionuclideHalfLife))
        array = array * float(head.PatientWeight) * 1000.0 / dose
        assert float(tracer.RadionuclideTotalDose) == INJECTED_DOSE_BQ
        assert head.Units == "BQML"
    np.testing.assert_allclose(array, case.image, atol=0.51 if case.modality is not Modality.PET else 0.006)
    affine = np.eye(4)
    affine[:3, :3] = np.array(read.GetDirection()).reshape(3, 3) * read.GetSpacing()
    affine[:3, 3] = read.GetOrigin()
    np.testing.assert_allclose(affine, case.affine, atol=1e-3)
    assert head.SeriesInstanceUID == series_uid(case)
    assert all(len(uid) <= 64 for uid in (head.SOPInstanceUID, head.StudyInstanceUID))


def test_dicom_tags_tell_the_sequences_apart(tmp_path: Path) -> None:
    heads = {}
    for seed in range(8):
        case = make_case("PhantomAbdomenMR", seed, size="tiny")
        heads[case.modality] = pydicom.dcmread(write_dicom_series(case, tmp_path / str(seed))[0])
    cine = pydicom.dcmread(write_dicom_series(make_case("PhantomCineMR", 1, size="tiny"), tmp_path / "c")[0])
    assert float(heads[Modality.T1].EchoTime) < 30 < 80 < float(heads[Modality.T2].EchoTime)
    assert heads[Modality.T2].ScanningSequence == "SE"
    assert "SS" in cine.SequenceVariant
    assert "cine" in cine.SeriesDescription


def test_dicom_bytes_depend_on_the_case_alone(tmp_path: Path) -> None:
    case = make_case("PhantomPET", 5, size="tiny")
    first, again = (write_dicom_series(case, tmp_path / d) for d in ("a", "b"))
    assert [p.read_bytes() for p in first] == [p.read_bytes() for p in again]


def test_sample_groups_are_disjoint() -> None:
    images = [s.image for s in samples()]
    assert len(set(images)) == len(images)
    assert not set(CAMPAIGN_SEEDS) & set(HELDOUT_SEEDS)
    assert max(s.seed for s in samples()) < FIRST_TRAINING_SEED


def test_committed_files_are_what_the_manifest_says() -> None:
    assert list(differences(SAMPLE_DATA)) == []
    files = json.loads((SAMPLE_DATA / MANIFEST).read_text())["files"]
    named = {s.image for s in samples() if not s.is_dicom} | {s.labels for s in samples()}
    assert named <= set(files)
    assert sum(entry["bytes"] for entry in files.values()) < 15_000_000
    assert {p.relative_to(SAMPLE_DATA).as_posix() for p in (SAMPLE_DATA / "campaign").iterdir()} <= set(files)


@pytest.mark.parametrize(
    "wanted",
    ["campaign/PhantomAbdomenCT_0100", "modalities/images/PhantomCineMR", "dicom/series/PhantomCineMR"],
)
def test_samples_are_regenerated_as_committed(wanted: str, tmp_path: Path) -> None:
    files = json.loads((SAMPLE_DATA / MANIFEST).read_text())["files"]
    sample = next(s for s in samples() if s.image.startswith(wanted))
    for path in write_sample(sample, tmp_path):
        name = path.relative_to(tmp_path).as_posix()
        assert content_hash(path) == files[name]["content_sha256"], name


def test_check_command_finds_a_changed_and_a_missing_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good, bad = tmp_path / "good.json", tmp_path / "bad.json"
    good.write_text("{}")
    bad.write_text("{}")
    entry = {"content_sha256": content_hash(good)}
    (tmp_path / MANIFEST).write_text(json.dumps({"files": {"good.json": entry, "bad.json": entry}}))
    assert main(["check", str(tmp_path)]) == 0
    bad.write_text("[]")
    good.unlink()
    assert main(["check", str(tmp_path)]) == 1
    said = capsys.readouterr().err
    assert "good.json is missing" in said
    assert "bad.json is not what" in said


def test_picture_shows_the_slices(tmp_path: Path) -> None:
    draw_case(make_case("PhantomCineMR", 1, size="tiny", plain_axes=True), tmp_path / "cine.png")
    assert (tmp_path / "cine.png").read_bytes()[:4] == b"\x89PNG"
