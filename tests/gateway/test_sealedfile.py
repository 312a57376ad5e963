"""The format in AES-256-GCM mode: nothing opens but what was sealed, whatever a key manager does."""

import io

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from qtrunk.base.errors import SealedFileError
from qtrunk.base.ids import KeyId, SaeId
from qtrunk.base.secret import Secret
from qtrunk.gateway import sealedfile

KEY = bytes(range(32))
KEY_ID = KeyId("7a8a2fd6-2d2c-4a0e-8f0a-3d1f5f0b9c11")
OTHER_ID = "7a8a2fd6-2d2c-4a0e-8f0a-3d1f5f0b9c12"


@pytest.fixture
def small_chunks(monkeypatch):
    monkeypatch.setattr(sealedfile, "CHUNK_OCTETS", 16)


def _sealed(plain):
    sink = io.BytesIO()
    sealedfile.seal(io.BytesIO(plain), sink, KEY_ID, Secret(KEY), SaeId("bank"), SaeId("vault"))
    return sink.getvalue()


def _opened(octets, key=KEY):
    source, sink = io.BytesIO(octets), io.BytesIO()
    sealedfile.open_(source, sink, sealedfile.read_header(source), Secret(key))
    return sink.getvalue()


def _cut(octets):
    """Header, and chunks of at most 16 octets with length and tag."""
    start = len(sealedfile.read_header(io.BytesIO(octets)).octets)
    body, step = octets[start:], 4 + 16 + 16
    return octets[:start], [body[at : at + step] for at in range(0, len(body), step)]


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(plain=st.binary(max_size=100))
def test_whatever_was_sealed_opens_equal(small_chunks, plain):
    assert _opened(_sealed(plain)) == plain


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(plain=st.binary(min_size=33, max_size=80), order=st.lists(st.integers(0, 4), max_size=6))
def test_no_other_row_of_chunks_opens(small_chunks, plain, order):
    head, chunks = _cut(_sealed(plain))
    row = [chunks[index % len(chunks)] for index in order]
    if row == chunks:
        assert _opened(head + b"".join(row)) == plain
        return
    with pytest.raises(SealedFileError):
        _opened(head + b"".join(row))


def test_a_key_given_twice_lets_nothing_of_one_file_into_another(small_chunks):
    plain = bytes(48)
    (head, one), (other_head, two) = _cut(_sealed(plain)), _cut(_sealed(plain))
    assert not set(one) & set(two), "equal plaintext under an equal key shows nowhere"
    for row, top in (([two[0], *one[1:]], head), (one, other_head), ([*one[:-1], two[-1]], head)):
        with pytest.raises(SealedFileError, match=r"chunk [02]: was changed"):
            _opened(top + b"".join(row))


@pytest.mark.parametrize(
    "change",
    [
        {"key_ids": [OTHER_ID]},
        {"initiator": "bonk"},
        {"target": "fault"},
        {"chunk_octets": 17},
        {"salt": "00" * 32},
    ],
)
def test_a_header_with_another_word_does_not_open(small_chunks, change):
    head, chunks = _cut(_sealed(b"words"))
    fields = msgspec.json.decode(head[20:]) | change
    with pytest.raises(SealedFileError, match="chunk 0"):
        _opened(sealedfile.header_octets(sealedfile.Header(**fields)) + b"".join(chunks))


@pytest.mark.parametrize(
    "change",
    [
        {"mode": "rot13"},
        {"mode": "one-time-pad"},
        {"key_ids": []},
        {"key_ids": [KEY_ID, OTHER_ID]},
        {"key_ids": [KEY_ID.upper()]},
        {"mode": "one-time-pad", "key_ids": [KEY_ID, KEY_ID], "salt": ""},
        {"key_ids": ["../../locker"]},
        {"initiator": ".."},
        {"target": "a/b"},
        {"chunk_octets": 0},
        {"chunk_octets": 1 << 40},
        {"size": 1},
        {"size": -1, "mode": "one-time-pad", "salt": ""},
        {"salt": ""},
        {"salt": "0" * 63 + "G"},
    ],
)
def test_a_header_that_sealing_would_not_write_is_refused(change):
    head, _ = _cut(_sealed(b""))
    fields = msgspec.json.decode(head[20:]) | change
    with pytest.raises(SealedFileError, match="header"):
        sealedfile.read_header(io.BytesIO(sealedfile.header_octets(sealedfile.Header(**fields))))


def test_another_spelling_of_the_same_header_is_refused():
    head, chunks = _cut(_sealed(b"x"))
    body = head[20:].replace(b",", b", ", 1)
    with pytest.raises(SealedFileError, match="not in the form"):
        _opened(head[:16] + len(body).to_bytes(4, "big") + body + b"".join(chunks))


@pytest.mark.parametrize("key", [bytes(32), KEY[:16], KEY + b"x"])
def test_another_key_opens_nothing(key):
    with pytest.raises(SealedFileError):
        _opened(_sealed(b"secret"), key)


@pytest.mark.parametrize("size", [0, 1, 15, 16, 17, 160])
def test_the_room_that_is_asked_for_is_enough(small_chunks, size):
    assert len(_sealed(bytes(size))) <= sealedfile.sealed_octets(size)


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=600))
def test_garbage_is_refused_as_a_header(octets):
    with pytest.raises(SealedFileError):
        sealedfile.read_header(io.BytesIO(octets))
    with pytest.raises(SealedFileError):
        sealedfile.read_header(io.BytesIO(sealedfile.MAGIC + len(octets).to_bytes(4, "big") + octets))
