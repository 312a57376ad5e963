"""Whether an SAE may have key now: rates, quotas, priorities and minimum security of its tenant.

A machine without I/O. Two token buckets for each tenant, as in RFC 2698: one fills at `burst_bps` and holds
`burst_bits`; every request needs it. One fills at `guaranteed_bps` and holds `HORIZON_S` of that: what it can pay is
admitted however short key is. The rest needs a pool that is full enough for the tenant's priority: the lower, the more
is left to others.

Quotas are counted ahead: the durable total is raised by some requests' worth before the first of them, so that few
requests wait for the disk and a crash can only make the tenant's quota smaller, by `LEASE_SHARE` of it or one request
(or the requests that were admitted together).

Errors: LimitReached (KeyExhausted: the same request may do later, and when), LimitForbids (RequestRefused: it never
will under this configuration), StoreError (the quota cannot be recorded, so nothing is given).
"""

import datetime as dt
import math
from collections.abc import Callable, Mapping, Sequence

from qtrunk.base.errors import KeyExhausted, RequestRefused
from qtrunk.base.ids import SaeId
from qtrunk.base.ports import Clock, Quality, Stock, Totals
from qtrunk.kms.sharing import HORIZON_S
from qtrunk.topology import Tenant

PRIORITIES = 8
SHORT_AT = 0.5
"""A pool under this share of its target is short; priority 0 stops here, 7 at an eighth of it."""
LEASE_SHARE = 1e-3
"""Of the smaller quota: what is counted ahead."""
GUARANTEED_BITS_LEAST = 8192
"""The bucket of a small guarantee holds one key of the largest size."""
KEPT_SAES_MAX = 4096
"""SAEs that something is kept of, by name: those of foreign networks have any names."""
RETRY_UNKNOWN_S = 60
"""When to come again where nothing says when there will be more."""


class LimitReached(KeyExhausted):
    """A limit of the tenant, or the shortage of key, stands against this request now."""

    def __init__(self, tenant: Tenant, limit: str, why: str, wait_s: float) -> None:
        wait = max(1, math.ceil(wait_s)) if math.isfinite(wait_s) else RETRY_UNKNOWN_S
        super().__init__(f"tenant {tenant.id}: {limit}: {why}; try again in {wait} s", wait)
        self.limit = limit


class LimitForbids(RequestRefused):
    """A limit of the tenant stands against this request for good."""

    def __init__(self, tenant: Tenant, limit: str, why: str) -> None:
        super().__init__(f"tenant {tenant.id}: {limit}: {why}")
        self.limit = limit


class _Account:
    """What one tenant has left at this node."""

    __slots__ = (
        "approved",
        "day",
        "day_bits",
        "filled_s",
        "guaranteed_bits",
        "guaranteed_most",
        "is_metered",
        "lease_bits",
        "month",
        "month_bits",
        "peak_bits",
        "tenant",
    )

    def __init__(self, tenant: Tenant, now_s: float) -> None:
        self.filled_s = now_s
        self.guaranteed_bits = self.peak_bits = math.inf
        self.adopt(tenant)
        self.day = self.month = ""
        self.day_bits = self.month_bits = 0
        """As recorded, with what is counted ahead."""
        self.lease_bits = 0
        """Recorded and not yet given."""

    def adopt(self, tenant: Tenant) -> None:
        """The tenant's figures are these from now on; what it has used stays used."""
        self.tenant = tenant
        self.approved: dict[SaeId, Quality] = {}
        """What was last found good enough, by target."""
        most = max(GUARANTEED_BITS_LEAST, HORIZON_S * tenant.guaranteed_bps) if tenant.guaranteed_bps else 0.0
        self.guaranteed_most = min(most, tenant.burst_bits)
        self.guaranteed_bits = min(self.guaranteed_bits, self.guaranteed_most)
        self.peak_bits = min(self.peak_bits, float(tenant.burst_bits))
        self.is_metered = tenant.quota_bits_per_day is not None or tenant.quota_bits_per_month is not None


