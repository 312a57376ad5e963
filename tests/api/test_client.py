"""The SAE's side: against our own server, and against servers that misbehave."""

import contextlib
import json
import logging
import socket
import ssl
import threading
import uuid
from collections.abc import Iterator

import pytest
from api_kit import ANSWER_WITHIN_S, FakeSupply, Pki, RunningServer

from qtrunk.api.client import Etsi014Client
from qtrunk.api.etsi014 import Etsi014
from qtrunk.api.https import Limits, server_context
from qtrunk.base.errors import (
    AuthenticationFailed,
    KeyExhausted,
    KeyNotFound,
    NotAuthorised,
    RequestRefused,
    WireError,
)
from qtrunk.base.ids import KeyId, SaeId
from qtrunk.base.ports import KeySource

ALICE, BOB, CAROL = SaeId("alice"), SaeId("bob"), SaeId("carol")


@contextlib.contextmanager
def client(port: int, own, *, host: str = "localhost", name: str = "alice", **more) -> Iterator[Etsi014Client]:
    made = Etsi014Client(
        **{
            "kme_url": f"https://{host}:{port}",
            "own_sae": SaeId(name),
            "timeout_s": 5.0,
            **own.arguments(),
            **more,
        }
    )
    try:
        yield made
    finally:
        made.close()


@pytest.fixture
def for_alice(server, alice) -> Iterator[Etsi014Client]:
    with client(server.port, alice) as made:
        yield made


@pytest.fixture
def for_bob(server, bob) -> Iterator[Etsi014Client]:
    with client(server.port, bob, name="bob") as made:
        yield made


# ── our own KME ─────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_client_is_a_key_source(for_alice):
    source: KeySource = for_alice
    assert source.status(BOB) == FakeSupply().status(ALICE, BOB)


def test_both_ends_hold_the_same_keys_in_the_order_asked_for(for_alice, for_bob):
    given = for_alice.get_keys(BOB, 3, 512)
    wanted = [key.key_id for key in reversed(given)]
    taken = for_bob.get_keys_with_ids(ALICE, wanted)
    assert [key.key_id for key in taken] == wanted
    assert [key.material for key in taken] == [key.material for key in reversed(given)]
    assert all(len(key.material) == 64 and any(key.material.reveal()) for key in taken)


def test_further_targets_get_the_keys_too(for_alice, server, carol):
    given = for_alice.get_keys(BOB, 1, 256, also=[CAROL])
    with client(server.port, carol, name="carol") as for_carol:
        (taken,) = for_carol.get_keys_with_ids(ALICE, [given[0].key_id])
    assert taken.material == given[0].material


def test_more_keys_than_fit_in_a_request_are_collected_in_batches(for_alice, for_bob, supply):
    given = [key for _ in range(5) for key in for_alice.get_keys(BOB, 8, 64)]
    supply.per_request = 7
    taken = for_bob.get_keys_with_ids(ALICE, [key.key_id for key in given])
    assert [(key.key_id, key.material) for key in taken] == [(key.key_id, key.material) for key in given]


def test_no_ids_are_no_request(for_bob, server, supply):
    server.server.handler = None
    assert for_bob.get_keys_with_ids(ALICE, []) == []


def test_an_empty_pool_is_key_exhausted_with_the_time_to_come_back(for_alice, supply):
    supply.stock = 0
    with pytest.raises(KeyExhausted, match="0 are there") as caught:
        for_alice.get_keys(BOB, 1, 256)
    assert caught.value.retry_after_s == 7


def test_a_key_that_was_collected_is_not_found_again(for_alice, for_bob):
    ids = [key.key_id for key in for_alice.get_keys(BOB, 1, 256)]
    for_bob.get_keys_with_ids(ALICE, ids)
    with pytest.raises(KeyNotFound, match="not found on KME"):
        for_bob.get_keys_with_ids(ALICE, ids)


