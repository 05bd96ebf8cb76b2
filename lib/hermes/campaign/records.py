"""What the campaign answers: frozen copies of its rows, free of any database session."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any

from hermes.types import CaseId, StructureName

FINAL = "final"
"""Tag of the labels that training uses."""

WHOLE_IMAGE: StructureName = ""
"""The structure of a score that is about the image as a whole."""


class Annotated(str, Enum):
    """What an annotator said about a structure in an image; one that is not named was not annotated."""

    PRESENT = "present"
    ABSENT = "absent"


class RunState(str, Enum):
    """Where a training run stands."""

    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    STOPPED = "stopped"
    IMPORTED = "imported"
    """Of another campaign, whose models did not come along: its labels are to be learned here."""


class ReviewState(str, Enum):
    """What a reviewer said of a label; one that nobody has reviewed is submitted."""

    SUBMITTED = "submitted"
    APPROVED = "approved"
    REJECTED = "rejected"


class VersionState(str, Enum):
    """What became of a version of the model."""

    CANDIDATE = "candidate"
    PUBLISHED = "published"
    REFUSED = "refused"


@dataclass(frozen=True)
class ImageRecord:
    """An image of the campaign. Times are seconds since 1970 (UTC), here and below.

    ``holdout``: whether its labels measure candidates and train nothing; ``None``: not assigned yet, which trains
    nothing either.
    """

    id: CaseId
    first_seen_at: float
    missing_since: float | None
    content_hash: str | None
    patient_key: str | None
    quarantined_reason: str | None
    holdout: bool | None = None


@dataclass(frozen=True)
class LabelRecord:
    """One submitted version of a label; ``number`` counts from 1 per image and tag.

    ``withdrawn_at``: when it was taken back; it is kept, and counts for nothing.
    """

    id: int
    image_id: CaseId
    tag: str
    number: int
    path: str
    sha256: str
    annotator: str
    submitted_at: float
    model_version: str | None
    source: str
    annotated: Mapping[StructureName, Annotated]
    withdrawn_at: float | None = None


@dataclass(frozen=True)
class RunRecord:
    """One training run; ``label_ids`` are the label versions that it looked at, ``report`` is what it found."""

    id: int
    state: RunState
    started_at: float
    ended_at: float | None
    heartbeat_at: float
    host: str
    pid: int
    label_ids: tuple[int, ...]
    steps: int
    reason: str | None
    version: str | None
    report: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class VersionRecord:
    """A version of the model: ``path`` is its directory, seen from the campaign's."""

    name: str
    parent: str | None
    path: str
    created_at: float
    published_at: float | None
    metrics: Mapping[str, Any]
    state: VersionState


@dataclass(frozen=True)
class Score:
    """One value for an image, or for one structure in it."""

    image_id: CaseId
    structure: StructureName
    value: float


@dataclass(frozen=True)
class LeaseRecord:
    """Who works on an image since when, and until when nobody else is offered it."""

    image_id: CaseId
    annotator: str
    since: float
    until: float


@dataclass(frozen=True)
class SkipRecord:
    """An image that an annotator did not want; ``lifted_at`` is when the skip ended to count."""

    image_id: CaseId
    annotator: str
    reason: str
    at: float
    lifted_at: float | None


@dataclass(frozen=True)
class RevisitRecord:
    """A wish that an image be looked at again, by ``annotator`` or by anybody (``None``)."""

    id: int
    image_id: CaseId
    annotator: str | None
    asked_by: str
    reason: str
    at: float
    rejected_label: int | None
    closed_at: float | None
    closed_by: str | None


@dataclass(frozen=True)
class ReviewRecord:
    """What a reviewer said of a label version last."""

    label_id: int
    state: ReviewState
    reviewer: str
    comment: str
    at: float


@dataclass(frozen=True)
class Event:
    """Something that happened; ``id`` grows with time."""

    id: int
    at: float
    kind: str
    payload: Mapping[str, Any]


@dataclass(frozen=True)
class Counts:
    """How far the campaign is: images in the datastore, of them labelled and quarantined, and so on."""

    images: int
    labelled: int
    quarantined: int
    label_versions: int
    new_labels: int
    runs_done: int
    runs_failed: int
    versions: int
