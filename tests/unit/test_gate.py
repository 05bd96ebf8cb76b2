"""The gate's arithmetic."""

from __future__ import annotations

import pytest

from hermes.rounds.gate import judge


def verdict(before: dict, after: dict, task_margin: float = 0.02, margin: float = 0.005):  # type: ignore[no-untyped-def,type-arg]
    return judge(before, after, task_margin=task_margin, margin=margin)


def test_as_good_as_before_passes() -> None:
    found = verdict({1: {"liver": 0.8, "spleen": 0.6}}, {1: {"liver": 0.79, "spleen": 0.61}})
    assert (found.state, found.passed) == ("passed", True)
    assert [(r.structure, r.labels, r.before, r.after) for r in found.table] == [
        ("liver", 1, 0.8, 0.79),
        ("spleen", 1, 0.6, 0.61),
    ]
    assert (found.mean_before, found.mean_after) == (pytest.approx(0.7), pytest.approx(0.7))


def test_one_structure_may_not_lose_more_than_its_margin() -> None:
    before, after = {1: {"liver": 0.5, "spleen": 0.6}}, {1: {"liver": 0.9, "spleen": 0.57}}
    found = verdict(before, after)
    assert found.state == "refused"
    assert "spleen 0.600 -> 0.570" in found.reason
    assert "liver" not in found.reason
    assert verdict(before, after, task_margin=0.03).passed  # exactly the margin is allowed


def test_the_mean_may_not_lose_more_than_its_margin() -> None:
    before = {1: {"liver": 0.80, "spleen": 0.60}}
    after = {1: {"liver": 0.79, "spleen": 0.59}}
    assert "mean" in verdict(before, after).reason
    assert verdict(before, after, margin=0.01).passed


def test_new_structures_are_shown_and_decide_nothing() -> None:
    found = verdict({1: {"liver": 0.8}}, {1: {"liver": 0.8, "lesion": 0.0}})
    assert found.passed
    assert [(r.structure, r.before, r.after) for r in found.table] == [
        ("liver", 0.8, 0.8),
        ("lesion", None, 0.0),
    ]
    assert verdict({1: {}}, {1: {"lesion": 0.1}}).state == "passed"


def test_only_labels_that_both_were_measured_on_count() -> None:
    found = verdict({1: {"liver": 0.9}, 2: {"liver": 0.1}}, {1: {"liver": 0.9}, 3: {"liver": 0.0}})
    assert found.passed
    assert [(r.labels, r.before, r.after) for r in found.table] == [(1, 0.9, 0.9)]


def test_means_are_over_labels_first_then_over_structures() -> None:
    before = {1: {"a": 1.0, "b": 0.5}, 2: {"a": 0.0}}
    found = verdict(before, before)
    assert [(r.structure, r.before) for r in found.table] == [("a", 0.5), ("b", 0.5)]
    assert found.mean_before == 0.5


@pytest.mark.parametrize(("before", "after"), [({}, {}), ({1: {"a": 1.0}}, {}), ({1: {}}, {1: {}})])
def test_without_a_measurement_the_candidate_goes_ungated(before: dict, after: dict) -> None:  # type: ignore[type-arg]
    found = verdict(before, after)
    assert (found.state, found.passed, found.table) == ("ungated", True, ())


def test_json_is_rounded() -> None:
    document = verdict({1: {"a": 1 / 3}}, {1: {"a": 2 / 3}}).to_json()
    assert document["table"] == [{"structure": "a", "labels": 1, "before": 0.3333, "after": 0.6667}]
    assert document["mean_after"] == 0.6667
