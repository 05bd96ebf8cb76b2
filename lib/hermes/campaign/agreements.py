"""How well labels agree: with what the model had offered, and between annotators. Measured once, kept."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from sqlalchemy import select

from hermes.campaign.database import Database
from hermes.campaign.models import AnnotatorAgreementRow, LabelRow, OfferedDiceRow
from hermes.campaign.rows import upsert
from hermes.types import CaseId, StructureName


@dataclass(frozen=True)
class OfferedDice:
    """Dice of a structure between what ``model_version`` offered and what ``annotator`` submitted."""

    label_id: int
    image_id: CaseId
    annotator: str
    submitted_at: float
    structure: StructureName
    model_version: str
    dice: float


@dataclass(frozen=True)
class PairAgreement:
    """Two label versions of one image in one structure.

    ``mean_distance_mm`` is the average symmetric surface distance, ``hausdorff95_mm`` the 95th percentile of the
    Hausdorff distance; ``None`` where only one of the two draws the structure.
    """

    first_label: int
    second_label: int
    structure: StructureName
    dice: float
    mean_distance_mm: float | None
    hausdorff95_mm: float | None


class Agreements:
    """What was measured of pairs of label maps."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def put_offered(self, label_id: int, model_version: str, dice: Mapping[StructureName, float]) -> None:
        """Keeps how well a submission agrees with what was offered."""
        values = [
            {"label_id": label_id, "structure": name, "model_version": model_version, "dice": value}
            for name, value in dice.items()
        ]
        with self._database.write() as session:
            upsert(session, OfferedDiceRow, values, ["label_id", "structure"], ["model_version", "dice"])

    def offered(self) -> list[OfferedDice]:
        """All that was measured of valid labels, in the order of their submission."""
        statement = (
            select(OfferedDiceRow, LabelRow.image_id, LabelRow.annotator, LabelRow.submitted_at)
            .join(LabelRow, LabelRow.id == OfferedDiceRow.label_id)
            .where(LabelRow.withdrawn_at.is_(None))
            .order_by(LabelRow.id, OfferedDiceRow.structure)
        )
        with self._database.read() as session:
            return [
                OfferedDice(r.label_id, image, annotator, at, r.structure, r.model_version, r.dice)
                for r, image, annotator, at in session.execute(statement)
            ]

    def put_pair(self, found: Iterable[PairAgreement]) -> None:
        """Keeps what was measured of two labels."""
        values = [vars(one) for one in found]
        keys = ["first_label", "second_label", "structure"]
        with self._database.write() as session:
            upsert(
                session, AnnotatorAgreementRow, values, keys, ["dice", "mean_distance_mm", "hausdorff95_mm"]
            )

    def pairs(self) -> dict[tuple[int, int], list[PairAgreement]]:
        """(first label, second label) -> what was measured."""
        found: dict[tuple[int, int], list[PairAgreement]] = {}
        with self._database.read() as session:
            for r in session.scalars(select(AnnotatorAgreementRow).order_by(AnnotatorAgreementRow.structure)):
                one = PairAgreement(
                    r.first_label, r.second_label, r.structure, r.dice, r.mean_distance_mm, r.hausdorff95_mm
                )
                found.setdefault((r.first_label, r.second_label), []).append(one)
        return found
