"""Load on a key interface: so many TLS connections that ask for keys, from a process of its own.

    python -m qtrunk.plan.bench.load --port 443 --path /api/v1/keys/bob/enc_keys --certificate … --seconds 10

Every connection is TLS 1.3 with a client certificate and stays. Closed loop: each asks again as soon as it has its
answer, which finds the most that a server can do. Open loop (`rate_hz`): requests are due at fixed times whether or not
the server keeps up, and a request's time counts from when it was due, not from when a connection was free to send it: a
server that stalls cannot hide it. Times go to fixed buckets 1.6 % wide: a run of any length needs the same memory.
The loop is compiled (`src/load`): in Python it would be slower than the server that it is to measure.

Nothing that an answer says is kept but its status.
"""

import argparse
import json
import subprocess
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace

from qtrunk import _load
from qtrunk.base.errors import LabError

_SUB_BITS = 6


class Histogram:
    """Counts of times in µs, exact up to 127 µs and within 1.6 % above; no limit."""

    def __init__(self, counts: Mapping[int, int] | None = None) -> None:
        """`counts` by bucket, as `add` counts."""
        self._counts: Counter[int] = Counter(counts or {})
        self.total = self._counts.total()

    def add(self, seconds: float) -> None:
        """Count one."""
        microseconds = int(seconds * 1e6)
        shift = max(0, microseconds.bit_length() - _SUB_BITS - 1)
        self._counts[(shift << _SUB_BITS) + (microseconds >> shift)] += 1
        self.total += 1

    def quantile_s(self, share: float) -> float:
        """The time within which `share` of all lie, as the upper edge of its bucket; 0 where there are none."""
        left = share * self.total
        for bucket in sorted(self._counts):
            left -= self._counts[bucket]
            if left <= 0:
                shift = max(0, (bucket >> _SUB_BITS) - 1)
                return (((bucket - (shift << _SUB_BITS)) + 1) << shift) / 1e6
        return 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """What to ask for, how often, for how long."""

    port: int
    certificate: str
    private_key: str
    ca_certificate: str
    path: str
    host: str = "localhost"
    method: str = "GET"
    body: str = ""
    connections: int = 32
    seconds: float = 5.0
    warm_up_s: float = 0.5
    """Asked for before the clock starts."""
    rate_hz: float = 0.0
    """Of all connections together; 0: closed loop."""

    def octets(self) -> bytes:
        """The request as it travels."""
        head = f"{self.method} {self.path} HTTP/1.1\r\nHost: {self.host}\r\n"
        if self.body:
            head += f"Content-Type: application/json\r\nContent-Length: {len(self.body.encode())}\r\n"
        return f"{head}\r\n{self.body}".encode()


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What came of it."""

    seconds: float
    answers: dict[str, int] = field(default_factory=dict)
    """How many of each status."""
    lost: int = 0
    """Connections that ended before the load did."""
    p50_s: float = 0.0
    p99_s: float = 0.0
    p999_s: float = 0.0

    @property
    def per_second(self) -> float:
        """Answers with status 200 per second."""
        return self.answers.get("200", 0) / self.seconds if self.seconds else 0.0


def run(load: Load) -> Outcome:
    """Run a load in this process; LabError where the server cannot be reached."""
    try:
        seconds, answers, lost, times = _load.run(
            place=place(load.host, load.port, load.certificate, load.private_key, load.ca_certificate),
            request=load.octets(),
            connections=load.connections,
            seconds=load.seconds,
            warm_up_s=load.warm_up_s,
            rate_hz=load.rate_hz,
        )
    except RuntimeError as problem:
        raise LabError(f"{load.host}:{load.port}: no load, the server cannot be reached: {problem}") from problem
    histogram = Histogram(times)
    return Outcome(
        seconds=seconds,
        answers=answers,
        lost=lost,
        p50_s=histogram.quantile_s(0.5),
        p99_s=histogram.quantile_s(0.99),
        p999_s=histogram.quantile_s(0.999),
    )


def place(host: str, port: int, certificate: str, private_key: str, ca_certificate: str) -> _load.Place:
    """Where a key manager listens, and who asks there."""
    return _load.Place(
        host=host, port=port, certificate=certificate, private_key=private_key, ca_certificate=ca_certificate
    )


def round_trips(
    initiator: _load.Place, target: _load.Place, get: bytes, collect: bytes, connections: int, seconds: float
) -> tuple[int, float]:
    """Keys that were got by the request `get` and collected by the path `collect` and their ID, on so many pairs of
    connections, and the seconds that it took. RuntimeError where one fails, or differs.
    """
    return _load.round_trips(
        initiator=initiator, target=target, get=get, collect=collect, connections=connections, seconds=seconds
    )


def run_apart(load: Load, cores: Sequence[int] = ()) -> Outcome:
    """Run a load in a process of its own, on these cores only; LabError where it fails."""
    options = [f"--{name.replace('_', '-')}={value}" for name, value in asdict(load).items()]
    pin = ["taskset", "-c", ",".join(map(str, cores))] if cores else []
    made = subprocess.run(
        [*pin, sys.executable, "-m", "qtrunk.plan.bench.load", *options], capture_output=True, text=True, check=False
    )
    if made.returncode:
        raise LabError(f"load on {load.host}:{load.port} failed: {made.stderr.strip()[-300:]}")
    return Outcome(**json.loads(made.stdout))


def main(arguments: Sequence[str] | None = None) -> None:
    """`python -m qtrunk.plan.bench.load`: prints the outcome as JSON."""
    parser = argparse.ArgumentParser(description="Ask a key interface for keys over many TLS connections.")
    template = Load(port=0, certificate="", private_key="", ca_certificate="", path="")
    for name, value in asdict(template).items():
        parser.add_argument(
            f"--{name.replace('_', '-')}",
            type=type(value),
            required=value in ("", 0) and name not in ("body", "rate_hz"),
            default=value,
        )
    outcome = run(replace(template, **vars(parser.parse_args(arguments))))
    print(json.dumps(asdict(outcome)))


if __name__ == "__main__":
    main()
