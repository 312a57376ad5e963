"""The controllers' lease and store, on files and on a real PostgreSQL."""

import asyncio
import multiprocessing
import os
import shutil
import socket
import subprocess
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import msgspec
import pytest

from qtrunk.api.alarms import Said
from qtrunk.base.errors import ConfigError, RequestRefused, StoreError
from qtrunk.control.alarms import alarm_id
from qtrunk.control.telemetry import Telemetry, decode
from qtrunk.node.controller.database import Postgres, open_database
from qtrunk.node.controller.lease import FileLease, RowLease
from qtrunk.node.controller.process import ControllerRunner
from qtrunk.node.controller.store import KEPT_S, ControlStore

BINARIES = sorted(Path("/usr/lib/postgresql").glob("*/bin"))


@pytest.fixture(scope="module")
def postgresql():
    """A server of our own in a temporary directory, as the user postgres where we are root."""
    if not BINARIES:
        pytest.skip("PostgreSQL is not installed: apt-get install postgresql")
    directory = Path(tempfile.mkdtemp(prefix="qtpg"))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    user = ["runuser", "-u", "postgres", "--"] if os.getuid() == 0 else []
    if user:
        shutil.chown(directory, "postgres")

    def run(*command):
        subprocess.run([*user, *map(str, command)], check=True, capture_output=True, cwd=directory)

    data = directory / "data"
    run(BINARIES[-1] / "initdb", "-D", data, "-A", "trust", "-U", "qtrunk", "-N")
    options = f"-p {port} -c listen_addresses=127.0.0.1 -k {directory} -F"
    run(BINARIES[-1] / "pg_ctl", "-D", data, "-o", options, "-l", directory / "log", "-w", "start")
    try:
        yield f"postgresql://qtrunk@127.0.0.1:{port}/postgres"
    finally:
        run(BINARIES[-1] / "pg_ctl", "-D", data, "-m", "immediate", "-w", "stop")
        shutil.rmtree(directory)


@pytest.fixture(params=["sqlite", "postgresql"])
def database(request, tmp_path):
    where = str(tmp_path / "control.db") if request.param == "sqlite" else request.getfixturevalue("postgresql")
    made = open_database(where)
    yield made
    for table in ("topology", "orders", "telemetry", "alarms", "audit_heads"):
        made.run(f"DROP TABLE IF EXISTS {table}")
    made.close()


def test_a_word_goes_to_every_node_that_has_the_alarm():
    class Site:
        def __init__(self, error=None):
            self.error, self.heard = error, []

        def ask(self, *request):
            self.heard.append(request)
            if self.error is not None:
                raise self.error

    def says(node, *alarms):
        up = [
            {"resource": one, "type": "LinkOff", "severity": "major", "text": "", "raised_unix_s": 1} for one in alarms
        ]
        return decode(msgspec.json.encode({"node": node, "alarms": {"shelved": up}}), node)

    sites = {"a": Site(), "b": Site(StoreError("its disk is full")), "c": Site(), "d": Site()}
    heard = {"a": says("a", "a-b"), "b": says("b", "b-c", "a-b"), "c": says("c", "b-c"), "d": None}
    runner = object.__new__(ControllerRunner)
    runner._services, runner._pool = sites, ThreadPoolExecutor(2)
    runner.clock = SimpleNamespace(monotonic_s=lambda: 0.0)
    runner.machine = SimpleNamespace(telemetry=lambda node, _now_s: heard[node])
    id_ = alarm_id("a-b", "LinkOff")
    answer = asyncio.run(runner.say(id_, "ack", Said("crew is out", operator="ada")))
    assert answer == {"word": "ack", "nodes": ["a"], "refused": {"b": "its disk is full"}}
    order = ("POST", f"/admin/v1/alarms/{id_}/ack", {"text": "crew is out", "operator": "ada"})
    assert [site.heard for site in sites.values()] == [[order], [order], [], []]
    sites["a"].error = sites["b"].error
    with pytest.raises(StoreError, match="disk is full"):
        asyncio.run(runner.say(id_, "ack", Said("x", operator="ada")))
    with pytest.raises(RequestRefused, match="no node that answers"):
        asyncio.run(runner.say("0" * 12, "ack", Said("x", operator="ada")))


def test_after_a_long_round_only_the_lease_is_kept_up_for_a_while():
    now_s, asked, held = [0.0], [], []

    class Slow:
        def ask(self, *_request):
            asked.append(now_s[0])
            now_s[0] += 1.0
            raise StoreError("its disk is full")

    async def hold():
        held.append(now_s[0])

    runner = object.__new__(ControllerRunner)
    runner._services, runner._pool, runner.problems = {"a": Slow()}, ThreadPoolExecutor(1), {}
    runner._rest_until_s, runner._forgot_s, runner._keep_lease = float("-inf"), 0.0, hold
    runner.clock = SimpleNamespace(monotonic_s=lambda: now_s[0])
    runner.machine = SimpleNamespace(is_leading=True, version=1, tick=lambda _now_s: [])
    for turn_s in (0.0, 2.0, 4.0, 6.0):
        now_s[0] = turn_s
        asyncio.run(runner.step())
    assert held == [0.0, 2.0, 4.0, 6.0]
    assert asked == [0.0, 6.0]


# ── leases ──


def test_a_file_lease_is_one_holders_and_its_token_grows(tmp_path):
    path = tmp_path / "control.lease"
    one, two = FileLease(path), FileLease(path)
    assert (one.hold(), two.hold(), one.hold()) == (1, 0, 1)
    one.release()
    assert (two.hold(), one.hold()) == (2, 0)
    two.release()
    path.write_text("nonsense")
    with pytest.raises(StoreError, match="does not read"):
        one.hold()
    with pytest.raises(StoreError):
        FileLease(tmp_path / "away" / "lease").hold()


