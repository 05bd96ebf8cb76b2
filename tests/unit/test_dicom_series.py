"""DICOM series: what becomes a volume, what becomes several, and what is refused with which words."""

from __future__ import annotations

import os
from pathlib import Path

import nibabel
import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate
from pydicom.uid import JPEGLSLossless

from hermes.errors import BadImageError
from hermes.geometry import Grid
from hermes.phantoms import make_series
from hermes.transforms.dicom import read_dicom, series_volumes
from hermes.transforms.dicom_volumes import choose_volume, volumes_of
from hermes.transforms.reading import read_volume
from hermes.transforms.suv import suv_factor

REAL = Path(
    os.environ.get("HERMES_TEST_DATA", Path(__file__).resolve().parents[2] / ".." / "shared" / "data")
)
SHAPE = (4, 3, 5)
AFFINE = Grid.from_axes(SHAPE, (-3.5, 2.25, 10), (0.7, 0.8, 2.5), np.eye(3)).affine
AXIAL, CORONAL = [1, 0, 0, 0, 1, 0], [1, 0, 0, 0, 0, -1]


def image(shape=SHAPE) -> np.ndarray:
    return np.arange(np.prod(shape), dtype=np.uint16).reshape(shape)


def saved(series: list[Dataset], folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    for number, header in enumerate(series):
        header.save_as(folder / f"{(number * 7) % 10}{number:03d}", write_like_original=False)
    return folder


def changed(series: list[Dataset], **changes) -> list[Dataset]:
    """Attributes by number of the instance."""
    for number, header in enumerate(series):
        for keyword, value in changes.items():
            setattr(header, keyword, value(number) if callable(value) else value)
    return series


def several(copies: int, first_instance: int = 1, **changes) -> list[Dataset]:
    """``copies`` images at each position; the changes get the number of the copy."""
    series = []
    for copy in range(copies):
        part = make_series(image() + 1000 * copy, AFFINE, modality="MR")
        for number, header in enumerate(part):
            unique = first_instance + copy * len(part) + number
            header.SOPInstanceUID = header.file_meta.MediaStorageSOPInstanceUID = f"1.2.3.{unique}"
            header.InstanceNumber = unique
        series += changed(part, **{key: value(copy) for key, value in changes.items()})
    return series


# ------------------------------------------------------------------------------------------------ one volume


@pytest.mark.parametrize("enhanced", [False, True])
@pytest.mark.parametrize("modality", ["CT", "MR"])
def test_classic_and_multi_frame_give_the_same_volume(tmp_path, enhanced, modality) -> None:
    tilted = AFFINE.copy()
    tilted[1, 2] = 0.6
    series = make_series(image(), tilted, modality=modality, enhanced=enhanced)
    array, grid, _ = read_dicom(saved(series, tmp_path / "s"))
    assert np.array_equal(array, image())
    assert grid.matches(Grid(SHAPE, tilted))
    assert not grid.is_orthogonal


def test_reversed_slices_are_the_same_volume(tmp_path) -> None:
    backwards = AFFINE.copy()
    backwards[:3, 2] *= -1
    backwards[:3, 3] += AFFINE[:3, 2] * (SHAPE[0] - 1)
    array, grid, _ = read_dicom(saved(make_series(image()[::-1], backwards), tmp_path / "s"))
    assert np.array_equal(array, image())
    assert grid.matches(Grid(SHAPE, AFFINE))


def test_frames_have_their_own_rescaling_even_when_compressed(tmp_path) -> None:
    pillow_jpls = pytest.importorskip("pillow_jpls")
    assert pillow_jpls
    from PIL import Image

    (data,) = make_series(image(), AFFINE, modality="PT", enhanced=True)
    for number, group in enumerate(data.PerFrameFunctionalGroupsSequence):
        values = Dataset()
        values.RescaleSlope, values.RescaleIntercept, values.RescaleType = number + 1, 10 * number, "US"
        group.PixelValueTransformationSequence = [values]
    plain, _, _ = read_dicom(saved([data], tmp_path / "plain"))
    expected = image() * np.arange(1, 5)[:, None, None] + 10 * np.arange(4)[:, None, None]
    assert np.array_equal(plain, expected)
    frames = []
    for plane in image():
        with (tmp_path / "frame").open("wb") as file:
            Image.fromarray(plane).save(file, format="JPEG-LS", near_lossless=0)
        frames.append((tmp_path / "frame").read_bytes())
    data.PixelData = encapsulate(frames)
    data["PixelData"].is_undefined_length = True
    data.file_meta.TransferSyntaxUID = JPEGLSLossless
    packed, _, _ = read_dicom(saved([data], tmp_path / "packed"))
    assert np.array_equal(packed, expected)


# ------------------------------------------------------------------------------------------------ several volumes


@pytest.mark.parametrize(
    ("changes", "titles"),
    [
        ({"EchoTime": lambda c: [4.6, 2.3][c]}, ["echo 2.3", "echo 4.6"]),
        ({"ImageType": lambda c: ["ORIGINAL", "PRIMARY", "MP"[c]]}, ["kind M", "kind P"]),
        ({"AcquisitionNumber": lambda c: c + 1}, ["acquisition 1", "acquisition 2"]),
    ],
)
def test_a_series_of_several_volumes_is_split_with_stable_ids(tmp_path, changes, titles) -> None:
    series = several(2, **changes)
    volumes = volumes_of(series)
    assert [volume.title for volume in volumes] == titles
    assert len({volume.id for volume in volumes}) == 2
    assert all(
        volume.id.startswith("1.2.3~") and volume.grid.matches(Grid(SHAPE, AFFINE)) for volume in volumes
    )
    assert [v.id for v in volumes_of(series[::-1])] == [v.id for v in volumes]
    folder = saved(series, tmp_path / "s")
    values = {}
    for volume in volumes:
        array, _, _ = read_dicom(folder, volume=volume.id)
        values[volume.title] = float(array[0, 0, 0])
    assert sorted(values.values()) == [0.0, 1000.0]
    with pytest.raises(BadImageError, match=r"one contrast.*2 \(.*1\.2\.3~"):
        read_dicom(folder)
    with pytest.raises(BadImageError, match="one of the volumes"):
        read_dicom(folder, volume="1.2.3~00000000")


def test_time_points_stay_one_volume_also_beside_echoes() -> None:
    phases = volumes_of(several(3, TriggerTime=lambda c: [100, 0, 50][c]))
    assert len(phases) == 1
    assert [phase[0].time[3] for phase in phases[0].phases] == [0.0, 50.0, 100.0]
    mixed = several(2, TriggerTime=lambda c: c * 50.0, EchoTime=lambda c: 2.0)
    mixed += several(2, 9, TriggerTime=lambda c: c * 50.0, EchoTime=lambda c: 4.0)
    assert [(v.title, len(v.phases)) for v in volumes_of(mixed)] == [("echo 2", 2), ("echo 4", 2)]


def test_stacks_of_several_directions_are_volumes() -> None:
    coronal = np.array([[0.7, 0, 0, 0], [0, 0, 3.0, 0], [0, -0.8, 0, 0], [0, 0, 0, 1]])
    series = make_series(image(), AFFINE) + make_series(image(), coronal)
    volumes = volumes_of(series)
    assert len(volumes) == 2
    assert {volume.grid.axis_codes for volume in volumes} == {"LPS", "LIP"}
    with pytest.raises(BadImageError, match="one orientation"):
        choose_volume(volumes)


# ------------------------------------------------------------------------------------------------ refusals


def _gap(n):
    return [0, 0, 10 + 2.5 * (n if n < 4 else n + 2)]


@pytest.mark.parametrize(
    ("series", "reason"),
    [
        (
            lambda: changed(make_series(image((7, 3, 5)), AFFINE), ImagePositionPatient=_gap),
            r"2 slices are missing \(first after slice 4\)",
        ),
        (
            lambda: changed(
                make_series(image((7, 3, 5)), AFFINE),
                ImagePositionPatient=lambda n: [0, 0, 2.5 * n + (n > 3)],
            ),
            "spacing changes",
        ),
        (
            lambda: changed(
                make_series(image((90, 3, 5)), AFFINE),
                ImagePositionPatient=lambda n: [0, 0, round(2.5 * n + 0.04 * max(0, n - 45), 3)],
            ),
            "drifts",
        ),
        (
            lambda: changed(
                make_series(image((3, 3, 5)), AFFINE),
                ImageOrientationPatient=lambda n: [AXIAL, CORONAL, [0, 1, 0, 0, 0, -1]][n],
            ),
            "localiser",
        ),
        (
            lambda: changed(make_series(image(), AFFINE), ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"]),
            "localiser",
        ),
        (lambda: changed(make_series(image(), AFFINE), PhotometricInterpretation="PALETTE COLOR"), "colour"),
        (lambda: changed(make_series(image(), AFFINE), PixelPresentation="COLOR"), "colour"),
        (
            lambda: changed(make_series(image(), AFFINE), ImageOrientationPatient=[1, 0, 0, 1, 0, 0]),
            "position",
        ),
        (lambda: several(2, InstanceNumber=lambda c: c), "not time points"),
        (lambda: several(2, TriggerTime=lambda c: c)[:-1], "same number of images"),
    ],
)
def test_a_series_that_would_lie_is_refused_in_words_an_annotator_understands(series, reason) -> None:
    with pytest.raises(BadImageError, match=reason):
        choose_volume(volumes_of(series()))


def test_rounded_positions_are_even() -> None:
    series = changed(
        make_series(image((90, 3, 5)), AFFINE), ImagePositionPatient=lambda n: [0, 0, round(0.7 * n, 1)]
    )
    assert choose_volume(volumes_of(series)).grid.spacing_mm[0] == pytest.approx(0.7, abs=1e-3)


def test_objects_that_are_no_images_are_named(tmp_path) -> None:
    header = make_series(image(), AFFINE)[0]
    del header.Rows
    header.Modality = "RTSTRUCT"
    with pytest.raises(BadImageError, match=r"no images \(RTSTRUCT\)"):
        read_dicom(saved([header], tmp_path / "s"))


# ------------------------------------------------------------------------------------------------ PET


def pet(**changes) -> Dataset:
    header, source = Dataset(), Dataset()
    header.Modality, header.Units, header.DecayCorrection, header.PatientWeight = "PT", "BQML", "START", 70
    header.SeriesDate = header.AcquisitionDate = "20200102"
    header.SeriesTime = header.AcquisitionTime = "130000"
    source.RadionuclideTotalDose, source.RadionuclideHalfLife = 2e8, 3600.0
    source.RadiopharmaceuticalStartTime = "120000.00"
    header.RadiopharmaceuticalInformationSequence = [source]
    for keyword, value in changes.items():
        setattr(source if keyword.startswith("Radio") else header, keyword, value)
    return header


@pytest.mark.parametrize(
    ("changes", "factor"),
    [
        ({}, 70_000 / 1e8),  # one half-life
        ({"DecayCorrection": "ADMIN"}, 70_000 / 2e8),
        ({"DecayCorrection": "NONE"}, None),
        ({"AcquisitionTime": "131000"}, 70_000 / 1e8),  # a later bed position: the start is the series'
        ({"SeriesTime": "180000"}, 70_000 / 1e8),  # a series derived later: the start is the acquisition's
        (
            # ... or what the frame says: its average moment lies about 60 s after its own start, 660 s after the scan's
            {
                "SeriesTime": "180000",
                "AcquisitionTime": "131000",
                "FrameReferenceTime": "659.8844809e3",
                "ActualFrameDuration": "120000",
            },
            70_000 / 1e8,
        ),
        (
            {"SeriesTime": "003000", "AcquisitionTime": "003000", "RadiopharmaceuticalStartTime": "233000"},
            70_000 / 1e8,
        ),
        ({"RadiopharmaceuticalStartDateTime": "20200102110000"}, 70_000 / 5e7),
        ({"RadiopharmaceuticalStartDateTime": "19700101120000"}, 70_000 / 1e8),
        ({"Units": "GML"}, 1.0),
        ({"Units": "GML", "SUVType": "LBM"}, None),
        ({"Units": "CNTS"}, None),
        ({"PatientWeight": None}, None),
    ],
)
def test_suv_by_body_weight(changes, factor) -> None:
    assert suv_factor(pet(**changes)) == (None if factor is None else pytest.approx(factor, rel=1e-5))


@pytest.mark.parametrize(("element", "factor"), [(0x1000, 0.002), (0x1009, 3.0 * 70_000 / 1e8)])
def test_philips_counts_have_a_private_factor(element, factor) -> None:
    header = pet(Units="CNTS")
    header.add_new((0x7053, 0x0010), "LO", "Philips PET Private Group")
    header.add_new((0x7053, element), "DS", "0.002" if element == 0x1000 else "3.0")
    assert suv_factor(header) == pytest.approx(factor)


# ------------------------------------------------------------------------------------------------ real data


@pytest.mark.real_data
@pytest.mark.skipif(not (REAL / "dicom_awkward").is_dir(), reason="no real volumes: set HERMES_TEST_DATA")
@pytest.mark.parametrize(
    ("folder", "outcome"),
    [
        ("dicom2nifti/failing/gantrytilting/001", "sheared"),
        ("dicom2nifti/failing/sliceincrement/001", "1 slice is missing"),
        ("dicom2nifti/failing/sliceorientation/001", "localiser"),
        ("dicom2nifti/failing/slicecount/001", (2, 256, 256)),
        ("dicom2nifti/ge/anatomical/001_single_slice", (1, 256, 256)),
        ("dicom2nifti/generic/rgb/001", "colour"),
        ("dicom2nifti/philips_enhanced/anatomical/001", (8, 256, 256)),
        ("dicom2nifti/siemens_multiframe/anatomical/001", (8, 256, 256)),
        ("pydicom-data/eCT_Supplemental.dcm", "colour"),
        ("pydicom-data/emri_small.dcm", "positions for every frame"),
        ("pydicom/rtdose.dcm", "RTDOSE"),
        ("pydicom/MR_truncated.dcm", "decoded"),
    ],
)
def test_real_series_are_handled_or_refused_with_the_reason(folder, outcome) -> None:
    path = REAL / "dicom_awkward" / folder
    if outcome == "sheared":
        assert not read_volume(path).grid.is_orthogonal
    elif isinstance(outcome, tuple):
        assert read_volume(path).array.shape == outcome
    else:
        with pytest.raises(BadImageError, match=outcome):
            read_volume(path)


@pytest.mark.real_data
@pytest.mark.skipif(not (REAL / "dicom_awkward").is_dir(), reason="no real volumes: set HERMES_TEST_DATA")
@pytest.mark.parametrize("kind", ["compressed", "compressed_j2k", "compressed_jpeg", "compressed_jpegls"])
def test_compressed_series_hold_the_same_values(kind) -> None:
    folder = REAL / "dicom_awkward" / "dicom2nifti" / "generic"
    theirs, plain = (
        read_volume(folder / kind / "001"),
        read_volume(folder / "compressed_rle" / "001"),
    )  # no codec
    assert theirs.grid.matches(plain.grid)
    assert np.array_equal(theirs.array, plain.array)


@pytest.mark.real_data
@pytest.mark.skipif(not (REAL / "pet_headneck_qin").is_dir(), reason="no real volumes: set HERMES_TEST_DATA")
def test_real_pet_is_suv_by_body_weight() -> None:
    folder = REAL / "pet_headneck_qin"
    (volume,) = series_volumes(folder / "dicom_pet")
    assert volume.id == str(pydicom.dcmread(next((folder / "dicom_pet").iterdir())).SeriesInstanceUID)
    truth = nibabel.load(folder / "pet_suvbw.nii.gz")
    ours = read_volume(folder / "dicom_pet")
    assert ours.grid.matches(Grid.from_ras(ours.array.shape, truth.affine))
    np.testing.assert_allclose(
        ours.array, np.asarray(truth.dataobj).transpose(2, 1, 0), rtol=1e-4, atol=1e-3
    )  # stored in 16 bits
