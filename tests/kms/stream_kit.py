"""Two key managers that tell each other notes through a mailbox of the test, and a supply that both share."""

import hashlib
import itertools
from dataclasses import dataclass, field

from qtrunk.base.errors import KeyExhausted, KeyNotFound, QtrunkError, RequestRefused
from qtrunk.base.ids import KeyId, NodeId, SaeId
from qtrunk.base.ports import SuppliedKey, SupplyStatus
from qtrunk.base.secret import Secret
from qtrunk.kms.streamend import Answer, Collect, Initiate, Tell
from qtrunk.kms.streamnotes import Qos, Status
from qtrunk.kms.streams import Streams

NODES = {"alice": "a", "carol": "a", "bob": "b", "dora": "b"}
KSID = bytes(range(16))


def qos(**changes) -> Qos:
    fields = {
        "key_chunk_size": 32,
        "max_bps": 0,
        "min_bps": 0,
        "jitter": 0,
        "priority": 0,
        "timeout": 5000,
        "ttl": 60,
        "metadata_mimetype": "application/json",
    }
    return Qos(**(fields | changes))


@dataclass
class FakeClock:
    now_s: float = 1000.0

    def unix_s(self) -> float:
        return self.now_s

    def monotonic_s(self) -> float:
        return self.now_s


@dataclass
class CountingRandom:
    name: str
    count: int = 0

    def octets(self, count: int) -> bytes:
        self.count += 1
        return hashlib.shake_256(f"{self.name}{self.count}".encode()).digest(count)


@dataclass
class Stock:
    """Keys of the whole network."""

    left: int = 1_000_000
    limits: dict = field(default_factory=dict)
    keys: dict[str, tuple[str, str, bytes]] = field(default_factory=dict)
    supplied: list[SuppliedKey] = field(default_factory=list)
    numbers: itertools.count = field(default_factory=itertools.count)

    def status(self, initiator: SaeId, target: SaeId) -> SupplyStatus:
        if target not in NODES:
            raise RequestRefused("unknown")
        fields = {
            "source_kme": "a",
            "target_kme": "b",
            "key_bits": 256,
            "stored_key_count": self.left,
            "key_count_max": 1_000_000,
            "keys_per_request_max": 128,
            "key_bits_max": 8192,
            "key_bits_min": 64,
            "additional_targets_max": 8,
            "fill_bps": 1000.0,
        }
        return SupplyStatus(**(fields | self.limits))

    def serve(self, effect: Initiate | Collect) -> list[SuppliedKey] | QtrunkError:
        if isinstance(effect, Initiate):
            if effect.number > self.left:
                return KeyExhausted("no key")
            self.left -= effect.number
            keys = [self._fresh(effect) for _ in range(effect.number)]
        else:
            found = [self.keys.get(key_id) for key_id in effect.key_ids]
            if any(entry is None or entry[:2] != (effect.initiator, effect.target) for entry in found):
                return KeyNotFound("unknown")
            for key_id in effect.key_ids:
                del self.keys[key_id]
            keys = [
                SuppliedKey(key_id=key_id, material=Secret(entry[2]))
                for key_id, entry in zip(effect.key_ids, found, strict=True)
            ]
        self.supplied += keys
        return keys

    def _fresh(self, effect: Initiate) -> SuppliedKey:
        key_id = KeyId(f"00000000-0000-4000-8000-{next(self.numbers):012x}")
        octets = hashlib.shake_256(key_id.encode()).digest(effect.key_bits // 8)
        self.keys[key_id] = (effect.initiator, effect.target, octets)
        return SuppliedKey(key_id=key_id, material=Secret(octets))


class Pair:
    """Key managers `a` and `b`; notes wait in `mail`, jobs in `jobs`, answers are kept by ticket."""

    def __init__(self) -> None:
        self.clock = FakeClock()
        self.stock = Stock()
        self.mail: list[tuple[str, str, bytes]] = []
        self.jobs: list[tuple[str, Initiate | Collect]] = []
        self.answers: dict[tuple[str, int], Answer] = {}
        self.births = itertools.count()
        self.kmes: dict[str, Streams] = {}
        for node in "ab":
            self.start(node)

    def start(self, node: str) -> None:
        """A fresh process: what the old one knew is gone."""
        self.jobs = [job for job in self.jobs if job[0] != node]
        birth = next(self.births)
        self.kmes[node] = Streams(
            NodeId(node),
            lambda sae: NodeId(NODES[sae]) if sae in NODES else None,
            self.stock.status,
            CountingRandom(f"{node}{birth}"),
            self.clock,
        )
        self.kmes[node]._tickets = birth * 1_000_000  # so that answers of the old process keep their names

    def do(self, node: str, effects) -> None:
        for effect in effects:
            match effect:
                case Answer():
                    assert (node, effect.ticket) not in self.answers, "answered twice"
                    self.answers[node, effect.ticket] = effect
                case Tell():
                    self.mail.append((node, effect.node, effect.octets))
                case _:
                    self.jobs.append((node, effect))

    def deliver(self, place: int = 0, *, keep: bool = False) -> None:
        origin, target, octets = self.mail[place]
        if not keep:
            del self.mail[place]
        self.do(target, self.kmes[target].receive(NodeId(origin), octets))

    def work(self, place: int = 0, outcome: QtrunkError | None = None) -> None:
        node, effect = self.jobs.pop(place)
        self.do(node, self.kmes[node].supplied(effect.job, outcome or self.stock.serve(effect), 2))

    def settle(self, rounds: int = 200) -> None:
        for _ in range(rounds):
            if self.mail:
                self.deliver()
            elif self.jobs:
                self.work()
            else:
                return
        raise AssertionError("the two never stop talking")

    def pass_time(self, seconds: float, step_s: float = 0.5) -> None:
        until = self.clock.now_s + seconds
        while self.clock.now_s < until:
            self.clock.now_s = min(until, self.clock.now_s + step_s)
            for node in "ab":
                self.do(node, self.kmes[node].tick())
            self.settle()

    # ── calls ───────────────────────────────────────────────────────────────────────────────────────────────────────

    def open(self, sae: str, peer: str, ksid: bytes | None = None, *, source=None, holder=None, **asked):
        node, source = NODES[sae], source or sae
        other = peer if source == sae else sae
        ticket, effects = self.kmes[node].open(
            SaeId(sae), SaeId(source), SaeId(other), qos(**asked), ksid, holder or f"connection of {sae}"
        )
        self.do(node, effects)
        return node, ticket

    def get(self, sae: str, index: int, ksid: bytes = KSID, size: int = 1024):
        node = NODES[sae]
        ticket, effects = self.kmes[node].get_key(SaeId(sae), ksid, index, size)
        self.do(node, effects)
        return node, ticket

    def close(self, sae: str, ksid: bytes = KSID):
        node = NODES[sae]
        ticket, effects = self.kmes[node].close(SaeId(sae), ksid)
        self.do(node, effects)
        return node, ticket

    def status(self, call) -> Status | None:
        answer = self.answers.get(call)
        return None if answer is None else answer.status

    def octets(self, call) -> bytes:
        answer = self.answers[call]
        assert answer.status is Status.SUCCESS
        return bytes(answer.key.reveal())

    def connected(self, **asked) -> bytes:
        """A stream from alice to bob that stands."""
        calls = [self.open("alice", "bob", KSID, **asked), self.open("bob", "alice", KSID, source="alice", **asked)]
        self.settle()
        assert [self.status(call) for call in calls] == [Status.SUCCESS] * 2
        return KSID
