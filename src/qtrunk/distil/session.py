"""One end of a link over time: agree on blocks, run their distillation, and settle what a cut left open.

Like the parties it drives, a session is a machine without I/O: connections, device events, messages and ticks
go in, effects come out. Alice leads. The life of a link:

    connect   Bob -> Alice  Resume      last block number, blocks he holds without knowing if she does
              Alice -> Bob  Resolve     last block number, blocks she holds; tagged if there are any
              Bob -> Alice  Resolution  what he released and destroyed of them; tagged
    block k   Alice -> Bob  Announce    pulses, intensities, probabilities; both arm their modules
              (light)                   the modules run block k; block k+1 is announced and armed meanwhile
              both          BlockPart   the messages of distil.parties for block k

An attacker can make the ends spend authentication key that buys nothing: by breaking a block after its Proof, or the
connection after Resolve. So an exchange that was cut is settled with the same key and the same words again, and when
key was spent in vain a few times Alice waits, ever longer, before she spends more (crypto.thrift).

A block number is used once in the life of a link, whatever crashes: it is durable before it is announced.
Statistics need that settings follow the link between blocks only, so all parameters travel in Announce.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from qtrunk.base.errors import AuthenticationFailed, BudgetSpent, KeyExhausted, QtrunkError, WireError
from qtrunk.base.ids import LinkId
from qtrunk.base.ports import Random
from qtrunk.base.wire import decode, encode
from qtrunk.crypto import its
from qtrunk.crypto.thrift import Thrift
from qtrunk.distil.authentication import Authenticator
from qtrunk.distil.messages import (
    BLOCK,
    BLOCK_HEADER,
    SESSION,
    Announce,
    Cancel,
    Resolution,
    Resolve,
    Resume,
    SessionMessage,
    numbers,
    split,
)
from qtrunk.distil.parties import (
    AuthLedger,
    BlockAlice,
    BlockBob,
    Destroy,
    Effect,
    Hold,
    Release,
    Report,
    Send,
    Unsettled,
)
from qtrunk.stages import Detections, Octets, Positions, Pulses, Role, Settings

BLOCK_TIMEOUT_S = 120.0
"""A block whose peer falls silent for so long is destroyed."""
LIGHT_TIMES_MAX = 10.0
"""Light may take so many times as long as it should (a slow machine, a block armed ahead) before it counts as lost."""
BLOCKS_IN_DISTILLATION_MAX = 2
"""No new light is announced while so many blocks wait for distillation: memory stays bounded."""
DEVICE, MONITOR = "device", "monitor"
"""Causes of a block's end: its light was not finished; a module's monitor shows what an honest link would not."""
QUIET_CAUSES = frozenset({"channel", DEVICE})
"""Causes of a block's end that say nothing about its light: a cut connection, a restarted module."""
SILENT = "the peer fell silent"
RESOLVE, RESOLUTION = 0, 1
"""Tags of a settlement."""
SETTLE_EPSILON = 2 * its.forgery_probability(1 << 20, 2)
SETTLE_TRIES = 5
"""Resolve is said so often with the same key; then the peer must have forgotten it, and it takes a new one."""


@dataclass(frozen=True, slots=True)
class ToPeer:
    """Send these octets as one frame over the classical channel."""

    octets: bytes


@dataclass(frozen=True, slots=True)
class Arm:
    """Arm the own QKD module for a block with this seed for its random settings."""

    pulses: Pulses
    seed: bytes


@dataclass(frozen=True, slots=True)
class Disconnect:
    """The peer does not keep to the protocol: drop the connection and start again."""

    why: str


SessionEffect = ToPeer | Arm | Disconnect | Hold | Release | Destroy | Report


