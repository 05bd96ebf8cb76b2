"""The phantoms: repeatable, anatomically the right way round, in the units that they claim."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from scipy import ndimage

from hermes.errors import BadRequestError, NotFoundError
from hermes.phantoms import PhantomCase, dataset, datasets, make_case
from hermes.types import Modality

NAMES = [d.name for d in datasets()]


def centre_lps_mm(case: PhantomCase, structure: str) -> np.ndarray:
    value = next(v for v, name in case.names.items() if name == structure)
    voxel_zyx = np.argwhere(case.labels == value).mean(axis=0)
    return (case.affine @ [*voxel_zyx[::-1], 1.0])[:3]


def voxels(case: PhantomCase, structure: str) -> np.ndarray:
    value = next(v for v, name in case.names.items() if name == structure)
    return case.image[case.labels == value]


@pytest.mark.parametrize("name", NAMES)
def test_same_seed_gives_identical_arrays_and_another_seed_does_not(name: str) -> None:
    first, again = make_case(name, 7, size="tiny"), make_case(name, 7, size="tiny")
    other = make_case(name, 8, size="tiny")
    assert first.image.tobytes() == again.image.tobytes()
    assert first.labels.tobytes() == again.labels.tobytes()
    assert np.array_equal(first.affine, again.affine)
    assert first.image.tobytes() != other.image.tobytes()


@pytest.mark.parametrize("name", NAMES)
def test_case_says_what_it_holds(name: str) -> None:
    case = make_case(name, 3, size="tiny")
    assert case.dataset == name
    assert case.modality in dataset(name).modalities
    assert case.image.shape == case.labels.shape
    assert case.image.dtype == np.float32
    assert case.labels.dtype == np.uint8
    assert tuple(case.names.values()) == dataset(name).structures
    assert set(case.present) | set(case.absent) == set(dataset(name).structures)
    assert not set(case.present) & set(case.absent)
    assert {case.names[v] for v in np.unique(case.labels) if v} == set(case.present)
    assert case.present


def test_every_structure_is_present_in_some_case() -> None:
    for which in datasets():
        seen: set[str] = set()
        for seed in range(6):
            if seen != set(which.structures):
                seen |= set(make_case(which.name, seed, size="tiny").present)
        assert seen == set(which.structures), which.name


@pytest.mark.parametrize("seed", range(4))
def test_left_is_left_and_up_is_up(seed: int) -> None:
    case = make_case("PhantomAbdomenCT", 20 + seed, size="tiny")
    liver = centre_lps_mm(case, "liver")
    if "spleen" in case.present:
        assert centre_lps_mm(case, "spleen")[0] - liver[0] > 80.0
    if {"left kidney", "right kidney"} <= set(case.present):
        left, right = (centre_lps_mm(case, f"{side} kidney") for side in ("left", "right"))
        assert left[0] - right[0] > 60.0
        assert liver[2] > right[2]
        assert right[1] > centre_lps_mm(case, "stomach")[1]


def test_aorta_is_one_piece_without_bites() -> None:
    case = make_case("PhantomAbdomenCT", 102)
    value = next(v for v, name in case.names.items() if name == "aorta")
    filled = ndimage.binary_closing(case.labels == value, iterations=2)
    assert (filled & (case.labels == 0)).sum() < 0.005 * filled.sum()
    assert ndimage.label(filled)[1] == 1


def test_lungs_lie_on_their_sides_beside_the_heart() -> None:
    case = make_case("PhantomThoraxCT", 1, size="tiny")
    left, heart, right = (centre_lps_mm(case, s)[0] for s in ("left lung", "heart", "right lung"))
    assert left > heart > right


def test_ct_is_in_hounsfield_units() -> None:
    case = make_case("PhantomThoraxCT", 2)
    assert case.image.min() >= -1024
    assert -900 < np.median(voxels(case, "left lung")) < -700
    assert 0 < np.median(voxels(case, "heart")) < 350
    assert case.image.max() > 250  # bone
    assert np.median(case.image[:, 0, 0]) < -950  # air in a corner


def test_pet_lesions_are_hotter_than_the_body() -> None:
    case = make_case("PhantomPET", 2)
    body = case.image[case.image > 0.3]
    assert np.median(voxels(case, "lesion")) > 2.5 * np.median(body)
    assert case.image.min() >= 0


def test_cine_heart_contracts_and_keeps_its_place() -> None:
    full, empty = (make_case("PhantomCineMR", 4, phase=p, plain_axes=True) for p in (0.0, 1.0))
    assert np.array_equal(full.affine, empty.affine)
    assert voxels(empty, "left ventricle").size < 0.8 * voxels(full, "left ventricle").size
    assert np.median(voxels(full, "left ventricle")) > 2.0 * np.median(voxels(full, "myocardium"))


def test_brain_tissues_are_ordered_as_in_t1() -> None:
    case = make_case("PhantomBrainT1", 2)
    fluid, grey, white = (
        np.median(voxels(case, s)) for s in ("cerebrospinal fluid", "grey matter", "white matter")
    )
    assert fluid < grey < white


def test_both_mr_weightings_occur_and_order_spleen_and_liver_differently() -> None:
    seen = {}
    for seed in range(8):
        case = make_case("PhantomAbdomenMR", seed, size="tiny")
        if "spleen" in case.present:
            seen[case.modality] = np.median(voxels(case, "spleen")) > np.median(voxels(case, "liver"))
    assert seen == {Modality.T1: False, Modality.T2: True}


def test_protocols_draw_the_same_organ_differently() -> None:
    drawings = {
        name: next(d for d in dataset(name).drawings if d.structure == "liver")
        for name in ("PhantomAbdomenCT", "PhantomLiverCT", "PhantomAbdomenMR")
    }
    assert len({(d.regions, d.margin_voxels) for d in drawings.values()}) == 3


def test_stored_order_moves_no_voxel_in_the_world() -> None:
    seeds = range(40)
    cases = (make_case("PhantomCineMR", seed, size="tiny") for seed in seeds)
    stored = next(c for c in cases if c.image.shape.index(min(c.image.shape)) != 0)  # slices not along z
    plain = make_case("PhantomCineMR", stored.seed, size="tiny", plain_axes=True)
    assert plain.image.shape.index(min(plain.image.shape)) == 0
    index = np.argwhere(stored.labels > 0)[::97]
    world = stored.affine @ np.c_[index[:, ::-1], np.ones(len(index))].T
    there = np.rint(np.linalg.inv(plain.affine) @ world)[:3].astype(int)[::-1]
    assert np.array_equal(plain.image[tuple(there)], stored.image[tuple(index.T)])
    assert np.array_equal(plain.labels[tuple(there)], stored.labels[tuple(index.T)])


def test_size_changes_the_voxels_and_not_the_field_of_view() -> None:
    tiny, small = (make_case("PhantomPET", 1, size=s, plain_axes=True) for s in ("tiny", "small"))
    extents = [
        np.array(c.image.shape[::-1]) * np.linalg.norm(c.affine[:3, :3], axis=0) for c in (tiny, small)
    ]
    assert tiny.image.size < 0.3 * small.image.size
    np.testing.assert_allclose(extents[0], extents[1], rtol=0.03)


def test_unknown_names_are_refused_with_the_known_ones() -> None:
    with pytest.raises(NotFoundError, match="PhantomAbdomenCT"):
        make_case("PhantomFoot", 1)
    with pytest.raises(BadRequestError, match="small"):
        make_case("PhantomPET", 1, size="huge")


def test_case_is_frozen() -> None:
    case = make_case("PhantomCineMR", 1, size="tiny")
    with pytest.raises(dataclasses.FrozenInstanceError):
        case.name = "other"  # type: ignore[misc]
