"""Who works on what: leases, skips and wishes to look again.

A lease reserves an image for an annotator for a time; it ends by itself, so that nothing is lost with an annotator
who goes home or a server that is killed. Everything that decides about an image is read in the transaction that
reserves it. Each change is an event with the image's id, by which other processes learn of it (`hermes.campaign.board`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from sqlalchemy import bindparam, delete, insert, select, update
from sqlalchemy.orm import Session

from hermes.campaign import events
from hermes.campaign.database import Database
from hermes.campaign.events import note
from hermes.campaign.models import ImageRow, LeaseRow, RevisitRow, SkipRow
from hermes.campaign.openness import ImageState, Wish
from hermes.campaign.reading_states import states_of
from hermes.campaign.records import LeaseRecord, RevisitRecord, SkipRecord
from hermes.campaign.rows import known_image
from hermes.errors import BadRequestError
from hermes.types import CaseId

LONGEST_TEXT = 2000
"""Characters of a reason or a comment."""
_RENEWED_AFTER = 0.1
"""Part of a lease's length that has to pass before activity prolongs it: not every download is a write."""


class Assignments:
    """Leases, skips and revisits of a campaign."""

    def __init__(self, database: Database, clock: Callable[[], float]) -> None:
        self._database, self._clock = database, clock

    # ------------------------------------------------------------------ leases

    def take(self, image_id: CaseId, annotator: str, seconds: float, wish: Wish) -> ImageState | None:
        """Reserves an image, or prolongs the reservation; the image's state before, ``None`` where it may not be.

        Args:
            image_id: the image.
            annotator: for whom.
            seconds: how long; 0 reserves nothing, and only tells whether the image may be taken.
            wish: what the campaign wants of its images.
        """
        now = self._clock()
        with self._database.write(durable=False) as session:
            if self._database.may_commit_out_of_order:  # SQLite is locked already
                session.execute(select(ImageRow.id).where(ImageRow.id == image_id).with_for_update())
            state = states_of(session, [image_id]).get(image_id)
            if state is None or not state.may_take(annotator, wish, now):
                return None
            if seconds > 0:
                _reserve(session, state, annotator, now, now + seconds)
                note(session, now, events.LEASED, image=image_id, annotator=annotator, until=now + seconds)
            return state

    def renew(self, image_id: CaseId, annotator: str, seconds: float) -> bool:
        """Prolongs the annotator's lease, since there was activity; whether there is one that could be.

        One that has run out comes to life again while nobody else has taken the image.
        """
        now = self._clock()
        mine = (LeaseRow.image_id == image_id, LeaseRow.annotator == annotator)
        with self._database.read() as session:
            until = session.scalar(select(LeaseRow.until).where(*mine))
        if until is None:
            return False
        if until - now > seconds * (1 - _RENEWED_AFTER):
            return True
        with self._database.write(durable=False) as session:
            known_image(session, image_id)
            until = session.scalar(select(LeaseRow.until).where(*mine))
            others = select(LeaseRow.annotator).where(
                LeaseRow.image_id == image_id, LeaseRow.annotator != annotator, LeaseRow.until > now
            )
            if until is None or (until <= now and session.scalar(others.limit(1)) is not None):
                return False
            session.execute(update(LeaseRow).where(*mine).values(until=now + seconds))
            note(session, now, events.RENEWED, image=image_id, annotator=annotator, until=now + seconds)
            return True

    def release(self, image_id: CaseId, annotator: str | None = None) -> bool:
        """Ends the leases of an image (only that of ``annotator``, when named); whether there was one."""
        with self._database.write(durable=False) as session:
            return end_leases(session, image_id, annotator, self._clock())

    def leases(self) -> list[LeaseRecord]:
        """The leases that have not run out, the oldest first."""
        statement = (
            select(LeaseRow)
            .where(LeaseRow.until > self._clock())
            .order_by(LeaseRow.since, LeaseRow.image_id, LeaseRow.annotator)
        )
        with self._database.read() as session:
            return [
                LeaseRecord(r.image_id, r.annotator, r.since, r.until) for r in session.scalars(statement)
            ]

    # ------------------------------------------------------------------- skips

    def skip(self, image_id: CaseId, annotator: str, reason: str) -> None:
        """Gives an image back that the annotator does not want; only others are offered it from now on.

        Raises:
            NotFoundError: the campaign has no such image.
            BadRequestError: no reason, or one that is too long.
        """
        reason, now = _checked_text(reason, "reason", "why the image is skipped"), self._clock()
        with self._database.write() as session:
            known_image(session, image_id)
            lift_skips(session, image_id, annotator, now)
            session.add(SkipRow(image_id=image_id, annotator=annotator, reason=reason, at=now))
            end_leases(session, image_id, annotator, now)
            _close(session, image_id, (RevisitRow.annotator == annotator,), annotator, now)
            note(session, now, events.SKIPPED, image=image_id, annotator=annotator, reason=reason)

    def skips(self) -> list[SkipRecord]:
        """All skips, the first one first."""
        with self._database.read() as session:
            found = session.scalars(select(SkipRow).order_by(SkipRow.id))
            return [SkipRecord(r.image_id, r.annotator, r.reason, r.at, r.lifted_at) for r in found]

    # ---------------------------------------------------------------- revisits

    def ask_revisit(
        self, image_id: CaseId, *, asked_by: str, annotator: str | None = None, reason: str = ""
    ) -> RevisitRecord:
        """A wish that an image be looked at again: it comes first in the queue of whoever is asked.

        Args:
            image_id: the image.
            asked_by: whose wish it is.
            annotator: who is to look; None: anybody.
            reason: what to look at.

        Raises:
            NotFoundError: the campaign has no such image.
            BadRequestError: a reason that is too long.
        """
        if len(reason) > LONGEST_TEXT:
            _checked_text(reason, "reason", "what to look at")
        now = self._clock()
        with self._database.write() as session:
            known_image(session, image_id)
            if annotator is not None:
                lift_skips(session, image_id, annotator, now)
            row = open_revisit(session, image_id, annotator, asked_by, reason, now)
            note(session, now, events.REVISIT_ASKED, image=image_id, annotator=annotator, asked_by=asked_by)
            return _revisit(row)

    def revisits(self, *, only_open: bool = True) -> list[RevisitRecord]:
        """The wishes to look again, the first one first."""
        statement = select(RevisitRow).order_by(RevisitRow.id)
        if only_open:
            statement = statement.where(RevisitRow.closed_at.is_(None))
        with self._database.read() as session:
            return [_revisit(row) for row in session.scalars(statement)]

    # ------------------------------------------------------------------ states

    def states(self, image_ids: Iterable[CaseId] | None = None) -> dict[CaseId, ImageState]:
        """What decides whether images may be offered; of all of them where none are named."""
        with self._database.read() as session:
            return states_of(session, None if image_ids is None else set(image_ids))


