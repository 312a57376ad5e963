"""The compiled server: what HTTP it refuses, requests in lots, and certificates that change. What any client sees of it
is in `test_https`, too."""

import asyncio
import shutil
import socket
import ssl
import struct
import subprocess
import threading
import time

import pytest
from api_kit import ANSWER_WITHIN_S, FakeSupply, RunningServer, Wire, keys_of, tls_socket

from qtrunk import _front
from qtrunk.api.etsi014 import Etsi014
from qtrunk.api.front import FrontContext
from qtrunk.api.https import Request, Response
from qtrunk.api.lots import KeyLots
from qtrunk.base.errors import KeyExhausted, KeyNotFound, NotAuthorised, StoreError
from qtrunk.base.ports import SuppliedKeys

ENC = "/api/v1/keys/bob/enc_keys"
DEC = "/api/v1/keys/alice/dec_keys?key_ID="
POST = b"POST / HTTP/1.1\r\nHost: x\r\n"


class LotSupply(FakeSupply):
    """Remembers the lots it was asked for; `gate` holds them back, as a slow disk does."""

    def __init__(self) -> None:
        super().__init__()
        self.lots: list[int] = []
        self.gate: asyncio.Event | None = None
        self.problem: Exception | None = None
        self.alone = 0
        self.gives_one_piece = False

    async def initiate(self, *arguments, **more):
        self.alone += 1
        return await super().initiate(*arguments, **more)

    async def initiate_same(self, initiator, target, number, key_bits, count):
        self.lots.append(count)
        if self.gate is not None:
            await self.gate.wait()
        if self.problem is not None:
            raise self.problem
        if number * count > self.stock:
            return None
        self.alone -= 1
        return SuppliedKeys.of(await self.initiate(initiator, [target], number * count, key_bits))

    async def collect_each(self, target, initiator, wanted):
        self.lots.append(len(wanted))
        if self.gate is not None:
            await self.gate.wait()
        if self.problem is not None:
            raise self.problem
        found = []
        if self.gives_one_piece:
            return SuppliedKeys.of([(await self.collect(target, initiator, key_ids))[0] for key_ids in wanted])
        for key_ids in wanted:
            try:
                found.append(await self.collect(target, initiator, key_ids))
            except (KeyNotFound, NotAuthorised) as refused:
                found.append(refused)
        return found


@pytest.fixture
def lots() -> LotSupply:
    return LotSupply()


@pytest.fixture
def running(kme, lots):
    edition1 = Etsi014(lots, lots.sae_of)
    may_answer = [True]
    with RunningServer(
        edition1.handle, kme, is_front=True, lots=KeyLots(edition1, lots, lambda: may_answer[0])
    ) as server:
        server.may_answer = may_answer
        yield server


def hold(running, lots) -> None:
    async def close() -> None:
        lots.gate = asyncio.Event()

    running.run(close())


def let_go(running, lots) -> None:
    async def open_gate() -> None:
        gate, lots.gate = lots.gate, None
        gate.set()

    running.run(open_gate())


def until(is_so) -> None:
    deadline_s = time.monotonic() + ANSWER_WITHIN_S
    while not is_so():
        assert time.monotonic() < deadline_s
        time.sleep(0.005)


