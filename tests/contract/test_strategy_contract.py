"""Every strategy x every check of the contract."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hermes.errors import BadRequestError
from hermes.strategies import STRATEGIES, Candidate, Strategy

QUICK = settings(max_examples=40, deadline=None)
scores = st.dictionaries(st.sampled_from(["", "liver", "spleen"]), st.floats(), max_size=3)
candidates = st.lists(
    st.builds(Candidate, case_id=st.text(max_size=6), scores=scores, leased=st.booleans()),
    unique_by=lambda c: c.case_id,
    max_size=12,
)
every_strategy = pytest.mark.parametrize("strategy", STRATEGIES.values(), ids=STRATEGIES)


@every_strategy
@QUICK
@given(members=candidates, seed=st.integers(0, 3))
def test_ranking_is_a_permutation(strategy: Strategy, members: list[Candidate], seed: int) -> None:
    assert sorted(strategy.rank(members, seed=seed)) == sorted(c.case_id for c in members)


@every_strategy
@QUICK
@given(members=candidates, seed=st.integers(0, 3), data=st.data())
def test_the_order_of_the_input_does_not_matter(
    strategy: Strategy, members: list[Candidate], seed: int, data: st.DataObject
) -> None:
    shuffled = data.draw(st.permutations(members))
    assert strategy.rank(iter(shuffled), seed=seed) == strategy.rank(members, seed=seed)


@every_strategy
@QUICK
@given(members=candidates, seed=st.integers(0, 3))
def test_free_images_come_before_leased_ones(strategy: Strategy, members: list[Candidate], seed: int) -> None:
    leased = {c.case_id: c.leased for c in members}
    flags = [leased[case_id] for case_id in strategy.rank(members, seed=seed)]
    assert flags == sorted(flags)


@every_strategy
@QUICK
@given(members=candidates.filter(bool), seed=st.integers(0, 3), data=st.data())
def test_taking_one_away_leaves_the_others_in_their_order(
    strategy: Strategy, members: list[Candidate], seed: int, data: st.DataObject
) -> None:
    gone = data.draw(st.sampled_from(members))
    rest = [c for c in members if c is not gone]
    expected = [case_id for case_id in strategy.rank(members, seed=seed) if case_id != gone.case_id]
    assert strategy.rank(rest, seed=seed) == expected


@every_strategy
def test_a_case_that_comes_twice_is_refused(strategy: Strategy) -> None:
    with pytest.raises(BadRequestError, match="twice"):
        strategy.rank([Candidate("a"), Candidate("a", leased=True)], seed=0)


@pytest.mark.parametrize("name", STRATEGIES)
def test_names_and_descriptions(name: str) -> None:
    strategy = STRATEGIES[name]
    assert strategy.name == name
    assert strategy.description.endswith(".")
    assert "\n" not in strategy.description
