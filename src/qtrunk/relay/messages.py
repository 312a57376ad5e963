"""What key managers say to their neighbours (reference point Kx; names after ITU-T Q.4163), sealed hop by hop.

Every message is a body inside `Sealed`: a Wegman-Carter tag over the body's octets as sent, under 32 octets of the
link's own key, taken from the sender's direction. The label holds sender, receiver and link, and an octet of key is
followed only once, so a message cannot be reflected, replayed or moved to another link.
"""

from qtrunk.base.wire import Message

KEYS_MAX = 128
KEY_BITS_MAX = 8192
HOPS_MAX = 64
SlicesOnWire = list[tuple[int, int, int]]
"""Block, offset, octets of each piece of link key."""


class Sealed(Message, frozen=True, tag="sealed"):
    """A body and its tag."""

    body: bytes
    auth: SlicesOnWire
    tag: bytes


class KeyRelay(Message, frozen=True, tag="key-relay"):
    """Forward: a batch of end-to-end keys for the targets at the last node of the route."""

    relay_id: str
    route: list[str]
    initiator: str
    targets: list[str]
    all_targets: list[str]
    key_ids: list[str]
    key_bits: int
    expires_unix_s: float
    pad: SlicesOnWire
    ciphertext: bytes
    hops: list[dict[str, object]]


class KeyRelayCompletion(Message, frozen=True, tag="key-relay-completion"):
    """Back: the keys are stored at the target's node, or what went wrong where."""

    relay_id: str
    is_stored: bool
    reason: str
    failed_link: str
    hops: list[dict[str, object]]


class KeyVoid(Message, frozen=True, tag="key-void"):
    """Forward: the initiator was not given these keys; whoever stores them destroys them."""

    relay_id: str
    route: list[str]
    key_ids: list[str]


class PoolGrantRequest(Message, frozen=True, tag="pool-grant-request"):
    """This end's direction runs low: the peer may give of its own."""

    wanted_octets: int


class PoolGrant(Message, frozen=True, tag="pool-grant"):
    """Octets of the sender's direction that the receiver may spend from now on."""

    slices: SlicesOnWire


KxMessage = KeyRelay | KeyRelayCompletion | KeyVoid | PoolGrantRequest | PoolGrant
