"""The server itself: who gets in, what is too much, what comes in which order, and that nothing makes it fall over."""

import asyncio
import contextlib
import socket
import ssl
import subprocess
import threading
import time

import pytest
from api_kit import ANSWER_WITHIN_S, Pki, RunningServer, Wire, keys_of, tls_socket
from cryptography.x509.oid import ExtendedKeyUsageOID
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from qtrunk.api import https
from qtrunk.api.etsi014 import Etsi014
from qtrunk.api.https import Limits, Request, Response

ENC = "/api/v1/keys/bob/enc_keys"
GET = f"GET {ENC} HTTP/1.1\r\nHost: kme\r\n\r\n".encode()
CHUNKED = b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
KEY = bytes(range(1, 33))


async def echo(request: Request) -> Response:
    """Says in the path's last part what it saw."""
    return Response(200, b'{"path":"' + "/".join(request.segments).encode() + b'","body":%d}' % len(request.body))


@pytest.fixture(params=[False, True], ids=["https", "front"], scope="module")
def is_front(request) -> bool:
    """All that a client can see holds for the compiled server, too."""
    return request.param


@pytest.fixture(scope="module")
def shared_server(kme, is_front):
    with RunningServer(echo, kme, is_front=is_front) as running:
        yield running


@pytest.fixture
def quick(kme, is_front):
    """A server with short time-outs."""
    limits = Limits(request_s=0.3, idle_s=0.3, handshake_s=0.5, reading_s=0.5)
    with RunningServer(echo, kme, limits=limits, is_front=is_front) as running:
        yield running


# ── who gets in ─────────────────────────────────────────────────────────────────────────────────────────────────────


def speaks(port: int, own, ca) -> bool:
    """Whether the server answers a request; in TLS 1.3 a refusal comes only after the client's handshake."""
    try:
        with Wire(port, own, ca) as wire:
            return wire.ask("GET", "/api/v1/keys/bob/status").status == 200
    except (ssl.SSLError, ConnectionError):
        return False


def test_a_client_of_the_ca_is_let_in(server, alice):
    assert speaks(server.port, alice, alice.ca_certificate)


def test_a_client_without_a_certificate_is_not_let_in(server, alice):
    assert not speaks(server.port, None, alice.ca_certificate)


def test_tls_itself_asks_for_the_certificate(kme):
    context = https.server_context(kme.certificate, kme.private_key, kme.ca_certificate)
    assert context.verify_mode is ssl.CERT_REQUIRED
    assert context.minimum_version is ssl.TLSVersion.TLSv1_3


def test_a_client_of_another_ca_is_not_let_in(server, alice, tmp_path):
    assert not speaks(server.port, Pki(tmp_path / "other").sae("alice"), alice.ca_certificate)
    assert not speaks(server.port, Pki(tmp_path / "twin", "test CA").sae("alice"), alice.ca_certificate)


def test_a_client_with_an_expired_certificate_is_not_let_in(server, pki):
    assert not speaks(server.port, pki.sae("alice", lives_s=-60), pki.ca_certificate)


def test_a_certificate_for_servers_only_is_not_let_in(server, pki):
    own = pki.sae("alice", usages=[ExtendedKeyUsageOID.SERVER_AUTH])
    assert not speaks(server.port, own, pki.ca_certificate)


def test_a_connection_ends_when_its_certificate_expires(server, pki):
    with Wire(server.port, pki.sae("alice", lives_s=2)) as wire:
        assert wire.ask("GET", "/api/v1/keys/bob/status").status == 200
        wire.sock.settimeout(5)
        assert wire.is_closed()


def test_a_server_without_tls_talk_is_not_bothered_by_plain_http(server, alice):
    with socket.create_connection(("127.0.0.1", server.port), ANSWER_WITHIN_S) as plain:
        plain.sendall(GET)
        plain.settimeout(ANSWER_WITHIN_S)
        assert b"HTTP" not in plain.recv(1000)
    assert speaks(server.port, alice, alice.ca_certificate)


