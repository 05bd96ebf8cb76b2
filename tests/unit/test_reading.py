"""Reading and writing images; DICOM series are made here, slice by slice."""

import gzip
from pathlib import Path

import nibabel
import numpy as np
import pydicom
import pytest
import SimpleITK
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset

from hermes.errors import BadImageError, BadLabelError, BadRequestError
from hermes.geometry import Grid
from hermes.records import LabelMap
from hermes.transforms.modality import guess_from_dicom, guess_from_words
from hermes.transforms.reading import check_labels, read_label_map, read_volume
from hermes.transforms.suv import suv_factor
from hermes.transforms.writing import write_label_map
from hermes.types import Modality

OBLIQUE = Grid.from_axes((4, 5, 6), (1, -2, 3), (0.7, 0.8, 2.5), [[0.8, -0.6, 0], [0.6, 0.8, 0], [0, 0, 1]])


def nifti(path: Path, array: np.ndarray, affine=None) -> Path:
    nibabel.save(nibabel.Nifti1Image(array, np.eye(4) if affine is None else affine), path)
    return path


def series(folder: Path, positions, *, modality="CT", **changes) -> Path:
    folder.mkdir(exist_ok=True)
    for number, z in enumerate(positions):
        meta = FileMetaDataset()
        meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
        meta.MediaStorageSOPClassUID = pydicom.uid.CTImageStorage
        meta.MediaStorageSOPInstanceUID = f"1.2.3.{number + 1}"
        ds = FileDataset(str(folder), {}, file_meta=meta, preamble=b"\0" * 128)
        ds.is_little_endian, ds.is_implicit_VR = True, False
        ds.Modality, ds.SeriesInstanceUID, ds.InstanceNumber = modality, "1.2.9", number + 1
        ds.SOPClassUID, ds.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
        ds.Rows, ds.Columns, ds.SamplesPerPixel, ds.PhotometricInterpretation = 3, 4, 1, "MONOCHROME2"
        ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 16, 16, 15, 0
        ds.ImagePositionPatient, ds.ImageOrientationPatient = [1, 2, z], [1, 0, 0, 0, 1, 0]
        ds.PixelSpacing, ds.SliceThickness = [0.5, 0.75], 5
        ds.RescaleSlope, ds.RescaleIntercept = 2, -1000
        ds.PixelData = np.full((3, 4), number, np.uint16).tobytes()
        for name, value in changes.items():
            setattr(ds, name, value(number) if callable(value) else value)
        ds.save_as(folder / f"{(number * 7) % 10}_{number}.dcm", write_like_original=False)
    return folder


def test_a_series_is_sorted_by_position_and_rescaled(tmp_path) -> None:
    volume = read_volume(series(tmp_path / "s", [20, 10, 15]))
    assert volume.array[:, 0, 0].tolist() == [-998.0, -996.0, -1000.0]  # z 10 was second, 15 third, 20 first
    assert volume.grid.matches(Grid.from_axes((3, 3, 4), (1, 2, 10), (0.75, 0.5, 5.0)))
    assert (volume.modality, volume.modality_source) == (Modality.CT, "dicom")


def test_one_slice_takes_its_thickness(tmp_path) -> None:
    assert read_volume(series(tmp_path / "s", [0])).grid.spacing_mm == (5.0, 0.5, 0.75)


@pytest.mark.parametrize(
    ("positions", "changes", "reason"),
    [
        ([0, 5, 15], {}, "evenly spaced"),
        (
            [0, 5, 10],
            {"ImageOrientationPatient": lambda n: [1, 0, 0, 0, 1, 0] if n else [0, 1, 0, 0, 0, 1]},
            "one orientation",
        ),
        ([0, 5], {"PixelSpacing": lambda n: [1 + n, 1 + n]}, "one image size"),
        ([0, 5], {"SeriesInstanceUID": lambda n: f"1.2.{n + 1}"}, "one series"),
        ([0, 5, 5], {}, "same number of images"),
        ([0, 0, 5, 5], {"Modality": "MR"}, "not time points"),
        ([0, 5], {"SamplesPerPixel": 3}, "colour"),
        ([0, 5], {"ImagePositionPatient": None}, "position"),
        ([0, 5], {"PixelData": b"12"}, "decoded"),
    ],
)
def test_a_series_that_would_lie_is_refused_with_the_reason(tmp_path, positions, changes, reason) -> None:
    with pytest.raises(BadImageError, match=reason):
        read_volume(series(tmp_path / "s", positions, **changes))


def test_time_points_are_frames(tmp_path) -> None:
    times = {"TriggerTime": lambda n: 100 - 50 * (n % 2), "ScanOptions": "CG"}
    folder = series(tmp_path / "s", [0, 0, 5, 5], modality="MR", **times)
    assert read_volume(folder).array[:, 0, 0].tolist() == [-998.0, -994.0]
    assert read_volume(folder, frame=1).array[:, 0, 0].tolist() == [-1000.0, -996.0]
    with pytest.raises(BadImageError, match="frame"):
        read_volume(folder, frame=2)


