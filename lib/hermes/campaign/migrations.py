"""Databases of earlier schemas, brought to the present one in place.

Each step runs in the transaction that opened the database: it is done whole, or not at all.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping

from sqlalchemy import Connection, text, update
from sqlalchemy.orm import Session

from hermes.campaign.holdout import SALT
from hermes.campaign.models import SCHEMA_VERSION, Base, InfoRow, SchemaRow

OLDEST = 1
"""The earliest schema that is still brought up to date."""


def create(session: Session) -> None:
    """Makes all tables of a new campaign."""
    Base.metadata.create_all(session.connection())
    session.add(SchemaRow(version=SCHEMA_VERSION))
    _draw_salt(session)


def migrate(session: Session, version: int) -> None:
    """Brings the tables from schema ``version`` (at least `OLDEST`) to `SCHEMA_VERSION`."""
    for step in range(version, SCHEMA_VERSION):
        _STEPS[step](session)
    session.execute(update(SchemaRow).values(version=SCHEMA_VERSION))


def _from_1(session: Session) -> None:
    """Hold-out, reports of runs, confirmed structures, cached scores."""
    connection: Connection = session.connection()
    connection.execute(text("ALTER TABLE images ADD COLUMN holdout BOOLEAN"))
    connection.execute(text("ALTER TABLE training_runs ADD COLUMN report JSON"))
    Base.metadata.create_all(connection)
    # What a run has looked at may be in the weights already: it can measure nothing any more. All other images
    # are assigned when the datastore lists them, since only it knows their patients.
    trained = (
        "SELECT labels.image_id FROM labels "
        "JOIN training_run_labels ON training_run_labels.label_id = labels.id"
    )
    connection.execute(text(f"UPDATE images SET holdout = FALSE WHERE id IN ({trained})"))  # no input in it
    _draw_salt(session)


def _draw_salt(session: Session) -> None:
    session.add(InfoRow(key=SALT, value=secrets.token_hex(16)))


def _from_2(session: Session) -> None:
    """Further tables. Leases are kept per annotator now; those that run are lost, and annotators are offered anew."""
    connection = session.connection()
    connection.execute(text("DROP TABLE IF EXISTS leases"))
    Base.metadata.create_all(connection)


_STEPS: Mapping[int, Callable[[Session], None]] = {1: _from_1, 2: _from_2}