class BlockStore(Protocol):
    """What a session needs of the key store, durable on return."""

    def last_block(self, link: LinkId) -> int:
        """Highest block number ever used on the link."""

    def note_block(self, link: LinkId, block: int) -> None:
        """Record that a block number is used."""

    def pending(self, link: LinkId) -> list[int]:
        """Blocks held but not released."""

    def is_released(self, link: LinkId, block: int) -> bool:
        """Whether the block was released (it may be spent by now)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkEnd:
    """Who talks on which link, and what the block machines need; the same for the life of a session."""

    link: LinkId
    pulses: Callable[[int], Pulses]
    """Alice: parameters of the light of a block number."""
    refusal: Callable[[Pulses], str]
    """Bob: why light that Alice announces must not be taken; empty where it may."""
    store: BlockStore
    auth: AuthLedger
    block_epsilon: float
    """What a block adds to the link's epsilons, nearly."""
    random: Random
    now_s: Callable[[], float]
    """Seconds of a clock that never goes back, for time-outs."""
    light_s: Callable[[Pulses], float]
    """How long the light of a block takes."""
    settings: Callable[[bytes, Pulses, Positions], Settings]
    """What Alice's module sent, from the seed it was armed with."""
    bases: Callable[[bytes, Pulses, Positions], Octets]
    """Which bases Bob's module chose, from the seed it was armed with."""
    make_alice: Callable[[Pulses, Callable[[Positions], Settings]], BlockAlice]
    make_bob: Callable[[Pulses, Detections], BlockBob]


class _Session:
    """What both ends share: block machines by number, time-outs, the envelope."""

    def __init__(self, end: LinkEnd, role: Role) -> None:
        self._end = end
        self._role = role
        self._connected = False
        self._device = False
        self._seeds: dict[int, tuple[Pulses, bytes]] = {}
        self._deadline_s: dict[int, float] = {}
        self._is_paused = True
        self._resume: Resume | None = None
        """Alice: Bob's word that is not answered yet."""
        self.thrift = Thrift()

    @property
    def is_ready(self) -> bool:
        """Channel and module are both there."""
        return self._connected and self._device

    @property
    def is_idle(self) -> bool:
        """Whether nothing is under way that time could end, and nothing would be begun."""
        return not self._deadline_s and self._resume is None and (self._is_paused or not self.is_ready)

    def pulses_of(self, block: int) -> Pulses | None:
        """The light of a block that is under way."""
        return self._seeds[block][0] if block in self._seeds else None

    def device_up(self) -> list[SessionEffect]:
        """The own QKD module answers."""
        self._device = True
        return []

    def _say(self, message: SessionMessage) -> ToPeer:
        return ToPeer(bytes([SESSION]) + encode(message))

    def _wrap(self, block: int, effects: list[Effect]) -> list[SessionEffect]:
        wrapped: list[SessionEffect] = []
        for effect in effects:
            if isinstance(effect, Send):
                wrapped.append(ToPeer(BLOCK_HEADER.pack(BLOCK, block) + effect.octets))
            elif isinstance(effect, Unsettled):
                wrapped.append(Disconnect(f"link {self._end.link} block {effect.block}: {effect.why}"))
            else:
                wrapped.append(effect)
        return wrapped

    def _hear(self, block: int, machine: BlockAlice | BlockBob, payload: bytes) -> list[SessionEffect]:
        """A message for a block's machine, and what of authentication key was spent or bought something with it."""
        had_spent = machine.has_spent
        effects = self._wrap(block, machine.receive(payload))
        self._deadline_s[block] = self._end.now_s() + BLOCK_TIMEOUT_S
        if machine.has_spent and not had_spent and self._role is Role.ALICE:  # she leads, and waits for both
            self.thrift.spent(self._end.now_s())
        if any(isinstance(effect, Release) for effect in effects):
            self.thrift.succeeded()
        return effects

    def _arm(self, pulses: Pulses) -> Arm:
        seed = self._end.random.octets(32)
        self._seeds[pulses.block] = (pulses, seed)
        return Arm(pulses, seed)

    def _light_deadline_s(self, pulses: Pulses) -> float:
        return self._end.now_s() + BLOCK_TIMEOUT_S + LIGHT_TIMES_MAX * self._end.light_s(pulses)

    def _overdue(self) -> list[int]:
        return [block for block, deadline in self._deadline_s.items() if deadline < self._end.now_s()]

    def _label(self, what: str) -> bytes:
        return f"qtrunk 1 session {what} {self._end.link}".encode()


def _cancelled(message: Cancel) -> tuple[str, str]:
    """Cause and reason of a block that the peer gave up."""
    return MONITOR if message.is_suspect else DEVICE, f"the peer cancelled: {message.why[:200]}"


