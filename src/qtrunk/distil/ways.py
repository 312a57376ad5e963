"""The ways of reconciliation behind one face: who tells, who finds, what is said, which of them a block takes.

`ldpc`     lean plans of distil.reconcile: one message, and a blind round where a frame needs more
`fast`     its fast plans, for links whose sifted key comes faster than lean ones are decoded
`cascade`  distil.cascade: says least of all, in a hundred round trips, and leans on one more property of the receiver

Alice chooses, and Bob takes any that his end's policy has: what either says is counted at both ends, and the messages
are authenticated with all others at the end. A teller or finder lives for one block.
"""

from dataclasses import dataclass
from math import ceil, sqrt
from typing import Protocol

import numpy as np

from qtrunk.base.errors import WireError
from qtrunk.base.ports import Random
from qtrunk.distil import cascade
from qtrunk.distil import messages as wire
from qtrunk.distil.keylength import entropy
from qtrunk.distil.reconcile import ERROR_COUNT_BITS, ROUNDS_MAX, Frames, Plan, Search, choose
from qtrunk.stages import Octets

LDPC, FAST, CASCADE = METHODS = ("ldpc", "fast", "cascade")
AUTO = "auto"
FAST_FROM_BPS = 10e6
"""Sifted bits per second of light from which speed is worth more than the last per cent of key."""
CASCADE_UP_TO_BPS = 5e6
"""And up to which Cascade keeps up with the light, beside all else that a node does."""
CASCADE_ROUNDS = 350
"""Round trips of a block with Cascade, about, when it is slow."""
ANSWER_S = 0.003
"""What two nodes take for a question and its answer, the fibre aside."""
CASCADE_SHARE = 0.5
"""Of the time that a block's light takes, so much may go to round trips."""
CASCADE_SIGMAS = 4.0
"""Standard deviations by which the key's error rate may be above the test's."""


@dataclass(frozen=True, slots=True)
class Terms:
    """What both ends know of a block before anything is said about the key."""

    errors: int
    """Of the test basis."""
    tested: int
    bits: int
    """Of sifted key."""

    @property
    def qber(self) -> float:
        """Of the test basis."""
        return self.errors / max(1, self.tested)


class Teller(Protocol):
    """Alice's part: her bits stay as they are."""

    @property
    def code(self) -> str:
        """Name of the code, for the first message; empty where there is none."""

    @property
    def least_bits(self) -> int:
        """What will be said at least."""

    def first(self) -> bytes:
        """What she says first."""

    def answer(self, message: wire.BlockMessage) -> wire.BlockMessage | None:
        """Her answer to one of Bob's; WireError for one that does not belong here."""

    def conclude(self, message: wire.Decoded) -> None:
        """Bob is ready: WireError or BlockAborted where that cannot be."""

    def disclosed(self) -> bytes:
        """Bits that no way could find, packed."""

    @property
    def leak_bits(self) -> int:
        """All that was said about the key, when concluded."""


class Finder(Protocol):
    """Bob's part: he finds where his bits differ."""

    def heard(self, message: wire.BlockMessage) -> list[wire.BlockMessage]:
        """What he says to a message of Alice's; WireError for one that does not belong here."""

    @property
    def is_done(self) -> bool:
        """He said Decoded."""

    @property
    def leak_bits(self) -> int:
        """As Alice counts it."""

    @property
    def errors(self) -> int:
        """How many he found."""

    def completed(self, disclosed: bytes) -> Octets:
        """Alice's key, with the bits that she had to disclose."""

    @property
    def figures(self) -> dict[str, object]:
        """For the operator."""


def round_trip_s(length_km: float) -> float:
    """What a question and its answer take over so much fibre, at two thirds of the speed of light."""
    return 2 * length_km / 2e5 + ANSWER_S


