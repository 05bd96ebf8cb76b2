"""The catalogue: codes that the dictionaries have, colours that differ, names that mean one thing."""

from __future__ import annotations

import itertools
import math

import pytest
from pydicom.sr._concepts_dict import concepts

from hermes.errors import BadRequestError, UnknownStructureError
from hermes.labels import Code, Structure, catalogue, describe, describe_new, group_names, structure
from hermes.labels.catalogue import lab
from hermes.labels.names import key

MEANINGS: dict[str, set[str]] = {}
for concept in concepts["SCT"].values():
    for value, (meaning, _contexts) in concept.items():
        MEANINGS.setdefault(value, set()).add(meaning)


def codes_of(entry: Structure) -> list[Code]:
    optional = [entry.laterality, entry.region]
    return [entry.code, entry.category, *entry.parts, *(code for code in optional if code is not None)]


@pytest.mark.parametrize("entry", catalogue(), ids=lambda entry: entry.name)
def test_every_code_is_in_pydicoms_dictionary_with_its_meaning(entry: Structure) -> None:
    for code in codes_of(entry):
        assert code.scheme == "SCT"
        assert code.meaning in MEANINGS[code.value]


@pytest.mark.parametrize("side", ["left", "right"])
def test_sides_have_the_modifier_or_a_code_that_says_them(side: str) -> None:
    sided = [entry for entry in catalogue() if entry.name.startswith(f"{side} ")]
    assert len(sided) == 13
    for entry in sided:
        if entry.laterality is None:
            assert side in entry.code.meaning.lower()
        else:
            assert entry.laterality.value == {"left": "7771000", "right": "24028007"}[side]
            assert entry.laterality.meaning.lower() == side


def test_no_two_structures_share_code_side_and_region_except_parts_of_one() -> None:
    seen: dict[object, Structure] = {}
    for entry in catalogue():
        identity = (entry.code.value, entry.laterality, entry.region, entry.parts)
        first = seen.setdefault(identity, entry)
        assert first is entry or first.name in entry.within, (first.name, entry.name)


def test_colours_are_at_least_ten_units_of_lab_apart() -> None:
    distances = {
        (a.name, b.name): math.dist(lab(a.colour), lab(b.colour))
        for a, b in itertools.combinations(catalogue(), 2)
    }
    closest = min(distances, key=lambda pair: distances[pair])
    assert distances[closest] >= 10, closest


def test_lab_of_white_and_red_are_the_published_values() -> None:
    assert lab((255, 255, 255)) == pytest.approx((100, 0, 0), abs=0.02)
    assert lab((255, 0, 0)) == pytest.approx((53.24, 80.09, 67.20), abs=0.02)


def test_no_spelling_names_two_structures() -> None:
    owner: dict[str, str] = {}
    for entry in catalogue():
        for name in (entry.name, *entry.synonyms):
            assert owner.setdefault(key(name), entry.name) == entry.name, name


def test_groups_and_containers_exist() -> None:
    names = {entry.name for entry in catalogue()}
    for entry in catalogue():
        assert set(entry.within) <= names
        assert entry.groups
        assert set(entry.groups) <= set(group_names())
    assert group_names() == ("abdomen", "thorax", "head and neck", "heart", "brain", "tumours", "PET")


@pytest.mark.parametrize(
    ("written", "name"),
    [
        ("LIVER", "liver"),
        ("kidney_left", "left kidney"),
        ("left kidney", "left kidney"),
        ("L kidney", "left kidney"),
        ("Kidney, left", "left kidney"),
        ("kidney (R)", "right kidney"),
        ("RightKidney", "right kidney"),
        ("rt-kidney", "right kidney"),
        ("oesophagus", "esophagus"),
        ("Liver Tumor", "liver tumour"),
        ("gray_matter", "grey matter"),
        ("IVC", "inferior vena cava"),
        ("hypophysis", "pituitary gland"),
        ("Prostate/Uterus", "prostate / uterus"),
        ("parotid L", "left parotid gland"),
        ("LV", "left ventricle"),
        ("ventricle_left", "left ventricle"),
        ("brainstem", "brain stem"),
    ],
)
def test_spellings_resolve(written: str, name: str) -> None:
    assert structure(written).name == name


def test_an_unknown_name_proposes_the_nearest() -> None:
    with pytest.raises(UnknownStructureError, match="Did you mean 'liver'"):
        structure("livr")


def test_a_new_structure_has_a_general_code_its_side_and_a_colour_of_its_own() -> None:
    new = describe_new("Nodule, left")
    assert (new.name, new.known) == ("Nodule, left", False)
    assert (new.code.value, new.category.value) == ("85756007", "85756007")
    assert new.laterality is not None
    assert new.laterality.value == "7771000"
    assert new.colour == describe_new("Nodule, left").colour
    assert new.colour != describe_new("Nodule, right").colour
    assert min(math.dist(lab(new.colour), lab(entry.colour)) for entry in catalogue()) > 5


def test_describe_prefers_the_catalogue() -> None:
    assert describe("Oesophagus") == structure("esophagus")
    assert describe("cyst of Baker").known is False


@pytest.mark.parametrize(
    "name", ["", "  ", "--", "background", "Background ", "a@b", "a\\b", "a\nb", "x" * 65]
)
def test_names_that_cannot_be_a_structures_are_refused(name: str) -> None:
    with pytest.raises(BadRequestError):
        describe_new(name)
