"""What a relay carries, at its two ends: keys or a segment, the mask of hybrid keys, the confirmation of both ends.

The octets that travel are the QKD part of the cargo. With a hybrid seed (`crypto.hybrid`) both ends add its mask, and
only the sum is key. CONFIRM_OCTETS of the sum are never given to anyone: they key a Wegman-Carter tag of all the rest,
which the target's node sends back, so that the initiator's node gives out nothing that the two do not hold alike,
whatever is done to it by those who do not know the sum. A relay of a cargo that is neither hybrid nor in shares does
know it, and could make the ends differ unnoticed, as it could give the key away.
"""

from collections.abc import Sequence

import msgspec

from qtrunk.base.ids import SaeId, parse_key_id
from qtrunk.base.secret import Secret
from qtrunk.base.wire import encode
from qtrunk.crypto import hybrid as kem
from qtrunk.crypto import its
from qtrunk.kms.consume import COLLECTED
from qtrunk.kms.poolstate import HEAD_OCTETS
from qtrunk.relay import messages as wire
from qtrunk.relay.ports import HybridPort, KeyStorePort
from qtrunk.relay.shares import share_words
from qtrunk.topology import ANNOUNCED, ForeignNetwork

CONFIRM_OCTETS = its.WC_KEY_OCTETS
_CONFIRM_LABEL = b"qtrunk relay confirm 1"


def relay_context(body: wire.KeyRelay) -> bytes:
    """What this relay is about, of words that no relay node may change: bound into seed and confirmation.

    The same for all shares of a cargo.
    """
    if body.share is not None:
        return share_words(body)
    return encode(msgspec.structs.replace(body, pad=[], ciphertext=b"", hops=[], hybrid=None))


def cargo_context(body: wire.KeyRelay) -> bytes:
    """What the cargo is, the same for all its targets: bound into the mask."""
    return encode(
        msgspec.structs.replace(
            body, pad=[], ciphertext=b"", hops=[], hybrid=None, relay_id="", route=[], targets=[], share=None
        )
    )


def masked(octets: Secret, seed: Secret | None, body: wire.KeyRelay) -> Secret:
    """The cargo out of its QKD part."""
    return octets if seed is None else kem.masked(octets, seed, cargo_context(body))


def confirmation(cargo: Secret, body: wire.KeyRelay, taken: Sequence[int] = (), wrong: Sequence[str] = ()) -> bytes:
    """The tag that both ends compute of what they hold; of shares, with those it was made of and those that were wrong.

    No relay of a share can make it, because it knows no key of it.
    """
    start = HEAD_OCTETS - CONFIRM_OCTETS if body.segment else 0
    octets = cargo.reveal()
    key, rest = octets[start : start + CONFIRM_OCTETS], [octets[:start], octets[start + CONFIRM_OCTETS :]]
    verdict = b"" if body.share is None else msgspec.msgpack.encode((taken, wrong))
    return its.tag(key, _CONFIRM_LABEL + relay_context(body) + verdict, rest)


def keys_of(cargo: Secret, key_bits: int) -> list[Secret]:
    """The keys of a cargo that is not a segment."""
    step = key_bits // 8
    with cargo.reveal() as octets:
        return [Secret(octets[place : place + step]) for place in range(CONFIRM_OCTETS, len(cargo), step)]


def origin_of(network: ForeignNetwork | None) -> str:
    """Where a key was before it came into this network, for receipts; empty where it was made here."""
    return "" if network is None else f"foreign network {network.id}: what it states, not known here"


def keep(
    store: KeyStorePort,
    hybrid: HybridPort | None,
    body: wire.KeyRelay,
    octets: Secret,
    origin: str = "",
    shares: Sequence[wire.KeyRelay] = (),
    wrong: Sequence[str] = (),
    *,
    is_announced: bool = False,
) -> bytes:
    """Store a cargo at its target's node, durable on return; the confirmation.

    `shares`: the relays of the shares that it was made of, where it was; `wrong` as in the answer; `is_announced`: it
    came by announced XORs.
    """
    seed = None
    if body.hybrid is not None and hybrid is not None:
        seed = hybrid.unwrap(body.route[0], body.hybrid, relay_context(body))
    cargo = masked(octets, seed, body)
    came = shares or [body]
    hops = [hop for relay in came for hop in relay.hops]
    how = receipt([relay.route for relay in came], hops, protection(body.hybrid), origin, needed_of(body), is_announced)
    initiator, targets = SaeId(body.initiator), [SaeId(target) for target in body.targets]
    if body.segment:
        store.pools.add(COLLECTED, initiator, targets[0], body.segment, cargo, how, body.expires_unix_s)
    else:
        keys = keys_of(cargo, body.key_bits)
        store.store_keys(
            list(zip([parse_key_id(key_id) for key_id in body.key_ids], keys, strict=True)),
            *(initiator, targets, [SaeId(target) for target in body.all_targets], body.key_bits, how),
            body.expires_unix_s,
        )
        for key in keys:
            key.wipe()
    return confirmation(cargo, body, [relay.share.number for relay in shares if relay.share is not None], wrong)


def needed_of(body: wire.KeyRelay) -> int:
    """How many routes must be broken into for the QKD part of a cargo."""
    return 1 if body.share is None else body.share.needed


def protection(hybrid: kem.Wrapped | None) -> str:
    """What an end-to-end key is made of, for receipts."""
    return "qkd" if hybrid is None else f"qkd + {hybrid.suite}"


def receipt(
    routes: Sequence[Sequence[str]],
    hops: Sequence[wire.Hop],
    protection: str,
    origin: str = "",
    needed: int = 1,
    is_announced: bool = False,
) -> dict[str, object]:
    """What the store keeps of how a key came: JSON values. `needed` where it came in shares, and so many give it."""
    return {
        **({"origin": origin} if origin else {}),
        "routes": [list(nodes) for nodes in routes],
        "hops": msgspec.to_builtins(list(hops)),
        "epsilon": sum((hop.epsilon for hop in hops), 0.0),
        "protection": protection,
        **({"needed": needed} if needed > 1 else {}),
        **({"relay": ANNOUNCED} if is_announced else {}),
    }
