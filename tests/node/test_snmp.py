"""SNMP notifications, taken by Net-SNMP's snmptrapd; the MIB, compiled; the identity of the sender."""

import contextlib
import os
import re
import shutil
import socket
import subprocess
import time

import msgspec
import pytest

from qtrunk.node.sinks import snmp
from qtrunk.node.sinks.notice import Notice, SinkError
from qtrunk.node.sinks.settings import SnmpSettings
from qtrunk.node.sinks.snmp import Engine, Snmp, engine_id, varbinds

pytest.importorskip("pysnmp")
TRAPD = shutil.which("snmptrapd") or shutil.which("snmptrapd", path="/usr/sbin")
needs_net_snmp = pytest.mark.skipif(TRAPD is None, reason="snmptrapd is not installed")
NOTICE = Notice(
    network="line",
    node="a",
    id="0123456789ab",
    resource="a-b",
    type="QuantumChannelLoss",
    severity="critical",
    text="0 % of the expected clicks",
    time="2026-11-28T16:00:00.000Z",
    probable_cause="lossOfSignal",
    remedy="measure the fibre",
    impacted=["pool x to y", "pool y to x"],
    root_causes=[],
)
CLEARED = msgspec.structs.replace(NOTICE, severity="cleared")


class Trapd:
    """A running snmptrapd; `lines` waits for that many notifications."""

    def __init__(self, log):
        self.log = log
        self.port = 0

    def lines(self, count, within_s=20.0):
        deadline_s = time.monotonic() + within_s
        while len(found := self.said()) < count:
            assert time.monotonic() < deadline_s, self.log.read_text()
            time.sleep(0.05)
        return found

    def said(self):
        return [line for line in self.log.read_text().splitlines() if line.startswith(".1.3.6.1.2.1.1.3.0")]


@contextlib.contextmanager
def trapd(directory, *configuration):
    """Runs one with a configuration of its own, and none of the machine's."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    (directory / "trapd.conf").write_text("\n".join([*configuration, ""]))
    made = Trapd(directory / "trapd.log")
    made.port = port
    environment = {**os.environ, "SNMP_PERSISTENT_DIR": str(directory / "state"), "MIBS": ""}
    command = [TRAPD, "-f", "-n", "-C", "-c", str(directory / "trapd.conf"), "-Lf", str(made.log), "-On", "-OQ"]
    with subprocess.Popen([*command, "-F", "%v\n", f"udp:127.0.0.1:{port}"], env=environment) as process:
        try:
            deadline_s = time.monotonic() + 20
            while not (made.log.exists() and "NET-SNMP" in made.log.read_text()):
                assert process.poll() is None
                assert time.monotonic() < deadline_s
                time.sleep(0.05)
            yield made
        finally:
            process.terminate()
            process.wait(10)


@pytest.fixture
def secrets(tmp_path):
    for name, text in (("auth", "auth-passphrase"), ("priv", "priv-passphrase"), ("community", "trunk")):
        (tmp_path / name).write_text(text + "\n")
    return tmp_path


def version_3(directory, port, **more):
    return SnmpSettings(
        host="127.0.0.1",
        port=port,
        user="qtrunk",
        authentication_file=str(directory / "auth"),
        privacy_file=str(directory / "priv"),
        **more,
    )


def tell(settings, directory, *notices):
    """As a process of its own does."""
    with contextlib.closing(Snmp(settings, Engine(directory, "line", "a"))) as sink:
        sink.send(list(notices))


def user(engine=None, authentication="SHA-256", privacy="AES"):
    where = "" if engine is None else f"-e 0x{engine.hex()} "
    return (
        f"createUser {where}qtrunk {authentication} auth-passphrase {privacy} priv-passphrase",
        "authUser log qtrunk priv",
    )


def expected(notice):
    """A notification as snmptrapd writes it, without the time of the sender's life."""
    what = snmp.CLEARED if notice.severity == "cleared" else snmp.RAISED
    values = [
        f".{name} = " + (str(value) if isinstance(value, int) else f'"{value}"') for name, value in varbinds(notice)
    ]
    return [f".1.3.6.1.6.3.1.1.4.1.0 = .{what}", *values]


def without_uptime(line):
    return line.split("\t")[1:]


