"""The lab's certificates: right names, right keys, renewed when due, never half written."""

import datetime as dt

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization

from qtrunk.api.roles import OperatorRole
from qtrunk.node import pki
from qtrunk.node.ca.identity import Kind


def load(credentials):
    return x509.load_pem_x509_certificate(credentials.certificate.read_bytes())


def names(certificate):
    return certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value


def test_a_certificate_names_its_identity_in_common_name_and_uri(tmp_path):
    authority = pki.LabPki(tmp_path / "pki")
    for kind, identity in ((Kind.NODE, "ada"), (Kind.SAE, "bank"), (Kind.OPERATOR, "lab")):
        made = authority.credentials(tmp_path / kind, kind, identity)
        certificate = load(made)
        assert certificate.subject.rfc4514_string() == f"CN={identity}"
        uris = names(certificate).get_values_for_type(x509.UniformResourceIdentifier)
        word = "kme" if kind is Kind.NODE else kind
        every = [f"urn:qtrunk:role:{role}" for role in OperatorRole if role is not OperatorRole.CONTROLLER]
        roles = every if kind is Kind.OPERATOR else []
        assert uris == [f"urn:qtrunk:{word}:{identity}", *roles]
        certificate.verify_directly_issued_by(x509.load_pem_x509_certificate(made.ca_certificate.read_bytes()))
        key = serialization.load_pem_private_key(made.private_key.read_bytes(), None)
        assert key.public_key() == certificate.public_key()
        assert made.private_key.stat().st_mode & 0o777 == 0o600


def test_only_a_kme_may_be_a_server(tmp_path):
    authority = pki.LabPki(tmp_path / "pki")
    for kind, is_server in ((Kind.NODE, True), (Kind.SAE, False)):
        usage = load(authority.credentials(tmp_path / kind, kind, "x")).extensions.get_extension_for_class(
            x509.ExtendedKeyUsage
        )
        assert (x509.ExtendedKeyUsageOID.SERVER_AUTH in usage.value) is is_server


def test_credentials_stay_until_they_are_due_and_an_authority_keeps_its_key(tmp_path):
    first = pki.LabPki(tmp_path / "pki").credentials(tmp_path / "sae", Kind.SAE, "bank")
    before = load(first)
    again = pki.LabPki(tmp_path / "pki").credentials(tmp_path / "sae", Kind.SAE, "bank")
    assert load(again) == before
    assert before.not_valid_after_utc - dt.datetime.now(dt.UTC) > dt.timedelta(days=pki.RENEW_DAYS)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pki, "RENEW_DAYS", 1000)
        assert load(pki.LabPki(tmp_path / "pki").credentials(tmp_path / "sae", Kind.SAE, "bank")) != before


def test_certificates_of_another_authority_are_replaced(tmp_path):
    stranger = pki.LabPki(tmp_path / "other").credentials(tmp_path / "sae", Kind.SAE, "bank")
    before = load(stranger)
    (tmp_path / "pki").mkdir()
    made = pki.LabPki(tmp_path / "pki").credentials(tmp_path / "sae", Kind.SAE, "bank")
    made_certificate = load(made)
    made_certificate.verify_directly_issued_by(x509.load_pem_x509_certificate(made.ca_certificate.read_bytes()))
    assert made_certificate != before
