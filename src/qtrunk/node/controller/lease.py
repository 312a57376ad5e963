"""Who leads: one lease, and a token that grows with every new holder, so that nodes can tell the latest.

On one machine a lock on a file, which the kernel lets go of when the holder dies, and the token in the file. Past one
machine a row in PostgreSQL that must be renewed, by the server's clock; who does not renew in time has lost it, and
another takes it with the next token. A holder that was paused for long may still believe that it leads: its orders have
an older token, and nodes refuse them.
"""

import fcntl
import os
from pathlib import Path
from typing import Protocol

from qtrunk.base.errors import StoreError
from qtrunk.node.controller.database import Database

TTL_S = 6.0
"""A row that was not renewed for so long is free."""


class Lease(Protocol):
    """One controller's hand at the lease."""

    def hold(self) -> int:
        """Take it, or keep it up; the token, or 0 while another has it. StoreError: nobody can tell, so not held."""

    def release(self) -> None:
        """Let another have it at once."""


class FileLease:
    """A lease among the processes of one machine."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._descriptor: int | None = None
        self._token = 0

    def hold(self) -> int:
        """See Lease."""
        if self._descriptor is not None:
            return self._token
        try:
            descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise StoreError(f"{self._path}: {error.strerror}") from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            text = os.pread(descriptor, 32, 0).decode("ascii", "replace").strip()
            if text and not text.isdigit():
                raise StoreError(f"{self._path}: its token does not read")
            token = int(text or "0") + 1
            os.pwrite(descriptor, b"%d\n" % token, 0)
            os.fsync(descriptor)
        except BlockingIOError:
            os.close(descriptor)
            return 0
        except OSError as error:
            os.close(descriptor)
            raise StoreError(f"{self._path}: {error.strerror}") from error
        except BaseException:
            os.close(descriptor)
            raise
        self._descriptor, self._token = descriptor, token
        return token

    def release(self) -> None:
        """See Lease."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


class RowLease:
    """A lease among machines: one row of PostgreSQL."""

    def __init__(self, database: Database, holder: str, ttl_s: float = TTL_S) -> None:
        """`holder` tells this process from every other one, also from an earlier one of the same name."""
        self._database = database
        self._holder = holder
        self._ttl_s = ttl_s
        database.run(
            "CREATE TABLE IF NOT EXISTS lease (id integer PRIMARY KEY CHECK (id = 1), token bigint NOT NULL, "
            "holder text NOT NULL, expires timestamptz NOT NULL)"
        )
        database.run("INSERT INTO lease VALUES (1, 0, '', now()) ON CONFLICT (id) DO NOTHING")

    def hold(self) -> int:
        """See Lease. One statement each, so two can never both have it."""
        rows = self._database.run(
            "UPDATE lease SET expires = now() + ? * interval '1 second' WHERE holder = ? AND expires > now() "
            "RETURNING token",
            *(self._ttl_s, self._holder),
        ) or self._database.run(
            "UPDATE lease SET token = token + 1, holder = ?, expires = now() + ? * interval '1 second' "
            "WHERE expires <= now() RETURNING token",
            *(self._holder, self._ttl_s),
        )
        return int(rows[0][0]) if rows else 0

    def release(self) -> None:
        """See Lease."""
        self._database.run("UPDATE lease SET expires = now() WHERE holder = ?", self._holder)
