"""Every kind of receiver with a real one on the loopback interface; who is told what; what happens without one."""

import logging
import re
import socket

import msgspec
import pytest
from sink_kit import Received, mail_server, stream_server, web_server

from qtrunk.base.errors import ConfigError
from qtrunk.node.alarms import AlarmBoard
from qtrunk.node.ca.identity import Kind
from qtrunk.node.pki import LabPki
from qtrunk.node.sinks import dispatch
from qtrunk.node.sinks.mail import Mail, digest
from qtrunk.node.sinks.notice import Notice, SinkError
from qtrunk.node.sinks.settings import MailSettings, SinkSettings, SyslogSettings, WebhookSettings, load
from qtrunk.node.sinks.syslog import Syslog, format_message
from qtrunk.node.sinks.webhook import Webhook

NOTICE = Notice(
    network="line",
    node="a",
    id="0123456789ab",
    resource="a-b",
    type="QuantumChannelLoss",
    severity="critical",
    text='dark: "0 %" of the clicks]\n<1>1 forged',
    time="2026-11-28T16:00:00.000Z",
    probable_cause="lossOfSignal",
    remedy="measure the fibre",
    impacted=["pool x to y"],
    root_causes=[],
)


@pytest.fixture(scope="module")
def credentials(tmp_path_factory):
    directory = tmp_path_factory.mktemp("pki")
    pki = LabPki(directory / "pki")
    made = pki.credentials(directory / "server", Kind.NODE, "localhost")
    pki.close()
    return made


def webhook(port, credentials, **more):
    url = f"https://localhost:{port}/hook/s3cret?key=s3cret"
    return Webhook(WebhookSettings(url=url, ca_certificate=str(credentials.ca_certificate), **more))


def test_a_webhook_gets_json_with_the_token_of_the_file(credentials, tmp_path):
    (tmp_path / "token").write_text("t0ken\n")
    with web_server(credentials, []) as (port, received):
        webhook(port, credentials, token_file=str(tmp_path / "token")).send([NOTICE])
        path, token, _, body = received.wait(1)[0]
    assert (path, token) == ("/hook/s3cret?key=s3cret", "Bearer t0ken")
    assert msgspec.json.decode(body, type=Notice) == NOTICE


@pytest.mark.parametrize(("status", "is_final"), [(500, False), (503, False), (429, False), (400, True), (302, True)])
def test_what_a_webhook_refuses_is_tried_again_or_not_and_no_secret_is_told(credentials, status, is_final):
    with web_server(credentials, [status]) as (port, _), pytest.raises(SinkError) as caught:
        webhook(port, credentials).send([NOTICE])
    assert caught.value.is_final is is_final
    assert "s3cret" not in str(caught.value)


def test_a_webhook_with_a_certificate_of_somebody_else_gets_nothing(credentials, tmp_path):
    other = LabPki(tmp_path / "pki")
    other.close()
    with web_server(credentials, []) as (port, received):
        settings = WebhookSettings(url=f"https://localhost:{port}/", ca_certificate=str(tmp_path / "pki" / "ca.pem"))
        with pytest.raises(SinkError, match="SSLCert"):
            Webhook(settings).send([NOTICE])
        assert received.items == []


# ── syslog ──────────────────────────────────────────────────────────────────────────────────────────────────────────

HEADER = re.compile(
    rb"<129>1 2026-11-28T16:00:00\.000Z \S+ qtrunk \d+ QuantumChannelLoss "
    rb'\[alarm resource="a-b" probableCause="lossOfSignal" perceivedSeverity="critical"\]'
    rb'\[qtrunk@32473 network="line" node="a" id="0123456789ab" type="QuantumChannelLoss" '
    rb'impacted="pool x to y" rootCause=""\] \xef\xbb\xbf(.*)',
    re.DOTALL,
)


def test_a_syslog_message_is_one_line_of_rfc_5424_with_the_severities_of_rfc_5674():
    message = format_message(NOTICE, 16, "host", 7)
    match = HEADER.fullmatch(message)
    assert match
    assert match[1] == b'dark: "0 %" of the clicks] <1>1 forged'
    for severity, number in (("major", 130), ("minor", 131), ("warning", 132), ("cleared", 133)):
        changed = msgspec.structs.replace(NOTICE, severity=severity)
        assert format_message(changed, 16, "h", 1).startswith(f"<{number}>1 ".encode())
    nasty = msgspec.structs.replace(NOTICE, resource='a"]\\\n')
    assert b'resource="a\\"\\]\\\\"' in format_message(nasty, 0, "h", 1)


def test_syslog_over_udp():
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as receiver:
        receiver.bind(("127.0.0.1", 0))
        receiver.settimeout(20)
        Syslog(SyslogSettings(host="127.0.0.1", port=receiver.getsockname()[1])).send([NOTICE])
        assert HEADER.fullmatch(receiver.recv(65536))


