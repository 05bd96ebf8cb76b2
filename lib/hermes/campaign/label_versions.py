"""Versions of labels: they are numbered per image and tag, stay for ever, and may be taken back.

The functions take an open transaction; `Campaign` opens it.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from hermes.campaign import events, rows
from hermes.campaign.assignments import label_came
from hermes.campaign.models import ImageRow, LabelRow
from hermes.campaign.records import FINAL, LabelRecord
from hermes.types import CaseId


def add(session: Session, image_id: CaseId, tag: str, *, now: float, **columns: Any) -> LabelRecord:
    """The next version of a label of an image that the campaign has; ``columns`` are those of `LabelRow`."""
    # PostgreSQL: two versions of one label are numbered one after the other. SQLite: locked already.
    session.scalar(select(ImageRow).where(ImageRow.id == image_id).with_for_update())
    of_image = (LabelRow.image_id == image_id, LabelRow.tag == tag)
    number = (session.scalar(select(func.max(LabelRow.number)).where(*of_image)) or 0) + 1
    row = LabelRow(image_id=image_id, tag=tag, number=number, submitted_at=now, **columns)
    session.add(row)
    session.flush()
    if tag == FINAL:
        seconds = label_came(session, image_id, row.annotator, now)
        said = {"image": image_id, "label": row.id, "annotator": row.annotator, "seconds": seconds}
        events.note(session, now, events.LABEL_SUBMITTED, **said)
    return rows.label_record(row)


def withdraw(session: Session, image_id: CaseId, tag: str, *, now: float) -> int:
    """Takes back all versions of a label; how many there were."""
    of_image = (LabelRow.image_id == image_id, LabelRow.tag == tag, LabelRow.withdrawn_at.is_(None))
    found = session.scalars(select(LabelRow).where(*of_image)).all()
    for row in found:
        row.withdrawn_at = now
    if found and tag == FINAL:
        events.note(session, now, events.LABEL_WITHDRAWN, image=image_id, versions=len(found))
    return len(found)


def listed(
    session: Session, tag: str, *, image_id: CaseId | None = None, withdrawn: bool = False
) -> list[LabelRecord]:
    """All versions of a tag by image and number; those that were taken back only with ``withdrawn``."""
    statement = select(LabelRow).where(LabelRow.tag == tag).order_by(LabelRow.image_id, LabelRow.number)
    if not withdrawn:
        statement = statement.where(LabelRow.withdrawn_at.is_(None))
    if image_id is not None:
        statement = statement.where(LabelRow.image_id == image_id)
    return [rows.label_record(row) for row in session.scalars(statement)]
