"""A campaign's state as JSON or CSV, and a database made from it.

Models do not go along. So a run of the campaign that was exported stays on record and has taught nothing here.

Every table goes along, those of later versions too: the list is that of the schema. Leases do not: they are for
the clock and the annotators of one server.
"""

from __future__ import annotations

import base64
import csv
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from sqlalchemy import LargeBinary, Table, insert, select, text, update

from hermes.campaign.database import Database
from hermes.campaign.models import SCHEMA_VERSION, Base, LeaseRow, RunRow, SchemaRow
from hermes.campaign.records import RunState
from hermes.errors import BadRequestError, ConflictError

FORMAT = "hermes-campaign"
_LEFT_OUT = {LeaseRow.__tablename__, SchemaRow.__tablename__}


def write_json(location: str | Path, path: Path) -> dict[str, int]:
    """Write the state of a campaign's database into a JSON file; table -> how many rows."""
    content = {name: list(rows) for name, rows in _tables_of(location)}
    document = {"format": FORMAT, "schema": SCHEMA_VERSION, "tables": content}
    partial = path.with_name(f"{path.name}.part")
    with partial.open("w", encoding="utf-8") as stream:
        json.dump(document, stream, ensure_ascii=False, indent=1)
    partial.replace(path)
    return {name: len(rows) for name, rows in content.items()}


def write_csv(location: str | Path, folder: Path) -> dict[str, int]:
    """Write one CSV file per table into a folder; table -> how many rows. Structured values are JSON in their cell."""
    folder.mkdir(parents=True, exist_ok=True)
    counts = {}
    for name, rows in _tables_of(location):
        columns = [column.name for column in _TABLES[name].columns]
        counts[name] = 0
        with (folder / f"{name}.csv").open("w", newline="", encoding="utf-8") as stream:
            writer = csv.DictWriter(stream, columns)
            writer.writeheader()
            for row in rows:
                writer.writerow({key: _cell(value) for key, value in row.items()})
                counts[name] += 1
    return counts


def read_json(path: Path, location: str | Path) -> dict[str, int]:
    """Make a campaign's database from a JSON file of `write_json`; table -> how many rows.

    Raises:
        BadRequestError: the file is something else, or of a newer version of Hermes.
        ConflictError: there is a campaign already.
    """
    tables = _document(path)
    database = Database(location)
    try:
        with database.write() as session:
            connection = session.connection()
            taken = [
                name for name, table in _state_tables() if connection.execute(select(table).limit(1)).first()
            ]
            if set(taken) - {"campaign_info"}:
                msg = f"Expected a database without a campaign, this one has {', '.join(taken)}. Import into a new folder."
                raise ConflictError(msg)
            connection.execute(_TABLES["campaign_info"].delete())  # the key of the pseudonyms moves along
            for name, table in _state_tables():
                rows = [_row(table, row) for row in tables.get(name, [])]
                if rows:
                    connection.execute(insert(table), rows)
            if connection.dialect.name == "postgresql":
                _continue_numbers(connection)
            connection.execute(update(RunRow).values(state=RunState.IMPORTED.value))
    finally:
        database.close()
    return {name: len(rows) for name, rows in tables.items()}


_TABLES: Mapping[str, Table] = Base.metadata.tables


def _state_tables() -> Iterator[tuple[str, Table]]:
    """The tables, those that others refer to first."""
    for table in Base.metadata.sorted_tables:
        if table.name not in _LEFT_OUT:
            yield table.name, table


def _tables_of(location: str | Path) -> Iterator[tuple[str, Iterator[dict[str, Any]]]]:
    database = Database(location)
    try:
        with database.read() as session:  # one state of all tables
            for name, table in _state_tables():
                order = list(table.primary_key.columns)
                found = session.connection().execute(select(table).order_by(*order))
                yield name, ({k: _plain(v) for k, v in row._mapping.items()} for row in found)
    finally:
        database.close()


def _plain(value: Any) -> Any:
    return {"base64": base64.b64encode(value).decode("ascii")} if isinstance(value, bytes) else value


def _cell(value: Any) -> Any:
    return json.dumps(value, ensure_ascii=False) if isinstance(value, dict | list) else value


def _document(path: Path) -> dict[str, list[dict[str, Any]]]:
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        fits = document["format"] == FORMAT and document["schema"] <= SCHEMA_VERSION
        tables = document["tables"]
    except (ValueError, KeyError, TypeError) as error:
        msg = f"Expected the JSON file of `hermes export`, {path.name!r} is something else."
        raise BadRequestError(msg) from error
    unknown = (
        sorted(set(tables) - {name for name, _ in _state_tables()}) if isinstance(tables, dict) else ["?"]
    )
    if not fits or unknown:
        msg = f"Expected a campaign of schema {SCHEMA_VERSION} or less, {path.name!r} is of another or has {unknown}."
        raise BadRequestError(msg)
    return dict(tables)


def _row(table: Table, row: Mapping[str, Any]) -> dict[str, Any]:
    known = {column.name: column for column in table.columns}
    if not isinstance(row, dict) or not set(row) <= set(known):
        msg = f"Expected rows of the table {table.name!r}, got other columns than {sorted(known)}."
        raise BadRequestError(msg)
    return {
        key: base64.b64decode(value["base64"])
        if isinstance(known[key].type, LargeBinary) and isinstance(value, dict)
        else value
        for key, value in row.items()
    }


def _continue_numbers(connection: Any) -> None:
    """PostgreSQL counts on its own: let it go on after the numbers that came along."""
    for name, table in _state_tables():
        if "id" in table.columns and table.columns["id"].autoincrement is True:
            connection.execute(
                text(
                    f"SELECT setval(pg_get_serial_sequence('{name}', 'id'), coalesce((SELECT max(id) FROM {name}), 1))"
                )
            )
