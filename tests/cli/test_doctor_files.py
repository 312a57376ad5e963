"""The doctor's checks of what lies on the disk, each tried by breaking that thing."""

import datetime as dt
import errno
import json
import os
import shutil
import time
from collections import namedtuple
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from doctor_kit import (
    TOPOLOGY,
    a_warning,
    an_error,
    change_node,
    make_lab,
    node_file,
    one,
    pretend_up,
    reissue,
    with_nodes,
)

from qtrunk.cli.doctor import disks
from qtrunk.cli.doctor.certificates import check_certificates, check_revocation, check_signing_keys
from qtrunk.cli.doctor.configuration import check_configuration, check_preshared
from qtrunk.cli.doctor.disks import check_audit, check_permissions, check_space
from qtrunk.cli.doctor.finding import Level
from qtrunk.cli.doctor.site import Answer, Site
from qtrunk.kms.audit import AuditLog
from qtrunk.node.ca import certificates
from qtrunk.node.ca.authority import Authority
from qtrunk.node.ca.identity import Kind
from qtrunk.node.config import Address
from qtrunk.node.pki import LabPki
from qtrunk.node.world import SystemClock, SystemRandom

ON_DISK = (
    check_certificates,
    check_revocation,
    check_signing_keys,
    check_configuration,
    check_permissions,
    check_space,
    check_audit,
)


VENDOR = """
[links.ada-bert]
source = "etsi014"
[links.ada-bert.vendor]
trust = "Acme QX-1"
[links.ada-bert.vendor.alice]
kme_url = "https://10.0.0.7"
sae = "trunk-a"
certificate = "{directory}/cert.pem"
private_key = "{directory}/key.pem"
ca_certificate = "{directory}/ca.pem"
[links.ada-bert.vendor.bob]
kme_url = "https://10.0.0.8"
sae = "trunk-b"
"""


def now() -> dt.datetime:
    return dt.datetime.now(dt.UTC)


def test_a_lab_as_it_was_made_is_well(site):
    assert [finding for check in ON_DISK for finding in check(site)] == []


# ── certificates ────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_key_that_others_can_read(lab, site):
    key = lab.state / "saes" / "bank" / "key.pem"
    key.chmod(0o640)
    found = an_error(check_certificates(site), "key of SAE bank", "mode 0640")
    assert found.fix == f"chmod 600 {key}"


def test_a_key_that_belongs_to_another_user(site, monkeypatch):
    owner = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: owner + 1)
    found = list(check_certificates(site))
    assert {finding.level for finding in found} == {Level.WARNING}
    assert "key of node ada" in {finding.on for finding in found}


def test_a_key_of_somebody_else(lab, site):
    shutil.copyfile(lab.state / "saes" / "bank" / "key.pem", lab.state / "nodes" / "ada" / "key.pem")
    found = an_error(check_certificates(site), "certificate of node ada", "is not the key of")
    assert "KEY_VALUES_MISMATCH" in found.what
    assert "rm " in found.fix


def test_a_key_under_a_password_is_not_asked_for(lab, site):
    path = lab.state / "operator" / "key.pem"
    key = serialization.load_pem_private_key(path.read_bytes(), None)
    encryption = serialization.BestAvailableEncryption(b"sesame")
    path.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.TraditionalOpenSSL, encryption)
    )
    an_error(check_certificates(site), "certificate of operator", "is not the key of")


def test_what_is_shown_to_a_vendors_kme(tmp_path):
    """Its key's file is examined as any other, its names are not."""
    lab = make_lab(tmp_path, TOPOLOGY + VENDOR.format(directory=tmp_path))
    site = Site.of_lab(lab.state)
    own = lab.credentials("bank")
    for name, path in (("cert", own.certificate), ("key", own.private_key), ("ca", own.ca_certificate)):
        shutil.copyfile(path, tmp_path / f"{name}.pem")
    (tmp_path / "key.pem").chmod(0o600)
    assert list(check_certificates(site)) == []
    (tmp_path / "key.pem").chmod(0o644)
    an_error(check_certificates(site), "key of node ada at the vendor's KME of link ada-bert", "mode 0644")


def test_a_key_that_is_gone(lab, site):
    (lab.state / "nodes" / "bert" / "key.pem").unlink()
    an_error(check_certificates(site), "key of node bert", "No such file")


def test_a_key_that_is_a_directory(lab, site):
    path = lab.state / "nodes" / "bert" / "key.pem"
    path.unlink()
    path.mkdir()
    assert {finding.on for finding in check_certificates(site)} == {"key of node bert", "certificate of node bert"}


