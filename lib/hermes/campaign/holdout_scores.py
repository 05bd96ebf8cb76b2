"""How well versions did on held-out labels: measured once, kept, since neither ever changes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from sqlalchemy import select

from hermes.campaign.database import Database
from hermes.campaign.models import HoldoutScoreRow
from hermes.campaign.rows import upsert
from hermes.types import StructureName


class HoldoutScores:
    """Dice per version, label and structure; ``conditions`` names the settings under which it was measured."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def get(
        self, version: str, conditions: str, label_ids: Iterable[int]
    ) -> dict[int, dict[StructureName, float]]:
        """Label -> structure -> Dice, of the labels that were measured."""
        wanted = set(label_ids)
        statement = select(HoldoutScoreRow).where(
            HoldoutScoreRow.version == version, HoldoutScoreRow.conditions == conditions
        )
        with self._database.read() as session:
            return {
                row.label_id: dict(row.dice) for row in session.scalars(statement) if row.label_id in wanted
            }

    def put(self, version: str, conditions: str, label_id: int, dice: Mapping[StructureName, float]) -> None:
        """Keeps what was measured."""
        value = {"version": version, "conditions": conditions, "label_id": label_id, "dice": dict(dice)}
        with self._database.write() as session:
            upsert(session, HoldoutScoreRow, [value], ["version", "conditions", "label_id"], ["dice"])
