"""Tables of the campaign database. Times are seconds since 1970 (UTC): alike everywhere."""

from __future__ import annotations

from typing import Any

from sqlalchemy import JSON, Float, ForeignKey, Index, LargeBinary, String, Text, UniqueConstraint, text
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

SCHEMA_VERSION = 3
"""Raised whenever a table changes; a database of a newer schema is not opened."""


class Base(DeclarativeBase):
    """Root of the tables."""


class SchemaRow(Base):
    """The one row that says which schema the database has."""

    __tablename__ = "schema_info"
    version: Mapped[int] = mapped_column(primary_key=True)


class ImageRow(Base):
    """An image of the datastore; kept when the datastore loses it, since labels refer to it."""

    __tablename__ = "images"
    id: Mapped[str] = mapped_column(String(255), primary_key=True)
    first_seen_at: Mapped[float]
    missing_since: Mapped[float | None]
    content_hash: Mapped[str | None] = mapped_column(String(128))
    patient_key: Mapped[str | None] = mapped_column(String(128))
    quarantined_reason: Mapped[str | None] = mapped_column(Text)
    holdout: Mapped[bool | None]


class InfoRow(Base):
    """A note about the campaign itself."""

    __tablename__ = "campaign_info"
    key: Mapped[str] = mapped_column(String(64), primary_key=True)
    value: Mapped[str] = mapped_column(Text)


class StructureRow(Base):
    """A structure that was added while the campaign ran; never changed or removed."""

    __tablename__ = "structures"
    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=True)
    name: Mapped[str] = mapped_column(String(255), unique=True)
    like: Mapped[str | None] = mapped_column(String(255))
    random: Mapped[bool]
    added_at: Mapped[float]


class LabelRow(Base):
    """One submitted version of a label; never changed afterwards, except for being withdrawn."""

    __tablename__ = "labels"
    __table_args__ = (UniqueConstraint("image_id", "tag", "number"),)
    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=True)
    image_id: Mapped[str] = mapped_column(ForeignKey("images.id"))
    tag: Mapped[str] = mapped_column(String(64))
    number: Mapped[int]
    path: Mapped[str] = mapped_column(Text)
    sha256: Mapped[str] = mapped_column(String(64))
    annotator: Mapped[str] = mapped_column(String(255))
    submitted_at: Mapped[float]
    model_version: Mapped[str | None] = mapped_column(String(255))
    source: Mapped[str] = mapped_column(String(64))
    annotated: Mapped[dict[str, str]] = mapped_column(JSON)
    withdrawn_at: Mapped[float | None]


class RunRow(Base):
    """One training run. At most one is running: the partial unique index says so to every process."""

    __tablename__ = "training_runs"
    __table_args__ = (
        Index(
            "one_running_training",
            "state",
            unique=True,
            sqlite_where=text("state = 'running'"),
            postgresql_where=text("state = 'running'"),
        ),
    )
    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=True)
    state: Mapped[str] = mapped_column(String(16))
    started_at: Mapped[float]
    ended_at: Mapped[float | None]
    heartbeat_at: Mapped[float]
    host: Mapped[str] = mapped_column(String(255))
    pid: Mapped[int]
    process_identity: Mapped[str] = mapped_column(String(128))
    steps: Mapped[int]
    reason: Mapped[str | None] = mapped_column(Text)
    version: Mapped[str | None] = mapped_column(String(255))
    report: Mapped[dict[str, Any] | None] = mapped_column(JSON)


class RunLabelRow(Base):
    """A label version that a training run looked at."""

    __tablename__ = "training_run_labels"
    run_id: Mapped[int] = mapped_column(ForeignKey("training_runs.id"), primary_key=True)
    label_id: Mapped[int] = mapped_column(ForeignKey("labels.id"), primary_key=True, index=True)


