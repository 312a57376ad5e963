"""Two parties joined by octets, and light that a formula makes up; for tests of the protocol."""

from dataclasses import dataclass, field

import numpy as np

from qtrunk.base.errors import AuthenticationFailed, KeyExhausted
from qtrunk.base.ids import LinkId, NodeId
from qtrunk.base.secret import Secret
from qtrunk.distil.authentication import AUTH_OCTETS, WegmanCarter
from qtrunk.distil.parties import (
    BlockAlice,
    BlockBob,
    DistilParameters,
    Send,
)
from qtrunk.stages import Detections, Pulses, Settings

INTENSITIES = (0.46, 0.20, 0.0002)
PROBABILITIES = (0.48, 0.42, 0.10)


class Ledger:
    """One end's authentication key, in memory."""

    def __init__(self, material: bytes) -> None:
        self.material = material
        self.used = 0
        self.epsilon = 0.0
        self.epsilon_max = 1.0

    def reserve(self, epsilon: float) -> WegmanCarter:
        if self.used + AUTH_OCTETS > len(self.material):
            raise KeyExhausted("no authentication key left")
        offset = self.used
        return self.take(0, offset, epsilon)

    def take(self, block: int, offset: int, epsilon: float) -> WegmanCarter:
        if block != 0 or offset < self.used or offset + AUTH_OCTETS > len(self.material):
            raise AuthenticationFailed("authentication key was used before")
        self.used = offset + AUTH_OCTETS
        self.epsilon += epsilon
        return WegmanCarter(block, offset, Secret(self.material[offset : self.used]))

    def allows(self, epsilon: float) -> bool:
        return self.epsilon + epsilon <= self.epsilon_max

    def level_octets(self) -> int:
        return len(self.material) - self.used


class Dice:
    """Repeatable octets for both ends' public randomness."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)

    def octets(self, count: int) -> bytes:
        return self.rng.bytes(count)


@dataclass
class Light:
    """A block as the two modules saw it."""

    pulses: Pulses
    settings: Settings
    detections: Detections


def light(seed: int, clicks: int = 300_000, qber: float = 0.016, block: int = 1) -> Light:
    """Clicks of a link with eta = 0.003 in the channel and detectors, errors at rate `qber`."""
    rng = np.random.default_rng(seed)
    eta, basis = 0.003, 0.7
    gains = 1 - np.exp(-eta * np.array(INTENSITIES)) + 2e-6
    weights = np.array(PROBABILITIES) * gains
    count = int(clicks / weights.sum())
    positions = np.sort(rng.choice(count, clicks, replace=False)).astype(np.uint64)
    intensity = rng.choice(3, clicks, p=weights / weights.sum()).astype(np.uint8)
    alice_basis, bob_basis = (rng.random((2, clicks)) >= basis).astype(np.uint8)
    bit = rng.integers(0, 2, clicks).astype(np.uint8)
    wrong = np.where(alice_basis == bob_basis, rng.random(clicks) < qber, rng.random(clicks) < 0.5)
    pulses = Pulses(
        link=LinkId("a-b"),
        block=block,
        count=count,
        intensities=INTENSITIES,
        probabilities=PROBABILITIES,
        key_basis_probability=basis,
    )
    return Light(
        pulses,
        Settings(intensity=intensity, basis=alice_basis, bit=bit),
        Detections(positions=positions, basis=bob_basis, bit=bit ^ wrong.astype(np.uint8)),
    )


@dataclass
class Pair:
    """Alice and Bob of one block; every message passes `change` as octets."""

    seen: Light
    seed: int = 1
    secret: bytes = bytes(range(256)) * 4
    reconciliation: str = "ldpc"
    effects: dict[str, list] = field(default_factory=lambda: {"alice": [], "bob": []})
    octets: list[tuple[str, bytes]] = field(default_factory=list)

    def __post_init__(self) -> None:
        common = {
            "alice": NodeId("a"),
            "bob": NodeId("b"),
            "pulses": self.seen.pulses,
            "parameters": DistilParameters(reconciliation=self.reconciliation),
            "now": lambda: 0.0,
        }
        self.ledgers = {"alice": Ledger(self.secret), "bob": Ledger(self.secret)}
        self.alice = BlockAlice(
            settings=lambda _: self.seen.settings,
            light_s=4.0,
            auth=self.ledgers["alice"],
            random=Dice(self.seed),
            **common,
        )
        self.bob = BlockBob(
            detections=self.seen.detections, auth=self.ledgers["bob"], random=Dice(self.seed + 1), **common
        )

    def run(self, change=lambda _index, _sender, octets: [octets]) -> None:
        """Carry messages until both are silent; `change` may alter, drop, double or replace each one."""
        machines = {"alice": self.alice, "bob": self.bob}
        queue = [("bob", effect) for effect in self.bob.start()]
        while queue:
            sender, effect = queue.pop(0)
            self.effects[sender].append(effect)
            if not isinstance(effect, Send):
                continue
            self.octets.append((sender, effect.octets))
            receiver = "alice" if sender == "bob" else "bob"
            for octets in change(len(self.octets) - 1, sender, effect.octets):
                queue += [(receiver, answer) for answer in machines[receiver].receive(octets)]

    def of(self, party: str, kind: type) -> list:
        return [effect for effect in self.effects[party] if isinstance(effect, kind)]
