"""What reviewers say of labels, and what training takes for each structure."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import replace

from sqlalchemy import select
from sqlalchemy.orm import Session

from hermes.campaign import events
from hermes.campaign.assignments import close_rejection, lift_skips, open_revisit
from hermes.campaign.database import Database
from hermes.campaign.events import note
from hermes.campaign.models import LabelRow, ReviewRow
from hermes.campaign.openness import Wish
from hermes.campaign.reading_states import states_of
from hermes.campaign.records import FINAL, LabelRecord, ReviewRecord, ReviewState
from hermes.campaign.rejections import Rejections
from hermes.campaign.rows import upsert
from hermes.errors import BadRequestError, NotFoundError
from hermes.types import CaseId, StructureName

LONGEST_COMMENT = 2000


class Reviews:
    """The review of label versions. A rejected one trains nothing; its image is offered again."""

    def __init__(self, database: Database, clock: Callable[[], float]) -> None:
        self._database, self._clock = database, clock

    def review(
        self, label_id: int, state: ReviewState, *, reviewer: str, comment: str = "", wish: Wish | None = None
    ) -> ReviewRecord:
        """The word of a reviewer on a submitted label; a later word replaces it.

        After a rejection the annotator of the label is the first to be offered the image again, unless other labels
        have completed it.

        Args:
            label_id: of the label version.
            state: approved, rejected, or submitted, which takes an earlier word back.
            reviewer: who says so.
            comment: for the annotator; a rejection has one.
            wish: what the campaign wants of its images.

        Raises:
            NotFoundError: there is no such label, or it was withdrawn.
            BadRequestError: a rejection without a comment, or a comment that is too long.
        """
        comment = comment.strip()
        if (state is ReviewState.REJECTED and not comment) or len(comment) > LONGEST_COMMENT:
            msg = f"Expected a comment of 1 to {LONGEST_COMMENT} characters that says what to correct, got {len(comment)}."
            raise BadRequestError(msg)
        now = self._clock()
        value = {
            "label_id": label_id,
            "state": state.value,
            "reviewer": reviewer,
            "comment": comment,
            "at": now,
        }
        with self._database.write() as session:
            label = _submitted(session, label_id)
            upsert(session, ReviewRow, [value], ["label_id"], ["state", "reviewer", "comment", "at"])
            close_rejection(session, label_id, reviewer, now)
            if state is ReviewState.REJECTED:
                _send_back(session, label, reviewer, comment, now, wish or Wish())
            note(
                session, now, events.LABEL_REVIEWED,
                image=label.image_id, label=label_id, state=state.value, reviewer=reviewer,
            )  # fmt: skip
        return ReviewRecord(label_id, state, reviewer, comment, now)

    def all(self) -> dict[int, ReviewRecord]:
        """Label -> what was said of it last."""
        with self._database.read() as session:
            return {
                row.label_id: ReviewRecord(
                    row.label_id, ReviewState(row.state), row.reviewer, row.comment, row.at
                )
                for row in session.scalars(select(ReviewRow))
            }


def label_to_review(
    labels: Iterable[LabelRecord], image_id: CaseId, annotator: str | None = None
) -> LabelRecord:
    """The latest label of an image, of one annotator where named.

    Raises:
        NotFoundError: there is none.
    """
    found = [one for one in labels if one.image_id == image_id and annotator in (None, one.annotator)]
    if not found:
        whose = "" if annotator is None else f" by {annotator!r}"
        msg = f"Expected a submitted label{whose} of image {image_id!r}, there is none."
        raise NotFoundError(msg)
    return max(found, key=lambda one: one.number)


def states_of_review(session: Session) -> dict[int, str]:
    """Label -> state, of the labels that were reviewed."""
    rows = session.execute(select(ReviewRow.label_id, ReviewRow.state))
    return {label_id: state for label_id, state in rows}


def chosen(labels: Iterable[LabelRecord], reviewed: Mapping[int, str]) -> list[LabelRecord]:
    """What training takes: for each structure of an image the latest approved label that annotates it, else the latest.

    Labels of one image by several annotators thus complement each other, and never contradict each other. Rejected
    ones do not count, nor what they had replaced of the same annotator's (unless that was approved).

    Args:
        labels: all valid versions.
        reviewed: label -> state of its review.

    Returns:
        The labels by image and number, each with the structures that it is taken for in ``annotated``.
    """
    best: dict[tuple[CaseId, StructureName], tuple[bool, int, LabelRecord]] = {}
    known = list(labels)
    rejected = {one.id for one in known if reviewed.get(one.id) == ReviewState.REJECTED.value}
    rejections = Rejections(
        (one.image_id, one.annotator, one.number, one.annotated) for one in known if one.id in rejected
    )
    for label in known:
        if label.id in rejected:
            continue
        approved = reviewed.get(label.id) == ReviewState.APPROVED.value
        left = rejections.leave(label.image_id, label.annotator, label.number, label.annotated)
        for structure in label.annotated if approved else left:
            place = (approved, label.number, label)
            key = (label.image_id, structure)
            if key not in best or place[:2] > best[key][:2]:
                best[key] = place
    taken: dict[int, tuple[LabelRecord, list[StructureName]]] = {}
    for (_, structure), (_, _, label) in best.items():
        taken.setdefault(label.id, (label, []))[1].append(structure)
    found = [_restricted(label, names) for label, names in taken.values()]
    return sorted(found, key=lambda label: (label.image_id, label.number))


def _restricted(label: LabelRecord, names: Collection[StructureName]) -> LabelRecord:
    if len(names) == len(label.annotated):
        return label
    return replace(
        label, annotated={name: label.annotated[name] for name in label.annotated if name in names}
    )


def _submitted(session: Session, label_id: int) -> LabelRow:
    row = session.get(LabelRow, label_id)
    if row is None or row.tag != FINAL or row.withdrawn_at is not None:
        msg = f"Expected the number of a submitted label, there is no {label_id}. GET /hermes/labels lists them."
        raise NotFoundError(msg)
    return row


def _send_back(
    session: Session, label: LabelRow, reviewer: str, comment: str, now: float, wish: Wish
) -> None:
    lift_skips(session, label.image_id, label.annotator, now)
    if not states_of(session, [label.image_id])[label.image_id].complete(wish):
        open_revisit(session, label.image_id, label.annotator, reviewer, comment, now, label.id)