# ── order and life of a connection ──────────────────────────────────────────────────────────────────────────────────


def test_a_connection_carries_many_requests(as_alice):
    for _ in range(20):
        answer = as_alice.ask("POST", ENC)
        assert answer.status == 200
        assert answer.headers["Connection"] is None


def test_pipelined_requests_are_answered_in_order(quick, alice):
    with Wire(quick.port, alice) as wire:
        wire.send(b"".join(f"GET /{i} HTTP/1.1\r\nHost: x\r\n\r\n".encode() for i in range(50)))
        assert [wire.answer().json()["path"] for _ in range(50)] == [str(i) for i in range(50)]


@pytest.mark.parametrize("tail", ["?number=1#part", "#part", "?number=1#?size=7"])
def test_a_fragment_is_no_part_of_a_request_the_first_time_and_ever_after(as_alice, tail):
    assert as_alice.ask("GET", ENC).status == 200
    for _ in range(2):
        assert len(keys_of(as_alice.ask("GET", ENC + tail))) == 1


def test_pipelined_requests_behind_a_broken_one_are_not_answered(quick, alice):
    with Wire(quick.port, alice) as wire:
        wire.send(b"GET /1 HTTP/1.1\r\nHost: x\r\n\r\nBROKEN\r\n\r\nGET /2 HTTP/1.1\r\nHost: x\r\n\r\n")
        assert wire.answer().json()["path"] == "1"
        refusal = wire.answer()
        assert (refusal.status, refusal.headers["Connection"]) == (400, "close")
        assert wire.is_closed()


def test_too_many_pipelined_requests_are_refused_after_the_others_are_answered(quick, alice):
    with Wire(quick.port, alice) as wire:
        wire.send(b"GET /1 HTTP/1.1\r\nHost: x\r\n\r\n" * 129)
        answers = [wire.answer() for _ in range(129)]
        assert [answer.status for answer in answers] == [200] * 128 + [400]
        assert "pipelining" in answers[-1].message
        assert wire.is_closed()


def test_a_request_that_says_close_is_the_last_one(quick, alice):
    with Wire(quick.port, alice) as wire:
        wire.send(b"GET /1 HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\nGET /2 HTTP/1.1\r\nHost: x\r\n\r\n")
        answer = wire.answer()
        assert (answer.json()["path"], answer.headers["Connection"]) == ("1", "close")
        assert wire.is_closed()


def test_http_1_0_is_answered_and_closed_unless_it_asks_to_stay(quick, alice):
    with Wire(quick.port, alice) as wire:
        wire.send(b"GET /1 HTTP/1.0\r\nConnection: keep-alive\r\n\r\n")
        assert wire.answer().headers["Connection"] == "keep-alive"
        wire.send(b"GET /2 HTTP/1.0\r\n\r\n")
        answer = wire.answer()
        assert (answer.json()["path"], answer.headers["Connection"]) == ("2", "close")
        assert wire.is_closed()


def test_head_leaves_the_connection_in_step(quick, alice):
    with Wire(quick.port, alice) as wire:
        assert wire.ask("HEAD", "/%ff").octets == b""
        assert wire.ask("HEAD", "/1").octets == b""
        assert wire.ask("GET", "/2").json()["path"] == "2"


def test_a_client_that_waits_before_its_body_is_told_to_go_on(quick, alice):
    with Wire(quick.port, alice) as wire:
        wire.send(b"POST /1 HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n")
        assert wire.sock.recv(25) == b"HTTP/1.1 100 Continue\r\n\r\n"
        wire.send(b"{}")
        assert wire.answer().json()["body"] == 2


def test_a_chunked_body_is_put_together(quick, alice):
    with Wire(quick.port, alice) as wire:
        head = b"POST /1 HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
        wire.send(head + b"3\r\n{} \r\n2;a=b\r\n\n\n\r\n0\r\nTrailer: x\r\n\r\n")
        assert wire.answer().json()["body"] == 5


