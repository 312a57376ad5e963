"""Enrolment over the wire: invitations that work once, for one name, at one authority; renewal; revocation."""

import datetime as dt
import http.client
import json
import ssl
import threading
import time

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.mldsa import MLDSA65PrivateKey
from enrol_kit import Office

from qtrunk.api.roles import OperatorRole
from qtrunk.base.errors import AuthenticationFailed, LabError, NotAuthorised, RequestRefused, StoreError
from qtrunk.base.secret import Secret
from qtrunk.kms import audit
from qtrunk.node.ca import certificates, holder, service, tokens, verifying
from qtrunk.node.ca.authority import FAILURES_MAX, Authority
from qtrunk.node.ca.identity import Identity, Kind
from qtrunk.node.world import SystemRandom

DAY_S = 86400.0


def certificate(out):
    return x509.load_pem_x509_certificate((out / "cert.pem").read_bytes())


def uris(found):
    names = found.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    return names.get_values_for_type(x509.UniformResourceIdentifier)


def csr(name=None, key=None):
    names = [] if name is None else [x509.NameAttribute(x509.NameOID.COMMON_NAME, name)]
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name(names))
    return builder.sign(key or certificates.new_key(), hashes.SHA256())


def pem(request):
    return request.public_bytes(serialization.Encoding.PEM)


@pytest.mark.parametrize(
    ("kind", "roles", "names", "days"),
    [
        (Kind.SAE, (), ["urn:qtrunk:sae:x"], 30),
        (Kind.NODE, (), ["urn:qtrunk:kme:x"], 30),
        (
            Kind.OPERATOR,
            (OperatorRole.AUDITOR, OperatorRole.VIEWER),
            ["urn:qtrunk:operator:x", "urn:qtrunk:role:auditor", "urn:qtrunk:role:viewer"],
            7,
        ),
    ],
)
def test_who_is_invited_gets_a_certificate_with_the_names_of_the_invitation(office, tmp_path, kind, roles, names, days):
    token = office.invite(kind, "x", roles=roles, hosts=("x.example", "192.0.2.1") if kind is Kind.NODE else ())
    holder.join(office.url, token, tmp_path / "x")
    found = certificate(tmp_path / "x")
    assert uris(found) == names
    left = found.not_valid_after_utc - dt.datetime.now(dt.UTC)
    assert dt.timedelta(days=days - 1) < left <= dt.timedelta(days=days)
    key = serialization.load_pem_private_key((tmp_path / "x" / "key.pem").read_bytes(), None)
    assert key.public_key() == found.public_key()
    assert (tmp_path / "x" / "key.pem").stat().st_mode & 0o777 == 0o600
    found.verify_directly_issued_by(office.authority.certificate)
    assert (f"{kind} x", "join", "done") in office.audited()


def test_a_token_is_nowhere_at_the_authority_nor_in_what_the_holder_keeps(office, tmp_path):
    token = office.invite(Kind.SAE, "bank")
    holder.join(office.url, token, tmp_path / "bank")
    text = bytes(token.reveal())
    secret = bytes(tokens.parse_token(token).secret.reveal())
    for path in [*(tmp_path / "ca").rglob("*"), *(tmp_path / "bank").rglob("*")]:
        if path.is_file():
            octets = path.read_bytes()
            assert text not in octets, path
            assert secret not in octets, path
            assert secret.hex().encode() not in octets, path


def test_a_token_works_once_and_the_second_time_raises_an_alarm(office, tmp_path):
    token = office.invite(Kind.SAE, "bank")
    holder.join(office.url, token, tmp_path / "bank")
    with pytest.raises(NotAuthorised, match="used already"):
        holder.join(office.url, token, tmp_path / "thief")
    assert not (tmp_path / "thief" / "cert.pem").exists()
    assert any("presented again" in text for text in office.alarms)
    assert len([issued for issued in office.authority.issued() if issued.name == "bank"]) == 1


def test_a_token_expires(office, tmp_path):
    token = office.invite(Kind.SAE, "bank", ttl_s=60)
    office.clock.shift_s = 61
    with pytest.raises(NotAuthorised, match="expired"):
        holder.join(office.url, token, tmp_path / "bank")


def changed(token, *, secret=None, pin=None, identifier=None, kind=None):
    found = tokens.parse_token(token)
    return tokens.Token(
        kind or found.kind, identifier or found.id, pin or found.pin, Secret(secret) if secret else found.secret
    ).text()