class Admission:
    """Admits or refuses the requests of one node's SAEs. For one thread: the node's event loop."""

    def __init__(
        self, tenant_of: Callable[[SaeId], Tenant], totals: Totals, clock: Clock, *, holds_back: bool = True
    ) -> None:
        """`holds_back`: whether a short pool is kept for guarantees and priorities. Pointless where there are none."""
        self._tenant_of = tenant_of
        self._totals = totals
        self._clock = clock
        self._holds_back = holds_back
        self._accounts: dict[str, _Account] = {}
        self._by_sae: dict[SaeId, _Account] = {}
        # Each day is read from the record once; a clock that jumps back finds the old day again.
        self._day_starts_unix_s = self._day_ends_unix_s = 0.0
        self._day = ""

    def admit(self, initiator: SaeId, targets: Sequence[SaeId], bits: int, stocks: Sequence[Stock]) -> bool:
        """Charge the initiator's tenant `bits` for each target, or raise and change nothing.

        `stocks` are what the pools towards the targets offer, in their order. Gives whether the guarantee paid, which
        `give_back` wants to know. The SAEs must be known already.
        """
        account = self._by_sae.get(initiator) or self._account(initiator)
        tenant = account.tenant
        charge = bits * len(targets)
        for target, stock in zip(targets, stocks, strict=True):
            # Qualities never change, pools get new ones: what was good enough for both once is so for good.
            if account.approved.get(target) is not stock.quality:
                _check_quality(tenant, target, stock.quality)
                _check_quality(self.tenant(target), target, stock.quality)
                if len(account.approved) >= KEPT_SAES_MAX:
                    account.approved.clear()
                account.approved[target] = stock.quality
        now_s = self._clock.monotonic_s()
        self._fill(account, now_s)
        is_guaranteed = charge <= account.guaranteed_bits
        if tenant.burst_bps is not None and charge > account.peak_bits:
            raise _over_burst(tenant, charge, account.peak_bits)
        if not is_guaranteed and self._holds_back:
            _check_shortage(account, charge, bits, stocks)
        if account.is_metered:
            self._meter(account, charge)
        if is_guaranteed:
            account.guaranteed_bits -= charge
        if tenant.burst_bps is not None:
            account.peak_bits -= charge
        return is_guaranteed

    def admit_same(self, initiator: SaeId, target: SaeId, bits: int, count: int, stock: Stock) -> bool | None:
        """As so many times `admit`, for requests that came together.

        None, and nothing has changed, where some of them might be refused, or paid for otherwise than the rest.
        """
        account = self._by_sae.get(initiator) or self._account(initiator)
        self._fill(account, self._clock.monotonic_s())
        if bits <= account.guaranteed_bits < bits * count:
            return None
        try:
            return self.admit(initiator, [target], bits * count, [stock])
        except (LimitReached, LimitForbids):
            return None

    def give_back(self, initiator: SaeId, target_count: int, bits: int, *, is_guaranteed: bool) -> None:
        """Undo an admission whose keys could not be supplied: nobody has them, so nobody pays."""
        account = self._by_sae.get(initiator) or self._account(initiator)
        tenant = account.tenant
        charge = bits * target_count
        if is_guaranteed:
            account.guaranteed_bits = min(account.guaranteed_most, account.guaranteed_bits + charge)
        if tenant.burst_bps is not None:
            account.peak_bits = min(float(tenant.burst_bits), account.peak_bits + charge)
        # At the turn of a day the record is of the new one, and the old one's is no longer of interest.
        if account.is_metered and account.lease_bits + charge <= min(account.day_bits, account.month_bits):
            account.lease_bits += charge

    def adopt(self, tenants: Mapping[str, Tenant], *, holds_back: bool) -> None:
        """Tenants have come, gone or changed, and so may have whose an SAE is. StoreError where a quota is not kept."""
        for name, account in list(self._accounts.items()):
            if name not in tenants:
                self._give_back_lease(account)
                del self._accounts[name]
            elif account.tenant != tenants[name]:
                # What was counted ahead went by the old quotas.
                self._give_back_lease(account)
                account.adopt(tenants[name])
        self._by_sae.clear()
        self._holds_back = holds_back

    def _give_back_lease(self, account: _Account) -> None:
        if account.lease_bits:
            self._record(account, -account.lease_bits)
            account.lease_bits = 0

    def tenant(self, sae: SaeId) -> Tenant:
        """The tenant of an SAE."""
        return (self._by_sae.get(sae) or self._account(sae)).tenant

    def usage(self) -> dict[str, dict[str, object]]:
        """For each tenant met so far: what its buckets hold and what is left of its quotas."""
        now_s = self._clock.monotonic_s()
        shown: dict[str, dict[str, object]] = {}
        for account in self._accounts.values():
            self._fill(account, now_s)
            tenant = account.tenant
            shown[tenant.id] = {
                "guaranteed_bits": int(account.guaranteed_bits),
                "burst_bits": None if tenant.burst_bps is None else int(account.peak_bits),
                "used_bits_today": account.day_bits - account.lease_bits if account.is_metered else None,
                "used_bits_this_month": account.month_bits - account.lease_bits if account.is_metered else None,
            }
        return shown

    def close(self) -> None:
        """Record what was really given, so that an orderly stop costs no quota. Nothing may be admitted afterwards."""
        for account in self._accounts.values():
            self._give_back_lease(account)

    def _account(self, sae: SaeId) -> _Account:
        tenant = self._tenant_of(sae)
        account = self._accounts.get(tenant.id)
        if account is None:
            account = self._accounts[tenant.id] = _Account(tenant, self._clock.monotonic_s())
        if len(self._by_sae) >= KEPT_SAES_MAX:
            self._by_sae.clear()
        self._by_sae[sae] = account
        return account

    @staticmethod
    def _fill(account: _Account, now_s: float) -> None:
        passed_s = now_s - account.filled_s
        if passed_s <= 0:
            return
        account.filled_s = now_s
        tenant = account.tenant
        # The hot path: min() costs three times as much.
        bits = account.guaranteed_bits + passed_s * tenant.guaranteed_bps
        account.guaranteed_bits = bits if bits < account.guaranteed_most else account.guaranteed_most
        if tenant.burst_bps is not None:
            bits = account.peak_bits + passed_s * tenant.burst_bps
            account.peak_bits = bits if bits < tenant.burst_bits else tenant.burst_bits

    # ── quotas ──────────────────────────────────────────────────────────────────────────────────────────────────────

    def _meter(self, account: _Account, charge: int) -> None:
        """Count a request against the quotas, durably; raises where it does not fit."""
        unix_s = self._clock.unix_s()
        if not self._day_starts_unix_s <= unix_s < self._day_ends_unix_s:
            today = dt.datetime.fromtimestamp(unix_s, dt.UTC).replace(hour=0, minute=0, second=0, microsecond=0)
            self._day_starts_unix_s = today.timestamp()
            self._day_ends_unix_s = self._day_starts_unix_s + 86400
            self._day = today.strftime("%Y-%m-%d")
        if account.day != self._day:
            month = self._day[:7]
            day_bits = self._totals.drawn(account.tenant.id, self._day)
            account.month_bits = self._totals.drawn(account.tenant.id, month)
            account.day, account.month, account.day_bits = self._day, month, day_bits
            account.lease_bits = 0
        if charge > account.lease_bits:
            room = self._room(account, charge, unix_s)
            ahead = max(charge - account.lease_bits, int(_quota(account.tenant) * LEASE_SHARE))
            ahead = min(ahead, room - account.lease_bits)
            self._record(account, ahead)
            account.lease_bits += ahead
        account.lease_bits -= charge

    def _room(self, account: _Account, charge: int, unix_s: float) -> int:
        """Bits that the quotas leave; raises where they are fewer than the charge."""
        tenant = account.tenant
        rooms: list[int] = []
        for name, quota, recorded, until_s in (
            ("quota_bits_per_day", tenant.quota_bits_per_day, account.day_bits, self._until_tomorrow_s),
            ("quota_bits_per_month", tenant.quota_bits_per_month, account.month_bits, _until_next_month_s),
        ):
            if quota is None:
                continue
            if charge > quota:
                raise LimitForbids(tenant, name, f"{charge} bits asked for at once, the quota is {quota}")
            room = quota - recorded + account.lease_bits
            if charge > room:
                why = f"{charge} bits asked for, {max(0, room)} of {quota} are left"
                raise LimitReached(tenant, name, why, until_s(unix_s))
            rooms.append(room)
        return min(rooms)

    def _until_tomorrow_s(self, unix_s: float) -> float:
        return self._day_ends_unix_s - unix_s

    def _record(self, account: _Account, change: int) -> None:
        day_bits, month_bits = account.day_bits + change, account.month_bits + change
        self._totals.record(account.tenant.id, {account.day: day_bits, account.month: month_bits})
        account.day_bits, account.month_bits = day_bits, month_bits