def test_an_upgrade_is_not_taken(quick, alice):
    with Wire(quick.port, alice) as wire:
        wire.send(b"GET /1 HTTP/1.1\r\nHost: x\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\nwhatever")
        assert wire.answer().json()["path"] == "1"
        assert wire.is_closed()


def test_answers_carry_a_date_and_are_json(quick, alice):
    with Wire(quick.port, alice) as wire:
        answer = wire.ask("GET", "/")
    assert time.mktime(time.strptime(answer.headers["Date"], "%a, %d %b %Y %H:%M:%S GMT"))
    assert answer.headers["Content-Type"] == "application/json"


def test_requests_of_a_client_that_has_gone_take_no_keys(server, supply, alice):
    supply.delay_s = 0.2
    with Wire(server.port, alice) as wire:
        wire.send(GET * 20)
        deadline_s = time.monotonic() + ANSWER_WITHIN_S
        while not server.server.connections:
            assert time.monotonic() < deadline_s
    time.sleep(0.6)
    assert supply.allocations <= 1


# ── too much, too slow ──────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "octets",
    [
        b"GET /" + b"a" * 5000 + b" HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\nA: " + b"a" * 20_000 + b"\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\n" + b"A: a\r\n" * 9000 + b"\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\n" + b"a" * 20_000 + b": 1\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 65537\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999999999999999\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: " + b"0" * 5000 + b"5\r\n\r\nhello",
        b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nxx",
        b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        CHUNKED + b"8000\r\n" + b"x" * 0x8000 + b"\r\n9000\r\n" + b"x" * 0x9000,
        CHUNKED + b"zz\r\n",
        b"POST / HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 70000\r\n\r\n",
        b"GET / HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\nHost: y\r\n\r\n",
        b"GET / HTTP/2.0\r\nHost: x\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"GET /\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\n folded: y\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost : x\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"NONSENSE / HTTP/1.1\r\nHost: x\r\n\r\n",
    ],
    ids=lambda octets: repr(octets[:40]),
)  # fmt: skip
def test_what_is_too_long_or_no_http_gets_400_and_the_door(server, alice, octets):
    with Wire(server.port, alice) as wire:
        wire.send(octets)
        answer = wire.answer()
        assert (answer.status, answer.headers["Connection"]) == (400, "close")
        assert answer.message
        assert wire.is_closed()


@pytest.mark.parametrize("target", ["/%ff", "/a%00b", "/?a=1&a=2", "/?a=%ff", "*", "x"])
def test_a_target_that_cannot_be_read_is_400(server, alice, target):
    with Wire(server.port, alice) as wire:
        answer = wire.ask("OPTIONS", target)
        assert answer.status == 400
        assert answer.message


@pytest.mark.parametrize(
    "start",
    [
        b"GET / HTTP/1.1\r\nHost: x\r\nA: ",
        CHUNKED + b"0\r\nA: ",
        CHUNKED + b"1;",
    ],
    ids=["header", "trailer", "chunk extension"],
)
def test_what_never_ends_is_cut_off(server, alice, start):
    with Wire(server.port, alice) as wire:
        wire.send(start)
        for _ in range(60):
            wire.send(b"a" * 16384)
        answer = wire.answer()
        # The compiled server knows sooner that headers cannot end well.
        assert answer.status == 400
        assert answer.message in ("request: at most 524288 octets", "headers: at most 16384 octets")
        assert wire.is_closed()


def test_one_who_says_nothing_is_cut_off(quick, alice):
    with Wire(quick.port, alice) as wire:
        assert wire.is_closed()


def test_one_who_never_shakes_hands_is_cut_off(quick):
    with socket.create_connection(("127.0.0.1", quick.port), ANSWER_WITHIN_S) as plain:
        plain.settimeout(5)
        assert plain.recv(100) == b""