def test_a_wrong_secret_or_id_is_refused_alarmed_and_voids_the_invitation_in_the_end(office, tmp_path):
    token = office.invite(Kind.SAE, "bank")
    with pytest.raises(NotAuthorised, match="not valid"):
        holder.join(office.url, changed(token, identifier="00" * 8), tmp_path / "x")
    for _ in range(FAILURES_MAX):
        with pytest.raises(NotAuthorised, match="not valid"):
            holder.join(office.url, changed(token, secret=bytes(32)), tmp_path / "x")
    assert office.alarms
    with pytest.raises(NotAuthorised, match="not valid"):
        holder.join(office.url, token, tmp_path / "x")


def test_failed_attempts_wait_and_while_many_wait_others_are_turned_away(office, tmp_path, monkeypatch):
    monkeypatch.setattr(service, "PAUSE_S_MAX", 0.5)
    monkeypatch.setattr(service, "PAUSE_S", 0.5)
    monkeypatch.setattr(service, "GUESSES_MAX", 4)
    token = changed(office.invite(Kind.SAE, "bank"), secret=bytes(32))
    answers = []

    def guess():
        began_s = time.monotonic()
        with pytest.raises((NotAuthorised, StoreError)) as caught:
            holder.join(office.url, token, tmp_path / "x")
        answers.append((caught.type, time.monotonic() - began_s))

    threads = [threading.Thread(target=guess) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert [kind for kind, _ in answers].count(NotAuthorised) == 4
    assert all(took_s > 0.45 for kind, took_s in answers if kind is NotAuthorised)
    assert office.service._waiting == 0


def test_guesses_of_strangers_keep_nobody_from_joining_or_renewing(office, tmp_path, monkeypatch):
    monkeypatch.setattr(service, "GUESSES_MAX", 0)
    office.clock.shift_s = -25 * DAY_S
    holder.join(office.url, office.invite(Kind.SAE, "bank"), tmp_path / "bank")
    office.clock.shift_s = 0.0
    assert holder.renew(tmp_path / "bank", dt.datetime.now(dt.UTC))
    with pytest.raises(StoreError, match="too many attempts"):
        holder.join(office.url, changed(office.invite(Kind.SAE, "power"), secret=bytes(32)), tmp_path / "x")


def test_the_wait_doubles_up_to_a_limit():
    assert [service.pause_s(count) for count in (1, 2, 3, 6, 7, 10_000)] == [0.25, 0.5, 1.0, 8.0, 8.0, 8.0]


def test_another_authority_is_told_nothing(office, tmp_path):
    token = office.invite(Kind.SAE, "bank")
    other = Office(tmp_path / "other")
    try:
        with pytest.raises(AuthenticationFailed, match="names; nothing was sent"):
            holder.join(other.url, token, tmp_path / "bank")
        assert not other.alarms
    finally:
        other.close()
    holder.join(office.url, token, tmp_path / "bank")


def test_a_node_of_the_network_cannot_pose_as_the_authority(office, tmp_path):
    """It shows the real authority's public certificate, but has a node's certificate itself."""
    key = certificates.new_key()
    enrolled = office.authority.issue(Identity(Kind.NODE, "evil", hosts=("localhost",)), key.public_key(), 1, "test")
    (tmp_path / "evil.pem").write_bytes(enrolled.certificate)
    (tmp_path / "evil.key").write_bytes(certificates.key_pem(key))
    office.service._context.load_cert_chain(tmp_path / "evil.pem", tmp_path / "evil.key")
    token = office.invite(Kind.SAE, "bank")
    with pytest.raises(AuthenticationFailed, match="not the enrolment service"):
        holder.join(office.url, token, tmp_path / "bank")
    assert ("sae bank", "join", "begun") not in office.audited()


def test_names_come_from_the_token_and_a_request_for_another_is_refused(office):
    token = office.invite(Kind.SAE, "bank")
    with pytest.raises(RequestRefused, match="common name"):
        office.authority.join(token, pem(csr("power")), None, None)
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    wanted = Identity(Kind.OPERATOR, "root", tuple(OperatorRole)).names()
    sly = builder.add_extension(wanted, False).sign(certificates.new_key(), hashes.SHA256())
    enrolled = office.authority.join(token, pem(sly), None, None)
    assert uris(x509.load_pem_x509_certificate(enrolled.certificate)) == ["urn:qtrunk:sae:bank"]


def tampered_request():
    der = bytearray(csr().public_bytes(serialization.Encoding.DER))
    der[-1] ^= 1
    return pem(x509.load_der_x509_csr(bytes(der)))


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (lambda: b"nonsense", "PKCS#10"),
        (lambda: b"x" * 20_000, "octets"),
        (tampered_request, "possession"),
        (lambda: pem(csr(key=ec.generate_private_key(ec.SECP192R1()))), "P-256"),
        (lambda: pem(csr(key=rsa.generate_private_key(65537, 2048))), "3072"),
    ],
    ids=["nonsense", "long", "tampered", "weak curve", "short rsa"],
)
def test_a_bad_request_is_refused_and_the_token_stays_good(office, tmp_path, make, why):
    token = office.invite(Kind.SAE, "bank")
    with pytest.raises(RequestRefused, match=why):
        office.authority.join(token, make(), None, None)
    holder.join(office.url, token, tmp_path / "bank")


