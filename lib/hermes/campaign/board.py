"""The states of all images in memory, kept up to date by the log of events.

Looking for the next image among 10,000 has to take milliseconds, and other processes change the same database. So
the states are read once; afterwards only the events since the last look are read, and only the images that they name.
What is here is a picture of a moment ago: the transaction that reserves an image looks again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from sqlalchemy import bindparam, func, select

from hermes.campaign import events
from hermes.campaign.database import Database
from hermes.campaign.models import EventRow
from hermes.campaign.openness import ImageState
from hermes.campaign.reading_states import states_of
from hermes.types import CaseId

MANY = 2000
"""With more events than this since the last look, everything is read anew."""
READ_ANEW_S = 30.0
"""On databases whose transactions may end in another order than they began, a late event could be overlooked."""
_OF_LABELS = frozenset(
    {events.LABEL_SUBMITTED, events.LABEL_WITHDRAWN, events.LABEL_REVIEWED, events.REVISIT_ASKED}
)
_OF_IMAGES = frozenset({events.IMAGES_CHANGED, events.IMAGE_QUARANTINED})
_OF_LEASES = frozenset({events.LEASED, events.RENEWED, events.RELEASED})
_TO_READ = _OF_LABELS | {events.SKIPPED, events.IMAGE_QUARANTINED}
"""Events after which the image that they name is read again."""


_SINCE = (
    select(EventRow.id, EventRow.kind, EventRow.payload)
    .where(EventRow.id > bindparam("last"))
    .order_by(EventRow.id)
    .limit(MANY + 1)
)


@dataclass(frozen=True)
class Marks:
    """Ids of the last events that can change a ranking: equal marks, equal ranking."""

    labels: int = 0
    images: int = 0
    scores: int = 0


class Board:
    """States of images; not safe from several threads, whoever uses it holds a lock.

    Attributes:
        marks: what a ranking was made of.
        asked_again: images with an open wish to look again.
        given_back: grows whenever an image may have become free before its lease ended.
    """

    def __init__(self, database: Database, clock: Callable[[], float]) -> None:
        self._database, self._clock = database, clock
        self._states: dict[CaseId, ImageState] = {}
        self._last: int | None = None
        self._read_at = 0.0
        self.marks = Marks()
        self.asked_again: set[CaseId] = set()
        self.given_back = 0

    @property
    def states(self) -> Mapping[CaseId, ImageState]:
        """The states as of the last `look`."""
        return self._states

    def look(self) -> None:
        """Take over what has happened since the last look."""
        late = self._database.may_commit_out_of_order and self._clock() - self._read_at > READ_ANEW_S
        if self._last is None or late:
            self._read_all()
            return
        with self._database.read() as session:
            found = session.connection().execute(_SINCE, {"last": self._last}).all()
            if not found:
                return
            if len(found) <= MANY and not any(kind == events.IMAGES_CHANGED for _, kind, _ in found):
                for _, kind, payload in found:  # by far the most common, and they say it all
                    if kind in _OF_LEASES and "image" in payload:
                        self._apply_lease(kind, payload)
                touched = {
                    payload["image"] for _, kind, payload in found if kind in _TO_READ and "image" in payload
                }
                if touched:
                    self._take_over(states_of(session, touched))
                self._last = found[-1][0]
                for number, kind, _ in found:
                    self._mark(number, kind)
                return
        self._read_all()

    def _read_all(self) -> None:
        with self._database.read() as session:
            self._states, self.asked_again = {}, set()
            self._take_over(states_of(session))
            self._last = session.scalar(select(func.max(EventRow.id))) or 0
            self.marks = Marks(
                events.last_of(session, _OF_LABELS),
                events.last_of(session, _OF_IMAGES),
                events.last_of(session, (events.SCORES_STORED,)),
            )
        self._read_at = self._clock()

    def _take_over(self, states: Mapping[CaseId, ImageState]) -> None:
        self._states |= states
        self.asked_again -= states.keys()
        self.asked_again |= {image_id for image_id, state in states.items() if state.revisits}
        self.given_back += 1

    def _apply_lease(self, kind: str, payload: Mapping[str, Any]) -> None:
        state = self._states.get(payload["image"])
        if state is None:
            return
        leases, annotator = dict(state.leases), payload["annotator"]
        if kind != events.RELEASED:
            leases[annotator] = payload["until"]
        else:
            leases = {} if annotator is None else {k: v for k, v in leases.items() if k != annotator}
            self.given_back += 1
        self._states[state.image_id] = replace(state, leases=leases)

    def _mark(self, number: int, kind: str) -> None:
        marks = self.marks
        if kind in _OF_LABELS:
            self.marks = Marks(number, marks.images, marks.scores)
        elif kind in _OF_IMAGES:
            self.marks = Marks(marks.labels, number, marks.scores)
        elif kind == events.SCORES_STORED:
            self.marks = Marks(marks.labels, marks.images, number)