@needs_net_snmp
@pytest.mark.parametrize(
    ("authentication", "privacy", "names"),
    [("sha-256", "aes-128", ("SHA-256", "AES")), ("sha-512", "aes-256", ("SHA-512", "AES-256"))],
)
def test_a_trap_of_version_3_is_authenticated_and_private(secrets, authentication, privacy, names):
    with trapd(secrets, *user(engine_id("line", "a"), *names)) as receiver:
        settings = version_3(secrets, receiver.port, authentication=authentication, privacy=privacy)
        tell(settings, secrets, NOTICE, CLEARED)
        lines = receiver.lines(2)
        assert [without_uptime(line) for line in lines] == [expected(NOTICE), expected(CLEARED)]
        # A process that comes after is a later one of the same engine.
        tell(settings, secrets, NOTICE)
        assert without_uptime(receiver.lines(3)[2]) == expected(NOTICE)
        # Who does not know the passphrase tells nothing.
        (secrets / "auth").write_text("another passphrase")
        tell(settings, secrets, NOTICE)
        (secrets / "auth").write_text("auth-passphrase")
        tell(settings, secrets, CLEARED)
        assert without_uptime(receiver.lines(4)[3]) == expected(CLEARED)


@needs_net_snmp
def test_an_inform_is_confirmed_by_a_receiver_that_needs_no_engine_id_and_missed_without_one(secrets, monkeypatch):
    with trapd(secrets, *user()) as receiver:
        settings = version_3(secrets, receiver.port, is_confirmed=True)
        tell(settings, secrets, NOTICE)
        assert without_uptime(receiver.lines(1)[0]) == expected(NOTICE)
        (secrets / "priv").write_text("another passphrase")
        monkeypatch.setattr(snmp, "TIMEOUT_S", 0.3)
        with pytest.raises(SinkError) as caught:
            tell(settings, secrets, NOTICE)
        assert "passphrase" not in str(caught.value)
    with pytest.raises(SinkError):
        tell(settings, secrets, NOTICE)


@needs_net_snmp
@pytest.mark.parametrize("is_confirmed", [False, True])
def test_version_2c(secrets, is_confirmed):
    with trapd(secrets, "authCommunity log trunk") as receiver:
        settings = SnmpSettings(
            host="localhost",
            port=receiver.port,
            version="2c",
            community_file=str(secrets / "community"),
            is_confirmed=is_confirmed,
        )
        tell(settings, secrets, NOTICE)
        assert without_uptime(receiver.lines(1)[0]) == expected(NOTICE)


def test_boots_are_counted_on_the_disk_before_they_are_used(tmp_path):
    assert [Engine(tmp_path, "line", "a").boots() for _ in range(3)] == [1, 2, 3]
    one = Engine(tmp_path, "line", "a")
    assert one.boots() == one.boots() == 4
    (tmp_path / "snmp-boots").write_text("rubbish")
    with pytest.raises(SinkError, match="snmp-boots"):
        Engine(tmp_path, "line", "a").boots()
    with pytest.raises(SinkError, match="snmp-boots"):
        Engine(tmp_path / "nowhere", "line", "a").boots()


def test_the_engine_id_is_a_nodes_own_and_for_ever():
    assert engine_id("line", "a").hex() == "80007ed905e8eb2a30baac257c311680d3"
    assert len({engine_id(network, node) for network in ("x", "y") for node in ("a", "b")}) == 4


def test_short_passphrases_are_refused(secrets):
    (secrets / "auth").write_text("s3cr3t")
    with pytest.raises(SinkError, match="8 octets") as caught:
        tell(version_3(secrets, 9), secrets, NOTICE)
    assert "s3cr3t" not in str(caught.value)


def test_a_long_text_is_cut_between_characters():
    values = dict(varbinds(msgspec.structs.replace(NOTICE, text="é" * 400)))
    text = values[f"{snmp.OBJECTS}.8.0"]
    assert len(text.encode()) <= snmp.TEXT_OCTETS_MAX
    assert re.fullmatch("é+…", text)


def test_the_mib_names_what_is_sent():
    text = snmp.MIB.read_text()
    objects = re.findall(r"^(qtrunkAlarm\w+) OBJECT-TYPE.*?::= \{ qtrunkAlarm (\d+) \}", text, re.DOTALL | re.MULTILINE)
    assert [f"{snmp.OBJECTS}.{number}.0" for _, number in objects] == [name for name, _ in varbinds(NOTICE)]
    for name, oid in (("qtrunkAlarmRaised", snmp.RAISED), ("qtrunkAlarmCleared", snmp.CLEARED)):
        found = re.search(
            name + r" NOTIFICATION-TYPE\s+OBJECTS \{(.*?)\}.*?::= \{ qtrunkAlarmNotifications (\d) \}", text, re.DOTALL
        )
        assert found
        assert found[1].replace(",", " ").split() == [object_ for object_, _ in objects]
        assert oid == f"{snmp.ROOT}.0.{found[2]}"
    assert f"::= {{ enterprises {snmp.ROOT.removeprefix('1.3.6.1.4.1.').replace('.', ' ')} }}" in text
    severities = {name: int(number) for name, number in re.findall(r"(\w+)\((\d)\)", text)}
    assert severities == snmp.SEVERITIES
