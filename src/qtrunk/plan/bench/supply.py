"""Figures of key supply: real node processes, TLS 1.3 with certificates on both sides, keys durable before the answer.

A lab of two nodes is made, stopped, and its pools are filled through the production store; then it runs again, and
clients ask. The simulated fibre between the nodes is next to idle, so that what is measured is supply.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import msgspec

from qtrunk.base.errors import LabError
from qtrunk.base.ids import NodeId, SaeId
from qtrunk.base.secret import Secret
from qtrunk.crypto import randomness
from qtrunk.kms.consume import COLLECTED, INITIATED
from qtrunk.kms.poolstate import HEAD_OCTETS
from qtrunk.kms.seal import load_or_make_kek
from qtrunk.kms.store import KeyStore
from qtrunk.plan.bench.figures import Figure
from qtrunk.plan.bench.lab import Lab, cpu_s
from qtrunk.plan.bench.load import Load, Outcome, run_apart
from qtrunk.plan.bench.roundtrips import End, Task

ALICE, BOB = SaeId("alice"), SaeId("bob")
SEGMENT_OCTETS = 4 << 20
STORED_KEYS = 10_000_000
POOL_OCTETS = 512 << 20
"""More than half a million keys a second take in all runs together."""
ROUND_TRIP_OCTETS = 64 << 20
FLUSHES = 500
TOPOLOGY = """
name = "supply"
trunks = [["a", "b"]]
saes = ["alice@a", "bob@b"]
[link]
length_km = 50
clock_fraction = 0.001
"""


class _Clock:
    def unix_s(self) -> float:
        return time.time()

    def monotonic_s(self) -> float:
        return time.monotonic()


class _Lab(Lab):
    """A running lab of two nodes."""

    def fill(self, octets: int) -> None:
        """The same segments at both nodes; the lab must be down."""
        segments = [randomness.octets(SEGMENT_OCTETS) for _ in range(-(-octets // SEGMENT_OCTETS))]
        receipt: dict[str, object] = {"routes": [["a", "b"]], "hops": [], "epsilon": 0.0}
        receipt["protection"] = "qkd + ml-kem-768"
        for node, side in (("a", INITIATED), ("b", COLLECTED)):
            place = self.state / "nodes" / node
            store = KeyStore.open(place / "store", NodeId(node), load_or_make_kek(place / "kek"), _Clock())
            for number, material in enumerate(segments, start=1):
                expires = time.time() + 86400
                store.pools.add(side, ALICE, BOB, number, Secret(material), receipt, expires)
            store.close()

    def pin(self, node: str, core: int) -> None:
        """A node's threads, all on one core."""
        for thread in Path(f"/proc/{self.pids()[node]}/task").iterdir():
            os.sched_setaffinity(int(thread.name), {core})


def _load(end: End, **options: object) -> Load:
    return Load(
        **{
            "port": end.port,
            "certificate": end.certificate,
            "private_key": end.private_key,
            "ca_certificate": end.ca_certificate,
            "path": f"{end.path}/enc_keys?number=1&size=256",
            "seconds": 4.0,
            **options,
        }  # type: ignore[arg-type]
    )


def _flush_s(directory: Path) -> tuple[float, float]:
    """Median and 99th percentile of one small write made durable, on an idle file: no answer can come sooner."""
    handle = os.open(directory / "flushes", os.O_WRONLY | os.O_CREAT, 0o600)
    try:
        os.posix_fallocate(handle, 0, FLUSHES * 64)
        os.fsync(handle)
        times = []
        for number in range(FLUSHES):
            began_s = time.perf_counter()
            os.pwrite(handle, bytes(64), 64 * number)
            os.fdatasync(handle)
            times.append(time.perf_counter() - began_s)
    finally:
        os.close(handle)
    return statistics.median(times), statistics.quantiles(times, n=100)[-1]


def _checked(outcome: Outcome) -> Outcome:
    if outcome.lost or set(outcome.answers) != {"200"}:
        raise LabError(f"the key interface answered {outcome.answers}, {outcome.lost} connections lost")
    return outcome


