"""Three nodes, a foreign network beside the first, in virtual time: messages get lost, doubled, late, processes stop.

The nodes run what a node process runs of it: relay machine, key store, `NetworkInterior`, `Abroad`, `Onward`, and both
machines of interworking at the border. A process may stop at any durable write, before or after it; what it has not
written is gone, and it starts again from its files.
"""

import asyncio
import os
import random
import sys
import uuid
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "relay"))
from relay_network import Dice, with_saes

from qtrunk.base.errors import KeyNotFound, NotAuthorised, QtrunkError, StoreError
from qtrunk.base.ids import KeyId, NodeId, SaeId
from qtrunk.base.ports import SuppliedKey
from qtrunk.base.secret import Secret
from qtrunk.kms.interwork.file import JournalFile
from qtrunk.kms.interwork.receiver import Carry, Receiver, SendAck, Withdraw
from qtrunk.kms.interwork.records import Ack, AckStatus, Consignment, Extensions, VoidRequest
from qtrunk.kms.interwork.sender import Answer, Sender, SendKeys, SendVoid, Settled
from qtrunk.kms.store import KeyStore
from qtrunk.node.abroad import Abroad
from qtrunk.node.border import NetworkInterior
from qtrunk.node.onward import Onward
from qtrunk.relay.kx import Failed, Kx, Report, SendKx, Tell
from qtrunk.stages import Epsilon, QkdKey
from qtrunk.topology import ForeignNetwork, Node, Topology, trunk

A, C = NodeId("a"), NodeId("c")
FAR, OURS = SaeId("far-bank"), SaeId("sae-c")
NAMES = "abc"


class VirtualLoop(asyncio.SelectorEventLoop):
    """Time goes on when there is nothing to do, to when there is."""

    def __init__(self) -> None:
        super().__init__()
        self.now_s = 0.0

    def time(self) -> float:
        return self.now_s

    def _run_once(self) -> None:
        if not self._ready and self._scheduled:
            self.now_s = max(self.now_s, self._scheduled[0].when())
        super()._run_once()


class LoopClock:
    def __init__(self, loop: VirtualLoop) -> None:
        self._loop = loop

    def monotonic_s(self) -> float:
        return 1000.0 + self._loop.now_s

    def unix_s(self) -> float:
        return 1.7e9 + self._loop.now_s


class Stop(Exception):
    """The process stops here."""


@dataclass
class Chaos:
    """What goes wrong."""

    loss: float = 0.0
    doubling: float = 0.0
    delay_s: float = 0.0
    silent: frozenset[str] = frozenset()
    """Services none of whose notes comes."""
    writes: dict[tuple[str, int, bool], type[Exception]] = field(default_factory=dict)
    """Node, number of the write of that node, whether after it: the process stops there (`Stop`), or the write is said
    to have failed (StoreError) and the process goes on."""
    dice: random.Random = field(default_factory=lambda: random.Random(1))
    is_calm: bool = False
    """Nothing goes wrong any more; then clocks need to tick less often."""

    def calm(self) -> None:
        self.loss = self.doubling = self.delay_s = 0.0
        self.silent = frozenset()
        self.writes.clear()
        self.is_calm = True


def topology() -> Topology:
    west = ForeignNetwork(
        id="west", kme="west-kme", node=A, address="h:1", listen="h:2", ca_certificate="/ca", saes=("far-*",),
        protection="qkd",
    )  # fmt: skip
    row = with_saes(trunk("t", [Node(id=NodeId(name)) for name in NAMES], [(10, 3)] * 2))
    return replace(row, neighbours=(west,))


