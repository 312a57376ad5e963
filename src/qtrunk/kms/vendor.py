"""A link whose keys come from a vendor's QKD system: the two ends agree on blocks of the vendor's keys. No I/O.

Each end has a key manager (KME) of the vendor beside it. By ETSI GS QKD 014 V1.1.1 Alice's end gets keys by `enc_keys`,
Bob's the same ones by `dec_keys` with their key IDs. By GS QKD 004 V2.1.1 each end opens its end of one key stream and
takes chunks by index; stream and index make a key ID (node.vendorstream), so that nothing else differs here. What the
keys are worth is the vendor's word; that both ends hold the same ones, and know of each other that they do, is proven
here:

    connect   Bob -> Alice  Resume      the last block number he knows
              Alice -> Bob  Resolve     blocks she holds without knowing if he does; tagged if there are any
              Bob -> Alice  Resolution  what he released and destroyed of them; tagged
    004 only  Alice -> Bob  Stream      the key stream that he shall join; at each connect and when it is another one
    block k   Alice         fetches keys from her KME until there are enough
              Alice -> Bob  Offer       key IDs, a hash of the keys, which authentication key; tagged
              Bob           fetches the keys from his KME and compares their hash with hers
              (Bob -> Alice Wait        his KME is down, perhaps several times)
              Bob -> Alice  Accept      tagged; Bob holds the block (durable) before this goes out
              Alice -> Bob  Confirm     tagged; Alice holds hers before this goes out
              Bob -> Alice  Released    tagged; Bob's is available; Alice's when this verifies

Tags are Wegman-Carter's, under key of the link that is recorded as spent before it is used, one key for each tag. A
label says protocol, word, direction, both nodes, link and block; each tag covers all that was said of the block before.
The hash of the keys is such a tag as well: encrypted with a pad of its own, so that it tells an eavesdropper nothing
about them. Until an end holds a block any doubt destroys it; once it holds one the other end may have released it, so a
doubt cuts the connection and Resolve settles it. One block at a time: a KME is never asked for two things at once by
the link (some stop for ever when both of a pair are asked at the same moment).

A block costs its keys and one portion of authentication key whatever becomes of it, and gives portions of its own
(`auth_octets`) where it succeeds. Thrift (crypto.thrift) makes Alice wait where portions are spent in vain.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field

from qtrunk.base.errors import (
    AuthenticationFailed,
    BudgetSpent,
    KeyExhausted,
    QtrunkError,
    RequestRefused,
    WireError,
)
from qtrunk.base.ids import KeyId, parse_key_id
from qtrunk.base.ports import Clock, Random, SuppliedKey
from qtrunk.base.secret import Secret
from qtrunk.base.wire import decode, encode
from qtrunk.kms.spending import AuthPool, Spending
from qtrunk.kms.vendorend import (
    AUTH_STEP,
    AUTH_TARGET_OCTETS,
    BLOCK_TIMEOUT_S,
    BLOCKS_AHEAD_MAX,
    CHANNEL,
    COLLECT_TIMEOUT_S,
    FINGERPRINT_OCTETS,
    KNOWN_KEYS_MAX,
    MISMATCH,
    REFUSED_PAUSE_S,
    SETTLE_EPSILON,
    SETTLE_TRIES,
    VENDOR,
    Collect,
    Destroy,
    Disconnect,
    Fetch,
    Hold,
    Join,
    OpenBlock,
    Release,
    ToPeer,
    VendorEffect,
    VendorLinkEnd,
)
from qtrunk.kms.vendorwords import (
    AUTH_OCTETS,
    Abort,
    Accept,
    Confirm,
    Offer,
    Released,
    Resolution,
    Resolve,
    Resume,
    Stream,
    Tagged,
    Tags,
    Wait,
    tagged,
)
from qtrunk.topology import Link


class VendorAlice(VendorLinkEnd):
    """The leading end: fetches keys, offers blocks, settles what is open."""

    def __init__(self, *, link: Link, store: Spending, auth: AuthPool, random: Random, clock: Clock) -> None:
        super().__init__(link=link, store=store, auth=auth, random=random, clock=clock)
        self._stock: dict[KeyId, Secret] = {}
        """The vendor's keys for the next block, in order."""
        self._known: dict[KeyId | bytes, None] = {}
        """IDs and fingerprints of the latest keys."""
        self._fingerprint_key = random.octets(32)
        self._stream = b""
        """The key stream that Bob shall join; empty where there are none."""
        self._is_fetching = False
        self._is_paused = False
        self._is_settled = False
        self._peer_last: int | None = None
        """Bob's word that is not answered yet."""
        self._next_block = 1
        self._settling: tuple[list[int], bytes, Tags] | None = None
        """Blocks that are being settled, the words for it and what authenticates them."""
        self._settle_tries = 0
        self._said_s = 0.0
        """When this end began to wait for a word of Bob that settles what is open."""
        self._is_asking = False
        """Resolve was said and is not answered: one answer is looked at, so that a forger has one try for each."""

    def connected(self) -> list[VendorEffect]:
        """The channel is up; Bob speaks first."""
        self._connected, self._is_settled = True, False
        self._said_s = self._clock.monotonic_s()
        return []

    def disconnected(self) -> list[VendorEffect]:
        """See VendorLinkEnd."""
        # A Fetch that stood behind an effect which the disk refused was never carried out: nobody will answer it.
        self._is_settled = self._is_asking = self._is_fetching = False
        self._peer_last = None
        return super().disconnected()

    @property
    def is_idle(self) -> bool:
        """See VendorLinkEnd; nor would a block be begun."""
        is_waiting = self._is_fetching or (self._connected and not self._is_settled)
        return super().is_idle and not is_waiting and (self._is_paused or not self._connected)

    def pause(self, *, is_paused: bool) -> None:
        """Stop or go on making blocks (the pool is full)."""
        self._is_paused = is_paused

    def tick(self) -> list[VendorEffect]:
        """Time-outs, and whatever is due."""
        if self._is_overdue():
            # A connection whose peer says nothing may be dead without knowing it: make a new one.
            given_up = self._give_up("protocol", "the peer fell silent")
            return [*given_up, Disconnect(f"link {self._link.id}: the peer fell silent")]
        if self._peer_last is not None:
            return self._resolve()
        if self._connected and not self._is_settled and self._clock.monotonic_s() > self._said_s + BLOCK_TIMEOUT_S:
            # What would settle the open blocks was lost: a new connection begins it anew.
            return [Disconnect(f"link {self._link.id}: the peer does not settle what is open")]
        return self._next()

    def answered(self, keys: Sequence[SuppliedKey]) -> list[VendorEffect]:
        """Keys that the KME gave for Fetch; WireError where it cannot have meant them, and none of them is kept."""
        self._is_fetching = False
        names = [name for key in keys for name in (key.key_id, self._fingerprint(key.material))]
        is_fresh = len(set(names)) == len(names) and not any(name in self._known for name in names)
        self._known |= dict.fromkeys(names)
        while len(self._known) > 2 * KNOWN_KEYS_MAX:
            del self._known[next(iter(self._known))]
        if any(8 * len(key.material) != self._source.key_bits for key in keys):
            raise WireError("the KME gave keys of another length than asked for")
        if not is_fresh:
            # Whatever else it gave is as doubtful: a generator that stands still, or a store that is read twice.
            self._stock.clear()
            raise WireError("the KME gave a key or a key ID twice")
        self._stock |= {key.key_id: key.material for key in keys}
        return self._next()

    def announce(self, ksid: bytes) -> list[VendorEffect]:
        """The own KME has opened this key stream: Bob shall join it. What is left of another one is of no use."""
        self._stream = ksid
        self._stock.clear()
        return self._announced() if self._connected else []

    def _announced(self) -> list[VendorEffect]:
        return [ToPeer(encode(Stream(ksid=self._stream)))] if self._stream else []

    def failed(self, pause_s: float, *, is_down: bool) -> list[VendorEffect]:
        """The KME gave none; ask again after a pause."""
        self._is_fetching = False
        self._not_before_s = self._clock.monotonic_s() + pause_s
        return []

    def _fingerprint(self, material: Secret) -> bytes:
        """To compare keys without keeping them: a keyed one-way hash that stays in this process."""
        digest = hashlib.blake2b(material.reveal(), key=self._fingerprint_key, digest_size=FINGERPRINT_OCTETS)
        return digest.digest()

    def _next(self) -> list[VendorEffect]:
        now_s = self._clock.monotonic_s()
        is_idle = self._connected and self._is_settled and self._open is None and not self._is_fetching
        if not is_idle or self._is_paused or now_s < max(self._not_before_s, self.thrift.not_before_s):
            return []
        missing = self._source.keys - len(self._stock)
        if missing > 0:
            self._is_fetching = True
            return [Fetch(missing)]
        return self._offer()

    def _offer(self) -> list[VendorEffect]:
        block, source = self._next_block, self._source
        self._store.note_block(self._link.id, block)
        self._next_block = block + 1
        wanted = AUTH_TARGET_OCTETS - self._auth.level_octets()
        auth_octets = min(self._octets // 2, max(AUTH_OCTETS, wanted))
        try:
            portion = self._auth.reserve(self._epsilon().total)
        except (BudgetSpent, KeyExhausted) as error:
            self._not_before_s = self._clock.monotonic_s() + REFUSED_PAUSE_S
            return [Destroy(block, _cause(error), str(error))]
        self.thrift.spent(self._clock.monotonic_s())
        ids = list(self._stock)[: source.keys]
        material = _joined([self._stock.pop(key_id) for key_id in ids])
        tags = Tags(self._link, block, portion.material)
        offer = Offer(
            block=block,
            key_ids=list(ids),
            key_bits=source.key_bits,
            statement=source.statement,
            auth_octets=auth_octets - auth_octets % AUTH_STEP,
            hash=tags.tag("keys", [material.reveal()]),
            auth_block=portion.block,
            auth_offset=portion.offset,
        )
        deadline_s = self._clock.monotonic_s() + BLOCK_TIMEOUT_S
        self._open = OpenBlock(block, tags, offer.auth_octets, [], deadline_s, material)
        return [self._say("offer", offer)]

    def _received(self, message: Tagged | Resume | Wait | Stream) -> list[VendorEffect]:
        if isinstance(message, Resume):
            most = self._store.last_block(self._link.id) + BLOCKS_AHEAD_MAX
            if self._is_settled or message.last_block > most:
                raise WireError("Resume twice on one connection, or with a block number that cannot be")
            self._peer_last = message.last_block
            return [*self._announced(), *self._resolve()]
        if isinstance(message, Wait):
            if self._open is not None and self._open.block == message.block and not self._open.is_held:
                self._open.deadline_s = self._clock.monotonic_s() + BLOCK_TIMEOUT_S
            return []
        if isinstance(message, Stream):
            raise WireError("Alice's end opens the key stream, not Bob's")
        body: Accept | Released | Resolution = decode(message.body, Accept | Released | Resolution)
        if isinstance(body, Resolution):
            return self._conclude(body, message)
        if self._open is None or body.block != self._open.block or isinstance(body, Released) is not self._open.is_held:
            # A block that died here meanwhile; it will there, too.
            return []
        if isinstance(body, Accept):
            open_ = self._hear("accept", message)
            open_.is_held = True
            return [Hold(self._key(open_)), self._say("confirm", Confirm(block=open_.block))]
        open_ = self._hear("released", message)
        self._open = None
        self.thrift.succeeded()
        return [Release(open_.block), *self._next()]

    def _resolve(self) -> list[VendorEffect]:
        assert self._peer_last is not None
        link = self._link.id
        self._next_block = max(self._store.last_block(link), self._peer_last) + 1
        held = self._store.pending(link)
        if not held:
            lost = self._cut_short()
            self._peer_last, self._is_settled = None, True
            return [*lost, ToPeer(tagged(encode(Resolve(held=[])), b"")), *self._next()]
        if self._settling is None or self._settling[0] != held or self._settle_tries >= SETTLE_TRIES:
            if self._clock.monotonic_s() < self.thrift.not_before_s:
                return []  # a later tick answers
            try:
                portion = self._auth.reserve(SETTLE_EPSILON)
            except (BudgetSpent, KeyExhausted) as error:
                self._peer_last = None
                return [Disconnect(f"link {link}: blocks {held} cannot be settled: {error}")]
            self.thrift.spent(self._clock.monotonic_s())
            body = encode(Resolve(held=held, auth_block=portion.block, auth_offset=portion.offset))
            self._settling, self._settle_tries = (held, body, Tags(self._link, 0, portion.material)), 0
        self._peer_last, self._is_asking, self._said_s = None, True, self._clock.monotonic_s()
        self._settle_tries += 1
        # Always the same words for the same blocks: one key must never tag two messages.
        _, body, tags = self._settling
        return [ToPeer(tagged(body, tags.tag("resolve", [body])))]

    def _conclude(self, message: Resolution, said: Tagged) -> list[VendorEffect]:
        if self._settling is None or not self._is_asking:
            raise WireError("Resolution without Resolve")
        self._is_asking = False
        held, body, tags = self._settling
        tags.verify("resolution", [body, said.body], said.mac)
        if sorted(message.released + message.destroyed) != held:
            raise WireError("Resolution does not answer for exactly the held blocks")
        self._settling, self._is_settled = None, True
        self.thrift.succeeded()
        return [
            *(Release(block) for block in message.released),
            *(Destroy(block, CHANNEL, "the peer does not hold this block") for block in message.destroyed),
            *self._next(),
        ]


@dataclass(slots=True)
class _Collecting:
    """What Bob gathers for the open block."""

    offer: Offer
    key_ids: dict[KeyId, None]
    """In the order of the offer."""
    until_s: float
    found: dict[KeyId, Secret] = field(default_factory=dict)


class VendorBob(VendorLinkEnd):
    """The following end: gets what was offered, compares, holds."""

    def __init__(self, *, link: Link, store: Spending, auth: AuthPool, random: Random, clock: Clock) -> None:
        super().__init__(link=link, store=store, auth=auth, random=random, clock=clock)
        self._collecting: _Collecting | None = None
        self._asked: _Collecting | None = None
        """For which the KME is being asked now; it may be dead already."""
        self._settled: tuple[bytes, ToPeer] | None = None
        """The last settlement: Alice may ask the same again when a cut took the answer."""

    def connected(self) -> list[VendorEffect]:
        """The channel is up: say where this end stands."""
        self._connected = True
        return [*self._cut_short(), ToPeer(encode(Resume(last_block=self._store.last_block(self._link.id))))]

    def tick(self) -> list[VendorEffect]:
        """Time-outs, and the KME again where it did not answer."""
        now_s = self._clock.monotonic_s()
        if self._is_overdue():
            given_up = self._give_up("protocol", "the peer fell silent")
            return [*given_up, Disconnect(f"link {self._link.id}: the peer fell silent")]
        gathering = self._gathering()
        if gathering is not None and now_s > gathering.until_s:
            missing = len(gathering.key_ids) - len(gathering.found)
            return self._give_up(VENDOR, f"the KME of Bob's end did not give {missing} of the keys in time")
        return self._collect()

    def answered(self, keys: Sequence[SuppliedKey]) -> list[VendorEffect]:
        """Keys that the KME gave for Collect."""
        asked, self._asked = self._asked, None
        gathering = self._gathering()
        if gathering is None or asked is not gathering:
            return self._collect()
        for key in keys:
            if key.key_id not in gathering.key_ids or 8 * len(key.material) != self._source.key_bits:
                return self._give_up(VENDOR, "the KME of Bob's end gave keys of another length or another ID")
            gathering.found[key.key_id] = key.material
        if len(gathering.found) < len(gathering.key_ids):
            return self._collect()
        return self._compare(gathering)

    def failed(self, pause_s: float, *, is_down: bool) -> list[VendorEffect]:
        """The KME did not give them; ask again after a pause, while it is down for as long as that takes."""
        self._asked = None
        now_s = self._clock.monotonic_s()
        self._not_before_s = now_s + pause_s
        open_, gathering = self._open, self._gathering()
        if open_ is None or gathering is None or not is_down:
            return []
        # An outage would otherwise cost a block of keys and a portion of authentication key every minute.
        gathering.until_s, open_.deadline_s = now_s + COLLECT_TIMEOUT_S, now_s + BLOCK_TIMEOUT_S
        return [ToPeer(encode(Wait(block=open_.block)))]

    def _gathering(self) -> _Collecting | None:
        """What is still gathered, None where its block is over."""
        if self._open is None or self._open.material is not None:
            self._collecting = None
        return self._collecting

    def _collect(self) -> list[VendorEffect]:
        gathering = self._gathering()
        if gathering is None or self._asked is not None or self._clock.monotonic_s() < self._not_before_s:
            return []
        self._asked = gathering
        return [Collect(tuple(key_id for key_id in gathering.key_ids if key_id not in gathering.found))]

    def _compare(self, gathering: _Collecting) -> list[VendorEffect]:
        open_ = self._open
        assert open_ is not None
        material = _joined([gathering.found[key_id] for key_id in gathering.key_ids])
        try:
            open_.tags.verify("keys", [material.reveal()], gathering.offer.hash)
        except AuthenticationFailed:
            return self._give_up(MISMATCH, "the KMEs gave different keys under the same key IDs")
        open_.material, open_.is_held = material, True
        open_.deadline_s = self._clock.monotonic_s() + BLOCK_TIMEOUT_S
        return [Hold(self._key(open_)), self._say("accept", Accept(block=open_.block))]

    def _received(self, message: Tagged | Resume | Wait | Stream) -> list[VendorEffect]:
        if isinstance(message, Stream) and self._source.interface == "etsi004":
            return [Join(message.ksid)]
        if not isinstance(message, Tagged):
            raise WireError(f"Bob does not expect {type(message).__name__}")
        body: Offer | Confirm | Resolve = decode(message.body, Offer | Confirm | Resolve)
        match body:
            case Offer():
                return self._offered(body, message)
            case Resolve():
                return self._resolution(body, message)
            case Confirm():
                if self._open is None or body.block != self._open.block or not self._open.is_held:
                    return []
                open_ = self._hear("confirm", message)
                released = self._say("released", Released(block=open_.block))
                self._open = None
                self.thrift.succeeded()
                return [Release(open_.block), released]

    def _offered(self, offer: Offer, said: Tagged) -> list[VendorEffect]:
        if self._open is not None:
            raise WireError("an offer in the middle of a block")
        key_ids = self._checked(offer)
        now_s = self._clock.monotonic_s()
        try:
            if now_s < self.thrift.not_before_s:
                raise AuthenticationFailed("authentication key was spent in vain: waiting before more is")
            material = self._auth.take(offer.auth_block, offer.auth_offset, self._epsilon().total)
            self.thrift.spent(now_s)
            tags = Tags(self._link, offer.block, material)
            tags.verify("offer", [said.body], said.mac)
        except (AuthenticationFailed, BudgetSpent, KeyExhausted) as error:
            # Nobody knows who offered this: the number is not noted, and there is nothing to destroy.
            abort = Abort(block=offer.block, cause=_cause(error), why=str(error)[:300])
            return [ToPeer(encode(abort))]
        self._store.note_block(self._link.id, offer.block)
        self._open = OpenBlock(offer.block, tags, offer.auth_octets, [said.body], now_s + BLOCK_TIMEOUT_S)
        self._collecting = _Collecting(offer, key_ids, now_s + COLLECT_TIMEOUT_S)
        return self._collect()

    def _checked(self, offer: Offer) -> dict[KeyId, None]:
        """The key IDs, or WireError where the two ends' topologies differ or the offer makes no sense."""
        source = self._source
        if (offer.key_bits, offer.statement, len(offer.key_ids)) != (source.key_bits, source.statement, source.keys):
            raise WireError(
                f"the peer offers {len(offer.key_ids)} keys of {offer.key_bits} bits; give both ends the same topology "
                "file: keys, key_bits, trust and epsilon_per_key of the link's vendor table must agree"
            )
        if offer.block <= self._store.last_block(self._link.id):
            raise WireError(f"block number {offer.block} was used before")
        is_step = offer.auth_octets % AUTH_STEP == 0
        if not AUTH_OCTETS <= offer.auth_octets <= self._octets // 2 or not is_step:
            raise WireError("auth_octets: from one block's need to half of the keys, in steps of 16")
        try:
            key_ids = dict.fromkeys(parse_key_id(text) for text in offer.key_ids)
        except RequestRefused as error:
            raise WireError(str(error)) from error
        if len(key_ids) != source.keys:
            raise WireError("key_ids: one of them twice")
        return key_ids

    def _resolution(self, message: Resolve, said: Tagged) -> list[VendorEffect]:
        store, link = self._store, self._link.id
        if self._open is not None:
            raise WireError("Resolve in the middle of a block")
        pending = store.pending(link)
        gone = [Destroy(block, CHANNEL, "the peer does not hold this block") for block in pending]
        if not message.held:
            return [*gone]
        if self._settled is not None and self._settled[0] == said.body and not pending:
            # The very words again: so is the answer, because one key must never tag two messages.
            return [self._settled[1]]
        if self._clock.monotonic_s() < self.thrift.not_before_s:
            raise AuthenticationFailed("authentication key was spent in vain: waiting before more is")
        tags = Tags(self._link, 0, self._auth.take(message.auth_block, message.auth_offset, SETTLE_EPSILON))
        self.thrift.spent(self._clock.monotonic_s())
        tags.verify("resolve", [said.body], said.mac)
        self.thrift.succeeded()
        released = [block for block in message.held if block in pending or store.is_released(link, block)]
        destroyed = [block for block in message.held if block not in released]
        body = encode(Resolution(released=released, destroyed=destroyed))
        answer = ToPeer(tagged(body, tags.tag("resolution", [said.body, body])))
        self._settled = said.body, answer
        return [
            *(Release(block) for block in message.held if block in pending),
            *(effect for effect in gone if effect.block not in message.held),
            answer,
        ]


def _joined(materials: Sequence[Secret]) -> Secret:
    """The keys one behind the other; they are wiped."""
    joined = Secret(bytes(sum(map(len, materials))))
    view, end = joined.fill(), 0
    for material in materials:
        start, end = end, end + len(material)
        view[start:end] = material.reveal()
        material.wipe()
    return joined


def _cause(error: QtrunkError) -> str:
    match error:
        case BudgetSpent():
            return "epsilon"
        case KeyExhausted():
            return "auth-key"
        case _:
            return "authentication"