def test_a_key_of_others_is_not_authorised(for_alice, server, carol):
    ids = [key.key_id for key in for_alice.get_keys(BOB, 1, 256)]
    with client(server.port, carol, name="carol") as for_carol, pytest.raises(NotAuthorised):
        for_carol.get_keys_with_ids(ALICE, ids)


def test_a_wrong_request_is_refused_with_the_text_of_the_kme(for_alice):
    with pytest.raises(RequestRefused, match="size shall be a multiple of 8"):
        for_alice.get_keys(BOB, 1, 65)
    with pytest.raises(RequestRefused, match="nobody"):
        for_alice.status(SaeId("nobody"))


def test_an_sae_id_with_reserved_characters_arrives_as_it_is(for_alice):
    assert for_alice.get_keys(SaeId("a:b@c"), 1, 256)


def test_one_connection_serves_many_requests_and_is_renewed_when_the_kme_has_closed_it(supply, kme, alice):
    limits = Limits(idle_s=0.2)
    with (
        RunningServer(Etsi014(supply, supply.sae_of).handle, kme, limits=limits) as running,
        client(running.port, alice) as made,
    ):
        made.status(BOB)
        first = made._connection.sock
        made.get_keys(BOB, 1, 256)
        assert made._connection.sock is first
        deadline = threading.Event()
        while running.server.connections:
            deadline.wait(0.01)
        # No request is lost on the old connection, not even one that would have taken keys.
        assert len(made.get_keys(BOB, 1, 256)) == 1
        assert made._connection.sock is not first
        assert supply.allocations == 2


# ── who is who ──────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_kme_of_another_ca_is_not_talked_to(server, alice, tmp_path, supply):
    other = Pki(tmp_path / "other")
    with (
        client(server.port, alice, ca_certificate=other.ca_certificate) as made,
        pytest.raises(AuthenticationFailed, match="does not verify"),
    ):
        made.get_keys(BOB, 1, 256)
    assert supply.allocations == 0


def test_a_kme_whose_certificate_is_for_another_host_is_not_talked_to(supply, pki, alice):
    elsewhere = pki.issue("kme-a", dns=["kme.example"])
    with (
        RunningServer(Etsi014(supply, supply.sae_of).handle, elsewhere) as running,
        client(running.port, alice) as made,
        pytest.raises(AuthenticationFailed, match="localhost"),
    ):
        made.get_keys(BOB, 1, 256)
    assert supply.allocations == 0


@pytest.mark.parametrize(
    ("names", "is_it"),
    [
        ({"uris": ["urn:qtrunk:kme:kme-a"]}, True),
        ({}, True),
        ({"uris": ["urn:qtrunk:kme:kme-b"]}, False),
        ({"uris": ["urn:qtrunk:sae:kme-a"]}, False),
    ],
    ids=str,
)
def test_the_kme_must_be_the_one_that_was_named(supply, pki, alice, names, is_it):
    own = pki.issue("kme-a", dns=["localhost"], **names)
    with (
        RunningServer(Etsi014(supply, supply.sae_of).handle, own) as running,
        client(running.port, alice, kme_id="kme-a") as made,
    ):
        if is_it:
            assert made.get_keys(BOB, 1, 256)
        else:
            with pytest.raises(AuthenticationFailed, match="kme-a"):
                made.get_keys(BOB, 1, 256)
    assert supply.allocations == is_it


def test_an_address_in_the_url_is_checked_as_well(server, alice):
    with client(server.port, alice, host="127.0.0.1") as made:
        assert made.status(BOB)


@pytest.mark.parametrize("is_front", [False, True], ids=["https", "front"])
def test_a_kme_that_does_not_take_our_certificate_gives_nothing(kme, tmp_path, supply, is_front):
    # asyncio hangs up without the alert that would say why, so the error can only ask.
    problem, text = (
        (AuthenticationFailed, "check the certificate of alice")
        if is_front
        else (KeyExhausted, r"the certificate of alice\?|broke")
    )
    foreign = Pki(tmp_path / "foreign").sae("alice")
    with (
        RunningServer(Etsi014(supply, supply.sae_of).handle, kme, is_front=is_front) as running,
        client(running.port, foreign, ca_certificate=kme.ca_certificate) as made,
        pytest.raises(problem, match=text),
    ):
        made.get_keys(BOB, 1, 256)
    assert supply.allocations == 0


