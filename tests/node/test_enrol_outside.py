"""An outside authority: the right names are asked for, and what comes back is checked before it is in force."""

import datetime as dt

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from qtrunk.api.roles import OperatorRole
from qtrunk.base.errors import RequestRefused
from qtrunk.node.ca import certificates, holder
from qtrunk.node.ca.identity import HOSTS_MAX, Identity, Kind

NOW = dt.datetime.now(dt.UTC)
NODE = Identity(Kind.NODE, "ada", hosts=("ada.example", "192.0.2.1", "2001:db8::1"))


class Outside:
    """Somebody else's authority, which signs what it is told."""

    def __init__(self, name="outside", parent=None):
        self.key = certificates.new_key()
        self.certificate = certificates.make_authority(name, self.key, NOW, 100)
        if parent is not None:
            subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
            self.certificate = (
                builder(subject, parent.certificate.subject, self.key.public_key())
                .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
                .sign(parent.key, hashes.SHA256())
            )

    def sign(self, request, *, names=None, key=None, days=(-1, 90), usages=None, extra=()):
        found = request.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        made = (
            builder(request.subject, self.certificate.subject, key or request.public_key(), days)
            .add_extension(x509.SubjectAlternativeName(names) if names is not None else found, critical=False)
            .add_extension(x509.ExtendedKeyUsage(usages or BOTH), critical=False)
        )
        for extension in extra:
            made = made.add_extension(extension, critical=True)
        return made.sign(self.key, hashes.SHA256())


BOTH = [ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH]
pem = certificates.certificate_pem


def builder(subject, issuer, key, days=(-1, 90)):
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(NOW + dt.timedelta(days=days[0]))
        .not_valid_after(NOW + dt.timedelta(days=days[1]))
    )


def usage(**changed):
    names = ["digital_signature", "content_commitment", "key_encipherment", "data_encipherment", "key_agreement"]
    names += ["key_cert_sign", "crl_sign", "encipher_only", "decipher_only"]
    return x509.KeyUsage(**{**dict.fromkeys(names, False), **changed})


@pytest.fixture
def request_(tmp_path):
    path = holder.request(NODE, tmp_path)
    assert (tmp_path / "request.key").stat().st_mode & 0o777 == 0o600
    return x509.load_pem_x509_csr(path.read_bytes())


def test_the_request_has_the_right_names_and_what_comes_back_is_put_in_force(request_, tmp_path):
    names = request_.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.UniformResourceIdentifier) == ["urn:qtrunk:kme:ada"]
    assert names.get_values_for_type(x509.DNSName) == ["ada.example"]
    assert [str(entry) for entry in names.get_values_for_type(x509.IPAddress)] == ["192.0.2.1", "2001:db8::1"]
    root = Outside("root")
    middle = Outside("middle", root)
    chain = pem(middle.sign(request_)) + pem(middle.certificate)
    holder.install(NODE, tmp_path, chain, pem(root.certificate), NOW)
    assert (tmp_path / "cert.pem").read_bytes() == chain
    assert (tmp_path / "ca.pem").read_bytes() == pem(root.certificate)
    key = certificates.load_key((tmp_path / "key.pem").read_bytes())
    assert key.public_key() == request_.public_key()
    assert not (tmp_path / "request.key").exists()


def others(*more):
    return [*NODE.names(), *(x509.UniformResourceIdentifier(uri) for uri in more)]


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"key": certificates.new_key().public_key()}, "not for the key"),
        ({"days": (-9, -1)}, "not valid now"),
        ({"days": (1, 9)}, "not valid now"),
        ({"names": [x509.DNSName("ada.example")]}, "urn:qtrunk:kme:ada"),
        ({"names": others("urn:qtrunk:sae:bank")}, "another party"),
        ({"names": others("urn:qtrunk:role:security-officer")}, "another party"),
        ({"usages": [ExtendedKeyUsageOID.CLIENT_AUTH]}, "extended key usage"),
        ({"extra": [usage(key_agreement=True)]}, "digital signatures"),
        ({"extra": [x509.BasicConstraints(ca=True, path_length=None)]}, "an authority's"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_certificate_with_a_mistake_is_not_installed(request_, tmp_path, changes, why):
    outside = Outside()
    with pytest.raises(RequestRefused, match=why):
        holder.install(NODE, tmp_path, pem(outside.sign(request_, **changes)), pem(outside.certificate), NOW)
    assert not (tmp_path / "cert.pem").exists()
    assert (tmp_path / "request.key").exists()


def test_a_chain_that_does_not_lead_to_the_given_ca_is_not_installed(request_, tmp_path):
    root, stranger = Outside("root"), Outside("root")
    middle, other = Outside("middle", root), Outside("middle", stranger)
    good = pem(middle.sign(request_))
    for chain, ca in (
        (good, pem(root.certificate)),
        (good + pem(other.certificate), pem(root.certificate)),
        (good + pem(middle.certificate), pem(stranger.certificate)),
        (pem(stranger.sign(request_)), pem(root.certificate)),
        (b"nonsense", pem(root.certificate)),
        (good, b"nonsense"),
    ):
        with pytest.raises(RequestRefused, match=r"chain|PEM"):
            holder.install(NODE, tmp_path, chain, ca, NOW)
    assert not (tmp_path / "cert.pem").exists()


def test_install_without_a_request_says_so(tmp_path):
    outside = Outside()
    with pytest.raises(RequestRefused, match="enrol request"):
        holder.install(NODE, tmp_path, pem(outside.certificate), pem(outside.certificate), NOW)


@pytest.mark.parametrize(
    ("arguments", "field"),
    [
        ((Kind.SAE, ""), "SAE ID"),
        ((Kind.SAE, "a/b"), "SAE ID"),
        ((Kind.NODE, "../x"), "name"),
        ((Kind.OPERATOR, "x"), "role"),
        ((Kind.OPERATOR, "x", (OperatorRole.VIEWER,) * 2), "role"),
        ((Kind.SAE, "x", (OperatorRole.VIEWER,)), "role"),
        ((Kind.SAE, "x", (), ("h",)), "host"),
        ((Kind.NODE, "x", (), ("a b",)), "host"),
        ((Kind.NODE, "x", (), ("-a",)), "host"),
        ((Kind.NODE, "x", (), ("h",) * (HOSTS_MAX + 1)), "host"),
    ],
    ids=str,
)
def test_an_identity_that_cannot_be_is_refused_by_field(arguments, field):
    with pytest.raises(RequestRefused, match=field):
        Identity(*arguments)
