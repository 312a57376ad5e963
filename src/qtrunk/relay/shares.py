"""A cargo as shares that travel over disjoint routes: fewer than `needed` of them say nothing at all of it.

Where all shares are needed, the cargo is their XOR; else they are Shamir's (`crypto.shamir`). A share on its way is

    salt | keys that check the other shares | tags of this share under the others' keys | its part of the cargo

Every two shares so vouch for each other (T. Rabin, M. Ben-Or, STOC 1989, 73): a relay that changes one of them, or any
word around it, can do so unnoticed with the probability of a forged Wegman-Carter tag, since the keys came by a route
that it is not on. So `needed` shares that all vouch for each other are right, as long as fewer than `needed` routes are
corrupt: one of them came untouched, and vouches for the rest. Others may be wrong or missing.

The salt is known to nobody but who knows the share, and lets digests of it (`digest`) be shown in an inquest: they
bind who states them, and hide the share statistically (S. Halevi, S. Micali, CRYPTO 1996, 201).

Pure functions. Errors: ValueError where numbers do not fit.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations

import msgspec
import numpy as np

from qtrunk.base.errors import AuthenticationFailed
from qtrunk.base.ids import LinkId
from qtrunk.base.secret import Secret
from qtrunk.base.wire import encode
from qtrunk.crypto import its, shamir
from qtrunk.relay import messages as wire

SALT_OCTETS = 64
_VOUCH_LABEL = b"qtrunk relay share 1"
_DIGEST_LABEL = b"qtrunk relay digest 1"


def overhead_octets(count: int) -> int:
    """What a share of so many has before its part of the cargo; a cargo that is not shared has nothing."""
    return 0 if count == 1 else SALT_OCTETS + (count - 1) * (its.WC_KEY_OCTETS + its.TAG_OCTETS)


def share_words(body: wire.KeyRelay) -> bytes:
    """What a relay of a share is about, the same for all shares of a cargo; its words may be changed by no relay."""
    share = None if body.share is None else msgspec.structs.replace(body.share, number=0)
    return encode(
        msgspec.structs.replace(body, pad=[], ciphertext=b"", hops=[], hybrid=None, relay_id="", route=[], share=share)
    )


def make(pads: Sequence[Secret], needed: int, cargo: Secret | None) -> tuple[list[Secret], Secret]:
    """The parts of a cargo by share, and the cargo. As many of them as can be are the pads themselves.

    `cargo` None: whatever the pads make of it.
    """
    count = len(pads)
    if not 1 <= needed <= count <= wire.ROUTES_MAX:
        raise ValueError(f"shares: 1 <= needed <= count <= {wire.ROUTES_MAX} must hold")
    if needed == count:
        if cargo is None:
            return list(pads), _sum(pads)
        return [*pads[:-1], _sum([cargo, *pads[:-1]])], cargo
    points = dict(enumerate(pads[: needed if cargo is None else needed - 1], start=1))
    if cargo is not None:
        points[shamir.SECRET] = cargo
    parts = [points.get(index) or shamir.value_at(points, index) for index in range(1, count + 1)]
    return parts, cargo or shamir.value_at(points, shamir.SECRET)


def combine(parts: Mapping[int, Secret], needed: int, count: int) -> Secret:
    """The cargo, out of `needed` parts by share number."""
    if len(parts) != needed:
        raise ValueError(f"shares: {needed} are needed, {len(parts)} given")
    return _sum(list(parts.values())) if needed == count else shamir.combine(parts)


def dressed(pads: Sequence[Secret], parts: Sequence[Secret], bodies: Sequence[wire.KeyRelay]) -> list[Secret]:
    """The shares as they travel in these relays: salt and keys out of the pads, tags, parts."""
    count = len(pads)
    made = [Secret(pad.reveal()) for pad in pads]
    before = overhead_octets(count)
    for share, part in zip(made, parts, strict=True):
        share.fill()[before:] = part.reveal()
    for mine in range(1, count + 1):
        for other in range(1, count + 1):
            if other != mine:
                place = _tag_place(mine, other, count)
                key = _key(made[other - 1], other, mine)
                tag = its.tag(key, _label(mine, other, bodies[mine - 1]), _covered(made[mine - 1], count))
                made[mine - 1].fill()[place : place + its.TAG_OCTETS] = tag
    return made


@dataclass(slots=True, eq=False)
class Arrived:
    """A share at the target's node, and where its answer goes."""

    link: LinkId
    body: wire.KeyRelay
    octets: Secret

    @property
    def share(self) -> wire.Share:
        """What it says of itself."""
        assert self.body.share is not None
        return self.body.share

    @property
    def part(self) -> Secret:
        """Its part of the cargo."""
        return Secret(self.octets.reveal()[overhead_octets(self.share.count) :])


