"""Who may have key: a tenant's rates, quotas, priority and minimum security, at the edge of each."""

import re
import sqlite3
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qtrunk.base.errors import KeyExhausted, RequestRefused, StoreError
from qtrunk.base.ids import SaeId
from qtrunk.base.ports import Quality, Stock
from qtrunk.kms.admission import LEASE_SHARE, RETRY_UNKNOWN_S, Admission, LimitForbids, LimitReached
from qtrunk.kms.totals import KEPT, TotalsFile
from qtrunk.topology import Tenant

ANN, BOB, EVE = SaeId("ann"), SaeId("bob"), SaeId("eve")
QUALITY = Quality(epsilon=1e-9, hops=3)
LAST_MINUTE_OF_2026_S = 1_798_761_540.0


class Clock:
    def __init__(self, unix_s=LAST_MINUTE_OF_2026_S):
        self.now_s, self.base_s = 0.0, unix_s

    def monotonic_s(self):
        return self.now_s

    def unix_s(self):
        return self.base_s + self.now_s


class Counted:
    """Totals in memory that count their writes, and can refuse them as a full disk does."""

    def __init__(self):
        self.bits, self.writes, self.is_full = {}, 0, False

    def drawn(self, tenant, period):
        return self.bits.get((tenant, period), 0)

    def record(self, tenant, bits):
        if self.is_full:
            raise StoreError("no space")
        self.writes += 1
        self.bits |= {(tenant, period): total for period, total in bits.items()}


def tenant(**fields):
    return Tenant(**{"id": "bank", "hybrid": "qkd", **fields})


def stock(quality=QUALITY, level_bits=1e6, target_bits=1e6, fill_bps=100.0):
    return Stock(quality=quality, level_bits=level_bits, target_bits=target_bits, fill_bps=fill_bps)


def admission(*tenants, clock=None, totals=None, **options):
    by_sae = dict(zip((ANN, EVE), tenants, strict=False))
    other = Tenant(id="default", hybrid="fallback")
    return Admission(lambda sae: by_sae.get(sae, other), totals or Counted(), clock or Clock(), **options)


def refused(machine, bits, kind=LimitReached, sae=ANN, offer=None, targets=(BOB,)):
    with pytest.raises(kind) as caught:
        machine.admit(sae, targets, bits, [offer or stock()] * len(targets))
    return caught.value


def test_the_burst_is_there_at_once_and_then_the_burst_rate_and_the_wait_is_true():
    clock = Clock()
    machine = admission(tenant(burst_bps=100.0, burst_bits=1000), clock=clock)
    machine.admit(ANN, [BOB], 1000, [stock()])
    error = refused(machine, 250)
    assert (error.limit, error.retry_after_s) == ("burst_bps", 3)
    assert "tenant bank: burst_bps" in str(error)
    clock.now_s += 2.4
    refused(machine, 250)
    clock.now_s += 0.1
    machine.admit(ANN, [BOB], 250, [stock()])


def test_what_can_never_be_is_no_matter_of_time():
    error = refused(admission(tenant(burst_bps=100.0, burst_bits=1000)), 1001, LimitForbids)
    assert isinstance(error, RequestRefused)
    assert error.limit == "burst_bits"
    error = refused(admission(tenant(quota_bits_per_day=1000)), 1001, LimitForbids)
    assert error.limit == "quota_bits_per_day"


def test_every_target_counts():
    machine = admission(tenant(burst_bps=1.0, burst_bits=1000))
    assert refused(machine, 400, LimitForbids, targets=(BOB, EVE, SaeId("dan"))).limit == "burst_bits"
    machine.admit(ANN, [BOB, EVE], 400, [stock(), stock()])
    assert machine.usage()["bank"]["burst_bits"] == 200


def test_a_refusal_changes_nothing():
    totals = Counted()
    machine = admission(
        tenant(burst_bps=1.0, burst_bits=1000, guaranteed_bps=1.0, quota_bits_per_day=900), totals=totals
    )
    machine.admit(ANN, [BOB], 500, [stock()])
    before = machine.usage()
    refused(machine, 401)
    refused(machine, 501)
    refused(machine, 100, LimitForbids, offer=stock(Quality(epsilon=0, hops=0, is_qkd=False, is_hybrid=True)))
    totals.is_full = True
    refused(machine, 400, StoreError)
    assert machine.usage() == before
    totals.is_full = False
    machine.admit(ANN, [BOB], 400, [stock()])


