"""How far a campaign is, in numbers."""

from __future__ import annotations

from typing import Any

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from hermes.campaign.models import ImageRow, LabelRow, RunRow, VersionRow
from hermes.campaign.records import FINAL, Counts, RunState


def count_all(session: Session, *, new_labels: int) -> Counts:
    """The counts; images that the datastore lost do not count as images."""
    here = ImageRow.missing_since.is_(None)
    valid = LabelRow.withdrawn_at.is_(None)
    final = select(LabelRow.image_id).where(LabelRow.tag == FINAL, valid)

    def count(table: Any, *conditions: Any) -> int:
        return session.scalar(select(func.count()).select_from(table).where(*conditions)) or 0

    return Counts(
        images=count(ImageRow, here),
        labelled=count(ImageRow, here, ImageRow.id.in_(final)),
        quarantined=count(ImageRow, here, ImageRow.quarantined_reason.is_not(None)),
        label_versions=count(LabelRow, valid),
        new_labels=new_labels,
        runs_done=count(RunRow, RunRow.state == RunState.DONE.value),
        runs_failed=count(RunRow, RunRow.state == RunState.FAILED.value),
        versions=count(VersionRow),
    )
