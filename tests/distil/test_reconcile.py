"""Frames, halved checks, the search of errors, and what all of it says."""

from math import ceil

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qtrunk import kernels
from qtrunk.base.errors import BlockAborted, WireError
from qtrunk.distil import reconcile
from qtrunk.distil.keylength import entropy
from qtrunk.distil.reconcile import Plan, Search, choose


def keys(bits, qber, seed=1):
    dice = np.random.default_rng(seed)
    alice = dice.integers(0, 2, bits).astype(np.uint8)
    return alice, alice ^ (dice.random(bits) < qber)


def entry(name="qc128x29z512"):
    return next(entry for entry in reconcile.index() if entry.name == name)


@given(st.integers(1, 400_000), st.sampled_from(reconcile.index()[:3]), st.integers(0, 3))
def test_spreading_puts_every_bit_in_a_frame_once(bits, code, more):
    alice, _ = keys(bits, 0)
    plan = Plan(code, bits, ceil(bits / code.n) + more, 0.01)
    filled = plan.spread(alice)
    assert filled.shape == (plan.frames, code.n)
    np.testing.assert_array_equal(plan.collect(filled), alice)
    assert filled.sum() == alice.sum()
    assert sum(plan.frame_bits(frame) for frame in range(plan.frames)) == bits


@pytest.mark.parametrize("name", ["qc128x8z512", "qc128x29z512", "qc128x64z512"])
def test_halves_of_checks_add_up_to_the_checks(name):
    code, bits = reconcile.code(name), keys(reconcile.code(name).n, 0)[0][None]
    step = Plan(entry(name), code.n, 1, 0.01).step_rows
    whole = kernels.ldpc_syndrome(code, bits).reshape(code.rows, -1)
    done = reconcile.ROUNDS_MAX * step
    parts = kernels.ldpc_syndrome(reconcile.halved(name, done), bits).reshape(code.rows + done, -1)
    np.testing.assert_array_equal(parts[0 : 2 * done : 2] ^ parts[1 : 2 * done : 2], whole[:done])
    np.testing.assert_array_equal(parts[2 * done :], whole[done:])
    for number in range(1, reconcile.ROUNDS_MAX + 1):
        first = kernels.ldpc_syndrome(reconcile.half_rows(name, step, number), bits).reshape(step, -1)
        np.testing.assert_array_equal(first, parts[2 * (number - 1) * step : 2 * number * step : 2])


@pytest.mark.parametrize(("qber", "rounds"), [(0.030, 0), (0.0325, 1), (0.034, 2)])
def test_each_round_reaches_further(qber, rounds):
    # 0.030 is below the code's reach; each round adds 3.4 % of the checks. Seeds fixed; frames of one error rate agree.
    plan = Plan(entry(), 4 * 65536, 4, 0.031)
    alice, bob = keys(plan.bits, qber, seed=3)
    search = Search(plan, bob, plan.syndromes(alice))
    while search.unsolved:
        search.again(plan.halves(alice, search.unsolved, len(search.rounds) + 1))
    np.testing.assert_array_equal(search.corrected(), alice)
    assert len(search.rounds) == rounds


def test_only_unsolved_frames_are_asked_for_and_the_others_stay():
    plan = Plan(entry(), 3 * 65536, 3, 0.028)
    alice, bob = keys(plan.bits, 0.02)
    bob[65536 : 2 * 65536] = alice[65536 : 2 * 65536] ^ (np.random.default_rng(4).random(65536) < 0.034)
    search = Search(plan, bob, plan.syndromes(alice))
    assert search.unsolved == (1,)
    solved = np.r_[0:65536, 2 * 65536 : 3 * 65536]
    np.testing.assert_array_equal(search.corrected()[solved], alice[solved])
    np.testing.assert_array_equal(search.corrected()[65536 : 2 * 65536], bob[65536 : 2 * 65536])
    while search.unsolved:
        search.again(plan.halves(alice, (1,), len(search.rounds) + 1))
    assert set(search.rounds) == {(1,)}
    np.testing.assert_array_equal(search.corrected(), alice)


def test_a_pattern_with_far_too_many_errors_is_no_solution():
    # The decoder may find a word of the code too many, such as all bits of the columns of high degree.
    plan = Plan(entry(), 65536, 1, 0.001)
    alice, bob = keys(plan.bits, 0.02)  # solved, but twenty times the promised errors
    search = Search(plan, bob, plan.syndromes(alice))
    assert search.unsolved == (0,)
    assert Search(Plan(entry(), 65536, 1, 0.02), bob, plan.syndromes(alice)).unsolved == ()


