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
from qtrunk.kms.interwork.records import Errand, Errands, ErrandState
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
        for place, one in list(self._open.items()):
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
                    self._withdraw(place)
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
        known = self._topology.sae(errand.initiator)
        if known is None or known.node != sender:
            raise NotAuthorised(f"node {sender} sends keys of {errand.initiator}, which is not its SAE")
        recorded = self._errands.errand(sender, said.number)
        if recorded is None:
            self._begin(errand)
        elif recorded.key_ids != errand.key_ids:
            raise WireError(f"node {sender}: another errand had this number")
        elif recorded.state is not ErrandState.WANTED:
            self._tell(recorded)

    def _begin(self, errand: Errand) -> None:
        """On record, then spent here, then handed over."""
        if not all(self._is_here(key_id, errand.initiator) for key_id in errand.key_ids):
            self._tell(replace(errand, state=ErrandState.FAILED), f"node {self._node} does not hold the keys")
            return
        self._keep(errand)
        keys: list[SuppliedKey] = []
        with self._store.transaction():
            for target in errand.targets:
                keys = self._store.collect(target, errand.initiator, errand.key_ids)
        one = self._open[_place(errand)]
        one.work = asyncio.create_task(self._hand_over(errand, keys))

    def _is_here(self, key_id: KeyId, initiator: SaeId) -> bool:
        """Whether a key of this initiator waits here; what is dead, or anyone else's, is none to be handed over."""
        stored = (self._store.receipt(key_id) or {}).get("stored")
        return isinstance(stored, dict) and (stored["initiator"], stored["state"]) == (initiator, "stored")

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
            for key in keys:
                key.material.wipe()
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
        errand = self._errands.errand(sender, said.number)
        if errand is None:
            if not said.is_given:
                self._void(_parsed(sender, said.key_ids), sender)
        elif said.is_given:
            if errand.state is ErrandState.RELAYED:
                self._keep(replace(errand, state=ErrandState.GIVEN))
        elif errand.state in (ErrandState.WANTED, ErrandState.RELAYED):
            self._withdraw(_place(errand))

    def _withdraw(self, place: _Place) -> None:
        """Dead here, taken back there; on record before and after, so that it is done once more after a crash."""
        errand = self._open[place].errand
        if errand.state is not ErrandState.WITHDRAWING:
            errand = replace(errand, state=ErrandState.WITHDRAWING)
            self._keep(errand)
        self._void(errand.key_ids, NodeId(errand.node))
        self._out.take_back(errand.key_ids, errand.targets)
        self._keep(replace(errand, state=ErrandState.FAILED))

    def _void(self, key_ids: Sequence[KeyId], node: NodeId) -> None:
        def is_its(sae: SaeId) -> bool:
            known = self._topology.sae(sae)
            return known is not None and known.node == node

        self._store.void_keys(key_ids, is_its)

    # ── small things ────────────────────────────────────────────────────────────────────────────────────────────────

    def _keep(self, errand: Errand) -> None:
        """On record first, then in mind."""
        self._errands.put_errand(errand)
        place = _place(errand)
        if errand.state in (ErrandState.GIVEN, ErrandState.FAILED):
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


def _place(errand: Errand) -> _Place:
    return errand.node, errand.number


def _parsed(sender: NodeId, key_ids: Sequence[str]) -> tuple[KeyId, ...]:
    try:
        return tuple(parse_key_id(key_id) for key_id in key_ids)
    except RequestRefused as error:
        raise WireError(f"note of node {sender}: {error}") from error
