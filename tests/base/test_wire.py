"""Messages: what is not one is refused with our own error, whatever the decoder makes of it."""

import contextlib
import subprocess
import sys

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


RACE = """
import sys, threading, msgspec
sys.setswitchinterval(1e-6)
for number in range(25):
    fields = [(f"field_{place}", int | None, None) for place in range(30)]
    parts = [msgspec.defstruct(f"Part_{number}_{place}", fields) for place in range(20)]
    whole = msgspec.defstruct(f"Whole_{number}", [(f"part_{n}", part | None, None) for n, part in enumerate(parts)])
    barrier = threading.Barrier(6)

    def decode():
        barrier.wait()
        found = msgspec.json.decode(b'{"part_19": {"field_1": 1}, "part_3": {"field_2": 4}}', type=whole)
        assert found.part_19.field_1 == 1

    threads = [threading.Thread(target=decode) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
"""


def test_threads_may_decode_a_type_for_the_first_time_together():
    """In a process of its own: with msgspec 0.22 it dies of SIGSEGV, as nodes and controllers did now and then."""
    done = subprocess.run([sys.executable, "-c", RACE], capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stderr) == (0, "")
