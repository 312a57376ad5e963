"""The whole of distillation by two processes over loopback TCP, from clicks to authenticated key.

Both ends get the same simulated light beforehand, as their modules would have given it to them; from then on they share
octets only. Several blocks are under way at once, as on a link that is always lit.
"""

import contextlib
import multiprocessing
import queue
import socket
import struct
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

from qtrunk.base.errors import LabError
from qtrunk.base.ids import LinkId, NodeId
from qtrunk.base.secret import Secret
from qtrunk.crypto import randomness
from qtrunk.distil.authentication import AUTH_OCTETS, Authenticator, WegmanCarter
from qtrunk.distil.parties import (
    BlockAlice,
    BlockBob,
    Destroy,
    DistilParameters,
    Effect,
    Hold,
    Release,
    Send,
)
from qtrunk.plan.bench.figures import Figure, median
from qtrunk.quantum.channel import Channel
from qtrunk.quantum.optics import of_equipment
from qtrunk.quantum.run import end_seed, seed_of
from qtrunk.quantum.source import SourceSettings, bases_at, settings_at
from qtrunk.stages import Detections, Octets, Positions, Pulses, Role
from qtrunk.topology import Equipment

LIGHT_S, LOSS_DB, KEY_BASIS = 8.0, 6.3, 0.95
BLOCKS, UNDER_WAY = 12, 4
THREADS = 2
_HEADER = struct.Struct("<QI")


class _Ledger:
    """Authentication key of one block, made up: distil.parties.AuthLedger."""

    def __init__(self, octets: bytes) -> None:
        self._octets = octets

    def reserve(self, _epsilon: float) -> Authenticator:
        return WegmanCarter(0, 0, Secret(self._octets))

    def take(self, _block: int, _offset: int, _epsilon: float) -> Authenticator:
        return WegmanCarter(0, 0, Secret(self._octets))

    def allows(self, _epsilon: float) -> bool:
        return True

    def level_octets(self) -> int:
        return DistilParameters().auth_target_octets


@dataclass(frozen=True)
class _Work:
    """What one end is given."""

    pulses: Pulses
    source: SourceSettings
    seed: bytes
    positions: Positions | None
    bits: Octets | None
    reconciliation: str


def _make(work: _Work, block: int) -> BlockAlice | BlockBob:
    common = {
        "alice": NodeId("alice"),
        "bob": NodeId("bob"),
        "pulses": replace(work.pulses, block=block),
        "parameters": DistilParameters(reconciliation=work.reconciliation),
        "random": randomness.system(),
        "now": time.time,
    }
    ledger = _Ledger((seed_of(block, "authentication") * AUTH_OCTETS)[:AUTH_OCTETS])
    if work.positions is None or work.bits is None:
        return BlockAlice(
            settings=lambda at: settings_at(work.seed, at, work.source), light_s=LIGHT_S, auth=ledger, **common
        )
    basis = bases_at(work.seed, work.positions, work.source)
    return BlockBob(detections=Detections(positions=work.positions, basis=basis, bit=work.bits), auth=ledger, **common)