def together(running, lots, wires, paths) -> list:
    """The answers to requests of which the first waits for the disk while the others come."""
    hold(running, lots)
    wires[0].send(f"GET {paths[0]} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
    until(lambda: lots.lots)
    for wire, path in zip(wires[1:], paths[1:], strict=True):
        wire.send(f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
    time.sleep(0.3)
    let_go(running, lots)
    return [wire.answer() for wire in wires]


# ── lots ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_equal_requests_that_come_together_are_one_lot_and_each_gets_keys_of_its_own(running, lots, alice):
    wires = [Wire(running.port, alice) for _ in range(12)]
    answers = together(running, lots, wires, [ENC + "?number=2"] * 12)
    given = [keys_of(answer) for answer in answers]
    assert lots.lots[:2] == [1, 11]
    assert [len(keys) for keys in given] == [2] * 12
    found = {key_id: key for keys in given for key_id, key in keys.items()}
    assert len(found) == 24
    assert found == {key_id: lots.issued[key_id].octets for key_id in found}
    assert lots.alone == 0
    assert not any(any(key.material.reveal()) for key in lots.handed_out)
    for wire in wires:
        assert len(keys_of(wire.ask("GET", ENC))) == 1
        wire.sock.close()


def test_a_lot_that_cannot_be_answered_as_one_is_answered_one_by_one(running, lots, alice):
    lots.stock = 4
    with Wire(running.port, alice) as first, Wire(running.port, alice) as second, Wire(running.port, alice) as third:
        answers = together(running, lots, [first, second, third], [ENC + "?number=2"] * 3)
    assert sorted(answer.status for answer in answers) == [200, 200, 503]
    assert lots.alone >= 2


def test_where_a_lot_cannot_be_recorded_none_of_it_gets_a_key(running, lots, alice):
    lots.problem = StoreError("no space")
    with Wire(running.port, alice) as first, Wire(running.port, alice) as second:
        answers = together(running, lots, [first, second], [ENC] * 2)
        assert [answer.status for answer in answers] == [503, 503]
        assert "nothing was given out" in answers[1].message
        lots.problem = None
        assert first.ask("GET", ENC).status == 200


def test_who_has_gone_before_its_lot_takes_no_key(running, lots, alice):
    wires = [Wire(running.port, alice) for _ in range(6)]
    hold(running, lots)
    for wire in wires:
        wire.send(f"GET {ENC} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        until(lambda: lots.lots)
    for wire in wires[1:]:
        wire.sock.close()
    until(lambda: len(running.server.connections) == 1)
    let_go(running, lots)
    assert wires[0].answer().status == 200
    wires[0].sock.close()
    assert lots.allocations == sum(lots.lots) <= 6
    assert lots.lots[0] + len(lots.lots) - 1 < 6


def test_who_goes_while_its_lot_is_recorded_takes_nothing_from_the_others(running, lots, alice):
    wires = [Wire(running.port, alice) for _ in range(3)]
    hold(running, lots)
    wires[0].send(f"GET {ENC} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
    until(lambda: lots.lots)
    wires[0].sock.close()
    for wire in wires[1:]:
        wire.send(f"GET {ENC} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
    until(lambda: len(running.server.connections) == 2)
    let_go(running, lots)
    given = [keys_of(wire.answer()) for wire in wires[1:]]
    assert len(given[0].keys() | given[1].keys()) == 2
    for wire in wires[1:]:
        wire.sock.close()


def test_keys_are_collected_together_and_each_answer_is_its_own(running, lots, alice, bob):
    with Wire(running.port, alice) as wire:
        given = keys_of(wire.ask("GET", ENC + "?number=4"))
    ids = [*given, "7a8a2fd6-2d2c-4a0e-8f0a-3d1f5f0b9c11", "nonsense", next(iter(given))]
    wires = [Wire(running.port, bob) for _ in ids]
    lots.lots.clear()
    answers = together(running, lots, wires, [DEC + key_id for key_id in ids])
    assert lots.lots[:2] == [1, 5]
    assert [answer.status for answer in answers] == [200] * 4 + [400] * 3
    assert {key_id: key for answer in answers[:4] for key_id, key in keys_of(answer).items()} == given
    assert "UUID" in answers[5].message
    for wire in wires:
        wire.sock.close()


@pytest.mark.parametrize("bad", [[], ["nonsense"]])
def test_keys_that_come_in_one_piece_reach_who_asked_for_each(running, lots, alice, bob, bad):
    with Wire(running.port, alice) as wire:
        given = keys_of(wire.ask("GET", ENC + "?number=5"))
    ids = [*sorted(given), *bad]
    wires = [Wire(running.port, bob) for _ in ids]
    lots.lots.clear()
    lots.gives_one_piece = True
    answers = together(running, lots, wires, [DEC + key_id for key_id in ids])
    assert lots.lots == [1, 4]
    assert [keys_of(answer) for answer in answers[:5]] == [{key_id: given[key_id]} for key_id in ids[:5]]
    assert [answer.status for answer in answers[5:]] == [400] * len(bad)
    for wire in wires:
        wire.sock.close()


def test_keys_are_collected_together_by_post_too(running, lots, alice, bob):
    with Wire(running.port, alice) as wire:
        given = keys_of(wire.ask("GET", ENC + "?number=4"))
    wires = [Wire(running.port, bob) for _ in given]
    lots.lots.clear()
    hold(running, lots)
    for wire, key_id in zip(wires, given, strict=True):
        body = f'{{"key_IDs":[{{"key_ID":"{key_id}"}}]}}'
        path = DEC.partition("?")[0]
        wire.send(f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode())
        until(lambda: lots.lots)
    time.sleep(0.3)
    let_go(running, lots)
    assert [keys_of(wire.answer()) for wire in wires] == [{key_id: given[key_id]} for key_id in given]
    assert lots.lots == [1, 3]
    for wire in wires:
        wire.sock.close()


def test_keys_that_cannot_be_recorded_as_collected_are_not_given(running, lots, alice, bob):
    with Wire(running.port, alice) as wire:
        (key_id,) = keys_of(wire.ask("GET", ENC))
    lots.problem = StoreError("no space")
    with Wire(running.port, bob) as wire:
        assert wire.ask("GET", DEC + key_id).status == 503


@pytest.mark.parametrize(
    "path", [ENC, ENC + "?number=0", ENC + "?size=7", ENC + "?number=x", "/api/v1/keys/%2f/enc_keys"]
)
def test_what_a_single_request_would_hear_a_lot_hears(running, lots, kme, alice, path):
    with Wire(running.port, alice) as first, Wire(running.port, alice) as second:
        lots.problem = NotAuthorised("never")
        answers = [wire.ask("GET", path) for wire in (first, second)]
    lots.problem = None
    with RunningServer(running.server.handler, kme) as plain, Wire(plain.port, alice) as wire:
        alone = wire.ask("GET", path)
    assert [answer.status for answer in answers] == [alone.status] * 2
    if alone.status != 200:
        assert {answer.octets for answer in answers} == {alone.octets}


def test_while_nothing_may_be_given_the_handler_answers(running, lots, alice):
    running.may_answer[0] = False
    with Wire(running.port, alice) as wire:
        assert wire.ask("GET", ENC).status == 200
    assert (lots.lots, lots.alone) == ([], 1)


def test_a_named_request_is_in_no_lot(running, lots, alice):
    with Wire(running.port, alice) as wire:
        assert wire.ask("GET", ENC, None, "X-Request-ID: one").status == 200
    assert (lots.lots, lots.alone) == ([], 1)


def test_a_broken_lot_is_503_and_takes_nobody_else_away(running, lots, alice, caplog):
    lots.problem = ZeroDivisionError("very secret")
    with Wire(running.port, alice) as wire:
        answer = wire.ask("GET", ENC)
        assert (answer.status, answer.headers["Connection"]) == (503, "close")
        assert wire.is_closed()
    lots.problem = None
    with Wire(running.port, alice) as wire:
        assert wire.ask("GET", ENC).status == 200
    assert "ZeroDivisionError" in caplog.text
    assert "very secret" not in caplog.text


# ── HTTP that two readers could take in two ways ────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "octets",
    [
        POST + b"Content-Length: 2\r\nContent-Length: 2\r\n\r\n{}",
        POST + b"Content-Length: 2, 2\r\n\r\n{}",
        POST + b"Content-Length: +2\r\n\r\n{}",
        POST + b"Content-Length: 0x2\r\n\r\n{}",
        POST + b"Content-Length:\r\n\r\n",
        POST + b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
        POST + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        POST + b"Transfer-Encoding: identity\r\n\r\n",
        POST + b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
        POST + b"Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n",
        b"POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        POST + b"Transfer-Encoding: chunked\r\n\r\n+2\r\n{}\r\n0\r\n\r\n",
        POST + b"Transfer-Encoding: chunked\r\n\r\n2 x\r\n{}\r\n0\r\n\r\n",
        POST + b"Transfer-Encoding: chunked\r\n\r\n2\n{}\r\n0\r\n\r\n",
        POST + b"Transfer-Encoding: chunked\r\n\r\n2\r\n{}x\r\n0\r\n\r\n",
        POST + b"Transfer-Encoding: chunked\r\n\r\n10000000000000002\r\n{}\r\n0\r\n\r\n",
        POST + b"Transfer-Encoding: chunked\r\n\r\n0\r\nA\r\n\r\n",
        b"GET / HTTP/1.1\nHost: x\n\n",
        b"GET / HTTP/1.1\r\nHost: x\nA: b\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\rA: b\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\nA: b\x00c\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\n: b\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\nA\r\n\r\n",
        b"GET /a b HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET  / HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET /\t HTTP/1.1\r\nHost: x\r\n\r\n",
        b"get / HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET / HTTP/1.2\r\nHost: x\r\n\r\n",
        b"GET / http/1.1\r\nHost: x\r\n\r\n",
        b"CONNECT kme:443 HTTP/1.1\r\nHost: x\r\n\r\n",
    ],
    ids=lambda octets: repr(octets[-40:]),
)  # fmt: skip
def test_what_could_hide_a_request_is_refused_with_all_that_follows(running, lots, alice, octets):
    with Wire(running.port, alice) as wire:
        wire.send(octets + f"GET {ENC} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        answer = wire.answer()
        assert (answer.status, answer.headers["Connection"]) == (400, "close")
        assert wire.is_closed()
    assert lots.allocations == 0


def test_a_request_in_pieces_is_the_same_request(running, lots, alice):
    body = b'{"number":2,"size":128}'
    chunked = (
        b"Transfer-Encoding: chunked\r\n\r\n7;a=b\r\n"
        + body[:7]
        + b"\r\n0010\r\n"
        + body[7:]
        + b"\r\n0\r\nT: x\r\n\r\n"
    )
    whole = f"POST {ENC} HTTP/1.1\r\nHost: x\r\n".encode() + chunked
    with Wire(running.port, alice) as wire:
        for size in (1, 3, 50):
            for start in range(0, len(whole), size):
                wire.send(whole[start : start + size])
            assert [len(key) for key in keys_of(wire.answer()).values()] == [16, 16]


# ── sockets and TLS ─────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_renewed_certificate_serves_new_connections_and_a_broken_one_changes_nothing(kme, pki, alice, tmp_path):
    async def echo(_request: Request) -> Response:
        return Response(200, b"{}")

    context = FrontContext(kme.certificate, kme.private_key, kme.ca_certificate)
    with RunningServer(echo, kme, is_front=True) as running:
        context.serve(running.server._front)

        def shown() -> bytes:
            with tls_socket(running.port, alice, alice.ca_certificate) as sock:
                return sock.getpeercert(binary_form=True)

        assert shown() == kme.der()
        renewed = pki.kme("kme-a")
        context.load_cert_chain(renewed.certificate, str(renewed.private_key))
        assert shown() == renewed.der()
        (tmp_path / "cert.pem").write_text("nothing")
        with pytest.raises(OSError, match="certificate"):
            context.load_cert_chain(tmp_path / "cert.pem", str(renewed.private_key))
        with pytest.raises(OSError, match="key"):
            context.load_cert_chain(renewed.certificate, str(kme.private_key))
        context.load_verify_locations(cadata="")
        assert shown() == renewed.der()


def test_a_context_of_files_that_are_not_there_says_which(kme, tmp_path):
    with pytest.raises(ssl.SSLError, match="CA certificate"):
        FrontContext(kme.certificate, kme.private_key, tmp_path / "none.pem")


def test_a_reset_in_the_middle_of_an_answer_leaves_the_server_in_service(running, lots, alice):
    for _ in range(20):
        sock = tls_socket(running.port, alice, alice.ca_certificate)
        sock.sendall(f"GET {ENC}?number=8 HTTP/1.1\r\nHost: x\r\n\r\n".encode() * 20)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        sock.close()
    with Wire(running.port, alice) as wire:
        assert wire.ask("GET", ENC).status == 200
    until(lambda: not running.server.connections)


def test_clients_that_begin_a_handshake_and_wait_keep_nobody_out(running, alice):
    half = [socket.create_connection(("127.0.0.1", running.port), ANSWER_WITHIN_S) for _ in range(200)]
    for sock in half[:100]:
        sock.sendall(b"\x16\x03\x01\x02\x00\x01\x00")
    with Wire(running.port, alice) as wire:
        assert wire.ask("GET", ENC).status == 200
    for sock in half:
        sock.close()


def test_many_clients_at_once_are_all_answered(running, lots, alice, bob):
    """All kinds of requests from many threads: every answer is whole and nobody gets another's key."""
    lots.per_request = 64
    given: list[dict[str, bytes]] = []

    def work(number: int) -> None:
        with Wire(running.port, alice) as wire, Wire(running.port, bob) as other:
            for _ in range(10):
                keys = keys_of(wire.ask("GET", f"{ENC}?number={number}"))
                given.append(keys)
                for key_id, key in keys.items():
                    assert keys_of(other.ask("GET", DEC + key_id)) == {key_id: key}

    threads = [threading.Thread(target=work, args=(1 + number % 3,)) for number in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(given) == 120
    assert len({key_id for keys in given for key_id in keys}) == sum(map(len, given)) == 240


def test_tokens_and_material_that_do_not_fit_are_refused():
    limits = dict.fromkeys(("target", "headers", "body", "message", "pipelined", "handshakes"), 1000)
    times = dict.fromkeys(("handshake_s", "request_s", "idle_s", "reading_s"), 1.0)
    server = _front.Server(**limits, **times, kept_headers=[])
    with pytest.raises(ValueError, match="tokens"):
        server.cut(b"1234567")
    with pytest.raises(ValueError, match="material"):
        server.answer_keys(bytes(8), bytes(16), memoryview(bytes(31)), 1, 32)
    with pytest.raises(ValueError, match="material"):
        server.answer_keys(bytes(16), bytes(16), memoryview(bytes(32)), 1, 32)
    server.stop()


def test_an_answer_to_nobody_is_wiped_and_forgotten(kme, lots, alice):
    async def slow(_request: Request) -> Response:
        await asyncio.sleep(0.2)
        raise KeyExhausted("nothing")

    with RunningServer(slow, kme, is_front=True) as running:
        with Wire(running.port, alice) as wire:
            wire.send(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            time.sleep(0.05)
        until(lambda: not running.server.connections)
        until(lambda: not running.server._tasks)
        until(running.server.is_handed)


# ── TLS ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def openssl_client(running, own, *options) -> subprocess.Popen:
    command = ["openssl", "s_client", "-connect", f"127.0.0.1:{running.port}", "-tls1_3", *options]
    command += ["-cert", str(own.certificate), "-key", str(own.private_key)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


needs_openssl = pytest.mark.skipif(shutil.which("openssl") is None, reason="needs the openssl command")


@needs_openssl
@pytest.mark.parametrize("is_front", [True, False])
def test_key_exchange_that_costs_a_server_dearly_is_refused(kme, alice, lots, is_front):
    with RunningServer(Etsi014(lots, lots.sae_of).handle, kme, is_front=is_front) as server:
        dear = openssl_client(server, alice, "-quiet", "-groups", "ffdhe8192")
        _, problem = dear.communicate(timeout=ANSWER_WITHIN_S)
        assert dear.returncode == 1
        # asyncio closes without the alert.
        assert (b"handshake failure" if is_front else b"unexpected eof") in problem
        cheap = openssl_client(server, alice, "-quiet", "-groups", "P-256")
        answer, _ = cheap.communicate(b"GET /nowhere HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", ANSWER_WITHIN_S)
        assert answer.startswith(b"HTTP/1.1 400 ")


@needs_openssl
def test_a_client_that_only_asks_for_new_keys_of_the_connection_loses_it(running, alice):
    client = openssl_client(running, alice, "-no_ign_eof")
    request = b"GET /nowhere HTTP/1.1\r\nHost: x\r\n\r\n"

    def say(octets: bytes, until: bytes, stream) -> None:
        client.stdin.write(octets)
        client.stdin.flush()
        assert any(until in line for line in stream)

    # s_client takes a K for itself, says what it does, and asks for new keys.
    for _ in range(2):
        for _ in range(8):
            say(b"K\n", b"KEYUPDATE", client.stderr)
        say(request, b"HTTP/1.1 400 ", client.stdout)
    for _ in range(9):
        say(b"K\n", b"KEYUPDATE", client.stderr)
    client.wait(ANSWER_WITHIN_S)
    assert b"HTTP/1.1" not in client.communicate()[0]