class Life:
    """One run of a node's process."""

    def __init__(self, world: "World", node: NodeId) -> None:
        self.world, self.node, self.is_dead = world, node, False
        self.tasks: set[asyncio.Task] = set()
        self.services: dict[str, Callable] = {}
        self.answers: dict[str, asyncio.Future] = {}
        directory = world.directory / node
        self.store = KeyStore.open(directory, node, world.keks[node], world.clock)
        self.machine = Kx(node, world.topology, self.store, Dice(), world.clock)
        self.interior = NetworkInterior(node, world.topology, self.store, world.clock, self, self)
        self.out: Out | None = None
        self.onward: Onward | None = None
        if node == A:
            journal = JournalFile(world.directory / "interwork.db", node, world.keks[node], world.clock)
            self.out = Out(self, journal)
            self.onward = Onward(node, world.topology, self.store, world.clock, self, self.out, journal)
        self.abroad = Abroad(
            *(node, world.topology, self.store, lambda: self.out, Dice(), world.clock), relay=self, notes=self
        )

    def begin(self) -> None:
        """In service; from here on it may stop at a write."""
        self._make_fragile(self.store._journal, "transaction", lambda: self.store._journal._depth)
        if self.out is not None:
            self._make_fragile(self.out.journal, "_turn", lambda: 0)
            self.at(self.out.start)
            self.spawn(self.onward.keep_ticking())
            self.spawn(self.out.keep_ticking())
        self.spawn(self._keep_ticking())

    def _make_fragile(self, journal, name: str, depth: Callable[[], int]) -> None:
        inner = getattr(journal, name)

        @contextmanager
        def fragile():
            if depth():
                with inner() as found:
                    yield found
                return
            self.world.writes[self.node] += 0 if self.is_dead else 1
            self._stop_at(is_after=False)
            try:
                with inner() as found:
                    yield found
            finally:
                # Also where the write was refused and undone.
                self._stop_at(is_after=True)

        setattr(journal, name, fragile)

    def _stop_at(self, *, is_after: bool) -> None:
        place = self.node, self.world.writes[self.node], is_after
        error = None if self.is_dead else self.world.chaos.writes.get(place)
        self.world.stops += error is not None
        if error is Stop:
            self.is_dead = True
            self.world.loop.call_soon(self.world.restart, self)
        elif error is not None:
            raise error("the disk does not take it, or so it says")
        if self.is_dead:
            raise Stop

    def at(self, call: Callable[[], None]) -> None:
        """Something comes in: a process that stops under it is gone, one that refuses it goes on."""
        if self.is_dead:
            return
        try:
            call()
        except Stop:
            assert self.is_dead
        except QtrunkError as error:
            self.world.refusals.append(error)

    def spawn(self, work) -> asyncio.Task:
        task = self.world.loop.create_task(work)
        self.tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task) -> None:
        self.tasks.discard(task)
        error = None if task.cancelled() else task.exception()
        if error is not None and not self.is_dead and not isinstance(error, QtrunkError):
            self.world.bugs.append(error)

    async def _keep_ticking(self) -> None:
        expire_s = 0.0
        while True:
            await asyncio.sleep(self.world.pause_s())
            self.at(lambda: self.do(self.machine.tick()))
            if self.world.loop.time() >= expire_s:
                expire_s = self.world.loop.time() + 20.0
                self.at(lambda: self.store.expire(self.world.clock.unix_s()))

    # ── relay (`border.Carrier`) ────────────────────────────────────────────────────────────────────────────────────

    async def carry(self, initiator, targets, keys) -> dict[str, object]:
        request_id, effects = self.machine.carry(initiator, targets, keys)
        self.answers[request_id] = answer = self.world.loop.create_future()
        self.do(effects)
        found = await answer
        if isinstance(found, Failed):
            raise found.error
        return found.receipt

    def do(self, effects) -> None:
        for effect in effects:
            if isinstance(effect, SendKx):
                other = self.world.topology.link(effect.link).other(self.node)
                self.world.fly(self, other, lambda life, one=effect: life.received(one))
            elif isinstance(effect, Tell):
                sender, octets = self.node, effect.octets
                note = lambda life, sender=sender, octets=octets: life.do(life.machine.receive_note(sender, octets))  # noqa: E731
                self.world.fly(self, effect.node, note)
            elif not isinstance(effect, Report):
                answer = self.answers.get(effect.request_id)
                if answer is not None and not answer.done():
                    answer.set_result(effect)

    def received(self, effect: SendKx) -> None:
        self.do(self.machine.receive(effect.link, effect.octets))

    # ── notes (`border.NoteCarrier`) ────────────────────────────────────────────────────────────────────────────────

    def serve(self, service, receive) -> None:
        self.services[service] = receive

    def knows(self, node) -> bool:
        return node not in self.world.keyless

    def tell(self, node, service, octets) -> None:
        sender = self.node
        if service in self.world.chaos.silent:
            return
        self.world.fly(self, node, lambda life: life.services[service](sender, octets))