def requests(runs: int, _with_rivals: bool) -> list[Figure]:
    """enc_keys of one core: one key a request, at full load and half of it; and 128 keys a request."""
    with _Lab.running(TOPOLOGY, lambda made: made.fill(POOL_OCTETS)) as lab:
        lab.pin("a", 0)
        end, pid = lab.end("alice", "bob"), lab.pids()["a"]
        full, per_cpu = [], []
        for _ in range(max(1, min(runs, 3))):
            before_s = cpu_s(pid)
            outcome = _checked(run_apart(_load(end, connections=128), cores=[1]))
            full.append(outcome.per_second)
            per_cpu.append(outcome.answers["200"] / max(1e-9, cpu_s(pid) - before_s))
        flush_s = _flush_s(lab.state)
        half = _checked(run_apart(_load(end, connections=128, rate_hz=statistics.median(full) / 2), cores=[1]))
        bulk = [
            128
            * _checked(
                run_apart(_load(end, connections=32, path=f"{end.path}/enc_keys?number=128"), cores=[1])
            ).per_second
            for _ in range(max(1, min(runs, 3)))
        ]
    return [
        Figure(
            name="enc_keys, one 256-bit key a request, one core",
            value=statistics.median(full),
            unit="requests/s",
            goal=30_000,
            samples=tuple(full),
            note=f"128 connections, load on the other core; {statistics.median(per_cpu):.0f} requests a second of the "
            "node's CPU time, which includes the warm-up and its other work",
        ),
        Figure(
            name="enc_keys, 99th percentile at half load",
            value=1000 * half.p99_s,
            unit="ms",
            goal=5,
            is_less_better=True,
            samples=(1000 * half.p99_s,),
            note=f"open loop at {half.per_second:.0f} requests/s; median {1000 * half.p50_s:.2f} ms; the disk alone: "
            f"{1000 * flush_s[0]:.2f} ms for a durable record, {1000 * flush_s[1]:.1f} ms at the 99th percentile",
        ),
        Figure(
            name="keys at 128 a request, one core",
            value=statistics.median(bulk),
            unit="keys/s",
            goal=200_000,
            samples=tuple(bulk),
        ),
    ]


def round_trips(runs: int, _with_rivals: bool) -> list[Figure]:
    """enc_keys at one node, dec_keys at the other, both cores, the client on them too."""
    samples = []
    with _Lab.running(TOPOLOGY, lambda made: made.fill(ROUND_TRIP_OCTETS)) as lab:
        task = Task(initiator=lab.end("alice", "bob"), target=lab.end("bob", "alice"), connections=128, seconds=4.0)
        for _ in range(max(1, min(runs, 3))):
            made = subprocess.run(
                [sys.executable, "-m", "qtrunk.plan.bench.roundtrips"],
                input=msgspec.json.encode(task),
                capture_output=True,
                check=False,
            )
            if made.returncode:
                raise LabError(f"round trips failed: {made.stderr.decode().strip()[-300:]}")
            outcome = json.loads(made.stdout)
            samples.append(outcome["done"] / outcome["seconds"])
    return [
        Figure(
            name="enc_keys and dec_keys across two nodes, both cores",
            value=statistics.median(samples),
            unit="round trips/s",
            goal=9_000,
            samples=tuple(samples),
            note="the client runs on the same two cores; the goal is 1,000 times next-door-key-simulator's rate",
        )
    ]


def start(runs: int, _with_rivals: bool) -> list[Figure]:
    """Opening a store that holds 10^7 keys at the initiator's side, a quarter of the first segment used."""
    with tempfile.TemporaryDirectory(prefix="qtrunk-bench") as directory:
        place, kek = Path(directory) / "store", Secret(randomness.octets(32))
        store = KeyStore.open(place, NodeId("a"), kek, _Clock())
        receipt: dict[str, object] = {"routes": [["a", "b"]], "hops": [], "epsilon": 0.0, "protection": "qkd"}
        per_segment = SEGMENT_OCTETS // 32
        for number in range(1, -(-STORED_KEYS // per_segment) + 1):
            material = Secret(randomness.octets(HEAD_OCTETS + SEGMENT_OCTETS))
            store.pools.add(INITIATED, ALICE, BOB, number, material, receipt, time.time() + 86400)
        for _ in range(10_000):
            store.pools.take(ALICE, BOB, 1, 32)
        store.pools.flush()
        count = store.pools.octets(ALICE, BOB) // 32
        store.close()
        samples = []
        for _ in range(runs):
            began_s = time.perf_counter()
            store = KeyStore.open(place, NodeId("a"), kek, _Clock())
            samples.append(time.perf_counter() - began_s)
            assert store.pools.octets(ALICE, BOB) // 32 == count
            store.close()
    return [
        Figure(
            name=f"opening a store of {count:.3g} keys",
            value=statistics.median(samples),
            unit="s",
            goal=2,
            is_less_better=True,
            samples=tuple(samples),
            note="10,000 records of the consume journal are read again; files in the page cache",
        )
    ]
