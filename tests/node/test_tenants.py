"""Between the key interface and the supply: requests are admitted, timed and counted for their tenant."""

import asyncio
import contextlib
import json

import pytest

from qtrunk.base.errors import KeyExhausted, NotAuthorised, RequestRefused, RouteUnavailable, StoreError
from qtrunk.base.ids import KeyId, SaeId
from qtrunk.base.ports import Quality, Stock, SuppliedKey, SuppliedKeys, SupplyStatus
from qtrunk.base.secret import Secret
from qtrunk.cli import show
from qtrunk.cli.tenants import tenant_table, tenants_of
from qtrunk.config import network
from qtrunk.kms import admission
from qtrunk.kms.admission import LimitForbids, LimitReached
from qtrunk.kms.totals import TotalsFile
from qtrunk.node import tenants
from qtrunk.node.supply import _LOCAL
from qtrunk.node.tenants import TenantSupply

BANK, VAULT, GUEST = SaeId("bank"), SaeId("vault"), SaeId("guest")
TOPOLOGY = network.load(
    'name = "n"\ntrunks = [["a", "b", "c"]]\nlink.length_km = 10\nsaes = ["bank@a", "vault@c", "guest@a"]\n'
    'tenants.banks = { saes = ["bank", "vault"], guaranteed_bps = 1000, burst_bps = 1000, burst_bits = 2560,'
    ' quota_bits_per_day = 5120, priority = 4, hybrid = "qkd" }'
)


QUALITY = Quality(epsilon=4e-10, hops=2, is_hybrid=True)


class Clock:
    now_s = 1000.0

    def monotonic_s(self):
        return self.now_s

    def unix_s(self):
        return 1_800_000_000.0 + self.now_s


