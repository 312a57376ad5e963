"""Messages: what is not one is refused with our own error, whatever the decoder makes of it."""

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qtrunk.base.errors import WireError
from qtrunk.base.wire import FRAME_OCTETS_MAX, decode, encode, frame, frame_length
from qtrunk.distil.messages import Abort, BlockMessage


@given(st.binary(max_size=200))
def test_garbage_is_a_wire_error_or_a_message(octets):
    with contextlib.suppress(WireError):
        assert encode(decode(octets, BlockMessage))


@pytest.mark.parametrize(
    "octets", [b"\x91" * 100_000, b"\x81\xa4type" + b"\x91" * 100_000, b"\x81\xa4type\xa2\xff\xfe"]
)
def test_endless_nesting_and_broken_text_are_wire_errors(octets):
    with pytest.raises(WireError):
        decode(octets, BlockMessage)


def test_unknown_fields_are_refused_and_messages_come_back_equal():
    message = Abort(cause="qber", why="too many")
    assert decode(encode(message), BlockMessage) == message
    with pytest.raises(WireError):
        decode(encode(message).replace(b"why", b"who"), BlockMessage)


def test_a_frame_over_the_limit_is_refused_on_both_sides():
    assert frame_length(frame(b"abc")[:4]) == 3
    with pytest.raises(WireError):
        frame_length((FRAME_OCTETS_MAX + 1).to_bytes(4, "big"))
