"""Training runs: at most one at a time, and one whose process is gone does not block the next.

The functions take an open transaction; `Campaign` opens it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import func, insert, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from hermes.campaign.models import ImageRow, LabelRow, RunLabelRow, RunRow
from hermes.campaign.processes import is_alive, process_identity, this_host
from hermes.campaign.records import RunRecord, RunState
from hermes.errors import BusyError, ConflictError, NotFoundError

STALE_AFTER_S = 900.0
"""A run on another host, whose process cannot be seen, counts as dead this long after its last heartbeat."""

PROCESS_DIED = "process died"


@dataclass(frozen=True)
class RunEnd:
    """How a run ends: its state, why, the version it made, how many steps it took in all, and its report."""

    state: RunState
    reason: str | None = None
    version: str | None = None
    steps: int | None = None
    report: Mapping[str, Any] | None = None


def start(session: Session, label_ids: Iterable[int], *, pid: int, now: float) -> RunRow:
    """A new running run.

    Raises:
        BusyError: another one is running.
        NotFoundError: a label id that does not exist.
    """
    reap(session, now)
    running = running_row(session)
    if running is not None:
        raise BusyError(_busy(f"run {running.id}"))
    ids = sorted(set(label_ids))
    unknown = sorted(set(ids) - set(session.scalars(select(LabelRow.id))))
    if unknown:
        msg = f"Expected ids of labels, got unknown ones: {unknown[:10]}."
        raise NotFoundError(msg)
    row = RunRow(
        state=RunState.RUNNING.value,
        started_at=now,
        heartbeat_at=now,
        host=this_host(),
        pid=pid,
        process_identity=process_identity(pid),
        steps=0,
    )
    session.add(row)
    try:
        session.flush()
    except IntegrityError as error:  # another server was faster (not on SQLite, which is locked here)
        raise BusyError(_busy("a run of another server")) from error
    if ids:
        session.execute(insert(RunLabelRow), [{"run_id": row.id, "label_id": label_id} for label_id in ids])
    return row


def _busy(what: str) -> str:
    return f"Expected no training to run, but {what} does: wait for it, or stop it."


def end(session: Session, run_id: int, how: RunEnd, *, now: float) -> RunRow:
    """The run, ended.

    Raises:
        NotFoundError: there is no such run.
        ConflictError: it has ended before.
    """
    row = running_by_id(session, run_id)
    row.state = how.state.value
    row.ended_at = now
    row.reason = how.reason
    row.version = how.version
    row.steps = row.steps if how.steps is None else how.steps
    row.report = row.report if how.report is None else dict(how.report)
    return row


def running_by_id(session: Session, run_id: int) -> RunRow:
    """The run ``run_id``, which must be running.

    Raises:
        NotFoundError: there is no such run.
        ConflictError: it has ended.
    """
    row = session.get(RunRow, run_id)
    if row is None:
        msg = f"There is no training run {run_id}."
        raise NotFoundError(msg)
    if row.state != RunState.RUNNING.value:
        msg = f"Training run {run_id} has ended ({row.state}, {row.reason or 'no reason given'})."
        raise ConflictError(msg)
    return row


def running_row(session: Session) -> RunRow | None:
    """The run that is running, if one is."""
    return session.scalar(select(RunRow).where(RunRow.state == RunState.RUNNING.value))


def reap(session: Session, now: float) -> RunRow | None:
    """Marks the running run as failed when nothing runs it any more; the run, if so."""
    row = running_row(session)
    if row is None or _lives(row, now):
        return None
    end(session, row.id, RunEnd(RunState.FAILED, PROCESS_DIED), now=now)
    session.flush()
    return row


def _lives(row: RunRow, now: float) -> bool:
    if row.host == this_host():
        return is_alive(row.pid, row.process_identity)
    return now - row.heartbeat_at < STALE_AFTER_S


def record(session: Session, row: RunRow) -> RunRecord:
    """A frozen copy of a run with the ids of its labels."""
    ids = session.scalars(
        select(RunLabelRow.label_id).where(RunLabelRow.run_id == row.id).order_by(RunLabelRow.label_id)
    )
    return RunRecord(
        id=row.id,
        state=RunState(row.state),
        started_at=row.started_at,
        ended_at=row.ended_at,
        heartbeat_at=row.heartbeat_at,
        host=row.host,
        pid=row.pid,
        label_ids=tuple(ids),
        steps=row.steps,
        reason=row.reason,
        version=row.version,
        report=row.report,
    )


def done_runs(session: Session) -> int:
    """How many runs have ended well."""
    statement = select(func.count()).select_from(RunRow).where(RunRow.state == RunState.DONE.value)
    return session.scalar(statement) or 0


def labels_looked_at(session: Session) -> set[int]:
    """Ids of the labels that a run which ended well has looked at."""
    statement = (
        select(RunLabelRow.label_id)
        .join(RunRow, RunRow.id == RunLabelRow.run_id)
        .where(RunRow.state == RunState.DONE.value)
    )
    return set(session.scalars(statement))


def usable_images(session: Session) -> set[str]:
    """Images that the datastore has and that can be read as far as is known."""
    statement = select(ImageRow.id).where(
        ImageRow.quarantined_reason.is_(None), ImageRow.missing_since.is_(None)
    )
    return set(session.scalars(statement))
