"""What both ends of a link that a vendor's KMEs feed share (kms.vendor): effects, the block under way, how it ends."""

from abc import ABC, abstractmethod
from dataclasses import dataclass

from qtrunk.base.errors import AuthenticationFailed, KeyNotFound, QtrunkError
from qtrunk.base.ids import KeyId
from qtrunk.base.ports import Clock, Random
from qtrunk.base.secret import Secret
from qtrunk.base.wire import Message, decode, encode
from qtrunk.crypto import its
from qtrunk.crypto.thrift import Thrift
from qtrunk.kms.spending import AuthPool, Spending
from qtrunk.kms.vendorwords import (
    AUTH_OCTETS,
    Abort,
    Resume,
    Stream,
    Tagged,
    Tags,
    Wait,
    tagged,
)
from qtrunk.stages import Epsilon, QkdKey
from qtrunk.topology import Link, VendorSource

BLOCK_OCTETS_MIN = 4 * AUTH_OCTETS
"""A smaller block would go into authentication alone, or nearly."""
AUTH_TARGET_OCTETS = 16 << 10
"""Blocks top up the authentication key to this level first."""
AUTH_STEP = 16
BLOCK_TIMEOUT_S = 120.0
"""A block whose peer falls silent for so long is given up."""
COLLECT_TIMEOUT_S = 60.0
"""Bob's KME has so long to give what was offered."""
REFUSED_PAUSE_S = 60.0
"""Before the next block where authentication key or epsilon ran out."""
SETTLE_EPSILON = 2 * its.forgery_probability(1 << 16, 2)
SETTLE_TRIES = 5
"""Resolve is said so often with the same key; then the peer must have forgotten it, and it takes a new one."""
BLOCKS_AHEAD_MAX = 1 << 20
"""Bob knows only numbers that Alice used; if hers come from an older copy of her store, his may be so far ahead."""
KNOWN_KEYS_MAX = 1 << 16
"""Keys that are remembered by ID and fingerprint, to notice a KME that gives one twice."""
FINGERPRINT_OCTETS = 8
CHANNEL, MISMATCH, VENDOR = "channel", "key-mismatch", "vendor-kme"
"""Causes of a block's end: a cut connection, which says nothing about its keys; the ends got different keys; Bob's
KME did not give what Alice's gave."""
_CAUSES = frozenset({"authentication", "auth-key", "epsilon", "protocol", VENDOR, MISMATCH})
"""Those that a peer may name."""


@dataclass(frozen=True, slots=True)
class ToPeer:
    """Send these octets as one frame."""

    octets: bytes


@dataclass(frozen=True, slots=True)
class Fetch:
    """Ask the own KME for so many fresh keys, or fewer; then `answered` or `failed`."""

    number: int


@dataclass(frozen=True, slots=True)
class Collect:
    """Ask the own KME for the keys with these IDs, or the first of them; then `answered` or `failed`."""

    key_ids: tuple[KeyId, ...]


@dataclass(frozen=True, slots=True)
class Join:
    """Open this end of the key stream that the peer has opened; there is no answer."""

    ksid: bytes


@dataclass(frozen=True, slots=True)
class Hold:
    """Store this block as pending, durably, before the next effect."""

    key: QkdKey


@dataclass(frozen=True, slots=True)
class Release:
    """Make the held block available."""

    block: int


@dataclass(frozen=True, slots=True)
class Destroy:
    """The block is dead; whatever exists of it goes."""

    block: int
    cause: str
    why: str


@dataclass(frozen=True, slots=True)
class Disconnect:
    """Drop the connection and start again."""

    why: str


VendorEffect = ToPeer | Fetch | Collect | Join | Hold | Release | Destroy | Disconnect


@dataclass(slots=True)
class OpenBlock:
    """The block that is under way."""

    block: int
    tags: Tags
    auth_octets: int
    said: list[bytes]
    deadline_s: float
    material: Secret | None = None
    is_held: bool = False
    """The block was given to Hold and neither released nor destroyed yet."""