def least_bits(method: str, terms: Terms) -> int:
    """What this way says about a key at least, nearly all of it as a rule; BlockAborted where no way reaches so far."""
    if method == CASCADE:
        return _cascade_bits(terms)
    return choose(terms.errors, terms.tested, terms.bits, is_fast=method == FAST).leak_bits((), ())


def choose_method(wanted: str, terms: Terms, light_s: float, answer_s: float) -> str:
    """The policy's way, or under AUTO the one that suits the block's rate, size and round trips (`answer_s` each)."""
    if wanted != AUTO:
        return wanted
    if terms.bits > FAST_FROM_BPS * light_s:
        return FAST
    is_slow_enough = terms.bits <= CASCADE_UP_TO_BPS * light_s
    if is_slow_enough and CASCADE_ROUNDS * answer_s <= CASCADE_SHARE * light_s and terms.qber < cascade.QBER_MAX:
        return min((LDPC, CASCADE), key=lambda method: least_bits(method, terms))
    return LDPC


def _cascade_bits(terms: Terms) -> int:
    """What Cascade says, about: 5 % above the entropy, and its hash."""
    qber = max(terms.qber, cascade.QBER_MIN)
    return ceil(1.05 * entropy(qber) * terms.bits) + cascade.CHECK_BITS + ERROR_COUNT_BITS


def _cascade_plan(terms: Terms) -> cascade.CascadePlan:
    # Both samples are random parts of the same block: what the key's rate may have above the test's.
    spread = sqrt((terms.qber + 1 / max(1, terms.tested)) * (1 / max(1, terms.tested) + 1 / max(1, terms.bits)))
    return cascade.plan(terms.bits, min(cascade.QBER_MAX, terms.qber + CASCADE_SIGMAS * spread))


def teller(method: str, terms: Terms, bits: Octets, random: Random) -> Teller:
    """Alice's part; BlockAborted ("qber") where no way reaches so far."""
    if method == CASCADE:
        return _CascadeTeller(terms, bits, random.octets(cascade.SEED_OCTETS))
    return _LdpcTeller(choose(terms.errors, terms.tested, terms.bits, is_fast=method == FAST), bits)


def finder(wanted: str, message: wire.Sifted, terms: Terms, bits: Octets) -> tuple[Finder, list[wire.BlockMessage]]:
    """Bob's part and what he says first; WireError for a way that this end's policy does not have."""
    if message.method not in METHODS or wanted not in (AUTO, message.method):
        raise WireError(f"method {message.method[:40]!r} of reconciliation is not one that this end's policy has")
    if message.method == CASCADE:
        searching = _CascadeFinder(terms, bits)
        return searching, searching.heard(wire.Parities(bits=message.syndromes))
    plan = choose(terms.errors, terms.tested, terms.bits, is_fast=message.method == FAST)
    if message.code != plan.entry.name:
        raise WireError(f"code {message.code[:40]!r} is not the one that the test errors call for")
    found = _LdpcFinder(plan, bits, message.syndromes)
    return found, [found.ask()]


class _LdpcTeller:
    def __init__(self, plan: Plan, bits: Octets) -> None:
        self._plan = plan
        self._bits = bits
        self._rounds: tuple[Frames, ...] = ()
        self._failed: Frames = ()

    @property
    def code(self) -> str:
        return self._plan.entry.name

    @property
    def least_bits(self) -> int:
        return self._plan.leak_bits((), ())

    def first(self) -> bytes:
        return self._plan.syndromes(self._bits)

    def answer(self, message: wire.BlockMessage) -> wire.BlockMessage:
        if not isinstance(message, wire.Unsolved):
            raise WireError(f"{type(message).__name__} does not belong to this way of reconciliation")
        unsolved = tuple(message.frames)
        self._plan.check_unsolved(self._rounds, unsolved)
        self._rounds += (unsolved,)
        return wire.Halves(parities=self._plan.halves(self._bits, unsolved, len(self._rounds)))

    def conclude(self, message: wire.Decoded) -> None:
        self._failed = tuple(message.failed)
        self._plan.check_failed(self._rounds, self._failed)

    def disclosed(self) -> bytes:
        return self._plan.disclose(self._bits, self._failed)

    @property
    def leak_bits(self) -> int:
        return self._plan.leak_bits(self._rounds, self._failed)


