"""On the way and at the target's end of a relay: pass cargo on, or store it; shares are gathered first.

A relay follows its neighbour's octets and allocates its own in one store transaction, so a crash loses at most the
cargo. End-to-end material is never on a relay's disk; shares that wait for others are in memory alone.
"""

from collections.abc import Collection
from dataclasses import dataclass

import msgspec

from qtrunk.base.errors import KeyExhausted, QtrunkError, WireError
from qtrunk.base.ids import LinkId, NodeId, SaeId, parse_key_id
from qtrunk.base.secret import Secret
from qtrunk.base.wire import encode
from qtrunk.crypto import its
from qtrunk.kms.consume import COLLECTED
from qtrunk.relay import messages as wire
from qtrunk.relay.cargo import keep, needed_of
from qtrunk.relay.effects import Effect, Report, SendKx, Tell
from qtrunk.relay.ground import Ground
from qtrunk.relay.hops import on_wire, parsed, report
from qtrunk.relay.shares import Arrived, Gathering, combine

FORWARD_MEMORY_S = 30.0
"""So long a relay remembers whom to send a completion back to, and the target's node waits for shares."""
GATHERINGS_MAX = 1024


@dataclass(slots=True)
class _Forwarded:
    """A relay that passed through here."""

    back: LinkId
    onward: LinkId
    until_s: float