def test_one_who_sends_an_octet_at_a_time_is_cut_off(quick, alice):
    begun_s = time.monotonic()
    with Wire(quick.port, alice) as wire:

        def dribble() -> None:
            for octet in b"GET / HTTP/1.1\r\nHost: x\r\n" + b"A: a\r\n" * 500:
                wire.send(bytes([octet]))
                time.sleep(0.02)

        with pytest.raises((ssl.SSLError, ConnectionError)):
            dribble()
    assert time.monotonic() - begun_s < 3


def test_a_slow_second_request_gets_no_more_time_than_the_first(kme, alice, is_front):
    limits = Limits(request_s=0.3, idle_s=60)
    with RunningServer(echo, kme, is_front=is_front, limits=limits) as running, Wire(running.port, alice) as wire:
        wire.send(b"GET /1 HTTP/1.1\r\nHost: x\r\n\r\nGET /2 HT")
        assert wire.answer().json()["path"] == "1"
        wire.sock.settimeout(5)
        assert wire.is_closed()


def test_an_idle_connection_is_closed(quick, alice):
    with Wire(quick.port, alice) as wire:
        assert wire.ask("GET", "/1").status == 200
        assert wire.is_closed()


def test_a_request_that_takes_long_to_answer_is_not_cut_off(kme, alice, is_front):
    async def slow(_request: Request) -> Response:
        await asyncio.sleep(1.0)
        return Response(200, b"{}")

    with (
        RunningServer(slow, kme, is_front=is_front, limits=Limits(request_s=0.2, idle_s=0.2)) as running,
        Wire(running.port, alice) as wire,
    ):
        assert wire.ask("GET", "/").status == 200