class Store:
    """A supply of predictable keys that takes 3 ms, or fails as it is told."""

    def __init__(self, clock):
        self.clock, self.error, self.bits = clock, None, 0
        self.level_keys = 1000
        self.is_empty = False

    def status(self, initiator, target):
        if initiator not in (BANK, GUEST):
            raise NotAuthorised("not here")
        if target not in (VAULT, GUEST):
            raise RequestRefused("not known")
        return SupplyStatus(
            source_kme="a",
            target_kme="c",
            key_bits=256,
            stored_key_count=self.level_keys,
            key_count_max=10,
            keys_per_request_max=10,
            key_bits_max=512,
            key_bits_min=64,
            additional_targets_max=0,
            fill_bps=50.0,
        )

    async def initiate(self, initiator, targets, number, key_bits, request_id=None):
        self.clock.now_s += 0.003
        if self.error:
            raise self.error
        self.bits += number * key_bits
        return [SuppliedKey(key_id=KeyId(str(n)), material=Secret(bytes(key_bits // 8))) for n in range(number)]

    async def initiate_same(self, initiator, target, number, key_bits, count):
        if self.is_empty:
            return None
        await self.initiate(initiator, [target], number * count, key_bits)
        return SuppliedKeys(bytes(16 * number * count), Secret(bytes(number * count * key_bits // 8)), key_bits // 8)

    async def collect(self, target, initiator, key_ids, request_id=None):
        return [SuppliedKey(key_id=key_id, material=Secret(bytes(32))) for key_id in key_ids]


@pytest.fixture
def world(tmp_path):
    clock = Clock()
    store = Store(clock)
    broken = set()

    def stock_of(initiator, target):
        status = store.status(initiator, target)
        if broken:
            raise RouteUnavailable("no route from a to c")
        return Stock(quality=QUALITY, level_bits=status.stored_key_count * 256, target_bits=60_000, fill_bps=50.0)

    made = TenantSupply(store, TOPOLOGY, TotalsFile(tmp_path / "totals.db"), clock, stock_of)
    yield made, store, broken
    made.close()


def ask(supply, number=1, initiator=BANK, target=VAULT):
    return asyncio.run(supply.initiate(initiator, [target], number, 256))


def shown(supply, tenant="banks"):
    return next(entry for entry in json.loads(json.dumps(supply.as_json())) if entry["tenant"] == tenant)


def test_a_request_is_admitted_timed_and_counted_for_its_tenant(world):
    supply, _, _ = world
    assert len(ask(supply, 4)) == 4
    entry = shown(supply)
    figures = entry["quality_of_service"]
    assert (figures["answers"], figures["keys"], figures["bits"], figures["success_ratio"]) == (1, 4, 1024, 1)
    assert figures["response_time_s"]["mean"] == pytest.approx(0.003)
    assert entry["usage"]["used_bits_today"] == 1024
    assert (entry["guaranteed_bps"], entry["priority"]) == (1000, 4)
    assert shown(supply, "default")["quality_of_service"]["answers"] == 0


def test_a_limit_refuses_before_any_key_is_made(world):
    supply, store, _ = world
    with pytest.raises(LimitForbids, match="tenant banks: burst_bits"):
        ask(supply, 11)
    ask(supply, 10)
    with pytest.raises(LimitReached, match="tenant banks: burst_bps"):
        ask(supply, 10)
    assert store.bits == 2560
    assert shown(supply)["quality_of_service"]["refusals"] == {"burst_bits": 1, "burst_bps": 1}


def ask_same(supply, count, number=1):
    return asyncio.run(supply.initiate_same(BANK, VAULT, number, 256, count))


def test_requests_that_come_together_cost_and_count_as_one_by_one(world, tmp_path):
    supply, _, _ = world
    assert len(ask_same(supply, 4, 2)) == 8
    alone_clock = Clock()
    alone = TenantSupply(Store(alone_clock), TOPOLOGY, TotalsFile(tmp_path / "alone.db"), alone_clock, supply._stock_of)
    for _ in range(4):
        ask(alone, 2)
    together, apart = shown(supply), shown(alone)
    for entry in (together, apart):
        # They differ in when the answers were there, and by that in what flowed in meanwhile.
        for name in ("supply_rate_bps", "response_time_s", "delay_variation_s"):
            del entry["quality_of_service"][name]
        for name in ("guaranteed_bits", "burst_bits"):
            assert entry["usage"].pop(name) == pytest.approx(2560 - 8 * 256, abs=13)
        for pool in entry["pools"]:
            for name in ("demand_bps", "time_to_empty_s", "time_to_full_s"):
                del pool[name]
    assert together == apart
    assert together["quality_of_service"]["answers"] == 4
    assert together["usage"]["used_bits_today"] == 2048
    alone.close()


def test_what_cannot_all_be_answered_together_changes_nothing(world):
    supply, store, _ = world
    before = shown(supply)["usage"]
    assert ask_same(supply, 11) is None
    store.is_empty = True
    assert ask_same(supply, 2) is None
    assert shown(supply)["usage"] == before or before is None
    assert store.bits == 0
    assert shown(supply)["quality_of_service"]["refusals"] == {}
    store.is_empty = False
    # Nothing of the burst was spent.
    assert len(ask_same(supply, 10)) == 10


def test_together_they_are_refused_where_nothing_can_be_recorded_and_nobody_pays(world):
    supply, store, _ = world
    store.error = StoreError("no space")
    with pytest.raises(StoreError):
        ask_same(supply, 3)
    assert shown(supply)["quality_of_service"]["refusals"] == {"fault": 3}
    store.error = None
    assert len(ask_same(supply, 10)) == 10


def test_names_of_foreign_saes_that_nobody_counts_are_not_kept_for_ever(tmp_path, monkeypatch):
    monkeypatch.setattr(tenants, "KEPT_SAES_MAX", 20)
    monkeypatch.setattr(admission, "KEPT_SAES_MAX", 20)
    clock = Clock()
    store = Store(clock)
    stock = Stock(quality=QUALITY, level_bits=1e9, target_bits=0.0, fill_bps=0.0)
    supply = TenantSupply(store, TOPOLOGY, TotalsFile(tmp_path / "totals.db"), clock, lambda *_pair: stock)
    for number in range(100):
        store.error = RouteUnavailable("no answer") if number % 2 else None
        with contextlib.suppress(RouteUnavailable):
            ask(supply, initiator=GUEST, target=SaeId(f"{number}@abroad"))
    (account,) = supply._admission._accounts.values()
    kept = [len(supply._demand), len(supply._admission._by_sae), len(account.approved)]
    assert max(kept) <= 20
    assert len(shown(supply, "default")["pools"]) <= 20
    assert shown(supply, "default")["quality_of_service"]["answers"] == 50
    supply.close()


def test_what_the_supply_could_not_do_costs_nothing_and_tells_against_the_network(world):
    supply, store, broken = world
    store.error = KeyExhausted("nothing there")
    for _ in range(5):
        with pytest.raises(KeyExhausted):
            ask(supply, 10)
    store.error = None
    broken.add("b-c")
    with pytest.raises(RouteUnavailable):
        ask(supply)
    broken.clear()
    ask(supply, 10)
    entry = shown(supply)
    assert entry["quality_of_service"]["refusals"] == {"exhausted": 5, "route": 1}
    assert entry["quality_of_service"]["success_ratio"] == pytest.approx(1 / 7)
    assert entry["usage"]["used_bits_today"] == 2560


def test_a_request_that_is_repeated_is_paid_once(tmp_path):
    clock = Clock()
    store, seen = Store(clock), set()
    stock = Stock(quality=QUALITY, level_bits=1e9, target_bits=0, fill_bps=0)
    supply = TenantSupply(
        store, TOPOLOGY, TotalsFile(tmp_path / "t.db"), clock, lambda *_: stock, lambda request_id: request_id in seen
    )
    asyncio.run(supply.initiate(BANK, [VAULT], 10, 256, request_id=b"one"))
    with pytest.raises(LimitReached):
        asyncio.run(supply.initiate(BANK, [VAULT], 10, 256, request_id=b"two"))
    seen.add(b"one")
    asyncio.run(supply.initiate(BANK, [VAULT], 10, 256, request_id=b"one"))
    assert shown(supply)["usage"]["used_bits_today"] == 2560
    supply.close()


def test_unknown_saes_leave_nothing_behind(world):
    supply, _, _ = world
    with pytest.raises(RequestRefused):
        ask(supply, target=SaeId("nobody"))
    with pytest.raises(NotAuthorised):
        ask(supply, initiator=VAULT)
    assert shown(supply)["pools"] == []
    assert shown(supply)["quality_of_service"]["refusals"] == {"request": 1, "authorisation": 1}


def test_what_guarantees_may_claim_is_held_back_from_others(world):
    supply, store, _ = world
    # 60 s of 1000 bit/s; the default tenant has priority 0 and stops at half of it.
    store.level_keys = 30_000 // 256 + 2
    ask(supply, initiator=GUEST)
    for lacking_s in (1, 7):  # 48 and 304 bits at 50 bit/s
        store.level_keys -= 1
        with pytest.raises(LimitReached, match="tenant default: priority") as caught:
            ask(supply, initiator=GUEST)
        assert caught.value.retry_after_s == lacking_s
    ask(supply)


def test_pools_show_when_they_will_be_empty(world):
    supply, store, broken = world
    for _ in range(40):
        store.clock.now_s += 0.997
        ask(supply, initiator=GUEST)
    (pool,) = shown(supply, "default")["pools"]
    assert pool["demand_bps"] == pytest.approx(256, rel=0.05)
    assert pool["time_to_empty_s"] == pytest.approx(256_000 / 206, rel=0.1)
    assert pool["time_to_full_s"] == 0
    assert pool["quality"] == {"epsilon": 4e-10, "hops": 2, "routes": 1, "is_qkd": True, "is_hybrid": True}
    broken.add("b-c")
    (pool,) = shown(supply, "default")["pools"]
    assert "no route" in pool["error"]


def test_collecting_is_free_and_a_quota_outlives_the_node(world, tmp_path):
    supply, store, _ = world
    assert len(asyncio.run(supply.collect(BANK, VAULT, [KeyId("1"), KeyId("2")]))) == 2
    ask(supply, 10)
    supply.close()
    again = TenantSupply(
        store, TOPOLOGY, TotalsFile(tmp_path / "totals.db"), store.clock, lambda *_: Stock(
            quality=Quality(epsilon=0, hops=0), level_bits=1e9, target_bits=0, fill_bps=0
        )
    )  # fmt: skip
    ask(again, 10)
    store.clock.now_s += 10
    with pytest.raises(LimitReached, match="quota_bits_per_day: 256 bits asked for, 0 of 5120 are left"):
        ask(again)
    again.close()


def test_the_table_has_a_row_for_each_tenant_that_asked(world):
    supply, _, _ = world
    ask(supply, 10)
    with pytest.raises(LimitReached):
        ask(supply, 10)
    status = {
        "nodes": [
            {"node": "a", "answers": True, "tenants": json.loads(json.dumps(supply.as_json()))},
            {"node": "b", "answers": False, "error": "away"},
        ]
    }
    found = tenants_of(status)
    assert found["b"] is None
    console = show.console()
    with console.capture() as capture:
        console.print(tenant_table(found))
    lines = [line for line in capture.get().splitlines() if "banks" in line]
    assert len(lines) == 1
    for part in (" a ", "1 kbit/s", "burst_bps 1", "100.00 %", "2.56 kbit"):
        assert part in lines[0]
    assert "default" not in capture.get()


def test_key_between_two_saes_of_one_node_can_be_shown(world, monkeypatch):
    supply, _, _ = world
    monkeypatch.setattr(supply, "_stock_of", lambda *_: _LOCAL)
    ask(supply, initiator=GUEST, target=GUEST)
    (pool,) = shown(supply, "default")["pools"]
    assert pool["level_bits"] > 0