class LinkAlice(_Session):
    """The leading end: announces blocks and settles what is open."""

    def __init__(self, end: LinkEnd) -> None:
        super().__init__(end, Role.ALICE)
        self._machines: dict[int, BlockAlice] = {}
        self._settled, self._settle_s = False, 0.0
        """By when Bob must have said what he has, or how what was open ends."""
        self._next_block: int | None = None
        self._dark: set[int] = set()
        self._early: dict[int, bytes] = {}
        """Of blocks whose light the own module has not called over: what Bob said; nothing is made of it before."""
        self._settling: tuple[list[int], Authenticator] | None = None
        """Blocks that are being settled, and what authenticates it."""
        self._settle_tries = 0
        self._is_asking = False
        """Resolve was said and is not answered: one answer is looked at, so that a forger has one try for each."""
        self._is_paused = False

    def connected(self) -> list[SessionEffect]:
        """The channel is up; Bob speaks first."""
        self._connected, self._settled = True, False
        self._settle_s = self._end.now_s() + BLOCK_TIMEOUT_S
        return []

    def disconnected(self) -> list[SessionEffect]:
        """The channel is gone: open blocks die, held ones wait for Resume."""
        self._connected = self._settled = False
        self._resume, self._is_asking = None, False
        return self._drop_all("channel", "the classical channel was cut")

    def device_down(self) -> list[SessionEffect]:
        """The transmitter is gone: blocks whose light is not over die."""
        self._device = False
        return [effect for block in sorted(self._dark) for effect in self._cancel(block, "transmitter lost")]

    def pause(self, *, is_paused: bool) -> None:
        """Stop or go on announcing blocks (the pool is full, maintenance)."""
        self._is_paused = is_paused

    def tick(self) -> list[SessionEffect]:
        """Time-outs, and the next block where one is due."""
        effects: list[SessionEffect] = []
        for block in self._overdue():
            effects += self._close(block, "protocol", SILENT)
        is_late = self._connected and not self._settled and not self._resume and self._end.now_s() > self._settle_s
        if effects or is_late:
            # A connection whose peer says nothing may be dead without knowing it: make a new one.
            return [*effects, Disconnect(f"link {self._end.link}: {SILENT}")]
        if self._resume is not None:
            try:
                return self._resolve()
            except QtrunkError as error:
                return [Disconnect(f"link {self._end.link}: {error}")]
        return self._announce()

    def started(self, block: int) -> list[SessionEffect]:
        """The light of a block began: the next one can be armed behind it."""
        return self._announce()

    def finished(self, block: int) -> list[SessionEffect]:
        """The light of a block is over; Bob will speak."""
        if block in self._dark:
            self._dark.discard(block)
            self._deadline_s[block] = self._end.now_s() + BLOCK_TIMEOUT_S
        early = self._early.pop(block, None)
        return [*([] if early is None else self.receive(early)), *self._announce()]

    def dropped(self, block: int, why: str, cause: str = DEVICE) -> list[SessionEffect]:
        """The module did not finish a block, or (cause MONITOR) its monitors speak against it."""
        self._dark.discard(block)
        return self._cancel(block, why, cause) + self._announce()

    def receive(self, octets: bytes) -> list[SessionEffect]:
        """A frame from Bob."""
        try:
            kind, block, payload = split(octets)
            if kind == BLOCK and block in self._dark:
                self._early.setdefault(block, octets)
                return []
            if kind == BLOCK:
                return self._receive_part(block, payload)
            message: SessionMessage = decode(payload, SessionMessage)
            if isinstance(message, Resume):
                if self._settled:
                    raise WireError("Resume twice on one connection")
                self._resume = message
                return self._resolve()
            if isinstance(message, Resolution):
                return self._conclude(message)
            if isinstance(message, Cancel):
                return self._close(message.block, *_cancelled(message))
            raise WireError(f"Alice does not expect {type(message).__name__}")
        except QtrunkError as error:
            return [Disconnect(f"link {self._end.link}: {error}")]

    def _receive_part(self, block: int, payload: bytes) -> list[SessionEffect]:
        machine = self._machines.get(block)
        if machine is None and block in self._seeds:
            pulses, seed = self._seeds[block]
            settings = self._end.settings
            machine = self._machines[block] = self._end.make_alice(
                pulses, lambda positions: settings(seed, pulses, positions)
            )
        if machine is None:
            # Nothing is known of this block (a replay, or one that died here): it must die there too.
            return []
        effects = self._hear(block, machine, payload)
        if any(isinstance(effect, Release | Destroy) for effect in effects):
            self._forget(block)
            effects += self._announce()
        return effects

    def _resolve(self) -> list[SessionEffect]:
        message = self._resume
        assert message is not None
        own_last = self._end.store.last_block(self._end.link)
        self._next_block = max(own_last, message.last_block) + 1
        held = self._end.store.pending(self._end.link)
        if not held:
            self._resume, self._settled = None, True
            return [self._say(Resolve(last_block=own_last, held=[])), *self._announce()]
        if self._settling is None or self._settling[0] != held or self._settle_tries >= SETTLE_TRIES:
            if self._end.now_s() < self.thrift.not_before_s:
                return []  # a later tick answers
            try:
                self._settling = held, self._end.auth.reserve(SETTLE_EPSILON)
            except (BudgetSpent, KeyExhausted) as error:
                raise AuthenticationFailed(f"blocks {held} cannot be settled: {error}") from error
            self._settle_tries = 0
            self.thrift.spent(self._end.now_s())
        self._resume = None
        self._settle_tries += 1
        tags = self._settling[1]
        block, offset = tags.reference
        self._is_asking, self._settle_s = True, self._end.now_s() + BLOCK_TIMEOUT_S
        # Always the same words for the same blocks: one key must never tag two messages.
        tag = tags.tag(RESOLVE, self._label("resolve"), [numbers(held)])
        return [self._say(Resolve(last_block=own_last, held=held, auth_block=block, auth_offset=offset, tag=tag))]

    def _conclude(self, message: Resolution) -> list[SessionEffect]:
        if self._settling is None or not self._is_asking:
            raise WireError("Resolution without Resolve")
        self._is_asking = False
        held, tags = self._settling
        tags.verify(
            RESOLUTION,
            self._label("resolution"),
            [numbers(message.released), numbers(message.destroyed)],
            message.tag,
        )
        if sorted(message.released + message.destroyed) != held:
            raise WireError("Resolution does not answer for exactly the held blocks")
        self._settling, self._settled = None, True
        tags.wipe()
        self.thrift.succeeded()
        effects: list[SessionEffect] = [Release(block) for block in message.released]
        effects += [
            Destroy(block, "channel", "the peer had lost its copy when the link came back")
            for block in message.destroyed
        ]
        return effects + self._announce()

    def _announce(self) -> list[SessionEffect]:
        """Announce the next block if the module can take one more and distillation keeps up."""
        if not (self.is_ready and self._settled) or self._is_paused or self._next_block is None:
            return []
        if self._end.now_s() < self.thrift.not_before_s:
            return []
        # Light that could not become key any more need not be sent: all that is under way, and one more.
        if not self._end.auth.allows((len(self._seeds) + 1) * self._end.block_epsilon):
            return []
        if len(self._dark) >= 2 or len(self._seeds) - len(self._dark) >= BLOCKS_IN_DISTILLATION_MAX:
            return []
        block = self._next_block
        self._end.store.note_block(self._end.link, block)
        self._next_block = block + 1
        pulses = self._end.pulses(block)
        self._dark.add(block)
        self._deadline_s[block] = self._light_deadline_s(pulses)
        announce = Announce(
            block=block,
            pulses=pulses.count,
            intensities=list(pulses.intensities),
            probabilities=list(pulses.probabilities),
            key_basis_probability=pulses.key_basis_probability,
        )
        return [self._say(announce), self._arm(pulses), *self._announce()]

    def _cancel(self, block: int, why: str, cause: str = DEVICE) -> list[SessionEffect]:
        if block not in self._seeds:
            return []
        effects = self._close(block, cause, why)
        cancel = Cancel(block=block, why=why, is_suspect=cause == MONITOR)
        return [self._say(cancel), *effects] if self._connected else effects

    def _close(self, block: int, cause: str, why: str) -> list[SessionEffect]:
        if block not in self._seeds:
            return []
        machine = self._machines.get(block)
        is_held = machine is not None and machine.is_held
        self._forget(block)
        # A held block may be released at the other end: only Resume can tell. Cut the connection to ask.
        if is_held:
            return [Disconnect(f"link {self._end.link} block {block}: {why}")]
        return [Destroy(block, cause, why)]

    def _drop_all(self, cause: str, why: str) -> list[SessionEffect]:
        closed = [self._close(block, cause, why) for block in sorted(self._seeds)]
        return [effect for effects in closed for effect in effects if not isinstance(effect, Disconnect)]

    def _forget(self, block: int) -> None:
        self._seeds.pop(block, None)
        self._machines.pop(block, None)
        self._deadline_s.pop(block, None)
        self._dark.discard(block)
        self._early.pop(block, None)


