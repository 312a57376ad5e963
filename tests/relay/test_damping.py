"""Damping: one failure is forgiven soon, every further one later, and what never failed is not held back."""

from hypothesis import given
from hypothesis import strategies as st

from qtrunk.relay.damping import HALF_LIFE_S, HOLD_OFF_MAX_S, HOLD_OFF_S, Damper


def test_a_link_that_starts_is_not_held_back():
    damper = Damper()
    damper.note(False, 0.0)
    damper.note(True, 5.0)
    assert damper.left_s(5.0) == 0.0
    assert damper.merit(5.0) == 0.0


def test_after_one_failure_it_must_be_good_for_the_first_hold_off():
    damper = Damper()
    damper.note(True, 0.0)
    damper.note(False, 100.0)
    assert damper.left_s(500.0) == 0.0, "a link that is not good is not held back, it is not used"
    damper.note(True, 100.5)
    assert 0.9 * HOLD_OFF_S < damper.left_s(100.5) <= HOLD_OFF_S
    assert damper.left_s(100.5 + HOLD_OFF_S) == 0.0


def test_being_good_must_last_a_new_failure_begins_the_hold_off_anew():
    damper = Damper()
    for fail_s in (100.0, 105.0, 110.0):
        damper.note(True, fail_s - 1.0)
        damper.note(False, fail_s)
    damper.note(True, 111.0)
    assert 3.8 * HOLD_OFF_S < damper.left_s(111.0) <= 4 * HOLD_OFF_S


def test_time_heals():
    damper = Damper()
    damper.note(True, 0.0)
    for turn in range(6):
        damper.note(False, 2.0 * turn)
        damper.note(True, 2.0 * turn + 1.0)
    late_s = 20 * HALF_LIFE_S
    damper.note(False, late_s)
    damper.note(True, late_s + 1.0)
    assert damper.left_s(late_s + 1.0) < 1.01 * HOLD_OFF_S


@given(st.lists(st.tuples(st.booleans(), st.floats(0.01, 500.0)), max_size=60))
def test_a_hold_off_is_bounded_and_ends(turns):
    damper, now_s = Damper(), 0.0
    for is_good, pause_s in turns:
        now_s += pause_s
        damper.note(is_good, now_s)
        left_s = damper.left_s(now_s)
        assert 0.0 <= left_s <= HOLD_OFF_MAX_S
        assert damper.left_s(now_s + left_s) <= 1e-6
