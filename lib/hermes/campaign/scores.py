"""Scores of images, by method, model version and structure.

The functions take an open transaction; `Campaign` opens it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from hermes.campaign import events, rows
from hermes.campaign.models import ScoreRow
from hermes.campaign.records import Score
from hermes.errors import BadRequestError, NotFoundError
from hermes.types import CaseId, StructureName

_KEYS = ["method", "model_version", "image_id", "structure"]


def columns(method: str, model_version: str, scores: Iterable[Score], *, now: float) -> list[dict[str, Any]]:
    """The columns of the scores; of two for one image and structure, the later one.

    Raises:
        BadRequestError: a value that is not a finite number.
    """
    values: dict[tuple[CaseId, StructureName], dict[str, Any]] = {}
    for score in scores:
        if not math.isfinite(score.value):
            msg = f"Expected finite scores, got {score.value} ({method}) for image {score.image_id!r}."
            raise BadRequestError(msg)
        values[score.image_id, score.structure] = {
            "method": method,
            "model_version": model_version,
            "image_id": score.image_id,
            "structure": score.structure,
            "value": float(score.value),
            "computed_at": now,
        }
    return list(values.values())


def put(
    session: Session, method: str, model_version: str, values: list[dict[str, Any]], *, now: float
) -> None:
    """Keeps `columns`, in place of earlier ones of the same method, version, image and structure.

    Raises:
        NotFoundError: a score of an image that the campaign does not have.
    """
    unknown = rows.unknown_images(session, {value["image_id"] for value in values})
    if unknown:
        msg = f"Expected scores of known images, got {len(unknown)} others, such as {min(unknown)!r}."
        raise NotFoundError(msg)
    rows.upsert(session, ScoreRow, values, _KEYS, ["value", "computed_at"])
    said = {"method": method, "version": model_version, "scores": len(values)}
    events.note(session, now, events.SCORES_STORED, **said)


def of(session: Session, method: str, model_version: str) -> dict[CaseId, dict[StructureName, float]]:
    """Image -> structure ("" for the image as a whole) -> value."""
    statement = select(ScoreRow.image_id, ScoreRow.structure, ScoreRow.value).where(
        ScoreRow.method == method, ScoreRow.model_version == model_version
    )
    found: dict[CaseId, dict[StructureName, float]] = {}
    for image_id, structure, value in session.execute(statement):
        found.setdefault(image_id, {})[structure] = value
    return found
