"""The vendor's QKD systems of a simulation: a pair of KMEs for each link, without light; their keys are equal, or not.

Links of a simulated network get their keys from a vendor's KMEs (`kms.vendor`), so that key comes by the blocks and the
protocol of a real link, at the cost of drawing random octets. Light, distillation and Eve are not in here.
"""

import queue
import uuid
from collections.abc import Callable
from typing import Any

from qtrunk.api.client import Etsi014Client, NoAnswerError
from qtrunk.base.errors import KeyExhausted, KeyNotFound
from qtrunk.base.ids import KeyId
from qtrunk.base.ports import SuppliedKey
from qtrunk.base.secret import Secret
from qtrunk.kms.vendorend import Collect, Fetch
from qtrunk.node.vendorlink import VendorKme, VendorRunner
from qtrunk.sim.network.dice import Dice
from qtrunk.sim.network.loop import VirtualLoop
from qtrunk.topology import VendorSource

BURST = 3.0
"""Blocks of keys that a KME has ready at most."""


class VendorBox:
    """The vendor's system of one link."""

    def __init__(self, dice: Dice, loop: VirtualLoop, source: VendorSource, block_s: float) -> None:
        """It makes the keys of a block in `block_s`."""
        self._dice = dice
        self._loop = loop
        self._octets = source.key_bits // 8
        self._keys_per_s = source.keys / block_s
        self._most = BURST * source.keys
        self._stock, self._at_s = self._most, 0.0
        self._given: dict[KeyId, bytes] = {}
        self.is_down = False
        self.mismatch_probability = 0.0
        """Of each key: the two KMEs hold different ones under its ID, as with Eve at work and nobody checking."""

    def fetch(self, number: int) -> list[SuppliedKey]:
        """Alice's KME."""
        self._answering()
        now_s = self._loop.time()
        self._stock = min(self._most, self._stock + self._keys_per_s * (now_s - self._at_s))
        self._at_s = now_s
        if self._stock < number:
            raise KeyExhausted("the vendor's KME has not enough keys yet")
        self._stock -= number
        return [self._key() for _ in range(number)]

    def collect(self, key_ids: tuple[KeyId, ...]) -> list[SuppliedKey]:
        """Bob's KME: each key once."""
        self._answering()
        found = [(key_id, self._given.pop(key_id, None)) for key_id in key_ids]
        keys = [SuppliedKey(key_id=key_id, material=Secret(octets)) for key_id, octets in found if octets is not None]
        if len(keys) < len(key_ids):
            raise KeyNotFound("the vendor's KME gave these keys before")
        return keys

    def _answering(self) -> None:
        if self.is_down:
            raise NoAnswerError("the vendor's KME does not answer")

    def _key(self) -> SuppliedKey:
        key_id = KeyId(str(uuid.UUID(bytes=self._dice.octets(16), version=4)))
        octets = self._dice.octets(self._octets)
        is_bad = self.mismatch_probability and self._dice.chance(self.mismatch_probability)
        self._given[key_id] = self._dice.octets(self._octets) if is_bad else octets
        return SuppliedKey(key_id=key_id, material=Secret(octets))


class BoxKme(VendorKme):
    """One end's KME, as `node.vendorlink` asks it."""

    def __init__(self, box: VendorBox) -> None:
        self._box = box

    def ask(self, effect: Fetch | Collect) -> list[SuppliedKey]:
        """See VendorKme."""
        return self._box.fetch(effect.number) if isinstance(effect, Fetch) else self._box.collect(effect.key_ids)

    @property
    def is_connected(self) -> bool:
        """See VendorKme."""
        return not self._box.is_down

    def connect(self) -> Etsi014Client:
        """There is no connection to make."""
        raise NoAnswerError("a simulated KME has no client")

    def close(self) -> None:
        """Nothing to forget."""


class LoopQueue(queue.Queue[Any]):
    """Jobs of a thread, done on the loop one after the other, each after a moment."""

    def __init__(self, loop: VirtualLoop, work: Callable[[Any], None], delay_s: Callable[[], float]) -> None:
        super().__init__()
        self._loop = loop
        self._work = work
        self._delay_s = delay_s
        self._jobs: list[Any] = []

    def put(self, item: Any, block: bool = True, timeout: float | None = None) -> None:
        """See queue.Queue."""
        self._jobs.append(item)
        if len(self._jobs) == 1:
            self._loop.call_later(self._delay_s(), self._turn)

    def put_nowait(self, item: Any) -> None:
        """See queue.Queue."""
        self.put(item)

    def qsize(self) -> int:
        """See queue.Queue."""
        return len(self._jobs)

    def _turn(self) -> None:
        job = self._jobs[0]
        try:
            if job is not None:
                self._work(job)
        finally:
            del self._jobs[0]
            if self._jobs:
                self._loop.call_later(self._delay_s(), self._turn)


class BoxRunner(VendorRunner):
    """A link end of production whose two threads are turns on the loop."""

    def on_loop(self, loop: VirtualLoop, dice: Dice) -> "BoxRunner":
        """Once, before `start`."""
        self._events = LoopQueue(loop, self._step, lambda: dice.between(0.0001, 0.003))
        self._asked = LoopQueue(loop, self._ask_once, lambda: dice.between(0.005, 0.08))  # type: ignore[assignment]
        return self

    def start(self) -> list[Any]:
        """See VendorRunner, without threads."""
        return [self._loop.create_task(self._tick())]

    def stop(self) -> None:
        """See VendorRunner."""
        self._stopping = True
        if self._channel is not None:
            self._channel.close()

    def _step(self, event: Callable[[], list[Any]]) -> None:
        if not self._stopping:
            self._handle(event)

    def _ask_once(self, effect: Fetch | Collect) -> None:
        if not self._stopping:
            self._ask(effect)