@pytest.mark.parametrize("bits", [3_000, 50_000, 250_000, 4_000_000])
def test_the_plan_says_least_of_all_that_reach(bits):
    errors, tested = 300, 15_000
    qber = (errors + np.sqrt(errors + 1)) / tested
    best = choose(errors, tested, bits)
    assert best.bits == bits
    assert best.qber == pytest.approx(qber)
    for code in reconcile.index():
        for frames in range(1, best.frames + 3):
            share = bits / frames / code.n
            reached = share <= 1 and code.share(qber) >= share
            if reached:
                assert frames * code.m >= best.frames * best.entry.m * 0.98


@pytest.mark.parametrize("percent", [0.3, 0.5, 0.8, 1.2, 2.0, 2.9, 3.0, 3.1, 4.4, 5.7, 7.5, 9.0, 10.0, 11.0])
def test_a_rate_between_two_codes_costs_little_more_than_one_of_its_own(percent):
    # Whole codes' efficiency, as a curve over the error rate, is what a code made for this rate would have.
    qber, bits = percent / 100, 40 * 65536
    tested = 10**9  # so the rate is known
    whole = [(code.reach[0], code.m / code.n / entropy(code.reach[0])) for code in reconcile.index() if code.n == 65536]
    own = np.interp(qber, *zip(*whole, strict=True))
    plan = choose(round(qber * tested), tested, bits)
    efficiency = plan.frames * plan.entry.m / bits / entropy(qber)
    if qber < whole[0][0]:
        # Below the leanest code a block pays for that code, whole.
        assert plan.frames * plan.entry.m == 40 * min(code.m for code in reconcile.index() if code.n == 65536)
    else:
        assert efficiency < own + 0.04


def test_a_qber_that_no_code_reaches_is_an_end():
    with pytest.raises(BlockAborted, match="no reconciliation code"):
        choose(2_000, 10_000, 10**6)


def test_share_falls_with_the_error_rate_to_nothing():
    shares = [entry().share(qber) for qber in np.linspace(1e-4, 0.3, 400)]
    assert shares == sorted(shares, reverse=True)
    assert shares[0] == 1.0
    assert shares[-1] == 0.0
    for share, reach in zip(reconcile.SHARES, entry().reach, strict=True):
        assert entry().share(reach) == pytest.approx(share)


def test_rounds_and_failures_are_refused_where_they_do_not_follow():
    plan = Plan(entry(), 10 * 65536, 10, 0.03)
    asked = ((1, 2, 5),)
    plan.check_unsolved((), (0, 9))
    plan.check_unsolved(asked, (2, 5))
    plan.check_failed((), ())
    for rounds, frames in [((), (10,)), ((), (2, 1)), ((), (1, 1)), (asked, (3,)), ((), ()), (asked * 4, (1,))]:
        with pytest.raises(WireError):
            plan.check_unsolved(rounds, frames)
    with pytest.raises(WireError, match="after the last round"):
        plan.check_failed(asked, (1,))
    plan.check_failed(asked * 4, (1, 2))
    with pytest.raises(BlockAborted, match="could not be reconciled"):
        plan.check_failed(asked * 4, (1, 2, 5))


def test_octets_of_the_wrong_length_are_refused():
    plan = Plan(entry(), 65536, 1, 0.03)
    alice, bob = keys(65536, 0.06)
    with pytest.raises(WireError, match="syndromes"):
        Search(plan, bob, plan.syndromes(alice)[1:])
    search = Search(plan, bob, plan.syndromes(alice))
    with pytest.raises(WireError, match="halves"):
        search.again(plan.halves(alice, (0,), 1) + b"\0")
    with pytest.raises(WireError, match="disclosed"):
        plan.fill_in(bob, (0,), b"")
    np.testing.assert_array_equal(plan.fill_in(bob, (0,), plan.disclose(alice, (0,))), alice)
    with pytest.raises(WireError, match="not known here"):
        reconcile.code("qc1x1z64")


def test_leak_counts_every_kind_of_thing_said():
    plan = Plan(entry(), 10 * 60_000, 10, 0.03)
    base = 10 * 14848 + ceil(10 * np.log2(6)) + 32
    assert plan.leak_bits((), ()) == base
    assert plan.leak_bits(((1, 2), (2,)), ()) == base + 3 * 512
    assert plan.leak_bits(((1, 2),) * 4, (2,)) == base + 8 * 512 + plan.frame_bits(2)
