"""Strategies that look at how images lie among each other: on the embeddings of the current model.

At every offer the image is chosen that adds most to what is labelled or being labelled now, so several annotators get
different parts of the pool. Images that the model has not seen come behind those that it has, by lot.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hermes.strategies.base import (
    NOTHING_YET,
    Candidate,
    History,
    Known,
    check_distinct,
    embeddings_of,
    lot,
)
from hermes.types import CaseId

AHEAD = 32
"""How many images are chosen one after the other, each knowing those before it; the rest is by gain alone."""
LANDMARKS = 512
"""How many images of a large pool stand for all of it: the work at an offer stays that of a small pool."""
NEIGHBOURS = 5
"""Labelled images that say what the model will probably get wrong in one like them."""

Far = NDArray[np.float32]


@dataclass(frozen=True)
class CoreSet:
    """The image farthest from all that are labelled: greedy k-centre (Sener and Savarese, 2018)."""

    name: str = "core-set"
    description: str = "The image that is least like any labelled one."

    def rank(
        self, candidates: Iterable[Candidate], *, seed: int, history: History = NOTHING_YET
    ) -> list[CaseId]:
        """As `Strategy.rank`."""
        return _ranked(candidates, seed, lambda seen: _k_centre(seen, history))


@dataclass(frozen=True)
class Coverage:
    """The image that brings the pool nearest to a labelled one: greedy facility location.

    Its gain is the sum, over the pool, of how much nearer the nearest labelled image becomes. Unlike `CoreSet` it
    prefers what is typical of a part of the pool that is not labelled yet, and does not run after outliers.
    """

    name: str = "coverage"
    description: str = "The image that stands for most of what is not like any labelled one."

    def rank(
        self, candidates: Iterable[Candidate], *, seed: int, history: History = NOTHING_YET
    ) -> list[CaseId]:
        """As `Strategy.rank`."""
        return _ranked(candidates, seed, lambda seen: _facilities(seen, history, np.ones(len(seen))))


@dataclass(frozen=True)
class Hybrid:
    """Uncertainty times coverage: the gain of `Coverage`, with each image's need weighted by its uncertainty."""

    name: str = "hybrid"
    description: str = "Coverage of the images that the model is unsure about."

    def rank(
        self, candidates: Iterable[Candidate], *, seed: int, history: History = NOTHING_YET
    ) -> list[CaseId]:
        """As `Strategy.rank`."""
        return _ranked(candidates, seed, lambda seen: _facilities(seen, history, _doubts(seen)))


@dataclass(frozen=True)
class Disagreement:
    """The image most like those in which annotators changed most of what the model had offered."""

    name: str = "disagreement"
    description: str = "The image most like those whose offered labels had to be corrected most."

    def rank(
        self, candidates: Iterable[Candidate], *, seed: int, history: History = NOTHING_YET
    ) -> list[CaseId]:
        """As `Strategy.rank`."""
        return _ranked(candidates, seed, lambda seen: _expected_errors(seen, history))


def _ranked(
    candidates: Iterable[Candidate], seed: int, order: Callable[[list[Candidate]], Sequence[int]]
) -> list[CaseId]:
    """The candidates that have an embedding in the order that ``order`` gives their places, then the others by lot."""
    members = sorted(check_distinct(candidates), key=lambda c: (lot(seed, c.case_id), c.case_id))
    seen = [c for c in members if c.embedding is not None and np.isfinite(c.embedding).all()]
    chosen = [seen[place] for place in order(seen)] if seen else []
    placed = {c.case_id for c in chosen}
    ranked = chosen + [c for c in members if c.case_id not in placed]
    return [c.case_id for c in sorted(ranked, key=lambda c: c.leased)]


def _k_centre(seen: list[Candidate], history: History) -> list[int]:
    points = embeddings_of(seen)
    centres = _centres(history, seen)
    if len(centres):
        return _farthest(points, distances(points, centres).min(axis=1), [])
    middle = int(distances(points, points[:LANDMARKS]).mean(axis=1).argmin())
    return _farthest(points, distances(points, points[[middle]])[:, 0], [middle])