class Out:
    """The border's machines of interworking, and the foreign network before them."""

    def __init__(self, life: Life, journal: JournalFile) -> None:
        self.life, self.journal = life, journal
        self.world = life.world
        self.sender, self.receiver = Sender(journal, life.world.clock), Receiver(journal, life.world.clock)
        self.settling: dict[int, asyncio.Future] = {}

    def start(self) -> None:
        self.do(self.sender.start)
        self.do(self.receiver.tick)

    async def keep_ticking(self) -> None:
        while True:
            await asyncio.sleep(self.world.pause_s())
            self.life.at(lambda: self.do(self.sender.tick))
            self.life.at(lambda: self.do(self.receiver.tick))

    async def export(self, keys, initiator, targets) -> None:
        settled = self.world.loop.create_future()
        number = self.do(lambda: self.sender.offer(keys, initiator, {"west-kme": tuple(targets)}, Extensions()))
        self.settling[number] = settled
        error = await settled
        if error is not None:
            raise error

    def take_back(self, key_ids, targets) -> None:
        self.do(lambda: self.sender.void(key_ids, ["west-kme"]))

    def do(self, call):
        try:
            return call()
        finally:
            for effect in [*self.sender.effects(), *self.receiver.effects()]:
                self.life.world.loop.call_soon(self.begin, effect)

    def begin(self, effect) -> None:
        west = self.world.west
        match effect:
            case SendKeys():
                copies = {key.key_id: bytes(key.material.reveal()) for key in effect.keys}
                self.ask(lambda: west.ext_keys(copies, effect.targets, effect.initiator),
                         lambda answer: self.sender.answered(effect, answer))  # fmt: skip
            case SendVoid() if effect.initiator == FAR:
                self.ask(lambda: west.void_back(effect), lambda answer: self.receiver.void_answered(effect, answer))
            case SendVoid():
                self.ask(lambda: west.void(effect), lambda answer: self.sender.void_answered(effect, answer))
            case Settled():
                settled = self.settling.pop(effect.consignment, None)
                if settled is not None and not settled.done():
                    settled.set_result(effect.error)
            case Carry():
                self.life.spawn(self.carry(effect))
            case Withdraw():
                self.life.spawn(self.withdraw(effect))
            case SendAck():
                self.ask(lambda: west.told(effect.ack), lambda answer: self.receiver.told(effect, answer))

    def ask(self, arrive: Callable[[], Answer], heard: Callable[[Answer], None]) -> None:
        """A call to the foreign network: it, or its answer, may be lost."""
        if self.life.is_dead:
            return
        chaos, loop = self.world.chaos, self.world.loop

        def there() -> None:
            answer = Answer(None) if chaos.dice.random() < chaos.loss else arrive()
            if chaos.dice.random() < chaos.loss:
                answer = Answer(None)
            loop.call_later(chaos.dice.random() * chaos.delay_s, back, answer)

        def back(answer: Answer) -> None:
            self.life.at(lambda: self.do(lambda: heard(answer)))

        loop.call_later(chaos.dice.random() * chaos.delay_s, there)

    async def carry(self, effect: Carry) -> None:
        is_done = False
        try:
            await self.life.interior.carry(
                [key.key_id for key in effect.keys], [key.material for key in effect.keys],
                effect.initiator, effect.targets, effect.extensions,
            )  # fmt: skip
            is_done = True
        except QtrunkError as error:
            self.world.refusals.append(error)
        self.life.at(lambda: self.do(lambda: self.receiver.carried(effect, is_done=is_done)))

    async def withdraw(self, effect: Withdraw) -> None:
        delivered = None
        try:
            delivered = await self.life.interior.void(effect.key_ids, effect.targets)
        except QtrunkError as error:
            self.world.refusals.append(error)
        self.life.at(lambda: self.do(lambda: self.receiver.withdrawn(effect, delivered)))


