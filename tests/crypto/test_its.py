"""One-time pad and tags: round trips, and every change is noticed."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qtrunk.base.errors import AuthenticationFailed
from qtrunk.crypto import its, universal

KEY = bytes(range(32))


@given(st.binary(max_size=200), st.data())
def test_the_pad_decrypts_what_it_encrypted(data, draw):
    pad = draw.draw(st.binary(min_size=len(data), max_size=len(data)))
    assert its.one_time_pad(its.one_time_pad(data, pad), pad) == data


def test_a_pad_of_another_length_is_refused():
    with pytest.raises(ValueError, match="pad"):
        its.one_time_pad(b"abc", b"ab")
    with pytest.raises(ValueError, match="key"):
        its.tag(b"short", b"", [])


@given(st.binary(max_size=20), st.lists(st.binary(max_size=40), max_size=4))
def test_a_tag_verifies_what_it_was_made_for(label, parts):
    its.verify(KEY, label, parts, its.tag(KEY, label, parts))


@given(
    st.tuples(st.binary(max_size=20), st.lists(st.binary(max_size=40), max_size=4)),
    st.tuples(st.binary(max_size=20), st.lists(st.binary(max_size=40), max_size=4)),
)
def test_a_tag_of_another_message_or_cut_never_verifies(one, other):
    # False alarm: two of hypothesis' messages collide with probability below 2^-120 each.
    if one != other:
        with pytest.raises(AuthenticationFailed):
            its.verify(KEY, *other, its.tag(KEY, *one))


@given(st.lists(st.binary(max_size=40), min_size=1, max_size=3), st.integers(0, 127))
def test_a_flipped_bit_in_a_tag_is_refused(parts, bit):
    made = bytearray(its.tag(KEY, b"label", parts))
    made[bit // 8] ^= 1 << bit % 8
    with pytest.raises(AuthenticationFailed):
        its.verify(KEY, b"label", parts, made)


def test_the_collision_bound_grows_with_the_message():
    assert universal.collision_probability(1 << 20) > 60_000 * 2.0**-128
    assert its.forgery_probability(25_000_000) < 1e-31


def test_hashing_parts_equals_hashing_their_frames():
    from qtrunk import kernels

    parts = [b"", b"x" * 16, b"y" * 33]
    whole = b"".join(universal.frame(part) for part in parts) + (3).to_bytes(8, "little") + (1).to_bytes(8, "little")
    assert universal.hash_parts(KEY[:16], parts) == kernels.poly_hash(KEY[:16], whole)
    assert len(whole) // 16 <= universal.hash_blocks(sum(map(len, parts)), len(parts)) + 1
