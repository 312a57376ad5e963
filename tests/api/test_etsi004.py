"""ETSI GS QKD 004 on TCP: layouts octet by octet, octets of anyone, who may open what, streams over real sockets."""

import json
import struct
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from api_kit import Pki, tls_socket
from hypothesis import given, settings
from hypothesis import strategies as st
from runners004 import Runners

from qtrunk.api import frames004 as frames
from qtrunk.api.client004 import Client004
from qtrunk.api.etsi004 import Limits
from qtrunk.base.errors import AuthenticationFailed, KeyExhausted, RequestRefused, WireError
from qtrunk.base.secret import Secret
from qtrunk.kms.streamnotes import Qos, Status

KSID = bytes(range(16))
QOS = Qos(
    key_chunk_size=32,
    max_bps=40000,
    min_bps=5000,
    jitter=10,
    priority=0,
    timeout=3000,
    ttl=3600,
    metadata_mimetype="application/json",
)
ALICE, BOB = "qkd://alice", "urn:example:sae:bob"


@pytest.fixture
def kmes(kme):
    with Runners(kme) as running:
        yield running


@pytest.fixture
def at_alice(kmes, alice):
    with kmes.client("alice", alice) as client:
        yield client


@pytest.fixture
def at_bob(kmes, bob):
    with kmes.client("bob", bob) as client:
        yield client


# ── frames ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_requests_as_they_travel():
    numbers = struct.pack(">7I", 32, 40000, 5000, 10, 0, 3000, 3600)
    qos = numbers + b"application/json".ljust(256, b"\0")
    payload = b"qkd://alice\0urn:example:sae:bob\0" + qos + bytes(16)
    request = frames.OpenRequest(source=ALICE, destination=BOB, qos=QOS, ksid=None)
    assert frames.pack_request(request) == b"\1\0\1\2" + struct.pack(">I", len(payload)) + payload
    assert frames.parse_request(2, payload) == request
    request = frames.GetKeyRequest(ksid=KSID, index=7, metadata_size=1024)
    assert frames.pack_request(request) == b"\1\0\1\4\0\0\0\x18" + KSID + b"\0\0\0\7\0\0\4\0"
    request = frames.CloseRequest(ksid=KSID)
    assert frames.pack_request(request) == b"\1\0\1\x08\0\0\0\x10" + KSID


def test_answers_as_they_travel():
    assert frames.pack_open_answer(Status.KSID_IN_USE, None, b"") == b"\1\0\1\3\0\0\0\4\0\0\0\5"
    opened = frames.pack_open_answer(Status.SUCCESS, QOS, KSID)
    assert len(opened) == 8 + 4 + 284 + 16
    assert frames.parse_open_answer(opened[8:]) == (Status.SUCCESS, QOS, KSID)
    key = frames.pack_key(3, Secret(b"\xaa\xbb"), b"{}")
    assert key == b"\1\0\1\5\0\0\0\x14" + b"\0\0\0\0" + b"\0\0\0\3" + b"\0\0\0\2\xaa\xbb" + b"\0\0\0\2{}"
    assert frames.parse_key_answer(key[8:]) == (Status.SUCCESS, 3, Secret(b"\xaa\xbb"), b"{}", 0)
    small = frames.pack_no_key(Status.METADATA_TOO_SMALL, 35)
    assert small == b"\1\0\1\5\0\0\0\x08\0\0\0\x08\0\0\0\x23"
    assert frames.parse_key_answer(small[8:]) == (Status.METADATA_TOO_SMALL, 0, None, b"", 35)
    assert frames.pack_close_answer(Status.SUCCESS) == b"\1\0\1\x09\0\0\0\4\0\0\0\0"


REQUESTS = st.one_of(
    st.builds(
        frames.OpenRequest,
        source=st.text(st.characters(min_codepoint=1, max_codepoint=127), max_size=1024),
        destination=st.text(st.characters(min_codepoint=1, max_codepoint=127), max_size=1024),
        qos=st.builds(
            Qos,
            **{name: st.integers(0, 2**32 - 1) for name in Qos.__struct_fields__[:7]},
            metadata_mimetype=st.text(st.characters(min_codepoint=1, max_codepoint=127), max_size=256),
        ),
        ksid=st.one_of(st.none(), st.binary(min_size=16, max_size=16).filter(any)),
    ),
    st.builds(
        frames.GetKeyRequest,
        ksid=st.binary(min_size=16, max_size=16),
        index=st.integers(0, 2**32 - 1),
        metadata_size=st.integers(0, 2**32 - 1),
    ),
    st.builds(frames.CloseRequest, ksid=st.binary(min_size=16, max_size=16)),
)