def test_a_kme_that_says_that_it_does_not_take_our_certificate_is_quoted(odd, kme, tmp_path):
    foreign = Pki(tmp_path / "foreign").sae("alice")
    for _ in range(10):
        with (
            client(odd.port, foreign, ca_certificate=kme.ca_certificate) as made,
            pytest.raises(AuthenticationFailed, match="check the certificate of alice"),
        ):
            made.get_keys(BOB, 1, 256)
    assert odd.heard == []


@pytest.mark.parametrize("url", ["http://localhost:1", "localhost:1", "https://", "https://a@b", "https://b/?x=1", ""])
def test_a_url_without_tls_or_host_is_refused(alice, url):
    with pytest.raises(RequestRefused, match="https://HOST"):
        Etsi014Client(kme_url=url, own_sae=ALICE, **alice.arguments())


# ── a KME that is down or odd ───────────────────────────────────────────────────────────────────────────────────────


class LastWords(bytes):
    """An answer, perhaps cut short, behind which the connection ends."""


class ScriptedKme:
    """Gives set answers, one a request; after LastWords it closes the connection. `heard` is what it was asked."""

    def __init__(self, kme) -> None:
        self.answers: list[bytes] = []
        self.heard: list[bytes] = []
        self._context = server_context(kme.certificate, kme.private_key, kme.ca_certificate)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        while True:
            try:
                plain, _ = self._listener.accept()
            except OSError:
                return
            with contextlib.suppress(OSError), self._context.wrap_socket(plain, server_side=True) as sock:
                self._talk(sock)

    def _talk(self, sock: ssl.SSLSocket) -> None:
        while octets := sock.recv(65536):
            head, _, body = octets.partition(b"\r\n\r\n")
            length = next((int(line[15:]) for line in head.split(b"\r\n") if line.startswith(b"Content-Length:")), 0)
            while len(body) < length:
                body += sock.recv(65536)
            self.heard.append(head + b"\r\n\r\n" + body)
            answer = self.answers.pop(0)
            sock.sendall(answer)
            if isinstance(answer, LastWords):
                return

    def close(self) -> None:
        # On Linux a close alone does not wake the thread out of accept().
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join(ANSWER_WITHIN_S)
        assert not self._thread.is_alive()


@pytest.fixture(scope="module")
def only_kme(kme) -> Iterator[ScriptedKme]:
    running = ScriptedKme(kme)
    yield running
    running.close()


@pytest.fixture
def odd(only_kme) -> ScriptedKme:
    only_kme.answers.clear()
    only_kme.heard.clear()
    return only_kme


@pytest.fixture
def for_odd(odd, alice) -> Iterator[Etsi014Client]:
    with client(odd.port, alice) as made:
        yield made


def answer(status: int, body: object, *headers: str) -> bytes:
    octets = body if isinstance(body, bytes) else json.dumps(body).encode()
    lines = [f"HTTP/1.1 {status} X", f"Content-Length: {len(octets)}", *headers]
    return "\r\n".join([*lines, "", ""]).encode() + octets


ID = KeyId("7a8a2fd6-2d2c-4a0e-8f0a-3d1f5f0b9c11")
ENTRY = {"key_ID": ID, "key": "AAECAwQFBgc="}


