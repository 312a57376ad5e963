"""A node's trust in force: revoked and unaudited requests get nothing, and changes need what the table says."""

import asyncio
import json
import os
import ssl

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.mldsa import MLDSA65PrivateKey
from enrol_kit import Clock

from qtrunk.api.admin import Gate
from qtrunk.api.https import Request, Response
from qtrunk.api.roles import OperatorRole
from qtrunk.api.tls import PeerIdentity, identity_of, server_context
from qtrunk.base.errors import AuthenticationFailed
from qtrunk.base.ids import NodeId
from qtrunk.kms import audit
from qtrunk.node.alarms import AlarmBoard
from qtrunk.node.ca import certificates, files
from qtrunk.node.ca.authority import Authority
from qtrunk.node.ca.identity import Identity, Kind
from qtrunk.node.config import Address, LinkConfig, NodeConfig
from qtrunk.node.trust import Trust
from qtrunk.node.world import SystemRandom
from qtrunk.topology import Node, trunk


class Site:
    """A node's trust, its authority, and an administration interface without sockets."""

    def __init__(self, directory):
        self.directory, self.clock = directory, Clock()
        self.authority = Authority(directory / "ca", self.clock, SystemRandom())
        self.own = directory / "node"
        self.own.mkdir()
        self.renew(Identity(Kind.NODE, "a"))
        (self.own / "ca.pem").write_bytes((directory / "ca" / "ca.pem").read_bytes())
        here = Address("127.0.0.1", 1)
        self.config = NodeConfig(
            node="a",
            directory=str(self.own),
            key_api=here,
            admin_api=here,
            inter_node=here,
            certificate=str(self.own / "cert.pem"),
            private_key=str(self.own / "key.pem"),
            ca_certificate=str(self.own / "ca.pem"),
            revocation_list=str(directory / "ca" / "ca.crl"),
            links=[LinkConfig("a-b", "", here, "", peer_verifying_key=str(self.own / "peer-b.pem"))],
            topology=trunk("t", [Node(id=NodeId("a")), Node(id=NodeId("b"))], [(10, 3)]).to_dict(),
        )
        self.alarms = AlarmBoard(self.clock)
        self.trust = Trust(self.config, self.clock, SystemRandom(), self.alarms)
        self.gate = Gate(self.trust.handlers(), self.trust.is_revoked, self.trust.note_refusal)

    def renew(self, identity, days=30.0):
        key = certificates.new_key()
        enrolled = self.authority.issue(identity, key.public_key(), days, "test")
        files.switch(self.own, certificates.key_pem(key), enrolled.certificate)

    def identity(self, kind, name, *roles):
        key = certificates.new_key()
        enrolled = self.authority.issue(Identity(kind, name, roles), key.public_key(), 1, "test")
        found = x509.load_pem_x509_certificate(enrolled.certificate)
        return identity_of(found.public_bytes(serialization.Encoding.DER))

    def ask(self, identity, method, path, body=None):
        segments = tuple(path.split("/")[1:])
        octets = b"" if body is None else json.dumps(body).encode()
        answer = asyncio.run(self.gate.handle(Request(method, segments, {}, octets, identity)))
        return answer.status, json.loads(bytes(answer.body))

    def key_request(self, identity):
        async def give(_request):
            return Response(200, b"{}")

        guarded = self.trust.guarded(give)
        return asyncio.run(guarded(Request("GET", (), {}, b"", identity))).status

    def active(self):
        return {alarm["type"] for alarm in self.alarms.as_json()["active"]}


@pytest.fixture
def site(tmp_path):
    made = Site(tmp_path)
    yield made
    made.trust.close()
    made.authority.close()


@pytest.fixture
def officers(site):
    return [site.identity(Kind.OPERATOR, name, OperatorRole.OFFICER) for name in ("ada", "bob")]


def test_a_revoked_sae_gets_no_key_after_the_next_look(site):
    bank, power = site.identity(Kind.SAE, "bank"), site.identity(Kind.SAE, "power")
    assert site.key_request(bank) == 200
    site.authority.revoke(Kind.SAE, "bank", "lost", "test")
    site.trust.look()
    assert site.active() == set()
    assert site.key_request(bank) == 401
    assert site.key_request(power) == 200
    site.trust.look()
    assert site.active() == {"SaeAuthFailure"}


def test_no_key_goes_out_while_nothing_can_be_audited_and_again_after(site, monkeypatch):
    bank = site.identity(Kind.SAE, "bank")

    def full(*_arguments):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", full)
        with pytest.raises(Exception, match="No space"):
            site.trust.audit.record("x", "y")
        site.trust.look()
        assert site.key_request(bank) == 503
        assert "AuditUnwritable" in site.active()
    site.trust.look()
    assert site.key_request(bank) == 200
    assert "AuditUnwritable" not in site.active()


