"""A recording distilled by two processes: each opens its own end's file, and they share one connection.

What `sim.replay` does in one process for figures, as two nodes do it, block after block, however long the recording:
memory holds the few blocks that are under way.
"""

import hashlib
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from qtrunk.base.ids import NodeId
from qtrunk.crypto import randomness
from qtrunk.distil.authentication import AUTH_OCTETS
from qtrunk.distil.parties import BlockAlice, BlockBob, DistilParameters
from qtrunk.plan.bench import ends
from qtrunk.sim.recording import read_receiver, read_transmitter
from qtrunk.sim.replay import ReplayLedger, matched

UNDER_WAY = 3
"""Blocks that are distilled at once."""


@dataclass(frozen=True)
class _Common:
    secret: bytes
    """What both ends make authentication key of: nothing that comes of a recording is a key of anybody."""
    parameters: DistilParameters
    made_unix_s: float

    def ledger(self, block: int) -> ReplayLedger:
        octets = hashlib.shake_256(self.secret + block.to_bytes(8, "big")).digest(AUTH_OCTETS)
        return ReplayLedger(octets, self.parameters.auth_target_octets)

    def arguments(self, block: int) -> dict[str, object]:
        return {
            "alice": NodeId("alice"),
            "bob": NodeId("bob"),
            "parameters": self.parameters,
            "auth": self.ledger(block),
            "random": randomness.system(),
            "now": lambda: self.made_unix_s,
        }


@dataclass(frozen=True)
class _Alice:
    """Opens the transmitter's file where it is called: in a process of her own."""

    path: Path
    common: _Common

    def __call__(self) -> Callable[[int], BlockAlice]:
        recording, lock = read_transmitter(self.path), threading.Lock()

        def make(block: int) -> BlockAlice:
            with lock:
                settings, pulses = recording.settings(block), recording.pulses(block)
            light_s = pulses.count / recording.header.clock_hz
            return BlockAlice(settings=settings, pulses=pulses, light_s=light_s, **self.common.arguments(block))

        return make


def distil_apart(
    transmitter: Path, receiver: Path, parameters: DistilParameters | None = None
) -> Iterator[ends.Outcome]:
    """Bob's outcome of every block that both ends finished, as they come. RequestRefused where the files are not of one
    run or not sound.
    """
    sent = read_transmitter(transmitter)
    received, lock = matched(sent, read_receiver(receiver)), threading.Lock()
    common = _Common(randomness.system().octets(32), parameters or DistilParameters(), sent.header.made_unix_s)

    def make(block: int) -> BlockBob:
        with lock:
            seen = received.read(block)
        return BlockBob(detections=seen.detections, pulses=sent.pulses(block), **common.arguments(block))

    both = sorted(set(sent.finished) & set(received.finished))
    return ends.distil(_Alice(transmitter, common), make, both, UNDER_WAY)
