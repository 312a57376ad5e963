"""A link end's choice between key and signatures: the policy decides, and nobody from outside."""

import pytest

from qtrunk.base.errors import AuthenticationFailed, BudgetSpent, ConfigError, KeyExhausted
from qtrunk.base.secret import Secret
from qtrunk.distil.authentication import AUTH_OCTETS, ML_DSA, SIGNED, WEGMAN_CARTER
from qtrunk.kms.key import AuthReservation
from qtrunk.node.authentication import LinkAuthentication, load_signatures
from qtrunk.node.signing import make_signing_key


class Pool:
    """So many portions of key; charges are kept."""

    def __init__(self, portions):
        self.portions, self.charged = portions, []

    def reserve(self, epsilon):
        if not self.portions:
            raise KeyExhausted("none left")
        self.portions -= 1
        self.charged.append(epsilon)
        return AuthReservation(block=1, offset=0, material=Secret(bytes(AUTH_OCTETS)))

    def take(self, _block, _offset, epsilon):
        self.portions -= 1
        self.charged.append(epsilon)
        return Secret(bytes(AUTH_OCTETS))

    def charge(self, epsilon):
        if epsilon > 1:
            raise BudgetSpent("too much")
        self.charged.append(epsilon)

    def level_octets(self):
        return self.portions * AUTH_OCTETS


@pytest.fixture
def signatures(tmp_path):
    paths = [(tmp_path / f"{name}.pem", tmp_path / f"{name}.pub") for name in "ab"]
    for private, public in paths:
        make_signing_key(private, public)
    (a, a_public), (b, b_public) = paths
    return load_signatures(a, b_public), load_signatures(b, a_public)


def test_signing_keys_are_made_once_and_fit(signatures, tmp_path):
    a, b = signatures
    b.verify(0, b"l", [b"m"], a.tag(0, b"l", [b"m"]))
    before = (tmp_path / "a.pem").read_bytes()
    make_signing_key(tmp_path / "a.pem", tmp_path / "a.pub")
    assert (tmp_path / "a.pem").read_bytes() == before
    assert (tmp_path / "a.pem").stat().st_mode & 0o077 == 0


def test_files_that_are_no_such_keys_are_named(tmp_path):
    make_signing_key(tmp_path / "a.pem", tmp_path / "a.pub")
    (tmp_path / "junk").write_text("junk")
    for private, public in (("a.pem", "junk"), ("junk", "a.pub"), ("none", "a.pub"), ("a.pub", "a.pem")):
        with pytest.raises(ConfigError, match="signing keys"):
            load_signatures(tmp_path / private, tmp_path / public)


def test_key_comes_first_and_signatures_only_by_policy(signatures):
    without, with_ = Pool(1), Pool(1)
    ledgers = LinkAuthentication(without, None), LinkAuthentication(with_, signatures[0])
    assert [ledger.reserve(1e-10).scheme for ledger in ledgers] == [WEGMAN_CARTER] * 2
    with pytest.raises(KeyExhausted):
        ledgers[0].reserve(1e-10)
    assert ledgers[1].reserve(1e-10).scheme == ML_DSA
    assert with_.charged == [1e-10] * 2, "signed blocks are charged too"
    assert [ledger.is_signing for ledger in ledgers] == [False, True]
    with pytest.raises(BudgetSpent):
        ledgers[1].reserve(2.0)


def test_bob_takes_a_signature_only_by_policy_and_while_he_has_no_key(signatures):
    with pytest.raises(AuthenticationFailed, match="preshared"):
        LinkAuthentication(Pool(0), None).take(SIGNED, 0, 0.0)
    pool = Pool(0)
    bob = LinkAuthentication(pool, signatures[1])
    assert bob.take(SIGNED, 0, 0.0).scheme == ML_DSA
    # The first block fills the pool while the second, signed before Alice knew, is on its way.
    pool.portions = 3
    assert bob.take(SIGNED, 0, 0.0).scheme == ML_DSA
    assert bob.take(1, 0, 0.0).scheme == WEGMAN_CARTER
    assert not bob.is_signing
    with pytest.raises(AuthenticationFailed, match="there is authentication key"):
        bob.take(SIGNED, 0, 0.0)
    pool.portions = 0
    assert bob.take(SIGNED, 0, 0.0).scheme == ML_DSA
