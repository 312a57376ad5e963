"""Cascade by two processes over loopback TCP: from two sifted keys to one, and what was said for it.

Keys and errors come from SHAKE-256 of fixed seeds, so both ends make their own before the clock starts; from then on
they share octets only. Several keys are under way at once, as on a link that is always lit: while one end asks about
one, the other thinks about the next.
"""

import hashlib
import multiprocessing
import socket
import struct
import time
from dataclasses import dataclass

import numpy as np

from qtrunk.base.errors import LabError
from qtrunk.distil.cascade import FRAMES_MAX, LENGTH_MAX, CascadeAlice, CascadeBob, plan
from qtrunk.distil.keylength import entropy
from qtrunk.plan.bench.ends import read_exactly
from qtrunk.plan.bench.figures import Figure, median
from qtrunk.stages import Octets

KEY_BITS = FRAMES_MAX * LENGTH_MAX
"""One batch."""
KEYS, UNDER_WAY = 9, 2
"""Two keep both ends busy; more only push each other out of the cache, some 12 MB each at each end."""
QBER = 0.03
_HEADER = struct.Struct("<II")


def alice_bits(key: int, bits: int) -> Octets:
    """Alice's key number `key`, shape (bits,)."""
    octets = hashlib.shake_256(b"bench cascade bits" + key.to_bytes(4)).digest((bits + 7) // 8)
    return np.unpackbits(np.frombuffer(octets, np.uint8))[:bits]


def errors(key: int, bits: int, qber: float) -> Octets:
    """Where Bob's differs from it, shape (bits,): each bit with probability `qber`."""
    octets = hashlib.shake_256(b"bench cascade errors" + key.to_bytes(4)).digest(4 * bits)
    return (np.frombuffer(octets, "<u4") < round(qber * 2**32)).astype(np.uint8)


@dataclass(frozen=True)
class Run:
    """What one run took and said."""

    wall_s: float
    cpu_s: float
    """Of Bob's process."""
    efficiency: float
    """Bits that Alice said over the least possible, of all keys."""
    round_trips: float
    """Of a key, on average."""


def _send(connection: socket.socket, key: int, octets: bytes) -> None:
    # Neither end waits for the other to listen: a message for each key may be under way, and the buffers hold those.
    connection.sendall(_HEADER.pack(key, len(octets)) + octets)


def _hear(connection: socket.socket) -> tuple[int, bytes]:
    key, length = _HEADER.unpack(read_exactly(connection, _HEADER.size))
    return int(key), read_exactly(connection, int(length))


def _alice(port: int, bits: int, qber: float) -> None:
    keys = [alice_bits(key, bits) for key in range(KEYS)]
    machines: dict[int, CascadeAlice] = {}
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        begun = done = 0
        while done < KEYS:
            while begun < KEYS and begun - done < UNDER_WAY:
                machines[begun] = CascadeAlice(keys[begun], plan(bits, qber), hashlib.sha256(bytes([begun])).digest())
                _send(connection, begun, machines[begun].start())
                begun += 1
            key, octets = _hear(connection)
            answer = machines[key].received(octets)
            if answer is None:
                del machines[key]
                done += 1
            else:
                _send(connection, key, answer)


def run(bits: int, qber: float) -> Run:
    """KEYS keys of `bits` each, Alice in a process of her own, Bob in this one; LabError unless all come out alike."""
    wrong = [errors(key, bits, qber) for key in range(KEYS)]
    own = [alice_bits(key, bits) ^ error for key, error in enumerate(wrong)]
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        peer = multiprocessing.get_context("spawn").Process(target=_alice, args=(port, bits, qber), daemon=True)
        peer.start()
        server.settimeout(60.0)
        connection, _ = server.accept()
        connection.settimeout(60.0)
    machines: dict[int, CascadeBob] = {}
    found: dict[int, Octets] = {}
    said = least = trips = 0.0
    with connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        began_s, cpu_s = time.perf_counter(), time.process_time()
        while len(found) < KEYS:
            key, octets = _hear(connection)
            bob = machines.get(key) or machines.setdefault(key, CascadeBob(own[key], plan(bits, qber)))
            _send(connection, key, bob.received(octets))
            if bob.done:
                found[key] = bob.corrected
                said += bob.leak_bits
                trips += bob.rounds
                del machines[key]
        took_s, cpu_s = time.perf_counter() - began_s, time.process_time() - cpu_s
        peer.join(30)
    for key in range(KEYS):
        if not np.array_equal(found[key] ^ own[key], wrong[key]):
            raise LabError(f"key {key} is not the same at both ends")
        least += bits * entropy(float(wrong[key].mean()))
    return Run(took_s, cpu_s, said / least, trips / KEYS)


def two_processes(runs: int, _with_rivals: bool) -> list[Figure]:
    """Sifted key per second at 3 %, and the efficiency of it."""
    made = [run(KEY_BITS, QBER) for _ in range(runs)]
    rates = tuple(KEYS * KEY_BITS / one.wall_s / 1e6 for one in made)
    own = tuple(KEYS * KEY_BITS / one.cpu_s / 1e6 for one in made)
    keys = f"{KEYS} keys of {KEY_BITS:,} bits, QBER {QBER:.0%}, {UNDER_WAY} under way at once"
    published = "cascade-cpp publishes 7 to 10 Mbit/s at 1.07 in one process, on its author's machine; no package of it"
    return [
        Figure(
            name="Cascade, two processes over loopback",
            value=median(rates),
            unit="Mbit/s of sifted key",
            goal=50.0,
            samples=rates,
            note=f"wall time; {keys}, {made[0].round_trips:.0f} round trips a key; {published}",
        ),
        Figure(
            name="Cascade, CPU time of one end",
            value=median(own),
            unit="Mbit/s of sifted key",
            samples=own,
            note="Bob's process in the same runs: what a core does when nobody else is on it",
        ),
        Figure(
            name="Cascade, bits said over the least possible",
            value=made[0].efficiency,
            unit="",
            goal=1.05,
            samples=tuple(one.efficiency for one in made),
            is_less_better=True,
            note=f"{keys}; the same in every run, since seeds are fixed; docs/cascade.md has the curve",
        ),
    ]