def test_a_certificate_that_is_none(lab, site):
    path = lab.state / "nodes" / "bert" / "cert.pem"
    path.unlink()
    path.write_text("nonsense")
    an_error(check_certificates(site), "certificate of node bert", str(path))
    path.unlink()
    an_error(check_certificates(site), "certificate of node bert", "No such file")


@pytest.mark.parametrize(
    ("days", "ago_days", "level", "what"),
    [
        (-1, 3, Level.ERROR, "it expired on"),
        (1, 30, Level.WARNING, "in 0 days 23 hours"),
        (30, -1, Level.ERROR, "it is not valid before"),
    ],
)
def test_a_certificate_out_of_time(lab, site, days, ago_days, level, what):
    reissue(lab, lab.state / "nodes" / "ada", Kind.NODE, "ada", days=days, ago_days=ago_days)
    found = one(check_certificates(site))
    assert (found.level, found.on, what in found.what) == (level, "certificate of node ada", True)


def test_what_the_doctor_prescribes_for_an_expired_certificate_heals(lab, site):
    directory = lab.state / "nodes" / "ada"
    reissue(lab, directory, Kind.NODE, "ada", days=-1, ago_days=3)
    assert f"rm {directory}/cert.pem {directory}/key.pem" in one(check_certificates(site)).fix
    for name in ("cert.pem", "key.pem"):
        (directory / name).unlink()
    make_lab(lab.state.parent)
    assert list(check_certificates(site)) == []


def test_a_certificate_of_another_authority(lab, site, tmp_path):
    reissue(lab, lab.state / "saes" / "shop", Kind.SAE, "shop", days=90, ago_days=0, authority=tmp_path / "other")
    an_error(check_certificates(site), "certificate of SAE shop", "does not end at a CA of the given file")


@pytest.mark.parametrize(
    ("directory", "kind", "name", "what"),
    [
        ("saes/bank", Kind.SAE, "shop", "does not stand for the SAE bank"),
        ("nodes/ada", Kind.NODE, "bert", "urn:qtrunk:kme:ada is missing"),
        ("operator", Kind.SAE, "bank", "it is no operator's"),
    ],
)
def test_a_certificate_with_the_name_of_another(lab, site, directory, kind, name, what):
    reissue(lab, lab.state / directory, kind, name, days=90, ago_days=0)
    an_error(check_certificates(site), "certificate of", what)


def test_a_node_with_a_certificate_for_clients_only(lab, site):
    reissue(lab, lab.state / "nodes" / "ada", Kind.SAE, "ada", days=90, ago_days=0)
    found = {finding.what for finding in check_certificates(site)}
    assert found == {
        "its extended key usage lacks TLS server",
        "the name urn:qtrunk:kme:ada is missing",
        "the host names localhost are missing",
    }


def test_a_revoked_certificate(lab, site):
    authority = Authority(lab.state / "pki", SystemClock(), SystemRandom(), "qtrunk lab CA", 90)
    authority.revoke(Kind.SAE, "bank", "lost", "test")
    authority.close()
    an_error(check_certificates(site), "certificate of SAE bank", "it was revoked on")


def test_an_authority_that_has_expired(lab, site):
    path = lab.state / "pki" / "ca.pem"
    good = path.read_bytes()
    old = certificates.make_authority("old CA", certificates.new_key(), now() - dt.timedelta(days=30), 29)
    path.write_bytes(good + certificates.certificate_pem(old))
    a_warning(check_certificates(site), "CA CN=old CA", "it expired on")
    path.write_bytes(certificates.certificate_pem(old))
    levels = {finding.on: finding.level for finding in check_certificates(site)}
    assert levels[f"CA CN=old CA in {path}"] is Level.ERROR
    assert levels["certificate of node ada"] is Level.ERROR
    path.write_text("nothing")
    an_error(check_certificates(site), str(path), "ca_certificate")


# ── revocation lists ────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_revocation_list_that_is_no_good(lab, site, tmp_path):
    path = lab.state / "pki" / "ca.crl"
    authority = x509.load_pem_x509_certificate((lab.state / "pki" / "ca.pem").read_bytes())
    key = certificates.load_key((lab.state / "pki" / "ca.key").read_bytes())
    path.write_bytes(certificates.revocation_list(authority, key, [], 99, now() - dt.timedelta(days=9), 7))
    assert {(finding.on, "a newer one was due" in finding.what) for finding in check_revocation(site)} == {
        ("node ada", True),
        ("node bert", True),
    }
    LabPki(tmp_path / "other").close()
    shutil.copyfile(tmp_path / "other" / "ca.crl", path)
    assert ["not signed by a CA" in finding.what for finding in check_revocation(site)] == [True, True]
    path.unlink()
    assert len(list(check_revocation(site))) == 2
    assert list(check_revocation(with_nodes(site, ada={"revocation_list": None}, bert={"revocation_list": None}))) == []


