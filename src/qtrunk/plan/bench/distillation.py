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

LIGHT_S, LOSS_DB = 4.0, 6.3
BLOCKS, UNDER_WAY = 12, 3
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


def _make(work: _Work, block: int) -> BlockAlice | BlockBob:
    common = {
        "alice": NodeId("alice"),
        "bob": NodeId("bob"),
        "pulses": replace(work.pulses, block=block),
        "parameters": DistilParameters(),
        "random": randomness.system(),
        "now": time.time,
    }
    ledger = _Ledger((seed_of(block, "authentication") * AUTH_OCTETS)[:AUTH_OCTETS])
    if work.positions is None or work.bits is None:
        return BlockAlice(settings=lambda at: settings_at(work.seed, at, work.source), auth=ledger, **common)
    basis = bases_at(work.seed, work.positions, work.source)
    return BlockBob(detections=Detections(positions=work.positions, basis=basis, bit=work.bits), auth=ledger, **common)


class _End:
    """One process's blocks over one connection."""

    def __init__(self, work: _Work, connection: socket.socket) -> None:
        self._work = work
        self._connection = connection
        self._machines: dict[int, BlockAlice | BlockBob] = {}
        self.released = 0
        self.sifted_bits = 0
        # Both ends speak at once, and neither may wait for the other to listen.
        self._outbox: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        threading.Thread(target=self._send, daemon=True).start()

    def begin(self, block: int) -> None:
        """A block's light is over."""
        machine = self._machines[block] = _make(self._work, block)
        if isinstance(machine, BlockBob):
            self._do(block, machine.start())

    def hear(self) -> int:
        """One message of the peer; its block."""
        block, length = _HEADER.unpack(self._read(_HEADER.size))
        if block not in self._machines:
            self.begin(block)
        self._do(block, self._machines[block].receive(self._read(length)))
        return int(block)

    def _do(self, block: int, effects: list[Effect]) -> None:
        for effect in effects:
            if isinstance(effect, Send):
                self._outbox.put(_HEADER.pack(block, len(effect.octets)) + effect.octets)
            elif isinstance(effect, Hold):
                self.sifted_bits += effect.key.sifted_bits
                effect.key.material.wipe()
            elif isinstance(effect, Release):
                self.released += 1
                del self._machines[block]
            elif isinstance(effect, Destroy):
                raise LabError(f"block {block} was destroyed: {effect.why}")

    def _send(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                self._connection.sendall(self._outbox.get())

    def _read(self, count: int) -> bytes:
        octets = bytearray(count)
        view, at = memoryview(octets), 0
        while at < count:
            got = self._connection.recv_into(view[at:])
            if not got:
                raise ConnectionError("the other end is gone")
            at += got
        return bytes(octets)


def _alice(work: _Work, port: int) -> None:
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        end = _End(work, connection)
        while end.released < BLOCKS:
            end.hear()


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
        begun = 0
        while end.released < BLOCKS:
            while begun < BLOCKS and begun - end.released < UNDER_WAY:
                end.begin(begun)
                begun += 1
            end.hear()
        took_s = time.perf_counter() - began_s
        peer.join(30)  # the last words are still on their way
    return end.sifted_bits, took_s


def distillation(runs: int, _with_rivals: bool) -> list[Figure]:
    """Sifted key per second through both ends, two processes on two cores."""
    optics = of_equipment(Equipment(), LOSS_DB)
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
    bob = _Work(pulses, source, bob_seed, clicks.positions, clicks.bits)
    samples = []
    for _ in range(runs):
        bits, took_s = _distil(_Work(pulses, source, alice_seed, None, None), bob)
        samples.append(bits / took_s / 1e6)
    return [
        Figure(
            name="distillation, two processes over loopback",
            value=median(samples),
            unit="Mbit/s of sifted key",
            goal=200.0,
            samples=tuple(samples),
            note=f"wall time; {BLOCKS} blocks of {LIGHT_S:g} s of light at {LOSS_DB:g} dB, QBER 1.5 %, "
            f"{UNDER_WAY} under way at once",
        )
    ]
