"""Load on a key interface: so many TLS connections that ask for keys, from a process of its own.

    python -m qtrunk.plan.bench.load --port 443 --path /api/v1/keys/bob/enc_keys --certificate … --seconds 10

Every connection is TLS 1.3 with a client certificate and stays. Closed loop: each asks again as soon as it has its
answer, which finds the most that a server can do. Open loop (`rate_hz`): requests are due at fixed times whether or not
the server keeps up, and a request's time counts from when it was due, not from when a connection was free to send it: a
server that stalls cannot hide it. Times go to fixed buckets 1.6 % wide: a run of any length needs the same memory.

Nothing that an answer says is kept but its status.
"""

import argparse
import asyncio
import json
import ssl
import subprocess
import sys
import time
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import cast

import uvloop

from qtrunk.base.errors import LabError

_SUB_BITS = 6
TICK_S = 0.001
CONNECT_TOGETHER = 32
ANSWER_WITHIN_S = 10.0


class Histogram:
    """Counts of times in µs, exact up to 127 µs and within 1.6 % above; no limit."""

    def __init__(self) -> None:
        self._counts: Counter[int] = Counter()
        self.total = 0

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


class _Client(asyncio.Protocol):
    """One connection with at most one request under way."""

    def __init__(self, run: "_Run") -> None:
        self._run = run
        self._transport: asyncio.WriteTransport | None = None
        self._answer = b""
        self.asked_s = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.WriteTransport, transport)  # uvloop's TLS transports are no subclass

    def ask(self, due_s: float) -> None:
        """Send the request that was due then."""
        assert self._transport is not None
        self.asked_s = due_s
        self._transport.write(self._run.request)

    def data_received(self, data: bytes) -> None:
        answer = self._answer + data if self._answer else data
        head_end = answer.find(b"\r\n\r\n")
        start = answer.find(b"Content-Length: ", 0, head_end) + 16
        if head_end < 0 or len(answer) < head_end + 4 + int(answer[start : answer.index(b"\r", start)]):
            self._answer = answer
            return
        self._answer = b""
        self._run.answered(self, answer[9:12])

    def connection_lost(self, _error: Exception | None) -> None:
        self._run.lost(self)

    def close(self) -> None:
        """End the connection."""
        if self._transport is not None:
            self._transport.abort()


class _Run:
    """All connections of a load, and what is counted."""

    def __init__(self, load: Load) -> None:
        self.request = load.octets()
        self._load = load
        self._loop = asyncio.get_running_loop()
        self._clients: set[_Client] = set()
        self._free: deque[_Client] = deque()
        self._due: deque[float] = deque()
        self._answers: Counter[bytes] = Counter()
        self._times = Histogram()
        self._lost = 0
        self._is_counting = self._is_over = False

    def answered(self, client: _Client, status: bytes) -> None:
        """Count an answer and let the connection go on."""
        now_s = time.monotonic()
        if self._is_counting:
            self._answers[status] += 1
            self._times.add(now_s - client.asked_s)
        if self._is_over:
            return
        if not self._load.rate_hz:
            client.ask(now_s)
        elif self._due:
            client.ask(self._due.popleft())
        else:
            self._free.append(client)

    def lost(self, client: _Client) -> None:
        """A connection is gone."""
        self._clients.discard(client)
        if not self._is_over:
            self._lost += 1

    async def run(self) -> Outcome:
        """Connect, ask, count."""
        context = ssl.create_default_context(cafile=self._load.ca_certificate)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.load_cert_chain(self._load.certificate, self._load.private_key)
        for start in range(0, self._load.connections, CONNECT_TOGETHER):
            count = min(CONNECT_TOGETHER, self._load.connections - start)
            await asyncio.gather(*(self._connect(context) for _ in range(count)))
        if self._load.rate_hz:
            self._free.extend(self._clients)
            asking = self._loop.create_task(self._keep_due())
        else:
            asking = None
            for client in list(self._clients):
                client.ask(time.monotonic())
        await asyncio.sleep(self._load.warm_up_s)
        began_s = time.monotonic()
        self._is_counting = True
        await asyncio.sleep(self._load.seconds)
        self._is_counting = False
        seconds = time.monotonic() - began_s
        self._is_over = True
        if asking is not None:
            asking.cancel()
            # What was due and never answered counts as well, with the time it has waited.
            for due_s in self._due:
                self._times.add(time.monotonic() - due_s)
        for client in list(self._clients):
            client.close()
        return Outcome(
            seconds=seconds,
            answers={status.decode(): count for status, count in self._answers.items()},
            lost=self._lost,
            p50_s=self._times.quantile_s(0.5),
            p99_s=self._times.quantile_s(0.99),
            p999_s=self._times.quantile_s(0.999),
        )

    async def _connect(self, context: ssl.SSLContext) -> None:
        async with asyncio.timeout(ANSWER_WITHIN_S):
            _, client = await self._loop.create_connection(
                lambda: _Client(self), self._load.host, self._load.port, ssl=context
            )
        self._clients.add(client)

    async def _keep_due(self) -> None:
        next_s = time.monotonic()
        while True:
            now_s = time.monotonic()
            while next_s <= now_s:
                if self._free:
                    self._free.popleft().ask(next_s)
                else:
                    self._due.append(next_s)
                next_s += 1 / self._load.rate_hz
            await asyncio.sleep(TICK_S)


def run(load: Load) -> Outcome:
    """Run a load in this process; LabError where the server cannot be reached."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        try:
            return runner.run(_started(load))
        except (OSError, TimeoutError) as problem:
            raise LabError(f"{load.host}:{load.port}: no load, the server cannot be reached: {problem}") from problem


async def _started(load: Load) -> Outcome:
    return await _Run(load).run()


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