@settings(deadline=None)
@given(REQUESTS)
def test_every_request_survives_the_way(request):
    octets = bytes(frames.pack_request(request))
    service, length = frames.parse_header(octets[:8], frames.REQUEST_OCTETS_MAX)
    assert length == len(octets) - 8
    assert frames.parse_request(service, octets[8:]) == request


@settings(deadline=None)
@given(REQUESTS, st.data())
def test_a_cut_or_longer_request_is_refused(request, data):
    octets = bytes(frames.pack_request(request))
    cut = data.draw(st.integers(8, len(octets) - 1))
    with pytest.raises(WireError):
        frames.parse_request(octets[3], octets[8:cut])
    with pytest.raises(WireError):
        frames.parse_request(octets[3], octets[8:] + b"\0")


@settings(deadline=None)
@given(st.integers(0, 255), st.binary(max_size=400))
def test_octets_of_anyone_are_a_request_or_a_wire_error(service, octets):
    try:
        request = frames.parse_request(service, octets)
    except WireError:
        return
    assert frames.pack_request(request)[8:] == octets


@settings(deadline=None)
@given(st.binary(max_size=400))
def test_octets_of_any_key_manager_are_an_answer_or_a_wire_error(octets):
    for parse in (frames.parse_status, frames.parse_open_answer, frames.parse_key_answer):
        try:
            parse(bytearray(octets))
        except WireError as problem:
            assert str(problem)  # noqa: PT017


@pytest.mark.parametrize(
    ("uri", "sae"),
    [
        ("qkd://alice", "alice"),
        ("client://alice:5000/path?token=x", "alice"),
        ("urn:qtrunk:sae:alice", "alice"),
        ("urn:qtrunk:sae:a:b%40c", "a:b@c"),
        ("qkd://a%3Ab%40c", "a:b@c"),
        ("alice", None),
        ("", None),
        ("qkd://", None),
        ("qkd://[", None),
        ("urn:qtrunk:kme:alice", None),
        ("qkd://a%2Fb", None),
        ("qkd://..", None),
    ],
)
def test_the_sae_of_a_uri(uri, sae):
    assert frames.sae_of_uri(uri) == sae


def test_what_does_not_fit_a_frame_is_refused_by_name():
    with pytest.raises(RequestRefused, match="source"):
        frames.pack_request(frames.OpenRequest(source="a\0b", destination=BOB, qos=QOS, ksid=None))
    with pytest.raises(RequestRefused, match="Key_stream_ID"):
        frames.pack_request(frames.CloseRequest(ksid=b"short"))
    with pytest.raises(RequestRefused, match="index"):
        frames.pack_request(frames.GetKeyRequest(ksid=KSID, index=-1, metadata_size=0))


# ── streams over sockets ────────────────────────────────────────────────────────────────────────────────────────────


def test_a_stream_from_open_to_close(kmes, at_alice, at_bob):
    first = at_alice.open(ALICE, BOB, QOS)
    assert first.status is Status.PEER_NOT_YET_CONNECTED
    assert at_alice.get_key(first.ksid, 0).status is Status.PEER_NOT_CONNECTED
    second = at_bob.open(ALICE, BOB, QOS, first.ksid)
    assert second.status is Status.SUCCESS
    assert (second.qos, second.ksid) == (QOS, first.ksid)
    for index in range(3):
        mine, theirs = at_alice.get_key(first.ksid, index), at_bob.get_key(first.ksid, index)
        assert mine.status is theirs.status is Status.SUCCESS
        assert mine.key == theirs.key
        assert len(mine.key) == 32
        assert json.loads(mine.metadata)["hops"] == 1
        assert 0 <= json.loads(theirs.metadata)["age"] < 10_000
    assert at_alice.get_key(first.ksid, 0).status is Status.INSUFFICIENT_KEY
    small = at_alice.get_key(first.ksid, 3, metadata_size=1)
    assert small.status is Status.METADATA_TOO_SMALL
    assert at_alice.get_key(first.ksid, 3, metadata_size=small.metadata_size).status is Status.SUCCESS
    assert at_alice.close(first.ksid) is Status.SUCCESS
    assert at_alice.close(first.ksid) is Status.PEER_NOT_CONNECTED
    assert at_bob.close(first.ksid) is Status.SUCCESS
    assert not any(any(key.material.reveal()) for key in kmes.supply.handed_out)


