"""The figures of ITU-T Y.3807 against what a test worked out by itself."""

import json
import statistics
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qtrunk.base import errors
from qtrunk.kms.admission import LimitForbids, LimitReached
from qtrunk.kms.quality_of_service import BOUNDS_S, LIMITS, NETWORK, OWN, Figures, reason_of
from qtrunk.topology import Tenant


@given(st.lists(st.floats(0, 30), min_size=2, max_size=200))
def test_times_are_those_of_the_requests(times_s):
    figures = Figures(0.0)
    for time_s in times_s:
        figures.supplied(time_s, 2, 512, 1.0)
    shown = json.loads(json.dumps(figures.as_json(1.0)))
    times = shown["response_time_s"]
    assert shown["answers"] == len(times_s) == sum(times["counts"])
    assert (shown["keys"], shown["bits"]) == (2 * len(times_s), 512 * len(times_s))
    assert times["mean"] == pytest.approx(statistics.mean(times_s))
    assert times["longest"] == max(times_s)
    jumps = [abs(a - b) for a, b in pairwise(times_s)]
    assert shown["delay_variation_s"] == pytest.approx(statistics.mean(jumps))
    for name, share in (("median", 0.5), ("p99", 0.99)):
        within = sum(time_s <= times[name] for time_s in times_s)
        assert within >= share * len(times_s)
        lower = max((bound for bound in BOUNDS_S if bound < times[name]), default=-1.0)
        assert sum(time_s <= lower for time_s in times_s) < share * len(times_s)


def test_a_bound_belongs_to_its_own_bucket():
    figures = Figures(0.0)
    for bound_s in (*BOUNDS_S, 11.0):
        figures.supplied(bound_s, 1, 256, 0.0)
    assert figures.as_json(0.0)["response_time_s"]["counts"] == [1] * (len(BOUNDS_S) + 1)


def test_the_rate_is_that_of_the_last_minute():
    figures = Figures(0.0)
    for tick in range(30_000):
        figures.supplied(0.001, 1, 256, tick / 100)
    assert figures.as_json(300.0)["supply_rate_bps"] == pytest.approx(25_600, rel=0.02)
    assert figures.as_json(600.0)["supply_rate_bps"] < 256


def test_only_what_the_network_did_tells_against_success():
    figures = Figures(0.0)
    assert figures.as_json(0.0)["success_ratio"] is None
    for _ in range(8):
        figures.supplied(0.001, 1, 256, 0.0)
    for reason in (*LIMITS, *OWN):
        figures.refused(reason)
    assert figures.as_json(0.0)["success_ratio"] == 1
    figures.refused("exhausted")
    figures.refused("fault")
    shown = figures.as_json(0.0)
    assert shown["success_ratio"] == 0.8
    assert shown["refusals"] == dict.fromkeys((*LIMITS, *OWN, "exhausted", "fault"), 1)
    figures.mismatched(2)
    assert figures.as_json(0.0)["mismatch_ratio"] == 0.25


def test_every_error_of_a_supply_counts_as_something():
    bank = Tenant(id="bank")
    for limit in LIMITS:
        assert reason_of(LimitReached(bank, limit, "", 1.0)) == reason_of(LimitForbids(bank, limit, "")) == limit
    assert reason_of(LimitReached(bank, "priority", "", 1.0)) == "priority"
    kinds = {
        errors.KeyExhausted("x"): "exhausted",
        errors.RouteUnavailable("x"): "route",
        errors.StoreError("x"): "fault",
        errors.RequestRefused("x"): "request",
        errors.NotAuthorised("x"): "authorisation",
        errors.KeyNotFound("x"): "not-found",
    }
    for error, reason in kinds.items():
        assert reason_of(error) == reason
        assert reason in (*OWN, *NETWORK)