@pytest.mark.parametrize("transport", ["tcp", "tls"])
def test_syslog_over_streams_counts_octets_and_connects_again(credentials, transport):
    with stream_server(credentials if transport == "tls" else None) as (port, received):
        settings = SyslogSettings(
            host="localhost", port=port, transport=transport, ca_certificate=str(credentials.ca_certificate)
        )
        sink = Syslog(settings)
        sink.send([NOTICE, NOTICE])
        received.wait(2)
        sink.close()
        sink.send([NOTICE])
        assert all(HEADER.fullmatch(one) for one in received.wait(3))
        sink.close()


def test_syslog_over_tls_wants_the_right_certificate(credentials, tmp_path):
    LabPki(tmp_path / "pki").close()
    with stream_server(credentials) as (port, received):
        ca = str(tmp_path / "pki" / "ca.pem")
        with pytest.raises(SinkError):
            Syslog(SyslogSettings(host="localhost", port=port, transport="tls", ca_certificate=ca)).send([NOTICE])
        assert received.items == []


# ── e-mail ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def mail(port, credentials, tmp_path, **more):
    (tmp_path / "password").write_text("passw0rd\n")
    return Mail(
        MailSettings(
            host="localhost",
            port=port,
            sender="qtrunk@example.org",
            to=["noc@example.org"],
            user="u",
            password_file=str(tmp_path / "password"),
            ca_certificate=str(credentials.ca_certificate),
            **more,
        )
    )


@pytest.mark.parametrize("tls", ["starttls", "implicit"])
def test_a_mail_is_a_digest_over_tls(credentials, tmp_path, tls):
    cleared = msgspec.structs.replace(NOTICE, severity="cleared", id="ba9876543210")
    with mail_server(credentials, implicit=tls == "implicit") as (port, received):
        mail(port, credentials, tmp_path, tls=tls).send([cleared, NOTICE])
        (kind, _), (_, text) = received.wait(2)
    assert kind == "auth"
    assert "Subject: [line a] critical: QuantumChannelLoss on a-b and 1 more" in text
    assert text.index("0123456789ab") < text.index("ba9876543210")


def test_no_password_goes_to_a_mail_server_without_tls(credentials, tmp_path):
    with mail_server(credentials, offers_tls=False) as (port, received):
        with pytest.raises(SinkError) as caught:
            mail(port, credentials, tmp_path).send([NOTICE])
        assert received.items == []
    assert "passw0rd" not in str(caught.value)


def test_a_subject_cannot_smuggle_a_header():
    with pytest.raises(ValueError, match="linefeed"):
        digest([msgspec.structs.replace(NOTICE, resource="a\nBcc: x@y.z")], "a@b.c", ["d@e.f"])


# ── who is told what ────────────────────────────────────────────────────────────────────────────────────────────────


class ManualClock:
    now_s = 1e9

    def unix_s(self):
        return self.now_s

    def monotonic_s(self):
        return self.now_s


class Recorder:
    batch, interval_s = 1, 0.0

    def __init__(self, _settings=None):
        self.received, self.errors = Received(), []

    def send(self, notices):
        if self.errors:
            raise self.errors.pop(0)
        for one in notices:
            self.received.add((one.type, one.severity))

    def close(self):
        pass


@pytest.fixture
def told(monkeypatch, tmp_path):
    clock, recorder = ManualClock(), Recorder()
    monkeypatch.setattr(dispatch, "Webhook", lambda _settings: recorder)
    monkeypatch.setattr(dispatch, "PAUSE_S", 0.0)
    board = AlarmBoard(clock)

    def begin(**settings):
        hook = WebhookSettings(url="https://localhost/", **settings)
        told.dispatch = dispatch.Dispatch(SinkSettings(webhook={"x": hook}), "line", "a", board, clock, tmp_path)

    def later(seconds=dispatch.SETTLE_S):
        clock.now_s += seconds
        told.dispatch.look()

    told = type("Told", (), {})()
    told.board, told.begin, told.later, told.recorder, told.clock = board, begin, later, recorder, clock
    yield told
    told.dispatch.close()


def test_changes_are_told_once_and_what_comes_and_goes_at_once_is_not(told):
    told.begin()
    told.board.raise_alarm("a-b", "LinkOff", "major", "x")
    told.later(1.0)
    told.board.clear("a-b")
    told.later()
    told.board.raise_alarm("a-b", "QberRising", "warning", "x")
    told.later()
    told.later()
    told.board.raise_alarm("a-b", "QberRising", "major", "x")
    told.later()
    told.board.clear("a-b")
    told.later()
    assert told.recorder.received.wait(3) == [
        ("QberRising", "warning"),
        ("QberRising", "major"),
        ("QberRising", "cleared"),
    ]


