"""The load generator: it counts what a server answered, and says when there is none."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qtrunk.base.errors import LabError
from qtrunk.base.ports import SuppliedKey
from qtrunk.base.secret import Secret
from qtrunk.plan.bench import roundtrips
from qtrunk.plan.bench.load import Histogram, Load, run, run_apart


def load(server, own, **more) -> Load:
    return Load(
        port=server.port,
        certificate=str(own.certificate),
        private_key=str(own.private_key),
        ca_certificate=str(own.ca_certificate),
        path="/api/v1/keys/bob/enc_keys",
        **{"connections": 3, "seconds": 0.3, "warm_up_s": 0.0, **more},
    )


def test_a_closed_loop_counts_every_answer(server, supply, alice):
    supply.stock = 10**9
    outcome = run(load(server, alice))
    assert set(outcome.answers) == {"200"}
    assert outcome.lost == 0
    # What was under way when the clock stopped is not counted.
    assert 0 <= supply.allocations - outcome.answers["200"] <= 3
    assert 0 < outcome.p50_s <= outcome.p99_s <= outcome.p999_s
    assert outcome.per_second == pytest.approx(outcome.answers["200"] / outcome.seconds)


def test_an_open_loop_asks_as_often_as_it_is_told(server, supply, alice):
    outcome = run(load(server, alice, rate_hz=100, seconds=0.5, method="POST", body='{"number":1}'))
    assert 40 <= outcome.answers["200"] <= 60


def test_an_open_loop_counts_the_time_that_a_request_waited_for_its_turn(server, supply, alice):
    supply.delay_s = 0.05
    outcome = run(load(server, alice, rate_hz=200, connections=1, seconds=0.5))
    # Twenty a second of two hundred: the last ones wait for almost all of the time.
    assert outcome.p99_s > 0.3


def test_refusals_are_counted_by_status(server, supply, alice):
    supply.stock = 0
    assert set(run(load(server, alice)).answers) == {"503"}


def test_a_process_of_its_own_says_the_same(server, supply, alice):
    supply.stock = 10**9
    outcome = run_apart(load(server, alice))
    assert outcome.answers["200"] > 0


def test_no_server_is_an_error(server, alice):
    nowhere = load(server, alice, host="127.0.0.1")
    with pytest.raises(LabError, match="cannot be reached"):
        run(Load(**{name: getattr(nowhere, name) for name in Load.__dataclass_fields__} | {"port": 1}))


def round_trips(server, alice, bob) -> tuple[int, float]:
    initiator, target = (
        roundtrips.End(
            port=server.port,
            certificate=str(own.certificate),
            private_key=str(own.private_key),
            ca_certificate=str(own.ca_certificate),
            path=f"/api/v1/keys/{other}",
        )
        for own, other in ((alice, "bob"), (bob, "alice"))
    )
    return roundtrips.run(roundtrips.Task(initiator=initiator, target=target, connections=3, seconds=0.3))


def test_round_trips_count_keys_that_both_ends_got(server, supply, alice, bob):
    supply.stock = 10**9
    done, seconds = round_trips(server, alice, bob)
    assert seconds >= 0.3
    # One of each pair of connections may be under way when the clock stops.
    assert 0 < done <= supply.allocations <= done + 3


def test_round_trips_end_at_a_refusal(server, supply, alice, bob):
    supply.stock = 5
    with pytest.raises(RuntimeError, match="answered 503"):
        round_trips(server, alice, bob)


def test_round_trips_end_at_a_key_that_differs(server, supply, alice, bob, monkeypatch):
    supply.stock = 10**9

    async def collect(target, initiator, key_ids, **_more):
        return [SuppliedKey(key_id=key_id, material=Secret(bytes(32))) for key_id in key_ids]

    monkeypatch.setattr(supply, "collect", collect)
    with pytest.raises(RuntimeError, match="differs between the two ends"):
        round_trips(server, alice, bob)


@given(st.lists(st.floats(0, 100), min_size=1, max_size=50), st.sampled_from([0.0, 0.5, 0.99, 1.0]))
def test_a_quantile_is_within_its_bucket(times_s, share):
    histogram = Histogram()
    for time_s in times_s:
        histogram.add(time_s)
    exact = sorted(times_s)[max(0, math.ceil(share * len(times_s)) - 1)]
    assert exact <= histogram.quantile_s(share) + 1e-9
    assert histogram.quantile_s(share) <= exact * 1.016 + 2e-6
