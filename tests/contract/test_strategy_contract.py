"""Every strategy x every check of the contract."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hermes.errors import BadRequestError
from hermes.strategies import STRATEGIES, Candidate, History, Known, Strategy

QUICK = settings(max_examples=15, deadline=None)
scores = st.dictionaries(st.sampled_from(["", "liver", "spleen"]), st.floats(), max_size=3)
vectors = st.none() | st.lists(st.floats(-4, 4, width=16), min_size=2, max_size=2).map(np.array)
names = st.frozensets(st.sampled_from(["liver", "spleen"]))
candidates = st.lists(
    st.builds(
        Candidate,
        case_id=st.text(max_size=6),
        scores=scores,
        leased=st.booleans(),
        measures=st.dictionaries(st.sampled_from(["presence", "margin"]), scores, max_size=2),
        embedding=vectors,
        missing=st.none() | names,
    ),
    unique_by=lambda c: c.case_id,
    max_size=8,
)
agreements = st.dictionaries(st.sampled_from(["liver", "spleen"]), st.floats(0, 1), max_size=2)
known = st.builds(
    Known,
    case_id=st.text(max_size=6),
    embedding=vectors,
    annotated=names,
    present=names,
    agreement=agreements,
)
histories = st.builds(History, known=st.lists(known, max_size=4).map(tuple), rounds=st.integers(0, 200))
every_strategy = pytest.mark.parametrize("strategy", STRATEGIES.values(), ids=STRATEGIES)
# These weigh candidates against each other: what one of them is worth depends on the rest.
TOGETHER = {"clasp", "coverage", "core-set", "hybrid", "disagreement"}
alone = {name: strategy for name, strategy in STRATEGIES.items() if name not in TOGETHER}
strategies_that_look_at_one = pytest.mark.parametrize("strategy", alone.values(), ids=alone)


@every_strategy
@QUICK
@given(members=candidates, seed=st.integers(0, 3), history=histories)
def test_ranking_is_a_permutation(
    strategy: Strategy, members: list[Candidate], seed: int, history: History
) -> None:
    ranked = strategy.rank(members, seed=seed, history=history)
    assert sorted(ranked) == sorted(c.case_id for c in members)


@every_strategy
@QUICK
@given(members=candidates, seed=st.integers(0, 3), history=histories, data=st.data())
def test_the_order_of_the_input_does_not_matter(
    strategy: Strategy, members: list[Candidate], seed: int, history: History, data: st.DataObject
) -> None:
    shuffled = data.draw(st.permutations(members))
    expected = strategy.rank(members, seed=seed, history=history)
    assert strategy.rank(iter(shuffled), seed=seed, history=history) == expected


@every_strategy
@QUICK
@given(members=candidates, seed=st.integers(0, 3), history=histories)
def test_free_images_come_before_leased_ones(
    strategy: Strategy, members: list[Candidate], seed: int, history: History
) -> None:
    leased = {c.case_id: c.leased for c in members}
    flags = [leased[case_id] for case_id in strategy.rank(members, seed=seed, history=history)]
    assert flags == sorted(flags)


@strategies_that_look_at_one
@QUICK
@given(members=candidates.filter(bool), seed=st.integers(0, 3), data=st.data())
def test_taking_one_away_leaves_the_others_in_their_order(
    strategy: Strategy, members: list[Candidate], seed: int, data: st.DataObject
) -> None:
    gone = data.draw(st.sampled_from(members))
    rest = [c for c in members if c is not gone]
    expected = [case_id for case_id in strategy.rank(members, seed=seed) if case_id != gone.case_id]
    assert strategy.rank(rest, seed=seed) == expected


@pytest.mark.parametrize("name", ["coverage", "core-set", "hybrid"])
def test_embeddings_of_two_models_are_refused(name: str) -> None:
    member = Candidate("a", embedding=np.zeros(2))
    history = History((Known("b", embedding=np.zeros(3)),))
    with pytest.raises(BadRequestError, match="one length"):
        STRATEGIES[name].rank([member], seed=0, history=history)


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
