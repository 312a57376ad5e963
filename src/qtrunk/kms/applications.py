"""What a controller set for single applications (pairs of SAEs): the most they may take, and their priority.

Beside what their tenants may (`kms.admission`): both must agree to a request. A bucket for each pair that has a most:
it fills at that rate and holds `HORIZON_S` of it, at least one key of the largest size. No I/O.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace

from qtrunk.base.errors import KeyExhausted
from qtrunk.base.ids import SaeId
from qtrunk.kms.sharing import HORIZON_S
from qtrunk.topology import Tenant

Pair = tuple[SaeId, SaeId]
LEAST_BITS = 8192.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """What was set; None: as the tenant has it. Rates in bit/s."""

    max_bps: int | None = None
    min_bps: int | None = None
    priority: int | None = None


@dataclass(slots=True)
class _Bucket:
    bits: float
    filled_s: float


class Applications:
    """The settings of one node's applications, and what is left of their limits."""

    def __init__(self) -> None:
        self._settings: dict[Pair, Setting] = {}
        self._buckets: dict[Pair, _Bucket] = {}

    def set(self, pair: Pair, setting: Setting) -> None:
        """From now on; a setting without any value is as good as none."""
        if setting == Setting():
            self._settings.pop(pair, None)
        else:
            self._settings[pair] = setting
        if setting.max_bps is None:
            self._buckets.pop(pair, None)

    def setting(self, pair: Pair) -> Setting:
        """What is set for an application."""
        return self._settings.get(pair, Setting())

    def tenant(self, pair: Pair, tenant: Tenant) -> Tenant:
        """The tenant as it counts for this application's pool: with the priority that was set."""
        found = self._settings.get(pair)
        if found is None or found.priority is None:
            return tenant
        return replace(tenant, priority=found.priority)

    def take(self, initiator: SaeId, targets: Iterable[SaeId], bits: int, now_s: float) -> None:
        """Charge each pair `bits`, or raise KeyExhausted and change nothing."""
        if not self._settings:
            return
        pairs = [(initiator, target) for target in targets]
        for pair in pairs:
            most = self.setting(pair).max_bps
            if most is not None and bits > self._fill(pair, most, now_s).bits:
                wait_s = (bits - self._buckets[pair].bits) / most if most else math.inf
                retry_s = max(1, math.ceil(wait_s)) if wait_s < HORIZON_S else round(HORIZON_S)
                raise KeyExhausted(
                    f"application {pair[0]} to {pair[1]}: max_bandwidth {most} bit/s is reached", retry_s
                )
        for pair in pairs:
            if pair in self._buckets:
                self._buckets[pair].bits -= bits

    def give_back(self, initiator: SaeId, targets: Iterable[SaeId], bits: int) -> None:
        """Undo a charge whose keys could not be supplied."""
        for target in targets:
            bucket = self._buckets.get((initiator, target))
            if bucket is not None:
                bucket.bits += bits

    def _fill(self, pair: Pair, most_bps: int, now_s: float) -> _Bucket:
        size = max(LEAST_BITS, HORIZON_S * most_bps) if most_bps else 0.0
        bucket = self._buckets.setdefault(pair, _Bucket(size, now_s))
        bucket.bits = min(size, bucket.bits + most_bps * (now_s - bucket.filled_s))
        bucket.filled_s = now_s
        return bucket
