"""Transactions are all or nothing at every depth; one process owns a store; newer stores are refused."""

import os
import sqlite3
from pathlib import Path

import pytest

from qtrunk.base.errors import StoreError
from qtrunk.kms.journal import RESERVE_OCTETS, Journal


@pytest.fixture
def journal(memory_path: Path) -> Journal:
    made = Journal(memory_path)
    yield made
    made.close()


def put(db: sqlite3.Connection, name: str) -> None:
    db.execute("INSERT INTO meta VALUES (?, x'00')", (name,))


def names(journal: Journal) -> set[str]:
    return journal.read(lambda db: {name for (name,) in db.execute("SELECT name FROM meta")})


def test_what_fails_inside_undoes_only_itself(journal: Journal) -> None:
    done: list[str] = []
    with journal.transaction() as db:
        put(db, "outer")
        journal.on_commit(lambda: done.append("outer"))
        with pytest.raises(ValueError, match="inner"), journal.transaction() as inner:  # noqa: PT012
            put(inner, "inner")
            journal.on_commit(lambda: done.append("inner"))
            raise ValueError("inner")
        assert done == []
    assert names(journal) == {"outer"}
    assert done == ["outer"]


def test_what_fails_outside_undoes_everything(journal: Journal) -> None:
    undone: list[str] = []
    with pytest.raises(ValueError, match="outer"), journal.transaction() as db:  # noqa: PT012
        with journal.transaction():
            put(db, "inner")
            journal.on_rollback(lambda: undone.append("inner"))
        raise ValueError("outer")
    assert names(journal) == set()
    assert undone == ["inner"]


def test_after_the_database_undid_everything_itself_nothing_more_is_committed(journal: Journal) -> None:
    with pytest.raises(StoreError), journal.transaction():  # noqa: PT012
        with pytest.raises(StoreError), journal.transaction() as db:  # noqa: PT012
            put(db, "lost")
            db.execute("ROLLBACK")  # as SQLite does by itself on some errors of the disk
            raise sqlite3.OperationalError("disk I/O error")
        with journal.transaction() as db:
            put(db, "half")
    assert names(journal) == set()
    with journal.transaction() as db:
        put(db, "next")
    assert names(journal) == {"next"}


def test_what_has_a_name_is_read_once_between_transactions(journal: Journal) -> None:
    looks: list[int] = []

    def look(db: sqlite3.Connection) -> int:
        looks.append(1)
        return int(db.execute("SELECT COUNT(*) FROM meta").fetchone()[0])

    assert [journal.read(look, "count"), journal.read(look, "count")] == [0, 0]
    assert len(looks) == 1
    with journal.transaction() as db:
        put(db, "outer")
        assert journal.read(look, "count") == 1, "inside, what was changed so far"
    assert [journal.read(look, "count"), journal.read(look, "count")] == [1, 1]
    with pytest.raises(ValueError, match="no"), journal.transaction() as db:  # noqa: PT012
        put(db, "never")
        assert journal.read(look, "count") == 2
        raise ValueError("no")
    assert journal.read(look, "count") == 1, "what was undone was never known"


def test_an_action_that_the_disk_refuses_is_done_later(journal: Journal) -> None:
    tries: list[int] = []

    def shred() -> None:
        tries.append(1)
        if len(tries) == 1:
            raise OSError(5, "Input/output error")

    with journal.transaction():
        journal.on_commit(shred)
    assert journal.overdue == 1
    journal.tidy()
    assert journal.overdue == 0
    assert len(tries) == 2


def test_a_second_owner_is_refused(journal: Journal, memory_path: Path) -> None:
    with pytest.raises(StoreError, match="in use by another process"):
        Journal(memory_path)
    journal.close()
    Journal(memory_path).close()


def test_a_newer_store_is_refused_and_left_alone(journal: Journal, memory_path: Path) -> None:
    journal.close()
    with sqlite3.connect(memory_path / "store.db") as db:
        db.execute("PRAGMA user_version = 99")
    db.close()
    with pytest.raises(StoreError, match="version 99"):
        Journal(memory_path)
    db = sqlite3.connect(memory_path / "store.db")
    assert db.execute("PRAGMA user_version").fetchone() == (99,)
    db.close()


def test_a_closed_journal_refuses(journal: Journal) -> None:
    journal.close()
    with pytest.raises(StoreError, match="closed"), journal.transaction():
        pass


def test_every_commit_is_flushed_and_deleted_rows_are_overwritten(journal: Journal) -> None:
    pragmas = {
        name: journal.read(lambda db, name=name: db.execute(f"PRAGMA {name}").fetchone()[0])
        for name in ("synchronous", "journal_mode", "secure_delete")
    }
    assert pragmas == {"synchronous": 2, "journal_mode": "wal", "secure_delete": 1}


def test_the_reserve_is_given_back_and_set_aside_again(journal: Journal, memory_path: Path) -> None:
    assert os.stat(memory_path / "reserve").st_blocks * 512 >= RESERVE_OCTETS  # noqa: PTH116
    journal.make_room()
    assert not (memory_path / "reserve").exists()
    journal.tidy()
    assert (memory_path / "reserve").exists()


def test_only_the_owner_may_read_the_store(journal: Journal, memory_path: Path) -> None:
    assert (memory_path / "store.db").stat().st_mode & 0o077 == 0
    assert (memory_path / "reserve").stat().st_mode & 0o077 == 0
