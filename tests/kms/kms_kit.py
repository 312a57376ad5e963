"""A clock that stands, and blocks whose material a test can predict."""

import hashlib

from qtrunk.base.ids import LinkId
from qtrunk.base.secret import Secret
from qtrunk.kms.store import KeyStore
from qtrunk.stages import Epsilon, QkdKey

LINK = LinkId("a-b")


KEK_OCTETS = bytes(range(32))


class StandingClock:
    """Time moves when a test says so."""

    def __init__(self) -> None:
        self.now_s = 1_000.0

    def unix_s(self) -> float:
        return self.now_s

    def monotonic_s(self) -> float:
        return self.now_s


def material_of(block: int, octets: int) -> bytes:
    """What block `block` holds at both ends."""
    return hashlib.shake_256(b"material %d" % block).digest(octets)


def qkd_key(block: int, octets: int, auth_octets: int = 0, link: LinkId = LINK) -> QkdKey:
    return QkdKey(
        link=link,
        block=block,
        material=Secret(material_of(block, octets)),
        auth_octets=auth_octets,
        epsilon=Epsilon(secret=1e-10, correct=1e-15, authentic=1e-20),
        sifted_bits=40_000,
        leak_bits=9_000,
        qber_key=0.011,
        qber_test=0.012,
        proof="test 1",
        authentication="wegman-carter",
        made_unix_s=999.0,
    )


def give_block(store: KeyStore, block: int, octets: int, auth_octets: int = 0) -> None:
    store.hold(qkd_key(block, octets, auth_octets))
    store.release(LINK, block)
