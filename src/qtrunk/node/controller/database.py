"""Two engines behind one small face: SQLite for one machine, PostgreSQL for many. Every statement is both's.

Placeholders are `?`. Errors are StoreError; after one the connection is made anew at the next statement.
"""

import sqlite3
import threading
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

from qtrunk.base.errors import ConfigError, StoreError

Row = tuple[Any, ...]
TIMEOUT_S = 5


class Database(Protocol):
    """One connection; for one thread at a time, which it sees to itself."""

    def run(self, statement: str, *values: object) -> list[Row]:
        """One statement, durable on return; its rows, if it gives any."""

    def close(self) -> None:
        """Let go of it."""


def open_database(where: str) -> Database:
    """The database at a path or a `postgresql://` address."""
    if where.startswith(("postgresql://", "postgres://")):
        return Postgres(where)
    return Sqlite(Path(where))


class Sqlite:
    """A file. Several processes may share it."""

    def __init__(self, path: Path) -> None:
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._db = sqlite3.connect(path, timeout=TIMEOUT_S, isolation_level=None, check_same_thread=False)
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute("PRAGMA synchronous=FULL")
        except (OSError, sqlite3.Error) as error:
            raise StoreError(f"{path}: {error}") from error
        self._lock = threading.Lock()

    def run(self, statement: str, *values: object) -> list[Row]:
        """See Database."""
        try:
            with self._lock:
                return list(self._db.execute(statement, values))
        except sqlite3.Error as error:
            raise StoreError(f"controller's store: {error}") from error

    def close(self) -> None:
        """See Database."""
        self._db.close()


class Postgres:
    """A server, by psycopg (an optional dependency: `pip install qtrunk[postgresql]`)."""

    def __init__(self, address: str) -> None:
        try:
            self._psycopg: Any = import_module("psycopg")
        except ImportError as error:
            text = "store: postgresql needs psycopg: pip install 'qtrunk[postgresql]'"
            raise ConfigError([text]) from error
        self._address = address
        self._lock = threading.Lock()
        self._connection: Any = None

    def run(self, statement: str, *values: object) -> list[Row]:
        """See Database."""
        with self._lock:
            try:
                if self._connection is None or self._connection.closed:
                    self._connection = self._psycopg.connect(
                        self._address,
                        autocommit=True,
                        connect_timeout=TIMEOUT_S,
                        options=f"-c statement_timeout={TIMEOUT_S * 1000}",
                    )
                cursor = self._connection.execute(statement.replace("?", "%s"), values)
                return list(cursor.fetchall()) if cursor.description else []
            except self._psycopg.Error as error:
                # The address may hold a password: it is in no message.
                if isinstance(error, self._psycopg.OperationalError | self._psycopg.InterfaceError):
                    self._drop()
                raise StoreError(f"controller's store: PostgreSQL: {type(error).__name__}") from error

    def close(self) -> None:
        """See Database."""
        with self._lock:
            self._drop()

    def _drop(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None


def script(database: Database, statements: Sequence[str]) -> None:
    """Several statements, one after the other."""
    for statement in statements:
        database.run(statement)