def test_what_is_asked_is_what_the_standard_says(for_odd, odd):
    odd.answers = [answer(200, {"keys": [ENTRY]})] * 2
    for_odd.get_keys(BOB, 1, 64)
    for_odd.get_keys_with_ids(BOB, [ID])
    first, second = odd.heard
    assert first.startswith(b"POST /api/v1/keys/bob/enc_keys HTTP/1.1\r\n")
    assert first.endswith(b'\r\n\r\n{"number": 1, "size": 64}')
    assert b"Content-Type: application/json" in first
    assert second.startswith(b"POST /api/v1/keys/bob/dec_keys HTTP/1.1\r\n")
    assert second.endswith(b'\r\n\r\n{"key_IDs": [{"key_ID": "%s"}]}' % ID.encode())


def test_a_path_in_the_url_comes_before_that_of_the_standard(odd, alice):
    odd.answers = [answer(200, {"keys": [ENTRY]})]
    with client(odd.port, alice, kme_url=f"https://localhost:{odd.port}/kme/1/") as made:
        made.get_keys(SaeId("a:b"), 1, 64)
    assert odd.heard[0].startswith(b"POST /kme/1/api/v1/keys/a%3Ab/enc_keys HTTP/1.1\r\n")


def test_members_that_the_client_does_not_know_are_ignored(for_odd, odd):
    keys = {"keys": [{**ENTRY, "key_extension": {"a": 1}}], "key_container_extension": {}}
    odd.answers = [answer(200, keys, "Content-Type: text/plain")]
    (key,) = for_odd.get_keys(BOB, 1, 64)
    assert (key.key_id, bytes(key.material.reveal())) == (ID, bytes(range(8)))


def test_a_foreign_status_without_our_extension_is_read(for_odd, odd):
    document = {
        "source_KME_ID": "a",
        "target_KME_ID": "b",
        "master_SAE_ID": "alice",
        "slave_SAE_ID": "bob",
        "key_size": 352,
        "stored_key_count": 25_000,
        "max_key_count": 100_000,
        "max_key_per_request": 128,
        "max_key_size": 1024,
        "min_key_size": 64,
        "max_SAE_ID_count": 0,
    }
    odd.answers = [answer(200, document), answer(200, document | {"status_extension": [1]})]
    assert for_odd.status(BOB).fill_bps == 0.0
    assert for_odd.status(BOB).key_bits == 352


@pytest.mark.parametrize(
    ("status", "headers", "kind", "retry_after_s"),
    [
        (503, ["Retry-After: 12"], KeyExhausted, 12),
        (503, ["Retry-After: Wed, 21 Oct 2026 07:28:00 GMT"], KeyExhausted, 1),
        (503, ["Retry-After: 99999999"], KeyExhausted, 3600),
        (503, [], KeyExhausted, 1),
        (401, [], NotAuthorised, None),
        (400, [], KeyNotFound, None),
        (404, [], KeyNotFound, None),
        (500, [], RequestRefused, None),
        (302, ["Location: https://elsewhere/"], RequestRefused, None),
    ],
)
@pytest.mark.parametrize("body", [{"message": "so \x1b[31mis it"}, b"", b"<html>", {"Message": 1}, [1]], ids=repr)
def test_a_status_becomes_an_error_of_ours_whatever_its_body(for_odd, odd, status, headers, kind, retry_after_s, body):
    odd.answers = [answer(status, body, *headers)]
    with pytest.raises(kind, match=f"answered {status}: (so .31mis it|no message)") as caught:
        for_odd.get_keys_with_ids(BOB, [ID])
    assert getattr(caught.value, "retry_after_s", None) == retry_after_s