@pytest.mark.parametrize(
    ("tags", "expected"),
    [
        ({"Modality": "PT"}, Modality.PET),
        ({"Modality": "MR", "SeriesDescription": "t2_tse_sag"}, Modality.T2),
        ({"Modality": "MR", "SeriesDescription": "AX T1 VIBE"}, Modality.T1),
        ({"Modality": "MR", "SeriesDescription": "T1 and T2"}, None),
        ({"Modality": "MR", "EchoTime": 100.0, "RepetitionTime": 4000.0}, Modality.T2),
        ({"Modality": "MR", "EchoTime": 3.0, "RepetitionTime": 8.0}, Modality.T1),
        ({"Modality": "MR", "EchoTime": 20.0, "RepetitionTime": 4000.0}, None),
        ({"Modality": "MR", "CardiacNumberOfImages": 25, "ScanningSequence": "GR"}, Modality.CINE),
        ({"Modality": "US"}, None),
    ],
)
def test_attributes_tell_the_modality(tags, expected) -> None:
    header = Dataset()
    for name, value in tags.items():
        setattr(header, name, value)
    guess = guess_from_dicom(header)
    assert (guess.modality if guess else None) is expected


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("case_CT.nii.gz", Modality.CT),
        ("sub-01_T1w", Modality.T1),
        ("action", None),
        ("ct_and_pet", None),
        ("scan_cine", Modality.CINE),
    ],
)
def test_words_tell_the_modality(name, expected) -> None:
    guess = guess_from_words(name, "name", 0.5)
    assert (guess.modality if guess else None) is expected


def test_suv_is_activity_per_dose_and_weight() -> None:
    header, source = Dataset(), Dataset()
    header.Modality, header.Units, header.DecayCorrection, header.PatientWeight = "PT", "BQML", "START", 70
    header.SeriesTime = "130000"
    source.RadionuclideTotalDose, source.RadionuclideHalfLife = 2e8, 3600.0
    source.RadiopharmaceuticalStartTime = "120000.00"
    header.RadiopharmaceuticalInformationSequence = [source]
    assert suv_factor(header) == pytest.approx(70_000 / 1e8)  # one half-life
    del header.PatientWeight
    assert suv_factor(header) is None


def test_values_that_are_no_numbers_become_the_least(tmp_path) -> None:
    array = np.array([np.nan, np.inf, -np.inf, -3.0, 5.0, 0.0, 1.0, 2.0], np.float32).reshape(2, 2, 2)
    volume = read_volume(nifti(tmp_path / "a.nii", array))
    assert volume.array.transpose(2, 1, 0).ravel()[:3].tolist() == [-3.0, 5.0, -3.0]
    with pytest.raises(BadImageError, match="finite"):
        read_volume(nifti(tmp_path / "b.nii", np.full((2, 2, 2), np.nan, np.float32)))


def test_four_dimensions_need_time_or_a_frame(tmp_path) -> None:
    array = np.arange(2 * 2 * 2 * 3, dtype=np.int16).reshape(2, 2, 2, 3)
    cine, plain = nifti(tmp_path / "a_cine.nii.gz", array), nifti(tmp_path / "a.nii.gz", array)
    assert np.array_equal(read_volume(cine).array, array[..., 0].transpose(2, 1, 0))
    assert np.array_equal(read_volume(plain, frame=2).array, array[..., 2].transpose(2, 1, 0))
    assert read_volume(plain, modality=Modality.CINE).modality is Modality.CINE
    with pytest.raises(BadImageError, match="fourth axis is time"):
        read_volume(plain)


@pytest.mark.parametrize("name", ["a.nii.gz", "a.nii", "a.nrrd", "a.mha", "a.dcm", "a.png"])
def test_what_cannot_be_read_names_what_was_expected(tmp_path, name) -> None:
    (tmp_path / name).write_bytes(b"\x1f\x8b nothing")
    with pytest.raises(BadImageError, match="Expected"):
        read_volume(tmp_path / name)


def test_colour_is_refused(tmp_path) -> None:
    image = SimpleITK.GetImageFromArray(np.zeros((2, 3, 4, 3), np.uint8), isVector=True)
    SimpleITK.WriteImage(image, str(tmp_path / "a.nrrd"))
    with pytest.raises(BadImageError, match="colour"):
        read_volume(tmp_path / "a.nrrd")


def test_complex_intensities_are_refused(tmp_path) -> None:
    nibabel.save(nibabel.Nifti1Image(np.ones((3, 4, 5), np.complex64), np.eye(4)), tmp_path / "a.nii.gz")
    with pytest.raises(BadImageError, match="magnitude"):
        read_volume(tmp_path / "a.nii.gz")


