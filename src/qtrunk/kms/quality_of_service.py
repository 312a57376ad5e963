"""What each tenant gets, in the figures of ITU-T Y.3807: response time, rate, success, delay variation, mismatch.

    key supply response time   from a request's arrival to its keys, as a histogram with fixed bounds
    delay variation            mean difference between one response time and the next (RFC 5481, IPDV)
    key supply rate            bit/s of the last minute or so
    supply success ratio       answers over answers and the refusals that are the network's doing, see `NETWORK`
    key mismatch ratio         keys that were reported to differ at the two ends, over the keys supplied

Memory is constant: a few numbers for each tenant. Times are seconds, rates bit/s. For one thread.
"""

from bisect import bisect_left

from qtrunk.base.errors import KeyExhausted, KeyNotFound, NotAuthorised, QtrunkError, RequestRefused, RouteUnavailable
from qtrunk.kms.admission import LimitForbids, LimitReached
from qtrunk.kms.sharing import Meter

BOUNDS_S = (
    0.0001, 0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0,
)  # fmt: skip
"""Upper ends of the histogram's buckets; one more takes what is above."""
LIMITS = (
    "burst_bits",
    "burst_bps",
    "quota_bits_per_day",
    "quota_bits_per_month",
    "epsilon_max",
    "hops_max",
    "routes_min",
    "hybrid",
)
"""Refusals for a limit that the tenant has."""
OWN = ("request", "authorisation", "not-found")
"""Refusals for what an SAE asked."""
NETWORK = ("priority", "exhausted", "route", "fault")
"""Refusals for what the network did not have or could not do; only these tell against the success ratio."""
_METER_STEP_S = 0.1


def reason_of(error: QtrunkError) -> str:
    """The one of LIMITS, OWN or NETWORK that an error counts as."""
    match error:
        case LimitReached() | LimitForbids():
            return error.limit
        case KeyExhausted():
            return "exhausted"
        case RouteUnavailable():
            return "route"
        case RequestRefused():
            return "request"
        case NotAuthorised():
            return "authorisation"
        case KeyNotFound():
            return "not-found"
        case _:
            return "fault"


class Figures:
    """What one tenant got."""

    __slots__ = (
        "_answers",
        "_bits",
        "_buckets",
        "_keys",
        "_last_s",
        "_longest_s",
        "_meter",
        "_metered_bits",
        "_metered_s",
        "_mismatched",
        "_refusals",
        "_sum_s",
        "_variation_s",
    )

    def __init__(self, now_s: float) -> None:
        self._meter = Meter(now_s)
        self._metered_s = now_s
        self._metered_bits = 0
        self._buckets = [0] * (len(BOUNDS_S) + 1)
        self._answers = self._keys = self._bits = self._mismatched = 0
        self._sum_s = self._longest_s = self._last_s = self._variation_s = 0.0
        self._refusals = dict.fromkeys((*LIMITS, *OWN, *NETWORK), 0)

    def supplied(self, response_s: float, keys: int, bits: int, now_s: float, answers: int = 1) -> None:
        """A request, or several at once, got `keys`, `bits` together, `response_s` after it came; it is `now_s`."""
        self._buckets[bisect_left(BOUNDS_S, response_s)] += answers
        if self._answers:
            self._variation_s += abs(response_s - self._last_s)
        self._last_s = response_s
        self._answers += answers
        self._sum_s += answers * response_s
        if response_s > self._longest_s:
            self._longest_s = response_s
        self._keys += keys
        self._bits += bits
        # The meter's exponential costs more than all of this: it is brought up to date now and then.
        if now_s - self._metered_s > _METER_STEP_S:
            self._meter.note(self._bits - self._metered_bits, now_s)
            self._metered_bits = self._bits
            self._metered_s = now_s

    def refused(self, reason: str) -> None:
        """A request was refused; `reason` is as of `reason_of`."""
        self._refusals[reason] += 1

    def mismatched(self, keys: int) -> None:
        """So many keys turned out to differ at the two ends."""
        self._mismatched += keys

    def as_json(self, now_s: float) -> dict[str, object]:
        """The figures; a ratio or time is None before there is anything to tell it by."""
        self._meter.note(self._bits - self._metered_bits, now_s)
        self._metered_bits = self._bits
        self._metered_s = max(now_s, self._metered_s)
        failed = sum(self._refusals[reason] for reason in NETWORK)
        answers = self._answers
        return {
            "answers": answers,
            "keys": self._keys,
            "bits": self._bits,
            "supply_rate_bps": self._meter.rate(now_s),
            "success_ratio": answers / (answers + failed) if answers + failed else None,
            "response_time_s": {
                "mean": self._sum_s / answers if answers else None,
                "median": self._quantile(0.5),
                "p99": self._quantile(0.99),
                "longest": self._longest_s if answers else None,
                "bounds": list(BOUNDS_S),
                "counts": list(self._buckets),
            },
            "delay_variation_s": self._variation_s / (answers - 1) if answers > 1 else None,
            "mismatch_ratio": self._mismatched / self._keys if self._keys else None,
            "refusals": {reason: count for reason, count in self._refusals.items() if count},
        }

    def _quantile(self, share: float) -> float | None:
        """A time that at least this share of the answers did not exceed: the bound of its bucket."""
        passed = 0
        for count, bound_s in zip(self._buckets, (*BOUNDS_S, self._longest_s), strict=True):
            passed += count
            if passed and passed >= share * self._answers:
                return min(bound_s, self._longest_s)
        return None