def test_400_on_get_key_is_a_refused_request(for_odd, odd):
    odd.answers = [answer(400, {"message": "no"})]
    with pytest.raises(RequestRefused, match="no"):
        for_odd.get_keys(BOB, 1, 64)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\xff\xfe",
        b"{",
        [],
        {},
        {"Keys": [ENTRY]},
        {"keys": {}},
        {"keys": []},
        {"keys": [ENTRY, ENTRY]},
        {"keys": ["x"]},
        {"keys": [{"key_ID": ID}]},
        {"keys": [{"key_ID": 7, "key": "AAECAwQFBgc="}]},
        {"keys": [{"key_ID": "x", "key": "AAECAwQFBgc="}]},
        {"keys": [{"key_ID": ID, "key": "AAECAwQFBg"}]},
        {"keys": [{"key_ID": ID, "key": "AAECAwQFBg-_"}]},
        {"keys": [{"key_ID": ID, "key": "AAECAwQFBgcI"}]},
        {"keys": [{"key_ID": ID, "key": ""}]},
        {"keys": [{"key_ID": str(uuid.UUID(int=1)), "key": "AAECAwQFBgc="}] * 2},
    ],
    ids=lambda body: repr(body)[:60],
)
def test_an_answer_against_the_standard_is_no_key(for_odd, odd, body):
    odd.answers = [answer(200, body)]
    with pytest.raises(WireError, match="KME localhost"):
        for_odd.get_keys(BOB, 1, 64)


def test_keys_other_than_those_asked_for_are_refused(for_odd, odd):
    odd.answers = [answer(200, {"keys": [ENTRY]}), answer(200, {"keys": [ENTRY, ENTRY]})]
    with pytest.raises(WireError, match="other keys"):
        for_odd.get_keys_with_ids(BOB, [KeyId(str(uuid.UUID(int=1)))])
    with pytest.raises(WireError, match="other keys"):
        for_odd.get_keys_with_ids(BOB, [ID])


def test_two_keys_under_one_id_are_refused(for_odd, odd):
    odd.answers = [answer(200, {"keys": [ENTRY, ENTRY]})]
    with pytest.raises(WireError, match="two keys"):
        for_odd.get_keys(BOB, 2, 64)


def test_a_status_that_lacks_a_member_is_refused(for_odd, odd):
    odd.answers = [answer(200, {"source_KME_ID": "a"})]
    with pytest.raises(WireError, match="status"):
        for_odd.status(BOB)


@pytest.mark.parametrize("cut", [b"", answer(200, {"keys": [ENTRY]})[:-5], b"HTTP/1.1 2", b"nonsense"], ids=repr)
def test_a_request_whose_answer_is_lost_is_not_sent_twice(for_odd, odd, cut):
    odd.answers = [LastWords(cut)]
    with pytest.raises(KeyExhausted, match=r"does not answer|broke"):
        for_odd.get_keys(BOB, 1, 64)
    assert len(odd.heard) == 1
    odd.answers = [answer(200, {"keys": [ENTRY]})]
    assert len(for_odd.get_keys(BOB, 1, 64)) == 1


def test_an_answer_without_end_is_cut_off(for_odd, odd, monkeypatch):
    monkeypatch.setattr("qtrunk.api.client.ANSWER_OCTETS_MAX", 1000)
    odd.answers = [answer(200, b" " * 1001)]
    with pytest.raises(WireError, match="more than 1000"):
        for_odd.get_keys(BOB, 1, 64)


def test_a_kme_that_is_silent_or_down_is_tried_again_later(alice):
    with (
        socket.create_server(("127.0.0.1", 0)) as silent,
        client(silent.getsockname()[1], alice, timeout_s=0.2) as made,
        pytest.raises(KeyExhausted) as caught,
    ):
        made.status(BOB)
    assert caught.value.retry_after_s == 2
    with client(silent_port(), alice) as made, pytest.raises(KeyExhausted, match="is the node up"):
        made.status(BOB)


def silent_port() -> int:
    """One that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return taken.getsockname()[1]


def test_no_key_is_in_an_error_or_a_log(for_odd, odd, caplog):
    secret = "c2VjcmV0c2VjcmV0"
    with caplog.at_level(logging.DEBUG):
        for body in ({"keys": [{"key_ID": ID, "key": secret + "="}]}, b'{"keys":[{"key":"' + secret.encode()):
            odd.answers = [answer(200, body)]
            with pytest.raises(WireError) as caught:
                for_odd.get_keys(BOB, 1, 64)
            assert secret not in f"{caught.value}{caught.value.__cause__}"
    assert secret not in caplog.text
