"""Structures that annotators added while the campaign ran, in the order in which they came."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from sqlalchemy import select

from hermes.campaign.database import Database
from hermes.campaign.models import StructureRow
from hermes.records import NewStructure


class ConfirmedStructures:
    """The table of structures that requests have added. It only grows, so rows and label values keep their meaning."""

    def __init__(self, database: Database, clock: Callable[[], float]) -> None:
        self._database, self._clock = database, clock

    def all(self) -> tuple[NewStructure, ...]:
        """The structures, the first one first."""
        with self._database.read() as session:
            found = session.scalars(select(StructureRow).order_by(StructureRow.id))
            return tuple(NewStructure(row.name, row.like, row.random) for row in found)

    def add(self, structures: Iterable[NewStructure]) -> None:
        """Appends structures; one whose name is there already stays as it is."""
        with self._database.write() as session:
            known = set(session.scalars(select(StructureRow.name)))
            for new in structures:
                if new.name not in known:
                    session.add(
                        StructureRow(name=new.name, like=new.like, random=new.random, added_at=self._clock())
                    )
                    session.flush()  # ids in the order of the request
                    known.add(new.name)