def test_one_who_does_not_read_is_cut_off_and_the_others_are_served(kme, alice, is_front):
    async def long(_request: Request) -> Response:
        return Response(200, b" " * 1_000_000)

    with (
        RunningServer(long, kme, is_front=is_front, limits=Limits(reading_s=0.3)) as running,
        Wire(running.port, alice) as greedy,
        Wire(running.port, alice) as other,
    ):
        greedy.send(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n" * 100)
        assert len(other.ask("GET", "/").octets) == 1_000_000
        deadline_s = time.monotonic() + 5
        while len(running.server.connections) > 1:
            assert time.monotonic() < deadline_s
            time.sleep(0.01)


def test_more_connections_than_allowed_are_closed_and_others_stay(kme, alice, is_front):
    with RunningServer(echo, kme, is_front=is_front, limits=Limits(connections_max=2)) as running:
        with Wire(running.port, alice) as first, Wire(running.port, alice) as second:
            assert first.ask("GET", "/1").status == second.ask("GET", "/1").status == 200
            with Wire(running.port, alice) as third:
                assert third.is_closed()
            assert first.ask("GET", "/2").status == 200
        deadline_s = time.monotonic() + 5
        while len(running.server.connections) > 1:
            assert time.monotonic() < deadline_s
        with Wire(running.port, alice) as fourth:
            assert fourth.ask("GET", "/1").status == 200


def test_one_client_cannot_take_the_connections_of_the_others(kme, alice, pki, is_front):
    with RunningServer(echo, kme, is_front=is_front, limits=Limits(per_client_max=2)) as running:
        with Wire(running.port, alice) as first, Wire(running.port, alice) as second:
            assert first.ask("GET", "/1").status == second.ask("GET", "/1").status == 200
            with Wire(running.port, alice) as third:
                assert third.is_closed()
            with Wire(running.port, pki.sae("bob")) as other:
                assert other.ask("GET", "/1").status == 200
        deadline_s = time.monotonic() + 5
        while running.server.by_client:
            assert time.monotonic() < deadline_s
        with Wire(running.port, alice) as fourth:
            assert fourth.ask("GET", "/1").status == 200


# ── stop ────────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("uv", [True, False], ids=["uvloop", "asyncio"])
def test_a_stop_answers_what_is_under_way_and_closes_the_rest(supply, kme, alice, uv, is_front):
    supply.delay_s = 0.3
    with (
        RunningServer(Etsi014(supply, supply.sae_of).handle, kme, is_front=is_front, uv=uv) as running,
        Wire(running.port, alice) as busy,
        Wire(running.port, alice) as idle,
    ):
        assert idle.ask("GET", "/api/v1/keys/bob/status").status == 200
        busy.send(GET)
        time.sleep(0.1)
        stopping = threading.Thread(target=lambda: running.run(running.server.stop()))
        stopping.start()
        answer = busy.answer()
        assert (answer.status, answer.headers["Connection"]) == (200, "close")
        assert idle.is_closed()
        busy.sock.close()
        stopping.join(5)
        assert not stopping.is_alive()
        with pytest.raises(OSError, match="refused"):
            tls_socket(running.port, alice, alice.ca_certificate)


def test_a_stop_does_not_wait_for_ever(supply, kme, alice, is_front):
    supply.delay_s = 60
    limits = Limits(stop_s=0.2)
    with (
        RunningServer(Etsi014(supply, supply.sae_of).handle, kme, is_front=is_front, limits=limits) as running,
        Wire(running.port, alice) as wire,
    ):
        wire.send(GET)
        time.sleep(0.1)
        begun_s = time.monotonic()
        running.run(running.server.stop())
        assert time.monotonic() - begun_s < 2
        assert wire.is_closed()


@pytest.mark.parametrize("uv", [True, False], ids=["uvloop", "asyncio"])
def test_who_ends_a_handshake_after_the_stop_is_let_go(supply, kme, alice, uv, is_front):
    """And the stop waits for those who are about to: nothing of the server's is left on the loop."""
    with RunningServer(Etsi014(supply, supply.sae_of).handle, kme, is_front=is_front, uv=uv) as running:
        late = socket.create_connection(("127.0.0.1", running.port), 5)
        time.sleep(0.1)
        stopping = threading.Thread(target=lambda: running.run(running.server.stop()))
        stopping.start()
        time.sleep(0.2)
        context = ssl.create_default_context(cafile=str(alice.ca_certificate))
        context.load_cert_chain(alice.certificate, alice.private_key)
        answered = b""
        with contextlib.suppress(OSError), context.wrap_socket(late, server_hostname="localhost") as secured:
            secured.sendall(GET)
            answered = secured.recv(1)
        assert answered == b""
        stopping.join(5)
        assert not stopping.is_alive()


# ── key material ────────────────────────────────────────────────────────────────────────────────────────────────────


class Transport(asyncio.Transport):
    """A transport that takes nothing until it is told to, and shows what it holds."""

    def __init__(self, der: bytes) -> None:
        super().__init__()
        self.der = der
        self.held: list[bytearray] = []
        self.is_slow = False

    def get_extra_info(self, _name, default=None):
        return self

    def getpeercert(self, *, binary_form: bool) -> bytes:
        assert binary_form
        return self.der

    def write(self, octets) -> None:
        self.held.append(octets)

    def get_write_buffer_size(self) -> int:
        return 100 if self.is_slow else 0

    def is_closing(self) -> bool:
        return False

    def close(self) -> None:
        """Nothing to close."""

    abort = close


async def served_key(transport: Transport, then) -> tuple[bytearray, bytearray]:
    """The body that a handler gave and the buffer that went to the transport, after `then(connection)`."""
    body = bytearray(KEY)

    async def give(_request: Request) -> Response:
        return Response(200, body)

    connection = https._Connection(https.HttpsServer(give, ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)))
    connection.connection_made(transport)
    connection.data_received(GET)
    if then is not None:
        then(connection)
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    return body, transport.held[-1] if transport.held else bytearray()


