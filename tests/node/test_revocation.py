"""The revocation list in force: signed, never older, and effective on open connections; without one nobody gets in."""

import datetime as dt

import pytest
from cryptography import x509
from enrol_kit import Clock

from qtrunk.api.tls import PeerIdentity
from qtrunk.base.errors import RequestRefused
from qtrunk.node.ca import certificates
from qtrunk.node.ca.authority import Authority
from qtrunk.node.ca.identity import Identity, Kind
from qtrunk.node.revocation import Registry
from qtrunk.node.world import SystemRandom


@pytest.fixture
def authority(tmp_path):
    made = Authority(tmp_path / "ca", Clock(), SystemRandom())
    yield made
    made.close()


def issued(authority, name):
    key = certificates.new_key()
    enrolled = authority.issue(Identity(Kind.SAE, name), key.public_key(), 30, "test")
    return x509.load_pem_x509_certificate(enrolled.certificate)


def identity(certificate):
    return PeerIdentity((), (), "", 0.0, certificate.serial_number)


@pytest.fixture
def registry(authority, tmp_path):
    return Registry(tmp_path / "ca" / "ca.crl", tmp_path / "ca" / "ca.pem", Clock())


def test_a_revocation_is_seen_at_the_next_look_and_only_the_revoked_are_out(authority, registry):
    bank, power = issued(authority, "bank"), issued(authority, "power")
    assert not registry.is_revoked(identity(bank))
    authority.revoke(Kind.SAE, "bank", "lost", "test")
    assert registry.look()
    assert registry.is_revoked(identity(bank))
    assert not registry.is_revoked(identity(power))
    assert not registry.look()
    assert registry.problem is None


def test_whoever_wants_to_know_hears_of_other_revocations_and_of_nothing_else(authority, registry):
    told = []
    registry.on_change = lambda: told.append(registry.is_revoked(identity(bank)))
    bank = issued(authority, "bank")
    authority.revoke(Kind.SAE, "bank", "lost", "test")
    registry.look()
    registry.look()
    assert told == [True], "once it is in force"
    registry.install(authority.crl())
    assert told == [True], "the same again"
    issued(authority, "power")
    authority.revoke(Kind.SAE, "power", "lost", "test")
    registry.install(authority.crl())
    assert told == [True, True]


def test_a_node_that_never_saw_a_list_refuses_everybody_and_recovers(authority, tmp_path):
    bank = issued(authority, "bank")
    path = tmp_path / "ca.crl"
    registry = Registry(path, tmp_path / "ca" / "ca.pem", Clock())
    assert registry.is_revoked(identity(bank))
    assert "No such file" in registry.problem
    path.write_bytes(authority.crl())
    registry.look()
    assert not registry.is_revoked(identity(bank))
    assert registry.problem is None
    path.unlink()
    registry.look()
    assert registry.problem
    assert not registry.is_revoked(identity(bank))


def test_a_list_that_is_forged_damaged_or_older_changes_nothing(authority, registry, tmp_path):
    bank = issued(authority, "bank")
    path = tmp_path / "ca" / "ca.crl"
    old = path.read_bytes()
    authority.revoke(Kind.SAE, "bank", "lost", "test")
    registry.look()
    other = Authority(tmp_path / "other", Clock(), SystemRandom())
    same_name = certificates.revocation_list(
        authority.certificate, certificates.new_key(), [], 99, dt.datetime.now(dt.UTC), 7
    )
    for wrong in (old, other.crl(), same_name, b"nonsense", b""):
        path.write_bytes(wrong)
        registry.look()
        assert registry.problem, wrong
        assert registry.is_revoked(identity(bank))
        with pytest.raises(RequestRefused):
            registry.install(wrong)
    other.close()


def test_a_ca_file_that_does_not_read_stops_nothing_and_mends(authority, registry, tmp_path):
    bank = issued(authority, "bank")
    path = tmp_path / "ca" / "ca.pem"
    pem = path.read_bytes()
    path.write_bytes(b"half written")
    authority.revoke(Kind.SAE, "bank", "lost", "test")
    assert not registry.look()
    assert "ca_certificate" in registry.problem
    path.write_bytes(pem)
    assert registry.look()
    assert registry.is_revoked(identity(bank))
    assert registry.problem is None


def test_a_list_that_is_out_of_date_stays_in_force_and_raises_an_alarm(authority, registry):
    bank = issued(authority, "bank")
    registry._clock.shift_s = 3 * 86400
    registry.look()
    assert "newer one was due" in registry.problem
    assert not registry.is_revoked(identity(bank))


def test_a_list_that_is_installed_is_durable(authority, tmp_path):
    path = tmp_path / "node.crl"
    path.write_bytes(authority.crl())
    registry = Registry(path, tmp_path / "ca" / "ca.pem", Clock())
    bank = issued(authority, "bank")
    authority.revoke(Kind.SAE, "bank", "lost", "test")
    registry.install(authority.crl())
    assert registry.is_revoked(identity(bank))
    assert path.read_bytes() == authority.crl()


def test_a_network_without_a_list_revokes_nobody(authority, tmp_path):
    registry = Registry(None, tmp_path / "ca" / "ca.pem", Clock())
    assert not registry.is_revoked(identity(issued(authority, "bank")))
    with pytest.raises(RequestRefused, match="without"):
        registry.install(authority.crl())