def _quota(tenant: Tenant) -> int:
    return min(quota for quota in (tenant.quota_bits_per_day, tenant.quota_bits_per_month) if quota is not None)


def _until_next_month_s(unix_s: float) -> float:
    now = dt.datetime.fromtimestamp(unix_s, dt.UTC)
    year, month = divmod(now.year * 12 + now.month, 12)
    return dt.datetime(year, month + 1, 1, tzinfo=dt.UTC).timestamp() - unix_s


def _check_quality(tenant: Tenant, target: SaeId, quality: Quality) -> None:
    """The minimum security of a tenant. The numbers are of QKD, so they say nothing of key that is made without."""
    if quality.is_qkd:
        if quality.epsilon > tenant.epsilon_max:
            raise LimitForbids(
                tenant, "epsilon_max", f"key for {target} has {quality.epsilon:.3g}, over {tenant.epsilon_max:.3g}"
            )
        if tenant.hops_max is not None and quality.hops > tenant.hops_max:
            raise LimitForbids(tenant, "hops_max", f"key for {target} takes {quality.hops}, over {tenant.hops_max}")
        if quality.routes < tenant.routes_min:
            raise LimitForbids(
                tenant, "routes_min", f"key for {target} takes {quality.routes}, under {tenant.routes_min}"
            )
    if tenant.hybrid == "qkd" and not quality.is_qkd:
        raise LimitForbids(tenant, "hybrid", f"key for {target} would not be of QKD, as `qkd` needs")
    if tenant.hybrid == "hybrid" and not (quality.is_qkd and quality.is_hybrid):
        raise LimitForbids(tenant, "hybrid", f"key for {target} would not be both of QKD and post-quantum")
    if not (quality.is_qkd or quality.is_hybrid):
        raise LimitForbids(tenant, "hybrid", f"key for {target} would be neither of QKD nor post-quantum")