class _End:
    """One process's blocks over one connection. Each block's machine has at most one thread at a time, as in a node."""

    def __init__(self, work: _Work, connection: socket.socket) -> None:
        self._work = work
        self._connection = connection
        self._machines: dict[int, BlockAlice | BlockBob] = {}
        self._threads = ThreadPoolExecutor(THREADS)
        self._ended: queue.SimpleQueue[int | BaseException] = queue.SimpleQueue()
        self.sifted_bits = 0
        # Both ends speak at once, and neither may wait for the other to listen.
        self._outbox: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        for work_of in (self._send, self._hear):
            threading.Thread(target=work_of, daemon=True).start()

    def begin(self, block: int) -> None:
        """A block's light is over: Bob speaks."""
        self._threads.submit(self._begin, block)

    def wait(self) -> int:
        """The next block that is released; the error of what went wrong."""
        ended = self._ended.get(timeout=60.0)
        if isinstance(ended, BaseException):
            raise ended
        return ended

    def _begin(self, block: int) -> None:
        try:
            machine = self._machines[block] = _make(self._work, block)
            if isinstance(machine, BlockBob):
                self._do(block, machine.start())
        except BaseException as error:  # noqa: BLE001 (raised where somebody waits)
            self._ended.put(error)

    def _hear(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                block, length = _HEADER.unpack(self._read(_HEADER.size))
                self._threads.submit(self._receive, block, bytes(self._read(length)))

    def _receive(self, block: int, octets: bytes) -> None:
        if block not in self._machines:
            self._begin(block)
        try:
            self._do(block, self._machines[block].receive(octets))
        except BaseException as error:  # noqa: BLE001 (raised where somebody waits)
            self._ended.put(error)

    def _do(self, block: int, effects: list[Effect]) -> None:
        for effect in effects:
            if isinstance(effect, Send):
                self._outbox.put(_HEADER.pack(block, len(effect.octets)))
                self._outbox.put(effect.octets)
            elif isinstance(effect, Hold):
                self.sifted_bits += effect.key.sifted_bits
                effect.key.material.wipe()
            elif isinstance(effect, Release):
                del self._machines[block]
                self._ended.put(block)
            elif isinstance(effect, Destroy):
                self._ended.put(LabError(f"block {block} was destroyed: {effect.why}"))

    def _send(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                self._connection.sendall(self._outbox.get())

    def _read(self, count: int) -> bytearray:
        octets = bytearray(count)
        view, at = memoryview(octets), 0
        while at < count:
            got = self._connection.recv_into(view[at:])
            if not got:
                raise ConnectionError("the other end is gone")
            at += got
        return octets


def _alice(work: _Work, port: int) -> None:
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        end = _End(work, connection)
        for _ in range(BLOCKS):
            end.wait()


def _distil(alice: _Work, bob: _Work) -> tuple[float, float]:
    """(sifted bits, wall seconds) of all blocks, with Alice in a process of her own and Bob in this one."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        peer = multiprocessing.get_context("spawn").Process(target=_alice, args=(alice, port), daemon=True)
        peer.start()
        server.settimeout(60.0)
        connection, _ = server.accept()
        connection.settimeout(60.0)
    with connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        end = _End(bob, connection)
        began_s = time.perf_counter()
        for block in range(UNDER_WAY):
            end.begin(block)
        for begun in range(UNDER_WAY, BLOCKS + UNDER_WAY):
            end.wait()
            if begun < BLOCKS:
                end.begin(begun)
        took_s = time.perf_counter() - began_s
        peer.join(30)  # the last words are still on their way
    return end.sifted_bits, took_s


def distillation(runs: int, _with_rivals: bool) -> list[Figure]:
    """Sifted key per second through both ends, two processes on two cores."""
    optics = of_equipment(replace(Equipment(), key_basis_probability=KEY_BASIS), LOSS_DB)
    source = optics.source
    count = round(LIGHT_S * optics.clock_hz)
    alice_seed, bob_seed = end_seed(4, 0, Role.ALICE), end_seed(4, 0, Role.BOB)
    clicks = Channel(optics, seed_of(4, "light")).sample(alice_seed, bob_seed, 0, count)
    pulses = Pulses(
        link=LinkId("alice-bob"),
        block=0,
        count=count,
        intensities=source.intensities,
        probabilities=source.exact_probabilities,
        key_basis_probability=source.exact_key_basis_probability,
    )
    figures = []
    for reconciliation, goal in (("fast", 200.0), ("ldpc", None)):
        alice = _Work(pulses, source, alice_seed, None, None, reconciliation)
        bob = _Work(pulses, source, bob_seed, clicks.positions, clicks.bits, reconciliation)
        samples, bits = [], 0
        for _ in range(runs):
            bits, took_s = _distil(alice, bob)
            samples.append(bits / took_s / 1e6)
        figures.append(
            Figure(
                name=f"distillation, two processes over loopback, reconciliation {reconciliation}",
                value=median(samples),
                unit="Mbit/s of sifted key",
                goal=goal,
                samples=tuple(samples),
                note=f"wall time; {BLOCKS} blocks of {LIGHT_S:g} s of light at {LOSS_DB:g} dB, QBER 1.5 %, "
                f"{bits // BLOCKS:,} bits each, {UNDER_WAY} under way at once",
            )
        )
    return figures
