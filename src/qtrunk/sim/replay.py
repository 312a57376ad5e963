"""The two ends of a recording together: find how their positions match, and distil without light what they saw.

The production machines of both parties run in this process and hear nothing of each other but octets. Their
authentication key is made up on the spot, so what comes out is a figure, not a key: it is compared, counted and wiped.
A node cannot attach to a recording; docs/recordings.md says why.
"""

from collections import deque
from dataclasses import dataclass
from math import log

import numpy as np
from numpy.typing import NDArray
from scipy import fft

from qtrunk.base.errors import AuthenticationFailed, KeyExhausted, RequestRefused
from qtrunk.base.ids import NodeId
from qtrunk.base.ports import Random
from qtrunk.base.secret import Secret
from qtrunk.distil.authentication import AUTH_OCTETS, Authenticator, WegmanCarter
from qtrunk.distil.parties import (
    BlockAlice,
    BlockBob,
    Destroy,
    DistilParameters,
    Effect,
    Hold,
    Release,
    Report,
    Send,
)
from qtrunk.kernels import I64
from qtrunk.sim.recording import ReceivedBlock, ReceiverRecording, TransmitterRecording, found_at
from qtrunk.stages import Octets, Positions, QkdKey, Settings

OFFSET_PULSES_MAX = 1 << 20
"""`align` looks for offsets up to this many pulses either way, unless told otherwise."""
FALSE_LOCK = 1e-9
"""Chance that noise alone passes for an alignment."""
_SPAN_MAX = 1 << 24


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockResult:
    """What came of one block. Figures that the protocol did not reach are None."""

    block: int
    pulses: int
    clicks: int
    sifted_bits: int | None = None
    qber_test: float | None = None
    qber_key: float | None = None
    gains: tuple[float, ...] | None = None
    """Clicks per pulse in matched bases, by intensity, strongest first."""
    leak_bits: int | None = None
    secret_bits: int = 0
    """Length of the key; 0 where the block was destroyed."""
    auth_bits: int = 0
    """So many of them a link would keep to authenticate later blocks."""
    cause: str | None = None
    """Why the block was destroyed, one of distil.parties.CAUSES, or `device` where one end has no record of it."""
    why: str | None = None


class ReplayLedger:
    """One end's authentication key for one block, in memory: distil.parties.AuthLedger."""

    def __init__(self, octets: bytes, target_octets: int) -> None:
        self._octets: bytes | None = octets
        self._target_octets = target_octets

    def reserve(self, epsilon: float) -> Authenticator:
        """See distil.parties.AuthLedger."""
        return self.take(0, 0, epsilon)

    def take(self, block: int, offset: int, _epsilon: float) -> Authenticator:
        """See distil.parties.AuthLedger."""
        octets, self._octets = self._octets, None
        if octets is None:
            raise KeyExhausted("one authentication key serves one block of a replay")
        if (block, offset) != (0, 0):
            raise AuthenticationFailed(f"authentication key {block}/{offset} was never reserved")
        return WegmanCarter(0, 0, Secret(octets))

    def allows(self, _epsilon: float) -> bool:
        """See distil.parties.AuthLedger."""
        return True

    def level_octets(self) -> int:
        """See distil.parties.AuthLedger."""
        # As on a link that has run for a while: a block tops up no more than it spends.
        return self._target_octets


def distil(
    transmitter: TransmitterRecording,
    receiver: ReceiverRecording,
    random: Random,
    parameters: DistilParameters | None = None,
) -> list[BlockResult]:
    """Distil every finished block of a recording. RequestRefused where the files are not of one run or not sound."""
    return [distil_block(transmitter, received, random, parameters) for received in matched(transmitter, receiver)]


def matched(transmitter: TransmitterRecording, receiver: ReceiverRecording) -> ReceiverRecording:
    """The receiver's recording, found to be of the same light as the transmitter's; RequestRefused where it is not."""
    for field in ("link", "clock_hz", "intensities", "probabilities", "key_basis_probability"):
        ours, theirs = getattr(receiver.header, field), getattr(transmitter.header, field)
        if ours != theirs:
            raise RequestRefused(
                f"{receiver.path}, {transmitter.path}: metadata, {field}: {ours} and {theirs}: not of one run"
            )
    return receiver


def distil_block(
    transmitter: TransmitterRecording,
    received: ReceivedBlock,
    random: Random,
    parameters: DistilParameters | None = None,
) -> BlockResult:
    """Distil one block. `random` gives what both parties draw, as on a link."""
    number, clicks = received.pulses.block, len(received.detections.positions)
    if number not in transmitter.finished:
        why = f"{transmitter.path}: has no finished block {number}"
        return BlockResult(block=number, pulses=received.pulses.count, clicks=clicks, cause="device", why=why)
    pulses = transmitter.pulses(number)
    if pulses.count != received.pulses.count:
        raise RequestRefused(f"{transmitter.path}: block {number}, pulses: {pulses.count}, not {received.pulses.count}")
    parameters = parameters or DistilParameters()
    secret = random.octets(AUTH_OCTETS)
    common = {
        "alice": NodeId("alice"),
        "bob": NodeId("bob"),
        # On a link Bob takes these from Alice's Announce, and refuses others than he is configured for.
        "pulses": pulses,
        "parameters": parameters,
        "random": random,
        "now": lambda: transmitter.header.made_unix_s,
    }
    ledgers = [ReplayLedger(secret, parameters.auth_target_octets) for _ in range(2)]
    light_s = pulses.count / transmitter.header.clock_hz
    alice = BlockAlice(settings=transmitter.settings(number), light_s=light_s, auth=ledgers[0], **common)
    bob = BlockBob(detections=received.detections, auth=ledgers[1], **common)
    return _result(received, *_converse(alice, bob))