class VendorLinkEnd(ABC):
    """What both ends share."""

    def __init__(self, *, link: Link, store: Spending, auth: AuthPool, random: Random, clock: Clock) -> None:
        assert link.vendor is not None
        self._link = link
        self._source: VendorSource = link.vendor
        self._store = store
        self._auth = auth
        self._random = random
        self._clock = clock
        self._connected = False
        self._open: OpenBlock | None = None
        self._not_before_s = 0.0
        """The own KME is not asked until then."""
        self.thrift = Thrift()

    @property
    def _octets(self) -> int:
        return self._source.keys * self._source.key_bits // 8

    @property
    def is_idle(self) -> bool:
        """Whether nothing is under way that time could end."""
        return self._open is None

    def disconnected(self) -> list[VendorEffect]:
        """The channel is gone: a block that this end does not hold dies, one that it holds waits to be settled."""
        self._connected = False
        open_, self._open = self._open, None
        if open_ is None or open_.is_held:
            return []
        return [Destroy(open_.block, CHANNEL, "the classical channel was cut")]

    def _cut_short(self) -> list[Destroy]:
        """The last block, where this end stopped before it held it: its end goes on record."""
        store, link = self._store, self._link.id
        last = store.last_block(link)
        try:
            store.block_record(link, last)
        except KeyNotFound:
            return [Destroy(last, CHANNEL, "this end stopped in the middle of the block")] if last else []
        return []

    def _epsilon(self) -> Epsilon:
        """What a block may be wrong by: as stated, but for what is proven here."""
        source = self._source
        stated = source.epsilon_per_key
        # A message is key IDs in the main: 40 octets each, and room for all else that is said of a block.
        said = its.forgery_probability(40 * source.keys + 4096, 5)
        return Epsilon(
            secret=self._link.distillation.epsilon_secret if stated is None else stated * source.keys,
            correct=its.forgery_probability(self._octets + 512),
            authentic=(AUTH_OCTETS // its.WC_KEY_OCTETS - 1) * said,
        )

    def _key(self, open_: OpenBlock) -> QkdKey:
        assert open_.material is not None
        return QkdKey(
            link=self._link.id,
            block=open_.block,
            material=open_.material,
            auth_octets=open_.auth_octets,
            epsilon=self._epsilon(),
            sifted_bits=0,
            leak_bits=0,
            qber_key=0.0,
            qber_test=0.0,
            proof=self._source.statement,
            authentication="wegman-carter",
            made_unix_s=self._clock.unix_s(),
        )

    def _say(self, word: str, message: Message) -> ToPeer:
        """A word about the open block, tagged together with all that was said before."""
        assert self._open is not None
        self._open.said.append(encode(message))
        return ToPeer(tagged(self._open.said[-1], self._open.tags.tag(word, self._open.said)))

    def _hear(self, word: str, said: Tagged) -> OpenBlock:
        """AuthenticationFailed unless the peer said this about the open block, after the same words as here."""
        assert self._open is not None
        self._open.tags.verify(word, [*self._open.said, said.body], said.mac)
        self._open.said.append(said.body)
        self._open.deadline_s = self._clock.monotonic_s() + BLOCK_TIMEOUT_S
        return self._open

    def _give_up(self, cause: str, why: str) -> list[VendorEffect]:
        """The open block is in doubt."""
        open_ = self._open
        if open_ is None or open_.is_held:
            # A held block may be released at the other end: only Resolve can tell. Cut the connection to ask.
            return [Disconnect(f"link {self._link.id}: {why}")]
        self._open = None
        abort = ToPeer(encode(Abort(block=open_.block, cause=cause, why=why[:300])))
        return [abort, Destroy(open_.block, cause, why)]

    def _aborted(self, message: Abort) -> list[VendorEffect]:
        open_ = self._open
        if open_ is None or open_.block != message.block:
            return []
        if open_.is_held:
            return [Disconnect(f"link {self._link.id} block {open_.block}: the peer says that it gave the block up")]
        self._open = None
        cause = message.cause if message.cause in _CAUSES else "protocol"
        return [Destroy(open_.block, cause, f"the peer gave up: {message.why[:300]}")]

    def _is_overdue(self) -> bool:
        return self._open is not None and self._clock.monotonic_s() > self._open.deadline_s

    def receive(self, octets: bytes) -> list[VendorEffect]:
        """A frame of the peer."""
        try:
            message: Tagged | Resume | Abort | Wait | Stream = decode(octets, Tagged | Resume | Abort | Wait | Stream)
            return self._aborted(message) if isinstance(message, Abort) else self._received(message)
        except AuthenticationFailed as error:
            return self._give_up("authentication", str(error))
        except QtrunkError as error:
            return self._give_up("protocol", str(error))

    @abstractmethod
    def _received(self, message: Tagged | Resume | Wait | Stream) -> list[VendorEffect]: ...
