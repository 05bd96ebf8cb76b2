"""Strategies that draw lots, with the dice loaded by what the model predicts."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from hermes.strategies.base import (
    NOTHING_YET,
    PRESENCE,
    Candidate,
    History,
    check_distinct,
    gumbel,
    lot,
)
from hermes.types import CaseId, StructureName

UNSEEN = 0.5
"""Presence of a structure where no model has looked: as likely there as not."""
LEAST = 0.02
"""Every image keeps this weight: a structure that the model has not learned to find may be in any of them."""


@dataclass(frozen=True)
class ForegroundRandom:
    """Random, but images in which the model expects the missing structures come up more often.

    The weight of an image is the mean, over the structures that are missing in it, of the probability that they are
    there. After the improved random baseline of nnActive (2025), for whole images instead of patches.
    """

    name: str = "foreground"
    description: str = "Random, images with more of the missing structures (as predicted) more often."

    def rank(
        self, candidates: Iterable[Candidate], *, seed: int, history: History = NOTHING_YET
    ) -> list[CaseId]:
        """As `Strategy.rank`."""

        def place(c: Candidate) -> tuple[bool, float, int]:
            return c.leased, -(math.log(foreground(c)) + gumbel(seed, c.case_id)), lot(seed, c.case_id)

        return [c.case_id for c in sorted(check_distinct(candidates), key=place)]


def foreground(candidate: Candidate) -> float:
    """How much of what is missing the model expects in an image, from `LEAST` to 1."""
    presence = candidate.measures.get(PRESENCE, {})
    known = {name: p for name, p in presence.items() if candidate.wants(name) and math.isfinite(p)}
    if candidate.missing is not None:
        known |= {name: UNSEEN for name in candidate.missing if name not in known}
    mean = math.fsum(known.values()) / len(known) if known else UNSEEN
    return min(1.0, max(LEAST, mean))


@dataclass(frozen=True)
class ClaspPE:
    """Class-stratified, scheduled, power-noised predictive entropy (arXiv 2601.13677), for whole images.

    Two of three choices are those of one structure: the one with the fewest labels gets its turn, and the image is
    chosen by the entropy of that structure alone; every third choice is by the entropy of the whole image. The
    logarithm of the entropy gets Gumbel noise divided by beta, so that an image is drawn with a chance of
    entropy ** beta; beta begins at 1 and grows with the rounds: variety first, the most uncertain image later.

    Attributes:
        name: as written in requests.
        description: one line for a person who chooses.
        beta: of the first round.
        growth: of beta from round to round.
        largest: that beta becomes.
    """

    name: str = "clasp"
    description: str = (
        "ClaSP PE: uncertainty of each structure in turn, with noise that fades over the rounds."
    )
    beta: float = 1.0
    growth: float = 3.0
    largest: float = 100.0

    def rank(
        self, candidates: Iterable[Candidate], *, seed: int, history: History = NOTHING_YET
    ) -> list[CaseId]:
        """As `Strategy.rank`."""
        members = check_distinct(candidates)
        beta = min(self.largest, self.beta * self.growth ** min(history.rounds, 64))
        queues = [_queue(members, name, seed, beta) for name in _turns(members, history, seed)]
        return [c.case_id for c in _dealt(queues)]


def _turns(members: Sequence[Candidate], history: History, seed: int) -> list[StructureName | None]:
    """Whose turn it is, from this choice on; ``None`` is the image as a whole.

    Structures with fewer labels come earlier. Where the choices stand in the cycle of three is told by how many
    images are labelled or taken.
    """
    names = {name for c in members for name in c.scores if c.wants(name)}
    counts = Counter(name for one in history.known for name in one.present)
    order = sorted(names, key=lambda name: (counts[name], lot(seed + len(history.known), name)))
    turns: list[StructureName | None] = []
    while order:
        turns += [None] if (len(history.known) + len(turns)) % 3 == 2 else [order.pop(0)]
    return turns or [None]


def _queue(
    members: Sequence[Candidate], structure: StructureName | None, seed: int, beta: float
) -> list[Candidate]:
    """The candidates by noised entropy of a structure; those without a score at the end, by lot."""

    def place(c: Candidate) -> tuple[bool, bool, float, int]:
        wanted = structure is None or c.wants(structure)
        score = c.score if structure is None else c.scores.get(structure) if wanted else None
        if score is None or not math.isfinite(score) or score <= 0:
            return c.leased, True, 0.0, lot(seed, c.case_id)
        return c.leased, False, -(math.log(score) + gumbel(seed, c.case_id) / beta), lot(seed, c.case_id)

    return sorted(members, key=place)


def _dealt(queues: Sequence[Sequence[Candidate]]) -> list[Candidate]:
    """One from each queue in turn, each candidate once, leased ones behind all free ones."""
    dealt: dict[CaseId, Candidate] = {}
    places = [iter(queue) for queue in queues]
    while len(dealt) < len(queues[0]):
        for place in places:
            following = next((c for c in place if c.case_id not in dealt), None)
            if following is not None:
                dealt[following.case_id] = following
    return sorted(dealt.values(), key=lambda c: c.leased)
