"""Kinds of events, and how they are noted.

Every change that decides who may be offered an image is an event with the image's id, written in the transaction of
the change: the log is also the journal by which other processes notice it.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from sqlalchemy import func, insert, select
from sqlalchemy.orm import Session

from hermes.campaign.models import EventRow

LEASED = "Leased"
RENEWED = "LeaseRenewed"
RELEASED = "Released"
SKIPPED = "Skipped"
REVISIT_ASKED = "RevisitAsked"
LABEL_SUBMITTED = "LabelSubmitted"
LABEL_WITHDRAWN = "LabelWithdrawn"
LABEL_REVIEWED = "LabelReviewed"
IMAGES_CHANGED = "ImagesChanged"
IMAGE_QUARANTINED = "ImageQuarantined"
SCORES_STORED = "ScoresStored"

ABOUT_LABELS = (LABEL_SUBMITTED, LABEL_WITHDRAWN, LABEL_REVIEWED, IMAGES_CHANGED, IMAGE_QUARANTINED)
"""Events after which training may have something else to learn from."""


_INSERT = insert(EventRow)  # built once: it is run at every offer


def note(session: Session, now: float, kind: str, **payload: Any) -> None:
    """Notes an event in an open transaction; the payload is JSON and holds no patient's identifiers."""
    session.connection().execute(_INSERT, {"at": now, "kind": kind, "payload": payload})


def last_of(session: Session, kinds: Iterable[str]) -> int:
    """Id of the last event of these kinds; 0 where there is none."""
    found = (session.scalar(select(func.max(EventRow.id)).where(EventRow.kind == kind)) for kind in kinds)
    return max((last for last in found if last is not None), default=0)
