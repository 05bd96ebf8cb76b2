"""The engine below the campaign: opens SQLite (or what a URL names), and hands out short transactions."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock
from sqlalchemy import Connection, Engine, create_engine, event, inspect, select, text
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import DatabaseError
from sqlalchemy.orm import Session

from hermes.campaign import migrations
from hermes.campaign.models import SCHEMA_VERSION, SchemaRow
from hermes.errors import ConflictError, DamagedDatabaseError

BUSY_TIMEOUT_S = 30
"""How long a transaction waits for another process's; transactions are short, so this is generous."""

_CREATION_LOCK = 7_271_071
"""Number of the lock under which one process creates the tables on PostgreSQL; any of our own will do."""

_BEGIN = "hermes_begin"
"""Execution option: the statements that open a transaction on SQLite."""

# Flushed at every commit: a label that was acknowledged survives a power cut.
_DURABLE = ("PRAGMA synchronous=FULL", "BEGIN IMMEDIATE")
# Handed to the operating system at every commit: survives the death of the process, not that of the machine.
_LIGHT = ("PRAGMA synchronous=NORMAL", "BEGIN IMMEDIATE")


class Database:
    """A database with the campaign's tables, made on first use.

    Args:
        location: path of an SQLite file, or a database URL.

    Raises:
        ConflictError: the database has a newer schema than this version of Hermes knows.
        DamagedDatabaseError: the file is damaged; any later transaction may find that, too.
    """

    def __init__(self, location: str | Path) -> None:
        self.url = _url(location)
        self._engine = _engine(self.url)
        try:
            self._create()
        except BaseException:
            self.close()
            raise

    @property
    def may_commit_out_of_order(self) -> bool:
        """Whether a row with a smaller number can appear after one with a larger: not where one writes at a time."""
        return self.url.get_backend_name() != "sqlite"

    def _create(self) -> None:
        path = self.url.database
        if self.url.get_backend_name() != "sqlite" or path is None:
            self._create_tables()
            return
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        # Changing to write-ahead logging does not wait for others, so one process does it at a time.
        with FileLock(f"{path}.lock"):
            with self._noticing_damage():
                raw = self._engine.raw_connection()  # not `connect`, which would open a transaction
                raw.cursor().execute("PRAGMA journal_mode=WAL")
                raw.close()
            self._create_tables()

    def _create_tables(self) -> None:
        with self.write() as session:
            connection = session.connection()
            if connection.dialect.name == "postgresql":
                connection.execute(text(f"SELECT pg_advisory_xact_lock({_CREATION_LOCK})"))
            has_schema = inspect(connection).has_table(SchemaRow.__tablename__)
            version = session.scalar(select(SchemaRow.version)) if has_schema else None
            if version is None:
                migrations.create(session)
            elif migrations.OLDEST <= version < SCHEMA_VERSION:
                migrations.migrate(session, version)
            elif version != SCHEMA_VERSION:
                msg = (
                    f"Expected a campaign database of schema {SCHEMA_VERSION}, got schema {version}: "
                    "open it with the version of Hermes that wrote it, or start a new campaign_dir."
                )
                raise ConflictError(msg)

    @contextmanager
    def read(self) -> Iterator[Session]:
        """A transaction that sees one state of the database and changes nothing."""
        with self._transaction(("BEGIN",)) as session:
            yield session

    @contextmanager
    def write(self, *, durable: bool = True) -> Iterator[Session]:
        """A transaction that holds SQLite's write lock from its start, so that what it read stays true.

        It is kept when the block ends, and undone when the block raises.

        Args:
            durable: whether it must survive a power cut. Leases need not, and are many times faster without.
        """
        with self._transaction(_DURABLE if durable else _LIGHT) as session:
            yield session

    @contextmanager
    def _transaction(self, begin: tuple[str, ...]) -> Iterator[Session]:
        with self._noticing_damage(), self._engine.connect() as connection:
            connection = connection.execution_options(**{_BEGIN: begin})
            with connection.begin(), Session(bind=connection, expire_on_commit=False) as session:
                yield session
                session.flush()

    @contextmanager
    def _noticing_damage(self) -> Iterator[None]:
        try:
            yield
        except (DatabaseError, sqlite3.DatabaseError) as error:
            cause = error.orig if isinstance(error, DatabaseError) else error
            # SQLite has a class of its own for every other trouble (locked, disk full, a rule of the schema).
            if type(cause) is not sqlite3.DatabaseError:
                raise
            path = self.url.database
            msg = (
                f"The campaign's database {path} is damaged ({cause}). Stop the server, move the file away together with those "
                "beside it that end in -wal and -shm, and restore it from a backup, or read in what `hermes export` wrote: "
                "hermes import-campaign STUDIES FOLDER. The label files in the folder labels beside it are not touched."
            )
            raise DamagedDatabaseError(msg) from error

    def close(self) -> None:
        """Closes the connections; the object is not used afterwards."""
        self._engine.dispose()


def _url(location: str | Path) -> URL:
    if isinstance(location, str) and "://" in location:
        return make_url(location)
    return URL.create("sqlite", database=str(Path(location).absolute()))


def _engine(url: URL) -> Engine:
    if url.get_backend_name() != "sqlite":
        return create_engine(url, pool_pre_ping=True)
    # isolation_level None leaves BEGIN to us: the driver's own opens a transaction that cannot be written in
    # when another process has written since it read.
    engine = create_engine(url, connect_args={"isolation_level": None, "timeout": BUSY_TIMEOUT_S})
    event.listen(engine, "connect", _set_up_sqlite)
    event.listen(engine, "begin", _begin_sqlite)
    return engine


def _set_up_sqlite(connection: Any, _record: object) -> None:
    cursor = connection.cursor()
    cursor.execute("PRAGMA foreign_keys=ON")
    cursor.close()


def _begin_sqlite(connection: Connection) -> None:
    for statement in connection.get_execution_options().get(_BEGIN, ("BEGIN",)):
        connection.exec_driver_sql(statement)
