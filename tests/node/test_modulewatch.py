"""When a QKD module counts as lost: what it promised, counted in time in which it could have been heard."""

import pytest

from qtrunk.base.errors import WireError
from qtrunk.base.wire import encode
from qtrunk.node.modulewatch import ATTACH_S, GRACE_S, LIGHT_TIMES, PACE_UNKNOWN, ModuleWatch
from qtrunk.quantum import device


def attached(heartbeat_s=None):
    watch = ModuleWatch()
    watch.connected()
    watch.heard(device.Attached(clock_hz=1e9, heartbeat_s=heartbeat_s))
    return watch


def ticks_until_lost(watch, most=10_000):
    return next((count for count in range(1, most) if watch.tick(1.0)), None)


def test_a_connection_without_attached_is_given_up():
    watch = ModuleWatch()
    watch.connected()
    assert ticks_until_lost(watch) == ATTACH_S


def test_without_a_promise_silence_means_nothing_while_there_is_no_light():
    assert ticks_until_lost(attached()) is None


@pytest.mark.parametrize(("heartbeat_s", "lost_s"), [(0.1, 8), (1.0, 8), (5.0, 40)])
def test_eight_heartbeats_missed(heartbeat_s, lost_s):
    watch = attached(heartbeat_s)
    for _ in range(100):
        assert watch.tick(1.0) == ""
        watch.heard(device.Alive())
    assert ticks_until_lost(watch) == lost_s


def test_light_that_does_not_end_also_under_a_heartbeat():
    watch = attached(1.0)
    watch.armed(7, 2.0)
    watch.heard(device.Started(block=7))
    lasts_s = 0
    while not (why := watch.tick(1.0)):
        lasts_s += 1
        watch.heard(device.Alive())
    assert "block 7" in why
    assert lasts_s == pytest.approx(GRACE_S + LIGHT_TIMES * 2.0 / PACE_UNKNOWN, abs=1)


def test_the_pace_of_the_last_block_counts_for_the_next_one():
    watch = attached()
    watch.armed(7, 2.0)
    watch.heard(device.Started(block=7))
    watch.heard(device.Finished(block=7, real_time_factor=0.5))
    assert ticks_until_lost(watch, 100) is None, "no light, nothing to wait for"
    watch.armed(8, 2.0)
    watch.heard(device.Started(block=8))
    assert ticks_until_lost(watch) == GRACE_S + LIGHT_TIMES * 2.0 / 0.5


def test_a_dropped_block_is_over_and_a_new_connection_owes_nothing():
    watch = attached(1.0)
    for block, end in ((7, device.Dropped(block=7, reason="dark")), (8, None)):
        watch.armed(block, 0.1)
        watch.heard(device.Started(block=block))
        if end is not None:
            watch.heard(end)
    watch.connected()
    watch.heard(device.Attached(clock_hz=1e9))
    assert ticks_until_lost(watch) is None


@pytest.mark.parametrize("heartbeat_s", [0.0, -1.0, float("nan"), 61.0])
def test_a_heartbeat_that_is_none_is_no_message(heartbeat_s):
    with pytest.raises(WireError, match="heartbeat_s"):
        device.decode_event(encode(device.Attached(clock_hz=1e9, heartbeat_s=heartbeat_s)))
