"""The contract of a strategy: which image next, decided from what is known about each.

A strategy is a pure function of the candidates and a seed. It does not depend on the order in which they
come, and it never leaves one out: the caller takes as many as it needs from the front.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from hermes.errors import BadRequestError
from hermes.types import CaseId, StructureName

WHOLE_IMAGE: StructureName = ""
"""The structure of a score that is about the image as a whole."""


@dataclass(frozen=True)
class Candidate:
    """An image that may be labelled next.

    Attributes:
        case_id: of the image.
        scores: structure -> score by the current model, larger for an image that would teach it more; the key
            "" is the image as a whole. Empty where the model has not seen the image.
        leased: whether somebody else is working on it.
    """

    case_id: CaseId
    scores: Mapping[StructureName, float] = field(default_factory=dict)
    leased: bool = False

    @property
    def score(self) -> float | None:
        """The score of the image: that of the whole, else the mean over its structures.

        ``None`` where there is none; values that are not finite do not count.
        """
        finite = {name: value for name, value in self.scores.items() if math.isfinite(value)}
        if WHOLE_IMAGE in finite:
            return finite[WHOLE_IMAGE]
        return math.fsum(finite.values()) / len(finite) if finite else None


class Strategy(Protocol):
    """A way to choose the next image."""

    @property
    def name(self) -> str:
        """As written in requests and in the setting ``strategy``."""
        ...

    @property
    def description(self) -> str:
        """One line for a person who chooses."""
        ...

    def rank(self, candidates: Iterable[Candidate], *, seed: int) -> list[CaseId]:
        """All candidates, the best one first; those that are leased come behind all that are free.

        Raises:
            BadRequestError: a case id that comes twice.
        """
        ...


@dataclass(frozen=True)
class SortingStrategy:
    """A strategy that looks at one candidate at a time.

    Attributes:
        name: as written in requests.
        description: one line for a person who chooses.
        place: candidate -> what to sort by, smallest first; candidates with the same place are shuffled by
            the seed.
    """

    name: str
    description: str
    place: Callable[[Candidate], Any]

    def rank(self, candidates: Iterable[Candidate], *, seed: int) -> list[CaseId]:
        """As `Strategy.rank`."""
        distinct = check_distinct(candidates)
        ordered = sorted(distinct, key=lambda c: (c.leased, self.place(c), lot(seed, c.case_id)))
        return [candidate.case_id for candidate in ordered]


def check_distinct(candidates: Iterable[Candidate]) -> list[Candidate]:
    """The candidates as a list.

    Raises:
        BadRequestError: a case id that comes twice.
    """
    found = list(candidates)
    if len({candidate.case_id for candidate in found}) < len(found):
        msg = "Expected every case once among the candidates, got one of them twice."
        raise BadRequestError(msg)
    return found


def lot(seed: int, case_id: CaseId) -> int:
    """The number that a case draws: a function of seed and id alone, whatever comes before it."""
    digest = hashlib.blake2b(f"{seed}\0{case_id}".encode(errors="surrogatepass"), digest_size=16).digest()
    return int.from_bytes(digest, "big")