@dataclass(slots=True, eq=False)
class Gathering:
    """The shares of one cargo that have arrived."""

    until_s: float
    arrived: dict[LinkId, Arrived] = field(default_factory=dict)
    """By the link they came over, which is all that the target's node knows for sure: routes share none."""
    answer: wire.KeyRelayCompletion | None = None
    """Once the cargo is stored, or is known to be in doubt."""
    taken: tuple[LinkId, ...] = ()
    """The shares that the cargo was made of, in the order of their numbers."""
    _agree: dict[tuple[LinkId, LinkId], bool] = field(default_factory=dict)

    def choose(self) -> bool:
        """Take as many shares as are needed that all vouch for each other; whether there are so many."""
        for needed in {arrived.share.needed for arrived in self.arrived.values()}:
            for links in combinations(self.arrived, needed):
                # Whoever vouches for another speaks of the same number of shares.
                if self.arrived[links[0]].share.needed == needed and self._all_agree(links):
                    self.taken = tuple(sorted(links, key=lambda link: self.arrived[link].share.number))
                    return True
        return False

    def is_whole(self) -> bool:
        """Whether no more shares can come, by the word of all that came."""
        return {arrived.share.count for arrived in self.arrived.values()} == {len(self.arrived)}

    def fits(self, link: LinkId) -> bool:
        """Whether a share vouches for those that the cargo was made of, and they for it."""
        return all(other == link or self._agrees(link, other) for other in self.taken)

    def _all_agree(self, links: Sequence[LinkId]) -> bool:
        return all(self._agrees(one, other) for one, other in combinations(links, 2))

    def _agrees(self, one: LinkId, other: LinkId) -> bool:
        pair = (min(one, other), max(one, other))
        if pair not in self._agree:
            self._agree[pair] = _agree(self.arrived[pair[0]], self.arrived[pair[1]])
        return self._agree[pair]

    def wipe(self) -> None:
        """Nothing of the shares is needed any more."""
        for arrived in self.arrived.values():
            arrived.octets.wipe()


def digest(body: wire.KeyRelay, octets: Secret) -> bytes:
    """What binds a node that states it to a relay's words and octets, whatever hop they came over."""
    said = encode(msgspec.structs.replace(body, pad=[], ciphertext=b"", hops=[]))
    made = hashlib.sha256(_DIGEST_LABEL + len(said).to_bytes(4, "big") + said)
    made.update(octets.reveal())
    return made.digest()


def answer_digest(body: wire.KeyRelayCompletion) -> bytes:
    """The same for what travels back; a relay may cut the reason short."""
    return hashlib.sha256(_DIGEST_LABEL + encode(msgspec.structs.replace(body, reason=""))).digest()


def _agree(one: Arrived, other: Arrived) -> bool:
    if one.share.number == other.share.number or len(one.octets) != len(other.octets):
        return False
    if share_words(one.body) != share_words(other.body) or one.body.hybrid != other.body.hybrid:
        return False
    count = one.share.count
    try:
        for mine, checker in ((one, other), (other, one)):
            number, by = mine.share.number, checker.share.number
            place = _tag_place(number, by, count)
            claimed = mine.octets.reveal()[place : place + its.TAG_OCTETS]
            key = _key(checker.octets, by, number)
            its.verify(key, _label(number, by, mine.body), _covered(mine.octets, count), claimed)
    except AuthenticationFailed:
        return False
    return True


def _label(number: int, by: int, body: wire.KeyRelay) -> bytes:
    """All words of a share's relay that no relay may change, and whose key checks it."""
    said = encode(msgspec.structs.replace(body, pad=[], ciphertext=b"", hops=[]))
    return _VOUCH_LABEL + bytes([number, by]) + said


def _covered(share: Secret, count: int) -> list[memoryview]:
    """Salt and part: the tags cannot cover themselves, and a changed key is noticed by its use."""
    octets = share.reveal()
    return [octets[:SALT_OCTETS], octets[overhead_octets(count) :]]


def _key(share: Secret, number: int, of: int) -> memoryview:
    """In share `number`: the key that checks share `of`."""
    start = SALT_OCTETS + _row(number, of) * its.WC_KEY_OCTETS
    return share.reveal()[start : start + its.WC_KEY_OCTETS]


def _tag_place(number: int, by: int, count: int) -> int:
    """In share `number`: where its tag under the key in share `by` stands."""
    return SALT_OCTETS + (count - 1) * its.WC_KEY_OCTETS + _row(number, by) * its.TAG_OCTETS


def _row(number: int, other: int) -> int:
    """The place of another share among all but this one, from 0."""
    return other - 1 - (other > number)


def _sum(parts: Sequence[Secret]) -> Secret:
    made = Secret(parts[0].reveal())
    out = np.frombuffer(made.fill(), np.uint8)
    for part in parts[1:]:
        np.bitwise_xor(out, np.frombuffer(part.reveal(), np.uint8), out=out)
    return made