def _farthest(points: Far, nearest: Far, chosen: list[int]) -> list[int]:
    """``chosen``, then the farthest point, the farthest from it too, and so on; after `AHEAD` by distance alone."""
    left = nearest.copy()
    left[chosen] = -1.0
    while len(chosen) < min(AHEAD, len(points)):
        chosen = [*chosen, int(left.argmax())]
        left = np.minimum(left, distances(points, points[chosen[-1:]])[:, 0])
        left[chosen] = -1.0
    return chosen + _by(left, chosen)


def _by(gains: NDArray[Any], chosen: Sequence[int]) -> list[int]:
    """The places that are not chosen, the largest gain first."""
    taken = set(chosen)
    return [int(place) for place in np.argsort(-gains, kind="stable") if int(place) not in taken]


def _facilities(seen: list[Candidate], history: History, weights: NDArray[Any]) -> list[int]:
    points = embeddings_of(seen)
    places = np.arange(len(points))[:LANDMARKS]  # the candidates come in an order that is a lot
    need, weight = points[places], np.asarray(weights, np.float32)[places]
    far = distances(points, need)  # (candidates, landmarks)
    centres = _centres(history, seen)
    uncovered = distances(need, centres).min(axis=1) if len(centres) else far.max(axis=0)
    chosen: list[int] = []
    for _ in range(min(AHEAD, len(points))):
        gains = np.maximum(uncovered - far, 0.0) @ weight
        gains[chosen] = -1.0
        chosen.append(int(gains.argmax()))
        uncovered = np.minimum(uncovered, far[chosen[-1]])
    gains = np.maximum(uncovered - far, 0.0) @ weight
    return chosen + _by(gains, chosen)


def _expected_errors(seen: list[Candidate], history: History) -> list[int]:
    """By the error expected from the nearest corrected images; none where nothing was corrected yet."""
    corrected = [
        one for one in history.known if one.agreement and one.embedding is not None and one.embedding.size
    ]
    if not corrected:
        return []
    points = embeddings_of(seen)
    errors = np.array([1 - math.fsum(c.agreement.values()) / len(c.agreement) for c in corrected], np.float32)
    far = distances(points, embeddings_of([*seen[:1], *corrected])[1:])
    nearest = np.argsort(far, axis=1, kind="stable")[:, :NEIGHBOURS]
    close = np.take_along_axis(far, nearest, axis=1)
    weights = np.exp(-close / max(float(np.median(far)), 1e-12))
    expected = (weights * errors[nearest]).sum(axis=1) / weights.sum(axis=1)
    return _by(expected, [])


def _centres(history: History, seen: list[Candidate]) -> Far:
    """Embeddings of the images that are being labelled, or in which something that is wanted now has been."""
    wanted = (
        None if any(c.missing is None for c in seen) else {name for c in seen for name in c.missing or ()}
    )

    def counts(one: Known) -> bool:
        return not one.annotated or wanted is None or bool(one.annotated & wanted)

    # Together with a candidate, so that one of another length is noticed.
    return embeddings_of([*seen[:1], *(one for one in history.known if counts(one))])[1:]


def _doubts(seen: list[Candidate]) -> NDArray[Any]:
    """Uncertainty of each (entropies are bits, 0..1); an image without a score has the mean of the others."""
    scores = [c.score for c in seen]
    known = [min(max(s, 0.0), 1.0) for s in scores if s is not None]
    mean = math.fsum(known) / len(known) if known else 1.0
    return np.array([mean if s is None else min(max(s, 0.0), 1.0) for s in scores])


def distances(ours: Far, theirs: Far) -> Far:
    """``(n, m)`` Euclidean distances between the rows of ``(n, d)`` and ``(m, d)``."""
    squares = (ours**2).sum(axis=1)[:, None] + (theirs**2).sum(axis=1)[None] - 2 * ours @ theirs.T
    far: Far = np.sqrt(np.maximum(squares, 0.0)).astype(np.float32)
    return far
