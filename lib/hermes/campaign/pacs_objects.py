"""What the campaign knows of the PACS: its label objects, what its series hold, where label versions came from."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

from sqlalchemy import select, update

from hermes.campaign import events
from hermes.campaign.database import Database
from hermes.campaign.events import note
from hermes.campaign.models import LabelRow, PacsLabelRow, PacsObjectRow, PacsSeriesRow
from hermes.types import CaseId


class ObjectState(str, Enum):
    """What a label object of the PACS is to the campaign."""

    READ = "read"
    REFUSED = "refused"


@dataclass(frozen=True)
class PacsObject:
    """A DICOM SEG or RTSTRUCT of somebody else, as the campaign has seen it.

    Attributes:
        sop_instance_uid: of the object.
        study_uid: of its study.
        series_uid: of its own series.
        kind: SEG or RTSTRUCT.
        stamp: when its content was made, as the PACS lists it; another one means another content.
        image_id: the image it labels; None where that cannot be told.
        state: whether it is used.
        reason: why it is not, or what of it is not.
        first_seen_at: seconds since 1970.
        gone_at: when it was found deleted; None while it is there.
    """

    sop_instance_uid: str
    study_uid: str
    series_uid: str
    kind: str
    stamp: str
    image_id: CaseId | None
    state: ObjectState
    reason: str | None
    first_seen_at: float
    gone_at: float | None = None


@dataclass(frozen=True)
class InspectedSeries:
    """What a series holds.

    Attributes:
        series_uid: its SeriesInstanceUID.
        instances: how many it had when it was looked at.
        main: id of the volume that the SeriesInstanceUID stands for; None when nothing is usable.
        volumes: ``{"id", "title", "refusal", "shape", "affine", "phases"}`` of each volume.
        refusal: why nothing in it can be used.
    """

    series_uid: str
    instances: int
    main: str | None
    volumes: Sequence[Mapping[str, Any]]
    refusal: str | None


class PacsObjects:
    """The tables; every method is one short transaction."""

    def __init__(self, database: Database, clock: Callable[[], float]) -> None:
        self._database, self._clock = database, clock

    # ----------------------------------------------------------------- objects

    def all(self) -> dict[str, PacsObject]:
        """Every object that was ever seen, by its UID."""
        with self._database.read() as session:
            return {row.sop_instance_uid: _object(row) for row in session.scalars(select(PacsObjectRow))}

    def put(self, found: PacsObject) -> None:
        """Keeps what was found out about an object; when it was first seen stays as it is."""
        with self._database.write() as session:
            row = session.get(PacsObjectRow, found.sop_instance_uid)
            first = found.first_seen_at if row is None or row.stamp != found.stamp else row.first_seen_at
            session.merge(
                PacsObjectRow(
                    sop_instance_uid=found.sop_instance_uid,
                    study_uid=found.study_uid,
                    series_uid=found.series_uid,
                    kind=found.kind,
                    stamp=found.stamp,
                    image_id=found.image_id,
                    state=found.state.value,
                    reason=found.reason,
                    first_seen_at=first,
                    gone_at=found.gone_at,
                )
            )

    def gone(self, sop_instance_uids: Iterable[str]) -> None:
        """Notes that objects were deleted in the PACS."""
        with self._database.write() as session:
            for uid in sop_instance_uids:
                row = session.get(PacsObjectRow, uid)
                if row is not None and row.gone_at is None:
                    row.gone_at = self._clock()

    def refuse_objects_of(self, image_id: CaseId, reason: str) -> None:
        """What labels an image now is used no more; an object that comes with another content is."""
        statement = (
            update(PacsObjectRow)
            .where(PacsObjectRow.image_id == image_id, PacsObjectRow.state == ObjectState.READ.value)
            .values(state=ObjectState.REFUSED.value, reason=reason)
        )
        with self._database.write() as session:
            session.execute(statement)

    # ------------------------------------------------------------------ labels

    def label_objects(self) -> dict[int, tuple[str, ...]]:
        """Label version -> the objects it was read from, for those that were read from the PACS."""
        with self._database.read() as session:
            return {row.label_id: tuple(row.objects) for row in session.scalars(select(PacsLabelRow))}

    def note_label(self, label_id: int, objects: Sequence[str]) -> None:
        """Keeps from which objects a label version was read."""
        with self._database.write() as session:
            session.merge(PacsLabelRow(label_id=label_id, objects=list(objects)))

    def withdraw(self, label_ids: Iterable[int]) -> int:
        """Takes back single label versions; how many there were. Others of the same image stay."""
        with self._database.write() as session:
            wanted = LabelRow.id.in_(list(label_ids)), LabelRow.withdrawn_at.is_(None)
            found = session.scalars(select(LabelRow).where(*wanted)).all()
            for row in found:
                row.withdrawn_at = self._clock()
                note(session, row.withdrawn_at, events.LABEL_WITHDRAWN, image=row.image_id, versions=1)
            return len(found)

    # ------------------------------------------------------------------ series

    def series(self) -> dict[str, InspectedSeries]:
        """What is known of series, by their UID."""
        with self._database.read() as session:
            return {row.series_uid: _series(row) for row in session.scalars(select(PacsSeriesRow))}

    def put_series(self, found: InspectedSeries) -> None:
        """Keeps what was found in a series."""
        with self._database.write() as session:
            session.merge(
                PacsSeriesRow(
                    series_uid=found.series_uid,
                    instances=found.instances,
                    main=found.main,
                    volumes=[dict(volume) for volume in found.volumes],
                    refusal=found.refusal,
                    inspected_at=self._clock(),
                )
            )


def _object(row: PacsObjectRow) -> PacsObject:
    return PacsObject(
        row.sop_instance_uid,
        row.study_uid,
        row.series_uid,
        row.kind,
        row.stamp,
        row.image_id,
        ObjectState(row.state),
        row.reason,
        row.first_seen_at,
        row.gone_at,
    )


def _series(row: PacsSeriesRow) -> InspectedSeries:
    return InspectedSeries(row.series_uid, row.instances, row.main, tuple(row.volumes), row.refusal)
