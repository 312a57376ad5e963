"""Whom a certificate speaks for: the order of its names, pins, and what speaks for two."""

import hashlib

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from qtrunk.api.identity import SaeRegistry
from qtrunk.api.tls import identity_of
from qtrunk.base.errors import RequestRefused
from qtrunk.base.ids import NodeId, SaeId, parse_identity
from qtrunk.topology import Sae


def sae(name: str, *identities: str) -> Sae:
    return Sae(id=SaeId(name), node=NodeId("a"), identities=tuple(map(parse_identity, identities)))


def found(pki, saes, **names) -> str | None:
    return SaeRegistry(saes).sae_of(identity_of(pki.issue(**names).der()))


SAES = (
    sae("plain"),
    sae("byuri", "uri:spiffe://bank/fw"),
    sae("bydns", "dns:FW1.example"),
    sae("bycn", "cn:fw-sh", "cn:fw-sh-spare"),
)


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ({"common": "fw-sh", "uris": ["urn:qtrunk:sae:bydns"]}, "bydns"),
        ({"common": "fw-sh", "uris": ["urn:qtrunk:sae:nobody"], "dns": ["fw1.example"]}, None),
        ({"common": "fw-sh", "uris": ["urn:qtrunk:kme:a"]}, None),
        ({"common": "fw-sh", "uris": ["urn:qtrunk:sae:plain", "urn:qtrunk:sae:bycn"]}, None),
        ({"common": "fw-sh", "uris": ["spiffe://bank/fw"], "dns": ["fw1.example"]}, "byuri"),
        ({"common": "fw-sh", "uris": ["spiffe://bank/other"], "dns": ["fw1.example"]}, "bydns"),
        ({"common": "x", "dns": ["Fw1.Example"]}, "bydns"),
        ({"common": "fw-sh"}, "bycn"),
        ({"common": "fw-sh-spare"}, "bycn"),
        ({"common": "FW-SH"}, None),
        ({"common": "plain"}, "plain"),
        ({"common": "x", "uris": ["plain"]}, "plain"),
        # Who lists identities is known by these: a certificate that happens to be called after the SAE is not enough.
        ({"common": "bycn"}, None),
    ],
    ids=str,
)
def test_the_names_of_a_certificate_count_in_their_order(pki, names, expected):
    assert found(pki, SAES, **names) == expected


def test_a_certificate_that_speaks_for_two_of_one_rank_speaks_for_none(pki, caplog):
    assert found(pki, SAES, common="x", dns=["fw1.example", "plain"]) is None
    assert "bydns, plain" in caplog.text


def test_a_pinned_certificate_or_public_key_needs_no_name(pki):
    one, other = (pki.issue("x").der() for _ in range(2))
    key = x509.load_der_x509_certificate(other).public_key()
    spki = hashlib.sha256(key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)).hexdigest()
    digest = hashlib.sha256(one).hexdigest().upper()
    colons = ":".join(digest[i : i + 2] for i in range(0, 64, 2))
    registry = SaeRegistry([sae("pinned", f"sha256:{colons}", f"sha256:{spki}"), sae("plain")])
    assert registry.sae_of(identity_of(one)) == "pinned"
    assert registry.sae_of(identity_of(other)) == "pinned"
    assert registry.sae_of(identity_of(pki.issue("x").der())) is None


def test_what_is_worked_out_once_stays(pki):
    registry = SaeRegistry(SAES)
    identity = identity_of(pki.issue("fw-sh").der())
    assert [registry.sae_of(identity) for _ in range(3)] == ["bycn"] * 3


@pytest.mark.parametrize(
    "text",
    [
        "",
        "cn",
        "cn:",
        "cn: x",
        "cn:a\nb",
        "ip:10.0.0.1",
        "sha256:" + "0" * 63,
        "sha256:" + "g" * 64,
        "uri:urn:qtrunk:sae:x",
        "uri:urn:acme:kme:x",
        "dns:" + "a" * 300,
    ],
)
def test_what_is_no_identity_is_refused(text):
    with pytest.raises(RequestRefused):
        parse_identity(text)