def test_pipelined_bodies_are_refused_beyond_their_octets_after_the_others_are_answered(alice):
    post = b"POST /1 HTTP/1.1\r\nHost: x\r\nContent-Length: 300\r\n\r\n" + bytes(300)
    transport = Transport(alice.der())

    async def scenario() -> None:
        server = https.HttpsServer(echo, ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), Limits(message_octets_max=1000))
        connection = https._Connection(server)
        connection.connection_made(transport)
        for _ in range(10):
            connection.data_received(post)
        await asyncio.sleep(0.1)

    asyncio.run(scenario())
    assert [octets[:12] for octets in transport.held] == [b"HTTP/1.1 200"] * 3 + [b"HTTP/1.1 400"]
    assert b"1000 octets of bodies may wait" in transport.held[-1]


def test_an_answer_with_key_is_wiped_once_the_transport_has_it(alice):
    body, sent = asyncio.run(served_key(Transport(alice.der()), None))
    assert (len(body), len(sent) > len(KEY)) == (32, True)
    assert not any(body)
    assert not any(sent)


def test_an_answer_that_the_transport_still_holds_is_not_wiped_before_it_is_gone(alice):
    transport = Transport(alice.der())
    transport.is_slow = True

    async def scenario() -> None:
        connections = []
        _, sent = await served_key(transport, connections.append)
        assert sent.endswith(KEY)
        transport.is_slow = False
        connections[0].resume_writing()
        assert not any(sent)

    asyncio.run(scenario())


def test_an_answer_that_nobody_takes_any_more_is_wiped(alice):
    transport = Transport(alice.der())
    body, _ = asyncio.run(served_key(transport, lambda connection: connection.connection_lost(None)))
    assert transport.held == []
    # The request was dropped before a key was asked for, so the key is where it was.
    assert bytes(body) == KEY


def test_a_key_that_comes_after_the_client_has_gone_is_wiped_unsent(alice):
    transport = Transport(alice.der())
    body = bytearray(KEY)

    async def scenario() -> None:
        asked = asyncio.Event()
        gone = asyncio.Event()

        async def give(_request: Request) -> Response:
            asked.set()
            await gone.wait()
            return Response(200, body)

        connection = https._Connection(https.HttpsServer(give, ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)))
        connection.connection_made(transport)
        connection.data_received(GET)
        await asked.wait()
        connection.connection_lost(None)
        gone.set()
        await asyncio.sleep(0.01)

    asyncio.run(scenario())
    assert transport.held == []
    assert not any(body)


# ── anything ────────────────────────────────────────────────────────────────────────────────────────────────────────

TOKENS = st.sampled_from(
    [
        *(
            b"GET ",
            b"POST ",
            b"HEAD ",
            b"OPTIONS ",
            b"CONNECT ",
            b"/",
            b"/api/v1/keys/",
            b"bob",
            b"/enc_keys",
            b"/dec_keys",
        ),
        *(
            b"?",
            b"number=1",
            b"&",
            b"size=",
            b"%",
            b"%2",
            b"%00",
            b"%ff",
            b" HTTP/1.1",
            b" HTTP/1.0",
            b"\r\n",
            b"\n",
            b"\r",
        ),
        *(
            b"Host: x",
            b"Connection: close",
            b"Connection: upgrade",
            b"Upgrade: h2c",
            b"Content-Length: 2",
            b": ",
            b"\x00",
        ),
        *(
            b"Transfer-Encoding: chunked",
            b"Expect: 100-continue",
            b"\r\n\r\n",
            b"0\r\n\r\n",
            b"2\r\n{}\r\n",
            b"{}",
            b"[]",
        ),
        *(
            b'{"number":',
            b"1}",
            b'{"key_IDs":[{"key_ID":"7a8a2fd6-2d2c-4a0e-8f0a-3d1f5f0b9c11"}]}',
            b"a" * 5000,
            b"\xff",
        ),
    ]
)
REQUESTS = st.builds(
    lambda method, path, head, body: (
        method + b" " + path + b" HTTP/1.1\r\nHost: x\r\n" + head + b"Content-Length: %d\r\n\r\n" % len(body) + body
    ),
    st.sampled_from([b"GET", b"POST", b"HEAD", b"DELETE"]),
    st.lists(TOKENS, max_size=6).map(lambda parts: b"/api/v1/keys/" + b"".join(parts).replace(b" ", b"")),
    st.sampled_from([b"", b"", b"A: b\r\n", b"Connection: close\r\n", b"Expect: 100-continue\r\n"]),
    st.binary(max_size=60) | st.lists(TOKENS, max_size=6).map(b"".join),
)  # fmt: skip
NOISE = st.lists(TOKENS | st.binary(max_size=20) | REQUESTS, max_size=12)


