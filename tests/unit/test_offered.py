"""What was offered is kept until it can be compared with what was submitted."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hermes.geometry import Grid
from hermes.offered import OfferedLabels, agreement_with_offer, dice_of_values
from hermes.records import LabelMap
from hermes.scoring.agreement import dice
from hermes.transforms.writing import write_label_map

GRID = Grid((2, 3, 4), np.eye(4))


def label_map(values: dict[int, int], names: dict[int, str], grid: Grid = GRID) -> LabelMap:
    array = np.zeros(grid.shape, np.uint8)
    for place, value in values.items():
        array.flat[place] = value
    return LabelMap(array, grid, names)


def keep(offers: OfferedLabels, tmp_path: Path, task: str, drawn: LabelMap, version: str) -> None:
    file = tmp_path / "answer.nii.gz"
    write_label_map(drawn, file)
    offers.keep("case 1", task, file, {name: value for value, name in drawn.names.items()}, version)


def test_each_structure_is_compared_with_its_last_offer(tmp_path: Path) -> None:
    offers = OfferedLabels(tmp_path / "offered")
    keep(
        offers, tmp_path, "hermes", label_map({0: 1, 1: 1, 5: 2}, {1: "liver", 2: "spleen", 3: "aorta"}), "v1"
    )
    keep(offers, tmp_path, "hermes-abdomen", label_map({0: 1}, {1: "liver"}), "v2")
    (tmp_path / "offered" / "case 1" / "damaged.json").write_text("{", encoding="utf-8")
    submitted = label_map({0: 4, 1: 4, 7: 2}, {4: "liver", 2: "spleen"})
    made = offers.of("case 1")
    found = agreement_with_offer(
        submitted, ["liver", "spleen", "aorta", "unasked"], sorted(made, key=lambda o: o.model_version)
    )
    assert found == {"v1": {"spleen": 0.0, "aorta": 1.0}, "v2": {"liver": pytest.approx(2 / 3)}}
    offers.forget("case 1")
    assert offers.of("case 1") == []


def test_the_same_task_replaces_its_offer_and_other_grids_do_not_count(tmp_path: Path) -> None:
    offers = OfferedLabels(tmp_path / "offered")
    keep(offers, tmp_path, "hermes", label_map({0: 1}, {1: "liver"}), "v1")
    keep(offers, tmp_path, "hermes", label_map({0: 1}, {1: "liver"}, Grid((3, 3, 4), np.eye(4))), "v2")
    assert [offer.model_version for offer in offers.of("case 1")] == ["v2"]
    assert agreement_with_offer(label_map({0: 1}, {1: "liver"}), ["liver"], offers.of("case 1")) == {}


def test_what_was_drawn_stays_known_when_the_offers_are_forgotten(tmp_path: Path) -> None:
    offers = OfferedLabels(tmp_path / "offered")
    assert offers.drawn("case 1") is None
    offers.note_drawn("case 1", [])  # it was asked, and saw nothing
    assert offers.drawn("case 1") == set()
    offers.note_drawn("case 1", ["liver"])
    offers.note_drawn("case 1", ["spleen"])  # asked for the next structure, of the same task
    keep(offers, tmp_path, "hermes", label_map({0: 1}, {1: "liver"}), "v1")
    assert len(offers.of("case 1")) == 1
    offers.forget("case 1")
    assert offers.of("case 1") == []
    assert offers.drawn("case 1") == {"liver", "spleen"}
    with (tmp_path / "offered" / "case 1" / "drawn.jsonl").open("a", encoding="utf-8") as stream:
        stream.write('["aor')  # a crash
    assert offers.drawn("case 1") == {"liver", "spleen"}


@given(
    ours=st.lists(st.integers(0, 3), min_size=24, max_size=24),
    theirs=st.lists(st.integers(0, 4), min_size=24, max_size=24),
)
@settings(max_examples=30, deadline=None)
def test_one_pass_counts_as_mask_by_mask(ours: list[int], theirs: list[int]) -> None:
    one = LabelMap(np.array(ours, np.uint8).reshape(2, 3, 4), GRID, {})
    other = LabelMap(np.array(theirs, np.uint16).reshape(2, 3, 4), GRID, {})
    pairs = {"a": (1, 1), "b": (2, 4), "c": (3, 9), "d": (7, 8)}
    expected = {name: dice(one.array == a, other.array == b) for name, (a, b) in pairs.items()}
    assert dice_of_values(one, other, pairs) == pytest.approx(expected)