class VersionRow(Base):
    """A version of the model."""

    __tablename__ = "versions"
    name: Mapped[str] = mapped_column(String(255), primary_key=True)
    parent: Mapped[str | None] = mapped_column(String(255))
    path: Mapped[str] = mapped_column(Text)
    created_at: Mapped[float]
    published_at: Mapped[float | None]
    metrics: Mapped[dict[str, Any]] = mapped_column(JSON)
    state: Mapped[str] = mapped_column(String(16))


class ScoreRow(Base):
    """A score of an image (structure "") or of one structure in it, by one method and model version."""

    __tablename__ = "scores"
    method: Mapped[str] = mapped_column(String(64), primary_key=True)
    model_version: Mapped[str] = mapped_column(String(255), primary_key=True)
    image_id: Mapped[str] = mapped_column(ForeignKey("images.id"), primary_key=True)
    structure: Mapped[str] = mapped_column(String(255), primary_key=True)
    value: Mapped[float] = mapped_column(Float)
    computed_at: Mapped[float]


class HoldoutScoreRow(Base):
    """What a version reached on a held-out label."""

    __tablename__ = "holdout_scores"
    version: Mapped[str] = mapped_column(String(255), primary_key=True)
    conditions: Mapped[str] = mapped_column(String(64), primary_key=True)
    label_id: Mapped[int] = mapped_column(ForeignKey("labels.id"), primary_key=True)
    dice: Mapped[dict[str, float]] = mapped_column(JSON)


class LeaseRow(Base):
    """Who works on an image since when, and until when nobody else is offered it (unless several are to label it)."""

    __tablename__ = "leases"
    image_id: Mapped[str] = mapped_column(ForeignKey("images.id"), primary_key=True)
    annotator: Mapped[str] = mapped_column(String(255), primary_key=True)
    since: Mapped[float]
    until: Mapped[float]


class EventRow(Base):
    """What happened, in order."""

    __tablename__ = "events"
    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=True)
    at: Mapped[float]
    kind: Mapped[str] = mapped_column(String(64), index=True)
    payload: Mapped[dict[str, Any]] = mapped_column(JSON)


class SkipRow(Base):
    """An annotator did not want an image; ``lifted_at`` is when the skip ended to count."""

    __tablename__ = "skips"
    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=True)
    image_id: Mapped[str] = mapped_column(ForeignKey("images.id"), index=True)
    annotator: Mapped[str] = mapped_column(String(255))
    reason: Mapped[str] = mapped_column(Text)
    at: Mapped[float]
    lifted_at: Mapped[float | None]


class RevisitRow(Base):
    """A wish that an image be looked at again, by ``annotator`` or (null) by anybody."""

    __tablename__ = "revisits"
    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=True)
    image_id: Mapped[str] = mapped_column(ForeignKey("images.id"), index=True)
    annotator: Mapped[str | None] = mapped_column(String(255))
    asked_by: Mapped[str] = mapped_column(String(255))
    reason: Mapped[str] = mapped_column(Text)
    at: Mapped[float]
    rejected_label: Mapped[int | None] = mapped_column(ForeignKey("labels.id"))
    closed_at: Mapped[float | None]
    closed_by: Mapped[str | None] = mapped_column(String(255))


class ReviewRow(Base):
    """What a reviewer said of a label version last; a label without a row is submitted and not reviewed."""

    __tablename__ = "reviews"
    label_id: Mapped[int] = mapped_column(ForeignKey("labels.id"), primary_key=True)
    state: Mapped[str] = mapped_column(String(16))
    reviewer: Mapped[str] = mapped_column(String(255))
    comment: Mapped[str] = mapped_column(Text)
    at: Mapped[float]


class OfferedDiceRow(Base):
    """How well what the model offered agrees with what was submitted."""

    __tablename__ = "offered_dice"
    label_id: Mapped[int] = mapped_column(ForeignKey("labels.id"), primary_key=True)
    structure: Mapped[str] = mapped_column(String(255), primary_key=True)
    model_version: Mapped[str] = mapped_column(String(255))
    dice: Mapped[float]


