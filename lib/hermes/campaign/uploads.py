"""Labels on their way to the PACS: a queue in the database, so that a crash on either side loses none."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from sqlalchemy import select, update

from hermes.campaign.database import Database
from hermes.campaign.models import UploadRow
from hermes.errors import NotFoundError
from hermes.types import CaseId

FIRST_DELAY_S = 2.0
LONGEST_DELAY_S = 300.0
"""Between two tries: doubled after each failure, up to this."""


class UploadState(str, Enum):
    """Where an upload stands.

    Attributes:
        WAITING: to be stored, now or later.
        UPLOADING: being stored.
        DONE: the PACS has it.
        FAILED: the PACS refuses it; not tried again by itself.
        CANCELLED: the label was taken back before anything was sent.
        WITHDRAWING: the label was taken back, and its object is to be removed from the PACS.
        WITHDRAWN: its object is not in the PACS any more.
        KEPT: the label was taken back, and its object stays in the PACS, for the reason in ``last_error``.
    """

    WAITING = "waiting"
    UPLOADING = "uploading"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"
    WITHDRAWING = "withdrawing"
    WITHDRAWN = "withdrawn"
    KEPT = "kept"


_DUE = (UploadState.WAITING.value, UploadState.WITHDRAWING.value)
TAKEN_BACK = (UploadState.CANCELLED, UploadState.WITHDRAWING, UploadState.WITHDRAWN, UploadState.KEPT)
"""States of a label that was taken back; how a try to store it ends does not change them."""
STORED_BY_OTHERS = "It was not this campaign that stored it, so it is not removed."


@dataclass(frozen=True)
class Upload:
    """One label to be stored in the PACS.

    Attributes:
        id: grows with time.
        image_id: whose label it is.
        label_id: the label version; None for a prediction.
        tag: "final", or that of a prediction.
        path: of the label file, relative to the campaign's directory.
        about: what the object says beside the voxels (annotator, model version, ...).
        sop_instance_uid: of the object, decided before the first try: a try that was cut off after the PACS
            took it is not stored twice.
        state: where it stands.
        attempts: tries that have begun.
        next_try_at: not before this time (seconds since 1970).
        last_error: why the last try failed.
    """

    id: int
    image_id: CaseId
    label_id: int | None
    tag: str
    path: str
    about: Mapping[str, Any] = field(repr=False)
    sop_instance_uid: str
    state: UploadState
    attempts: int
    next_try_at: float
    last_error: str | None


class Uploads:
    """The queue; every method is one short transaction."""

    def __init__(self, database: Database, clock: Callable[[], float]) -> None:
        self._database, self._clock = database, clock

    def add(
        self,
        image_id: CaseId,
        path: str,
        about: Mapping[str, Any],
        sop_instance_uid: str,
        *,
        label_id: int | None = None,
        tag: str = "final",
        done: bool = False,
    ) -> Upload:
        """Queues a label, or notes one that the PACS has (``done``); one that is queued already stays as it is."""
        now = self._clock()
        with self._database.write() as session:
            known = (
                session.scalar(select(UploadRow).where(UploadRow.label_id == label_id)) if label_id else None
            )
            if known is not None:
                return _record(known)
            state = UploadState.DONE if done else UploadState.WAITING
            row = UploadRow(
                image_id=image_id, label_id=label_id, tag=tag, path=path, about=dict(about),
                sop_instance_uid=sop_instance_uid, state=state.value, attempts=0,
                next_try_at=now, last_error=None, created_at=now, changed_at=now,
            )  # fmt: skip
            session.add(row)
            session.flush()
            return _record(row)

    def claim(self) -> Upload | None:
        """The next upload or withdrawal that is due, the former marked as under way; None when nothing is."""
        now = self._clock()
        due = (UploadRow.state.in_(_DUE), UploadRow.next_try_at <= now)
        with self._database.read() as session:  # mostly there is nothing, and nobody has to wait
            if session.scalar(select(UploadRow.id).where(*due).limit(1)) is None:
                return None
        with self._database.write() as session:
            row = session.scalar(
                select(UploadRow).where(*due).order_by(UploadRow.id).limit(1).with_for_update()
            )
            if row is None:
                return None
            if row.state == UploadState.WAITING.value:
                row.state = UploadState.UPLOADING.value
            row.changed_at = now
            row.attempts += 1
            session.flush()
            return _record(row)

    def done(self, upload_id: int) -> None:
        """The PACS has it."""
        self._change(upload_id, state=UploadState.DONE, error=None)

    def postpone(self, upload_id: int, error: str) -> None:
        """The try failed: the next one comes later, and later after every failure."""
        with self._database.write() as session:
            row = _row(session, upload_id)
            delay = min(LONGEST_DELAY_S, FIRST_DELAY_S * 2.0 ** min(row.attempts - 1, 30))
            if UploadState(row.state) not in TAKEN_BACK:
                row.state = UploadState.WAITING.value
            row.last_error, row.changed_at = error, self._clock()
            row.next_try_at = row.changed_at + delay

    def fail(self, upload_id: int, error: str) -> None:
        """It cannot be stored as it is; somebody has to look (`retry`)."""
        self._change(upload_id, state=UploadState.FAILED, error=error)

    def withdraw(self, upload_id: int) -> UploadState:
        """The label was taken back: what was never sent is cancelled, what may be stored is to be removed; the state now.

        An object that somebody else has stored (`add` with ``done``) is kept.
        """
        with self._database.write() as session:
            row = _row(session, upload_id)
            state = UploadState(row.state)
            if state in TAKEN_BACK:
                return state
            if row.attempts:  # it, or a try whose answer was lost, may have come through
                state = UploadState.WITHDRAWING
            elif state is UploadState.DONE:
                state, row.last_error = UploadState.KEPT, STORED_BY_OTHERS
            else:
                state = UploadState.CANCELLED
            row.state, row.changed_at, row.next_try_at = state.value, self._clock(), self._clock()
            return state

    def withdrawn(self, upload_id: int) -> None:
        """Its object is not in the PACS (any more)."""
        self._end(upload_id, UploadState.WITHDRAWN, None)

    def keep(self, upload_id: int, reason: str) -> None:
        """The label was taken back, and its object stays in the PACS."""
        self._end(upload_id, UploadState.KEPT, reason)

    def retry(self, *, failed: bool = True) -> int:
        """Tries everything that waits (and what failed for good) at once; how many uploads that are."""
        failures = update(UploadRow).where(UploadRow.state == UploadState.FAILED.value)
        due = update(UploadRow).where(UploadRow.state.in_(_DUE)).values(next_try_at=self._clock())
        with self._database.write() as session:
            if failed:
                session.execute(failures.values(state=UploadState.WAITING.value))
            return int(session.connection().execute(due).rowcount)

    def resume(self) -> int:
        """Puts back what was under way when the server ended; how many uploads that were."""
        with self._database.write() as session:
            statement = (
                update(UploadRow)
                .where(UploadRow.state == UploadState.UPLOADING.value)
                .values(state=UploadState.WAITING.value, next_try_at=self._clock())
            )
            return int(session.connection().execute(statement).rowcount)

    def all(self) -> list[Upload]:
        """Every upload, the first one first."""
        with self._database.read() as session:
            return [_record(row) for row in session.scalars(select(UploadRow).order_by(UploadRow.id))]

    def label_ids(self) -> set[int]:
        """The label versions that are or were in the queue."""
        statement = select(UploadRow.label_id).where(UploadRow.label_id.is_not(None))
        with self._database.read() as session:
            return {value for value in session.scalars(statement) if value is not None}

    def counts(self) -> dict[str, int]:
        """Uploads by state, every state named."""
        with self._database.read() as session:
            found = Counter(session.scalars(select(UploadRow.state)))
        return {state.value: found.get(state.value, 0) for state in UploadState}

    def _change(self, upload_id: int, *, state: UploadState, error: str | None) -> None:
        with self._database.write() as session:
            row = _row(session, upload_id)
            if UploadState(row.state) not in TAKEN_BACK:
                row.state = state.value
            row.last_error, row.changed_at = error, self._clock()

    def _end(self, upload_id: int, state: UploadState, reason: str | None) -> None:
        with self._database.write() as session:
            row = _row(session, upload_id)
            row.state, row.last_error, row.changed_at = state.value, reason, self._clock()


def _row(session: Any, upload_id: int) -> UploadRow:
    row: UploadRow | None = session.get(UploadRow, upload_id)
    if row is None:
        msg = f"There is no upload {upload_id}."
        raise NotFoundError(msg)
    return row


def _record(row: UploadRow) -> Upload:
    return Upload(
        id=row.id,
        image_id=row.image_id,
        label_id=row.label_id,
        tag=row.tag,
        path=row.path,
        about=dict(row.about),
        sop_instance_uid=row.sop_instance_uid,
        state=UploadState(row.state),
        attempts=row.attempts,
        next_try_at=row.next_try_at,
        last_error=row.last_error,
    )