# ── signing keys ────────────────────────────────────────────────────────────────────────────────────────────────────


def test_verifying_keys_that_do_not_fit(lab, site):
    nodes = lab.state / "nodes"
    shutil.copyfile(nodes / "bert" / "verifying-key.pem", nodes / "ada" / "verifying-key.pem")
    found = {finding.on for finding in check_signing_keys(site)}
    assert found == {"node ada", "node bert"}
    (nodes / "ada" / "verifying-key.pem").write_text("nonsense")
    assert ["verifying key of node ada" in finding.what for finding in check_signing_keys(site)] == [True, True]


def test_a_signing_key_that_is_no_good(lab, site):
    path = lab.state / "nodes" / "ada" / "signing-key.pem"
    path.chmod(0o604)
    an_error(check_signing_keys(site), "signing key of node ada", "mode 0604")
    path.chmod(0o600)
    shutil.copyfile(lab.state / "nodes" / "ada" / "key.pem", path)
    an_error(check_signing_keys(site), str(path), "not an ML-DSA-65 key")
    path.write_text("nonsense")
    an_error(check_signing_keys(site), str(path), "no signing key")


# ── configuration ───────────────────────────────────────────────────────────────────────────────────────────────────


def test_no_lab_is_a_finding(tmp_path):
    an_error(check_configuration(Site.of_lab(tmp_path)), str(tmp_path), "no lab in")


@pytest.mark.parametrize("text", ["{", '{"version": 1, "topology": {"name": 1}, "ports": {}}', None])
def test_a_lab_that_cannot_be_read(lab, text):
    path = lab.state / "lab.json"
    path.unlink()
    path.mkdir() if text is None else path.write_text(text)
    an_error(check_configuration(Site.of_lab(lab.state)), str(lab.state), "")


@pytest.mark.parametrize("text", ["{", '{"node": "ada"}', None])
def test_a_configuration_that_cannot_be_read(lab, text):
    path = node_file(lab, "ada")
    path.unlink() if text is None else path.write_text(text)
    an_error(check_configuration(Site.of_lab(lab.state)), str(path), "")


@pytest.mark.parametrize("change", [{"topology": {"name": 3}}, {"topology": {}}, {"node": "carl"}])
def test_a_configuration_for_another_network(lab, change):
    change_node(lab, "ada", **change)
    found = Site.of_lab(lab.state)
    assert [config.node for config in found.nodes] == ["bert"]
    an_error(check_configuration(found), str(node_file(lab, "ada")), "")


def test_nodes_that_disagree_about_the_network(lab, site):
    topology = json.loads(node_file(lab, "bert").read_bytes())["topology"]
    topology["title"] = "another"
    change_node(lab, "bert", topology=topology)
    assert [(finding.on, finding.what) for finding in check_configuration(Site.of_lab(lab.state))] == [
        ("node bert", "its topology is not that of lab.json"),
        ("node bert", "its topology differs from that of node ada"),
    ]


def test_a_node_that_is_told_other_ports(lab):
    change_node(lab, "ada", key_api={"host": "127.0.0.1", "port": 1})
    an_error(check_configuration(Site.of_lab(lab.state)), "node ada", "other ports than lab.json")


def test_links_that_a_configuration_lacks_or_should_not_have(lab):
    change_node(lab, "ada", links=[])
    an_error(check_configuration(Site.of_lab(lab.state)), "node ada", "lacks the link ada-bert")
    link = json.loads(node_file(lab, "bert").read_bytes())["links"][0]
    change_node(lab, "ada", links=[link, {**link, "link": "ada-carl"}])
    found = {finding.what for finding in check_configuration(Site.of_lab(lab.state))}
    assert any("has the link ada-carl" in what for what in found)


def test_a_peer_at_another_port(site):
    entry = site.nodes[0].links[0]
    entry = type(entry)(entry.link, entry.device_socket, Address("127.0.0.1", 9), entry.preshared_file)
    an_error(check_configuration(with_nodes(site, ada={"links": [entry]})), "node ada, link ada-bert", "at port 9")


def test_a_port_that_serves_twice(site):
    broken = Site(with_nodes(site, ada={"skip_api": site.nodes[1].key_api}).nodes, None)
    an_error(check_configuration(broken), "node bert, key API", "also that of node ada, SKIP")


