"""Between the tables and the frozen records: checks on the way in, copies on the way out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import select
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session

from hermes.campaign.models import ImageRow, LabelRow
from hermes.campaign.records import Annotated, ImageRecord, LabelRecord
from hermes.errors import BadRequestError, NotFoundError
from hermes.types import CaseId, StructureName

_AT_ONCE = 500
"""Ids per statement; SQLite takes some thousand."""


@dataclass(frozen=True)
class ImageChanges:
    """How the datastore's list differs from the campaign's; each sorted.

    ``incomplete``: known from an older version of Hermes, without patient or assignment.
    """

    new: list[CaseId]
    gone: list[CaseId]
    back: list[CaseId]
    incomplete: list[CaseId]

    @property
    def none(self) -> bool:
        """Whether the two lists are the same."""
        return not (self.new or self.gone or self.back or self.incomplete)


def image_changes(session: Session, current: set[CaseId]) -> ImageChanges:
    """What has to change so that the campaign's images are ``current``."""
    columns = (ImageRow.id, ImageRow.missing_since, ImageRow.patient_key, ImageRow.holdout)
    found = session.execute(select(*columns)).all()
    known = {name: since for name, since, _, _ in found}
    return ImageChanges(
        new=sorted(current - known.keys()),
        gone=sorted(name for name, since in known.items() if name not in current and since is None),
        back=sorted(name for name, since in known.items() if name in current and since is not None),
        incomplete=sorted(n for n, _, key, way in found if key is None or way is None),
    )


def known_image(session: Session, image_id: CaseId) -> ImageRow:
    """The row of an image, locked against other writers.

    Raises:
        NotFoundError: there is none.
    """
    row = session.scalar(select(ImageRow).where(ImageRow.id == image_id).with_for_update())
    if row is None:
        msg = f"The campaign has no image {image_id!r}."
        raise NotFoundError(msg)
    return row


def unknown_images(session: Session, ids: set[CaseId]) -> set[CaseId]:
    """Those of the ids that are no images of the campaign."""
    wanted, known = sorted(ids), set[CaseId]()
    for start in range(0, len(wanted), _AT_ONCE):
        statement = select(ImageRow.id).where(ImageRow.id.in_(wanted[start : start + _AT_ONCE]))
        known.update(session.scalars(statement))
    return ids - known


def annotated_values(annotated: Mapping[StructureName, Annotated | str]) -> dict[str, str]:
    """``annotated`` as plain strings.

    Raises:
        BadRequestError: a value other than "present" and "absent".
    """
    try:
        return {name: Annotated(value).value for name, value in annotated.items()}
    except ValueError as error:
        msg = f"Expected 'present' or 'absent' for every structure, got {dict(annotated)!r}."
        raise BadRequestError(msg) from error


def upsert(
    session: Session, table: Any, values: list[dict[str, Any]], keys: list[str], change: list[str]
) -> None:
    """Inserts rows; where the keys exist, changes the columns ``change``, or nothing when there are none."""
    if not values:
        return
    connection = session.connection()
    insert = postgresql.insert if connection.dialect.name == "postgresql" else sqlite.insert
    statement = insert(table)
    if change:
        new = {column: statement.excluded[column] for column in change}
        connection.execute(statement.on_conflict_do_update(index_elements=keys, set_=new), values)
    else:
        connection.execute(statement.on_conflict_do_nothing(index_elements=keys), values)


def image_record(row: ImageRow) -> ImageRecord:
    """A frozen copy of an image's row."""
    return ImageRecord(
        row.id,
        row.first_seen_at,
        row.missing_since,
        row.content_hash,
        row.patient_key,
        row.quarantined_reason,
        row.holdout,
    )


def label_record(row: LabelRow) -> LabelRecord:
    """A frozen copy of a label's row."""
    return LabelRecord(
        id=row.id,
        image_id=row.image_id,
        tag=row.tag,
        number=row.number,
        path=row.path,
        sha256=row.sha256,
        annotator=row.annotator,
        submitted_at=row.submitted_at,
        model_version=row.model_version,
        source=row.source,
        annotated={name: Annotated(value) for name, value in row.annotated.items()},
        withdrawn_at=row.withdrawn_at,
    )
