"""The border node's part for SAEs of other nodes: keys that came for a foreign network are handed over to it.

The initiator's node (`node.abroad`) has brought the keys here like any end-to-end key: they lie in the store for their
foreign targets, who have no other hand here than this one. Its note `Export` asks to hand them over; `Exported` says
whether all targets have them, and is repeated until `Given` says whether the initiator does. Where it does not, and
after any doubt, the keys are taken back from the foreign network. Notes may be lost, doubled and late.

Each step is on record first (`kms.interwork.records.Errand`). An errand that was under way when the process stopped is
taken back; nobody was told that it went well.
"""

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Protocol

import msgspec

from qtrunk.base.errors import NotAuthorised, QtrunkError, RequestRefused, WireError
from qtrunk.base.ids import KeyId, NodeId, SaeId, parse_key_id
from qtrunk.base.ports import Clock, SuppliedKey
from qtrunk.base.wire import Message, decode, encode
from qtrunk.kms.interwork.records import ENDED, Errand, Errands, ErrandState
from qtrunk.kms.store import KeyStore
from qtrunk.node.border import NoteCarrier
from qtrunk.relay.messages import KEYS_MAX
from qtrunk.topology import Topology

log = logging.getLogger(__name__)

EXPORT, EXPORTED, GIVEN = "foreign-export", "foreign-exported", "foreign-given"
"""Services of `node.notes`."""
TICK_S = 0.5
RETRY_S = 1.0
RETRY_MAX_S = 300.0
_Name = Annotated[str, msgspec.Meta(max_length=256)]
_Number = Annotated[str, msgspec.Meta(max_length=36)]
_KeyIds = Annotated[list[Annotated[str, msgspec.Meta(max_length=36)]], msgspec.Meta(min_length=1, max_length=KEYS_MAX)]
_Place = tuple[str, str]


class Export(Message, frozen=True, tag="foreign-export"):
    """The initiator's node: hand over these keys, which you hold."""

    number: _Number
    key_ids: _KeyIds
    initiator: _Name
    targets: Annotated[list[_Name], msgspec.Meta(min_length=1, max_length=64)]


class Exported(Message, frozen=True, tag="foreign-exported"):
    """The border node: all targets have all keys, or they never will."""

    number: _Number
    key_ids: _KeyIds
    is_relayed: bool
    why: Annotated[str, msgspec.Meta(max_length=500)] = ""


class Given(Message, frozen=True, tag="foreign-given"):
    """The initiator's node: its SAE was given these keys, or never will be."""

    number: _Number
    key_ids: _KeyIds
    is_given: bool


class Out(Protocol):
    """Gives keys to foreign key managers (`node.interwork.Interworking`)."""

    async def export(self, keys: Sequence[SuppliedKey], initiator: SaeId, targets: Sequence[SaeId]) -> None:
        """Return when all targets have all keys; RouteUnavailable when they do not and will not."""

    def take_back(self, key_ids: Sequence[KeyId], targets: Sequence[SaeId]) -> None:
        """Void keys that were exported, durably: also again, and such as never were."""


@dataclass(slots=True)
class _Open:
    errand: Errand
    next_s: float = 0.0
    pause_s: float = RETRY_S
    work: asyncio.Task[None] | None = None