def _converse(alice: BlockAlice, bob: BlockBob) -> tuple[list[Effect], list[Effect]]:
    """Carry octets until both are silent; the effects of Alice and of Bob."""
    effects: dict[object, list[Effect]] = {alice: [], bob: []}
    said: deque[tuple[BlockAlice | BlockBob, Effect]] = deque((bob, effect) for effect in bob.start())
    while said:
        speaker, effect = said.popleft()
        effects[speaker].append(effect)
        if isinstance(effect, Send):
            listener = alice if speaker is bob else bob
            said.extend((listener, answer) for answer in listener.receive(effect.octets))
    return effects[alice], effects[bob]


def _result(received: ReceivedBlock, alice: list[Effect], bob: list[Effect]) -> BlockResult:
    figures: dict[str, object] = {}
    for effect in alice:
        if isinstance(effect, Report):
            figures |= effect.figures
    keys: list[QkdKey] = [effect.key for effect in (*alice, *bob) if isinstance(effect, Hold)]
    releases = sum(isinstance(effect, Release) for effect in (*alice, *bob))
    destroyed = next((effect for effect in (*alice, *bob) if isinstance(effect, Destroy)), None)
    # Octets were neither lost nor changed, so anything else is a fault of the machines themselves.
    assert (releases, destroyed is None) in ((2, True), (0, False)), "a block ends alike at both ends"
    assert releases == 0 or keys[0] == keys[1], "verification let two different keys through"
    key = keys[0] if releases else None
    for made in keys:
        made.material.wipe()
    wanted = ("sifted_bits", "qber_test", "qber_key", "leak_bits")
    gains = figures.get("gains")
    return BlockResult(
        block=received.pulses.block,
        pulses=received.pulses.count,
        clicks=len(received.detections.positions),
        **{name: figures[name] for name in wanted if name in figures},  # type: ignore[arg-type]  # as reported
        gains=tuple(gains) if isinstance(gains, list) else None,
        secret_bits=8 * len(key.material) if key else 0,
        auth_bits=8 * key.auth_octets if key else 0,
        cause=destroyed.cause if destroyed else None,
        why=destroyed.why if destroyed else None,
    )


def align(
    positions: Positions,
    basis: Octets,
    bit: Octets,
    disclosed: Positions,
    sent: Settings,
    offset_max: int = OFFSET_PULSES_MAX,
) -> int:
    """The number to add to a receiver's positions so that they are the transmitter's: where the correlation of clicked
    bits with disclosed ones in matched bases is highest. RequestRefused where it does not stand out (Hoeffding: false
    alarm FALSE_LOCK over all offsets). `disclosed` positions and what was `sent` there must be no part of a key.
    """
    if not len(positions) or not len(disclosed):
        raise RequestRefused("align: no clicks, or no disclosed positions")
    first, last = int(disclosed[0]), int(disclosed[-1])
    at = positions.astype(np.int64)
    near = (at >= first - offset_max) & (at <= last + offset_max)
    span = last - first + 1
    size = fft.next_fast_len(span + 3 * offset_max)
    if size > _SPAN_MAX:
        raise RequestRefused(
            f"align: positions disclosed over {span} pulses; at most {_SPAN_MAX - 3 * offset_max} are allowed"
        )

    def vector(at: I64, basis: Octets, bit: Octets) -> NDArray[np.complex64]:
        # Bits as signs; the two bases at a right angle do not mix in the real part.
        made = np.zeros(size, np.complex64)
        made[at] = np.where(basis == 0, 1, 1j) * (1 - 2.0 * bit)
        return made

    theirs = fft.fft(vector(disclosed.astype(np.int64) - first, sent.basis, sent.bit))
    ours = fft.fft(vector(at[near] - first + offset_max, basis[near], bit[near]))
    scores = fft.ifft(theirs * np.conj(ours)).real
    # A click at p stands at index p - first + offset_max; an offset d puts its partner at p + d - first.
    wanted = np.arange(-2 * offset_max, 1)
    best = int(wanted[np.argmax(scores[wanted])]) + offset_max
    moved = at[near] + best
    found, hit = found_at(disclosed.astype(np.int64), moved)
    partner = found[hit]
    is_matched = sent.basis[partner] == basis[near][hit]
    agree = (sent.bit[partner] == bit[near][hit])[is_matched]
    score = 2 * int(agree.sum()) - len(agree)
    if score <= 0 or score**2 / 2 / len(agree) < log((2 * offset_max + 1) / FALSE_LOCK):
        raise RequestRefused(
            f"align: at the best offset {score} of {len(agree)} bits more agree than not: too few to be sure"
        )
    return best
