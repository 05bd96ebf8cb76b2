"""What each strategy is for, on candidates whose right order is plain."""

from __future__ import annotations

import math

import numpy as np
import pytest

from hermes.errors import BadRequestError
from hermes.strategies import Candidate, History, Known, get_strategy

IDS = [f"case {i}" for i in range(1, 13)]


def test_random_depends_on_the_seed_and_is_fair() -> None:
    members = [Candidate(case_id) for case_id in IDS]
    orders = [get_strategy("random").rank(members, seed=seed) for seed in range(600)]
    firsts = [order[0] for order in orders]
    assert orders[0] == get_strategy("random").rank(members, seed=0)
    # 600 draws of 12: 50 each on average, standard deviation 6.8; fixed seeds, so this cannot flicker.
    assert all(20 < firsts.count(case_id) < 80 for case_id in IDS)


def test_first_and_last_count_as_people_do() -> None:
    members = [Candidate(case_id) for case_id in reversed(IDS)]
    assert get_strategy("first").rank(members, seed=0) == IDS
    assert get_strategy("last").rank(members, seed=0) == IDS[::-1]


def test_uncertainty_takes_the_highest_score_and_then_what_has_none() -> None:
    members = [
        Candidate("mean", {"liver": 0.2, "spleen": 0.6}),
        Candidate("whole", {"": 0.5, "liver": 0.9}),
        Candidate("low", {"": 0.1}),
        Candidate("nan", {"": math.nan}),
        Candidate("none"),
        Candidate("taken", {"": 0.9}, leased=True),
    ]
    order = get_strategy("uncertainty").rank(members, seed=0)
    assert order[:3] == ["whole", "mean", "low"]
    assert set(order[3:5]) == {"nan", "none"}
    assert order[5] == "taken"


def test_uncertainty_without_scores_and_among_equals_is_random() -> None:
    strategy = get_strategy("uncertainty")
    for scores in ({}, {"": 0.5}):
        members = [Candidate(case_id, scores) for case_id in IDS]
        assert len({tuple(strategy.rank(members, seed=seed)) for seed in range(5)}) == 5


def test_an_unknown_strategy_names_the_known_ones() -> None:
    with pytest.raises(
        BadRequestError, match=r"random, foreground, uncertainty, clasp, coverage.* Did you mean 'random'"
    ):
        get_strategy("radnom")


def first(name: str, members: list[Candidate], seed: int = 0, history: History | None = None) -> str:
    return get_strategy(name).rank(members, seed=seed, history=history or History())[0]


def test_foreground_draws_in_proportion_to_what_is_missing() -> None:
    members = [
        Candidate("much", measures={"presence": {"liver": 0.9, "spleen": 0.0}}, missing=frozenset({"liver"})),
        Candidate("some", measures={"presence": {"liver": 0.3, "spleen": 1.0}}, missing=frozenset({"liver"})),
        Candidate("none", measures={"presence": {"liver": 0.0}}, missing=frozenset({"liver"})),
    ]
    firsts = [first("foreground", members, seed) for seed in range(600)]
    # Weights 0.9, 0.3 and 0.02 of 1.22: 443, 148 and 10 on average.
    assert 400 < firsts.count("much") < 480
    assert 110 < firsts.count("some") < 190
    assert 0 < firsts.count("none") < 30


def test_clasp_takes_the_structure_with_the_fewest_labels_first() -> None:
    members = [
        Candidate("liver", {"": 0.5, "liver": 0.9, "spleen": 0.1}),
        Candidate("spleen", {"": 0.5, "liver": 0.1, "spleen": 0.9}),
        Candidate("whole", {"": 0.9, "liver": 0.4, "spleen": 0.4}),
    ]
    late = 50  # rounds: the noise has faded
    has_liver = Known("x", present=frozenset({"liver"}), annotated=frozenset({"liver"}))
    assert first("clasp", members, history=History((has_liver,), late)) == "spleen"
    both = (has_liver, Known("y", present=frozenset({"spleen"})), *(Known(f"{n}") for n in range(3)))
    assert first("clasp", members, history=History(both, late)) == "whole"  # the sixth offer: every third
    early = {first("clasp", members, seed, History((has_liver,), 0)) for seed in range(40)}
    assert early == {"liver", "spleen", "whole"}


def at(case_id: str, x: float, y: float = 0.0, **more: object) -> Candidate:
    return Candidate(case_id, embedding=np.array([x, y], np.float32), **more)  # type: ignore[arg-type]


CROWD = [at(f"near {n}", 10 + 0.1 * n) for n in range(8)]
OUTLIER = at("outlier", 0.0, 14.0)
HERE = Known("done", np.zeros(2, np.float32), frozenset({"liver"}), frozenset({"liver"}))


def test_core_set_runs_after_outliers_and_coverage_does_not() -> None:
    members = [*CROWD, OUTLIER, at("copy", 0.01)]
    history = History((HERE,))
    assert first("core-set", members, history=history) == "outlier"
    assert first("coverage", members, history=history).startswith("near")
    assert get_strategy("core-set").rank(members, seed=0, history=history)[-1] == "copy"
    # Somebody is labelling one of the crowd now: the others of it are not worth much any more.
    taken = History((HERE, Known("near 3", np.array([10.3, 0.0], np.float32))))
    assert first("coverage", [m for m in members if m.case_id != "near 3"], history=taken) == "outlier"
    assert first("coverage", members).startswith("near")  # nothing is labelled: the middle of the pool
    assert first("core-set", members).startswith("near")


def test_what_is_labelled_in_other_structures_does_not_cover() -> None:
    pancreas = frozenset({"pancreas"})
    crowd = [at(f"crowd {n}", 0.2 + 0.01 * n, missing=pancreas) for n in range(5)]
    members = [at("like the liver", 0.1, missing=pancreas), *crowd, at("far", 3.0, missing=pancreas)]
    assert first("coverage", members, history=History((HERE,))) != "far"
    with_pancreas = Known("done", np.zeros(2, np.float32), pancreas, pancreas)
    assert first("coverage", members, history=History((with_pancreas,))) == "far"


def test_hybrid_covers_what_is_uncertain() -> None:
    members = [at(f"sure {n}", 10 + 0.1 * n, scores={"": 0.05}) for n in range(5)]
    members += [at(f"unsure {n}", -10 - 0.1 * n, scores={"": 0.9}) for n in range(3)]
    assert first("coverage", members, history=History((HERE,))).startswith("sure")
    assert first("hybrid", members, history=History((HERE,))).startswith("unsure")


def test_disagreement_looks_for_more_of_what_had_to_be_corrected() -> None:
    history = History(
        (
            Known("bad", np.array([10, 0], np.float32), agreement={"liver": 0.3}),
            Known("good", np.array([-10, 0], np.float32), agreement={"liver": 0.98}),
        )
    )
    members = [at("like good", -9.0), at("like bad", 9.0), Candidate("unseen")]
    order = get_strategy("disagreement").rank(members, seed=0, history=history)
    assert order == ["like bad", "like good", "unseen"]
    without = {tuple(get_strategy("disagreement").rank(members, seed=seed)) for seed in range(20)}
    assert len(without) == 6  # nothing was corrected yet: any order
