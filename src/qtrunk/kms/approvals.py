"""The two-person rule: what one security officer proposes, another must approve before it can happen, once.

    proposed ── yes, by another officer ──> approved ── run, by the proposer ──> running ──> executed or failed
       └── no, by any officer ──> refused                └── not within LIFE_S of the proposal ──> expired

Another officer is another name *and* another certificate. What is approved is the exact canonical bytes of the
operation (`kms.audit.canonical`): who says yes repeats their SHA-256, so what he read is what happens. `running` is
durable before the operation begins, so a crash in between never executes it a second time: it stays `running`, for
people to look at.

A machine without I/O: clock, dice, a durable record and the audit log are given to it. Errors: RequestRefused (unknown
proposal, not in that state), NotAuthorised (this officer may not), StoreError (not recorded, so not done).
"""

import hashlib
import hmac
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

import msgspec

from qtrunk.base.errors import NotAuthorised, RequestRefused
from qtrunk.base.ports import Clock, Random
from qtrunk.kms.audit import AuditLog, canonical

LIFE_S = 15 * 60.0
"""From the proposal to its execution."""
OPERATION_OCTETS_MAX = 32 << 10
OPEN_MAX = 100
"""Proposals that wait at once."""


class State(StrEnum):
    """Where a proposal stands."""

    PROPOSED = "proposed"
    APPROVED = "approved"
    REFUSED = "refused"
    EXPIRED = "expired"
    RUNNING = "running"
    EXECUTED = "executed"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Officer:
    """A security officer, as the certificate says."""

    name: str
    fingerprint: str


class Proposal(msgspec.Struct, frozen=True):
    """One operation and what became of it."""

    id: str
    action: str
    operation: str
    """Canonical JSON of {"action", "parameters"}: what is shown, hashed and executed."""
    digest: str
    """SHA-256 of that, hexadecimal."""
    proposer: Officer
    until_unix_s: float
    state: State = State.PROPOSED
    second: Officer | None = None
    """Who said yes or no."""

    def parameters(self) -> dict[str, object]:
        """What the operation is done with."""
        return msgspec.json.decode(self.operation, type=_Operation).parameters


class _Operation(msgspec.Struct, frozen=True):
    action: str
    parameters: dict[str, object]


class Shelf(Protocol):
    """Where proposals are durable."""

    def load(self) -> list[Proposal]:
        """All of them, the oldest first."""

    def put(self, proposal: Proposal) -> None:
        """New or changed; durable on return, else StoreError."""


class Approvals:
    """The proposals of one node or authority."""

    def __init__(self, shelf: Shelf, audit: AuditLog, clock: Clock, random: Random) -> None:
        self._shelf = shelf
        self._audit = audit
        self._clock = clock
        self._random = random
        self._proposals = {proposal.id: proposal for proposal in shelf.load()}

    def all(self) -> list[Proposal]:
        """Every proposal, the oldest first, with its state now."""
        return [self._now(proposal) for proposal in self._proposals.values()]

    def find(self, identifier: str) -> Proposal:
        """One proposal, with its state now."""
        found = self._proposals.get(identifier)
        if found is None:
            raise RequestRefused("id: there is no such proposal")
        return self._now(found)

    def propose(self, officer: Officer, action: str, parameters: Mapping[str, object]) -> Proposal:
        """Put an operation up for approval. Nothing secret may be in `parameters`: they are shown and recorded."""
        operation = canonical({"action": action, "parameters": parameters})
        if len(operation) > OPERATION_OCTETS_MAX:
            raise RequestRefused(f"parameters: at most {OPERATION_OCTETS_MAX} octets")
        if sum(proposal.state in (State.PROPOSED, State.APPROVED) for proposal in self.all()) >= OPEN_MAX:
            raise RequestRefused(f"at most {OPEN_MAX} proposals may wait; refuse some")
        proposal = Proposal(
            self._random.octets(8).hex(),
            action,
            operation.decode(),
            hashlib.sha256(operation).hexdigest(),
            officer,
            self._clock.unix_s() + LIFE_S,
        )
        self._keep(officer, "propose", proposal)
        return proposal

    def approve(self, officer: Officer, identifier: str, digest: str) -> Proposal:
        """Another officer says yes to exactly the operation with this digest."""
        proposal = self._in_state(identifier, State.PROPOSED)
        if officer.name == proposal.proposer.name or officer.fingerprint == proposal.proposer.fingerprint:
            self._audit.record(_who(officer), "approve", identifier, "refused", {"why": "the proposer itself"})
            raise NotAuthorised("a proposal needs a second person: another name and another certificate")
        if not hmac.compare_digest(digest.encode(), proposal.digest.encode()):
            raise RequestRefused("digest: not that of the proposed operation; look at it again")
        approved = msgspec.structs.replace(proposal, state=State.APPROVED, second=officer)
        self._keep(officer, "approve", approved)
        return approved

    def refuse(self, officer: Officer, identifier: str) -> Proposal:
        """Any officer says no, the proposer as well; also after a yes, while nothing was executed."""
        proposal = self._in_state(identifier, State.PROPOSED, State.APPROVED)
        refused = msgspec.structs.replace(proposal, state=State.REFUSED, second=officer)
        self._keep(officer, "refuse", refused)
        return refused

    def begin(self, officer: Officer, identifier: str) -> Proposal:
        """The proposer is about to execute: never again from here on. Follow with `end`."""
        proposal = self._in_state(identifier, State.APPROVED)
        if officer.name != proposal.proposer.name:
            raise NotAuthorised("an approved operation is executed by who proposed it")
        running = msgspec.structs.replace(proposal, state=State.RUNNING)
        self._keep(officer, "execute", running)
        return running

    def end(self, officer: Officer, identifier: str, *, is_done: bool) -> None:
        """How the execution ended."""
        proposal = self._in_state(identifier, State.RUNNING)
        ended = msgspec.structs.replace(proposal, state=State.EXECUTED if is_done else State.FAILED)
        self._keep(officer, "execute", ended)

    def _in_state(self, identifier: str, *states: State) -> Proposal:
        proposal = self.find(identifier)
        if proposal.state not in states:
            raise RequestRefused(f"proposal {identifier} is {proposal.state}, not {' or '.join(states)}")
        return proposal

    def _now(self, proposal: Proposal) -> Proposal:
        is_late = self._clock.unix_s() > proposal.until_unix_s
        if is_late and proposal.state in (State.PROPOSED, State.APPROVED):
            return msgspec.structs.replace(proposal, state=State.EXPIRED)
        return proposal

    def _keep(self, officer: Officer, what: str, proposal: Proposal) -> None:
        """Audit first, then the record, then memory: whatever fails, nothing was approved that is not written down."""
        details = {"action": proposal.action, "digest": proposal.digest, "certificate": officer.fingerprint}
        self._audit.record(_who(officer), what, f"proposal {proposal.id}", proposal.state, details)
        self._shelf.put(proposal)
        self._proposals[proposal.id] = proposal


def _who(officer: Officer) -> str:
    return f"operator {officer.name}"