@pytest.mark.parametrize("suffix", [".nii.gz", ".nii", ".nrrd", ".mha"])
def test_a_label_map_comes_back_on_its_grid(tmp_path, suffix) -> None:
    array = np.random.default_rng(0).integers(0, 3, OBLIQUE.shape).astype(np.uint8)
    path = write_label_map(
        LabelMap(array, OBLIQUE, {1: "liver", 2: "left kidney"}), tmp_path / f"out{suffix}"
    )
    back = read_label_map(path)
    assert np.array_equal(back.array, array)
    assert back.grid.matches(OBLIQUE)
    assert back.names == ({1: "liver", 2: "left kidney"} if suffix == ".nrrd" else {})
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def test_a_sheared_grid_needs_nifti(tmp_path) -> None:
    affine = np.eye(4)
    affine[1, 2] = 0.3
    label_map = LabelMap(np.ones((2, 3, 4), np.uint8), Grid((2, 3, 4), affine))
    assert read_label_map(write_label_map(label_map, tmp_path / "a.nii.gz")).grid.matches(label_map.grid)
    with pytest.raises(BadRequestError, match="sheared"):
        write_label_map(label_map, tmp_path / "a.nrrd")
    with pytest.raises(BadRequestError, match="ending in"):
        write_label_map(label_map, tmp_path / "a.txt")


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ([0, 0.5, 1], r"got 0\.5 \(1 voxels are"),
        ([0, 1e-7, 2.1], r"got 1e-07 \(2 voxels are"),
        ([0, np.nan, 1], r"got nan \(1 voxels are"),
        ([-1, 0, 1], "got values from -1 to 1"),
        ([0, 1, 65536], "got values from 0 to 65536"),
        ([0, 1, np.inf], "got values from 0 to inf"),
    ],
)
def test_labels_are_whole_numbers(tmp_path, values, words: str) -> None:
    array = np.array(values, np.float32).reshape(1, 1, 3)
    with pytest.raises(BadLabelError, match=f"whole numbers.*{words}"):
        check_labels(array)
    with pytest.raises(BadLabelError, match=f"whole numbers.*{words}"):
        read_label_map(nifti(tmp_path / "a.nii.gz", array))


@pytest.mark.parametrize(
    ("name", "least", "expected"),
    [
        ("patient_t1.nii.gz", -1000, (Modality.CT, "intensity")),
        ("patient_t1.nii.gz", 0, (Modality.T1, "name")),
        ("patient_ct.nii.gz", -1000, (Modality.CT, "name")),
        ("patient.nii.gz", 0, (None, "unknown")),
    ],
)
def test_hounsfield_units_say_more_than_a_name(tmp_path, name, least, expected) -> None:
    array = np.linspace(least, 500, 60, dtype=np.float32).reshape(3, 4, 5)
    volume = read_volume(nifti(tmp_path / name, array))
    assert (volume.modality, volume.modality_source) == expected


@pytest.mark.parametrize("name", ["l.nii.gz", "l.mgz", "l.nrrd", "l.mha"])
def test_a_damaged_label_is_not_read_as_another_drawing(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    array = np.random.default_rng(0).integers(0, 3, (20, 24, 28)).astype(np.uint8)
    if name.endswith(("nrrd", "mha")):
        SimpleITK.WriteImage(SimpleITK.GetImageFromArray(array), str(path), useCompression=True)
    elif name.endswith("mgz"):
        nibabel.save(nibabel.MGHImage(array.transpose(2, 1, 0), np.eye(4)), path)
    else:
        nifti(path, array.transpose(2, 1, 0))
    good = path.read_bytes()
    assert np.array_equal(read_label_map(path).array, array)
    for place in np.linspace(len(good) // 2, len(good) - 1, 40).astype(int):
        path.write_bytes(good[:place] + bytes([good[place] ^ 16]) + good[place + 1 :])
        try:
            read = read_label_map(path).array
        except BadLabelError:
            continue
        assert np.array_equal(read, array)  # the length at the end of gzip, or a byte that means nothing
    for cut in (1, 5, 100):
        path.write_bytes(good[:-cut])
        with pytest.raises(BadLabelError, match="cut off"):
            read_label_map(path)
    path.write_bytes(good + b"\0" * 512)  # tapes and some disks pad
    assert np.array_equal(read_label_map(path).array, array)


def test_several_streams_of_gzip_are_one_label(tmp_path: Path) -> None:
    array = np.random.default_rng(0).integers(0, 3, (20, 24, 28)).astype(np.uint8)
    plain = nifti(tmp_path / "l.nii", array.transpose(2, 1, 0)).read_bytes()
    path = tmp_path / "l.nii.gz"
    path.write_bytes(b"".join(gzip.compress(plain[i : i + 3000]) for i in range(0, len(plain), 3000)))
    assert np.array_equal(read_label_map(path).array, array)


@pytest.mark.parametrize("name", ["l.nii.gz", "l.nrrd", "l.mha"])
@pytest.mark.parametrize(
    "content", [b"", b"hello", b"NRRD0004\ntype: uint8\n", b"ObjectType = Image\nNDims = 3\n"]
)
def test_a_file_of_another_kind_is_called_that(tmp_path: Path, name: str, content: bytes) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(BadLabelError, match="empty, cut off or of another kind"):
        read_label_map(path)
    with pytest.raises(BadImageError, match="empty, cut off or of another kind"):
        read_volume(path)
