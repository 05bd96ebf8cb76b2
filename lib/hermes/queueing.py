"""Which image an annotator gets next, and whose it is for a while.

The order of the images is made by a strategy, from what the serving model said of them, and kept until a label, an
image, a score or the version changes. An offer then goes through that order to the first image that may be taken, and
reserves it in one transaction, which looks at everything that decides again.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from numpy.typing import NDArray

from hermes.campaign.board import Marks
from hermes.campaign.campaign import Campaign
from hermes.campaign.openness import ImageState, Wish
from hermes.config import Quota
from hermes.strategies import Candidate, History, Known, Strategy
from hermes.types import CaseId, StructureName

UNCERTAINTY_METHOD = "uncertainty"
FEW = 64
"""Images that are passed by at an offer before it is worth to leave out those that are reserved."""
MOST_ORDERS = 16
"""Orders that are kept: one per strategy and set of structures that is asked for."""


@dataclass(frozen=True)
class Offer:
    """An image to label, or the reason why there is none.

    Attributes:
        image_id: the image; None: there is nothing to offer.
        reason: of either.
        structures: that are still to be annotated in it, where the campaign says which it wants.
        until: when the reservation ends, in seconds since 1970; None: nothing is reserved.
        revisit: why somebody wants the image looked at again.
    """

    image_id: CaseId | None
    reason: str
    structures: tuple[StructureName, ...] = ()
    until: float | None = None
    revisit: str | None = None


@dataclass(frozen=True)
class PoolFacts:
    """What a version of the model said of the images.

    Attributes:
        scores: image -> structure ("" for the whole) -> score.
        measures: image -> measure -> structure -> value.
        embeddings: image -> ``(d,)``.
    """

    scores: Mapping[CaseId, Mapping[StructureName, float]] = field(default_factory=dict)
    measures: Mapping[CaseId, Mapping[str, Mapping[StructureName, float]]] = field(default_factory=dict)
    embeddings: Mapping[CaseId, NDArray[Any]] = field(default_factory=dict)


@dataclass
class _Order:
    """Images in the order of a strategy, and what it was made of.

    Attributes:
        images: in their order.
        made_of: with other ingredients, another order is due.
        valid_until: when an image is free again that was left out because it was reserved.
        free: those of the images that were not reserved or labelled when last looked at.
        free_until: when one of the others is free again.
        given_back: of the board, when last looked at.
    """

    images: tuple[CaseId, ...]
    made_of: tuple[Marks, str, Wish]
    valid_until: float
    free: list[CaseId] = field(default_factory=list)
    free_until: float = 0.0
    given_back: int = -1


class Queue:
    """Offers images that are not labelled yet; an offered one is reserved for its annotator."""

    def __init__(
        self,
        campaign: Campaign,
        *,
        lease_s: float,
        seed: int,
        serving_version: Callable[[], str],
        wish: Callable[[], Wish] = Wish,
        quotas: Sequence[Quota] = (),
        facts: Callable[[str], PoolFacts] | None = None,
        order_later: bool = False,
    ) -> None:
        """Offer images of ``campaign``.

        Args:
            campaign: whose labels, scores and leases count.
            lease_s: how long an image stays reserved, in seconds; 0 reserves nothing.
            seed: of strategies that draw lots.
            serving_version: name of the version whose scores count.
            wish: what the campaign wants of its images.
            quotas: images that serve none but full quotas come last.
            facts: version -> what it said of the images; the scores of the database where not given.
            order_later: make a new order beside the offers, which go by the old one until it is there. Else every
                offer goes by what is known at that moment.
        """
        self._campaign, self._lease_s, self._seed, self._serving = campaign, lease_s, seed, serving_version
        self._wish, self.quotas = wish, tuple(quotas)
        self._facts = facts or self._scores_of
        self._later = ThreadPoolExecutor(1, "hermes-order") if order_later else None
        self._board = campaign.board()
        self._orders: dict[tuple[str, Wish], _Order] = {}
        self._coming: dict[tuple[str, Wish], Future[_Order]] = {}
        self._drawn: tuple[Marks, Counter[StructureName]] | None = None
        self._here: tuple[list[CaseId], frozenset[CaseId]] = [], frozenset()
        self._counted: tuple[tuple[int, int], int] | None = None
        self._lock = threading.Lock()

    @property
    def wish(self) -> Wish:
        """What the campaign wants of its images now."""
        return self._wish()

    @property
    def lease_s(self) -> float:
        """How long an image stays reserved, in seconds."""
        return self._lease_s

    def offer(
        self,
        strategy: Strategy,
        images: Sequence[CaseId],
        annotator: str,
        structures: Sequence[StructureName] = (),
    ) -> Offer:
        """The next image for ``annotator`` out of ``images``.

        Args:
            strategy: that orders the images.
            images: what the datastore has.
            annotator: who asks.
            structures: to be annotated; those that the campaign wants where none are named.
        """
        wish = self._wish()
        if structures:
            wish = Wish(tuple(structures), wish.labels_per_image)
        with self._lock:
            self._board.look()
            here = self._listed(images)
            for image_id in self._preferred(strategy, wish, here, annotator):
                taken = self._campaign.assignments.take(image_id, annotator, self._lease_s, wish)
                if taken is not None:
                    return self._offer_of(taken, here, annotator, strategy, wish)
            return Offer(None, self._why_nothing(wish, here, annotator))

    def states(self) -> Mapping[CaseId, ImageState]:
        """What is known of every image now."""
        with self._lock:
            self._board.look()
            return dict(self._board.states)

    def full_quotas(self) -> dict[StructureName, bool]:
        """Structure -> whether as many images have it drawn as the campaign wants."""
        with self._lock:
            self._board.look()
            return self._full()

    # ------------------------------------------------------------------- order

    def _preferred(
        self, strategy: Strategy, wish: Wish, here: frozenset[CaseId], annotator: str
    ) -> Iterator[CaseId]:
        """The images that the annotator may take, the best one first.

        First what the annotator is asked to look at again; then the strategy's order; in it, images that serve an
        open quota before others; then what waits for somebody else after a rejection; last what the annotator has
        been offered already and has not labelled.
        """
        now, states = self._campaign.now(), self._board.states
        asked = ((states[i].revisits[0].id, i) for i in self._board.asked_again)
        again = [i for _, i in sorted(asked) if states[i].revisit_for(annotator) is not None]
        order, full = self._order(strategy, wish, now), self._full()
        later: tuple[list[CaseId], ...] = ([], [], [])
        seen: set[CaseId] = set()
        for place, image_id in enumerate(self._one_after_the_other(again, order, wish, now)):
            state = states.get(image_id)
            if image_id in seen or state is None:
                continue
            seen.add(image_id)
            if not state.may_take(annotator, wish, now) or image_id not in here:
                continue
            if state.leases.get(annotator, 0.0) > now:
                later[2].append(image_id)
            elif place >= len(again) and state.revisits and state.held_for_another(annotator):
                later[1].append(image_id)
            elif place >= len(again) and full and not self._serves(state, wish, full):
                later[0].append(image_id)
            else:
                yield image_id
        for others in later:
            yield from others

    def _one_after_the_other(
        self, again: Sequence[CaseId], order: _Order, wish: Wish, now: float
    ) -> Iterator[CaseId]:
        """What is asked for again, then the order, then whatever is not in it; some come more than once."""
        yield from again
        if order.given_back != self._board.given_back or now >= order.free_until:
            self._find_free(order, wish, now)
        for passed, image_id in enumerate(order.free):
            if passed == FEW:  # the next offers need not pass them again
                self._find_free(order, wish, now)
            yield image_id
        yield from order.images
        yield from self._board.states

    def _find_free(self, order: _Order, wish: Wish, now: float) -> None:
        free, free_until = [], float("inf")
        for image_id in order.images:
            state = self._board.states[image_id]
            held = [until for until in state.leases.values() if until > now]
            if len(held) < wish.labels_per_image:
                free.append(image_id)
            else:
                free_until = min(free_until, *held)
        order.free, order.free_until, order.given_back = free, free_until, self._board.given_back

    def _listed(self, images: Sequence[CaseId]) -> frozenset[CaseId]:
        """The images as a set; mostly they are those of the offer before, and comparing is faster."""
        if self._here[0] != images:
            self._here = list(images), frozenset(images)
        return self._here[1]

    def _order(self, strategy: Strategy, wish: Wish, now: float) -> _Order:
        key = (strategy.name, wish)
        made_of = (self._board.marks, self._serving(), wish)
        known = self._orders.get(key)
        if known is not None and known.made_of == made_of and now < known.valid_until:
            return known
        states = dict(self._board.states)
        if known is None or self._later is None:
            return self._keep(key, self._make(strategy, wish, made_of, states, now))
        coming = self._coming.get(key)
        if coming is not None and coming.done():
            del self._coming[key]
            return self._keep(key, coming.result())
        if coming is None:
            self._coming[key] = self._later.submit(self._make, strategy, wish, made_of, states, now)
        return known

    def _keep(self, key: tuple[str, Wish], order: _Order) -> _Order:
        self._orders.pop(key, None)
        while len(self._orders) >= MOST_ORDERS:
            oldest = next(iter(self._orders))
            del self._orders[oldest]
            self._coming.pop(oldest, None)
        self._orders[key] = order
        return order

    def _make(
        self,
        strategy: Strategy,
        wish: Wish,
        made_of: tuple[Marks, str, Wish],
        states: Mapping[CaseId, ImageState],
        now: float,
    ) -> _Order:
        facts = self._facts(made_of[1])
        candidates, known, free_at = [], [], []
        dice = self._offered_dice()
        for image_id, state in states.items():
            holders = state.holders(now)
            if state.labelled or holders:
                known.append(
                    Known(
                        image_id,
                        facts.embeddings.get(image_id),
                        state.annotated(),
                        state.present,
                        dice.get(image_id, {}),
                    )
                )
            if len(holders) >= wish.labels_per_image:
                free_at.append(min(until for until in state.leases.values() if until > now))
            elif state.usable and not state.complete(wish):
                candidates.append(
                    Candidate(
                        image_id,
                        facts.scores.get(image_id, {}),
                        measures=facts.measures.get(image_id, {}),
                        embedding=facts.embeddings.get(image_id),
                        missing=frozenset(state.missing(wish)) if wish.structures else None,
                    )
                )
        history = History(tuple(known), self._campaign.rounds_done())
        order = strategy.rank(candidates, seed=self._seed, history=history)
        return _Order(tuple(order), made_of, min(free_at, default=float("inf")))

    def _scores_of(self, version: str) -> PoolFacts:
        return PoolFacts(scores=self._campaign.get_scores(UNCERTAINTY_METHOD, version))

    def _offered_dice(self) -> dict[CaseId, dict[StructureName, float]]:
        found: dict[CaseId, dict[StructureName, float]] = {}
        for one in self._campaign.agreements.offered():
            found.setdefault(one.image_id, {})[one.structure] = one.dice
        return found

    # ------------------------------------------------------------------ quotas

    def _full(self) -> dict[StructureName, bool]:
        if not self.quotas:
            return {}
        marks = self._board.marks
        if self._drawn is None or self._drawn[0] != marks:
            drawn = Counter(name for state in self._board.states.values() for name in state.present)
            self._drawn = marks, drawn
        return {quota.structure: self._drawn[1][quota.structure] >= quota.images for quota in self.quotas}

    @staticmethod
    def _serves(state: ImageState, wish: Wish, full: Mapping[StructureName, bool]) -> bool:
        """Whether a label of the image could fill an open quota, or a wish without a quota."""
        done = state.annotated()
        wanted = wish.structures or tuple(full)
        return any(not full.get(name, False) for name in wanted if name not in done)

    # ------------------------------------------------------------------- words

    def _usable(self, here: frozenset[CaseId]) -> int:
        """How many images can be offered at all; counted when images have come, gone or turned out to be unusable."""
        now = self._board.marks.images, len(here)
        if self._counted is None or self._counted[0] != now:
            states = self._board.states.items()
            self._counted = now, sum(state.usable for image_id, state in states if image_id in here)
        return self._counted[1]

    def _offer_of(
        self, before: ImageState, here: frozenset[CaseId], annotator: str, strategy: Strategy, wish: Wish
    ) -> Offer:
        until = self._campaign.now() + self._lease_s if self._lease_s > 0 else None
        missing = before.missing(wish)
        again = before.revisit_for(annotator)
        reason = f"strategy {strategy.name!r} among {self._usable(here)} images"
        if again is not None:
            why = f": {again.reason}" if again.reason else ""
            reason = f"{'the label was rejected' if again.rejected else 'asked to look again'}{why}"
        elif self.quotas and not self._serves(before, wish, self._full()):
            full = ", ".join(str(q) for q in self.quotas if self._full()[q.structure])
            reason = f"the quotas of all that is missing in it are full ({full}): the campaign may stop here"
        return Offer(before.image_id, reason, missing, until, None if again is None else again.reason)

    def _why_nothing(self, wish: Wish, here: frozenset[CaseId], annotator: str) -> str:
        states = [state for image_id, state in self._board.states.items() if image_id in here]
        broken = sum(not state.usable for state in states)
        left_out = f" {broken} could not be read and are left out." if broken else ""
        waiting = [state for state in states if state.usable and not state.complete(wish)]
        if not waiting:
            done = len(states) - broken
            return f"All {done} readable images are labelled: nothing is left to offer.{left_out}"
        now = self._campaign.now()
        skipped = sum(annotator in state.skipped_by for state in waiting)
        own = sum(state.places(annotator, wish) == 0 for state in waiting)
        others = sum(bool(state.holders(now) - {annotator}) for state in waiting)
        parts = [
            f"{count} {what}"
            for count, what in (
                (others, "are with other annotators now"),
                (skipped, "you skipped"),
                (own, "wait for other annotators' labels"),
            )
            if count
        ]
        return f"Of the last {len(waiting)} images {', '.join(parts) or 'none is free'}. Ask again later.{left_out}"
