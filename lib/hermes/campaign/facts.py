"""What versions of the model found in the images of the pool: measures, and embeddings by structure.

One row per version and image. Readers keep what they have read and ask for newer rows only.
"""

from __future__ import annotations

import json
import math
import threading
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import delete, func, select

from hermes.campaign import events
from hermes.campaign.database import Database
from hermes.campaign.models import ImageFactsRow
from hermes.campaign.rows import known_image
from hermes.errors import BadRequestError
from hermes.types import CaseId, StructureName

Measures = Mapping[str, Mapping[StructureName, float]]


@dataclass(frozen=True, eq=False)
class ImageFacts:
    """What one version found in one image.

    Attributes:
        measures: measure -> structure ("" for the whole image) -> value; see `hermes.records.MEASURES`.
        structures: of the rows of ``embeddings``.
        embeddings: ``(n, d)`` float16: what each structure is like in this image. The distance of two images is that
            of the sums of their rows.
    """

    measures: Measures
    structures: tuple[StructureName, ...] = ()
    embeddings: NDArray[np.float16] = field(default_factory=lambda: np.zeros((0, 0), np.float16))

    def embedding(self, structures: Collection[StructureName] | None = None) -> NDArray[np.float32] | None:
        """``(d,)``: what the image is like in these structures (all, where none of them is known); None: unknown."""
        if not self.embeddings.size:
            return None
        places = [k for k, name in enumerate(self.structures) if structures is None or name in structures]
        rows = self.embeddings[places] if places else self.embeddings
        total: NDArray[np.float32] = rows.astype(np.float32).sum(axis=0) / math.sqrt(len(rows))
        return total


class Facts:
    """The facts of a campaign; safe from any thread."""

    def __init__(self, database: Database, clock: Callable[[], float]) -> None:
        self._database, self._clock = database, clock
        self._lock = threading.Lock()
        self._read: dict[str, tuple[int, dict[CaseId, ImageFacts]]] = {}

    def put(self, version: str, image_id: CaseId, facts: ImageFacts) -> None:
        """Keep what a version found in an image, in place of what it found before.

        Raises:
            NotFoundError: the campaign has no such image.
            BadRequestError: a number that is not finite, or another number of embeddings than of structures.
        """
        _check(facts)
        measures = {name: dict(values) for name, values in facts.measures.items()}
        packed = np.ascontiguousarray(facts.embeddings, np.float16).tobytes()
        with self._database.write() as session:
            known_image(session, image_id)
            session.execute(
                delete(ImageFactsRow).where(
                    ImageFactsRow.model_version == version, ImageFactsRow.image_id == image_id
                )
            )
            row = ImageFactsRow(
                model_version=version,
                image_id=image_id,
                measures=measures,
                structures=list(facts.structures),
                embeddings=packed,
                bytes=len(packed) + len(json.dumps(measures)),
                computed_at=self._clock(),
            )
            session.add(row)
            events.note(
                session, self._clock(), events.SCORES_STORED, method="facts", version=version, scores=1
            )

    def of(self, version: str) -> Mapping[CaseId, ImageFacts]:
        """Image -> what the version found in it."""
        with self._lock:
            last, found = self._read.get(version, (0, {}))
            statement = (
                select(ImageFactsRow)
                .where(ImageFactsRow.model_version == version, ImageFactsRow.id > last)
                .order_by(ImageFactsRow.id)
            )
            with self._database.read() as session:
                rows = session.scalars(statement).all()
            if rows:
                found = found | {row.image_id: _facts_of(row) for row in rows}
                last = rows[-1].id
            self._read = {**dict(list(self._read.items())[-3:]), version: (last, found)}
            return found

    def latest(self) -> Mapping[CaseId, str]:
        """Image -> the version that looked at it last."""
        statement = select(ImageFactsRow.image_id, ImageFactsRow.model_version).order_by(ImageFactsRow.id)
        with self._database.read() as session:
            return {image_id: version for image_id, version in session.execute(statement)}

    def stored_bytes(self) -> dict[str, int]:
        """Version -> bytes of its facts, the version that was stored to last at the end."""
        last = func.max(ImageFactsRow.id)
        statement = (
            select(ImageFactsRow.model_version, func.sum(ImageFactsRow.bytes))
            .group_by(ImageFactsRow.model_version)
            .order_by(last)
        )
        with self._database.read() as session:
            return {version: int(size) for version, size in session.execute(statement)}

    def forget(self, version: str) -> None:
        """Drop what a version found."""
        with self._lock, self._database.write() as session:
            session.execute(delete(ImageFactsRow).where(ImageFactsRow.model_version == version))
            self._read.pop(version, None)


def _check(facts: ImageFacts) -> None:
    values = (value for by_structure in facts.measures.values() for value in by_structure.values())
    if not all(math.isfinite(value) for value in values) or not np.isfinite(facts.embeddings).all():
        msg = "Expected finite measures and embeddings of an image, got others."
        raise BadRequestError(msg)
    if facts.embeddings.size and len(facts.embeddings) != len(facts.structures):
        msg = f"Expected an embedding per structure ({len(facts.structures)}), got {len(facts.embeddings)}."
        raise BadRequestError(msg)


def _facts_of(row: ImageFactsRow) -> ImageFacts:
    structures = tuple(row.structures)
    values = np.frombuffer(row.embeddings, np.float16)
    shape = (len(structures), -1) if values.size else (0, 0)
    return ImageFacts(row.measures, structures, values.reshape(shape))
