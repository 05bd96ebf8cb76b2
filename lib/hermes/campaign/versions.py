"""Versions of the model: they never change, but for their state and for what is measured of them.

The functions take an open transaction; `Campaign` opens it.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from hermes.campaign.models import VersionRow
from hermes.campaign.records import VersionRecord, VersionState
from hermes.errors import ConflictError, NotFoundError


def add(
    session: Session,
    name: str,
    path: str | Path,
    *,
    parent: str | None,
    metrics: Mapping[str, Any] | None,
    state: VersionState,
    now: float,
) -> VersionRecord:
    """A new version.

    Raises:
        ConflictError: the name is taken.
    """
    if session.get(VersionRow, name) is not None:
        msg = f"Model version {name!r} exists; a version never changes, so give the new one a new name."
        raise ConflictError(msg)
    row = VersionRow(
        name=name,
        parent=parent,
        path=str(path),
        created_at=now,
        published_at=now if state is VersionState.PUBLISHED else None,
        metrics=dict(metrics or {}),
        state=state.value,
    )
    session.add(row)
    return _record(row)


def change(
    session: Session, name: str, state: VersionState, metrics: Mapping[str, Any] | None, *, now: float
) -> VersionRecord:
    """The version with its new state, and with ``metrics`` added.

    Raises:
        NotFoundError: there is no such version.
    """
    row = session.get(VersionRow, name)
    if row is None:
        msg = f"There is no model version {name!r}."
        raise NotFoundError(msg)
    row.state = state.value
    row.published_at = now if state is VersionState.PUBLISHED else row.published_at
    row.metrics = {**row.metrics, **(metrics or {})}
    return _record(row)


def listed(session: Session) -> list[VersionRecord]:
    """All versions, the first one first."""
    found = session.scalars(select(VersionRow).order_by(VersionRow.created_at, VersionRow.name))
    return [_record(row) for row in found]


def _record(row: VersionRow) -> VersionRecord:
    return VersionRecord(
        name=row.name,
        parent=row.parent,
        path=row.path,
        created_at=row.created_at,
        published_at=row.published_at,
        metrics=dict(row.metrics),
        state=VersionState(row.state),
    )