def test_a_predefined_ksid_blocks_for_its_twin(at_alice, at_bob):
    with ThreadPoolExecutor() as pool:
        waiting = pool.submit(at_alice.open, ALICE, BOB, QOS, KSID)
        time.sleep(0.1)
        assert not waiting.done()
        assert at_bob.open(ALICE, BOB, QOS, KSID).status is Status.SUCCESS
        assert waiting.result(5).status is Status.SUCCESS


def test_a_predefined_ksid_times_out(at_alice):
    asked = Qos(**{name: getattr(QOS, name) for name in Qos.__struct_fields__} | {"timeout": 200})
    answer = at_alice.open(ALICE, BOB, asked, KSID)
    assert (answer.status, answer.qos) == (Status.TIMEOUT, None)


def test_no_key(kmes, at_alice, at_bob):
    ksid = at_alice.open(ALICE, BOB, QOS).ksid
    at_bob.open(ALICE, BOB, QOS, ksid)
    kmes.supply.fails = KeyExhausted("none")
    assert at_alice.get_key(ksid, 0).status is Status.INSUFFICIENT_KEY
    assert at_bob.get_key(ksid, 0).status is Status.INSUFFICIENT_KEY


@pytest.mark.parametrize(
    ("source", "destination"),
    [(BOB, "qkd://carol"), ("alice", BOB), (ALICE, "qkd://nobody"), (ALICE, ALICE), (ALICE, "")],
)
def test_whoever_is_neither_source_nor_destination_gets_no_stream(at_alice, source, destination):
    answer = at_alice.open(source, destination, QOS)
    assert (answer.status, answer.qos, answer.ksid) == (Status.NO_CONNECTION, None, b"")


def test_a_stream_of_others_is_nobodys_business(kmes, at_alice, at_bob, carol):
    ksid = at_alice.open(ALICE, BOB, QOS).ksid
    at_bob.open(ALICE, BOB, QOS, ksid)
    with kmes.client("carol", carol) as stranger:
        assert stranger.get_key(ksid, 0).status is Status.PEER_NOT_CONNECTED
        assert stranger.close(ksid) is Status.PEER_NOT_CONNECTED
        assert stranger.open("qkd://carol", BOB, QOS, ksid).status is Status.KSID_IN_USE
    assert at_alice.get_key(ksid, 0).status is Status.SUCCESS


def test_a_second_connection_gets_in_use_until_the_first_has_ended(kmes, alice, at_alice):
    ksid = at_alice.open(ALICE, BOB, QOS).ksid
    with kmes.client("alice", alice) as other:
        assert other.open(ALICE, BOB, QOS, ksid).status is Status.KSID_IN_USE
        at_alice.disconnect()
        deadline = time.monotonic() + 5
        while (answer := other.open(ALICE, BOB, QOS, ksid)).status is Status.KSID_IN_USE:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        assert answer.status is Status.PEER_NOT_YET_CONNECTED


def test_a_client_that_hangs_up_while_it_waits_takes_no_key(kmes, alice, at_alice, at_bob):
    ksid = at_alice.open(ALICE, BOB, QOS).ksid
    at_bob.open(ALICE, BOB, QOS, ksid)
    kmes.supply.delay_s = 0.5
    with tls_socket(kmes.ports["a"], alice, alice.ca_certificate) as hasty:
        hasty.sendall(frames.pack_request(frames.GetKeyRequest(ksid=ksid, index=0, metadata_size=0)))
        time.sleep(0.1)
    assert at_alice.get_key(ksid, 0).status is Status.SUCCESS


