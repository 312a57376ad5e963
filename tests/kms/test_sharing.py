"""Scarce link key among pools: whatever others do, a guarantee is kept. FLOOD is a tenant that wants everything."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qtrunk.base.ids import LinkId
from qtrunk.config import network
from qtrunk.kms.sharing import Fill, LinkKey, Meter, Pool, Sharing, time_to_empty_s, time_to_full_s
from qtrunk.topology import Tenant

EAST, WEST = LinkId("n-e"), LinkId("n-w")
GOVERNMENT = Tenant(id="government", guaranteed_bps=2000, priority=0)
FINANCE = Tenant(id="finance", guaranteed_bps=6000, priority=3)
FLOOD = Tenant(id="flood", priority=7)
TENANTS = [GOVERNMENT, FINANCE, FLOOD, replace(FLOOD, id="other", priority=3)]


def pool(tenant, level=0, target=60_000, name="", link=EAST, demand_bps=1000.0):
    return Pool(
        id=name or tenant.id,
        tenant=tenant,
        link=link,
        demand_bps=demand_bps,
        level_octets=level,
        target_octets=target,
    )


def amounts(fills):
    return {fill.pool: fill.octets for fill in fills}


def links(east=0, rate_bps=0.0, west=0):
    return {EAST: LinkKey(octets=east, rate_bps=rate_bps), WEST: LinkKey(octets=west, rate_bps=rate_bps)}


some_pools = st.lists(
    st.builds(
        lambda tenant, level, target, link, demand: (tenant, level, target, link, demand),
        st.sampled_from(TENANTS),
        st.integers(0, 10**6),
        st.integers(0, 10**6),
        st.sampled_from([EAST, WEST, LinkId("unknown")]),
        st.floats(0, 1e9),
    ),
    max_size=12,
).map(lambda rows: [pool(t, lv, tg, f"p{n}", ln, d) for n, (t, lv, tg, ln, d) in enumerate(rows)])
some_links = st.builds(links, st.integers(0, 10**6), st.floats(0, 1e6), st.integers(0, 10**6))


@settings(max_examples=300, deadline=None)
@given(some_pools, some_links, st.lists(st.floats(0, 200), max_size=3))
def test_no_octet_is_shared_twice_and_no_pool_gets_more_than_it_lacks(pools, keys, times_s):
    sharing = Sharing()
    for now_s in [0.0, *times_s]:
        fills = sharing.share(now_s, pools, keys)
        given_ = amounts(fills)
        assert len(given_) == len(fills)
        assert all(0 <= fill.guaranteed_octets <= fill.octets > 0 for fill in fills)
        for one in pools:
            assert given_.get(one.id, 0) <= one.room_octets
        for link, key in keys.items():
            assert sum(given_.get(one.id, 0) for one in pools if one.link == link) <= key.octets
        assert all(amount >= 0 for amount in sharing._credits.values())


@settings(max_examples=300, deadline=None)
@given(some_pools, some_links)
def test_nobody_gets_beyond_its_guarantee_what_another_guarantee_may_claim(pools, keys):
    sharing = Sharing()
    fills = sharing.share(0.0, pools, keys)
    given_ = amounts(fills)
    for link in keys:
        here = [one for one in pools if one.link == link]
        beyond = sum(f.octets - f.guaranteed_octets for f in fills if any(one.id == f.pool for one in here))
        left = keys[link].octets - sum(given_.get(one.id, 0) for one in here)
        for one in here:
            lacks = one.room_octets - given_.get(one.id, 0)
            # One octet for each pool is what whole numbers may leave, on either side. A tenant that came off worse on
            # its other link than it planned finds what it may still claim here left for its next turn.
            assert beyond <= len(pools) or min(lacks, sharing._credits[one.tenant.id]) <= left + len(pools)


@settings(max_examples=100, deadline=None)
@given(
    st.lists(some_pools, min_size=1, max_size=4),
    some_links,
    st.lists(st.integers(0, 10**6), min_size=4, max_size=4),
    st.floats(0, 100),
)
def test_what_others_want_moves_nothing_of_a_guarantee(others, keys, levels, step_s):
    """Guaranteed parts are the same with and without everybody who has no guarantee, however many pools they have."""
    with_all, with_few = Sharing(), Sharing()
    for number, (pools, level) in enumerate(zip(others, levels, strict=False)):
        own = pool(GOVERNMENT, level, 10**6, "own")
        entitled = [one for one in pools if one.tenant.guaranteed_bps]
        guaranteed = [
            {fill.pool: fill.guaranteed_octets for fill in fills if fill.guaranteed_octets}
            for fills in (
                with_all.share(number * step_s, [*pools, own], keys),
                with_few.share(number * step_s, [*entitled, own], keys),
            )
        ]
        assert guaranteed[0] == guaranteed[1]


def test_a_link_with_too_little_for_the_guarantees_is_shared_in_proportion_to_what_they_lack():
    fills = Sharing().share(0.0, [pool(GOVERNMENT), pool(FINANCE), pool(FLOOD)], links(east=6000))
    # 60 s of guarantee: 15 000 and 45 000 octets.
    assert amounts(fills) == {"finance": 4500, "government": 1500}
    assert all(fill.guaranteed_octets == fill.octets for fill in fills)


def test_what_guarantees_may_still_claim_is_set_aside_unless_the_link_brings_it_in_time():
    full = pool(GOVERNMENT, 60_000)
    claim = 2000 * 60 // 8
    dark = Sharing().share(0.0, [full, pool(FLOOD)], links(east=20_000))
    assert amounts(dark) == {"flood": 20_000 - claim}
    half = Sharing().share(0.0, [full, pool(FLOOD)], links(east=20_000, rate_bps=1000.0))
    assert amounts(half) == {"flood": 20_000 - claim + 1000 * 50 // 8}
    bright = Sharing().share(0.0, [full, pool(FLOOD)], links(east=20_000, rate_bps=9000.0))
    assert amounts(bright) == {"flood": 20_000}


def test_beyond_guarantees_priority_goes_first_and_equals_share_by_tenant_not_by_pool():
    low, lower = replace(FLOOD, id="low", priority=1), replace(FLOOD, id="lower", priority=0)
    many = [pool(low, name=f"low {number}", demand_bps=1e6) for number in range(3)]
    twin = pool(replace(low, id="twin"), demand_bps=0.0)
    first = pool(FLOOD, target=10_000)
    fills = Sharing().share(0.0, [pool(lower), *many, twin, first], links(east=70_000))
    assert amounts(fills) == {
        "flood": 10_000, "low 0": 10_000, "low 1": 10_000, "low 2": 10_000, "twin": 30_000
    }  # fmt: skip
    assert fills[0].pool == "flood"


def test_within_a_tenant_the_pool_that_is_asked_more_gets_more_and_an_idle_one_a_little():
    busy, idle = (
        pool(FLOOD, name="busy", demand_bps=9900.0, target=10**6),
        pool(FLOOD, name="idle", demand_bps=0.0, target=10**6),
    )
    given_ = amounts(Sharing().share(0.0, [busy, idle], links(east=10_000)))
    assert 9000 < given_["busy"] < 10_000
    assert 50 < given_["idle"] < 1000


def test_the_pool_that_runs_empty_first_is_filled_first():
    early, late = (
        pool(GOVERNMENT, 1000, name="early", demand_bps=2000.0),
        pool(GOVERNMENT, 9000, name="late", demand_bps=100.0),
    )
    fills = Sharing().share(0.0, [late, early], links(east=10_000))
    assert [fill.pool for fill in fills] == ["early", "late"]


def test_credit_is_for_all_links_together_and_comes_back_where_a_fill_fails():
    sharing = Sharing()
    pools = [pool(GOVERNMENT, name="east", link=EAST), pool(GOVERNMENT, name="west", link=WEST)]
    fills = sharing.share(
        0.0, pools, {EAST: LinkKey(octets=10**6, rate_bps=0), WEST: LinkKey(octets=10**6, rate_bps=0)}
    )
    assert sum(fill.guaranteed_octets for fill in fills) == 15_000
    assert {fill.pool: fill.guaranteed_octets for fill in fills} == {"east": 7500, "west": 7500}
    assert not any(fill.guaranteed_octets for fill in sharing.share(0.0, pools, links(east=10**6)))
    for fill in fills:
        sharing.give_back(fill)
    again = sharing.share(0.0, pools, links(east=10**6))
    assert sum(fill.guaranteed_octets for fill in again) == 15_000
    # Twice given back is capped: credit cannot be made.
    for fill in [*again, *again, Fill(pool="x", tenant="government", octets=10**9, guaranteed_octets=10**9)]:
        sharing.give_back(fill)
    assert sum(fill.guaranteed_octets for fill in sharing.share(1.0, pools, links(east=10**6))) == 15_000


class Field:
    """Virtual time: one link that brings key in blocks, pools that are drained as the test says."""

    def __init__(self, tenants, rate_bps, block_s=8, target_octets=60_000):
        self.tenants, self.rate_bps, self.block_s = tenants, rate_bps, block_s
        self.sharing = Sharing()
        self.levels = dict.fromkeys((tenant.id for tenant in tenants), 0)
        self.meters = {tenant.id: Meter(0.0) for tenant in tenants}
        self.octets, self.now_s, self.target = 0, 0, target_octets
        self.lacked = dict.fromkeys(self.levels, 0)
        self.given = dict.fromkeys(self.levels, 0)

    def second(self, wanted_octets, rate=1.0):
        if self.now_s % self.block_s == 0:
            self.octets += int(self.rate_bps * rate * self.block_s / 8)
        pools = [
            pool(tenant, self.levels[tenant.id], self.target, demand_bps=self.meters[tenant.id].rate(self.now_s))
            for tenant in self.tenants
        ]
        fills = self.sharing.share(
            self.now_s, pools, {EAST: LinkKey(octets=self.octets, rate_bps=self.rate_bps * rate)}
        )
        for fill in fills:
            self.octets -= fill.octets
            self.levels[fill.pool] += fill.octets
        assert self.octets >= 0
        for name, wanted in wanted_octets.items():
            taken = min(wanted, self.levels[name])
            self.meters[name].note(8 * wanted, self.now_s)
            self.levels[name] -= taken
            self.given[name] += taken
            self.lacked[name] += wanted - taken
        self.now_s += 1


def test_each_guarantee_is_kept_for_hours_while_big_data_floods():
    """The weakest link of the Beijing-Xiong'an trunk, and its tenants; big data and a tenant of none want all of it."""
    tenants = [
        *network.load(network.find("beijing-xiongan")).tenants,
        Tenant(id="guest", priority=7),
    ]
    field = Field(tenants, rate_bps=12_000)
    modest = {one.id: int(one.guaranteed_bps) // 8 for one in tenants if one.guaranteed_bps}
    assert sum(8 * octets for octets in modest.values()) == 11_000
    for _ in range(60):
        field.second({})
    for _ in range(3 * 3600):
        field.second({**modest, "big-data": 10_000, "guest": 10_000})
    for name in ("government", "finance", "power"):
        assert field.lacked[name] == 0
    hours_octets = 3 * 3600 * 2000 // 8
    assert field.given["big-data"] > 0.99 * hours_octets
    # What the guarantees leave is not wasted.
    assert sum(field.given.values()) > 0.97 * 12_000 / 8 * 3 * 3600


def test_through_an_outage_the_guarantees_live_longest():
    field = Field([GOVERNMENT, FLOOD], rate_bps=30_000, target_octets=30_000)
    for _ in range(300):
        field.second({"government": 250, "flood": 10_000})
    for _ in range(50):
        before = field.lacked["flood"]
        field.second({"government": 250, "flood": 10_000}, rate=0.0)
        assert field.lacked["government"] == 0
    assert field.lacked["flood"] == before + 10_000


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 20_000), st.integers(0, 5_000), st.integers(1, 90)), min_size=1, max_size=8),
    st.integers(0, 7),
    st.integers(1, 20),
)
def test_no_demand_of_others_takes_a_guarantee(adversary, priority, block_s):
    """A starving tenant without guarantee and one far above its own, in any rhythm: the government gets its rate."""
    greedy = replace(FINANCE, priority=priority)
    starving = replace(FLOOD, priority=7)
    field = Field([GOVERNMENT, greedy, starving], rate_bps=8100, block_s=block_s)
    for _ in range(2 * block_s):
        field.second({})
    for flood, excess, seconds in adversary:
        for _ in range(seconds):
            field.second({"government": 250, "flood": flood, "finance": 750 + excess})
    assert field.lacked["government"] == 0