class West:
    """The foreign network: a key manager that keeps to the standard."""

    def __init__(self, world: "World") -> None:
        self.world = world
        self.held: dict[KeyId, bytes] = {}
        self.taken: set[KeyId] = set()
        """Those that its SAE has."""
        self.void_here: set[KeyId] = set()
        self.acks: dict[KeyId, list[AckStatus]] = {}
        """What it was told of its own keys."""
        self.sent: dict[KeyId, bytes] = {}

    def ext_keys(self, keys: dict[KeyId, bytes], targets, initiator) -> Answer:
        if self.void_here & keys.keys():
            status = AckStatus.FAILED
        else:
            for key_id, octets in keys.items():
                assert self.held.setdefault(key_id, octets) == octets, "one key under an ID"
            status = AckStatus.RELAYED
        return Answer(200, (Ack(status=status, key_ids=tuple(keys), initiator=initiator, targets=targets),))

    def void(self, effect: SendVoid) -> Answer:
        sorted_ = {AckStatus.FAILED_TO_VOID: [], AckStatus.VOIDED: [], AckStatus.NOT_PRESENT: []}
        for key_id in effect.key_ids:
            if key_id in self.taken:
                sorted_[AckStatus.FAILED_TO_VOID].append(key_id)
            else:
                assert key_id not in self.world.given, "a key that our SAE has is not taken back"
                known = key_id in self.held or key_id in self.void_here
                self.held.pop(key_id, None)
                self.void_here.add(key_id)
                sorted_[AckStatus.VOIDED if known else AckStatus.NOT_PRESENT].append(key_id)
        about = {"initiator": effect.initiator, "targets": effect.targets}
        return Answer(200, tuple(Ack(status=one, key_ids=tuple(ids), **about) for one, ids in sorted_.items() if ids))

    def collect(self, key_id: KeyId) -> None:
        if key_id in self.held:
            self.taken.add(key_id)

    def told(self, ack: Ack) -> Answer:
        for key_id in ack.key_ids:
            self.acks.setdefault(key_id, []).append(ack.status)
        return Answer(200)

    def void_back(self, effect: SendVoid) -> Answer:
        """It gave its keys to their initiator as soon as it knew that they were relayed; it forgot the others."""
        sorted_ = {AckStatus.FAILED_TO_VOID: [], AckStatus.NOT_PRESENT: []}
        for key_id in effect.key_ids:
            is_given = AckStatus.RELAYED in self.acks.get(key_id, [])
            sorted_[AckStatus.FAILED_TO_VOID if is_given else AckStatus.NOT_PRESENT].append(key_id)
        about = {"initiator": effect.initiator, "targets": effect.targets}
        return Answer(200, tuple(Ack(status=one, key_ids=tuple(ids), **about) for one, ids in sorted_.items() if ids))