class Onward:
    """What a border node does for SAEs of other nodes."""

    def __init__(
        self,
        node: NodeId,
        topology: Topology,
        store: KeyStore,
        clock: Clock,
        notes: NoteCarrier,
        out: Out,
        errands: Errands,
    ) -> None:
        self._node = node
        self._topology = topology
        self._store = store
        self._clock = clock
        self._notes = notes
        self._out = out
        self._errands = errands
        self._open = {_place(errand): _Open(errand) for errand in errands.open_errands()}
        notes.serve(EXPORT, self._asked)
        notes.serve(GIVEN, self._heard)

    async def keep_ticking(self) -> None:
        """Go on with what was under way, and with what is; for ever."""
        while True:
            self.tick()
            await asyncio.sleep(TICK_S)

    def tick(self) -> None:
        """What is due: outcomes that are not confirmed are told again, what cannot be kept is taken back."""
        now_s = self._clock.monotonic_s()
        for one in list(self._open.values()):
            if one.errand.state is ErrandState.WANTED and one.work is not None:
                if not one.work.done():
                    continue
                one.work.result()  # what it did not expect is a bug, and the node must stop
            if now_s < one.next_s:
                continue
            one.next_s, one.pause_s = now_s + one.pause_s, min(2 * one.pause_s, RETRY_MAX_S)
            try:
                if one.errand.state is ErrandState.RELAYED:
                    self._tell(one.errand)
                else:
                    self._withdraw(one.errand)
            except QtrunkError as error:
                # Tried again; the record says what is left to do.
                log.warning("keys of node %s for a foreign network: %s", one.errand.node, error)

    async def stop(self) -> None:
        """Stop at once: what is under way is taken back after the next start."""
        running = [one.work for one in self._open.values() if one.work is not None]
        for work in running:
            work.cancel()
        await asyncio.gather(*running, return_exceptions=True)

    # ── what the initiator's node says ──────────────────────────────────────────────────────────────────────────────

    def _asked(self, sender: NodeId, octets: bytes) -> None:
        """Take an errand on, once; say again how one ended."""
        said = decode(octets, Export)
        errand = Errand(
            node=sender,
            number=said.number,
            key_ids=_parsed(sender, said.key_ids),
            initiator=SaeId(said.initiator),
            targets=tuple(SaeId(target) for target in said.targets),
            state=ErrandState.WANTED,
        )
        self._check(errand)
        known = self._known(_place(errand))
        if known is None:
            self._begin(errand)
        elif replace(known, state=ErrandState.WANTED) != errand:
            raise WireError(f"node {sender}: another errand had this number")
        elif known.state is not ErrandState.WANTED:
            self._tell(known)

    def _check(self, errand: Errand) -> None:
        """Only keys of the sender's SAEs, only for SAEs of foreign networks here."""
        initiator = self._topology.sae(errand.initiator)
        if initiator is None or initiator.node != errand.node:
            raise NotAuthorised(f"node {errand.node} sends keys of {errand.initiator}, which is not its SAE")
        for target in errand.targets:
            if self._topology.sae(target) is not None or self._topology.end_of(target) != self._node:
                raise NotAuthorised(f"node {errand.node} sends keys for {target}, which is in no foreign network here")
        if any(len(set(names)) < len(names) for names in (errand.key_ids, errand.targets)):
            raise WireError(f"node {errand.node}: key_ids and targets of an errand, each once")

    def _begin(self, errand: Errand) -> None:
        """On record, then spent here, then handed over."""
        if not all(self._is_here(key_id, errand) for key_id in errand.key_ids):
            self._tell(replace(errand, state=ErrandState.FAILED), f"node {self._node} does not hold the keys")
            return
        self._keep(errand)
        keys: list[SuppliedKey] = []
        with self._store.transaction():
            for target in errand.targets:
                _wipe(keys)
                keys = self._store.collect(target, errand.initiator, errand.key_ids)
        one = self._open[_place(errand)]
        one.work = asyncio.create_task(self._hand_over(errand, keys))

    def _is_here(self, key_id: KeyId, errand: Errand) -> bool:
        """Whether a key waits here from this initiator for just these targets; no other is handed over."""
        found = self._store.receipt(key_id) or {}
        stored, recipients = found.get("stored"), found.get("recipients")
        if not isinstance(stored, dict) or not isinstance(recipients, list):
            return False
        waiting = {one["target"] for one in recipients if one["state"] == "pending"}
        return (stored["initiator"], stored["state"], waiting) == (errand.initiator, "stored", set(errand.targets))

    async def _hand_over(self, errand: Errand, keys: Sequence[SuppliedKey]) -> None:
        is_relayed, why = False, ""
        try:
            if not self._is_current(errand):
                return
            await self._out.export(keys, errand.initiator, errand.targets)
            is_relayed = True
        except QtrunkError as error:
            why = str(error)
        finally:
            _wipe(keys)
        if not self._is_current(errand):
            # Withdrawn meanwhile.
            return
        ended = replace(errand, state=ErrandState.RELAYED if is_relayed else ErrandState.FAILED)
        try:
            self._keep(ended)
            self._tell(ended, why)
        except QtrunkError as error:
            # Where it is not on record nobody is told, and the next tick takes the keys back; else it tells again.
            log.warning("keys of node %s for a foreign network: %s", errand.node, error)

    def _heard(self, sender: NodeId, octets: bytes) -> None:
        """Whether the initiator has the keys. Those that it will not get are refused here and taken back there."""
        said = decode(octets, Given)
        errand = self._known((sender, said.number))
        if errand is None:
            if not said.is_given:
                self._store.void_keys(_parsed(sender, said.key_ids), lambda sae: self._is_of(sae, sender))
        elif said.is_given:
            if errand.state is ErrandState.RELAYED:
                self._keep(replace(errand, state=ErrandState.GIVEN))
        elif errand.state in (ErrandState.WANTED, ErrandState.RELAYED):
            self._withdraw(errand)

    def _withdraw(self, errand: Errand) -> None:
        """Dead here, taken back there; on record before and after, so that it is done once more after a crash."""
        if errand.state is not ErrandState.WITHDRAWING:
            errand = replace(errand, state=ErrandState.WITHDRAWING)
            self._keep(errand)
        # Whose keys they are was looked at when the errand was taken on; its SAE may be gone since.
        self._store.void_keys(errand.key_ids, lambda _initiator: True)
        self._out.take_back(errand.key_ids, errand.targets)
        self._keep(replace(errand, state=ErrandState.FAILED))

    def _is_of(self, sae: SaeId, node: NodeId) -> bool:
        known = self._topology.sae(sae)
        return known is not None and known.node == node

    # ── small things ────────────────────────────────────────────────────────────────────────────────────────────────

    def _known(self, place: _Place) -> Errand | None:
        """What is in mind first: where a write was said to fail the record may be further, and nobody is told of it."""
        if place in self._open:
            return self._open[place].errand
        recorded = self._errands.errand(*place)
        if recorded is not None and recorded.state not in ENDED:
            # The write of its beginning was said to fail, so nobody works on it: the next tick takes it back.
            self._open[place] = _Open(recorded)
        return recorded

    def _keep(self, errand: Errand) -> None:
        """On record first, then in mind."""
        self._errands.put_errand(errand)
        place = _place(errand)
        if errand.state in ENDED:
            self._open.pop(place, None)
        else:
            before = self._open.get(place)
            self._open[place] = _Open(
                errand, self._clock.monotonic_s() + RETRY_S, work=None if before is None else before.work
            )

    def _is_current(self, errand: Errand) -> bool:
        one = self._open.get(_place(errand))
        return one is not None and one.errand == errand

    def _tell(self, errand: Errand, why: str = "") -> None:
        is_relayed = errand.state in (ErrandState.RELAYED, ErrandState.GIVEN)
        said = Exported(number=errand.number, key_ids=list(errand.key_ids), is_relayed=is_relayed, why=why[:500])
        self._notes.tell(NodeId(errand.node), EXPORTED, encode(said))


def _wipe(keys: Sequence[SuppliedKey]) -> None:
    for key in keys:
        key.material.wipe()


def _place(errand: Errand) -> _Place:
    return errand.node, errand.number


def _parsed(sender: NodeId, key_ids: Sequence[str]) -> tuple[KeyId, ...]:
    try:
        return tuple(parse_key_id(key_id) for key_id in key_ids)
    except RequestRefused as error:
        raise WireError(f"note of node {sender}: {error}") from error
