"""Alice's and Bob's machines for one block: octets and detections in, octets and key out. No I/O.

    1  Bob    Detected   positions of clicks, bases, test-basis bits      (the light of the block is over)
    2  Alice  Sifted     matches, intensities, test errors, code, syndromes
       Bob    Unsolved   frames that need more      (perhaps, a few times: a blind round)
       Alice  Halves     more about those frames    (answers it)
    3  Bob    Decoded    frames that did not decode
    4  Alice  Proof      those frames, verification hash, length, Toeplitz seed, authentication keys
    5  Bob    Accept     tag over 1 to 4          Bob holds the key (durable) before this goes out
    6  Alice  Confirm    tag over 1 to 5          Alice holds hers before this goes out
    7  Bob    Released   tag over 1 to 6          Bob's key is available; Alice's when this verifies

Authentication is delayed and covers the whole transcript of both directions: nothing is believed that would let a key
out before the tags verify (security: Tupkary, Nahar, Tan, arXiv:2601.17960). Both compute the key's length from the
same counts and must agree. Each tag has keys of its own and a label with protocol version, role, nodes, link and block,
so none can be reflected or replayed.

Until a party holds a key, any doubt ends in Destroy at both ends. Once it holds one, the other end may hold (or have
released) it too, so a doubt is Unsettled instead: the session reconnects and settles it with authenticated messages.
Calls are CPU work of up to some hundred milliseconds; the shell runs them in a thread.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Protocol

import numpy as np

from qtrunk.base.errors import AuthenticationFailed, BlockAborted, BudgetSpent, KeyExhausted, QtrunkError, WireError
from qtrunk.base.ids import NodeId
from qtrunk.base.ports import Random
from qtrunk.base.wire import decode, encode
from qtrunk.crypto import its, universal
from qtrunk.distil import messages as wire
from qtrunk.distil import sift
from qtrunk.distil.authentication import AUTH_OCTETS, SLOTS, Authenticator
from qtrunk.distil.keylength import BOUNDS, EpsilonBudget, KeyLength, key_length, proof_of
from qtrunk.distil.proofs import check_live
from qtrunk.distil.verify import VERIFY_BITS, check_hash, make_hash
from qtrunk.distil.ways import AUTO, METHODS, Finder, Teller, Terms, choose_method, finder, teller
from qtrunk.kernels import encode_gaps, select
from qtrunk.stages import (
    Detections,
    Epsilon,
    Observations,
    Octets,
    Positions,
    Pulses,
    QkdKey,
    ReconciledBlock,
    Role,
    Settings,
)

PROTOCOL = "qtrunk distil 1"
KEY_OCTETS_STEP = 16
CAUSES = frozenset(
    {"qber", "no-key", "verification", "authentication", "protocol", "leak-budget", "auth-key", "epsilon"}
)
ACCEPT, CONFIRM, RELEASED = range(SLOTS)
"""Tags of a block."""
SHORT_OCTETS = 1024
"""Room for labels and for the short messages behind Proof, alike at both ends."""


@dataclass(frozen=True, slots=True)
class Send:
    """Send these octets to the peer."""

    octets: bytes


@dataclass(frozen=True, slots=True)
class Hold:
    """Store this key as pending, durably, before the next effect."""

    key: QkdKey


@dataclass(frozen=True, slots=True)
class Release:
    """Make the held key of a block available."""

    block: int


@dataclass(frozen=True, slots=True)
class Destroy:
    """The block is dead; whatever exists of it goes."""

    block: int
    cause: str
    why: str


@dataclass(frozen=True, slots=True)
class Unsettled:
    """The key is held here, but whether the peer holds it is in doubt: settle it on a new connection."""

    block: int
    why: str


@dataclass(frozen=True, slots=True)
class Report:
    """Figures of a block for the operator; no secrets."""

    block: int
    figures: dict[str, object]
    seen: Observations | None = None
    """The counts that they were made of, where these are known."""


Effect = Send | Hold | Release | Destroy | Unsettled | Report


class AuthLedger(Protocol):
    """The link's authentication key and its epsilon: each octet is spent once, and on disk before it is returned, with
    the epsilon of what it is used for.
    """

    def reserve(self, epsilon: float) -> Authenticator:
        """The next of it, for something that may fail with probability `epsilon`; KeyExhausted when there is none,
        BudgetSpent when the epsilons of the link would add up to more than the operator allows.
        """

    def take(self, block: int, offset: int, epsilon: float) -> Authenticator:
        """What the peer reserved; AuthenticationFailed for any that was reserved or taken before."""

    def allows(self, epsilon: float) -> bool:
        """Whether so much more epsilon would still be within what the operator allows."""

    def level_octets(self) -> int:
        """What is left."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DistilParameters:
    """The same at both ends of a link. ValueError for a proof that does not hold for a live link."""

    budget: EpsilonBudget = field(default_factory=EpsilonBudget)
    proof: str = "variable"
    """A name of distil.proofs.LIVE."""
    bounds: str = "exact"
    reconciliation: str = AUTO
    """A name of distil.ways.METHODS, or AUTO: Alice's end chooses for each block."""
    round_trip_s: float = 0.01
    """What an answer of the peer takes."""
    qber_abort: float = 0.11
    """Test-basis error rate above which a block is destroyed whatever the formula says."""
    qber_suspect: float = 0.04
    """A block without key is blamed on its error rate from here on, else on poor statistics."""
    auth_target_octets: int = 16 << 10
    """Blocks top up the authentication key to this level first."""

    def __post_init__(self) -> None:
        check_live(self.proof)
        if self.bounds not in BOUNDS:
            raise ValueError(f"bounds {self.bounds!r}: {' or '.join(BOUNDS)}")
        if self.reconciliation not in (AUTO, *METHODS):
            raise ValueError(f"reconciliation {self.reconciliation!r}: auto, {', '.join(METHODS)}")


