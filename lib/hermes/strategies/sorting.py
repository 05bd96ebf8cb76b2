"""The strategies that sort candidates by something about each of them."""

from __future__ import annotations

import re

from hermes.strategies.base import Candidate, SortingStrategy


def _nowhere(_candidate: Candidate) -> int:
    return 0


def _by_id(candidate: Candidate) -> tuple[list[tuple[int, int, str]], str]:
    # "case 9" before "case 10": runs of digits compare as numbers. The id itself settles "1" against "01".
    parts = re.findall(r"([0-9]+)|([^0-9]+)", candidate.case_id)
    return [(0, int(digits), "") if digits else (1, 0, other) for digits, other in parts], candidate.case_id


class _Backwards:
    """Sorts the other way round than what it holds."""

    def __init__(self, candidate: Candidate) -> None:
        self._place = _by_id(candidate)

    def __lt__(self, other: _Backwards) -> bool:
        return other._place < self._place


def _by_uncertainty(candidate: Candidate) -> tuple[bool, float]:
    # What has no score comes last: after a publication only a sample of the images is scored, and if the
    # others came first, the scores would never decide anything. Without any scores the order is random.
    score = candidate.score
    return score is None, 0.0 if score is None else -score


RANDOM = SortingStrategy("random", "Any image; the order is shuffled by the seed.", _nowhere)
FIRST = SortingStrategy("first", "The first image by id, with numbers in their order.", _by_id)
LAST = SortingStrategy("last", "The last image by id, with numbers in their order.", _Backwards)
UNCERTAINTY = SortingStrategy(
    "uncertainty",
    "The image that the model is least sure about; images without a score come last, shuffled.",
    _by_uncertainty,
)