class World:
    """All of it. `run` plays a script of the calls below."""

    def __init__(self, directory: Path, chaos: Chaos) -> None:
        self.directory, self.chaos, self.topology = directory, chaos, topology()
        self.loop = VirtualLoop()
        self.clock = LoopClock(self.loop)
        self.keks = {NodeId(name): Secret(os.urandom(32)) for name in NAMES}
        self.writes = dict.fromkeys(self.keks, 0)
        self.writes_in_danger: dict[NodeId, int] = {}
        """Before the faults end."""
        self.stops = 0
        self.bugs: list[BaseException] = []
        self.refusals: list[QtrunkError] = []
        self.given: dict[KeyId, bytes] = {}
        """What our SAEs were given."""
        self.keyless: set[NodeId] = set()
        """Nodes whose signatures nobody can verify."""
        self.west = West(self)
        self.lives = {node: Life(self, node) for node in self.keks}
        for link in self.topology.links:
            self._fill(link.id)
        for life in self.lives.values():
            self._connect(life)

    def run(self, script) -> None:
        try:
            for life in self.lives.values():
                life.begin()
            self.loop.run_until_complete(script)
            assert not self.bugs, self.bugs
        finally:
            for life in self.lives.values():
                self._bury(life)
            self.loop.run_until_complete(asyncio.sleep(0))
            self.loop.close()

    def restart_all(self) -> None:
        """As an operator does after trouble with the disk."""
        for life in list(self.lives.values()):
            self.restart(life)

    def restart(self, life: Life) -> None:
        if self.lives[life.node] is not life:
            return
        self._bury(life)
        fresh = self.lives[life.node] = Life(self, life.node)
        self._connect(fresh)
        fresh.begin()

    def _bury(self, life: Life) -> None:
        life.is_dead = True
        running = {*life.tasks, *(() if life.onward is None else life.onward._open and _works(life.onward))}
        for task in running:
            task.cancel()
        life.store.close()
        if life.out is not None:
            life.out.journal.close()

    def _connect(self, life: Life) -> None:
        for link in self.topology.links_of(life.node):
            other = self.lives[link.other(life.node)]
            if other is not life:
                other.at(lambda link=link, other=other: other.do(other.machine.link_down(link.id)))
                other.machine.link_up(link.id)
            life.machine.link_up(link.id)

    def _fill(self, link) -> None:
        material, ends = os.urandom(200_000), self.topology.link(link)
        for node in (ends.alice, ends.bob):
            key = QkdKey(
                link=link, block=1, material=Secret(material), auth_octets=1008,
                epsilon=Epsilon(secret=1e-10, correct=1e-30, authentic=1e-31), sifted_bits=8 * len(material),
                leak_bits=100, qber_key=0.016, qber_test=0.015, proof="test", authentication="wegman-carter",
                made_unix_s=0.0,
            )  # fmt: skip
            self.lives[node].store.hold(key)
            self.lives[node].store.release(link, 1)

    def fly(self, life: Life, to: NodeId, arrive: Callable[[Life], None]) -> None:
        """Octets from a living process to whatever process is there when they come."""
        if life.is_dead:
            return
        chaos = self.chaos
        for _ in range(2 if chaos.dice.random() < chaos.doubling else 1):
            if chaos.dice.random() >= chaos.loss:
                self.loop.call_later(
                    chaos.dice.random() * chaos.delay_s,
                    lambda: (there := self.lives[to]).at(lambda: arrive(there)),
                )

    def pause_s(self) -> float:
        """Between two ticks of a machine."""
        return 5.0 if self.chaos.is_calm else 0.5

    # ── what SAEs do ────────────────────────────────────────────────────────────────────────────────────────────────

    async def ask(self, number: int = 1) -> list[SuppliedKey]:
        """Our SAE at the far node asks for keys with one of the foreign network."""
        life = self.lives[C]
        try:
            keys = await life.spawn(life.abroad.initiate(OURS, [FAR], number, 256))
        except (QtrunkError, Stop, asyncio.CancelledError):
            return []
        if life.is_dead:
            return []
        for key in keys:
            assert key.key_id not in self.given, "given twice"
            assert key.key_id not in self.west.void_here, "given, and void there"
            self.given[key.key_id] = bytes(key.material.reveal())
        return keys

    def send(self, count: int = 1) -> list[KeyId]:
        """Keys of a foreign SAE for ours come to the border."""
        keys = [SuppliedKey(key_id=KeyId(_uuid(self)), material=Secret(os.urandom(32))) for _ in range(count)]
        self.west.sent |= {key.key_id: bytes(key.material.reveal()) for key in keys}
        self.repeat([key.key_id for key in keys])
        return [key.key_id for key in keys]

    def repeat(self, key_ids) -> None:
        keys = [SuppliedKey(key_id=key_id, material=Secret(self.west.sent[key_id])) for key_id in key_ids]
        arrival = Consignment(peer="west-kme", keys=keys, initiator=FAR, targets=(OURS,), callback="c")
        out = self.lives[A].out
        self.lives[A].at(lambda: out.do(lambda: out.receiver.accept(arrival)))

    def void(self, key_ids) -> None:
        request = VoidRequest(peer="west-kme", key_ids=tuple(key_ids), initiator=FAR, targets=(OURS,), callback="c")
        out = self.lives[A].out
        self.lives[A].at(lambda: out.do(lambda: out.receiver.void(request)))

    def collect(self, key_id: KeyId) -> None:
        """Our SAE comes for a key of the foreign network."""
        life = self.lives[C]
        try:
            (key,) = life.store.collect(OURS, FAR, [key_id])
        except (KeyNotFound, NotAuthorised, StoreError, Stop):
            return
        assert key_id not in self.given, "given twice"
        ends = {AckStatus.VOIDED, AckStatus.FAILED, AckStatus.NOT_PRESENT}
        assert not ends & set(self.west.acks.get(key_id, [])), "given after it was said to be void"
        assert bytes(key.material.reveal()) == self.west.sent[key_id]
        self.given[key_id] = self.west.sent[key_id]

    def made(self) -> dict[KeyId, str]:
        """Every key that the far node ever made, and where it stands there."""
        read = "SELECT key_id, state FROM initiated"
        return {
            KeyId(key_id): state for key_id, state in self.lives[C].store._read(lambda db: db.execute(read).fetchall())
        }


def _works(onward: Onward) -> list[asyncio.Task]:
    return [one.work for one in onward._open.values() if one.work is not None]


def _uuid(world: World) -> str:
    return str(uuid.UUID(int=world.chaos.dice.getrandbits(128), version=4))