# Built once: they are run at every offer.
_MINE = (LeaseRow.image_id == bindparam("image"), LeaseRow.annotator == bindparam("who"))
_PROLONG = update(LeaseRow).where(*_MINE).values(until=bindparam("to"))
_BEGIN_ANEW = update(LeaseRow).where(*_MINE).values(since=bindparam("from"), until=bindparam("to"))
_BEGIN = insert(LeaseRow)


def _reserve(session: Session, state: ImageState, annotator: str, now: float, until: float) -> None:
    connection, before = session.connection(), state.leases.get(annotator)
    values = {"image": state.image_id, "who": annotator, "to": until}
    if before is None:
        value = {"image_id": state.image_id, "annotator": annotator, "since": now, "until": until}
        connection.execute(_BEGIN, value)
    elif before > now:
        connection.execute(_PROLONG, values)
    else:
        connection.execute(_BEGIN_ANEW, {**values, "from": now})


# ------------------------------------------------- parts of a transaction that others begin


def end_leases(session: Session, image_id: CaseId, annotator: str | None, now: float) -> bool:
    """Ends the leases of an image, or that of one annotator; whether there was one."""
    statement = delete(LeaseRow).where(LeaseRow.image_id == image_id)
    if annotator is not None:
        statement = statement.where(LeaseRow.annotator == annotator)
    ended = bool(session.connection().execute(statement).rowcount)
    if ended:
        note(session, now, events.RELEASED, image=image_id, annotator=annotator)
    return ended


def lift_skips(session: Session, image_id: CaseId, annotator: str, now: float) -> None:
    """Lets the skips of an annotator count no more."""
    of = (SkipRow.image_id == image_id, SkipRow.annotator == annotator, SkipRow.lifted_at.is_(None))
    session.execute(update(SkipRow).where(*of).values(lifted_at=now))


def open_revisit(
    session: Session,
    image_id: CaseId,
    annotator: str | None,
    asked_by: str,
    reason: str,
    now: float,
    rejected_label: int | None = None,
) -> RevisitRow:
    """A new wish to look again."""
    row = RevisitRow(
        image_id=image_id,
        annotator=annotator,
        asked_by=asked_by,
        reason=reason,
        at=now,
        rejected_label=rejected_label,
    )
    session.add(row)
    session.flush()
    return row


def label_came(session: Session, image_id: CaseId, annotator: str, now: float) -> float | None:
    """What follows from a label: the lease ends, wishes are fulfilled, a skip is forgotten.

    Seconds since the annotator was given the image, where it was.
    """
    mine = (LeaseRow.image_id == image_id, LeaseRow.annotator == annotator)
    since = session.scalar(select(LeaseRow.since).where(*mine))
    session.execute(delete(LeaseRow).where(*mine))
    lift_skips(session, image_id, annotator, now)
    asked = (RevisitRow.annotator.is_(None) | (RevisitRow.annotator == annotator),)
    _close(session, image_id, asked, annotator, now)
    return None if since is None else now - since


def close_rejection(session: Session, label_id: int, closed_by: str, now: float) -> None:
    """Ends the wishes that came from the rejection of a label, which is taken back."""
    of = (RevisitRow.rejected_label == label_id, RevisitRow.closed_at.is_(None))
    session.execute(update(RevisitRow).where(*of).values(closed_at=now, closed_by=closed_by))


def _close(session: Session, image_id: CaseId, which: Iterable[object], closed_by: str, now: float) -> None:
    of = (RevisitRow.image_id == image_id, RevisitRow.closed_at.is_(None), *which)
    session.execute(update(RevisitRow).where(*of).values(closed_at=now, closed_by=closed_by))  # type: ignore[arg-type]


def _revisit(row: RevisitRow) -> RevisitRecord:
    return RevisitRecord(
        row.id,
        row.image_id,
        row.annotator,
        row.asked_by,
        row.reason,
        row.at,
        row.rejected_label,
        row.closed_at,
        row.closed_by,
    )


def _checked_text(text: str, name: str, what: str) -> str:
    text = text.strip()
    if not 0 < len(text) <= LONGEST_TEXT:
        msg = f"Expected {name!r} to say {what}, in 1 to {LONGEST_TEXT} characters, got {len(text)}."
        raise BadRequestError(msg)
    return text
