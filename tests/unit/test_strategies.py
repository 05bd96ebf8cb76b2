"""What each strategy is for, on candidates whose right order is plain."""

from __future__ import annotations

import math

import pytest

from hermes.errors import BadRequestError
from hermes.strategies import Candidate, get_strategy

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
    with pytest.raises(BadRequestError, match=r"random, foreground, uncertainty, clasp, coverage.* Did you mean 'random'"):
        get_strategy("radnom")