@pytest.mark.parametrize("every_s", [0.01, 1, 5])
def test_the_time_to_empty_of_a_steady_drain_is_off_by_less_than_a_tenth(every_s):
    drain, fill = Meter(0.0), Meter(0.0)
    level_bits, now_s, errors = 2e6, 0.0, []
    while level_bits > 20_000:
        now_s += every_s
        drain.note(4000 * every_s, now_s)
        fill.note(1000 * every_s, now_s)
        level_bits -= 3000 * every_s
        if now_s > 15:
            told_s = time_to_empty_s(level_bits, fill.rate(now_s), drain.rate(now_s))
            errors.append(abs(told_s / (level_bits / 3000) - 1))
    assert max(errors) < 0.1


def test_the_time_to_full_likewise_and_never_is_never():
    fill = Meter(0.0)
    for second in range(1, 120):
        fill.note(500, second)
    assert time_to_full_s(0, 50_000, fill.rate(119), 0) == pytest.approx(100, rel=0.1)
    assert time_to_full_s(50_000, 50_000, 0, 99) == 0
    assert time_to_full_s(1, 2, 5, 5) == float("inf") == time_to_empty_s(1, 5, 5)
    assert time_to_empty_s(0, 0, 0) == 0


def test_a_meter_forgets_and_a_clock_that_goes_back_does_it_no_harm():
    meter = Meter(0.0, time_constant_s=10)
    for second in range(100):
        meter.note(7, second)
    assert meter.rate(99) == pytest.approx(7, rel=0.06)
    assert meter.rate(50) == meter.rate(99)
    meter.note(0, 50)
    assert meter.rate(199) == pytest.approx(7 * 2.718281828**-10, rel=0.1)