@pytest.mark.parametrize(
    ("limit", "given_", "good", "bad"),
    [
        ("epsilon_max", 1e-9, {"epsilon": 1e-9}, {"epsilon": 1.01e-9}),
        ("hops_max", 3, {"hops": 3}, {"hops": 4}),
        ("routes_min", 2, {"routes": 2}, {"routes": 1}),
        ("hybrid", "qkd", {"is_hybrid": True}, {"is_qkd": False, "is_hybrid": True}),
        ("hybrid", "hybrid", {"is_hybrid": True}, {"is_hybrid": False}),
        ("hybrid", "hybrid", {"is_hybrid": True}, {"is_qkd": False, "is_hybrid": True}),
        ("hybrid", "fallback", {"is_qkd": False, "is_hybrid": True}, {"is_qkd": False, "is_hybrid": False}),
    ],
)
def test_key_below_the_minimum_security_is_refused_for_either_tenant(limit, given_, good, bad):
    machine = admission(tenant(**{limit: given_}))
    for initiator, target in ((ANN, BOB), (BOB, ANN)):
        machine.admit(initiator, [target], 256, [stock(replace(QUALITY, **good))])
        offer = stock(replace(QUALITY, **bad))
        error = refused(machine, 256, LimitForbids, sae=initiator, offer=offer, targets=(target,))
        assert error.limit == limit
        # Key that is neither of QKD nor post-quantum is nobody's wish: there the initiator's tenant speaks.
        names = "bank" if bad.get("is_qkd", True) or bad["is_hybrid"] else "(bank|default)"
        assert re.match(f"tenant {names}: {limit}", str(error))


def test_a_pool_that_gets_worse_is_noticed_at_the_next_request():
    machine = admission(tenant(hops_max=3))
    pool = stock()
    machine.admit(ANN, [BOB], 256, [pool])
    pool.quality = replace(QUALITY, hops=4)
    refused(machine, 256, LimitForbids, offer=pool)


def test_the_guarantee_is_there_however_short_key_is_and_the_rest_waits_for_its_priority():
    empty = stock(level_bits=1000.0, fill_bps=0.0)
    machine = admission(tenant(guaranteed_bps=100.0, burst_bits=1000), tenant(id="low", priority=1))
    assert machine.admit(ANN, [BOB], 1000, [empty])
    error = refused(machine, 500, offer=empty)
    assert (error.limit, error.retry_after_s) == ("priority", 5)
    assert refused(machine, 500, sae=EVE, offer=empty).retry_after_s == RETRY_UNKNOWN_S
    assert not machine.admit(EVE, [BOB], 500, [stock()])


def test_a_small_guarantee_is_no_right_to_a_great_burst():
    empty = stock(level_bits=1000.0, fill_bps=0.0)
    for guaranteed_bps, most in ((1.0, 8192), (1000.0, 60_000)):
        machine = admission(tenant(guaranteed_bps=guaranteed_bps))
        assert refused(machine, most + 1, offer=empty).retry_after_s == RETRY_UNKNOWN_S
        assert machine.admit(ANN, [BOB], most, [empty])


def test_the_higher_the_priority_the_longer_a_short_pool_serves_it():
    served = []
    for priority in range(8):
        machine = admission(tenant(priority=priority))
        level_bits = 1e6
        while True:
            try:
                machine.admit(ANN, [BOB], 1000, [stock(level_bits=level_bits)])
            except LimitReached as error:
                # What the pool gets meanwhile is just what is missing.
                machine.admit(ANN, [BOB], 1000, [stock(level_bits=level_bits + 100 * error.retry_after_s)])
                break
            level_bits -= 1000
        served.append(level_bits)
    assert served == sorted(served, reverse=True)
    assert served[0] == pytest.approx(500_000, abs=1000)
    assert served[7] == pytest.approx(62_500, abs=1000)


def test_what_is_filled_ahead_of_maintenance_makes_no_key_short():
    for priority in range(8):
        machine = admission(tenant(priority=priority))
        enough = replace(stock(level_bits=501_000.0, target_bits=1e8), ahead_bits=9.9e7)
        assert not machine.admit(ANN, [BOB], 1000, [enough])
        short = replace(stock(level_bits=62_000.0, target_bits=1e8), ahead_bits=9.9e7)
        assert refused(machine, 1000, offer=short).limit == "priority"


def test_where_nobody_has_a_guarantee_nothing_is_held_back():
    assert not admission(tenant(), holds_back=False).admit(ANN, [BOB], 999, [stock(level_bits=1000.0)])