def test_a_key_is_certified_once(office):
    key = certificates.new_key()
    office.authority.join(office.invite(Kind.SAE, "bank"), pem(csr(key=key)), None, None)
    with pytest.raises(RequestRefused, match="certified before"):
        office.authority.join(office.invite(Kind.SAE, "power"), pem(csr(key=key)), None, None)


def test_a_name_in_use_is_given_again_only_as_a_replacement_which_revokes(office, tmp_path):
    early = office.invite(Kind.SAE, "bank")
    holder.join(office.url, office.invite(Kind.SAE, "bank"), tmp_path / "bank")
    with pytest.raises(RequestRefused, match="enrolled before"):
        office.invite(Kind.SAE, "bank")
    with pytest.raises(RequestRefused, match="enrolled before"):
        holder.join(office.url, early, tmp_path / "late")
    holder.join(office.url, office.invite(Kind.SAE, "bank", replaces=True), tmp_path / "new")
    revoked = {entry.serial_number for entry in x509.load_pem_x509_crl(office.authority.crl())}
    assert revoked == {certificate(tmp_path / "bank").serial_number}


def test_a_name_whose_certificate_ran_out_or_was_revoked_is_not_free_for_anybody(office, tmp_path):
    office.enrolled(Kind.SAE, "bank", tmp_path / "bank")
    office.enrolled(Kind.SAE, "power", tmp_path / "power")
    office.authority.revoke(Kind.SAE, "power", "lost", "test")
    office.clock.shift_s = 31 * DAY_S
    for name in ("bank", "power"):
        with pytest.raises(RequestRefused, match="enrolled before"):
            office.invite(Kind.SAE, name)


def test_nothing_goes_out_that_was_not_written_down(office, tmp_path, monkeypatch):
    token = office.invite(Kind.SAE, "bank")

    def full(*_arguments):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(audit.os, "pwrite", full)
        with pytest.raises(StoreError, match="refused"):
            holder.join(office.url, token, tmp_path / "bank")
    assert not (tmp_path / "bank" / "cert.pem").exists()
    holder.join(office.url, token, tmp_path / "bank")


def test_a_token_is_spent_durably_before_the_certificate_goes_out(office, tmp_path, monkeypatch):
    token = office.invite(Kind.SAE, "bank")
    office.authority.join(token, pem(csr()), None, None)
    # As after a kill in that moment: a second process on the same files.
    again = Authority(office.directory, office.clock, SystemRandom())
    with pytest.raises(NotAuthorised, match="used already"):
        again.join(token, pem(csr()), None, None)
    again.close()


# ── renewal ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_living_certificate_renews_itself_from_two_thirds_of_its_life(office, tmp_path):
    now = dt.datetime.now(dt.UTC)
    office.clock.shift_s = -19 * DAY_S
    holder.join(office.url, office.invite(Kind.SAE, "bank"), tmp_path / "bank")
    before = certificate(tmp_path / "bank")
    office.clock.shift_s = 0.0
    assert not holder.renew(tmp_path / "bank", now)
    with pytest.raises(RequestRefused, match="not due"):
        holder.renew(tmp_path / "bank", now, is_forced=True)
    assert certificate(tmp_path / "bank") == before
    office.clock.shift_s = 1.5 * DAY_S
    assert holder.renew(tmp_path / "bank", now + dt.timedelta(days=1.5))
    after = certificate(tmp_path / "bank")
    assert uris(after) == uris(before)
    assert after.public_key() != before.public_key()
    assert after.not_valid_after_utc > before.not_valid_after_utc + dt.timedelta(days=15)
    key = serialization.load_pem_private_key((tmp_path / "bank" / "key.pem").read_bytes(), None)
    assert key.public_key() == after.public_key()