class Carrier:
    """What comes to one node from others' requests."""

    def __init__(self, ground: Ground) -> None:
        self._ground = ground
        self._forwarded: dict[str, _Forwarded] = {}
        self._gatherings: dict[tuple[str, str], Gathering] = {}
        self._by_note: dict[str, tuple[NodeId, float]] = {}
        """Relays by announced XORs that came to their end here: who is answered in a note, and until when."""

    def is_known(self, relay_id: str) -> bool:
        """Whether this very relay passed here a moment ago."""
        return relay_id in self._forwarded

    def link_down(self, link: LinkId) -> list[Effect]:
        """Relays that wait for an answer over a link get none."""
        effects: list[Effect] = []
        for relay_id, passed in list(self._forwarded.items()):
            if passed.onward == link:
                del self._forwarded[relay_id]
                refusal = _refusal(relay_id, f"link {link}: the neighbour was lost", link)
                effects += self._answer(passed.back, refusal)
        return effects

    def under_way(self, links: Collection[LinkId]) -> int:
        """How many relays that passed here wait for their answer over these links."""
        return sum(passed.back in links or passed.onward in links for passed in self._forwarded.values())

    def tick(self) -> None:
        """Forget what nobody will answer any more."""
        now_s = self._ground.clock.monotonic_s()
        for relay_id in [r for r, passed in self._forwarded.items() if passed.until_s < now_s]:
            del self._forwarded[relay_id]
        for relay_id in [r for r, (_, until_s) in self._by_note.items() if until_s < now_s]:
            del self._by_note[relay_id]
        for key in [k for k, gathering in self._gatherings.items() if gathering.until_s < now_s]:
            self._gatherings.pop(key).wipe()

    def relay(self, link: LinkId, sealed: wire.Sealed, body: wire.KeyRelay) -> list[Effect]:
        """Store the cargo or pass it on; where that fails, the initiator hears of it and need not wait. What is not
        authentic changes nothing (AuthenticationFailed). One flush to the disk for all of it.
        """
        ground = self._ground
        onward = None if body.route[-1] == ground.node else ground.hops.onward(body.route)
        slices = parsed(body.pad, len(body.ciphertext))
        octets: Secret | None = None

        def carry(arrived: Secret) -> SendKx | QtrunkError | bytes | None:
            nonlocal octets
            octets = its.secret_sum(body.ciphertext, arrived.reveal())
            return self._carry(body, octets, onward)

        outcome = ground.hops.receive(link, sealed, slices, carry)
        if octets is not None:
            ground.inquests.note_passed(body, octets, is_last=not isinstance(outcome, SendKx))
        if isinstance(outcome, SendKx):
            until_s = ground.clock.monotonic_s() + FORWARD_MEMORY_S
            self._forwarded[body.relay_id] = _Forwarded(link, outcome.link, until_s)
            return [outcome]
        if isinstance(outcome, QtrunkError):
            return self._refuse(link, body, outcome, onward or link)
        return self._arrived(link, body, octets, outcome)

    def arrived(self, link: LinkId, body: wire.KeyRelay, octets: Secret, answer_to: NodeId) -> list[Effect]:
        """Store a cargo that came by announced XORs; the answer goes to that node in a note."""
        self._by_note[body.relay_id] = (answer_to, self._ground.clock.monotonic_s() + FORWARD_MEMORY_S)
        outcome = self._carry(body, octets, None)
        if isinstance(outcome, QtrunkError):
            return self._refuse(link, body, outcome, link)
        assert not isinstance(outcome, SendKx)
        return self._arrived(link, body, octets, outcome)

    def _arrived(self, link: LinkId, body: wire.KeyRelay, octets: Secret | None, confirm: bytes | None) -> list[Effect]:
        """At the target's node: stored with this confirmation, or a share (None)."""
        if confirm is None:
            assert octets is not None
            return self._gather(link, body, octets)
        done = wire.KeyRelayCompletion(
            relay_id=body.relay_id, is_stored=True, confirm=confirm, reason="", failed_link="", hops=body.hops
        )
        return self._answer(link, done)

    def _carry(self, body: wire.KeyRelay, octets: Secret, onward: LinkId | None) -> SendKx | QtrunkError | bytes | None:
        """Store keys (the confirmation), or encrypt them for the next hop, all or nothing; None: a share is here.

        An error is returned, not raised: the octets that the keys came under stay spent, since another target of the
        batch may hold them as key already.
        """
        ground = self._ground
        try:
            with ground.store.transaction():
                if onward is None:
                    self._check_policy(body)
                    if body.share is not None:
                        return None
                    is_announced = body.relay_id in self._by_note
                    origin = ground.origin(body.initiator)
                    return keep(ground.store, ground.hybrid, body, octets, origin, is_announced=is_announced)
                pad, tag_key = ground.hops.allocate(onward, len(octets))
                relay = msgspec.structs.replace(
                    body,
                    pad=on_wire(pad.slices),
                    ciphertext=its.one_time_pad(octets.reveal(), pad.material.reveal()),
                    hops=[*body.hops, ground.hops.record(onward, pad.slices)],
                )
                return ground.hops.seal(onward, relay, tag_key)
        except QtrunkError as error:
            return error

    def _check_policy(self, body: wire.KeyRelay) -> None:
        """Without this a relay could take mask or shares away, and so know the key of whoever collects it."""
        ground = self._ground
        if ground.is_hybrid(SaeId(body.initiator)) and (body.hybrid is None or ground.hybrid is None):
            raise WireError(f"relay: keys of {body.initiator} must be hybrid")
        needed, _ = ground.routes_demanded([SaeId(body.initiator), *(SaeId(target) for target in body.all_targets)])
        if needed_of(body) < needed:
            raise WireError(f"relay: keys of {body.initiator} must come in shares, {needed} of them needed")

    # ── shares ──────────────────────────────────────────────────────────────────────────────────────────────────────

    def _gather(self, link: LinkId, body: wire.KeyRelay, octets: Secret) -> list[Effect]:
        """One share more: with enough of them, store the cargo and answer over every route that brought one."""
        assert body.share is not None
        key = (body.initiator, body.share.group)
        gathering = self._gatherings.get(key)
        if gathering is None:
            if len(self._gatherings) >= GATHERINGS_MAX:
                self._gatherings.pop(next(iter(self._gatherings))).wipe()
            until_s = self._ground.clock.monotonic_s() + FORWARD_MEMORY_S
            gathering = self._gatherings[key] = Gathering(until_s)
        if link in gathering.arrived:
            octets.wipe()
            return self._refuse(link, body, WireError("share: another one of this cargo came over the same link"), link)
        gathering.arrived[link] = Arrived(link, body, octets)
        if gathering.answer is not None:
            return self._late(gathering, link)
        effects: list[Effect] = []
        if gathering.choose():
            gathering.answer, effects = self._stored(gathering)
        elif gathering.is_whole():
            gathering.answer = _in_doubt(gathering)
        else:
            return []
        wrong = gathering.answer.wrong
        effects += [_changed(LinkId(one), gathering) for one in wrong if gathering.taken]
        for arrived in gathering.arrived.values():
            answer = msgspec.structs.replace(gathering.answer, relay_id=arrived.body.relay_id)
            effects += self._answer(arrived.link, answer)
        return effects

    def _stored(self, gathering: Gathering) -> tuple[wire.KeyRelayCompletion, list[Effect]]:
        """The cargo out of the chosen shares, durable; the answer, and what the operator must hear."""
        came = [gathering.arrived[link] for link in gathering.taken]
        share = came[0].share
        parts = {one.share.number: one.part for one in came}
        wrong = tuple(link for link in gathering.arrived if not gathering.fits(link))
        ground = self._ground
        try:
            octets = combine(parts, share.needed, share.count)
            with ground.store.transaction():
                bodies, origin = [one.body for one in came], ground.origin(came[0].body.initiator)
                is_announced = bodies[0].relay_id in self._by_note
                confirm = keep(
                    *(ground.store, ground.hybrid, bodies[0], octets, origin, bodies, wrong), is_announced=is_announced
                )
        except QtrunkError as error:
            told: list[Effect] = [] if isinstance(error, KeyExhausted) else [report(came[0].link, error)]
            return _refusal("", self._reason(error), came[0].link), told
        done = wire.KeyRelayCompletion(
            relay_id="",
            is_stored=True,
            confirm=confirm,
            reason="",
            failed_link="",
            hops=[hop for one in came for hop in one.body.hops],
            taken=tuple(parts),
            wrong=wrong,
        )
        return done, []

    def _late(self, gathering: Gathering, link: LinkId) -> list[Effect]:
        """A share that was not needed any more: still it may show that its route changed it."""
        assert gathering.answer is not None
        answer = msgspec.structs.replace(gathering.answer, relay_id=gathering.arrived[link].body.relay_id)
        if not gathering.answer.is_stored or gathering.fits(link):
            return self._answer(link, answer)
        wrong = _refusal(answer.relay_id, "the share does not go with the others", link, (link,))
        return [_changed(link, gathering), *self._answer(link, wrong)]

    # ── back ────────────────────────────────────────────────────────────────────────────────────────────────────────

    def completed(self, link: LinkId, sealed: wire.Sealed, body: wire.KeyRelayCompletion) -> list[Effect]:
        """An answer on its way back through here. One flush to the disk for all of it."""
        passed = self._forwarded[body.relay_id]
        if passed.onward != link:
            raise WireError("completion: came over another link than the relay left by")
        with self._ground.store.transaction():
            self._ground.hops.authenticate(link, sealed)
            return self._pass_back(passed, body)

    def _pass_back(self, passed: _Forwarded, body: wire.KeyRelayCompletion) -> list[Effect]:
        del self._forwarded[body.relay_id]
        self._ground.inquests.note_answer(body, is_received=True, is_sent=False)
        return self._answer(passed.back, msgspec.structs.replace(body, reason=body.reason[:500]))

    def voided(self, body: wire.KeyVoid) -> list[Effect]:
        """What the initiator was not given must not wait here, nor behind here."""
        ground = self._ground
        if body.route[-1] != ground.node:
            return [*ground.hops.try_send(ground.hops.onward(body.route), body)]
        if body.segment:
            known = ground.topology.sae(SaeId(body.initiator))
            if known is None or known.node != body.route[0]:
                raise WireError("initiator: must be an SAE of the route's first node")
            initiator, target = SaeId(body.initiator), SaeId(body.target)
            ground.store.pools.close_segment(COLLECTED, initiator, target, body.segment, "voided")
        ground.store.destroy_keys([parse_key_id(key_id) for key_id in body.key_ids], "voided")
        last = ground.hops.between(body.route, len(body.route) - 2)
        for key, gathering in list(self._gatherings.items()):
            arrived = gathering.arrived.get(last)
            if arrived is not None and arrived.body.relay_id == body.relay_id:
                self._gatherings.pop(key).wipe()
        return []

    def _refuse(self, link: LinkId, body: wire.KeyRelay, error: QtrunkError, failed: LinkId) -> list[Effect]:
        """Tell the initiator; what the store says is for this node's operator, the others learn where to look."""
        told = self._answer(link, self.refusal(body, error, failed))
        return [*told, *([] if isinstance(error, KeyExhausted) else [report(link, error)])]

    def refusal(self, body: wire.KeyRelay, error: QtrunkError, failed: LinkId) -> wire.KeyRelayCompletion:
        """What the initiator's node is told where a relay fails here."""
        return _refusal(body.relay_id, self._reason(error), failed)

    def _reason(self, error: QtrunkError) -> str:
        is_short = isinstance(error, KeyExhausted)
        return str(error) if is_short else f"node {self._ground.node} refused the keys; see its alarms"

    def _answer(self, link: LinkId, body: wire.KeyRelayCompletion) -> list[Effect]:
        self._ground.inquests.note_answer(body, is_received=False, is_sent=True)
        if body.relay_id in self._by_note:
            node, _ = self._by_note[body.relay_id]
            return [Tell(node, encode(body), wire.ANNOUNCED_SERVICE)]
        return [*self._ground.hops.try_send(link, body)]


def _refusal(relay_id: str, reason: str, failed: LinkId, wrong: tuple[str, ...] = ()) -> wire.KeyRelayCompletion:
    return wire.KeyRelayCompletion(
        relay_id=relay_id, is_stored=False, confirm=b"", reason=reason, failed_link=failed, hops=[], wrong=wrong
    )


def _in_doubt(gathering: Gathering) -> wire.KeyRelayCompletion:
    """All shares are here, and not enough of them go together."""
    links = tuple(gathering.arrived)
    return _refusal("", "too few of the shares go together", links[0], links)


def _changed(link: LinkId, gathering: Gathering) -> Report:
    way = "-".join(gathering.arrived[link].body.route)
    return Report(link, "RelayTampered", f"the share over {way} does not go with the others: it was changed on its way")