class AnnotatorAgreementRow(Base):
    """How well two label versions of one image agree in a structure; distances are null where one draws nothing."""

    __tablename__ = "annotator_agreement"
    first_label: Mapped[int] = mapped_column(ForeignKey("labels.id"), primary_key=True)
    second_label: Mapped[int] = mapped_column(ForeignKey("labels.id"), primary_key=True)
    structure: Mapped[str] = mapped_column(String(255), primary_key=True)
    dice: Mapped[float]
    mean_distance_mm: Mapped[float | None]
    hausdorff95_mm: Mapped[float | None]


class UploadRow(Base):
    """A label that is (or was) on its way to the PACS."""

    __tablename__ = "uploads"
    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=True)
    image_id: Mapped[str] = mapped_column(ForeignKey("images.id"))
    label_id: Mapped[int | None] = mapped_column(ForeignKey("labels.id"), unique=True)
    tag: Mapped[str] = mapped_column(String(255))
    path: Mapped[str] = mapped_column(Text)
    about: Mapped[dict[str, Any]] = mapped_column(JSON)
    sop_instance_uid: Mapped[str] = mapped_column(String(64), unique=True)
    state: Mapped[str] = mapped_column(String(16), index=True)
    attempts: Mapped[int]
    next_try_at: Mapped[float]
    last_error: Mapped[str | None] = mapped_column(Text)
    created_at: Mapped[float]
    changed_at: Mapped[float]


class PacsObjectRow(Base):
    """A label object that was seen in the PACS; kept when it is deleted there."""

    __tablename__ = "pacs_objects"
    sop_instance_uid: Mapped[str] = mapped_column(String(64), primary_key=True)
    study_uid: Mapped[str] = mapped_column(String(64))
    series_uid: Mapped[str] = mapped_column(String(64))
    kind: Mapped[str] = mapped_column(String(16))
    stamp: Mapped[str] = mapped_column(String(64))
    image_id: Mapped[str | None] = mapped_column(String(255), index=True)
    state: Mapped[str] = mapped_column(String(16))
    reason: Mapped[str | None] = mapped_column(Text)
    first_seen_at: Mapped[float]
    gone_at: Mapped[float | None]


class PacsLabelRow(Base):
    """From which objects of the PACS a label version was read."""

    __tablename__ = "pacs_labels"
    label_id: Mapped[int] = mapped_column(ForeignKey("labels.id"), primary_key=True)
    objects: Mapped[list[str]] = mapped_column(JSON)


class PacsSeriesRow(Base):
    """What a series of the PACS holds, as found when it was looked at with this many instances."""

    __tablename__ = "pacs_series"
    series_uid: Mapped[str] = mapped_column(String(64), primary_key=True)
    instances: Mapped[int]
    main: Mapped[str | None] = mapped_column(String(255))
    volumes: Mapped[list[dict[str, Any]]] = mapped_column(JSON)
    refusal: Mapped[str | None] = mapped_column(Text)
    inspected_at: Mapped[float]


class ImageFactsRow(Base):
    """What a version of the model found in an image; replaced by a row with a higher id, so that readers notice."""

    __tablename__ = "image_facts"
    # An id is never used again: readers ask for what is beyond the last one that they know.
    __table_args__ = (UniqueConstraint("model_version", "image_id"), {"sqlite_autoincrement": True})
    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=True)
    model_version: Mapped[str] = mapped_column(String(255))
    image_id: Mapped[str] = mapped_column(ForeignKey("images.id"))
    measures: Mapped[dict[str, dict[str, float]]] = mapped_column(JSON)
    structures: Mapped[list[str]] = mapped_column(JSON)
    embeddings: Mapped[bytes] = mapped_column(LargeBinary)
    bytes: Mapped[int]
    computed_at: Mapped[float]
