"""Tenants at one node: every request for fresh key is admitted, timed and counted for its tenant.

Stands between the key interfaces and the supply, as a `base.ports.KeySupply` itself. Figures are of requests for fresh
key, counted with the tenant of the SAE that asks; collecting what was given before is free.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict
from math import isfinite

from qtrunk.base.errors import KeyExhausted, QtrunkError, RouteUnavailable, StoreError
from qtrunk.base.ids import KeyId, SaeId
from qtrunk.base.ports import Clock, LotSupply, Stock, SuppliedKey, SuppliedKeys, SupplyStatus
from qtrunk.kms.admission import KEPT_SAES_MAX, Admission
from qtrunk.kms.applications import Applications
from qtrunk.kms.quality_of_service import Figures, reason_of
from qtrunk.kms.sharing import Meter, time_to_empty_s, time_to_full_s
from qtrunk.kms.totals import TotalsFile
from qtrunk.topology import DEFAULT_TENANT, Tenant, Topology

_CONTRACT = (
    "title", "guaranteed_bps", "burst_bps", "quota_bits_per_day", "quota_bits_per_month", "priority", "key_lifetime_s",
)  # fmt: skip


class TenantSupply:
    """A supply that keeps to what tenants were promised and may use."""

    def __init__(
        self,
        supply: LotSupply,
        topology: Topology,
        totals: TotalsFile,
        clock: Clock,
        stock_of: Callable[[SaeId, SaeId], Stock],
        is_repeated: Callable[[bytes], bool] = lambda _request_id: False,
        applications: Applications | None = None,
    ) -> None:
        """`stock_of` says what there is from one SAE to another; it raises as `KeySupply.status` does.

        `is_repeated` says whether a request was answered a moment ago.
        """
        self._is_repeated = is_repeated
        self._applications = applications or Applications()
        self._supply = supply
        self._topology = topology
        self._totals = totals
        self._clock = clock
        self._stock_of = stock_of
        self._admission = Admission(topology.tenant_of, totals, clock, holds_back=_holds_back(topology))
        self._figures: dict[str, Figures] = {}
        self._demand: dict[tuple[SaeId, SaeId], Meter] = {}

    def adopt(self) -> None:
        """The network has changed: who its tenants are, what they may, and which SAEs are theirs."""
        known = {tenant.id: tenant for tenant in (*self._topology.tenants, self._topology.default_tenant)}
        self._admission.adopt(known, holds_back=_holds_back(self._topology))

    def status(self, initiator: SaeId, target: SaeId) -> SupplyStatus:
        """Supply from `initiator` to `target` now."""
        return self._supply.status(initiator, target)

    async def initiate(
        self,
        initiator: SaeId,
        targets: Sequence[SaeId],
        number: int,
        key_bits: int,
        *,
        request_id: bytes | None = None,
    ) -> Sequence[SuppliedKey]:
        """Fresh keys, if the tenant may have them. LimitReached and LimitForbids beside what the supply raises."""
        if request_id is not None and self._is_repeated(request_id):
            # Paid for the first time; the same keys again.
            return await self._supply.initiate(initiator, targets, number, key_bits, request_id=request_id)
        came_s = self._clock.monotonic_s()
        bits = number * key_bits
        figures = self._figures_of(self._admission.tenant(initiator), came_s)
        try:
            # First of all: nothing is kept by the names of SAEs that are not known here.
            stocks = [self._stock_of(initiator, target) for target in targets]
            for target in targets:
                self._demand_of(initiator, target, came_s).note(bits, came_s)
            self._applications.take(initiator, targets, bits, came_s)
            try:
                is_guaranteed = self._admission.admit(initiator, targets, bits, stocks)
            except QtrunkError:
                self._applications.give_back(initiator, targets, bits)
                raise
            try:
                keys = await self._supply.initiate(initiator, targets, number, key_bits, request_id=request_id)
            except QtrunkError:
                # A caller that only goes away pays: its keys are spent all the same.
                self._admission.give_back(initiator, len(targets), bits, is_guaranteed=is_guaranteed)
                self._applications.give_back(initiator, targets, bits)
                raise
        except QtrunkError as error:
            figures.refused(reason_of(error))
            raise
        now_s = self._clock.monotonic_s()
        figures.supplied(now_s - came_s, number, bits, now_s)
        return keys

    async def collect(
        self, target: SaeId, initiator: SaeId, key_ids: Sequence[KeyId], *, request_id: bytes | None = None
    ) -> Sequence[SuppliedKey]:
        """Keys that `initiator` was given, for their target; each once."""
        return await self._supply.collect(target, initiator, key_ids, request_id=request_id)

    async def initiate_same(
        self, initiator: SaeId, target: SaeId, number: int, key_bits: int, count: int
    ) -> SuppliedKeys | None:
        """See `base.ports.LotSupply`: charged and counted as so many requests."""
        came_s = self._clock.monotonic_s()
        bits = count * number * key_bits
        figures = self._figures_of(self._admission.tenant(initiator), came_s)
        stock = self._stock_of(initiator, target)
        try:
            self._applications.take(initiator, [target], bits, came_s)
        except KeyExhausted:
            return None

        def undo(*, is_guaranteed: bool | None) -> None:
            self._applications.give_back(initiator, [target], bits)
            if is_guaranteed is not None:
                self._admission.give_back(initiator, 1, bits, is_guaranteed=is_guaranteed)

        is_guaranteed = None
        try:
            is_guaranteed = self._admission.admit_same(initiator, target, number * key_bits, count, stock)
            if is_guaranteed is None:
                undo(is_guaranteed=None)
                return None
            keys = await self._supply.initiate_same(initiator, target, number, key_bits, count)
        except QtrunkError as error:
            undo(is_guaranteed=is_guaranteed)
            if isinstance(error, StoreError):  # After any other each is tried by itself, and counted there.
                for _ in range(count):
                    figures.refused(reason_of(error))
            raise
        if keys is None:
            undo(is_guaranteed=is_guaranteed)
            return None
        now_s = self._clock.monotonic_s()
        self._demand_of(initiator, target, came_s).note(bits, came_s)
        figures.supplied(now_s - came_s, count * number, bits, now_s, answers=count)
        return keys

    async def collect_each(
        self, target: SaeId, initiator: SaeId, wanted: Sequence[Sequence[KeyId]]
    ) -> SuppliedKeys | list[Sequence[SuppliedKey] | QtrunkError | None]:
        """See `base.ports.LotSupply`."""
        return await self._supply.collect_each(target, initiator, wanted)

    def demands(self) -> dict[tuple[SaeId, SaeId], float]:
        """What each pair of SAEs asks for now, bit/s."""
        now_s = self._clock.monotonic_s()
        return {pair: meter.rate(now_s) for pair, meter in self._demand.items()}

    def as_json(self) -> list[dict[str, object]]:
        """Each tenant: its contract, what it used, what it got, and its pairs of SAEs that asked for key."""
        now_s = self._clock.monotonic_s()
        usage = self._admission.usage()
        tenants = [one for one in self._topology.tenants if one.id != DEFAULT_TENANT]
        return [
            {
                "tenant": tenant.id,
                **{name: value for name, value in asdict(tenant).items() if name in _CONTRACT},
                "usage": usage.get(tenant.id),
                "quality_of_service": self._figures_of(tenant, now_s).as_json(now_s),
                "pools": [
                    self._pool(initiator, target, meter.rate(now_s))
                    for (initiator, target), meter in self._demand.items()
                    if self._admission.tenant(initiator).id == tenant.id
                ],
            }
            for tenant in (*tenants, self._topology.default_tenant)
        ]

    def close(self) -> None:
        """Record what was given and let go of the record."""
        self._admission.close()
        self._totals.close()

    def _pool(self, initiator: SaeId, target: SaeId, demand_bps: float) -> dict[str, object]:
        try:
            stock = self._stock_of(initiator, target)
        except RouteUnavailable as error:
            return {"from": initiator, "to": target, "demand_bps": demand_bps, "error": str(error)}
        empty_s = time_to_empty_s(stock.level_bits, stock.fill_bps, demand_bps)
        full_s = time_to_full_s(stock.level_bits, stock.target_bits, stock.fill_bps, demand_bps)
        return {
            "from": initiator,
            "to": target,
            "level_bits": int(stock.level_bits),
            "target_bits": int(stock.target_bits),
            "fill_bps": stock.fill_bps,
            "demand_bps": demand_bps,
            "time_to_empty_s": empty_s if isfinite(empty_s) else None,
            "time_to_full_s": full_s if isfinite(full_s) else None,
            "quality": asdict(stock.quality),
        }

    def _figures_of(self, tenant: Tenant, now_s: float) -> Figures:
        if tenant.id not in self._figures:
            self._figures[tenant.id] = Figures(now_s)
        return self._figures[tenant.id]

    def _demand_of(self, initiator: SaeId, target: SaeId, now_s: float) -> Meter:
        if (initiator, target) not in self._demand:
            if len(self._demand) >= KEPT_SAES_MAX:
                # The pair that was met first; of what it asks for again, the count begins anew.
                del self._demand[next(iter(self._demand))]
            self._demand[initiator, target] = Meter(now_s)
        return self._demand[initiator, target]


def _holds_back(topology: Topology) -> bool:
    return any(tenant.guaranteed_bps for tenant in topology.tenants)