def test_an_audit_log_that_is_taken_away_or_cut_stops_keys_and_the_next_start(site):
    bank = site.identity(Kind.SAE, "bank")
    log = site.own / "audit" / audit.LOG_NAME
    before = log.read_bytes()
    log.unlink()
    site.trust.look()
    assert site.key_request(bank) == 503
    log.write_bytes(before[:-20])
    site.trust.look()
    assert site.key_request(bank) == 503
    with pytest.raises(AuthenticationFailed):
        Trust(site.config, site.clock, SystemRandom(), site.alarms)


def test_a_newer_revocation_list_is_taken_from_an_officer_only(site, officers, tmp_path):
    site.authority.refresh()
    body = {"crl": site.authority.crl().decode()}
    viewer = site.identity(Kind.OPERATOR, "vi", OperatorRole.VIEWER, OperatorRole.AUDITOR)
    assert site.ask(viewer, "POST", "/admin/v1/crl", body)[0] == 403
    *_, noted = audit.records(site.own / "audit")
    assert (noted.who, noted.what, noted.outcome) == ("operator vi", "POST /admin/v1/crl", "refused")
    assert site.ask(officers[0], "POST", "/admin/v1/crl", body)[0] == 200
    for wrong in ({}, {"crl": "nonsense"}, []):
        assert site.ask(officers[0], "POST", "/admin/v1/crl", wrong)[0] == 400


def approved(site, officers, action, parameters):
    status, proposal = site.ask(
        officers[0], "POST", "/admin/v1/approvals", {"action": action, "parameters": parameters}
    )
    assert status == 200, proposal
    path = f"/admin/v1/approvals/{proposal['id']}"
    assert site.ask(officers[0], "POST", f"{path}/run")[0] == 400
    assert site.ask(officers[1], "POST", f"{path}/yes", {"digest": proposal["digest"]})[0] == 200
    return site.ask(officers[0], "POST", f"{path}/run")


def test_two_officers_add_a_ca(site, officers, tmp_path):
    other = Authority(tmp_path / "other", site.clock, SystemRandom())
    pem = certificates.certificate_pem(other.certificate).decode()
    context = server_context(site.own / "cert.pem", site.own / "key.pem", site.own / "ca.pem")
    site.trust._contexts = [context]
    assert approved(site, officers, "add-ca", {"certificate": pem})[0] == 200
    assert len(x509.load_pem_x509_certificates((site.own / "ca.pem").read_bytes())) == 2
    assert len(context.get_ca_certs()) == 2
    assert approved(site, officers, "add-ca", {"certificate": pem})[0] == 400
    leaf = (site.own / "cert.pem").read_text()
    for wrong in ({"certificate": leaf}, {"certificate": "x"}, {}, {"certificate": pem, "more": 1}):
        body = {"action": "add-ca", "parameters": wrong}
        assert site.ask(officers[0], "POST", "/admin/v1/approvals", body)[0] == 400
    other.close()


def test_two_officers_change_a_neighbours_verifying_key(site, officers):
    key = MLDSA65PrivateKey.generate().public_key()
    pem = key.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo).decode()
    assert approved(site, officers, "add-verifying-key", {"node": "b", "key": pem})[0] == 200
    assert (site.own / "peer-b.pem").read_text() == pem
    for wrong in ({"node": "c", "key": pem}, {"node": "b", "key": "x"}, {"node": "b"}):
        body = {"action": "add-verifying-key", "parameters": wrong}
        assert site.ask(officers[0], "POST", "/admin/v1/approvals", body)[0] == 400


def test_the_audit_log_is_read_by_auditors_and_has_it_all(site, officers):
    approved(
        site, officers, "add-ca", {"certificate": certificates.certificate_pem(site.authority.certificate).decode()}
    )
    auditor = site.identity(Kind.OPERATOR, "au", OperatorRole.AUDITOR)
    status, found = site.ask(auditor, "GET", "/admin/v1/audit")
    assert status == 200
    assert [(entry["who"], entry["what"], entry["outcome"]) for entry in found] == [
        ("node a", "start", "done"),
        ("operator ada", "propose", "proposed"),
        ("operator bob", "approve", "approved"),
        ("operator ada", "execute", "running"),
        # It is believed already.
        ("operator ada", "execute", "failed"),
    ]


def test_a_renewed_certificate_is_taken_up_and_one_that_is_late_raises_an_alarm(site, monkeypatch):
    loaded = []

    class Context(ssl.SSLContext):
        def load_cert_chain(self, *arguments):
            loaded.append(arguments)
            super().load_cert_chain(*arguments)

    site.trust._contexts = [Context(ssl.PROTOCOL_TLS_SERVER)]
    site.trust.look()
    assert not loaded
    site.clock.shift_s = 26 * 86400
    site.trust.look()
    assert "CertificateExpiring" in site.active()
    site.renew(Identity(Kind.NODE, "a"))
    site.trust.look()
    site.trust.look()
    assert len(loaded) == 1
    assert "CertificateExpiring" not in site.active()
    (site.own / "cert.pem").unlink()
    site.trust.look()
    assert "CertificateUnreadable" in site.active()


def test_who_has_no_certificate_at_all_is_nobody(site):
    nobody = PeerIdentity((), (), "", 0.0)
    assert site.ask(nobody, "GET", "/admin/v1/audit")[0] == 401