def _hold_and_die(path):
    assert FileLease(path).hold() == 1
    os.kill(os.getpid(), 9)


def test_a_holder_that_is_killed_lets_go(tmp_path):
    path = tmp_path / "control.lease"
    child = multiprocessing.get_context("spawn").Process(target=_hold_and_die, args=(path,))
    child.start()
    child.join(30)
    assert child.exitcode == -9
    lease = FileLease(path)
    assert lease.hold() == 2
    lease.release()


def test_a_row_of_postgresql_is_one_holders_until_it_is_not_renewed(postgresql):
    first, second = Postgres(postgresql), Postgres(postgresql)
    first.run("DROP TABLE IF EXISTS lease")
    one, two = RowLease(first, "one", ttl_s=1.5), RowLease(second, "two", ttl_s=1.5)
    assert (one.hold(), two.hold(), one.hold()) == (1, 0, 1)
    for _ in range(8):
        time.sleep(0.3)
        assert (one.hold(), two.hold()) == (1, 0)
    deadline_s = time.monotonic() + 30
    while not (token := two.hold()):
        assert time.monotonic() < deadline_s
        time.sleep(0.1)
    # The one before was away for too long: it has lost it, and cannot have it back while the other renews.
    assert (token, one.hold(), two.hold()) == (2, 0, 2)
    two.release()
    assert one.hold() == 3
    # A process of the same name that started anew is another holder.
    assert RowLease(second, "one again", ttl_s=1.5).hold() == 0
    first.close()
    second.close()


def test_two_that_reach_for_a_free_row_at_once_never_both_have_it(postgresql):
    from concurrent.futures import ThreadPoolExecutor

    databases = [Postgres(postgresql) for _ in range(6)]
    databases[0].run("DROP TABLE IF EXISTS lease")
    leases = [RowLease(database, f"holder {number}", ttl_s=60) for number, database in enumerate(databases)]
    with ThreadPoolExecutor(6) as pool:
        for number in range(1, 21):
            tokens = list(pool.map(lambda lease: lease.hold(), leases))
            assert sorted(tokens) == [0] * 5 + [number]
            leases[tokens.index(number)].release()
    for database in databases:
        database.close()


def test_a_server_that_is_away_is_a_store_error_without_its_password(tmp_path):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    database = Postgres(f"postgresql://qtrunk:hunter2@127.0.0.1:{port}/x")
    with pytest.raises(StoreError) as caught:
        database.run("SELECT 1")
    assert "hunter2" not in str(caught.value)


def test_a_connection_that_was_cut_is_made_anew(postgresql):
    one, two = Postgres(postgresql), Postgres(postgresql)
    (pid,) = one.run("SELECT pg_backend_pid()")[0]
    two.run("SELECT pg_terminate_backend(?)", pid)
    with pytest.raises(StoreError):
        one.run("SELECT 1")
    assert one.run("SELECT 1") == [(1,)]
    one.close()
    two.close()


def test_without_psycopg_the_address_is_refused(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(ConfigError):
        open_database("postgresql://x")


# ── the store ──


def said(**more):
    document = {"node": "a", "audit": {"sequence": 3, "hash": "ab"}, **more}
    return msgspec.json.decode(msgspec.json.encode(document), type=Telemetry)


ALARM = {"resource": "a-b", "type": "LinkOff", "severity": "major", "text": "dark", "raised_unix_s": 5.0}


def test_who_takes_over_knows_what_the_one_before_knew(database):
    store = ControlStore(database)
    assert store.note_topology({"name": "x"}, 1.0) == 1
    assert store.note_topology({"name": "x"}, 2.0) == 1
    assert store.note_topology({"name": "y"}, 3.0) == 2
    assert store.last_version() == 0
    store.note_orders(1, 4, "one", {"a": {}}, 1.0)
    store.note_orders(1, 4, "one", {"a": {}}, 1.0)
    again = ControlStore(database)
    assert again.last_version() == 4


def test_alarms_begin_and_end_and_are_kept_for_a_while(database):
    store = ControlStore(database)
    store.note_telemetry(said(alarms={"active": [ALARM]}), 10.0)
    store.note_telemetry(said(alarms={"active": [ALARM]}), 20.0)
    (alarm,) = store.alarms()
    assert (alarm["node"], alarm["text"], alarm["cleared_unix_s"]) == ("a", "dark", None)
    store.note_telemetry(said(), 30.0)
    assert store.alarms()[0]["cleared_unix_s"] == 30.0
    store.note_telemetry(said(alarms={"active": [{**ALARM, "raised_unix_s": 40.0}]}), 40.0)
    assert len(store.alarms()) == 2
    store.forget(40.0 + KEPT_S + 1)
    assert [one["raised_unix_s"] for one in store.alarms()] == [40.0]
    assert database.run("SELECT count(*) FROM telemetry") == [(0,)]


def test_an_audit_log_that_was_changed_is_seen(database):
    store = ControlStore(database)
    store.note_telemetry(said(), 1.0)
    assert not store.altered_audit(said())
    assert not store.altered_audit(said(audit={"sequence": 4, "hash": "cd"}))
    assert store.altered_audit(said(audit={"sequence": 3, "hash": "ff"}))
    assert store.altered_audit(said(audit={"sequence": 2, "hash": "aa"}))
