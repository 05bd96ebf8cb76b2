"""Tables of the campaign database. Times are seconds since 1970 (UTC): alike everywhere."""

from __future__ import annotations

from typing import Any

from sqlalchemy import JSON, Float, ForeignKey, Index, String, Text, UniqueConstraint, text
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
    """Who works on an image, and until when nobody else is offered it."""

    __tablename__ = "leases"
    image_id: Mapped[str] = mapped_column(ForeignKey("images.id"), primary_key=True)
    annotator: Mapped[str] = mapped_column(String(255))
    until: Mapped[float]


class EventRow(Base):
    """What happened, in order."""

    __tablename__ = "events"
    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=True)
    at: Mapped[float]
    kind: Mapped[str] = mapped_column(String(64), index=True)
    payload: Mapped[dict[str, Any]] = mapped_column(JSON)
