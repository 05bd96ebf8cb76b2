"""What a training would see, counted and explained before it starts."""

from __future__ import annotations

import pytest

from hermes.errors import NothingToTrainError
from hermes.training.preflight import CaseFacts, LeftOut, StructureCount, preflight, survey

FACTS = (
    CaseFacts("a", {"liver": 100, "spleen": 7}),
    CaseFacts("b", {"liver": 50, "spleen": 0}, absent=frozenset({"spleen", "aorta"})),
    CaseFacts("c", {"liver": 1000}, problem="it is not on the grid of its image"),
    CaseFacts("d", {"kidney": 5}),
    CaseFacts("e"),
)


def test_cases_and_voxels_are_counted_per_structure() -> None:
    report = preflight(FACTS, ["spleen", "liver", "spleen"])
    assert report.structures == (
        StructureCount("spleen", cases=1, voxels=7, absent=1),
        StructureCount("liver", cases=2, voxels=150, absent=0),
    )
    assert report.used == ("a", "b")


def test_what_is_left_out_is_named_with_its_reason() -> None:
    reasons = {one.case_id: one.reason for one in preflight(FACTS, ["liver"]).skipped}
    assert reasons == {
        "c": "it is not on the grid of its image",
        "d": "none of the requested structures is annotated; it has kidney",
        "e": "none of the requested structures is annotated",
    }


@pytest.mark.parametrize("name", ["aorta", "pancreas"])
def test_a_structure_that_nobody_drew_is_refused(name: str) -> None:
    with pytest.raises(NothingToTrainError, match=rf"nobody has drawn: {name}\. .*c: it is not on the grid"):
        preflight(FACTS, ["liver", name])
    report = survey(FACTS, ["liver", name])  # but it can be shown
    assert report.missing == (name,)


def test_no_usable_case_is_refused_with_the_reasons() -> None:
    with pytest.raises(NothingToTrainError, match=r"at least one usable labelled case, got none.*and 3 more"):
        preflight([CaseFacts(str(i), problem="unreadable") for i in range(8)], ["liver"])
    with pytest.raises(NothingToTrainError, match=r"got none\.$"):
        preflight([], ["liver"])


def test_the_report_is_json() -> None:
    assert preflight(FACTS, ["liver"]).to_json() == {
        "structures": [{"name": "liver", "cases": 2, "voxels": 150, "absent": 0}],
        "used": ["a", "b"],
        "skipped": [
            {"case_id": "c", "reason": "it is not on the grid of its image"},
            {"case_id": "d", "reason": "none of the requested structures is annotated; it has kidney"},
            {"case_id": "e", "reason": "none of the requested structures is annotated"},
        ],
    }


def test_an_image_of_several_labels_is_listed_once() -> None:
    facts = [
        CaseFacts("two", {"liver": 5}),
        CaseFacts("two", {"spleen": 7}),
        CaseFacts("bad", problem="not there"),
        CaseFacts("bad", problem="not there"),
        CaseFacts("bad", problem="damaged"),
        CaseFacts("half", {"liver": 1}),
        CaseFacts("half", {"pancreas": 1}),
        CaseFacts("other", {"pancreas": 1}),
        CaseFacts("other", absent=frozenset({"colon"})),
    ]
    report = survey(facts, ["liver", "spleen"])
    assert report.used == ("two", "half")
    assert [(one.name, one.cases, one.voxels) for one in report.structures] == [
        ("liver", 2, 6),
        ("spleen", 1, 7),
    ]
    assert report.skipped == (
        LeftOut("bad", "not there; damaged"),
        LeftOut("other", "none of the requested structures is annotated; it has colon, pancreas"),
    )