def test_a_day_s_quota_ends_with_the_day_and_a_month_s_with_the_month():
    clock = Clock()
    machine = admission(tenant(quota_bits_per_day=1000, quota_bits_per_month=1500), clock=clock)
    machine.admit(ANN, [BOB], 1000, [stock()])
    error = refused(machine, 1)
    assert (error.limit, error.retry_after_s) == ("quota_bits_per_day", 60)
    clock.now_s += 60
    machine.admit(ANN, [BOB], 1000, [stock()])
    clock.now_s += 86400
    error = refused(machine, 501)
    assert error.limit == "quota_bits_per_month"
    assert error.retry_after_s == 30 * 86400
    machine.admit(ANN, [BOB], 500, [stock()])


def test_a_clock_that_is_wrong_for_a_while_gives_no_second_quota():
    clock, totals = Clock(), Counted()
    machine = admission(tenant(quota_bits_per_day=1000), clock=clock, totals=totals)
    machine.admit(ANN, [BOB], 900, [stock()])
    clock.base_s += 86400
    machine.admit(ANN, [BOB], 900, [stock()])
    clock.base_s -= 86400
    refused(machine, 101)


def test_a_quota_is_on_the_disk_before_key_goes_out_and_few_requests_wait_for_it():
    quota, totals = 1_000_000, Counted()
    machine = admission(tenant(quota_bits_per_day=quota), totals=totals)
    given = 0
    while True:
        try:
            machine.admit(ANN, [BOB], 64, [stock()])
        except LimitReached:
            break
        given += 64
        assert max(totals.bits.values()) >= given
    assert given == quota
    assert totals.writes <= 1 / LEASE_SHARE + 1


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 400), st.sampled_from(["ask", "undo", "crash", "stop"])), max_size=40))
def test_whatever_happens_no_more_than_the_quota_is_given(steps):
    quota, totals = 3000, Counted()
    bank = tenant(quota_bits_per_day=quota)
    machine = admission(bank, totals=totals)
    held = lost = 0
    for bits, what in steps:
        if what == "crash":
            lost += 400
        if what == "stop":
            machine.close()
        if what in ("crash", "stop"):
            machine = admission(bank, totals=totals)
            continue
        try:
            is_guaranteed = machine.admit(ANN, [BOB], bits, [stock()])
        except LimitReached:
            assert held + bits > quota - lost
            continue
        if what == "undo":
            machine.give_back(ANN, 1, bits, is_guaranteed=is_guaranteed)
        else:
            held += bits
        assert held <= quota
        assert max(totals.bits.values()) >= held


def test_keys_that_could_not_be_supplied_are_given_back_and_never_more_than_the_bucket_holds():
    machine = admission(tenant(guaranteed_bps=1.0, burst_bps=1.0, burst_bits=1000, quota_bits_per_day=2000))
    is_guaranteed = machine.admit(ANN, [BOB], 600, [stock()])
    machine.give_back(ANN, 1, 600, is_guaranteed=is_guaranteed)
    full = {"guaranteed_bits": 1000, "burst_bits": 1000, "used_bits_today": 0, "used_bits_this_month": 0}
    assert machine.usage()["bank"] == full
    # An excess that failed must not make a guarantee of it.
    assert machine.admit(ANN, [BOB], 900, [stock()])
    machine.give_back(ANN, 1, 900, is_guaranteed=False)
    assert machine.usage()["bank"]["guaranteed_bits"] == 100


def test_one_tenant_s_flood_takes_nothing_of_another_s():
    machine = admission(tenant(burst_bps=1.0, burst_bits=1000), tenant(id="flood", burst_bps=1.0, burst_bits=1000))
    machine.admit(EVE, [BOB], 1000, [stock()])
    for _ in range(100):
        refused(machine, 1000, KeyExhausted, sae=EVE)
    machine.admit(ANN, [BOB], 1000, [stock()])


def test_totals_outlive_the_process_and_only_old_ones_are_forgotten(tmp_path):
    totals = TotalsFile(tmp_path / "totals.db")
    assert totals.drawn("bank", "2026-11") == 0
    totals.record("bank", {"2026-11-23": 5, "2026-11": 7})
    totals.record("bank", {"2026-11-23": 4, "2026-11": 8})
    totals.record("shop", {"2026-11-23": 1})
    totals.close()
    totals = TotalsFile(tmp_path / "totals.db")
    periods = {period: totals.drawn("bank", period) for period in ("2026-11-23", "2026-11", "2026-11-24")}
    assert periods == {"2026-11-23": 4, "2026-11": 8, "2026-11-24": 0}
    for number in range(KEPT + 5):
        totals.record("bank", {f"2027-{number:03}": number})
    assert totals.drawn("bank", "2026-11") == 0
    assert totals.drawn("bank", f"2027-{KEPT + 4:03}") == KEPT + 4
    totals.record("bank", {"2026-11-23": 9})
    assert totals.drawn("bank", "2026-11-23") == 9
    assert totals.drawn("shop", "2026-11-23") == 1
    totals.close()