class _Party(ABC):
    """What both share: transcript, labels, the end of a block."""

    role: Role

    def __init__(
        self,
        *,
        alice: NodeId,
        bob: NodeId,
        pulses: Pulses,
        parameters: DistilParameters,
        auth: AuthLedger,
        random: Random,
        now: Callable[[], float],
    ) -> None:
        self._alice = alice
        self._bob = bob
        self._pulses = pulses
        self._parameters = parameters
        self._auth = auth
        self._random = random
        self._now = now
        self._transcript: list[bytes] = []
        self._to_proof = (0, 0)
        """Octets and messages up to Proof."""
        self._is_over = False
        self._tags: Authenticator | None = None
        self.is_held = False
        """The key was given to Hold and neither released nor destroyed yet."""

    @property
    def has_spent(self) -> bool:
        """Whether authentication key was spent for this block."""
        return self._tags is not None

    def receive(self, octets: bytes) -> list[Effect]:
        """One message from the peer."""
        if self._is_over:
            return []
        try:
            message: wire.BlockMessage = decode(octets, wire.BlockMessage)
            if isinstance(message, wire.Abort):
                return self._aborted(message)
            return self._handle(message, octets)
        except BlockAborted as error:
            return self._give_up(error.cause, str(error))
        except AuthenticationFailed as error:
            return self._give_up("authentication", str(error))
        except BudgetSpent as error:
            return self._give_up("epsilon", str(error))
        except KeyExhausted as error:
            return self._give_up("auth-key", str(error))
        except QtrunkError as error:
            return self._give_up("protocol", str(error))

    @abstractmethod
    def _handle(self, message: wire.BlockMessage, octets: bytes) -> list[Effect]: ...

    def _aborted(self, message: wire.Abort) -> list[Effect]:
        # Unauthenticated: enough to destroy a block that nobody holds, never one that the peer may have released.
        if self.is_held:
            return [Unsettled(self._pulses.block, "the peer says that it aborted")]
        self._is_over = True
        cause = message.cause if message.cause in CAUSES else "protocol"
        return [Destroy(self._pulses.block, cause, f"the peer aborted: {message.why[:300]}")]

    def _give_up(self, cause: str, why: str) -> list[Effect]:
        if self.is_held:
            return [Unsettled(self._pulses.block, why)]
        self._is_over = True
        abort = wire.Abort(cause=cause, why=why)
        return [Send(encode(abort)), Destroy(self._pulses.block, cause, why)]

    def _note_proof(self) -> None:
        # Alike at both ends, whatever short messages come behind.
        self._to_proof = sum(len(part) for part in self._transcript), len(self._transcript)

    def _label(self, what: str) -> bytes:
        # With all that was announced about the light: nothing else authenticates it, and the length depends on it.
        pulses = self._pulses
        light = (pulses.count, *pulses.intensities, *pulses.probabilities, pulses.key_basis_probability)
        return "|".join(
            [PROTOCOL, what, self._alice, self._bob, pulses.link, str(pulses.block), *map(repr, light)]
        ).encode()

    def _say(self, message: wire.BlockMessage) -> Send:
        octets = encode(message)
        self._transcript.append(octets)
        return Send(octets)

    def _length(self, seen: Observations, leak_bits: int) -> KeyLength:
        return key_length(seen, leak_bits, self._parameters.budget, self._parameters.bounds)

    def _key(self, done: ReconciledBlock, proof: wire.Proof) -> QkdKey:
        """Privacy amplification, and the record that goes with the key."""
        material = universal.toeplitz(done.bits, proof.seed, 8 * proof.length_octets)
        assert self._tags is not None
        return QkdKey(
            link=self._pulses.link,
            block=self._pulses.block,
            material=material,
            auth_octets=proof.auth_octets,
            epsilon=Epsilon(
                secret=self._parameters.budget.secret,
                correct=done.epsilon_correct,
                authentic=self._tags.failure(self._to_proof[0] + SHORT_OCTETS, self._to_proof[1] + SLOTS, SLOTS),
            ),
            sifted_bits=len(done.bits),
            leak_bits=done.leak_bits,
            qber_key=done.key_errors / max(1, len(done.bits)),
            qber_test=done.observations.test_qber,
            proof=proof_of(self._parameters.bounds),
            authentication=self._tags.scheme,
            made_unix_s=self._now(),
        )

    def _epsilon(self, epsilon_correct: float, octets: int) -> float:
        """What this block adds to the link's ledger, before the message with so many octets ends the long ones."""
        # By the worst of the schemes: which of them it will be is not known yet.
        said = sum(len(part) for part in self._transcript) + octets + 2 * SHORT_OCTETS
        forged = its.forgery_probability(said, len(self._transcript) + 1 + SLOTS)
        return self._parameters.budget.secret + epsilon_correct + SLOTS * forged

    def _report(self, **figures: object) -> Report:
        return Report(self._pulses.block, {"block": self._pulses.block, **figures})

    def _report_counts(self, seen: Observations, clicks: int) -> Report:
        count = self._pulses.count
        basis = self._pulses.key_basis_probability
        gains = [
            (k + t) / (count * p * (basis**2 + (1 - basis) ** 2))
            for k, t, p in zip(seen.key_counts, seen.test_counts, seen.probabilities, strict=True)
        ]
        report = self._report(qber_test=seen.test_qber, detections=clicks, sifted_bits=seen.key_total, gains=gains)
        return replace(report, seen=seen)


