"""The contract of a strategy: which image next, decided from what is known about each.

A strategy is a pure function of the candidates and a seed. It does not depend on the order in which they
come, and it never leaves one out: the caller takes as many as it needs from the front.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from hermes.errors import BadRequestError
from hermes.types import CaseId, StructureName

WHOLE_IMAGE: StructureName = ""
"""The structure of a score that is about the image as a whole."""


PRESENCE = "presence"
"""The measure that says how probable it is that a structure is in the image at all, 0..1."""

Measures = Mapping[str, Mapping[StructureName, float]]
"""Measure -> structure ("" for the image as a whole) -> value; what they mean: `hermes.records.MEASURES`."""


@dataclass(frozen=True, eq=False)
class Candidate:
    """An image that may be labelled next.

    Attributes:
        case_id: of the image.
        scores: structure -> score by the current model, larger for an image that would teach it more; the key
            "" is the image as a whole. Empty where the model has not seen the image.
        leased: whether it comes behind all others, as one that the asking annotator was offered before.
        measures: what else the current model said of it.
        embedding: ``(d,)`` what the image is like, by the current model; images that are alike lie near each
            other. ``None`` where it has not seen the image.
        missing: structures that are wanted and that nobody has labelled in this image; ``None``: all.
    """

    case_id: CaseId
    scores: Mapping[StructureName, float] = field(default_factory=dict)
    leased: bool = False
    measures: Measures = field(default_factory=dict)
    embedding: NDArray[Any] | None = None
    missing: frozenset[StructureName] | None = None

    @property
    def score(self) -> float | None:
        """The score of the image: the mean over the structures that are missing, else over all.

        Where it is about all structures, that of the image as a whole counts if there is one. ``None`` where there
        is none; values that are not finite do not count.
        """
        wanted = (
            self.scores if self.missing is None else {n: self.scores.get(n, math.nan) for n in self.missing}
        )
        finite = {name: value for name, value in wanted.items() if math.isfinite(value)}
        if WHOLE_IMAGE in finite:
            return finite[WHOLE_IMAGE]
        return math.fsum(finite.values()) / len(finite) if finite else None

    def wants(self, structure: StructureName) -> bool:
        """Whether a label of this structure is missing here."""
        return structure != WHOLE_IMAGE and (self.missing is None or structure in self.missing)


@dataclass(frozen=True, eq=False)
class Known:
    """An image that is labelled already, or that somebody is labelling now.

    Attributes:
        case_id: of the image.
        embedding: as that of a `Candidate`, by the same model.
        annotated: structures that were annotated, present or absent; empty while somebody works on it.
        present: those of them that are there.
        agreement: structure -> Dice between what the model offered and what was submitted; empty where unknown.
    """

    case_id: CaseId
    embedding: NDArray[Any] | None = None
    annotated: frozenset[StructureName] = frozenset()
    present: frozenset[StructureName] = frozenset()
    agreement: Mapping[StructureName, float] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class History:
    """What has been labelled so far.

    Attributes:
        known: images that are labelled or being labelled (by anybody); none of them is a candidate, except that
            one of which structures are missing may be both.
        rounds: trainings that have ended well.
    """

    known: tuple[Known, ...] = ()
    rounds: int = 0


NOTHING_YET = History()


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

    def rank(
        self, candidates: Iterable[Candidate], *, seed: int, history: History = NOTHING_YET
    ) -> list[CaseId]:
        """All candidates, the best one first; those that are leased come behind all that are free.

        Raises:
            BadRequestError: a case id that comes twice, or embeddings of different lengths.
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

    def rank(
        self, candidates: Iterable[Candidate], *, seed: int, history: History = NOTHING_YET
    ) -> list[CaseId]:
        """As `Strategy.rank`; what has been labelled does not matter."""
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


@lru_cache(maxsize=2**17)  # drawn for every image at every offer
def lot(seed: int, case_id: CaseId) -> int:
    """The number that a case draws: a function of seed and id alone, whatever comes before it."""
    digest = hashlib.blake2b(f"{seed}\0{case_id}".encode(errors="surrogatepass"), digest_size=16).digest()
    return int.from_bytes(digest, "big")


def uniform(seed: int, case_id: CaseId) -> float:
    """The lot of a case as a number between 0 and 1, neither of which it is."""
    return ((lot(seed, case_id) >> 76) + 0.5) / 2.0**52


def gumbel(seed: int, case_id: CaseId) -> float:
    """The lot of a case, distributed as Gumbel's: ``log(weight) + gumbel`` is highest as often as the weight's share says."""
    return -math.log(-math.log(uniform(seed, case_id)))


def embeddings_of(cases: Iterable[Candidate | Known]) -> NDArray[np.float32]:
    """``(n, d)``: the embeddings of cases that all have one; ``(0, 0)`` for no cases.

    Raises:
        BadRequestError: they differ in length.
    """
    found = [case.embedding for case in cases if case.embedding is not None]
    if len({len(vector) for vector in found}) > 1:
        msg = "Expected embeddings of one length, by one version of the model, got several."
        raise BadRequestError(msg)
    return np.stack(found).astype(np.float32) if found else np.zeros((0, 0), np.float32)
