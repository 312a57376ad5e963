"""The protocol between a node and its QKD module: frames, what is withheld from a log, and which block may begin."""

import numpy as np
import pytest

from qtrunk.base.errors import WireError
from qtrunk.base.ids import LinkId
from qtrunk.base.wire import encode
from qtrunk.quantum import device
from qtrunk.stages import Pulses


def order(block, seed=bytes(32)):
    pulses = Pulses(
        link=LinkId("a-b"),
        block=block,
        count=1000,
        intensities=(0.5, 0.2, 0.0),
        probabilities=(0.5, 0.25, 0.25),
        key_basis_probability=0.75,
    )
    return device.arm(pulses, seed)


def test_a_block_runs_once_both_ends_armed_it_and_lower_ones_never_after():
    armed = device.ArmedBlocks()
    assert armed.arm(device.TRANSMITTER, order(1)) == []
    assert armed.next() is None
    assert armed.arm(device.RECEIVER, order(2)) == []
    assert armed.next() is None
    armed.arm(device.TRANSMITTER, order(2))
    begun = armed.next()
    assert (begun.transmitter.block, begun.receiver.block) == (2, 2)
    assert begun.dropped == {device.TRANSMITTER: [1], device.RECEIVER: []}
    armed.arm(device.RECEIVER, order(1))
    assert armed.next() is None, "block 1 of the transmitter is gone"


def test_arming_ahead_keeps_one_and_drops_the_rest():
    armed = device.ArmedBlocks()
    armed.arm(device.TRANSMITTER, order(1))
    armed.arm(device.TRANSMITTER, order(2))
    assert armed.arm(device.TRANSMITTER, order(3)) == [1]
    armed.clear(device.TRANSMITTER)
    armed.arm(device.RECEIVER, order(3))
    assert armed.next() is None


def test_blocks_armed_ahead_begin_in_order():
    armed = device.ArmedBlocks()
    for role in (device.TRANSMITTER, device.RECEIVER):
        for block in (4, 5):
            armed.arm(role, order(block))
    begun = [armed.next(), armed.next()]
    assert [(each.transmitter.block, each.receiver.block) for each in begun] == [(4, 4), (5, 5)]
    assert all(each.dropped == {device.TRANSMITTER: [], device.RECEIVER: []} for each in begun)
    assert armed.next() is None


def test_clicks_travel_in_frames_unchanged():
    positions = np.array([5_000_000_000, 5_000_000_001, 5_000_000_130], np.uint64)
    bits = np.array([1, 0, 1], np.uint8)
    sent = device.frame_of(3, 5_000_000_000, 131, positions, bits)
    received = device.decode_event(encode(sent))
    got_positions, got_bits = device.decode_frame(received)
    np.testing.assert_array_equal(got_positions, positions)
    np.testing.assert_array_equal(got_bits, bits)


@pytest.mark.parametrize(
    "change",
    [
        {"count": 2},
        {"pulses": 130},
        {"bits": b"\xa0\x00"},
        {"gaps": b""},
        {"start": -1},
        {"count": -1},
        {"pulses": 1 << 70},
    ],
)
def test_a_frame_that_does_not_add_up_is_refused(change):
    sent = device.frame_of(3, 0, 131, np.array([0, 1, 130], np.uint64), np.array([1, 0, 1], np.uint8))
    values = {name: getattr(sent, name) for name in sent.__struct_fields__}
    with pytest.raises(WireError):
        device.decode_frame(device.Frame(**{**values, **change}))


def test_no_log_can_show_a_seed_or_clicks():
    seed = b"\xc3seed-of-a-block-of-key-material\xc3"[:32]
    sent = device.frame_of(3, 0, 131, np.array([0, 1, 130], np.uint64), np.array([1, 0, 1], np.uint8))
    armed = device.ArmedBlocks()
    armed.arm(device.TRANSMITTER, order(7, seed))
    armed.arm(device.RECEIVER, order(7, seed))
    shown = f"{order(7, seed)!r} {armed!r} {armed.next()!r}"
    assert "seed-of-a-block" not in shown
    assert seed.hex() not in shown
    assert repr(sent.bits) not in repr(sent)
    assert repr(sent.gaps) not in repr(sent)