def test_signed_starts_without_keys(tmp_path):
    lab = make_lab(tmp_path, 'name = "n"\ntrunks = [["ada", "bert"]]\nlink.length_km = 10\nlink.bootstrap = "ml-dsa"\n')
    site = Site.of_lab(lab.state)
    assert list(check_configuration(site)) == []
    an_error(check_configuration(with_nodes(site, ada={"signing_key": None})), "node ada", "bootstrap = ml-dsa")
    (lab.state / "nodes" / "bert" / "verifying-key.pem").unlink()
    lonely = with_nodes(site, ada={"verifying_keys": {}}, bert={"verifying_keys": {}})
    an_error(check_signing_keys(lonely), "node ada", "the verifying key of node bert is not in")


def test_promises_that_the_links_cannot_keep(tmp_path):
    lab = make_lab(
        tmp_path,
        """
        name = "n"
        trunks = [["ada", "bert"]]
        saes = ["bank@ada", "shop@bert"]
        link.length_km = 150
        tenants.rich = {saes = ["*"], guaranteed_bps = 1000000}
        key_api.loopback_test = true
        """,
    )
    found = list(check_configuration(Site.of_lab(lab.state)))
    assert {finding.level for finding in found} == {Level.WARNING}
    assert any("loopback_test" in finding.what for finding in found)
    assert any("guarantee" in finding.what for finding in found)


def test_a_secret_that_was_left_in_the_clear(site, tmp_path):
    answers = {"ada": Answer(status={"node": "ada"}), "bert": Answer(problem="silent")}
    found = a_warning(check_preshared(pretend_up(site, **answers)), "node ada, link ada-bert", "is still there")
    assert "shred" in found.fix
    Path(site.nodes[0].links[0].preshared_file).unlink()
    assert list(check_preshared(site)) == []


# ── disks ───────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("free_octets", "inodes", "level"),
    [(32 << 20, 1 << 20, Level.ERROR), (512 << 20, 1 << 20, Level.WARNING), (9 << 30, 12, Level.WARNING)],
)
def test_a_disk_that_is_nearly_full(site, monkeypatch, free_octets, inodes, level):
    full = namedtuple("full", "f_bavail f_frsize f_files f_favail")(free_octets >> 12, 1 << 12, 1 << 21, inodes)
    monkeypatch.setattr(os, "statvfs", lambda _path: full)
    found = one(check_space(site))
    assert (found.level, found.on) == (level, "disk of nodes ada, bert")


def test_a_disk_that_is_slow(site, monkeypatch):
    monkeypatch.setattr(disks, "WRITES", 3)
    monkeypatch.setattr(os, "fdatasync", lambda _descriptor: time.sleep(0.03))
    a_warning(check_space(site), "disk of nodes ada, bert", "a durable write takes 3")


def test_a_disk_that_takes_nothing(site, monkeypatch):
    def refuse(_descriptor):
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(os, "fdatasync", refuse)
    an_error(check_space(site), "disk of nodes", "cannot be written: Read-only")


def test_the_disk_is_left_as_it_was(lab, site):
    before = sorted(lab.state.rglob("*"))
    list(check_space(site))
    assert sorted(lab.state.rglob("*")) == before


def test_a_directory_that_others_can_enter(lab, site):
    directory = lab.state / "nodes" / "ada"
    directory.chmod(0o755)
    an_error(check_permissions(site), "node ada", "mode 0755")
    directory.chmod(0o700)
    (directory / "kek").write_bytes(bytes(32))
    (directory / "kek").chmod(0o644)
    an_error(check_permissions(site), "node ada, secret kek", "mode 0644")
    shutil.rmtree(directory)
    an_error(check_permissions(site), "node ada", "No such file")


def test_a_lab_that_others_can_enter(lab, site):
    lab.state.chmod(0o711)
    an_error(check_permissions(site), f"lab {lab.state}", "mode 0711")
    lab.state.chmod(0o700)
    (lab.state / "pki" / "ca.key").chmod(0o640)
    an_error(check_permissions(site), "authority of the lab, ca.key", "mode 0640")


def test_an_audit_log_that_was_changed(lab, site):
    directory = lab.state / "nodes" / "ada" / "audit"
    log = AuditLog(directory, SystemClock())
    log.record("operator eve", "start")
    log.close()
    assert list(check_audit(site)) == []
    path = directory / "audit.log"
    path.write_bytes(path.read_bytes().replace(b"eve", b"ada"))
    an_error(check_audit(site), "node ada", "line 1 was changed")
    path.write_bytes(b"")
    an_error(check_audit(site), "node ada", "it ends at record 0, its head is record 1")
    shutil.rmtree(directory)
    (lab.state / "pki" / "audit" / "audit.head").unlink()
    an_error(check_audit(site), "authority of the lab", "audit.head")