@pytest.mark.parametrize("next_request", [b"", frames.pack_request(frames.CloseRequest(ksid=KSID))])
def test_one_who_is_put_out_while_its_call_waits_takes_no_key(kmes, alice, at_alice, at_bob, next_request):
    ksid = at_alice.open(ALICE, BOB, QOS).ksid
    at_bob.open(ALICE, BOB, QOS, ksid)
    kmes.supply.delay_s = 2.0
    with tls_socket(kmes.ports["a"], alice, alice.ca_certificate) as sock:
        sock.sendall(frames.pack_request(frames.GetKeyRequest(ksid=ksid, index=0, metadata_size=0)) + next_request)
        time.sleep(0.2)
        kmes.put_out.add("alice")
        assert sock.recv(1) == b""
    kmes.put_out.clear()
    assert at_alice.get_key(ksid, 0).status is Status.SUCCESS


def test_a_certificate_that_names_no_sae_here_is_turned_away(kmes, pki, bob):
    with (
        Client004(host="localhost", port=kmes.ports["a"], **bob.arguments()) as client,
        pytest.raises(KeyExhausted, match="does not answer"),
    ):
        client.open(ALICE, BOB, QOS)
    with (
        Client004(host="localhost", port=kmes.ports["a"], **pki.kme("alice").arguments()) as client,
        pytest.raises(KeyExhausted),
    ):
        client.open(ALICE, BOB, QOS)


def test_a_certificate_of_another_ca_is_refused(kmes, tmp_path, alice):
    stranger = Pki(tmp_path / "ca").sae("alice")
    arguments = stranger.arguments() | {"ca_certificate": alice.ca_certificate}
    with (
        Client004(host="localhost", port=kmes.ports["a"], **arguments) as client,
        pytest.raises((AuthenticationFailed, KeyExhausted), match="certificate"),
    ):
        client.open(ALICE, BOB, QOS)
    with (
        Client004(host="localhost", port=kmes.ports["a"], **stranger.arguments()) as client,
        pytest.raises(AuthenticationFailed),
    ):
        client.open(ALICE, BOB, QOS)


@pytest.mark.parametrize(
    "octets",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        b"\1\0\2\4\0\0\0\x18" + bytes(24),
        b"\1\0\1\6\0\0\0\0",
        b"\1\0\1\4\0\0\0\x17" + bytes(23),
        b"\1\0\1\2\xff\xff\xff\xff",
        b"\1\0\1\2\0\0\1\0" + b"a" * 256,
    ],
)
def test_what_cannot_be_understood_ends_the_connection_and_harms_nobody(kmes, alice, at_alice, octets):
    with tls_socket(kmes.ports["a"], alice, alice.ca_certificate) as odd:
        odd.sendall(octets)
        assert odd.recv(1) == b""
    assert at_alice.open(ALICE, BOB, QOS).status is Status.PEER_NOT_YET_CONNECTED


def test_pipelined_requests_are_answered_in_order(kmes, alice):
    with tls_socket(kmes.ports["a"], alice, alice.ca_certificate) as sock:
        get = frames.pack_request(frames.GetKeyRequest(ksid=KSID, index=0, metadata_size=0))
        close = frames.pack_request(frames.CloseRequest(ksid=KSID))
        sock.sendall(get + close + get)
        octets = b""
        while len(octets) < 36:
            octets += sock.recv(64)
    assert [octets[place + 3] for place in (0, 12, 24)] == [5, 9, 5]


def test_slow_clients_and_too_many_connections_are_cut_off(kme, alice):
    limits = Limits(per_sae_max=2, request_s=0.3, idle_s=0.6)
    with Runners(kme, limits) as kmes:
        with tls_socket(kmes.ports["a"], alice, alice.ca_certificate) as slow:
            started = time.monotonic()
            slow.sendall(b"\1")
            assert slow.recv(1) == b""
            assert time.monotonic() - started < 0.55
        with tls_socket(kmes.ports["a"], alice, alice.ca_certificate) as idle:
            assert idle.recv(1) == b""
        held = [tls_socket(kmes.ports["a"], alice, alice.ca_certificate) for _ in range(3)]
        held[2].settimeout(0.3)
        assert held[2].recv(1) == b""
        for sock in held:
            sock.close()