def test_a_revoked_or_foreign_certificate_or_none_renews_nothing(office, tmp_path):
    office.clock.shift_s = -25 * DAY_S
    holder.join(office.url, office.invite(Kind.SAE, "bank"), tmp_path / "bank")
    office.authority.revoke(Kind.SAE, "bank", "lost", "test")
    office.clock.shift_s = 0.0
    now = dt.datetime.now(dt.UTC)
    with pytest.raises(NotAuthorised, match="revoked"):
        holder.renew(tmp_path / "bank", now, is_forced=True)
    # Signed with the authority's key, but not by the authority: it has no record of it.
    key = certificates.new_key()
    forged = certificates.issue(
        office.authority.certificate, office.authority._key, Identity(Kind.SAE, "power"), key.public_key(), now, 30
    )
    holder.files.switch(tmp_path / "bank", certificates.key_pem(key), certificates.certificate_pem(forged))
    with pytest.raises(NotAuthorised, match="not one of this authority"):
        holder.renew(tmp_path / "bank", now, is_forced=True)
    context = ssl.create_default_context(cafile=str(tmp_path / "bank" / "ca.pem"))
    context.check_hostname = False
    connection = http.client.HTTPSConnection("localhost", office.port, context=context)
    connection.request("POST", "/enrol/v1/renew", json.dumps({"csr": pem(csr()).decode()}))
    assert connection.getresponse().status == 401
    connection.close()


# ── verifying keys ──────────────────────────────────────────────────────────────────────────────────────────────────


def test_nodes_enrol_their_verifying_keys_and_get_each_others_signed(office, tmp_path):
    for name in ("ada", "bob"):
        holder.join(office.url, office.invite(Kind.NODE, name), tmp_path / name)
    assert sorted(path.stem for path in (tmp_path / "ada" / "verifying").iterdir()) == ["ada"]
    holder.refresh(tmp_path / "ada")
    found = (tmp_path / "ada" / "verifying" / "bob.pem").read_bytes()
    assert found == (tmp_path / "bob" / "verifying-key.pem").read_bytes()
    office.authority.revoke(Kind.NODE, "bob", "closed", "test")
    holder.refresh(tmp_path / "ada")
    assert sorted(path.stem for path in (tmp_path / "ada" / "verifying").iterdir()) == ["ada"]


def test_a_verifying_key_without_possession_is_refused(office):
    token = office.invite(Kind.NODE, "ada")
    key, other = MLDSA65PrivateKey.generate(), MLDSA65PrivateKey.generate()
    public = key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    request = csr()
    der = request.public_bytes(serialization.Encoding.DER)
    identifier = tokens.parse_token(token).id
    for proof in (
        None,
        b"",
        verifying.prove(other, identifier, der),
        verifying.prove(key, "00" * 8, der),
        verifying.prove(key, identifier, der + b"\0"),
    ):
        with pytest.raises(RequestRefused, match="possession"):
            office.authority.join(token, pem(request), public, proof)
    with pytest.raises(RequestRefused, match="ML-DSA-65"):
        office.authority.join(token, pem(request), b"nonsense", b"")
    with pytest.raises(RequestRefused, match="a node enrols one"):
        office.authority.join(token, pem(request), None, None)
    office.authority.join(token, pem(request), public, verifying.prove(key, identifier, der))


def test_a_directory_that_is_changed_or_older_is_not_believed(office, tmp_path):
    holder.join(office.url, office.invite(Kind.NODE, "ada"), tmp_path / "ada")
    signed = office.authority.directory()
    verifying.open_directory(signed, office.authority.verifying_key)
    later = json.loads(signed)
    later["directory"]["number"] += 7
    for wrong in (signed.replace(b'"ada"', b'"eve"'), signed[:-1], json.dumps(later).encode()):
        with pytest.raises(AuthenticationFailed):
            verifying.open_directory(wrong, office.authority.verifying_key)
    holder.join(office.url, office.invite(Kind.NODE, "bob"), tmp_path / "bob")
    holder.refresh(tmp_path / "ada")
    (office.directory / "directory.json").write_bytes(signed)
    with pytest.raises(AuthenticationFailed, match="older"):
        holder.refresh(tmp_path / "ada")


def test_an_authority_that_does_not_answer_is_said(tmp_path, office):
    token = office.invite(Kind.SAE, "bank")
    with pytest.raises(LabError, match="does not answer"):
        holder.join("https://localhost:1", token, tmp_path / "bank")


@pytest.mark.parametrize(
    "text", [b"", b"qtrunk-enrol-1.", b"qtrunk-enrol-1.AAAA", b"qtrunk-enrol-2." + b"A" * 100, b"\xff"]
)
def test_what_is_no_token_is_refused_without_repeating_it(text):
    with pytest.raises(RequestRefused) as caught:
        tokens.parse_token(Secret(text))
    assert "AAAA" not in str(caught.value)