class LinkBob(_Session):
    """The following end: arms what is announced, gathers detections, starts distillation."""

    def __init__(self, end: LinkEnd) -> None:
        super().__init__(end, Role.BOB)
        self._machines: dict[int, BlockBob] = {}
        self._frames: dict[int, list[tuple[Positions, Octets]]] = {}
        self._covered: dict[int, int] = {}
        """Pulses of each such block whose slices have come."""
        self._pending: list[int] = []
        self._settled: tuple[Resolve, Resolution] | None = None
        """The last settlement: Alice may ask the same again when a cut took the answer."""

    def connected(self) -> list[SessionEffect]:
        """The channel is up: say where this end stands."""
        self._connected = True
        self._pending = self._end.store.pending(self._end.link)
        return [self._say(Resume(last_block=self._end.store.last_block(self._end.link), pending=self._pending))]

    def disconnected(self) -> list[SessionEffect]:
        """The channel is gone: open blocks die, held ones wait for Resolve."""
        self._connected = False
        open_ = sorted(set(self._seeds) | set(self._machines))
        closed = [self._close(block, "channel", "the classical channel was cut") for block in open_]
        return [effect for effects in closed for effect in effects if not isinstance(effect, Disconnect)]

    def device_down(self) -> list[SessionEffect]:
        """The receiver is gone: blocks whose light is not over die."""
        self._device = False
        return [effect for block in sorted(self._frames) for effect in self.dropped(block, "receiver lost")]

    def tick(self) -> list[SessionEffect]:
        """Time-outs."""
        effects: list[SessionEffect] = []
        for block in self._overdue():
            effects += self._close(block, "protocol", SILENT)
        return [*effects, Disconnect(f"link {self._end.link}: {SILENT}")] if effects else []

    def started(self, block: int) -> list[SessionEffect]:
        """The light of a block began."""
        return []

    def frame(self, block: int, start: int, pulses: int, positions: Positions, bits: Octets) -> list[SessionEffect]:
        """Clicks of the slice of `pulses` pulses from `start` on: where, and which detector. Slices must follow each
        other without a gap, or the block is dropped: a lost one would bias what is counted.
        """
        frames = self._frames.get(block)
        if frames is None or block not in self._seeds:
            return []
        if start != self._covered[block] or not 0 <= pulses <= self._seeds[block][0].count - start:
            return self.dropped(block, f"the module's slice of {pulses} pulses from {start} on does not follow")
        self._covered[block] += pulses
        frames.append((positions, bits))
        return []

    def finished(self, block: int, clicks: int | None = None) -> list[SessionEffect]:
        """The light of a block is over: distillation begins. `clicks` is the module's own count of them."""
        frames = self._frames.pop(block, None)
        covered = self._covered.pop(block, 0)
        if frames is None or block not in self._seeds:
            return []
        pulses, seed = self._seeds[block]
        positions = np.concatenate([np.zeros(0, np.uint64), *(positions for positions, _ in frames)])
        bits = np.concatenate([np.zeros(0, np.uint8), *(bits for _, bits in frames)])
        if covered != pulses.count or clicks not in (None, len(positions)):
            gave = f"{len(positions)} clicks of {covered} of {pulses.count} pulses"
            return self.dropped(block, f"the module gave {gave} and counted {clicks}")
        basis = self._end.bases(seed, pulses, positions)
        detections = Detections(positions=positions, basis=basis, bit=bits)
        machine = self._machines[block] = self._end.make_bob(pulses, detections)
        self._deadline_s[block] = self._end.now_s() + BLOCK_TIMEOUT_S
        return self._after(block, self._wrap(block, machine.start()))

    def dropped(self, block: int, why: str, cause: str = DEVICE) -> list[SessionEffect]:
        """The module did not finish a block, or (cause MONITOR) its monitors speak against it."""
        if block not in self._seeds:
            return []
        effects = self._close(block, cause, why)
        cancel = Cancel(block=block, why=why, is_suspect=cause == MONITOR)
        return [self._say(cancel), *effects] if self._connected else effects

    def receive(self, octets: bytes) -> list[SessionEffect]:
        """A frame from Alice."""
        try:
            kind, block, payload = split(octets)
            if kind == BLOCK:
                machine = self._machines.get(block)
                if machine is None:
                    return []
                return self._after(block, self._hear(block, machine, payload))
            message: SessionMessage = decode(payload, SessionMessage)
            if isinstance(message, Resolve):
                return self._resolution(message)
            if isinstance(message, Announce):
                return self._announced(message)
            if isinstance(message, Cancel):
                return self._close(message.block, *_cancelled(message))
            raise WireError(f"Bob does not expect {type(message).__name__}")
        except QtrunkError as error:
            return [Disconnect(f"link {self._end.link}: {error}")]

    def _announced(self, message: Announce) -> list[SessionEffect]:
        if message.block <= self._end.store.last_block(self._end.link):
            raise WireError(f"block number {message.block} was used before")
        announced = Pulses(
            link=self._end.link,
            block=message.block,
            count=message.pulses,
            intensities=tuple(message.intensities),
            probabilities=tuple(message.probabilities),
            key_basis_probability=message.key_basis_probability,
        )
        refusal = self._end.refusal(announced)
        if refusal:
            raise WireError(
                f"block {message.block}: the peer announces light that this end's configuration does not have: "
                f"{refusal}; give both ends the same topology file"
            )
        self._end.store.note_block(self._end.link, message.block)
        if not self._device:
            return [self._say(Cancel(block=message.block, why="receiver not ready"))]
        if self._end.now_s() < self.thrift.not_before_s:
            return [self._say(Cancel(block=message.block, why="authentication key was spent in vain: waiting"))]
        self._frames[message.block] = []
        self._covered[message.block] = 0
        self._deadline_s[message.block] = self._light_deadline_s(announced)
        return [self._arm(announced)]

    def _resolution(self, message: Resolve) -> list[SessionEffect]:
        pending, self._pending = self._pending, []
        if not message.held:
            return [Destroy(block, "channel", "the peer does not hold this block") for block in pending]
        if self._settled is not None and self._settled[0] == message and set(pending) <= set(message.held):
            # The very words again: so is the answer, because one key must never tag two messages.
            return [self._say(self._settled[1])]
        if self._end.now_s() < self.thrift.not_before_s:
            raise AuthenticationFailed("authentication key was spent in vain: waiting before more is")
        tags = self._end.auth.take(message.auth_block, message.auth_offset, SETTLE_EPSILON)
        self.thrift.spent(self._end.now_s())
        tags.verify(RESOLVE, self._label("resolve"), [numbers(message.held)], message.tag)
        self.thrift.succeeded()
        store, link = self._end.store, self._end.link
        effects: list[SessionEffect] = [Release(block) for block in message.held if block in pending]
        effects += [
            Destroy(block, "channel", "the peer does not hold this block")
            for block in pending
            if block not in message.held
        ]
        released = [b for b in message.held if b in pending or store.is_released(link, b)]
        destroyed = [b for b in message.held if b not in released]
        tag = tags.tag(RESOLUTION, self._label("resolution"), [numbers(released), numbers(destroyed)])
        resolution = Resolution(released=released, destroyed=destroyed, tag=tag)
        tags.wipe()
        self._settled = message, resolution
        return [*effects, self._say(resolution)]

    def _after(self, block: int, effects: list[SessionEffect]) -> list[SessionEffect]:
        if any(isinstance(effect, Release | Destroy) for effect in effects):
            self._forget(block)
        return effects

    def _close(self, block: int, cause: str, why: str) -> list[SessionEffect]:
        if block not in self._seeds:
            return []
        machine = self._machines.get(block)
        is_held = machine is not None and machine.is_held
        self._forget(block)
        if is_held:
            return [Disconnect(f"link {self._end.link} block {block}: {why}")]
        return [Destroy(block, cause, why)]

    def _forget(self, block: int) -> None:
        self._seeds.pop(block, None)
        self._machines.pop(block, None)
        self._frames.pop(block, None)
        self._covered.pop(block, None)
        self._deadline_s.pop(block, None)