class BlockAlice(_Party):
    """Alice in one block. `settings` tells what her transmitter sent at some positions."""

    role = Role.ALICE

    def __init__(self, *, settings: Callable[[Positions], Settings], light_s: float, **common: object) -> None:
        """`light_s`: how long the light of the block took."""
        super().__init__(**common)  # type: ignore[arg-type]
        self._settings = settings
        self._light_s = light_s
        self._seen: Observations | None = None
        self._teller: Teller | None = None
        self._bits: Octets = np.zeros(0, np.uint8)
        self._done: ReconciledBlock | None = None
        self._proof: wire.Proof | None = None

    def _handle(self, message: wire.BlockMessage, octets: bytes) -> list[Effect]:
        match message:
            case wire.Detected() if self._seen is None:
                return self._detected(message, octets)
            case wire.Unsolved() | wire.Mismatches() if self._teller is not None and self._proof is None:
                return self._asked(message, octets)
            case wire.Decoded() if self._teller is not None and self._proof is None:
                return self._decoded(message, octets)
            case wire.Accept() if self._proof is not None and not self.is_held:
                return self._accepted(message, octets)
            case wire.Released() if self.is_held:
                return self._released(message)
        raise WireError(f"Alice does not expect {type(message).__name__} now")

    def _detected(self, message: wire.Detected, octets: bytes) -> list[Effect]:
        if message.pulses != self._pulses.count:
            raise WireError(f"block of {message.pulses} pulses: {self._pulses.count} were agreed")
        self._transcript.append(octets)
        positions = wire.unpack_positions(message)
        bob_basis = wire.unpack(message.bases, message.count, "bases")
        bob_test_bits = wire.unpack(message.test_bits, int(np.count_nonzero(bob_basis)), "test bits")
        sent = self._settings(positions)
        in_key = sift.key_clicks(sent.basis, bob_basis)
        in_test = sift.tested_clicks(sent.basis, bob_basis)
        # Among the clicks that Bob tested, those that Alice tested too.
        both_test = select(sent.basis, bob_basis)
        test_error = select(sent.bit, in_test) ^ select(bob_test_bits, both_test)
        self._seen = seen = sift.observe(
            self._pulses, select(sent.intensity, in_key), select(sent.intensity, in_test), test_error
        )
        self._bits = select(sent.bit, in_key)
        matches = in_key | in_test
        report = self._report_counts(seen, message.count)
        try:
            method = self._method_for(seen)
            teller = self._teller = self._teller_for(seen, method)
        except BlockAborted as error:
            return [report, *self._give_up(error.cause, str(error))]
        intensity = select(sent.intensity, matches)
        sifted = wire.Sifted(
            matches=wire.pack(matches),
            intensity_low=wire.pack(intensity & np.uint8(1)),
            intensity_high=wire.pack(intensity >> np.uint8(1)),
            test_errors=wire.pack(test_error),
            method=method,
            code=teller.code,
            syndromes=teller.first(),
        )
        return [report, self._say(sifted)]

    def _method_for(self, seen: Observations) -> str:
        """How to reconcile, or BlockAborted where no key can come of this block whatever is said."""
        qber = seen.test_qber
        if qber > self._parameters.qber_abort and sum(seen.test_counts) > 0:
            raise BlockAborted("qber", f"QBER {qber:.2%} in the test basis, above {self._parameters.qber_abort:.0%}")
        if sum(seen.test_counts) == 0 or seen.key_total == 0:
            raise BlockAborted("no-key", "no clicks in the key or the test basis: is there light on the fibre?")
        parameters = self._parameters
        return choose_method(parameters.reconciliation, _terms(seen), self._light_s, parameters.round_trip_s)

    def _teller_for(self, seen: Observations, method: str) -> Teller:
        """What tells Bob about the key, or BlockAborted where no key would be left: nothing is said about it then."""
        made, qber = teller(method, _terms(seen), self._bits, self._random), seen.test_qber
        if self._length(seen, made.least_bits + VERIFY_BITS).length_bits < 8 * 2 * AUTH_OCTETS:
            cause = "qber" if qber > self._parameters.qber_suspect else "no-key"
            raise BlockAborted(cause, f"no secret key from {seen.key_total} sifted bits at QBER {qber:.2%}")
        return made

    def _asked(self, message: wire.BlockMessage, octets: bytes) -> list[Effect]:
        assert self._teller is not None
        answer = self._teller.answer(message)
        self._transcript.append(octets)
        return [] if answer is None else [self._say(answer)]

    def _decoded(self, message: wire.Decoded, octets: bytes) -> list[Effect]:
        assert self._teller is not None
        assert self._seen is not None
        self._teller.conclude(message)
        if not 0 <= message.errors <= len(self._bits):
            raise WireError("errors: more than there are bits")
        self._transcript.append(octets)
        leak_bits = self._teller.leak_bits + VERIFY_BITS
        length_octets = usable_octets(self._length(self._seen, leak_bits))
        verify_key = self._random.octets(universal.HASH_OCTETS)
        verify_hash, epsilon_correct = make_hash(verify_key, self._bits)
        seed = self._random.octets(universal.toeplitz_seed_octets(len(self._bits), 8 * length_octets))
        disclosed = self._teller.disclosed()
        tags = self._tags = self._auth.reserve(self._epsilon(epsilon_correct, len(seed) + len(disclosed)))
        self._done = ReconciledBlock(
            bits=self._bits,
            observations=self._seen,
            leak_bits=leak_bits,
            epsilon_correct=epsilon_correct,
            key_errors=message.errors,
        )
        wanted = self._parameters.auth_target_octets - self._auth.level_octets()
        auth_octets = min(length_octets // 2, max(AUTH_OCTETS, wanted))
        self._proof = wire.Proof(
            disclosed=disclosed,
            verify_key=verify_key,
            verify_hash=verify_hash,
            length_octets=length_octets,
            auth_octets=auth_octets - auth_octets % KEY_OCTETS_STEP,
            seed=seed,
            auth_block=tags.reference[0],
            auth_offset=tags.reference[1],
        )
        said = self._say(self._proof)
        self._note_proof()
        return [said]

    def _accepted(self, message: wire.Accept, octets: bytes) -> list[Effect]:
        assert self._tags is not None
        assert self._proof is not None
        assert self._done is not None
        self._tags.verify(ACCEPT, self._label("accept"), self._transcript, message.tag)
        self._transcript.append(octets)
        made = self._key(self._done, self._proof)
        self.is_held = True
        confirm = wire.Confirm(tag=self._tags.tag(CONFIRM, self._label("confirm"), self._transcript))
        return [
            Hold(made),
            self._say(confirm),
            self._report(qber_key=made.qber_key, leak_bits=made.leak_bits),
        ]

    def _released(self, message: wire.Released) -> list[Effect]:
        assert self._tags is not None
        self._tags.verify(RELEASED, self._label("released"), self._transcript, message.tag)
        self._tags.wipe()
        self._is_over, self.is_held = True, False
        return [Release(self._pulses.block)]


class BlockBob(_Party):
    """Bob in one block."""

    role = Role.BOB

    def __init__(self, *, detections: Detections, **common: object) -> None:
        super().__init__(**common)  # type: ignore[arg-type]
        self._detections = detections
        self._seen: Observations | None = None
        self._finder: Finder | None = None
        self._has_accepted = False

    def start(self) -> list[Effect]:
        """Speak first, once the light of the block is over."""
        seen = self._detections
        detected = wire.Detected(
            pulses=self._pulses.count,
            count=len(seen.positions),
            gaps=encode_gaps(seen.positions, self._pulses.count).tobytes(),
            bases=wire.pack(seen.basis),
            test_bits=wire.pack(select(seen.bit, seen.basis)),
        )
        return [self._say(detected)]

    def _handle(self, message: wire.BlockMessage, octets: bytes) -> list[Effect]:
        match message:
            case wire.Sifted() if self._seen is None:
                return self._sifted(message, octets)
            case wire.Halves() | wire.Parities() if self._finder is not None and not self._finder.is_done:
                return self._told(message, octets)
            case wire.Proof() if self._finder is not None and self._finder.is_done and not self._has_accepted:
                return self._proved(message, octets)
            case wire.Confirm() if self.is_held:
                return self._confirmed(message, octets)
        raise WireError(f"Bob does not expect {type(message).__name__} now")

    def _sifted(self, message: wire.Sifted, octets: bytes) -> list[Effect]:
        self._transcript.append(octets)
        clicks = self._detections
        matches = wire.unpack(message.matches, len(clicks.positions), "matches")
        count = int(np.count_nonzero(matches))
        low = wire.unpack(message.intensity_low, count, "intensity_low")
        high = wire.unpack(message.intensity_high, count, "intensity_high")
        intensity = low | high << np.uint8(1)
        if count and int(intensity.max()) >= len(self._pulses.intensities):
            raise WireError("intensity: there are only three")
        is_test = select(clicks.basis, matches)
        is_key = is_test ^ np.uint8(1)
        test_error = wire.unpack(message.test_errors, int(np.count_nonzero(is_test)), "test errors")
        self._seen = seen = sift.observe(
            self._pulses, select(intensity, is_key), select(intensity, is_test), test_error
        )
        report = self._report_counts(seen, len(clicks.positions))
        if sum(seen.test_counts) == 0 or seen.key_total == 0:
            raise BlockAborted("no-key", "no clicks in the key or the test basis")
        own = select(select(clicks.bit, matches), is_key)
        self._finder, said = finder(self._parameters.reconciliation, message, _terms(seen), own)
        return [report, *(self._say(each) for each in said)]

    def _told(self, message: wire.BlockMessage, octets: bytes) -> list[Effect]:
        assert self._finder is not None
        self._transcript.append(octets)
        return [self._say(each) for each in self._finder.heard(message)]

    def _proved(self, message: wire.Proof, octets: bytes) -> list[Effect]:
        assert self._finder is not None
        assert self._seen is not None
        leak_bits = self._finder.leak_bits + VERIFY_BITS
        length_octets = usable_octets(self._length(self._seen, leak_bits))
        if message.length_octets != length_octets:
            raise WireError(f"key of {message.length_octets} octets: {length_octets} follow from what both saw")
        if not AUTH_OCTETS <= message.auth_octets <= length_octets // 2 or message.auth_octets % KEY_OCTETS_STEP:
            raise WireError("auth_octets: from one block's need to half of the key, in steps of 16")
        if len(message.seed) != universal.toeplitz_seed_octets(self._seen.key_total, 8 * length_octets):
            raise WireError("Toeplitz seed: wrong length")
        bits = self._finder.completed(message.disclosed)
        epsilon_correct = check_hash(message.verify_key, bits, message.verify_hash)
        epsilon = self._epsilon(epsilon_correct, len(message.seed) + len(message.disclosed))
        self._tags = self._auth.take(message.auth_block, message.auth_offset, epsilon)
        self._transcript.append(octets)
        self._note_proof()
        done = ReconciledBlock(
            bits=bits,
            observations=self._seen,
            leak_bits=leak_bits,
            epsilon_correct=epsilon_correct,
            key_errors=self._finder.errors,
        )
        made = self._key(done, message)
        self.is_held = self._has_accepted = True
        tag = self._tags.tag(ACCEPT, self._label("accept"), self._transcript)
        return [
            Hold(made),
            self._say(wire.Accept(tag=tag)),
            self._report(qber_key=made.qber_key, leak_bits=leak_bits, **self._finder.figures),
        ]

    def _confirmed(self, message: wire.Confirm, octets: bytes) -> list[Effect]:
        assert self._tags is not None
        self._tags.verify(CONFIRM, self._label("confirm"), self._transcript, message.tag)
        self._transcript.append(octets)
        released = wire.Released(tag=self._tags.tag(RELEASED, self._label("released"), self._transcript))
        self._tags.wipe()
        self._is_over, self.is_held = True, False
        return [Release(self._pulses.block), Send(encode(released))]


def _terms(seen: Observations) -> Terms:
    return Terms(sum(seen.test_errors), sum(seen.test_counts), seen.key_total)


def usable_octets(length: KeyLength) -> int:
    """Whole steps of key, or BlockAborted when authentication would eat it all."""
    octets = length.length_bits // 8
    octets -= octets % KEY_OCTETS_STEP
    if octets < 2 * AUTH_OCTETS:
        raise BlockAborted("no-key", f"{length.length_bits} secret bits: less than authentication needs")
    return octets