def test_mild_shelved_and_following_alarms_are_not_told(told):
    told.begin(least="minor", roots_only=True)
    told.board.suppress("c-d", told.clock.now_s + 1e6, "works")
    told.board.raise_alarm("c-d", "LinkOff", "critical", "x")
    told.board.raise_alarm("a-b", "QberRising", "warning", "x")
    told.board.raise_alarm("a-b", "LinkOff", "major", "x")
    told.board.explain(next(one.id for one in told.board.active() if one.type == "LinkOff"), [], [])
    follower = next(one for one in told.board.active() if one.resource == "a-b" and one.type == "LinkOff")
    told.board.explain(follower.id, [], ["a-b"])
    told.board.raise_alarm("a-b", "QuantumChannelLoss", "critical", "x")
    told.later()
    told.board.clear("a-b")
    told.later()
    assert told.recorder.received.wait(2) == [("QuantumChannelLoss", "critical"), ("QuantumChannelLoss", "cleared")]


def test_what_was_up_before_the_process_is_not_told_again(told):
    told.board.raise_alarm("a-b", "LinkOff", "major", "x")
    told.begin()
    told.later()
    told.board.raise_alarm("a-b", "QberRising", "major", "x")
    told.later()
    assert told.recorder.received.wait(1) == [("QberRising", "major")]


def test_what_the_process_before_told_is_told_to_be_over(told):
    told.board.raise_alarm("a-b", "LinkOff", "major", "x")
    told.board.raise_alarm("a-b", "QberRising", "warning", "x")
    told.begin(least="minor")
    told.later()
    told.board.clear("a-b")
    told.later()
    told.dispatch.close()
    assert told.recorder.received.items == [("LinkOff", "cleared")]


def test_a_receiver_that_fails_is_tried_again_and_a_dead_one_is_an_alarm(told, caplog):
    caplog.set_level(logging.WARNING)
    told.begin()
    told.recorder.errors = [SinkError("away")] * (dispatch.TRIES - 1)
    told.board.raise_alarm("a-b", "LinkOff", "major", "x")
    told.later()
    told.recorder.received.wait(1)
    assert told.board.of("sink webhook x") == []
    told.recorder.errors = [SinkError("no", is_final=True)]
    told.board.raise_alarm("a-b", "QberRising", "major", "x")
    told.later()
    told.board.raise_alarm("a-b", "SkrBelowPlan", "major", "x")
    told.later()
    told.recorder.received.wait(2)
    told.dispatch.close()
    found = [one for one in told.board.all() if one.type == dispatch.FAILED]
    assert [(one.is_cleared, "no" in one.text) for one in found] == [(True, True)]


def test_a_sender_that_ends_by_its_own_mistake_is_an_alarm(told):
    told.begin()
    told.recorder.errors = [RuntimeError("a mistake")]
    told.board.raise_alarm("a-b", "LinkOff", "major", "x")
    told.later()
    told.dispatch.close()
    (found,) = told.board.of("sink webhook x")
    assert (found.type, "start the node anew" in found.text) == (dispatch.FAILED, True)


# ── the file ────────────────────────────────────────────────────────────────────────────────────────────────────────

FILE = """
[webhook.chat]
url = "https://chat.example.org/hook"
[syslog.noc]
host = "log.example.org"
transport = "tls"
[snmp.noc]
host = "traps.example.org"
version = "3"
user = "qtrunk"
authentication_file = "/etc/qtrunk/a"
privacy_file = "/etc/qtrunk/p"
[mail.noc]
host = "mail.example.org"
sender = "qtrunk@example.org"
to = ["noc@example.org"]
"""


def test_the_file_is_read_and_none_is_no_receiver(tmp_path):
    path = tmp_path / "alarms.toml"
    assert load(path) == SinkSettings()
    path.write_text(FILE)
    found = load(path)
    assert found.mail["noc"].roots_only
    assert not found.syslog["noc"].roots_only


@pytest.mark.parametrize(
    ("old", "new", "word"),
    [
        ("https://chat", "http://chat", "webhook.chat.url"),
        ("https://chat", "https://u:p@chat", "webhook.chat.url"),
        ('"tls"', '"carrier pigeon"', "transport"),
        ("sender", "from", "from"),
        ('["noc@example.org"]', "[]", "to"),
        ('["noc@example.org"]', '["a@b\\nBcc: c@d"]', "to"),
        ('host = "mail', 'user = "u"\nhost = "mail', "password_file"),
        ('"3"', '"1"', "version"),
        ('"3"', '"2c"', "snmp.noc.user: is not for version 2c"),
        ("user =", "community_file =", "snmp.noc.user: is needed for version 3"),
        ("[mail.noc]", "[pigeon.x]\n[mail.noc]", "pigeon"),
        ("[mail.noc]", "[mail.noc", "alarms.toml"),
    ],
)
def test_mistakes_are_named(tmp_path, old, new, word):
    path = tmp_path / "alarms.toml"
    path.write_text(FILE.replace(old, new))
    with pytest.raises(ConfigError, match=re.escape(word)):
        load(path)