class _LdpcFinder:
    def __init__(self, plan: Plan, bits: Octets, syndromes: bytes) -> None:
        self._bits = bits
        self._search = Search(plan, bits, syndromes)
        self._found = np.zeros(0, np.uint8)
        self.is_done = False
        self.errors = 0

    def ask(self) -> wire.BlockMessage:
        """For one more round, or that he is ready."""
        search = self._search
        if search.unsolved and len(search.rounds) < ROUNDS_MAX:
            return wire.Unsolved(frames=list(search.unsolved))
        search.plan.check_failed(search.rounds, search.unsolved)
        self._found = search.corrected()
        self.errors = int(np.count_nonzero(self._found != self._bits))
        self.is_done = True
        return wire.Decoded(failed=list(search.unsolved), errors=self.errors)

    def heard(self, message: wire.BlockMessage) -> list[wire.BlockMessage]:
        if not isinstance(message, wire.Halves):
            raise WireError(f"{type(message).__name__} does not belong to this way of reconciliation")
        self._search.again(message.parities)
        return [self.ask()]

    @property
    def leak_bits(self) -> int:
        return self._search.plan.leak_bits(self._search.rounds, self._search.unsolved)

    def completed(self, disclosed: bytes) -> Octets:
        return self._search.plan.fill_in(self._found, self._search.unsolved, disclosed)

    @property
    def figures(self) -> dict[str, object]:
        return {"rounds": 1 + len(self._search.rounds), "frames_failed": len(self._search.unsolved)}


class _CascadeTeller:
    code = ""

    def __init__(self, terms: Terms, bits: Octets, seed: bytes) -> None:
        self._machine = cascade.CascadeAlice(bits, _cascade_plan(terms), seed)
        self.least_bits = _cascade_bits(terms)

    def first(self) -> bytes:
        return self._machine.start()

    def answer(self, message: wire.BlockMessage) -> wire.BlockMessage | None:
        if not isinstance(message, wire.Mismatches):
            raise WireError(f"{type(message).__name__} does not belong to this way of reconciliation")
        said = self._machine.received(message.bits)
        return None if said is None else wire.Parities(bits=said)

    def conclude(self, message: wire.Decoded) -> None:
        if not self._machine.done:
            raise WireError("decoded: parities are still asked for")
        if message.failed or message.errors != self._machine.errors:
            raise WireError("decoded: other errors than both ends have found")

    def disclosed(self) -> bytes:
        return b""

    @property
    def leak_bits(self) -> int:
        return self._machine.leak_bits + ERROR_COUNT_BITS


class _CascadeFinder:
    def __init__(self, terms: Terms, bits: Octets) -> None:
        self._machine = cascade.CascadeBob(bits, _cascade_plan(terms))

    def heard(self, message: wire.BlockMessage) -> list[wire.BlockMessage]:
        if not isinstance(message, wire.Parities):
            raise WireError(f"{type(message).__name__} does not belong to this way of reconciliation")
        said: list[wire.BlockMessage] = [wire.Mismatches(bits=self._machine.received(message.bits))]
        if self.is_done:
            said.append(wire.Decoded(failed=[], errors=self.errors))
        return said

    @property
    def is_done(self) -> bool:
        return self._machine.done

    @property
    def leak_bits(self) -> int:
        return self._machine.leak_bits + ERROR_COUNT_BITS

    @property
    def errors(self) -> int:
        return self._machine.errors

    def completed(self, disclosed: bytes) -> Octets:
        if disclosed:
            raise WireError("disclosed bits: Cascade leaves none")
        return self._machine.corrected

    @property
    def figures(self) -> dict[str, object]:
        return {"rounds": self._machine.rounds, "frames_failed": 0}
