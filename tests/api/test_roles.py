"""Every path of the administration interface, asked by every role and by those who have none."""

import datetime as dt
import hashlib
import re
import ssl
from pathlib import Path

import pytest
from api_kit import Credentials, Pki, RunningServer, Wire
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from qtrunk.api.admin import Gate
from qtrunk.api.https import Response
from qtrunk.api.roles import TABLE, OperatorRole

PATHS = sorted({rule.path for rule in TABLE})
METHODS = ("GET", "POST", "PUT", "DELETE", "HEAD", "PATCH")


@pytest.fixture(scope="module")
def gate(kme):
    async def yes(_request, _operator):
        return Response(200, b'"done"')

    revoked: set[str] = set()
    names = {path.split("/")[3] for path in PATHS}
    roots = {path.split("/")[1] for path in PATHS}
    gates = {
        root: Gate(dict.fromkeys(names, yes), lambda identity: identity.fingerprint in revoked, root=root)
        for root in roots
    }

    async def handler(request):
        return await gates.get(request.segments[0], gates["admin"]).handle(request)

    with RunningServer(handler, kme) as running:
        yield running, revoked


def certificate(pki, *roles, **more):
    return pki.issue("ops", uris=["urn:qtrunk:operator:ops", *(f"urn:qtrunk:role:{role}" for role in roles)], **more)


def ask_all(wire):
    for path in PATHS:
        for method in METHODS:
            yield path, method, wire.ask(method, re.sub(r"{.*?}", "x", path)).status


@pytest.mark.parametrize("role", OperatorRole)
def test_a_role_gets_its_rows_of_the_table_and_nothing_else(gate, pki, role):
    granted = {(rule.method, rule.path) for rule in TABLE if role in rule.roles}
    with Wire(gate[0].port, certificate(pki, role)) as wire:
        for path, method, status in ask_all(wire):
            known = any(rule.method == method for rule in TABLE if rule.path == path)
            assert status == (200 if (method, path) in granted else 403 if known else 400), (role, method, path)


def test_every_role_has_something_and_only_officers_change_anything_but_operations():
    for role in OperatorRole:
        assert any(role in rule.roles for rule in TABLE)
    changing = {rule.path: rule.roles for rule in TABLE if rule.method != "GET"}
    # Routes are advice that a node may find anew itself; an operator's word on an alarm and maintenance change no key;
    # everything else that changes something takes an officer.
    assert changing.pop("/admin/v1/routes") == {OperatorRole.CONTROLLER}
    people = {OperatorRole.OFFICER, OperatorRole.OPERATOR}
    assert changing.pop("/admin/v1/alarms/{id}/{word}") == {*people, OperatorRole.CONTROLLER}
    assert changing.pop("/control/v1/alarms/{id}/{word}") == people
    maintenance = [path for path in changing if path.startswith("/admin/v1/maintenance")]
    assert maintenance
    assert all(changing.pop(path) == {OperatorRole.OPERATOR} for path in maintenance)
    assert set(changing.values()) == {frozenset({OperatorRole.OFFICER})}
    assert len({(rule.method, rule.path) for rule in TABLE}) == len(TABLE)


def test_an_operator_without_a_known_role_gets_nothing(gate, pki):
    for roles in ((), ("root",), ("Viewer",), ("viewer,operator",)):
        with Wire(gate[0].port, certificate(pki, *roles)) as wire:
            assert {status for _, _, status in ask_all(wire)} == {400, 403}


def test_a_revoked_certificate_gets_nothing_from_the_next_request_on(gate, pki):
    running, revoked = gate
    own = certificate(pki, *OperatorRole)
    with Wire(running.port, own) as wire:
        assert wire.ask("GET", "/admin/v1/status").status == 200
        revoked.add(hashlib.sha256(own.der()).hexdigest())
        assert {status for _, _, status in ask_all(wire)} == {401}


def test_expired_self_signed_foreign_and_missing_certificates_do_not_connect(gate, pki, tmp_path):
    stranger = Pki(tmp_path / "stranger")
    own_name = Pki(tmp_path / "same-name", "test CA")
    for made in (
        certificate(pki, *OperatorRole, lives_s=-60),
        certificate(stranger, *OperatorRole),
        certificate(own_name, *OperatorRole),
        None,
    ):
        with pytest.raises((ssl.SSLError, ConnectionError)), Wire(gate[0].port, made, pki.ca_certificate) as wire:
            wire.ask("GET", "/admin/v1/status")


def test_a_self_signed_certificate_does_not_connect(gate, pki, tmp_path):
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "ops")])
    now = dt.datetime.now(dt.UTC)
    uris = ["urn:qtrunk:operator:ops", *(f"urn:qtrunk:role:{role}" for role in OperatorRole)]
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - dt.timedelta(days=1))
        .not_valid_after(now + dt.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.UniformResourceIdentifier(uri) for uri in uris]), False)
        .sign(key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    (tmp_path / "cert.pem").write_bytes(made.public_bytes(pem))
    pkcs8, clear = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    (tmp_path / "key.pem").write_bytes(key.private_bytes(pem, pkcs8, clear))
    own = Credentials(tmp_path / "cert.pem", tmp_path / "key.pem", pki.ca_certificate)
    with pytest.raises((ssl.SSLError, ConnectionError)), Wire(gate[0].port, own) as wire:
        wire.ask("GET", "/admin/v1/status")


def test_what_is_not_in_the_table_is_nowhere(gate, pki):
    with Wire(gate[0].port, certificate(pki, *OperatorRole)) as wire:
        for path in ("/", "/admin/v1", "/admin/v1/", "/admin/v1/keys/", "/admin/v1/status/x", "/admin/v2/status"):
            assert wire.ask("GET", path).status == 404


def test_the_documentation_has_the_table_as_it_is():
    page = (Path(__file__).parents[2] / "docs" / "enrolment.md").read_text()
    found = {
        line
        for line in page.splitlines()
        if ("/admin/v1/" in line or "/control/v1/" in line) and line.startswith("| `")
    }
    assert found == {
        f"| `{rule.method} {rule.path}` | {', '.join(sorted(rule.roles))} | {rule.purpose} |" for rule in TABLE
    }
