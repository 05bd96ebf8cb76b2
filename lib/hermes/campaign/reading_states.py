"""The state of images (`hermes.campaign.openness`) read from the tables, many or one at a time."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from typing import Any

from sqlalchemy import bindparam, select
from sqlalchemy.orm import Session

from hermes.campaign.models import ImageRow, LabelRow, LeaseRow, ReviewRow, RevisitRow, SkipRow
from hermes.campaign.openness import ImageState, OpenRevisit
from hermes.campaign.records import FINAL, Annotated, ReviewState
from hermes.campaign.rejections import Rejections
from hermes.types import CaseId, StructureName

_REJECTED, _APPROVED = ReviewState.REJECTED.value, ReviewState.APPROVED.value
_AT_ONCE = 500
"""Ids per statement; SQLite takes some thousand."""


class _Selects:
    """A statement for one image, for several, and for all; built once, since it is run at every offer."""

    def __init__(self, statement: Any, image: Any) -> None:
        self._all = statement
        self._one = statement.where(image == bindparam("image"))
        self._several = statement.where(image.in_(bindparam("images", expanding=True)))

    def rows(self, session: Session, ids: Sequence[CaseId] | None) -> Iterator[Any]:
        connection = session.connection()
        if ids is None:
            yield from connection.execute(self._all)
        elif len(ids) == 1:
            yield from connection.execute(self._one, {"image": ids[0]})
        else:
            yield from connection.execute(self._several, {"images": ids})


_IMAGES = _Selects(select(ImageRow.id, ImageRow.missing_since, ImageRow.quarantined_reason), ImageRow.id)
_LABELS = _Selects(
    select(LabelRow.image_id, LabelRow.annotator, LabelRow.annotated, LabelRow.number, ReviewRow.state)
    .outerjoin(ReviewRow, ReviewRow.label_id == LabelRow.id)
    .where(LabelRow.tag == FINAL, LabelRow.withdrawn_at.is_(None)),
    LabelRow.image_id,
)
_LEASES = _Selects(select(LeaseRow.image_id, LeaseRow.annotator, LeaseRow.until), LeaseRow.image_id)
_SKIPS = _Selects(
    select(SkipRow.image_id, SkipRow.annotator).where(SkipRow.lifted_at.is_(None)), SkipRow.image_id
)
_REVISITS = _Selects(
    select(
        RevisitRow.image_id, RevisitRow.id, RevisitRow.annotator, RevisitRow.reason, RevisitRow.rejected_label
    )
    .where(RevisitRow.closed_at.is_(None))
    .order_by(RevisitRow.id),
    RevisitRow.image_id,
)


def states_of(session: Session, image_ids: Collection[CaseId] | None = None) -> dict[CaseId, ImageState]:
    """The states of these images, or of all; what the campaign does not know is not among them."""
    if image_ids is None:
        return _states(session, None)
    found: dict[CaseId, ImageState] = {}
    ids = sorted(image_ids)
    for start in range(0, len(ids), _AT_ONCE):
        found |= _states(session, ids[start : start + _AT_ONCE])
    return found


def _states(session: Session, ids: Sequence[CaseId] | None) -> dict[CaseId, ImageState]:
    usable = {
        image: missing is None and broken is None for image, missing, broken in _IMAGES.rows(session, ids)
    }
    labelled, present = _labelled(session, ids)
    leases: dict[CaseId, dict[str, float]] = {}
    for image, annotator, until in _LEASES.rows(session, ids):
        leases.setdefault(image, {})[annotator] = until
    skipped: dict[CaseId, set[str]] = {}
    for image, annotator in _SKIPS.rows(session, ids):
        skipped.setdefault(image, set()).add(annotator)
    revisits: dict[CaseId, tuple[OpenRevisit, ...]] = {}
    for image, number, annotator, reason, rejected in _REVISITS.rows(session, ids):
        one = OpenRevisit(number, annotator, reason, rejected is not None)
        revisits[image] = (*revisits.get(image, ()), one)
    return {
        image: ImageState(
            image,
            is_usable,
            labelled.get(image, {}),
            leases.get(image, {}),
            frozenset(skipped.get(image, ())),
            frozenset(present.get(image, ())),
            revisits.get(image, ()),
        )
        for image, is_usable in usable.items()
    }


def _labelled(
    session: Session, ids: Sequence[CaseId] | None
) -> tuple[dict[CaseId, dict[str, frozenset[StructureName]]], dict[CaseId, set[StructureName]]]:
    """Image -> annotator -> what was annotated, and image -> what was drawn, by labels that a rejection leaves."""
    found: dict[CaseId, dict[str, frozenset[StructureName]]] = {}
    present: dict[CaseId, set[StructureName]] = {}
    labels = list(_LABELS.rows(session, ids))
    rejections = Rejections((*row[:2], row[3], row[2]) for row in labels if row[4] == _REJECTED)
    for image, annotator, annotated, number, state in labels:
        if state == _REJECTED:
            continue
        names = annotated if state == _APPROVED else rejections.leave(image, annotator, number, annotated)
        if annotated and not names:
            continue
        of_image = found.setdefault(image, {})
        of_image[annotator] = of_image.get(annotator, frozenset()) | frozenset(names)
        drawn = (name for name in names if annotated[name] == Annotated.PRESENT.value)
        present.setdefault(image, set()).update(drawn)
    return found, present