def _over_burst(tenant: Tenant, charge: int, left_bits: float) -> LimitReached | LimitForbids:
    assert tenant.burst_bps is not None
    if charge > tenant.burst_bits:
        return LimitForbids(tenant, "burst_bits", f"{charge} bits asked for at once, the most is {tenant.burst_bits}")
    wait_s = (charge - left_bits) / tenant.burst_bps
    return LimitReached(tenant, "burst_bps", f"{charge} bits asked for, {int(left_bits)} are free now", wait_s)


def _check_shortage(account: _Account, charge: int, bits: int, stocks: Sequence[Stock]) -> None:
    """Beyond the guarantee, each pool must keep what the tenants above this one may want of it."""
    tenant = account.tenant
    share = SHORT_AT * (PRIORITIES - tenant.priority) / PRIORITIES
    for stock in stocks:
        # What is filled ahead of maintenance is there to be used: a higher goal makes no key short.
        needed = share * (stock.target_bits - stock.ahead_bits) + bits
        if stock.level_bits >= needed:
            continue
        wait_s = (needed - stock.level_bits) / stock.fill_bps if stock.fill_bps > 0 else math.inf
        if charge <= account.guaranteed_most:
            wait_s = min(wait_s, (charge - account.guaranteed_bits) / tenant.guaranteed_bps)
        raise LimitReached(
            tenant, "priority", f"key is short and {tenant.priority} leaves what is there to guarantees", wait_s
        )
