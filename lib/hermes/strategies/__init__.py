"""Which image next: strategies by name.

>>> get_strategy("uncertainty").rank([Candidate("a", {"": 0.1}), Candidate("b", {"": 0.7})], seed=0)
['b', 'a']
"""

from __future__ import annotations

import difflib

from hermes.errors import BadRequestError
from hermes.strategies.base import NOTHING_YET, Candidate, History, Known, SortingStrategy, Strategy
from hermes.strategies.covering import CoreSet, Coverage, Disagreement, Hybrid
from hermes.strategies.drawing import ClaspPE, ForegroundRandom
from hermes.strategies.sorting import FIRST, LAST, RANDOM, UNCERTAINTY

_ALL: tuple[Strategy, ...] = (
    RANDOM, ForegroundRandom(), UNCERTAINTY, ClaspPE(), Coverage(), CoreSet(), Hybrid(), Disagreement(), FIRST, LAST,
)  # fmt: skip
STRATEGIES: dict[str, Strategy] = {s.name: s for s in _ALL}
"""Every strategy by its name."""

COMPARING = frozenset({"coverage", "core-set", "hybrid", "disagreement"})
"""Strategies that compare images with labelled ones: those need an embedding by the serving version too."""

BLIND = frozenset({"random", "first", "last"})
"""Strategies that do not ask what the model says of an image."""

__all__ = [
    "BLIND",
    "COMPARING",
    "NOTHING_YET",
    "STRATEGIES",
    "Candidate",
    "History",
    "Known",
    "SortingStrategy",
    "Strategy",
    "get_strategy",
]


def get_strategy(name: str) -> Strategy:
    """The strategy of this name.

    Raises:
        BadRequestError: there is none; the message lists them.
    """
    found = STRATEGIES.get(name)
    if found is None:
        close = difflib.get_close_matches(name, STRATEGIES, n=1)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        msg = f"Unknown strategy {name!r}. There are: {', '.join(STRATEGIES)}.{hint}"
        raise BadRequestError(msg)
    return found
