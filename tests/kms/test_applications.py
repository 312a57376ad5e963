"""What a controller may set for one application: a most, a priority."""

import pytest

from qtrunk.base.errors import KeyExhausted
from qtrunk.base.ids import SaeId
from qtrunk.kms.applications import LEAST_BITS, Applications, Setting
from qtrunk.kms.sharing import HORIZON_S
from qtrunk.topology import Tenant

BANK, VAULT, GRID = SaeId("bank"), SaeId("vault"), SaeId("grid")


def test_without_settings_nothing_is_limited():
    applications = Applications()
    applications.take(BANK, [VAULT], 10**12, 0.0)
    assert applications.setting((BANK, VAULT)) == Setting()


def test_a_most_holds_over_time_and_says_when_to_come_again():
    applications = Applications()
    applications.set((BANK, VAULT), Setting(max_bps=1000))
    applications.take(BANK, [VAULT], int(HORIZON_S * 1000), 0.0)
    with pytest.raises(KeyExhausted, match="max_bandwidth 1000 bit/s") as caught:
        applications.take(BANK, [VAULT], 5000, 0.0)
    assert caught.value.retry_after_s == 5
    applications.take(BANK, [VAULT], 5000, 5.0)
    taken, now_s = 0, 5.0
    while now_s < 1005:
        now_s += 0.5
        try:
            applications.take(BANK, [VAULT], 1024, now_s)
            taken += 1024
        except KeyExhausted:
            pass
    assert 1000 * 1000 - 1024 <= taken <= 1000 * 1000 + 1024


def test_the_bucket_of_a_small_most_holds_the_largest_key():
    applications = Applications()
    applications.set((BANK, VAULT), Setting(max_bps=1))
    applications.take(BANK, [VAULT], int(LEAST_BITS), 0.0)
    with pytest.raises(KeyExhausted):
        applications.take(BANK, [VAULT], 64, 0.0)


def test_zero_is_nothing_at_all_and_none_is_no_limit_again():
    applications = Applications()
    applications.set((BANK, VAULT), Setting(max_bps=0))
    with pytest.raises(KeyExhausted):
        applications.take(BANK, [VAULT], 64, 0.0)
    applications.set((BANK, VAULT), Setting())
    applications.take(BANK, [VAULT], 10**9, 0.0)


def test_one_target_over_its_most_charges_none_and_what_failed_is_given_back():
    applications = Applications()
    applications.set((BANK, VAULT), Setting(max_bps=1000))
    applications.set((BANK, GRID), Setting(max_bps=0))
    with pytest.raises(KeyExhausted, match="grid"):
        applications.take(BANK, [VAULT, GRID], 1000, 0.0)
    applications.take(BANK, [VAULT], int(HORIZON_S * 1000), 0.0)
    applications.give_back(BANK, [VAULT, GRID], int(HORIZON_S * 1000))
    applications.take(BANK, [VAULT], int(HORIZON_S * 1000), 0.0)


def test_a_priority_counts_for_its_pool_alone():
    applications = Applications()
    tenant = Tenant(id="t", priority=2)
    applications.set((BANK, VAULT), Setting(priority=7))
    assert applications.tenant((BANK, VAULT), tenant).priority == 7
    assert applications.tenant((BANK, GRID), tenant) is tenant
