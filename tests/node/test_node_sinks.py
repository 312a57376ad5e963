"""A node with receivers in its `alarms.toml`: an alarm that comes and goes reaches each of them."""

import asyncio
import socket
from pathlib import Path

import msgspec
import pytest
from sink_kit import mail_server, stream_server, web_server

from qtrunk.base.errors import ConfigError
from qtrunk.config import network
from qtrunk.node import custody
from qtrunk.node.ca.identity import Kind
from qtrunk.node.config import Address, NodeConfig
from qtrunk.node.pki import LabPki
from qtrunk.node.sinks import dispatch

FILE = """
name = "one"
trunks = [["a", "z"]]
saes = ["alice@a", "bob@a"]
[link]
length_km = 20
"""
RECEIVERS = """
[webhook.chat]
url = "https://localhost:{web}/hook"
ca_certificate = "{ca}"
[syslog.noc]
host = "localhost"
port = {log}
transport = "tls"
ca_certificate = "{ca}"
[snmp.noc]
host = "127.0.0.1"
port = {traps}
version = "2c"
community_file = "{community}"
[mail.noc]
host = "localhost"
port = {mail}
sender = "qtrunk@example.org"
to = ["noc@example.org"]
interval_s = 0.0
ca_certificate = "{ca}"
"""


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("localhost", 0))
        return listener.getsockname()[1]


@pytest.fixture
def node(tmp_path, monkeypatch):
    """A node's configuration, and credentials for servers."""
    monkeypatch.setattr(dispatch, "SETTLE_S", 0.1)
    monkeypatch.setattr(custody, "ALARM_PERIOD_S", 0.05)
    monkeypatch.setattr("qtrunk.node.trust.CHECK_PERIOD_S", 0.05)
    pki = LabPki(tmp_path / "pki")
    own = pki.credentials(tmp_path / "a", Kind.NODE, "a")
    server = pki.credentials(tmp_path / "server", Kind.NODE, "localhost")
    pki.close()
    config = NodeConfig(
        node="a",
        directory=str(tmp_path / "a"),
        key_api=Address("localhost", free_port()),
        admin_api=Address("localhost", free_port()),
        inter_node=Address("localhost", free_port()),
        links=[],
        topology=network.load(FILE).to_dict(),
        **own.as_json(),
    )
    return config, server


def test_an_alarm_that_comes_and_goes_reaches_every_receiver(node):
    config, server = node
    certificate = Path(config.certificate)

    async def scenario(web, log, mail):
        running = custody.Custody(config)
        await running.start()
        try:
            octets = certificate.read_bytes()
            certificate.write_bytes(b"rubbish")
            for received in (web, log, mail):
                await asyncio.to_thread(received.wait, 1)
            certificate.write_bytes(octets)
            for received in (web, log, mail):
                await asyncio.to_thread(received.wait, 2)
        finally:
            await running.stop()

    with (
        web_server(server, []) as (web_port, web),
        stream_server(server) as (log_port, log),
        mail_server(server) as (mail_port, mail),
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as traps,
    ):
        traps.bind(("127.0.0.1", 0))
        traps.settimeout(20)
        community = Path(config.directory) / "community"
        community.write_text("trunk")
        ports = {"web": web_port, "log": log_port, "mail": mail_port, "traps": traps.getsockname()[1]}
        text = RECEIVERS.format(**ports, ca=server.ca_certificate, community=community)
        (Path(config.directory) / "alarms.toml").write_text(text)
        asyncio.run(scenario(web, log, mail))
        datagrams = [traps.recv(65536) for _ in range(2)]
    notices = [msgspec.json.decode(body) for _, _, _, body in web.items]
    assert [(one["network"], one["node"], one["type"], one["severity"]) for one in notices] == [
        ("one", "a", "CertificateUnreadable", "major"),
        ("one", "a", "CertificateUnreadable", "cleared"),
    ]
    for number, (severity, message, (_, text)) in enumerate(
        zip((b"major", b"cleared"), log.items, mail.items, strict=True)
    ):
        assert message.startswith((b"<130>1 ", b"<133>1 ")[number])
        assert b'perceivedSeverity="' + severity in message
        # The OIDs of qtrunkAlarmRaised and qtrunkAlarmCleared, as BER has them (test_snmp has a receiver that decodes).
        assert bytes([0x2B, 6, 1, 4, 1, 0x81, 0xFD, 0x59, 1, 0, 1 + number]) in datagrams[number]
        assert f"Subject: [one a] {severity.decode()}: CertificateUnreadable on certificate" in text


def test_a_node_with_a_mistake_in_its_receivers_does_not_start(node):
    config, _ = node
    (Path(config.directory) / "alarms.toml").write_text('[webhook.chat]\nurl = "http://localhost/"\n')
    with pytest.raises(ConfigError, match=r"webhook\.chat\.url"):
        custody.Custody(config)