def test_a_file_that_is_none_of_ours_and_a_total_that_cannot_be_are_refused(tmp_path):
    (tmp_path / "totals.db").write_bytes(b"not a database, but long enough to be looked at " * 30)
    with pytest.raises(StoreError, match=r"totals\.db"):
        TotalsFile(tmp_path / "totals.db")
    with pytest.raises(StoreError, match="nowhere"):
        TotalsFile(tmp_path / "nowhere" / "totals.db")
    totals = TotalsFile(tmp_path / "good.db")
    totals.record("bank", {"2026-11-23": 5})
    with pytest.raises(StoreError, match=r"good\.db"):
        totals.record("bank", {"2026-11-23": 6, "2026-11": -1})
    assert totals.drawn("bank", "2026-11-23") == 5
    totals.close()
    with pytest.raises(StoreError):
        totals.drawn("bank", "2026-11-23")
    assert (tmp_path / "good.db").stat().st_mode & 0o777 == 0o600
    with sqlite3.connect(tmp_path / "good.db") as db:
        assert db.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    db.close()


def test_new_figures_of_a_tenant_hold_at_once_and_what_was_used_stays_used():
    now = {"bank": tenant(quota_bits_per_day=10_000, burst_bps=1.0, burst_bits=9_000)}
    totals = Counted()
    machine = Admission(lambda _sae: now["bank"], totals, Clock())
    machine.admit(ANN, [BOB], 4_000, [stock()])
    now["bank"] = tenant(quota_bits_per_day=5_000, burst_bps=1.0, burst_bits=9_000)
    machine.adopt(now, holds_back=True)
    assert machine.usage()["bank"]["used_bits_today"] == 4_000
    assert "1000 of 5000 are left" in str(refused(machine, 1_500))
    # Nor does a change fill the bucket again.
    now["bank"] = tenant(burst_bps=1.0, burst_bits=20_000)
    machine.adopt(now, holds_back=True)
    assert refused(machine, 5_001).limit == "burst_bps"
    machine.admit(ANN, [BOB], 5_000, [stock()])


def test_an_sae_that_changes_hands_pays_with_its_new_tenant_and_a_tenant_that_goes_gives_back_what_it_did_not_use():
    owner = {ANN: tenant(quota_bits_per_day=1_000_000)}
    totals = Counted()
    machine = Admission(owner.__getitem__, totals, Clock())
    owner[BOB] = owner[ANN]
    machine.admit(ANN, [BOB], 100, [stock()])
    shop = Tenant(id="shop", hybrid="qkd", burst_bps=1.0, burst_bits=128)
    owner[ANN] = owner[BOB] = shop
    machine.adopt({"shop": shop}, holds_back=True)
    assert sorted(totals.bits.values()) == [100, 100]
    assert refused(machine, 129, LimitForbids).limit == "burst_bits"
    assert list(machine.usage()) == ["shop"]


@settings(max_examples=200, deadline=None)
@given(
    guaranteed_bps=st.sampled_from([0, 100, 1000]),
    burst=st.sampled_from([None, (1000, 2560), (1000, 9000)]),
    quota=st.sampled_from([None, 5120, 20_000]),
    level_bits=st.sampled_from([1e4, 1e5, 1e6]),
    spent=st.integers(0, 12),
    count=st.integers(1, 20),
)
def test_requests_admitted_together_are_those_that_would_be_one_by_one(
    guaranteed_bps, burst, quota, level_bits, spent, count
):
    """Together: all or none; what is left then is what one by one would have left, but for what is counted ahead."""
    fields = {"guaranteed_bps": guaranteed_bps, "quota_bits_per_day": quota, "priority": 4}
    if burst is not None:
        fields |= {"burst_bps": burst[0], "burst_bits": burst[1]}
    together, apart = admission(tenant(**fields)), admission(tenant(**fields))
    for machine in (together, apart):
        machine.tenant(BOB)
        for _ in range(max(1, spent)):
            try:
                machine.admit(ANN, [BOB], 256, [stock(level_bits=level_bits)])
            except (LimitReached, LimitForbids):
                break
    before = together.usage()
    found = together.admit_same(ANN, BOB, 256, count, stock(level_bits=level_bits))
    if found is None:
        assert together.usage() == before
        return
    for number in range(count):
        # Keys that are given are in the pool no more.
        assert apart.admit(ANN, [BOB], 256, [stock(level_bits=level_bits - 256 * number)]) == found
    assert together.usage() == apart.usage()