def statuses(octets: bytes) -> list[int]:
    """Status codes of a row of answers; fails where they are not whole, well-formed answers."""
    found = []
    while octets:
        head, separator, octets = octets.partition(b"\r\n\r\n")
        assert separator
        lines = head.split(b"\r\n")
        assert lines[0].startswith(b"HTTP/1.1 ")
        status = int(lines[0].split(b" ")[1])
        if status == 100:
            continue
        found.append(status)
        length = next(int(line[16:]) for line in lines if line.startswith(b"Content-Length: "))
        if octets[:1] == b"{":
            # Else it was the answer to a HEAD.
            octets = octets[length:]
    return found


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(parts=NOISE)
def test_whatever_comes_is_answered_within_the_codes_of_the_standard_or_cut_off(supply, alice, parts):
    """The whole server but TLS, fed in pieces: no exception, no hang, no status but 200, 400, 401, 503."""
    transport = Transport(alice.der())
    sent: list[bytes] = []
    transport.write = lambda octets: sent.append(bytes(octets))

    async def scenario() -> None:
        server = https.HttpsServer(Etsi014(supply, supply.sae_of).handle, ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER))
        connection = https._Connection(server)
        connection.connection_made(transport)
        for part in parts:
            connection.data_received(part)
            await asyncio.sleep(0)
        while connection._worker is not None:
            await asyncio.sleep(0)
        connection.connection_lost(None)

    asyncio.run(scenario())
    assert set(statuses(b"".join(sent))) <= {200, 400, 401, 503}


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(parts=NOISE)
def test_noise_over_real_tls_leaves_the_server_in_service(server, alice, parts):
    with Wire(server.port, alice) as wire, contextlib.suppress(ssl.SSLError, ConnectionError):
        wire.send(b"".join(parts))
    with Wire(server.port, alice) as wire:
        assert wire.ask("GET", "/api/v1/keys/bob/status").status == 200


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(noise=st.binary(min_size=1, max_size=200))
def test_noise_instead_of_tls_leaves_the_server_in_service(server, alice, noise):
    with socket.create_connection(("127.0.0.1", server.port), ANSWER_WITHIN_S) as plain:
        plain.sendall(noise)
    with Wire(server.port, alice) as wire:
        assert wire.ask("GET", "/api/v1/keys/bob/status").status == 200


# ── a foreign client ────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_example_with_curl_works(server, alice):
    done = subprocess.run(
        [
            *("curl", "--silent", "--show-error", "--fail", "--cacert", alice.ca_certificate),
            *("--cert", alice.certificate, "--key", alice.private_key),
            *("--json", '{"number": 2, "size": 256}', f"https://localhost:{server.port}{ENC}"),
        ],
        capture_output=True,
        check=True,
        timeout=ANSWER_WITHIN_S,
    )
    assert done.stdout.count(b'"key_ID"') == 2


def test_keys_come_over_the_plain_asyncio_loop_as_well(supply, kme, alice, is_front):
    with (
        RunningServer(Etsi014(supply, supply.sae_of).handle, kme, is_front=is_front, uv=False) as running,
        Wire(running.port, alice) as wire,
    ):
        assert len(keys_of(wire.ask("POST", ENC, {"number": 8, "size": 1024}))) == 8
